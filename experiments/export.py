"""What an export costs and gains: the record behind the page on latency.

    python experiments/export.py [--rounds N] [--presets tiny,small] [--runs sotu-4m] [--cpu-seconds] [--out FILE]

Speed turn by turn in one process, at the presets, with untrained weights: PyTorch, and ONNX Runtime in fp32, fp16, int8
(dynamic) and int8 (static), a pass over a text and the writing of one. Quality on the test text of trained runs. Run it
with nothing else on the machine.
"""
import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from arms import RECORDS
from diffusion_lm.bench import spread
from diffusion_lm.core import describe_machine, pick_device, rng
from diffusion_lm.deploy.export import export_lm
from diffusion_lm.deploy.runtime import Model
from diffusion_lm.files import find_run, to_json, write_text
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.make import make_model
from diffusion_lm.models.transformer import ModelConfig, n_params, randomize_
from diffusion_lm.text.store import eval_windows, store_of
from diffusion_lm.text.tokenizer import train_bpe
from diffusion_lm.training.recipe import load_config

VOCAB = {"tiny": 4096, "small": 8192}
clock = time.perf_counter  # or time.process_time, which a busy machine disturbs less

def say(text): print(text, file=sys.stderr, flush=True)

def turns(calls, rounds):
    "Seconds of every call, turn by turn, after a first round that does not count: name → list"
    times = {k: [] for k in calls}
    for i in range(rounds + 1):
        for k, f in calls.items():
            time.sleep(.1)  # the threads of the one before spin for a while, and would take its cores
            start = clock()
            f()
            if i: times[k].append(clock() - start)
    return times

def rows(times, base):
    "Median seconds of each, and how many times faster than `base` it is, by turn"
    def gain(v): return spread([a/b for a, b in zip(times[base], v)])
    return [{"name": k, "seconds": statistics.median(v), "gain": gain(v)} for k, v in times.items()]

def a_tokenizer(size):
    "A vocabulary of `size` tokens of nonsense: speed does not depend on which"
    g = rng("words")
    def word(n): return "".join(map(chr, 97 + g.integers(0, 26, int(n))))
    tok = train_bpe([" ".join(word(n) for n in g.integers(2, 9, 6*size))], size)
    assert len(tok) == size, len(tok)
    return tok

def exports(lm, folder, windows):
    "A run exported with dynamic and with static scales: precision → `Model`"
    export_lm(lm, folder/"dynamic", fp16=True, int8=True)
    export_lm(lm, folder/"static", int8=True, static=windows)
    n = torch.get_num_threads()
    models = {k: Model(folder/"dynamic", k, threads=n) for k in ("fp32", "fp16", "int8")}
    return models | {"int8 static": Model(folder/"static", "int8", threads=n)}

def graph_bytes(m): return sum(p.stat().st_size for p in m.folder.glob(next(iter(m._files.values()))))

@torch.no_grad()
def speed(preset, rounds, folder):
    "A pass over a text of the preset's length, alone and in a batch of 8; writing a text of half that length"
    tok = a_tokenizer(VOCAB[preset])
    lm = DiffusionLM(randomize_(make_model(ModelConfig(preset), len(tok), tok.specials), std=.02), tok, preset)
    g, out = torch.Generator().manual_seed(0), []
    windows = torch.randint(5, len(tok), (16, lm.length), generator=g)
    models = exports(lm, folder, windows.numpy())
    for b in (1, 8):
        x = windows[:b].masked_fill(torch.rand(b, lm.length, generator=g) < .5, tok.mask)
        inputs = {"ids": x.numpy(), "at": np.arange(x.numel())}
        calls = {"torch": partial(lm.model, x)} | {k: partial(m.run, "model", **inputs) for k, m in models.items()}
        out += [{"what": f"pass, {b}×{lm.length}"} | r for r in rows(turns(calls, rounds), "fp32")]
    for sampler in ("ancestral", "confidence"):
        kw = dict(length=lm.length//2, steps=32, sampler=sampler, seed=1)
        calls = {k: partial(m.generate, **kw) for k, m in {"torch": lm, **models}.items()}
        what = f"{sampler}, {lm.length//2} tokens in 32 steps"
        out += [{"what": what} | r for r in rows(turns(calls, max(2, rounds//3)), "fp32")]
    return {"preset": preset, "parameters": n_params(lm.model), "length": lm.length, "vocab": len(tok),
            "rounds": rounds, "bytes": {k: graph_bytes(m) for k, m in models.items()}, "rows": out}

def quality(run, folder, tokens, draws):
    "Bits per byte of each graph on the run's test text, over the same masks"
    lm = DiffusionLM.from_run(run, device="cpu")
    store = store_of(load_config(find_run(run)/"config.yaml").data, lm.tokenizer)
    bounds = store.documents("test")
    bounds = [int(b - bounds[0]) for b in bounds]
    score = store.split("test")[:tokens], [b for b in bounds if b < tokens] + [min(tokens, bounds[-1])]
    docs = store.documents("validation")
    windows = eval_windows(store.split("validation"), docs - docs[0], lm.length, lm.model.pad)[0][:64]
    a = export_lm(lm, folder/"dynamic", fp16=True, int8=True, score=score, draws=draws, say=say)
    b = export_lm(lm, folder/"static", int8=True, static=windows, score=score, draws=draws, say=say)
    bits = a["bits_per_byte"] | {"int8 static": b["bits_per_byte"]["int8"]}
    return {"run": lm.name, "parameters": n_params(lm.model), "tokens": len(score[0]), "draws": draws,
            "parity": a["parity"], "bytes": a["bytes"] | {"int8 static": b["bytes"]["int8"]},
            "bits_per_byte": bits, "cost": {k: v["value"]/bits["fp32"]["value"] - 1 for k, v in bits.items()}}

def options():
    p = argparse.ArgumentParser()
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--presets", default="tiny,small")
    p.add_argument("--runs", default="sotu-4m", help="trained runs, separated by commas")
    p.add_argument("--tokens", type=int, default=32768)
    p.add_argument("--draws", type=int, default=4)
    p.add_argument("--out", default=str(RECORDS/"latency"/"export.json"))
    p.add_argument("--cpu-seconds", dest="cpu", action="store_true", help="count CPU time, on one thread")
    return p.parse_args()

def tell(record):
    for s in record["speed"]:
        for r in s["rows"]:
            gain = r["gain"]
            print(f"{s['preset']:6s} {r['what']:36s} {r['name']:12s} {1e3*r['seconds']:9.2f} ms  "
                  f"{gain['value']:.2f}× fp32 ({gain['low']:.2f} – {gain['high']:.2f})")
    for q in record["quality"]:
        for k, v in q["bits_per_byte"].items():
            print(f"{q['run']:12s} {k:12s} {q['bytes'][k]/1e6:6.2f} MB  "
                  f"{v['value']:.4f} bits/byte  {q['cost'][k]:+.2%}")

if __name__ == "__main__":
    o = options()
    if o.cpu:
        clock = time.process_time
        torch.set_num_threads(1)
    record = {"machine": describe_machine(pick_device("cpu")), "torch": torch.__version__,
              "seconds": "CPU, one thread" if o.cpu else "wall", "threads": torch.get_num_threads(),
              "load_before": os.getloadavg()[0], "speed": [], "quality": []}
    with tempfile.TemporaryDirectory() as d:
        for preset in filter(None, o.presets.split(",")):
            say(f"speed of {preset}")
            record["speed"].append(speed(preset, o.rounds, Path(d)/f"speed-{preset}"))
        for run in filter(None, o.runs.split(",")):
            say(f"quality of {run}")
            record["quality"].append(quality(run, Path(d)/f"quality-{run}", o.tokens, o.draws))
    write_text(o.out, to_json(record | {"load_after": os.getloadavg()[0]}, indent=1) + "\n")
    tell(record)
