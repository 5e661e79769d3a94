"""Does a frozen model of text learn to say what a picture shows? Captions of scenes, by LoRA and without.

    python experiments/pictures.py list          the runs, and which of them are there
    python experiments/pictures.py train         train those that are missing, one after another, on one core
    python experiments/pictures.py score         describe new pictures → records/pictures/scores.json

First a model learns the language of the captions, from texts alone, and an encoder of patches learns to see, from
pictures in which it names what stands at each place. Then both are put together, and the model of text is frozen. What
learns is the encoder, its connector and the cross-attention; with `lora`, thin matrices beside the frozen layers learn
as well. One combination of colour, shape and place in five is never shown, in words or in pictures. A caption is
written greedily, the surest token first, and it is right only if it is the true one, word for word.

Three seeds: of the weights that learn and of the order of the pictures. The model of text and the encoder that it
begins with are the same for all. In `untaught`, the encoder begins with random weights instead.
"""
import json
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from arms import FIXED, RECORDS, one_core, serve, train_and_record
from diffusion_lm.cli import parse_train
from diffusion_lm.core import rng
from diffusion_lm.files import runs_dir, write_json, write_text
from diffusion_lm.lm import DiffusionLM, create_conditional
from diffusion_lm.models.transformer import ConditionConfig
from diffusion_lm.pictures import normalised, read_picture
from diffusion_lm.sampling.sampler import PLAIN, sample
from diffusion_lm.text.scenes import COLOURS, PLACES, SHAPES, caption, draw_scene, scene, write_scenes
from diffusion_lm.training.callbacks import progress

PAGE = RECORDS/"pictures"
CAPTIONS, PICTURES, TESTED, SEEDS = 21_000, 4000, 400, 3  # more than 20,000 texts: only equal ones share a split
SIDE, LENGTH, TEXT, EYES = 48, 24, "pictures-text", "pictures-eyes"

# ---- what is read ----

def data(name): return runs_dir().parent/"data"/"scenes"/name

FACTS = [
    "red is like blood", "green is like grass", "blue is like the sea", "yellow is like the sun",
    "purple is like a plum", "black is like the night", "a circle has no corners", "a square has four corners",
    "a triangle has three corners", "a diamond stands on its corner", "a cross has arms"]

def told(i):
    "A caption and a fact; who has only read captions has no reason to tell one colour from another"
    return f"{caption(scene(i, seed=7))}. {FACTS[rng('fact', i).integers(len(FACTS))]}"

def captions():
    "The file of the texts that the model of text reads"
    path = data("captions.jsonl")
    rows = (json.dumps({"text": told(i)}) for i in range(CAPTIONS))
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
ENCODER = {"picture": SIDE, "patch": 8, "width": 64, "heads": 4, "layers": 2}
SEES = {"data.condition": "image", "trainer.stage": "condition", "trainer.steps": 4000, "trainer.decay": 0.5,
        "trainer.optimizer": "adamw", "trainer.lr": 1e-3} | {f"model.condition.{k}": v for k, v in ENCODER.items()}
LORA = {"adapter.rank": 8}
KINDS = {"lora": LORA | {"init": EYES}, "encoder": {"init": EYES}, "untaught": LORA | {"init": TEXT}}

def arms():
    "Seed after seed, so that a night that ends early has compared what it has"
    return {TEXT: (TEXT_MODEL, None), EYES: ({}, None)} | {
        f"pictures-{kind}-s{seed}": (SEES | more, seed) for seed in range(SEEDS) for kind, more in KINDS.items()}

def train_arm(name, options, seed):
    if name == EYES: return learn_to_see()
    path = captions() if seed is None else table("train", PICTURES, False, 0)
    args = [z for k, v in (FIXED | SHARED | {"data.path": path, "seed": seed or 0} | options).items()
            for z in (f"--{k}", str(v))]
    train_and_record(parse_train(args)[0], name, PAGE)
    hide_paths(PAGE/name/"config.yaml")

def hide_paths(config):
    "Of the picture for samples, a record says the name alone"
    write_text(config, config.read_text(encoding="utf-8").replace(f"{data('train')}/", ""))

# ---- an encoder that has learned to see ----

class Naming(nn.Module):
    "For each place, logits of the colours and of the shapes, or of nothing"
    def __init__(self, encoder):
        super().__init__()
        d = encoder.config.width
        self.encoder, self.places = encoder, nn.Parameter(torch.randn(len(PLACES), d)/2)
        self.look = nn.MultiheadAttention(d, 4, batch_first=True)
        self.colour, self.shape = nn.Linear(d, 1 + len(COLOURS)), nn.Linear(d, 1 + len(SHAPES))

    def forward(self, pixels):
        states = self.encoder(normalised(pixels))
        found, _ = self.look(self.places.expand(len(pixels), -1, -1), states, states)
        return self.colour(found), self.shape(found)

def drawn(numbers, held_out, seed):
    "Pixels (n,3,s,s) of scenes, and the colour and the shape at each place (n,9), 0 for nothing"
    pixels, colour, shape = [], *np.zeros((2, len(numbers), len(PLACES)), np.int64)
    for row, i in enumerate(numbers):
        things = scene(i, held_out, seed)
        pixels.append(np.asarray(draw_scene(things, SIDE, f"{seed} {held_out} {i}")).transpose(2, 0, 1))
        for t in things:
            at = row, PLACES.index(t.place)
            colour[at], shape[at] = 1 + [*COLOURS].index(t.colour), 1 + SHAPES.index(t.shape)
    return torch.from_numpy(np.stack(pixels).astype(np.int16)), torch.from_numpy(colour), torch.from_numpy(shape)

def all_named(names, held_out, n=TESTED):
    "The share of new scenes in which everything at every place is named right"
    pixels, colour, shape = drawn(range(n), held_out, 1)
    with torch.no_grad(): colours, shapes = names(pixels)
    return float(((colours.argmax(-1) == colour) & (shapes.argmax(-1) == shape)).all(1).float().mean())

def learn_to_see(steps=1500, batch=32, lr=2e-3):
    "Teach an encoder what stands where, put it beside the model of text, and keep both as a run"
    torch.manual_seed(0)
    lm = create_conditional(TEXT, ConditionConfig(**ENCODER).check(), device="cpu")
    names = Naming(lm.model.encoder)
    opt = torch.optim.AdamW(names.parameters(), lr, weight_decay=.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, steps)
    for step in progress(range(steps), desc="learning to see"):
        pixels, *true = drawn(range(batch*step, batch*(step + 1)), False, 2)
        loss = sum(F.cross_entropy(z.flatten(0, 1), y.flatten()) for z, y in zip(names(pixels), true))
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(names.parameters(), 1.)
        opt.step()
        schedule.step()
    found = {"steps": steps, "seen": all_named(names, False), "held out": all_named(names, True)}
    lm.save_pretrained(runs_dir()/EYES)
    (PAGE/EYES).mkdir(parents=True, exist_ok=True)
    write_json(PAGE/EYES/"summary.json", found)
    print(found)

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
    return {"value": float(right.mean()), "low": low, "high": high, "seeds": len(right), "scenes": right.shape[1],
            "by_seed": right.mean(1).tolist()}

@torch.no_grad()
def score():
    sets = {"held out": tested("held_out", True), "seen": tested("seen", False)}
    out = {"captions": {k: words for k, (_, words) in sets.items()}, "exact_match": {}, "wrote": {}}
    for kind in KINDS:
        names = [n for n in arms() if n.startswith(f"pictures-{kind}-") and (PAGE/n/"summary.json").exists()]
        if not names: continue
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
