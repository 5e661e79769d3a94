"""Does a frozen model of text learn to say what a picture shows? Captions of scenes, by LoRA and without.

    python experiments/pictures.py list          the runs, and which of them are there
    python experiments/pictures.py train         train those that are missing, one after another, on one core
    python experiments/pictures.py score         describe new pictures → records/pictures/scores.json

First a model learns the language of the captions, from captions alone. Then it is frozen. What learns to see is an
encoder of patches, its connector and the cross-attention; with `lora`, thin matrices beside the frozen layers learn as
well. One combination of colour, shape and place in five is never shown, in words or in pictures. A caption is written
greedily, the surest token first, and it is right only if it is the true one, word for word.

Three seeds: of the weights that learn and of the order of the pictures. The model of text is the same for all.
"""
import json
import sys

import numpy as np
import torch

from arms import FIXED, RECORDS, one_core, serve, train_and_record
from diffusion_lm.cli import parse_train
from diffusion_lm.core import rng
from diffusion_lm.files import runs_dir, write_json, write_text
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.pictures import read_picture
from diffusion_lm.sampling.sampler import PLAIN, sample
from diffusion_lm.text.scenes import caption, scene, write_scenes

PAGE = RECORDS/"pictures"
CAPTIONS, PICTURES, TESTED, SEEDS = 21_000, 4000, 400, 3  # more than 20,000 texts: only equal ones share a split
SIDE, LENGTH, TEXT = 48, 24, "pictures-text"

# ---- what is read ----

def data(name): return runs_dir().parent/"data"/"scenes"/name

def captions():
    "The file of the texts that the model of text reads"
    path = data("captions.jsonl")
    rows = (json.dumps({"text": caption(scene(i, seed=7))}) for i in range(CAPTIONS))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(rows) + "\n")
    return path

def table(name, n, held_out, seed):
    "The file of scenes, drawn if it is not there"
    path = data(name)
    return path/"scenes.jsonl" if path.exists() else write_scenes(path, n, held_out, seed, SIDE)

# ---- the runs ----

SHARED = {
    "trainer.batch": 32, "trainer.compile": "false", "trainer.log_every": 100, "trainer.eval_every": 300,
    "trainer.eval_tokens": 4096, "trainer.test_draws": 1, "trainer.test_tokens": 8192, "trainer.save_every": 10**6}
TEXT_MODEL = {
    "tokenizer.kind": "word", "tokenizer.vocab_size": 320, "model.width": 96, "model.heads": 4, "model.layers": 3,
    "model.length": LENGTH, "trainer.steps": 1500}
SEES = {
    "init": TEXT, "data.condition": "image", "model.condition.picture": SIDE, "model.condition.patch": 8,
    "model.condition.width": 64, "model.condition.heads": 4, "model.condition.layers": 2,
    "trainer.stage": "condition", "trainer.steps": 2000, "trainer.decay": 0.5}
KINDS = {"lora": {"adapter.rank": 8}, "encoder": {}}

def arms():
    "Seed after seed, so that a night that ends early has compared what it has"
    return {TEXT: (TEXT_MODEL, None)} | {
        f"pictures-{kind}-s{seed}": (SEES | more, seed) for seed in range(SEEDS) for kind, more in KINDS.items()}

def train_arm(name, options, seed):
    path = captions() if seed is None else table("train", PICTURES, False, 0)
    args = [z for k, v in (FIXED | SHARED | {"data.path": path, "seed": seed or 0} | options).items()
            for z in (f"--{k}", str(v))]
    train_and_record(parse_train(args)[0], name, PAGE)
    hide_paths(PAGE/name/"config.yaml")

def hide_paths(config):
    "Of the picture for samples, a record says the name alone"
    write_text(config, config.read_text(encoding="utf-8").replace(f"{data('train')}/", ""))

# ---- captions of new pictures ----

GREEDY = PLAIN.but(sampler="confidence", steps=LENGTH, temperature=0)

def described(lm, pixels):
    "The captions of pictures (n,3,s,s), or of none"
    out = []
    for some in pixels.split(100):
        x = torch.full((len(some), LENGTH), lm.model.mask)
        out += [lm.text(ids.tolist()) for ids in sample(lm.model.given(some), x, GREEDY)]
    return out

def tested(name, held_out):
    "Pictures that no run has read, and their captions"
    path = table(name, TESTED, held_out, 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pixels = np.stack([read_picture(path.parent/r["image"], SIDE) for r in rows])
    return torch.from_numpy(pixels.astype(np.int16)), [r["text"] for r in rows]

def interval(right, draws=2000):
    "95 % of the mean of (seeds, scenes), where both are drawn again"
    g, (seeds, n) = rng("pictures"), right.shape
    means = [right[g.integers(seeds, size=seeds)][:, g.integers(n, size=n)].mean() for _ in range(draws)]
    return np.quantile(means, [.025, .975]).tolist()

def figure(right):
    low, high = interval(right)
    return {"value": right.mean(), "low": low, "high": high, "seeds": len(right), "scenes": right.shape[1],
            "by_seed": right.mean(1).tolist()}

@torch.no_grad()
def score():
    sets = {"held out": tested("held_out", True), "seen": tested("seen", False)}
    out = {"captions": {k: words for k, (_, words) in sets.items()}, "exact_match": {}, "wrote": {}}
    for kind in KINDS:
        names = [n for n in arms() if n.startswith(f"pictures-{kind}-") and (PAGE/n/"summary.json").exists()]
        lms = [DiffusionLM.from_run(n, device="cpu") for n in names]
        for what, (pixels, truth) in sets.items():
            for shown, x in ((what, pixels), (f"{what}, no picture", torch.full_like(pixels, -1))):
                wrote = [described(lm, x) for lm in lms]
                right = np.array([[a == b for a, b in zip(w, truth, strict=True)] for w in wrote])
                out["exact_match"][f"{kind}, {shown}"] = figure(right)
                if shown == what: out["wrote"][f"{kind}, {shown}"] = dict(zip(names, wrote, strict=True))
                print(f"{kind:10s}{shown:24s}", out["exact_match"][f"{kind}, {shown}"], flush=True)
    write_json(PAGE/"scores.json", out)

if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else "list"
    if what == "score":
        one_core()
        score()
    elif not serve(what, arms(), PAGE, lambda arm: str(arm[0]), train_arm): sys.exit(__doc__)
