"""Do thoughts earn their place? The runs behind the results pages on thoughts.

    python bench/thoughts.py costs [KIND …]    CPU seconds of a step of each kind, interleaved in one process → bench/thoughts_costs.json
    python bench/thoughts.py throughput        tokens per second at preset small beside baselines of as many parameters → bench/records/thoughts-throughput.json
    python bench/thoughts.py list              the arms, and which of them are there
    python bench/thoughts.py train [NAME …]    train and score those that are missing, one after another → bench/records/thoughts.jsonl
    python bench/thoughts.py steps RUN …       texts of these runs in 16 to 128 steps, judged → bench/records/thoughts-steps.jsonl
    python bench/thoughts.py looks RUN         what a second look through the loophole gains → bench/records/thoughts-loophole.json
    python bench/thoughts.py ceiling RUN       what a baseline gains when words of the passages before are made more probable by hand → bench/records/thoughts-ceiling.json
    python bench/thoughts.py probe RUN         the path of its thoughts, and what they know → bench/records/thoughts-probe-RUN.json

Main arms have 20 minutes of one core each. Two arms go on from the reference model for ten minutes, ablations for five, since thoughts
have little to say to a model that knows nothing yet. All steps have 4,096 tokens. An arm's number of
steps is fixed beforehand, the budget over the cost of its step, so it does not matter how busy the machine is while it trains.
`steps` needs the extras `judge` and `eval`, `probe` the extra `probes`.
"""
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from arms import configuration as recipe_with
from arms import one_core, serve, stepper
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

HERE = Path(__file__).parent
COSTS, RECORDS, PREFIX = HERE/"thoughts_costs.json", HERE/"records"/"thoughts.jsonl", "th-"
PASSAGE, TOKENS, BUDGET, SHORT = 64, 4096, 1200, 300 # tokens of a passage and of a step; CPU seconds of a main arm and of an ablation
WIDTH = 272 # of the baselines: as many parameters as the model with thoughts; checked by `costs`
LABEL = 12 # room for year and president

class Labelled(Objective):
    "A baseline that sees a label of the document, clean, before each passage"
    stateful, layout, segment = True, "streams", 1 # it has to be told the document; each window is from another place
    def __init__(self, model, labels): # tokens of each document (docs,LABEL)
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

def build_upon(cfg, tok):
    "As `build`, with all weights of the reference model"
    o = build(cfg, tok)
    left = o.model.load_state_dict(load_weights(HERE.parent/"checkpoints"/"sotu-4m"/"model.safetensors"), strict=False)
    if left.unexpected_keys or any(not k.startswith(("reader.", "writer.", "looks.", "losses.", "first", "open")) for k in left.missing_keys): raise UserError(f"the reference model does not fit: {left}")
    return o

SHAPE = {"model.thought.late": 0., "model.length": 4*PASSAGE, "model.block": PASSAGE, "trainer.batch": TOKENS//(4*PASSAGE)} # four passages of backpropagation
PLAIN = {"model.width": WIDTH, "model.length": PASSAGE, "trainer.batch": TOKENS//PASSAGE}
MAIN = { # recipe, and what differs from it
    "thoughts": ("thought", SHAPE),
    "baseline": ("demo", PLAIN),
    "context": ("demo", {**PLAIN, "objective": "block", "model.block": PASSAGE, "model.length": 2*PASSAGE, "trainer.batch": TOKENS//(2*PASSAGE)}),
    "metadata": ("demo", PLAIN)}
LATE = .6 # of the training, the baseline's way: a remedy
T = lambda **kw: ("thought", SHAPE | {f"model.thought.{k.replace('losses_', 'losses.')}": v for k, v in kw.items()})
REMEDIES = {"late": T(late=LATE)}
UPON = {"upon-plain": ("demo", PLAIN | {"model.width": 256}), "upon-thoughts": T()} # half as long, with the reference model's weights to begin with
ABLATIONS = {
    "thoughts": T(), "plain": ("demo", PLAIN | {"model.width": 256}),
    "clean-writer": T(writer="clean"), "importance": T(retention="importance"),
    **{f"loss-{k}": T(**{f"losses_{k}": v}) for k, v in dict(next=.1, reconstruction=.1, contrastive=.1, consistency=.1, diversity=.01, sparsity=.01).items()},
    "one-look": T(looks=1), "no-scales": T(scales="false"), "no-motion": T(motion="false"), "depth-1": T(depth=1), "one-cell": T(dims="[1]", channels=1024),
    "eight-passages": ("thought", SHAPE | {"model.length": 8*PASSAGE, "trainer.batch": TOKENS//(8*PASSAGE), "model.thought.segment": 2}),
    "whole-documents": T(segment="null"), "loophole": T(loophole=.5)}

def configuration(kind, seed=0, steps=1):
    recipe, options = (MAIN | REMEDIES | UPON | ABLATIONS)[kind]
    return recipe_with(recipe, {"trainer.eval_every": 100, "trainer.save_every": 100, "trainer.keep": 1, "trainer.test_tokens": 4096, **options, "seed": seed, "trainer.steps": steps})

def costs(*kinds, rounds=15):
    "CPU seconds of a step of each kind on one thread, interleaved, and parameters; medians, and medians of the ratios to the model with thoughts"
    one_core()
    V, steps, size = 4096, {}, {}
    for kind in dict.fromkeys(["thoughts", *kinds] if kinds else [*MAIN, "asleep", *ABLATIONS]):
        cfg = configuration("thoughts" if kind == "asleep" else kind)
        l, b, c = cfg.model.length, cfg.trainer.batch, cfg.model.resolve()
        g = torch.Generator().manual_seed(0)
        x, u = torch.randint(5, V, (b, l), generator=g), torch.rand(b, l, generator=g)
        model = make_model(c, V, range(5), cfg.objective)
        o = ThoughtObjective(model) if c.thought else Labelled(model, torch.randint(5, V, (9, LABEL), generator=g)) if kind == "metadata" else Objective(model, cfg.objective)
        o.awake = kind != "asleep"
        n = o.times(l)*b
        t = ((torch.randperm(n, generator=g) + .5)/n).view(b, -1)
        steps[kind], size[kind] = stepper(o, (x, t, u), (torch.zeros(b, dtype=torch.bool), torch.arange(b) % 9, None) if o.stateful else ()), n_params(model)
    seconds = interleaved(steps, rounds, few=() if kinds else set(steps) - {*MAIN, "asleep"})
    print({k: f"{n/size['thoughts']:.3f}" for k, n in size.items()})
    known = read_json(COSTS) if kinds else {}
    return known | {k: {"cpu_seconds": statistics.median(v), "ratio": statistics.median(b/a for a, b in zip(seconds["thoughts"], v)), "parameters": size[k]} for k, v in seconds.items() if k not in known}

def throughput(rounds=9):
    "Training at preset small: tokens per CPU second relative to baselines of as many parameters, on passages and on whole windows; medians of paired rounds"
    one_core()
    V, l, b = 8192, 4*PASSAGE, 8
    g = torch.Generator().manual_seed(0)
    x, u, t = torch.randint(5, V, (b, l), generator=g), torch.rand(b, l, generator=g), ((torch.randperm(4*b, generator=g) + .5)/(4*b)).view(b, 4)
    ours = StackedDiffusionModel3D(ModelConfig("small", length=l, block=PASSAGE, thought=ThoughtConfig()).resolve(), V, range(5))
    wide = ours.matched()
    steps = {"thoughts": stepper(ThoughtObjective(ours), (x, t, u), (torch.zeros(b, dtype=torch.bool), None)),
             "clean writer": stepper(ThoughtObjective(StackedDiffusionModel3D(replace(ours.config, thought=ThoughtConfig(writer="clean")), V, range(5))), (x, t, u), (torch.zeros(b, dtype=torch.bool), None)),
             "baseline on passages": stepper(Objective(wide), (x.view(-1, PASSAGE), t.view(-1, 1), u.view(-1, PASSAGE))),
             "baseline on windows": stepper(Objective(wide.like()), (x, t[:, :1], u))}
    seconds = interleaved(steps, rounds)
    out = {"parameters": n_params(ours), "baseline_parameters": n_params(wide), "baseline_width": wide.config.width, "rounds": rounds,
           "tokens_per_cpu_second": {k: b*l/statistics.median(v) for k, v in seconds.items()},
           "relative_to_baseline_on_passages": {k: [f(b/a for a, b in zip(v, seconds["baseline on passages"])) for f in (statistics.median, min, max)] for k, v in seconds.items()}}
    print(out)
    write_json(HERE/"records"/"thoughts-throughput.json", out)

def arms():
    "Name → (kind, seed, steps): main arms at seeds 0, 1, 2, one with the loophole, then the ablations"
    cost = read_json(COSTS)
    cost["late"] = {"ratio": LATE*cost["asleep"]["ratio"] + 1 - LATE}
    cost |= {f"upon-{k}": cost[k] for k in ("thoughts", "plain")}
    ratio = lambda kind: r if abs((r := cost[kind]["ratio"]) - 1) > .03 else 1. # smaller differences are the measurement's own
    steps = lambda kind, budget: round(budget/cost["thoughts"]["cpu_seconds"]/ratio(kind))
    main = {f"{PREFIX}{k}-s{s}": (k, s, steps(k, BUDGET)) for s in (0, 1, 2) for k in MAIN | REMEDIES}
    return main | {f"{PREFIX}loophole-s0": ("loophole", 0, steps("loophole", BUDGET))} | {f"{PREFIX}{k}-s0": (k, 0, steps(k, BUDGET/2)) for k in UPON} | {f"{PREFIX}short-{k}": (k, 0, steps(k, SHORT)) for k in ABLATIONS}

def train_arm(name, kind, seed, steps):
    cfg, run = configuration(kind, seed, steps), runs_dir()/name
    make = build_upon if "-short-" in name or kind.startswith("upon-") else build_labelled if kind == "metadata" else build
    if not (run/"summary.json").exists(): train(cfg, name, resume=(run/"config.yaml").exists(), make=make)
    lm, s = DiffusionLM.from_run(name, device="cpu"), read_json(run/"summary.json")
    store = store_of(cfg.data, lm.tokenizer)
    docs = store.documents("test")
    prefix = labels(lm.tokenizer, store)[np.searchsorted(store.offsets, docs[:-1])] if kind == "metadata" else None
    memories = MEMORY if lm.model.thought else ("carried",)
    scores = {m: by_passage(lm.model, lm.tokenizer, store.split("test"), docs, size=PASSAGE, memory=m, prefix=prefix) for m in memories}
    append_jsonl(RECORDS, {"name": name, "kind": kind, "seed": seed, "short": "-short-" in name, "steps": steps, "parameters": s["parameters"], "cpu_seconds": s["cpu_seconds"], "machine": s["machine"], "scores": scores})

STEPS, TEMPERATURES = (16, 32, 64, 128), (.5, .65, .8, 1.) # texts of the same entropy are found between two temperatures

def steps_of_denoising(*runs):
    "32 texts of two passages with each run, number of steps and temperature, judged"
    from diffusion_lm.evaluation.quality import Judge
    from pareto import judged, write
    path, judge = HERE/"records"/"thoughts-steps.jsonl", Judge()
    done = {(r["run"], r["steps"], r["temperature"]) for r in read_jsonl(path)} if path.exists() else set()
    for run in runs:
        lm = DiffusionLM.from_run(run, device="cpu")
        lm.length = 2*PASSAGE
        for n in STEPS:
            for t in TEMPERATURES:
                if (run, n, t) in done: continue
                ids, calls, seconds = write(lm, dict(steps=n, temperature=t))
                append_jsonl(path, {"run": run, "steps": n, "temperature": t, "evaluations": float(np.mean(calls)), "cpu_seconds": seconds, **judged(lm, ids, judge)})
                print(run, n, t, flush=True)

def hide(g, share, shape):
    "Which tokens (rows,l) a draw of `g` hides at shares (rows,), and the weight (rows,l) of each in the bound"
    masked, n, real = mask_exact(torch.from_numpy(share).float()[:, None], torch.from_numpy(g.random(shape, dtype=np.float32)), torch.ones(shape, dtype=torch.bool))
    return masked, (real/n).double().expand(shape)

@torch.no_grad()
def boosted(lm, store, side, past, alphas, draws=2, most=60_000):
    "Nats and bytes of each document (docs,alphas) and (docs,): the score of word v is raised by alpha·log((c+u)/2u), c its share of the passages before, u of all text"
    tok, model, docs = lm.tokenizer, lm.model, store.documents(side)
    u = torch.from_numpy(np.bincount(store.split("train"), minlength=len(tok)) + .5)
    u, nats, size = u/u.sum(), [], []
    for a, b in zip(docs[:-1], docs[1:]):
        text = np.asarray(store.tokens[a:min(b, docs[0] + most)], np.int64)
        total, x = np.zeros(len(alphas)), torch.from_numpy(text[:len(text)//PASSAGE*PASSAGE]).view(-1, PASSAGE)
        for k in range(1, len(x)): # the first has no past
            c = torch.bincount(x[max(0, k - past):k].flatten(), minlength=len(tok)).double()
            bonus = ((c/c.sum() + u)/(2*u)).log()
            g = rng(0, "ceiling", int(a), k)
            masked, w = hide(g, 1 - (g.random() + np.arange(draws)/draws) % 1, (draws, PASSAGE))
            y = x[k].expand(draws, -1)
            logits = model.head(model.features(torch.where(masked, tok.mask, y))[0][masked]).double()
            total += [float((w[masked]*F.cross_entropy(logits + alpha*bonus, y[masked], reduction="none")).sum())/draws for alpha in alphas]
        if len(x) > 1: nats.append(total); size.append(int(tok.n_bytes[x[1:].numpy()].sum()))
    return np.array(nats), np.array(size)

def ceiling(run):
    "The strength chosen on the validation side, the gain on the test side"
    lm, rows, alphas = DiffusionLM.from_run(run, device="cpu"), [], [0., .1, .2, .3, .4, .5, .6]
    store = store_of(load_config(find_run(run)/"config.yaml").data, lm.tokenizer)
    for past in (1, 7):
        chosen = int(boosted(lm, store, "validation", past, alphas)[0].sum(0).argmin())
        nats, size = boosted(lm, store, "test", past, [0., alphas[chosen]])
        rows.append({"passages": past, "alpha": alphas[chosen], "nats": nats.round(2).tolist(), "bytes": size.tolist()})
        print(rows[-1]["passages"], alphas[chosen], nats.sum(0)[1]/nats.sum(0)[0] - 1, flush=True)
    write_json(HERE/"records"/"thoughts-ceiling.json", {"run": run, "rows": rows})

@torch.no_grad()
def second_look(run, draws=4):
    "What a model with the loophole gains when it reads the hidden states of a first look at the same masked passage: nats of the first and of the second look, by document, passages without thoughts"
    lm = DiffusionLM.from_run(run, device="cpu")
    tok, model, store, rows = lm.tokenizer, lm.model, store_of(load_config(find_run(run)/"config.yaml").data, lm.tokenizer), []
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
    rows, rms = np.array(rows), lambda z: float(z.square().mean().sqrt())
    print(rows.sum(0)[1]/rows.sum(0)[0] - 1)
    write_json(HERE/"records"/"thoughts-loophole.json", {"run": run, "nats": rows.round(2).tolist(), "gate": rms(model.open), "embedding": rms(model.embed.weight)})

def topics(texts, k=8):
    "A topic for each text, by non-negative factors of its words; and the topics' words"
    from sklearn.decomposition import NMF
    from sklearn.feature_extraction.text import TfidfVectorizer
    v = TfidfVectorizer(stop_words="english", min_df=20, max_df=.2, sublinear_tf=True)
    z = v.fit_transform(texts)
    f = NMF(k, random_state=0, max_iter=400).fit(z)
    words = v.get_feature_names_out()
    return f.transform(z).argmax(1), [", ".join(words[i] for i in row.argsort()[::-1][:5]) for row in f.components_]

def probe(run):
    "What the thoughts of a run know after reading stretches of eight passages of documents that it was not trained on and of some that it was"
    from diffusion_lm.lab.probes import evolution, linear_probe, thought_path
    lm = DiffusionLM.from_run(run, device="cpu")
    tok, store = lm.tokenizer, store_of(load_config(find_run(run)/"config.yaml").data, lm.tokenizer)
    o, names, rows, docs = store.offsets, store.names(), [], []
    for d in range(len(names)): # some whole stretches of each document, evenly spread over it
        x, _ = segments(store.tokens[o[d]:o[d + 1]], [0, int(o[d + 1] - o[d])], PASSAGE, 8, tok.pad)
        x = x[(x != tok.pad).all(1)]
        keep = x[np.unique(np.linspace(0, len(x) - 1, min(len(x), 4)).round().astype(int))] if len(x) else x
        rows.append(keep); docs += [d]*len(keep)
    x, docs = torch.cat(rows), np.array(docs)
    held = store.splits[docs] != 0 # not trained on
    label = {"year": np.array([float(names[d].split("-")[0]) for d in docs]), "president": np.array([names[d].split("-")[1] for d in docs])}
    passages = [tok.decode(p) for row in x.tolist() for p in np.array(row).reshape(8, -1).tolist()]
    topic, words = topics(passages)
    topic = np.array([f"topic {t}" for t in topic]).reshape(len(x), 8)
    label |= {"topic of the passage read": topic[:, 6], "topic of the next": topic[:, 7]} # of thoughts after the seventh
    untrained = build(load_config(find_run(run)/"config.yaml"), tok).model.eval()
    bag = np.stack([np.bincount(r[6*PASSAGE:7*PASSAGE], minlength=len(tok)) for r in x.numpy()]).astype(float)
    seen = {"thought": thought_path(lm.model, x), "thought of an untrained model": thought_path(untrained, x)}
    inputs = {k: z[:, 6].flatten(1).numpy() for k, z in seen.items()} | {"words of the passage": np.sqrt(bag[:, bag.sum(0) >= 20])}
    many = np.isin(label["president"], [p for p in set(label["president"]) if len(set(docs[label["president"] == p])) > 2]) # a president who is in one document only cannot be told from others
    found = {}
    for name, y in label.items():
        rows = many if name == "president" else np.ones(len(x), bool)
        for what, z in inputs.items():
            e, chance = linear_probe(z[rows], y[rows], docs[rows])
            found.setdefault(name, {"chance": chance})[what] = {"value": e.value, "low": e.low, "high": e.high, "unit": e.unit}
    paths = {"trained": evolution(seen["thought"][held], docs[held]), "trained, on its training text": evolution(seen["thought"][~held], docs[~held]), "untrained": evolution(seen["thought of an untrained model"][held], docs[held])}
    order, shares = torch.rand(len(x), PASSAGE, generator=torch.Generator().manual_seed(0)), [1 - k/8 for k in range(9)] # the last passage, revealed step by step
    with torch.no_grad():
        before = lm.model.study(x[held, :-PASSAGE])
        while_written = torch.stack([newest_first(lm.model.remember(x[held, -PASSAGE:].masked_fill(order[held] < s, tok.mask), before)).maps[:, 0] for s in shares], 1)
    paths["trained, while a passage is revealed"] = evolution(while_written, docs[held])
    write_json(HERE/"records"/f"thoughts-probe-{run}.json", {"run": run, "stretches": len(x), "documents": len(set(docs)), "topics": words, "evolution": paths, "probes": found})

def main(what="list", *names):
    if what == "costs": return write_json(COSTS, costs(*names))
    if what == "throughput": return throughput()
    if what == "steps" and names: return steps_of_denoising(*names)
    if (of_a_run := {"ceiling": ceiling, "probe": probe, "looks": second_look}.get(what)) and len(names) == 1: return of_a_run(*names)
    done = {r["name"] for r in read_jsonl(RECORDS)} if RECORDS.exists() else set()
    todo = {n: a for n, a in arms().items() if not names or n in names}
    if not serve(what, todo, done.__contains__, lambda a: f"{a[2]:6,} steps", train_arm): print(__doc__); return 2

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"thoughts.py: {e}")
