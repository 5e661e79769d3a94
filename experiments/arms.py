"""What the scripts with arms share: a recipe at a fixed number of steps on one core, and which arms are done."""
import shutil

import torch

from diffusion_lm.cli import parse_train
from diffusion_lm.core import autocast, keep_memory
from diffusion_lm.training.learner import TrainConfig, make_optimizers

FIXED = {"trainer.dtype": "float32", "trainer.minutes": "null", "trainer.sample_every": 10**6, # as the records were made, whatever this machine can do
         "samples.prompts": '[""]', "samples.templates": "[]", "samples.steps": 32}

def configuration(recipe, options):
    "The `RunConfig` of a recipe with `FIXED` and some options"
    return parse_train(["--config", recipe, *(a for k, v in (FIXED | options).items() for a in (f"--{k}", str(v)))])[0]

def keep_record(run, to):
    "Copy what a page may cite of a run: its settings, its log and its summary"
    to.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "log.jsonl", "summary.json"): shutil.copy(run/name, to/name)

def one_core():
    torch.set_num_threads(1); keep_memory() # no thread waits for another on a busy machine

def stepper(o, batch, more=(), dtype=torch.float32): # an `Objective`, its batch, what else it takes
    "A training step, with an optimizer of its own"
    opts, held = make_optimizers(o.model, TrainConfig(lr=1e-4)), [None]
    def step():
        with autocast(batch[0].device, dtype): out = o(*batch, *more[:2], held[0]) if o.stateful else o(*batch)
        loss, held[0] = out if o.stateful else (out, None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(o.model.parameters(), 1.)
        for p in opts: p.step(); p.zero_grad()
    return step

def serve(what, todo, done, line, train_arm): # name → arm; is it done? what to say of it; trains and records it
    "`list` or `train`; whether it was one of them"
    if what == "list":
        for n, a in todo.items(): print(f"{'done' if done(n) else '–':5s}{n:34s}{line(a)}")
    elif what == "train":
        one_core()
        for n, a in todo.items():
            if not done(n): train_arm(n, *a)
    else: return False
    return True
