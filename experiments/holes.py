"""Does a model find out how long a hole is? Two runs of the same size, with and without open masks, and a better one.

    python experiments/holes.py list           the arms, and which of them are there
    python experiments/holes.py train [STEPS]  train those that are missing, one after another, on one core
                                               (another number of steps: runs with other names, to try the script)
    python experiments/holes.py score [SPANS] [STEPS]
                                               fill spans of held-out text whose length is given, guessed or found
                                               → records/holes/scores.json (another file for other steps)

Both arms read the same windows in the same number of steps: what `holes` learns of open masks it takes from the rows
in which it would have learned plain ones. A span is 1 to 12 tokens of a held-out speech between 40 tokens on either
side. It is filled greedily, the surest token first. Of the true span, the nats are those of a model that reads it from
left to right; where the length is found by scores, the nats of the length come on top. For a hole that grows there
is no such number, since a text can come about in many ways: its lengths are drawn instead, `DRAWS` for each span.
"""
import sys
from pathlib import Path

import numpy as np
import torch

from arms import RECORDS, configuration, one_core, serve, train_and_record
from diffusion_lm.command import own_text
from diffusion_lm.core import rng
from diffusion_lm.files import write_json
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.sampling.lengths import Parts, best_of, length_scores, write_open
from diffusion_lm.sampling.sampler import PLAIN, sample
from diffusion_lm.text.tokenizer import Hole
from diffusion_lm.theory.likelihood import path_nats

PAGE = RECORDS/"holes"
REFERENCE = Path(__file__).parent.parent/"checkpoints"/"sotu-4m"
STEPS, SPANS, DRAWS = 2000, 200, 8
LENGTH, SIDE, LONGEST = 128, 40, 12
PLAIN_RUN = {
    "tokenizer.vocab_size": 2048, "trainer.batch": 16, "model.width": 128, "model.layers": 4, "model.heads": 4,
    "model.length": LENGTH, "noise.progress": "none", "trainer.adamw_lr": 10, "trainer.compile": "false",
    "trainer.eval_every": 400, "trainer.eval_tokens": 16384, "trainer.log_every": 100, "trainer.save_every": 400,
    "trainer.keep": 1}
KINDS = {"plain": {}, "open": {"holes": "{share: 0.5, expand: 0.3, delete: 0.3}"}}

def name_of(kind, steps): return f"holes-{kind}" + ("" if steps == STEPS else f"-{steps}")

def arms(steps):
    return {name_of(kind, steps): (options | {"trainer.steps": steps},) for kind, options in KINDS.items()}

def train_arm(name, options):
    train_and_record(configuration("demo", PLAIN_RUN | options), name, PAGE)

# ---- spans of held-out text ----

def spans_of(store, n):
    "Text before, the span, and text behind it, as lists of ids"
    bounds, x = store.documents("test"), np.asarray(store.tokens)
    documents = [(a, b) for a, b in zip(bounds, bounds[1:]) if b - a > 2*SIDE + LONGEST + 1]
    for i in range(n):
        g = rng(0, "span", i)
        size = int(g.integers(1, LONGEST + 1))
        a, b = documents[g.integers(len(documents))]
        at = int(g.integers(a + SIDE, b - SIDE - size))
        yield x[at - SIDE:at].tolist(), x[at:at + size].tolist(), x[at + size:at + size + SIDE].tolist()

def window(before, middle, behind, mask):
    ids = [*before, *middle, *behind]
    return torch.tensor([ids + [mask]*(LENGTH - len(ids))])

GREEDY = PLAIN.but(sampler="confidence", steps=64, temperature=0)

def filled(model, before, size, behind):
    "The surest filling of this size"
    x = window(before, [model.mask]*size, behind, model.mask)
    here = torch.zeros_like(x, dtype=torch.bool)
    here[:, SIDE:SIDE + size] = True
    return sample(model, x, GREEDY, only=here)[0, SIDE:SIDE + size].tolist()

def span_nats(model, before, span, behind):
    "Nats of the true span at its true length, from left to right"
    x = window(before, span, behind, model.mask)
    rank = torch.full_like(x, -1)
    rank[0, SIDE:SIDE + len(span)] = torch.arange(len(span))
    return float(path_nats(model, x, rank).sum())

def grown(model, parts, options, n=1):
    "What `n` rows have written into the hole"
    *_, rows = write_open(model, parts, LENGTH, options, n)
    return [[t for t, h in zip(r.ids, r.hole) if h == 0] for r in rows]

# ---- one span, all ways ----

def ways(model, i, before, span, behind):
    "A dict for each way of choosing the length: what it wrote, and the nats of the true span"
    parts, n = Parts([before, behind], [Hole(1, LONGEST)], [False]), len(span)
    nats = span_nats(model, before, span, behind)
    scores = length_scores(model, parts, LENGTH)
    of_length = -np.log(max(1e-12, next(s.p for s in scores if s.lengths == (n,))))
    mean, wrong = round((LONGEST + 1)/2), n + 3 if n <= LONGEST//2 else n - 3
    sizes = {"right": n, "wrong": wrong, "guessed": mean, "scored": best_of(scores).lengths[0]}
    out = {k: {"wrote": filled(model, before, size, behind)} for k, size in sizes.items()}
    out["right"]["nats"], out["scored"]["nats"] = nats, nats + of_length
    out["scored"]["p"] = [round(s.p, 5) for s in scores]
    if model.edits:
        out["grown"] = {"wrote": grown(model, parts, GREEDY)[0]}
        draws = grown(model, parts, PLAIN.but(sampler="first-hitting", seed=f"span {i}"), DRAWS)
        out["grown"]["drawn"] = [len(d) for d in draws]
    return out

def summary(spans, found, way):
    "Means over the spans, and where they can be had the errors of these means"
    rows = [f[way] for f in found]
    off = np.array([len(r["wrote"]) - len(s) for r, (_, s, _) in zip(rows, spans)])
    match = np.array([r["wrote"] == s for r, (_, s, _) in zip(rows, spans)])
    out = {
        "spans": len(rows),
        "exact_match": float(match.mean()), "exact_match_error": float(match.std()/len(rows)**.5),
        "length_right": float((off == 0).mean()), "length_off": float(np.abs(off).mean()),
        "length_bias": float(off.mean())}
    if "nats" in rows[0]: out["nats_of_span"] = float(np.mean([r["nats"] for r in rows]))
    if "drawn" in rows[0]:
        drawn = np.array([r["drawn"] for r in rows]) - np.array([[len(s)] for _, s, _ in spans])
        out |= {"drawn_right": float((drawn == 0).mean()), "drawn_off": float(np.abs(drawn).mean())}
    return out

def score(n, steps):
    "Fill spans with both runs, and with the reference model"
    out = {}
    for run in [*arms(steps), REFERENCE]:
        name, lm = Path(run).name, DiffusionLM.from_run(run, device="cpu")
        spans = [*spans_of(own_text(lm), n)]
        found = [ways(lm.model, i, *s) for i, s in enumerate(spans)]
        out[name] = {way: summary(spans, found, way) for way in found[0]}
        for way, r in out[name].items():
            print(f"{name:16s}{way:10s}", {k: round(v, 3) for k, v in r.items()}, flush=True)
    write_json(PAGE/("scores.json" if steps == STEPS else f"scores-{steps}.json"), out)

if __name__ == "__main__":
    what, *numbers = sys.argv[1:] or ["list"]
    numbers = [int(z) for z in numbers]
    if what == "score":
        one_core()
        score(numbers[0] if numbers else SPANS, numbers[1] if len(numbers) > 1 else STEPS)
    elif not serve(what, arms(numbers[0] if numbers else STEPS), PAGE, lambda arm: str(arm[0]), train_arm):
        sys.exit(__doc__)
