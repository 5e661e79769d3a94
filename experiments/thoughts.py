"""Do thoughts earn their place? The runs behind the results pages on thoughts.

    python experiments/thoughts.py costs [KIND …]    CPU seconds of a step of each kind, interleaved in one process
                                                     → records/thoughts/costs.json
    python experiments/thoughts.py throughput        tokens per second at preset small, next to baselines of as many
                                                     parameters → records/thoughts/throughput.json
    python experiments/thoughts.py list              the arms, and which of them are there
    python experiments/thoughts.py train [NAME …]    train and score the missing ones → records/thoughts/arms.jsonl
    python experiments/thoughts.py steps RUN …       texts of these runs in 16 to 128 steps, judged
                                                     → records/inside_thoughts/steps.jsonl
    python experiments/thoughts.py looks RUN         what a second look through the loophole gains
                                                     → records/inside_thoughts/loophole.json
    python experiments/thoughts.py ceiling RUN       what a baseline gains when words of the passages before are made
                                                     more probable by hand → records/thoughts/ceiling.json
    python experiments/thoughts.py probe RUN         the path of its thoughts, and what they know
                                                     → records/inside_thoughts/probe-RUN.json

Main arms have 20 minutes of one core each. Two arms go on from the reference model for ten minutes, ablations for five,
since thoughts are of little use to a model that has not learned anything yet. All steps have 4,096 tokens. An arm's
number of steps is fixed beforehand, the budget over the cost of its step, so it does not matter how busy the machine is
while it trains. `steps` needs the extras `judge` and `eval`, `probe` the extra `probes`.

The two arms need the reference model of that time, before the speedrun changed it; from the top of the repository:

    git show 96076c8:checkpoints/sotu-4m/model.safetensors > checkpoints/first-4m.safetensors
"""
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from arms import RECORDS, one_core, serve, stepper
from arms import configuration as recipe_with
from diffusion_lm.core import UserError, interleaved, rng
from diffusion_lm.evaluation.passages import MEMORY, by_passage, segments
from diffusion_lm.files import append_jsonl, find_run, read_json, read_jsonl, runs_dir, write_json
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.make import make_model
from diffusion_lm.models.thought import ThoughtConfig, newest_first
from diffusion_lm.models.thought_model import StackedDiffusionModel3D, ThoughtObjective
from diffusion_lm.models.transformer import ModelConfig, n_params
from diffusion_lm.text.store import store_of
from diffusion_lm.theory.objective import Objective, token_nll
from diffusion_lm.theory.schedule import mask_exact
from diffusion_lm.training.recipe import build, load_config
from diffusion_lm.training.run import train
from diffusion_lm.weights import load_weights

PAGE, INSIDE = RECORDS/"thoughts", RECORDS/"inside_thoughts"
COSTS, ARMS, PREFIX = PAGE/"costs.json", PAGE/"arms.jsonl", "th-"
REFERENCE = Path(__file__).parent.parent/"checkpoints"/"first-4m.safetensors"
PASSAGE, TOKENS = 64, 4096  # tokens of a passage, and of a step
BUDGET, SHORT = 1200, 300   # CPU seconds of a main arm, and of an ablation
WIDTH = 272  # of the baselines: as many parameters as the model with thoughts; checked by `costs`
LABEL = 12   # room for year and president

class Labelled(Objective):
    "A baseline that sees a label of the document, clean, before each passage"
    stateful, layout, segment = True, "streams", 1  # it has to be told the document; each window is from another place
    def __init__(self, model, labels):  # tokens of each document (docs,LABEL)
        super().__init__(model)
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, x, t, u, start, document, carried=None):
        "Loss in nats per real token of the passages; there is nothing to carry"
        masked, w = self.corrupt(x, t, u)
        hidden = torch.cat([self.labels[document], torch.where(masked, self.model.mask, x)], 1)
        h = self.model.features(hidden, mask=self.model.real_keys(hidden))[0][:, -x.shape[1]:]
        return self.mean(token_nll(self.model, h[masked], x[masked]), masked, w, x), (torch.zeros(len(x)),)

def labels(tok, store):
    "Year and president of each document, as tokens, [PAD] first (docs,LABEL)"
    ids = [tok.encode(" ".join(n.split("-")[:2]))[-LABEL:] for n in store.names()]
    return torch.from_numpy(np.stack([np.pad(i, (LABEL - len(i), 0), constant_values=tok.pad) for i in ids]))

def build_labelled(cfg, tok):
    return Labelled(build(cfg, tok).model, labels(tok, store_of(cfg.data, tok)))

OF_THOUGHTS = ("reader.", "writer.", "looks.", "losses.", "first", "open")  # weights that the reference model lacks

def build_upon(cfg, tok):
    "As `build`, with all weights of the reference model"
    o = build(cfg, tok)
    left = o.model.load_state_dict(load_weights(REFERENCE), strict=False)
    missing = [k for k in left.missing_keys if not k.startswith(OF_THOUGHTS)]
    if left.unexpected_keys or missing: raise UserError(f"the reference model does not fit: {left}")
    return o

SHAPE = {  # four passages of backpropagation
    "model.thought.late": 0., "model.length": 4*PASSAGE, "model.block": PASSAGE, "trainer.batch": TOKENS//(4*PASSAGE)}
PLAIN = {"model.width": WIDTH, "model.length": PASSAGE, "trainer.batch": TOKENS//PASSAGE}
CONTEXT = {
    "objective": "block", "model.block": PASSAGE, "model.length": 2*PASSAGE, "trainer.batch": TOKENS//(2*PASSAGE)}
MAIN = {  # recipe, and what differs from it
    "thoughts": ("thought", SHAPE),
    "baseline": ("demo", PLAIN),
    "context": ("demo", PLAIN | CONTEXT),
    "metadata": ("demo", PLAIN)}
LATE = .6  # of the training, the baseline's way: a remedy
def thinking(**options):
    "The recipe with thoughts, with some options of its section `model.thought`"
    return "thought", SHAPE | {f"model.thought.{k}": v for k, v in options.items()}
REMEDIES = {"late": thinking(late=LATE)}
NARROW = ("demo", PLAIN | {"model.width": 256})  # the trunk of the reference model
UPON = {"upon-plain": NARROW, "upon-thoughts": thinking()}  # half as long, from the reference model's weights
LOSSES = dict(next=.1, reconstruction=.1, contrastive=.1, consistency=.1, diversity=.01, sparsity=.01)
EIGHT = {"model.length": 8*PASSAGE, "trainer.batch": TOKENS//(8*PASSAGE), "model.thought.segment": 2}
ABLATIONS = {
    "thoughts": thinking(),
    "plain": NARROW,
    "clean-writer": thinking(writer="clean"),
    "importance": thinking(retention="importance"),
    **{f"loss-{k}": thinking(**{f"losses.{k}": v}) for k, v in LOSSES.items()},
    "one-look": thinking(looks=1),
    "no-scales": thinking(scales="false"),
    "no-motion": thinking(motion="false"),
    "depth-1": thinking(depth=1),
    "one-cell": thinking(dims="[1]", channels=1024),
    "eight-passages": ("thought", SHAPE | EIGHT),
    "whole-documents": thinking(segment="null"),
    "loophole": thinking(loophole=.5)}

def configuration(kind, seed=0, steps=1):
    recipe, options = (MAIN | REMEDIES | UPON | ABLATIONS)[kind]
    every = {"trainer.eval_every": 100, "trainer.save_every": 100, "trainer.keep": 1, "trainer.test_tokens": 4096}
    return recipe_with(recipe, {**every, **options, "seed": seed, "trainer.steps": steps})

def objective_of(kind, cfg, V, g):
    "An untrained objective of a kind, with made-up labels for the metadata"
    model = make_model(cfg.model.resolve(), V, range(5), cfg.objective)
    if cfg.model.thought: return ThoughtObjective(model)
    if kind == "metadata": return Labelled(model, torch.randint(5, V, (9, LABEL), generator=g))
    return Objective(model, cfg.objective)

def costs(*kinds, rounds=15):
    "CPU seconds of a step of each kind on one thread, its ratio to the model with thoughts, both medians; parameters"
    one_core()
    V, steps, size = 4096, {}, {}
    for kind in dict.fromkeys(["thoughts", *kinds] if kinds else [*MAIN, "asleep", *ABLATIONS]):
        cfg = configuration("thoughts" if kind == "asleep" else kind)
        l, b = cfg.model.length, cfg.trainer.batch
        g = torch.Generator().manual_seed(0)
        x, u = torch.randint(5, V, (b, l), generator=g), torch.rand(b, l, generator=g)
        o = objective_of(kind, cfg, V, g)
        o.awake = kind != "asleep"
        n = o.times(l)*b
        t = ((torch.randperm(n, generator=g) + .5)/n).view(b, -1)
        more = (torch.zeros(b, dtype=torch.bool), torch.arange(b) % 9, None) if o.stateful else ()
        steps[kind], size[kind] = stepper(o, (x, t, u), more), n_params(o.model)
    seconds = interleaved(steps, rounds, few=() if kinds else set(steps) - {*MAIN, "asleep"})
    print({k: f"{n/size['thoughts']:.3f}" for k, n in size.items()})
    def ratio(v): return statistics.median(b/a for a, b in zip(seconds["thoughts"], v))
    known = read_json(COSTS) if kinds else {}
    return known | {k: {"cpu_seconds": statistics.median(v), "ratio": ratio(v), "parameters": size[k]}
                    for k, v in seconds.items() if k not in known}

def throughput(rounds=9):
    "Training at preset small: tokens per CPU second of thoughts and of baselines of as many parameters"
    one_core()
    V, l, b = 8192, 4*PASSAGE, 8
    g = torch.Generator().manual_seed(0)
    x, u = torch.randint(5, V, (b, l), generator=g), torch.rand(b, l, generator=g)
    t = ((torch.randperm(4*b, generator=g) + .5)/(4*b)).view(b, 4)
    config = ModelConfig("small", length=l, block=PASSAGE, thought=ThoughtConfig()).resolve()
    ours = StackedDiffusionModel3D(config, V, range(5))
    wide = ours.matched()
    clean = StackedDiffusionModel3D(replace(ours.config, thought=ThoughtConfig(writer="clean")), V, range(5))
    begin = torch.zeros(b, dtype=torch.bool), None
    passages = x.view(-1, PASSAGE), t.view(-1, 1), u.view(-1, PASSAGE)
    steps = {"thoughts": stepper(ThoughtObjective(ours), (x, t, u), begin),
             "clean writer": stepper(ThoughtObjective(clean), (x, t, u), begin),
             "baseline on passages": stepper(Objective(wide), passages),
             "baseline on windows": stepper(Objective(wide.like()), (x, t[:, :1], u))}
    seconds = interleaved(steps, rounds)
    def relative(v):
        "Median, least and most of the rounds"
        ratios = [b/a for a, b in zip(v, seconds["baseline on passages"])]
        return [statistics.median(ratios), min(ratios), max(ratios)]
    out = {"parameters": n_params(ours), "baseline_parameters": n_params(wide), "baseline_width": wide.config.width,
           "rounds": rounds, "tokens_per_cpu_second": {k: b*l/statistics.median(v) for k, v in seconds.items()},
           "relative_to_baseline_on_passages": {k: relative(v) for k, v in seconds.items()}}
    print(out)
    write_json(PAGE/"throughput.json", out)

def arms():
    "Name → (kind, seed, steps): main arms at seeds 0, 1, 2, one with the loophole, then the ablations"
    cost = read_json(COSTS)
    cost["late"] = {"ratio": LATE*cost["asleep"]["ratio"] + 1 - LATE}
    cost |= {f"upon-{k}": cost[k] for k in ("thoughts", "plain")}
    def ratio(kind):
        r = cost[kind]["ratio"]
        return r if abs(r - 1) > .03 else 1.  # smaller differences are the measurement's own
    def steps(kind, budget): return round(budget/cost["thoughts"]["cpu_seconds"]/ratio(kind))
    out = {f"{PREFIX}{k}-s{s}": (k, s, steps(k, BUDGET)) for s in (0, 1, 2) for k in MAIN | REMEDIES}
    out[f"{PREFIX}loophole-s0"] = "loophole", 0, steps("loophole", BUDGET)
    for k in UPON: out[f"{PREFIX}{k}-s0"] = k, 0, steps(k, BUDGET/2)
    for k in ABLATIONS: out[f"{PREFIX}short-{k}"] = k, 0, steps(k, SHORT)
    return out

def maker_of(name, kind):
    "What builds the objective of an arm"
    if "-short-" in name or kind.startswith("upon-"): return build_upon
    return build_labelled if kind == "metadata" else build

def train_arm(name, kind, seed, steps):
    cfg, run = configuration(kind, seed, steps), runs_dir()/name
    begun, done = ((run/f).exists() for f in ("config.yaml", "summary.json"))
    if not done: train(cfg, name, resume=begun, make=maker_of(name, kind))
    lm, s = DiffusionLM.from_run(name, device="cpu"), read_json(run/"summary.json")
    store = store_of(cfg.data, lm.tokenizer)
    docs = store.documents("test")
    prefix = labels(lm.tokenizer, store)[np.searchsorted(store.offsets, docs[:-1])] if kind == "metadata" else None
    def score(memory):
        tokens = store.split("test")
        return by_passage(lm.model, lm.tokenizer, tokens, docs, size=PASSAGE, memory=memory, prefix=prefix)
    scores = {m: score(m) for m in (MEMORY if cfg.model.thought else ("carried",))}
    append_jsonl(ARMS, {
        "name": name, "kind": kind, "seed": seed, "short": "-short-" in name, "steps": steps,
        "parameters": s["parameters"], "cpu_seconds": s["cpu_seconds"], "machine": s["machine"], "scores": scores})

STEPS, TEMPERATURES = (16, 32, 64, 128), (.5, .65, .8, 1.)  # the same entropy is found between two of these

def steps_of_denoising(*runs):
    "32 texts of two passages with each run, number of steps and temperature, judged"
    from diffusion_lm.evaluation.quality import Judge
    from pareto import judged, write
    path, judge = INSIDE/"steps.jsonl", Judge()
    done = {(r["run"], r["steps"], r["temperature"]) for r in read_jsonl(path)} if path.exists() else set()
    for run in runs:
        lm = DiffusionLM.from_run(run, device="cpu")
        lm.length = 2*PASSAGE
        for n in STEPS:
            for t in TEMPERATURES:
                if (run, n, t) in done: continue
                ids, calls, seconds = write(lm, dict(steps=n, temperature=t))
                append_jsonl(path, {"run": run, "steps": n, "temperature": t, "evaluations": float(np.mean(calls)),
                                    "cpu_seconds": seconds, **judged(lm, ids, judge)})
                print(run, n, t, flush=True)

def hide(g, ratios, shape):
    "Which tokens (rows,l) a draw of `g` hides at mask ratios (rows,), and the weight (rows,l) of each in the bound"
    u, every = torch.from_numpy(g.random(shape, dtype=np.float32)), torch.ones(shape, dtype=torch.bool)
    masked, n, real = mask_exact(torch.from_numpy(ratios).float()[:, None], u, every)
    return masked, (real/n).double().expand(shape)

@torch.no_grad()
def boosted(lm, store,     # a baseline, and its text
            split,         # which documents
            past,          # how many passages before count
            alphas,        # strengths
            draws=2,       # of masks
            most=60_000):  # tokens
    """Nats and bytes of each document, (docs,alphas) and (docs,), with likelier words of the passages before.

    The score of word v is raised by alpha·log((c + u)/2u), where c is its frequency in those passages, u in all text.
    """
    tok, model, docs = lm.tokenizer, lm.model, store.documents(split)
    u = torch.from_numpy(np.bincount(store.split("train"), minlength=len(tok)) + .5)
    u, nats, size = u/u.sum(), [], []
    for a, b in zip(docs[:-1], docs[1:]):
        text = np.asarray(store.tokens[a:min(b, docs[0] + most)], np.int64)
        total, x = np.zeros(len(alphas)), torch.from_numpy(text[:len(text)//PASSAGE*PASSAGE]).view(-1, PASSAGE)
        for k in range(1, len(x)):  # the first has no past
            c = torch.bincount(x[max(0, k - past):k].flatten(), minlength=len(tok)).double()
            bonus = ((c/c.sum() + u)/(2*u)).log()
            g = rng(0, "ceiling", int(a), k)
            masked, w = hide(g, 1 - (g.random() + np.arange(draws)/draws) % 1, (draws, PASSAGE))
            y = x[k].expand(draws, -1)
            logits = model.head(model.features(torch.where(masked, tok.mask, y))[0][masked]).double()
            for i, alpha in enumerate(alphas):
                nll = F.cross_entropy(logits + alpha*bonus, y[masked], reduction="none")
                total[i] += float((w[masked]*nll).sum())/draws
        if len(x) < 2: continue
        nats.append(total)
        size.append(int(tok.n_bytes[x[1:].numpy()].sum()))
    return np.array(nats), np.array(size)

def ceiling(run):
    "The strength chosen on the validation split, the gain on the test split"
    lm, rows, alphas = DiffusionLM.from_run(run, device="cpu"), [], [0., .1, .2, .3, .4, .5, .6]
    store = store_of(load_config(find_run(run)/"config.yaml").data, lm.tokenizer)
    for past in (1, 7):
        chosen = int(boosted(lm, store, "validation", past, alphas)[0].sum(0).argmin())
        nats, size = boosted(lm, store, "test", past, [0., alphas[chosen]])
        rows.append({"passages": past, "alpha": alphas[chosen], "nats": nats.round(2).tolist(), "bytes": size.tolist()})
        print(past, alphas[chosen], nats.sum(0)[1]/nats.sum(0)[0] - 1, flush=True)
    write_json(PAGE/"ceiling.json", {"run": run, "rows": rows})

@torch.no_grad()
def second_look(run, draws=4):
    """What a model with the loophole gains when it reads the hidden states of a first look at the same masked passage.

    Nats of the first and of the second look, by document, on passages without thoughts.
    """
    lm = DiffusionLM.from_run(run, device="cpu")
    tok, model, rows = lm.tokenizer, lm.model, []
    store = store_of(load_config(find_run(run)/"config.yaml").data, tok)
    docs = store.documents("test")
    for a, b in zip(docs[:-1], docs[1:]):
        x = torch.from_numpy(np.asarray(store.tokens[a:b], np.int64)[:(b - a)//PASSAGE*PASSAGE]).view(-1, PASSAGE)
        if not len(x): continue
        g, total = rng(0, "looks", int(a)), np.zeros(2)
        for d in range(draws):
            masked, w = hide(g, 1 - (g.random(len(x)) + d)/draws, x.shape)
            latent, hidden = None, torch.where(masked, tok.mask, x)
            for i in range(2):
                latent = model.features(hidden, memory=model.begin(len(x)), latent=latent)[0]
                total[i] += float((w[masked]*token_nll(model, latent[masked], x[masked])).sum())/draws
        rows.append(total)
    rows = np.array(rows)
    print(rows.sum(0)[1]/rows.sum(0)[0] - 1)
    def rms(z): return float(z.square().mean().sqrt())
    write_json(INSIDE/"loophole.json", {"run": run, "nats": rows.round(2).tolist(), "gate": rms(model.open),
                                        "embedding": rms(model.embed.weight)})

def topics(texts, k=8):
    "A topic for each text, by non-negative factors of its words; and the topics' words"
    from sklearn.decomposition import NMF
    from sklearn.feature_extraction.text import TfidfVectorizer
    v = TfidfVectorizer(stop_words="english", min_df=20, max_df=.2, sublinear_tf=True)
    z = v.fit_transform(texts)
    f = NMF(k, random_state=0, max_iter=400).fit(z)
    words = v.get_feature_names_out()
    return f.transform(z).argmax(1), [", ".join(words[i] for i in row.argsort()[::-1][:5]) for row in f.components_]

def segments_to_read(store, pad, most=4):
    "Some whole segments (n,8·PASSAGE) of each document, evenly spread over it, and the document of each"
    offsets, rows, docs = store.offsets, [], []
    for d in range(len(store.names())):
        a, b = (int(o) for o in offsets[d:d + 2])
        x, _ = segments(store.tokens[a:b], [0, b - a], PASSAGE, 8, pad)
        x = x[(x != pad).all(1)]
        if len(x): x = x[np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).round().astype(int))]
        rows.append(x)
        docs += [d]*len(x)
    return torch.cat(rows), np.array(docs)

def told_from(inputs, label, docs):
    "What linear probes find out about each label from each input"
    from diffusion_lm.lab.thought_probes import linear_probe
    found, president = {}, label["president"]
    # a president who is in one document only cannot be told from others
    often = [p for p in set(president) if len(set(docs[president == p])) > 2]
    for name, y in label.items():
        rows = np.isin(president, often) if name == "president" else np.ones(len(docs), bool)
        for what, z in inputs.items():
            e, chance = linear_probe(z[rows], y[rows], docs[rows])
            found.setdefault(name, {"chance": chance})[what] = {
                "value": e.value, "low": e.low, "high": e.high, "unit": e.unit}
    return found

@torch.no_grad()
def while_revealed(model, x, order, mask):
    "The thought that would be written of the last passage, while it is revealed in eight steps"
    before = model.study(x[:, :-PASSAGE])
    ratios = [1 - k/8 for k in range(9)]
    last = [x[:, -PASSAGE:].masked_fill(order < r, mask) for r in ratios]
    return torch.stack([newest_first(model.remember(p, before)).maps[:, 0] for p in last], 1)

def probe(run):
    "What the thoughts of a run know after eight passages, on documents that it was not trained on and on its own"
    from diffusion_lm.lab.thought_probes import evolution, thought_path
    lm, cfg = DiffusionLM.from_run(run, device="cpu"), load_config(find_run(run)/"config.yaml")
    tok, store = lm.tokenizer, store_of(cfg.data, lm.tokenizer)
    x, docs = segments_to_read(store, tok.pad)
    held = store.splits[docs] != 0  # not trained on
    names = [n.split("-") for n in store.names()]
    label = {"year": np.array([float(names[d][0]) for d in docs]), "president": np.array([names[d][1] for d in docs])}
    passages = [tok.decode(p) for row in x.tolist() for p in np.array(row).reshape(8, -1).tolist()]
    topic, words = topics(passages)
    topic = np.array([f"topic {t}" for t in topic]).reshape(len(x), 8)
    label |= {"topic of the passage read": topic[:, 6], "topic of the next": topic[:, 7]}  # thoughts after the seventh
    trained, untrained = (thought_path(m, x) for m in (lm.model, build(cfg, tok).model.eval()))
    bag = np.stack([np.bincount(r[6*PASSAGE:7*PASSAGE], minlength=len(tok)) for r in x.numpy()]).astype(float)
    inputs = {"thought": trained[:, 6].flatten(1).numpy(),
              "thought of an untrained model": untrained[:, 6].flatten(1).numpy(),
              "words of the passage": np.sqrt(bag[:, bag.sum(0) >= 20])}
    order = torch.rand(len(x), PASSAGE, generator=torch.Generator().manual_seed(0))
    written = while_revealed(lm.model, x[held], order[held], tok.mask)
    paths = {"trained": evolution(trained[held], docs[held]),
             "trained, on its training text": evolution(trained[~held], docs[~held]),
             "untrained": evolution(untrained[held], docs[held]),
             "trained, while a passage is revealed": evolution(written, docs[held])}
    write_json(INSIDE/f"probe-{run}.json", {
        "run": run, "stretches": len(x), "documents": len(set(docs)), "topics": words, "evolution": paths,
        "probes": told_from(inputs, label, docs)})

def main(what="list", *names):
    if what == "costs": return write_json(COSTS, costs(*names))
    if what == "throughput": return throughput()
    if what == "steps" and names: return steps_of_denoising(*names)
    of_a_run = {"ceiling": ceiling, "probe": probe, "looks": second_look}
    if what in of_a_run and len(names) == 1: return of_a_run[what](*names)
    done = {r["name"] for r in read_jsonl(ARMS)} if ARMS.exists() else set()
    todo = {n: a for n, a in arms().items() if not names or n in names}
    if serve(what, todo, done.__contains__, lambda a: f"{a[2]:6,} steps", train_arm): return 0
    print(__doc__)
    return 2

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"thoughts.py: {e}")
