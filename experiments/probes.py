"""What do the probes show of runs that went well, and of runs that were broken on purpose?

    python experiments/probes.py list              the arms, and which of them are there
    python experiments/probes.py train [NAME …]    train and probe the missing ones, twenty seconds of one core each
                                                   → records/probes/NAME.json
    python experiments/probes.py reference         probe the reference model, as one more that went well
                                                   → records/probes/sotu-4m.json
    python experiments/probes.py ranges            the ranges that the records show → diffusion_lm/assets/health.json

All arms have the same text, tokenizer, network, tokens and steps; an arm differs by what is done to it.
"""
import shutil
import sys
from pathlib import Path

import torch

from arms import RECORDS, configuration, one_core, serve
from diffusion_lm.files import read_json, write_json
from diffusion_lm.lab.probe_page import MEASURES, measures, probe_run, range_of
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.theory.objective import Objective, token_nll
from diffusion_lm.training.recipe import build
from diffusion_lm.training.run import train

PAGE = RECORDS/"probes"
HEALTH = Path(__file__).parent.parent/"diffusion_lm"/"assets"/"health.json"

SMALL = {  # some 20 CPU seconds
    "tokenizer.vocab_size": 2048, "model.width": 128, "model.heads": 4, "model.layers": 3, "model.length": 64,
    "trainer.steps": 100, "trainer.batch": 32, "trainer.lr": 3e-3, "trainer.eval_every": 20, "trainer.save_every": 100,
    "trainer.keep": 1, "trainer.test_tokens": 4096, "trainer.test_draws": 2, "trainer.eval_tokens": 2048,
    "monitor.gradients": 10}
WINDOW = SMALL | {"noise.progress": "window", "noise.low": .45, "noise.high": .55, "trainer.adamw_lr": 10}

class Shifted(Objective):
    "An off-by-one: the hidden state of a masked token is to predict the token behind it"
    def forward(self, x, t, u):
        masked, w = self.corrupt(x, t, u)
        h = self.model.hidden(x, masked, t)[masked]
        return self.mean(token_nll(self.model, h, x.roll(-1, 1)[masked]), masked, w, x)

class Leaking(Objective):
    "Somebody forgot to mask: the network reads the tokens that it is to predict"
    def forward(self, x, t, u):
        masked, w = self.corrupt(x, t, u)
        h = self.model.features(x)[0][masked]
        return self.mean(token_nll(self.model, h, x[masked]), masked, w, x)

class Repeating(Objective):
    "A loader that never goes on: every batch is the first one, under other masks"
    kept = None
    def forward(self, x, t, u):
        if self.kept is None: self.kept = x.clone()
        return super().forward(self.kept, t, u)

def remade(cls): return lambda cfg, tok: cls(build(cfg, tok).model, cfg.objective, cfg.noise)

def frozen(cfg, tok):
    "The embedding, which is the output layer too, never learns"
    o = build(cfg, tok)
    o.model.embed.weight.requires_grad_(False)
    return o

@torch.no_grad()
def sharp(cfg, tok):
    "Queries and keys ten times too large: attention is saturated from the start, and gradients hardly pass"
    o, d = build(cfg, tok), cfg.model.width
    for b in o.model.blocks:
        b.attn.qkv.weight[:2*d] *= 10
        b.attn.bias[:2*d] *= 3
    return o

GOOD = {  # what it is, options, seeds
    "window": ("half of each window is masked, as in the demo", WINDOW, build),
    "bound": ("all mask ratios, with the weights of the bound", SMALL, build)}
BROKEN = {  # what is broken, options, the objective
    "rate": ("a learning rate thirty times too high", WINDOW | {"trainer.lr": .1}, build),
    "no-clip": ("AdamW at ten times its rate, without warmup or clipping", WINDOW | {
        "trainer.optimizer": "adamw", "trainer.adamw_lr": 1, "trainer.lr": .03, "trainer.warmup": 0,
        "trainer.clip": 1e6}, build),
    "slow": ("a learning rate a thousand times too low", WINDOW | {"trainer.lr": 3e-6}, build),
    "light-masks": ("never more than 30 % masked", WINDOW | {"noise.low": .02, "noise.high": .3}, build),
    "frozen": ("the embedding does not learn", WINDOW, frozen),
    "sharp": ("attention that is saturated from the start", WINDOW, sharp),
    "shifted": ("targets shifted by one place", WINDOW, remade(Shifted)),
    "leak": ("the tokens to be predicted are not masked", WINDOW, remade(Leaking)),
    "repeats": ("every batch is the first one", WINDOW, remade(Repeating))}
ARMS = {f"{k}-s{s}": (*v, s) for k, v in GOOD.items() for s in range(2)} | {k: (*v, 0) for k, v in BROKEN.items()}

def rounded(z):
    "All numbers of a record to four digits"
    if isinstance(z, dict): return {k: rounded(v) for k, v in z.items()}
    if isinstance(z, list): return [rounded(v) for v in z]
    return float(f"{z:.4g}") if isinstance(z, float) else z

def keep(name, says, good, p, **more):
    "Write a record: probes without the verdicts, which depend on the ranges that are made from them"
    PAGE.mkdir(parents=True, exist_ok=True)
    probes = {k: v for k, v in p.items() if k not in ("health", "verdict")}
    write_json(PAGE/f"{name}.json", rounded({"arm": name, "says": says, "good": good, **more, "probes": probes}))

def train_arm(name, says, options, make, seed):
    cfg = configuration("quick", options | {"seed": seed})
    run = train(cfg, f"probes-{name}", overwrite=True, quiet=True, make=make)
    p = probe_run(DiffusionLM.from_run(run, device="cpu"), tokens=4096, say=lambda what: None)
    s = read_json(run/"summary.json")
    about = {k: s[k] for k in ("steps", "tokens", "cpu_seconds", "machine")}
    keep(name, says, name.split("-s")[0] in GOOD, p, bits_per_byte=s["bits_per_byte"], **about)
    shutil.rmtree(run)

def reference():
    "The reference model of the repository: 45 minutes of training went well"
    one_core()
    lm = DiffusionLM.from_run("sotu-4m", device="cpu")
    s = read_json(lm.folder/"summary.json")
    p = probe_run(lm, say=print)
    about = {k: s[k] for k in ("steps", "tokens", "cpu_seconds", "machine")}
    keep("sotu-4m", "the reference model, 45 minutes", True, p, bits_per_byte=s["bits_per_byte"], **about)

def records():
    "All records by name"
    return {p.stem: read_json(p) for p in sorted(PAGE.glob("*.json"))}

def ranges_of(records):
    "Measure → its `Range`, from the runs that have it"
    found = [(r["good"], measures(r["probes"])) for r in records.values()]
    def values(k, good): return [m[k] for g, m in found if g is good and m[k] is not None]
    return {k: range_of(values(k, True), values(k, False), m.low_is_good) for k, m in MEASURES.items()}

def ranges(): write_json(HEALTH, rounded({k: r._asdict() for k, r in ranges_of(records()).items()}))

if __name__ == "__main__":
    command, *names = sys.argv[1:] or ["list"]
    todo = {k: v for k, v in ARMS.items() if not names or k in names}
    if not serve(command, todo, lambda name: (PAGE/f"{name}.json").exists(), lambda arm: arm[0], train_arm):
        {"reference": reference, "ranges": ranges}[command]()
