"""What does a low-rank adapter learn, cost and control? The runs behind the results page Adapters.

    python experiments/adapters.py text            write the texts → data/adapters/
    python experiments/adapters.py list            the arms, and which of them are there
    python experiments/adapters.py train [NAME …]  train those that are missing, one after another, on one core, and
                                                   score them on the validation text → records/adapters/
    python experiments/adapters.py score           each kind at its best rate on the test text → test.jsonl
    python experiments/adapters.py costs           a step of each kind, interleaved in one process: CPU seconds, and
                                                   the bytes that it holds → costs.json
    python experiments/adapters.py attributes      adapters of periods: how often a probe recognises the period of what
                                                   is written, and the bits of held-out speeches → attributes.json

The base is `sotu-4m`. Two texts are learned beside it. *Far* is the manual of Python, as `help()` shows it: topics that
repeat others are left out, of the rest two in ten are held out for the test, and one in ten for the choice of the
learning rate. *Near* are the speeches of a period: the base has read those of its own training split, and the adapters
read the same; held out are those that the base has not read either. What is near is learned at one rate, so nothing is
chosen there.
"""
import json
import math
import sys
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import nn

from arms import FIXED, RECORDS, keep_record, one_core, recorded, serve, stepper
from diffusion_lm.cli import parse_train
from diffusion_lm.core import UserError, interleaved
from diffusion_lm.evaluation.metrics import evaluate
from diffusion_lm.files import append_jsonl, cache_dir, read_jsonl, write_json, write_text
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.adapters import ADAPTER_FILE, AdapterConfig, add_adapter, merge_adapters
from diffusion_lm.models.transformer import n_params
from diffusion_lm.text.corpus import SPLITS, Document, load_corpus, near_duplicates, split
from diffusion_lm.theory.denoiser import NOTHING, Denoiser
from diffusion_lm.theory.objective import Objective
from diffusion_lm.training.learner import TrainConfig, make_optimizers
from diffusion_lm.training.recipe import build
from diffusion_lm.training.run import train

PAGE = RECORDS/"adapters"
BASE = "sotu-4m"
FAR, NEAR = 150, 250  # steps
BATCH, LENGTH = 4, 128
RANKS = (1, 2, 4, 8, 16, 32, 64)

# ---- texts ----

def folder(): return cache_dir().parent/"adapters"

TURNS = {5: "test", 8: "test", 7: "validation"}  # of ten topics

def manual() -> dict[str, list[Document]]:
    "The topics of Python's manual that do not repeat a longer one, by split"
    docs = [Document(name, text) for name, text in sorted(topics.items())]
    size = [len(d.text) for d in docs]
    pairs = near_duplicates([d.text for d in docs])
    repeats = {min(i, j, key=lambda k: (size[k], k)) for i, j, _ in pairs}
    kept = [d for i, d in enumerate(docs) if i not in repeats]
    kept = sorted(kept, key=lambda d: -len(d.text))  # so that the parts have long and short topics alike
    parts = {s: [] for s in SPLITS}
    for i, d in enumerate(kept): parts[TURNS.get(i % 10, "train")].append(d)
    return parts

PERIODS = {  # name → first and last year
    "1790-1840": (1790, 1840), "1841-1890": (1841, 1890), "1891-1945": (1891, 1945), "since-1946": (1946, 9999)}
FIRST, LAST = "1790-1840", "since-1946"

def period_of(d): return next(p for p, (first, last) in PERIODS.items() if first <= d.meta["year"] <= last)

def speeches():
    "The speeches that the base has read and those that it has not, by period"
    corpus = load_corpus("sotu")
    read, held = ({p: [] for p in PERIODS} for _ in range(2))
    for d, s in zip(corpus, split(corpus)): (held if s else read)[period_of(d)].append(d)
    return read, held

def write_texts():
    "What is trained on, a folder for each run's `data.path`"
    read, _ = speeches()
    for name, docs in {"manual": manual()["train"], **read}.items():
        for d in docs: write_text(folder()/name/f"{d.name}.txt", d.text)

# ---- arms ----

PLAIN = {  # all arms
    "init": BASE, "trainer.batch": BATCH, "model.length": LENGTH, "trainer.compile": "false",
    "trainer.log_every": 25, "trainer.eval_every": 10**6, "trainer.eval_tokens": 2048, "trainer.save_every": 10**6,
    "trainer.keep": 1, "trainer.test_draws": 1, "trainer.test_tokens": 1024, "samples.steps": 4}
FULL = {"full": {}, "full, AdamW": {"trainer.optimizer": "adamw"}, "layers": {}}
KINDS = {f"rank {r}": {"adapter.rank": r} for r in RANKS} | FULL
HIGH, LOW = (1e-2, 3e-2), (3e-3, 1e-2)
RATES = {  # to choose from
    "rank 1": HIGH, "rank 2": HIGH, "rank 4": HIGH, "rank 8": (3e-3, 1e-2, 3e-2), "rank 16": LOW, "rank 32": LOW,
    "rank 64": (1e-3, 3e-3, 1e-2), "full": LOW, "full, AdamW": (1e-3, 3e-3), "layers": LOW}
SEEDS = {"rank 8": (0, 1, 2), "full": (0, 1, 2)}  # of each kind at its best rate; 0 where it is not named
NEAR_RATE = 3e-3  # the default

def name_of(text, kind, rate, seed=0):
    return "-".join(["ad", text, *kind.replace(",", "").split(), f"lr{rate:g}", f"s{seed}"])

def arms():
    "Name → (text, kind, rate, seed): of periods; of the manual at all rates; more seeds at the rates that were best"
    out = [(p, "rank 8", NEAR_RATE, 0) for p in PERIODS] + [(LAST, "full", NEAR_RATE, 0)]
    out += [("manual", kind, rate, 0) for kind in KINDS for rate in RATES[kind]]
    for kind, seeds in SEEDS.items():
        if rate := best_rate(kind): out += [("manual", kind, rate, s) for s in seeds[1:]]
    return {name_of(*arm): arm for arm in out}

def rest(cfg, tok):
    "As `build`, with an embedding that does not learn: what remains are the layers, as in an adapter"
    o = build(cfg, tok)
    o.model.embed.requires_grad_(False)
    return o

def train_arm(name, text, kind, rate, seed):
    "Train, keep the record, and score the validation text"
    if not (folder()/text).exists(): write_texts()
    options = {"data.path": folder()/text, "trainer.lr": rate, "seed": seed,
               "trainer.steps": FAR if text == "manual" else NEAR}
    args = []
    for k, v in (FIXED | PLAIN | KINDS[kind] | options).items(): args += [f"--{k}", str(v)]
    cfg, _ = parse_train(args)
    run = train(cfg, name, overwrite=True, make=rest if kind == "layers" else build)
    keep_record(run, PAGE/name)
    if text != "manual": return
    lm = DiffusionLM.from_run(name, device="cpu")
    append_jsonl(PAGE/"validation.jsonl", {"name": name} | scored(lm, manual()["validation"]))

# ---- scores of the manual ----

def scored(lm, docs, draws=4, most=None):
    "Nats and bytes of each document, of windows of `LENGTH` tokens; with `most`, of so many tokens of it"
    tok, nats, size = lm.tokenizer, [], []
    for d in docs:
        ids = np.append(tok.encode(d.text), tok.eos)
        out = evaluate(lm.model, tok, ids, [0, len(ids)], LENGTH, draws, max_tokens=most)
        size.append(out["bytes_scored"])
        nats.append(round(out["bits_per_byte"]["value"]*math.log(2)*size[-1], 2))
    return {"nats": nats, "bytes": size}

def bits(scores): return sum(scores["nats"])/sum(scores["bytes"])/math.log(2)

def validation_bits():
    "Bits per byte of the validation text, by name of the run"
    path = PAGE/"validation.jsonl"
    return {r["name"]: bits(r) for r in read_jsonl(path)} if path.exists() else {}

def best_rate(kind):
    "The rate with the fewest bits on the validation text; None while one of them is missing"
    found, name = validation_bits(), {r: name_of("manual", kind, r) for r in RATES[kind]}
    if not all(n in found for n in name.values()): return None
    return min(name, key=lambda r: found[name[r]])

def size_of(run, kind):
    "Bytes of what is saved"
    return (run/(ADAPTER_FILE if kind.startswith("rank") else "model.safetensors")).stat().st_size

def chosen():
    "Name → kind: the base, and of each kind all seeds at its best rate"
    out = {BASE: "base"}
    for kind in KINDS:
        names = (name_of("manual", kind, best_rate(kind), s) for s in SEEDS.get(kind, (0,)))
        if best_rate(kind): out |= {n: kind for n in names if recorded(PAGE/n)}
    return out

def score():
    "The test text, by the base and by each kind at its best rate"
    path, docs = PAGE/"test.jsonl", manual()["test"]
    done = {r["name"] for r in read_jsonl(path)} if path.exists() else set()
    for name, kind in chosen().items():
        if name in done: continue
        lm = DiffusionLM.from_run(name, device="cpu")
        record = {"name": name, "file": size_of(lm.folder, kind)} | scored(lm, docs)
        append_jsonl(path, record)
        print(f"{name:40s}{bits(record):.3f}", flush=True)

# ---- costs ----

def prepared(kind):
    "The base, ready to be trained as a kind says"
    model = DiffusionLM.from_run(BASE, device="cpu").model.train()
    rank = KINDS[kind].get("adapter.rank")
    if rank: return add_adapter(model, AdapterConfig(rank))
    model.embed.requires_grad_(kind != "layers")
    return model

def optimizer_of(kind): return KINDS[kind].get("trainer.optimizer", "muon")

def batch_of(model, b=BATCH, l=LENGTH):
    "Tokens (b,l), times (b,1) and uniforms (b,l) of a step"
    g = torch.Generator().manual_seed(0)
    x, u = torch.randint(5, model.vocab_size, (b, l), generator=g), torch.rand(b, l, generator=g)
    return x, ((torch.arange(b) + .5)/b)[:, None], u

def memory(kind):
    "Bytes of what a step holds besides the weights of the base: new weights, gradients, optimizer, activations"
    model = prepared(kind)
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}
    def pack(z):
        s = z.untyped_storage()
        if s.data_ptr() not in own: kept[s.data_ptr()] = s.nbytes()
        return z
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda z: z):
        loss = Objective(model)(*batch_of(model))
    activations = sum(kept.values())  # before the backward pass lets them go
    loss.backward()
    opts = make_optimizers(model, TrainConfig(optimizer=optimizer_of(kind)))
    for o in opts: o.step()
    def size(tensors): return sum(z.numel()*z.element_size() for z in tensors if torch.is_tensor(z))
    states = [z for o in opts for s in o.state.values() for z in s.values()]
    trained = [p for p in model.parameters() if p.requires_grad]
    return {"trained": sum(p.numel() for p in trained), "gradients": size(p.grad for p in trained),
            "optimizer": size(states), "activations": activations, "new_weights": size(trained)*(kind not in FULL)}

TIMED = ("full", "full, AdamW", "layers", "rank 1", "rank 8", "rank 64")

def costs(rounds=11):
    "CPU seconds of a step and of a forward pass, interleaved; what a step of each kind holds"
    steps = {}
    for kind in TIMED:
        model = prepared(kind)
        steps[kind] = stepper(Objective(model), batch_of(model), optimizer=optimizer_of(kind))
    beside, forward = prepared("rank 8").eval(), {}
    for name, model in (("base", prepared("full").eval()), ("beside", beside), ("merged", merge_adapters(beside))):
        x, _, _ = batch_of(model)
        forward[name] = torch.no_grad()(lambda m=model, x=x: m.features(x))
    all_ = n_params(prepared("full"))
    out = {"rounds": rounds, "parameters": all_, "step": interleaved(steps, rounds),
           "forward": interleaved(forward, 3*rounds), "memory": {k: memory(k) for k in KINDS}}
    write_json(PAGE/"costs.json", out)

# ---- attributes ----

WORDS = 50    # of a passage that the probe reads
PASSAGES = 1500  # of each period that it learns from
TEXTS, TOKENS, WRITTEN = 40, 64, {"steps": 32, "temperature": .8}  # how many texts, how long, and how they are written
SCALES, BEYOND, MIX = (.5, 1., 1.5, 2., 3.), (1.5, 2., 3.), (.25, .5, .75)
SCORED = 1024  # tokens of each held-out speech

def passages(docs):
    "The passages of `WORDS` words of some documents, and the document of each"
    words = [d.text.split() for d in docs]
    return [(" ".join(w[i:i + WORDS]), n) for n, w in enumerate(words) for i in range(0, len(w) - WORDS + 1, WORDS)]

def fit_probe(read):
    "A linear probe of the words and pairs of words in a passage, which says the period"
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    texts, labels = [], []
    for period, docs in read.items():
        all_ = [text for text, _ in passages(docs)]
        chosen = np.random.default_rng(0).permutation(len(all_))[:PASSAGES]
        texts += [all_[i] for i in chosen]
        labels += [period]*len(chosen)
    features = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True)
    return make_pipeline(features, LogisticRegression(C=10, max_iter=500)).fit(texts, labels)

def tested(probe, held):
    "How many passages of each held-out speech the probe gets right, and how many there are, by period"
    out = {}
    for period, docs in held.items():
        texts, of = zip(*passages(docs))
        right = probe.predict(texts) == period
        out[period] = {"right": np.bincount(of, right, len(docs)).tolist(), "passages": np.bincount(of).tolist()}
    return out

class Guided(Denoiser):
    "Two models of one tokenizer: the logits of the first, and so many times what the second adds to them"
    def __init__(self, base, other, scale):
        super().__init__(base.vocab_size, base.specials)
        self.pair, self.scale, self.config = nn.ModuleList([base, other]), scale, base.config
    def features(self, x, t=None, **kw):
        return torch.cat([m.features(x, t, **kw)[0] for m in self.pair], -1), NOTHING
    def head(self, h):
        base, other = (m.head(z) for m, z in zip(self.pair, h.chunk(2, -1), strict=True))
        return torch.where(base > -torch.inf, base + self.scale*(other - base), base)

def readings(base):
    "All that is asked to write: (label, periods that are meant, DiffusionLM)"
    def adapted(weights):
        runs = {name_of(p, "rank 8", NEAR_RATE): w for p, w in weights.items()}
        return base.adapt(runs, merge=True)
    yield {"how": "base"}, [*PERIODS], base
    for p in PERIODS:
        one = adapted({p: 1.})
        for w in SCALES: yield {"how": "weight", "scale": w}, [p], adapted({p: w})
        for s in BEYOND:
            yield {"how": "logits", "scale": s}, [p], DiffusionLM(Guided(base.model, one.model, s), base.tokenizer)
    for m in MIX: yield {"how": "mix", "scale": m}, [FIRST, LAST], adapted({FIRST: 1 - m, LAST: m})
    yield {"how": "sum"}, [FIRST, LAST], adapted({FIRST: 1., LAST: 1.})
    yield {"how": "full"}, [LAST], DiffusionLM.from_run(name_of(LAST, "full", NEAR_RATE), device="cpu")

def attributes():
    "Texts by every reading, how probable the probe finds each period, and the score of held-out speeches"
    read, held = speeches()
    probe = fit_probe(read)
    order = [*probe.classes_]
    write_json(PAGE/"probe.json", tested(probe, held))
    path = PAGE/"attributes.jsonl"
    done = {json.dumps([r["about"], r["periods"]]) for r in read_jsonl(path)} if path.exists() else set()
    for about, periods, lm in readings(DiffusionLM.from_run(BASE, device="cpu")):
        if json.dumps([about, periods]) in done: continue
        texts = lm.generate(n=TEXTS, length=TOKENS, seed=periods[0], **WRITTEN)
        p = probe.predict_proba(texts)[:, [order.index(z) for z in PERIODS]]
        scores = {z: scored(lm, held[z], draws=2, most=SCORED) for z in periods}
        found = {"p": p.round(4).tolist(), "scores": scores, "texts": texts[:4]}
        append_jsonl(path, {"about": about, "periods": periods} | found)
        said = np.bincount(p.argmax(1), minlength=len(PERIODS))
        print(about, periods, said.tolist(), flush=True)

def main(what="list", *names):
    one_core()
    commands = {"text": write_texts, "score": score, "costs": costs, "attributes": attributes}
    if what in commands: return commands[what]()
    known = arms()
    todo = {n: known[n] for n in names or known if n in known}  # in the order in which they are named
    def line(arm): return f"{arm[0]:10s} {arm[1]:12s} {arm[2]:g}"
    if serve(what, todo, PAGE, line, train_arm):
        if what == "train" and not names: serve(what, arms(), PAGE, line, train_arm)  # more seeds: rates are known now
        return 0
    print(__doc__)
    return 2

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"adapters.py: {e}")
