"""How noisy gradients are, by training loss: the record behind a section of the results page "Speedrun".

    python experiments/speedrun/variance.py [--draws 64]   → records/speedrun/variance.json

For a network after 20 and after 200 steps of the recipe `sotu-4m`, each loss takes gradients of the same batches of
8 windows. The noise scale tr Σ/|G|² (arXiv 1812.06162) says how many windows a batch needs until the noise
of its gradient is no longer than the gradient itself. `cosine` compares the mean gradient with that of the bound.
"""
import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from ideas import Complementary, Dual, weighted

from arms import RECORDS, one_core
from diffusion_lm.cli import parse_train
from diffusion_lm.core import autocast, describe_machine, pick_device, pick_dtype
from diffusion_lm.files import write_json
from diffusion_lm.text.store import Loader
from diffusion_lm.theory.objective import Objective
from diffusion_lm.training.run import Training

AFTER, ROWS, NARROW = (20, 200), 8, (.45, .55)
LOSSES = {  # name → how the objective changes, and the mask ratios
    "demo": (Objective, (0, 1)),
    "capped": (weighted(power=1., cap=8.), (0, 1)),
    "root": (weighted(power=.5), (0, 1)),
    "flat": (weighted(), (0, 1)),
    "window-3-8": (Objective, (.3, .8)),
    "half": (Objective, NARROW),
    "complementary": (Complementary, NARROW),
    "dual": (lambda o: Dual(o, share=.25), NARROW)}

class Sums:
    "Sums over the gradients of a loss, beside those of the bound on the same batches"
    def __init__(self): self.n, self.total, self.squares, self.products = 0, 0., 0., 0.

    def add(self, g, bound):
        self.n, self.total = self.n + 1, self.total + g
        self.squares, self.products = self.squares + float(g @ g), self.products + float(g @ bound)

    @property
    def signal(self):
        "Squared length of the mean gradient: products of different batches alone, which the noise does not bias"
        return (float(self.total @ self.total) - self.squares)/self.n/(self.n - 1)
    @property
    def noise(self): return self.squares/self.n - self.signal # variance of the gradient of a batch

    def cosine(self, bound):
        "With the mean gradient of the bound"
        product = (float(self.total @ bound.total) - self.products)/self.n/(self.n - 1)
        return product/(self.signal*bound.signal)**.5

def gradient(objective, batch, ratios, dtype):
    "The gradient of a loss as one vector (parameters,)"
    low, high = ratios
    with autocast(batch.x.device, dtype): objective(batch.x, low + (high - low)*batch.t, batch.u).backward()
    parameters = list(objective.model.parameters())
    g = torch.cat([p.grad.flatten().double() for p in parameters])
    for p in parameters: p.grad = None
    return g

def measure(model, loader, draws, dtype):
    "Noise scale, in windows, and cosine with the gradient of the bound, of each loss"
    bound, sums = Objective(model), {k: Sums() for k in LOSSES}
    arms = {k: (change(bound) if change is not Objective else bound, ratios) for k, (change, ratios) in LOSSES.items()}
    for i in range(draws):
        batch = loader.batch(i)
        of_bound = gradient(bound, batch, (0, 1), dtype)
        for k, (o, ratios) in arms.items():
            sums[k].add(of_bound if k == "demo" else gradient(o, batch, ratios, dtype), of_bound)
        print(f"{i + 1} of {draws}", end="\r", file=sys.stderr, flush=True)
    return {k: {"noise_scale": ROWS*s.noise/s.signal, "cosine": s.cosine(sums["demo"])} for k, s in sums.items()}

def prepared(out, steps):
    "A `Training` of the recipe `sotu-4m`, after some steps"
    cfg, _ = parse_train(["--config", "sotu-4m", "--trainer.minutes", "null", "--trainer.compile", "false",
                          "--trainer.steps", str(steps), "--trainer.eval_every", "100000"])
    t = Training(cfg, "variance", out, overwrite=True, quiet=True)
    t.settle()
    t.prepare_text()
    t.assemble()
    t.begin()
    t.learn.fit()
    return t

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--draws", type=int, default=64, help="batches")
    a = p.parse_args()
    one_core()
    dtype, found = pick_dtype(pick_device()), {}
    with tempfile.TemporaryDirectory() as out:
        for steps in AFTER:
            t = prepared(out, steps)
            loader = Loader(t.store, t.learn.model.config.length, ROWS, seed=1)
            found[steps] = measure(t.learn.model, loader, a.draws, dtype)
    write_json(RECORDS/"speedrun"/"variance.json", {
        "machine": describe_machine(pick_device()), "draws": a.draws, "windows": ROWS, "losses": found})

if __name__ == "__main__": main()
