"""Every sampler on one checkpoint: the records behind the results page on samplers.

    python experiments/pareto.py list RUN               the settings, and which of them are measured
    python experiments/pareto.py texts RUN [NAME …]     write and judge 32 texts with each setting that is missing
                                                        → records/samplers/pareto-RUN.jsonl
    python experiments/pareto.py infill RUN             fill held-out spans with each sampler and compare
                                                        → records/samplers/infill-RUN.json

Needs the extras `judge` and `eval`. A setting takes between 10 seconds and 3 minutes on one core. What is there is not
measured again, so several processes may share the names. RUN may be a run on other text (--data.path of its recipe);
the reference row is that run's own test text.
"""
import re
import sys
import time
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import torch

from arms import RECORDS
from diffusion_lm.core import UserError, describe_machine, keep_memory
from diffusion_lm.evaluation.quality import Judge, bleu, sample_quality, token_entropy
from diffusion_lm.files import append_jsonl, find_run, read_jsonl, write_json
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.sampling.sampler import PLAIN, denoise
from diffusion_lm.text.store import store_of
from diffusion_lm.training.recipe import load_config

PAGE = RECORDS/"samplers"
N, SPANS, SPAN = 32, 128, 16  # texts; held-out spans and their tokens

def settings():
    "Name → options of `denoise`"
    out = {}
    def add(sampler, **kw):
        out[" ".join([sampler, *(f"{k}={v}" for k, v in kw.items())])] = dict(sampler=sampler, **kw)
    for s in ("ancestral", "confidence", "entropy", "remdm", "margin", "predictor-corrector"):
        for n in (16, 64): add(s, steps=n)
        if s in ("ancestral", "confidence", "entropy"):
            add(s, steps=256)
            for t in (.8, 1.25): add(s, steps=64, temperature=t)
    for t in (.2, .3, .4, .5, .65): add("ancestral", steps=64, temperature=t)
    add("entropy", steps=256, temperature=.8)
    add("first-hitting")
    add("first-hitting", temperature=.8)
    for v in (.1, .3, .5, .7): add("threshold", tau=v)
    for v in (1., 4.): add("factor", factor=v)
    for v in (.5, 2., 5., 10.): add("entropy-bounded", gamma=v)
    for v in (2., 5.): add("entropy-bounded", gamma=v, temperature=.8)
    for v in (.8, .9, .95): add("ancestral", steps=64, top_p=v)
    for s in ("remdm", "predictor-corrector"): add(s, steps=64, temperature=.8)
    for n in (128, 256): add("ancestral", steps=n, top_p=.9)
    for s in ("remdm", "predictor-corrector"): add(s, steps=64, top_p=.9)
    add("ancestral", steps=64, temperature=.9)
    add("ancestral", steps=64, top_k=50)
    for g in ("cosine", "fisher-rao", "learned"): add("ancestral", steps=16, grid_name=g)
    for g in ("fisher-rao", "learned"): add("ancestral", steps=64, grid_name=g)
    add("confidence", steps=64, block=32)
    for c in ("prefix", "dual"): add("confidence", steps=64, block=32, cache=c)
    return out

class Texts(NamedTuple):
    "Texts of one length that a setting wrote"
    ids: list          # tokens (n,l)
    evaluations: list  # of the network, that each text needed (n,)
    own: list          # nats of each text under the model, in the order in which it was written (n,)
    cpu_seconds: float # of all

def write(lm, kw, n=N, batch=16):
    "Write texts with some options"
    x, rows, calls, own = torch.from_numpy(lm.template())[None].expand(batch, -1), [], [], []
    start = time.process_time()
    options = lm.learned(PLAIN.but(**kw)).but(avoid=[[lm.tokenizer.eos]])  # texts of one length: none ends
    for i in range(0, n, batch):
        each = torch.zeros(batch, dtype=torch.long)
        for f in denoise(lm.model, x, options, rows=range(i, i + batch)): each += f.new.any(1)
        rows.append(f.x)
        calls.append(each)
        own.append(-f.logp.sum(1))
    seconds = time.process_time() - start
    return Texts(torch.cat(rows).tolist(), torch.cat(calls).tolist(), torch.cat(own).tolist(), seconds)

def words(text): return re.findall(r"[a-z']+", text.lower())

class Spelling:
    "Knows the words of a training text"
    def __init__(self, lm, run):
        store = store_of(load_config(find_run(run)/"config.yaml").data, lm.tokenizer)
        self.known = set(words(lm.tokenizer.decode(np.asarray(store.split("train")).tolist())))

    def __call__(self, lm, ids):
        "How many words of each text are known, of how many; the first and the last may be cut and do not count"
        inside = [words(lm.tokenizer.decode(t))[1:-1] for t in ids]
        return {"known_words": [sum(w in self.known for w in ws) for ws in inside], "words": [*map(len, inside)]}

def judged(lm, ids, judge):
    "Figures of the texts, with the terms of each text for paired comparisons"
    texts = [lm.tokenizer.decode(t) for t in ids]
    nats, tokens, size = terms = judge.nats(texts)
    q = {k: asdict(v) if hasattr(v, "value") else v for k, v in sample_quality(texts, ids, terms).items()}
    return q | {"nats": nats.round(1).tolist(), "tokens": tokens.astype(int).tolist(),
                "bytes": size.astype(int).tolist(), "entropies": token_entropy(ids).round(4).tolist(),
                "text": texts[0][:400]}

def held_out(lm, run, n, length):
    "Windows (n,length) of the run's own test text, spread evenly"
    x = np.asarray(store_of(load_config(find_run(run)/"config.yaml").data, lm.tokenizer).split("test"))
    x = x[x != lm.tokenizer.eos]
    return [x[i:i + length].tolist() for i in np.linspace(0, len(x) - length, n).astype(int)]

def record_of(run): return PAGE/f"pareto-{run}.jsonl"

def there(run):
    "Names of the settings that are measured"
    path = record_of(run)
    return {r["name"] for r in read_jsonl(path)} if path.exists() else set()

def texts(run, *names):
    "Write and judge texts with each setting that is missing"
    lm, judge, path = DiffusionLM.from_run(run, device="cpu"), Judge(), record_of(run)
    spelling = Spelling(lm, run)
    if "held-out text" not in there(run) and (not names or "held-out text" in names):
        ids = held_out(lm, run, N, lm.length)
        append_jsonl(path, {"name": "held-out text", **judged(lm, ids, judge), **spelling(lm, ids)})
    for name, kw in settings().items():
        if name in there(run) or names and name not in names: continue
        t = write(lm, kw)
        append_jsonl(path, {"name": name, "options": kw, "evaluations": float(np.mean(t.evaluations)),
                            "cpu_seconds": t.cpu_seconds/N, "machine": describe_machine(lm.device),
                            "own": np.round(t.own, 1).tolist(), **judged(lm, t.ids, judge), **spelling(lm, t.ids)})
        print(name, flush=True)

INFILL = (
    ("ancestral", {"steps": 4}), ("ancestral", {"steps": 16}), ("first-hitting", {}), ("left-to-right", {}),
    ("confidence", {"steps": 4}), ("confidence", {"steps": 8}), ("confidence", {"steps": 16}),
    ("margin", {"steps": 16}), ("entropy", {"steps": 16}), *(("threshold", {"tau": v}) for v in (.1, .3, .5, .7)),
    ("factor", {"factor": 1.}), *(("entropy-bounded", {"gamma": v}) for v in (.5, 2.)),
    ("remdm", {"steps": 16}), ("predictor-corrector", {"steps": 16}))

def infill(run):
    "BLEU of filled spans against the text that they replace"
    lm, rows = DiffusionLM.from_run(run, device="cpu"), []
    truth = torch.tensor(held_out(lm, run, SPANS, lm.length))
    a = lm.length//2 - SPAN//2
    x = truth.clone()
    x[:, a:a + SPAN] = lm.tokenizer.mask
    real = [lm.tokenizer.decode(t) for t in truth[:, a:a + SPAN].tolist()]
    for s, kw in INFILL:
        calls = torch.zeros(SPANS)
        for f in denoise(lm.model, x, sampler=s, seed=1, **kw): calls += f.new.any(1)
        got = f.x[:, a:a + SPAN]
        right = (got == truth[:, a:a + SPAN]).sum(1)
        score = asdict(bleu([lm.tokenizer.decode(g) for g in got.tolist()], real))
        evaluations = float(calls.mean())
        rows.append({"sampler": s, **kw, "evaluations": evaluations, "bleu": score, "right": right.tolist()})
        print(s, kw, round(score["value"], 2), f"{right.float().mean()/SPAN:.1%}", flush=True)
    write_json(PAGE/f"infill-{run}.json", {"spans": SPANS, "span": SPAN, "rows": rows})

def main(what="", run="", *names):
    keep_memory()
    if what == "texts" and run: return texts(run, *names)
    if what == "infill" and run: return infill(run)
    if what == "list" and run:
        done = there(run)
        for n in settings(): print(f"{'done' if n in done else '–':5s}{n}")
        return
    print(__doc__)
    return 2

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"pareto.py: {e}")
