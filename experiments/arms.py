"""What the scripts share: where records are, a recipe at a fixed number of steps on one core, which arms are done."""
import shutil
from pathlib import Path

import torch

from diffusion_lm.cli import parse_train
from diffusion_lm.core import autocast, keep_memory
from diffusion_lm.files import runs_dir, write_text
from diffusion_lm.training.learner import TrainConfig, make_optimizers
from diffusion_lm.training.recipe import load_config
from diffusion_lm.training.run import train

RECORDS = Path(__file__).parent/"records"  # one folder a page
FIXED = {  # as the records were made, whatever this machine can do
    "trainer.dtype": "float32", "trainer.minutes": "null", "trainer.sample_every": 10**6,
    "samples.prompts": '[""]', "samples.templates": "[]", "samples.steps": 32}

FIRST_DEMO = {  # the demo before the speedrun: the records of other pages begin with it
    "model.width": 256, "model.layers": 4, "tokenizer.vocab_size": 4096, "trainer.adamw_lr": 1,
    "noise.progress": "none", "noise.low": .3, "noise.high": .8}

def configuration(recipe, options):
    "The `RunConfig` of a recipe with `FIXED` and some options"
    args, first = ["--config", recipe], FIRST_DEMO if recipe == "demo" else {}
    for k, v in (FIXED | first | options).items(): args += [f"--{k}", str(v)]
    return parse_train(args)[0]

def keep_record(run, to):
    "Copy what a page may cite of a run: its settings, its log and its summary, without the folders of what it reads"
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy(run/"log.jsonl", to/"log.jsonl")
    cfg = load_config(run/"config.yaml")
    read = [cfg.data.path, cfg.model.load, cfg.init and cfg.init.run]
    for name in ("config.yaml", "summary.json"):
        text = (run/name).read_text(encoding="utf-8")
        for path in filter(None, read): text = text.replace(path, Path(path).name)
        write_text(to/name, text)

def recorded(folder):
    "Is the record of a run there?"
    return (folder/"summary.json").exists()

def train_and_record(cfg, name, page):
    "Train a run, or go on with it, and keep its record"
    run = runs_dir()/name
    train(cfg, name, resume=(run/"config.yaml").exists())
    keep_record(run, page/name)

def one_core():
    torch.set_num_threads(1)
    keep_memory()  # no thread waits for another on a busy machine

def stepper(o,                    # an `Objective`
            batch,                # its batch
            more=(),              # what a stateful objective takes besides
            dtype=torch.float32,  # of the forward pass
            optimizer="muon"):
    "A training step, with an optimizer of its own"
    opts, carried = make_optimizers(o.model, TrainConfig(lr=1e-4, optimizer=optimizer)), None
    def step():
        nonlocal carried
        with autocast(batch[0].device, dtype):
            if o.stateful: loss, carried = o(*batch, *more[:2], carried)
            else: loss = o(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(o.model.parameters(), 1.)
        for p in opts:
            p.step()
            p.zero_grad()
    return step

def serve(what,      # a command: "list" or "train"
          todo,      # name → arm
          page,      # the folder of their records
          line,      # what to say of an arm
          train_arm): # trains and records it: name, *arm
    "Carry out `list` or `train`; whether the command was one of them"
    def done(name): return recorded(page/name)
    if what == "list":
        for name, arm in todo.items(): print(f"{'done' if done(name) else '–':5s}{name:34s}{line(arm)}")
    elif what == "train":
        one_core()
        for name, arm in todo.items():
            if not done(name): train_arm(name, *arm)
    else: return False
    return True
