"""Quality per minute: the runs behind the results page of that name, at equal CPU time.

    python experiments/quality.py costs            CPU seconds of a step of each kind, interleaved in one process
                                                   → records/quality_per_minute/costs.json
    python experiments/quality.py list             the arms, and which of them are there
    python experiments/quality.py train [NAME …]   train those that are missing, one after another, about 10 minutes
                                                   each on one core → records/quality_per_minute/NAME/

An arm's number of steps is fixed beforehand: the budget over the cost of its step. So it does not matter how busy the
machine is while an arm trains, and the learning-rate schedule of every arm ends where its time does.
"""
import statistics
import sys

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from arms import RECORDS, configuration, keep_record, one_core, serve
from diffusion_lm.bench import Contestant, FixedBatch, XObjective, XTransformer
from diffusion_lm.core import UserError, interleaved, seed_everything
from diffusion_lm.files import read_json, runs_dir, write_json
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig
from diffusion_lm.theory.objective import Objective
from diffusion_lm.training.recipe import build
from diffusion_lm.training.run import train

PAGE = RECORDS/"quality_per_minute"
COSTS = PAGE/"costs.json"
BUDGET = 558  # CPU seconds of an arm; over the cost of one of its steps in COSTS it gives the number of steps
PREFIX = "qpm-"

STARTS = {"xt": {}, "xt-neighbours": {"shift_tokens": 1}}  # options of x-transformers' Encoder

def peer(kind):
    "A maker of x-transformers' denoiser and wrapper, for `train(make=…)`"
    def make(cfg, tok):
        seed_everything(cfg.seed)
        return XObjective(XTransformer(cfg.model, len(tok), tok.specials, **STARTS[kind]))
    return make

PLAIN, ADAMW = {"model.neighbours": "false"}, {"trainer.optimizer": "adamw", "trainer.lr": 1e-3}
KINDS = {  # what differs from the demo's recipe
    "muon": {}, "muon-plain": PLAIN, "cosine": {"trainer.lr_schedule": "cosine"}, "nelbo": {"objective": "nelbo"},
    "ema": {"trainer.ema": .99}, "adamw": ADAMW, "adamw-plain": ADAMW | PLAIN,
    "xt": ADAMW, "xt-neighbours": ADAMW | {"trainer.lr": 2e-3}}
TUNED = {  # rates tried at seed 0, besides the recipe's 3e-3 and AdamW's 1e-3
    "muon": (2e-3, 5e-3), "muon-plain": (1e-3, 2e-3, 5e-3), "adamw": (5e-4, 2e-3), "adamw-plain": (5e-4, 2e-3),
    "xt": (5e-4, 1.4e-3, 2e-3, 4e-3), "xt-neighbours": (1e-3, 4e-3)}

def costs(rounds=21):
    "CPU seconds of a step of each kind on one thread, interleaved; medians, and medians of the ratios to muon's"
    one_core()
    V, config, plain = 4096, ModelConfig("tiny").resolve(), ModelConfig("tiny", neighbours=False).resolve()
    fixed = FixedBatch(config, V, 32)
    def stepper(objective, optimizer):
        return Contestant("", objective, optimizer, fixed.b[:3], torch.float32, fixed.masked).step
    def averaged(objective, optimizer):
        average = AveragedModel(objective.model, multi_avg_fn=get_ema_multi_avg_fn(.99))
        step = stepper(objective, optimizer)
        return lambda: (step(), average.update_parameters(objective.model))
    def ours(optimizer, config=config, name="nelbo-count"):
        return stepper(Objective(BaselineDreamModel(config, V, range(5)), name), optimizer)
    steps = {
        "muon": ours("muon"), "muon-plain": ours("muon", plain),
        "adamw": ours("adamw"), "adamw-plain": ours("adamw", plain), "nelbo": ours("muon", name="nelbo"),
        "ema": averaged(Objective(BaselineDreamModel(config, V, range(5))), "muon"),
        "xt": stepper(XObjective(XTransformer(config, V, range(5))), "adamw")}
    seconds = interleaved(steps, rounds)
    def ratio(v): return statistics.median(b/a for a, b in zip(seconds["muon"], v))
    return {k: {"cpu_seconds": statistics.median(v), "ratio": ratio(v)} for k, v in seconds.items()}

COST_OF = {"cosine": "muon", "xt-neighbours": "xt"}  # kinds that cost what another does

def steps_of(kind): return round(BUDGET/read_json(COSTS)[COST_OF.get(kind, kind)]["cpu_seconds"])

def arms():
    "Name → (kind, options): every kind at seeds 0, 1, 2, and the rates that were tried"
    out = {}
    def arm(name, kind, seed, **more):
        out[PREFIX + name] = kind, {"trainer.steps": steps_of(kind), "seed": seed, **KINDS[kind], **more}
    for kind in KINDS:
        for seed in (0, 1, 2): arm(f"{kind}-s{seed}", kind, seed)
        for lr in TUNED.get(kind, ()): arm(f"{kind}-lr{lr:g}", kind, 0, **{"trainer.lr": lr})
    return out

def train_arm(name, kind, options):
    cfg = configuration("demo", {"trainer.eval_every": 71, "trainer.save_every": 10**6, **options})
    train(cfg, name, overwrite=True, make=peer(kind) if kind in STARTS else build)
    keep_record(runs_dir()/name, PAGE/name)

def main(what="list", *names):
    if what == "costs": return write_json(COSTS, costs())
    todo = {n: a for n, a in arms().items() if not names or n in names}
    if serve(what, todo, PAGE, lambda a: a[1], train_arm): return 0
    print(__doc__)
    return 2

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"quality.py: {e}")
