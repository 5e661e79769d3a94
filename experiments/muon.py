"""What Muon costs where a step has few tokens, and whether cheaper steps are as good: part of the page "Speed".

    python experiments/muon.py cost           CPU seconds of a step of preset small with each optimizer, at 8 and 16
                                              windows, interleaved → records/speed/muon.json
    python experiments/muon.py list           the arms, and which of them are there
    python experiments/muon.py train [NAME …] train those that are missing, about 7 minutes each on one core
                                              → records/speed/muon-pytorch-s0, …

The arms take the same number of steps of 8 windows each, with PyTorch's Muon (five rounds of one polynomial, every
matrix in every step) and with ours. Run `cost` with nothing else on the machine.
"""
import statistics
import sys
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parent/"speedrun"))
from optimizers import PyTorchMuon

from arms import RECORDS, configuration, keep_record, one_core, serve
from diffusion_lm.bench import Contestant, FixedBatch, spread
from diffusion_lm.core import UserError, describe_machine, interleaved, pick_device, pick_dtype
from diffusion_lm.files import runs_dir, write_json
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig
from diffusion_lm.theory.objective import Objective
from diffusion_lm.training import learner
from diffusion_lm.training.run import train

PAGE, PREFIX, V, STEPS = RECORDS/"speed", "muon-", 8192, 250
KINDS = {"pytorch": PyTorchMuon, "ours": learner.Muon}
RECIPE = {
    "model.preset": "small", "model.width": "null", "model.layers": "null", "tokenizer.vocab_size": V,
    "noise.progress": "window", "noise.low": .45, "noise.high": .55, "trainer.adamw_lr": 10, "trainer.batch": 8,
    "trainer.steps": STEPS, "trainer.dtype": "auto", "trainer.compile": "false", "trainer.eval_every": 10**6,
    "trainer.save_every": 10**6}

def with_muon(kind): return patch.object(learner, "Muon", KINDS[kind])

def stepper(batch, optimizer, kind="ours"):
    "A training step of preset small"
    torch.manual_seed(0)
    model = BaselineDreamModel(ModelConfig("small"), V, range(5))
    fixed = FixedBatch(model.config, V, batch)
    dtype = pick_dtype(pick_device("cpu"))
    with with_muon(kind):
        return Contestant(kind, Objective(model), optimizer, fixed.b[:3], dtype, fixed.masked).step

def cost(rounds=5):
    "CPU seconds of a step on one thread, and how much longer each Muon makes it than AdamW does"
    one_core()
    rows = []
    for batch in (8, 16):
        steps = {"adamw": stepper(batch, "adamw")} | {k: stepper(batch, "muon", k) for k in KINDS}
        quads = {k: lambda step=step: [step() for _ in range(4)] for k, step in steps.items()}  # a round of turns
        seconds = interleaved(quads, rounds)
        for k in KINDS:
            more = spread([b/a - 1 for a, b in zip(seconds["adamw"], seconds[k])])
            rows.append({"batch": batch, "muon": k, "cpu_seconds": statistics.median(seconds[k])/4,
                         "adamw_cpu_seconds": statistics.median(seconds["adamw"])/4, "more": more})
            print(batch, k, more, flush=True)
    return {"machine": describe_machine(pick_device("cpu")), "torch": torch.__version__, "preset": "small", "vocab": V,
            "dtype": str(pick_dtype(pick_device("cpu")))[6:], "rounds": rounds, "rows": rows}

def arms():
    "Name → (kind, seed)"
    return {f"{PREFIX}{k}-s{seed}": (k, seed) for seed in (0, 1, 2) for k in KINDS}

def train_arm(name, kind, seed):
    with with_muon(kind): train(configuration("demo", RECIPE | {"seed": seed}), name, overwrite=True)
    keep_record(runs_dir()/name, PAGE/name)

def main(what="list", *names):
    if what == "cost": return write_json(PAGE/"muon.json", cost())
    todo = {n: a for n, a in arms().items() if not names or n in names}
    if serve(what, todo, PAGE, lambda a: f"{a[0]}, seed {a[1]}", train_arm): return 0
    print(__doc__)
    return 2

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"muon.py: {e}")
