"""What makes a training step fast, measured singly: the records behind the results page "Speed".

    python experiments/speed.py paid       each measure on and off, turn by turn in one process (allocator: fresh ones)
    python experiments/speed.py sizes      the MFU of steps with fewer and shorter windows
    python experiments/speed.py roofline   what each kind of operation takes, and what it would take at the roof
    python experiments/speed.py compile    what torch.compile costs before the first step, with a cache and without
                                            → records/speed/paid.json, …

The rest of that page comes from `dlm bench train|overhead|memory --json`. Run it with nothing else on the machine.
"""
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from arms import RECORDS
from diffusion_lm.bench import AllLogits, Contestant, FixedBatch, spread
from diffusion_lm.core import clock, describe_machine, keep_memory, matmul_peak, pick_device, pick_dtype
from diffusion_lm.files import write_json
from diffusion_lm.models import layers
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig
from diffusion_lm.theory.objective import Objective

V, B, CONFIG, DEVICE = 8192, 16, ModelConfig("small"), pick_device()
DTYPE = pick_dtype(DEVICE)

def contestant(loss=Objective, optimizer="adamw", compile=False, batch=B, length=CONFIG.length):
    "Something that takes training steps; the same weights each time"
    torch.manual_seed(0)
    model = BaselineDreamModel(replace(CONFIG, length=length), V, range(5)).to(DEVICE)
    if compile: model.compile_blocks()
    fixed = FixedBatch(model.config, V, batch)
    return Contestant("ours", loss(model), optimizer, fixed.b.to(DEVICE)[:3], DTYPE, fixed.masked)

def stepper(around=contextlib.nullcontext, **kw):
    c = contestant(**kw)
    def step():
        with around(): c.step()
    return step

def other_attention(q, k, v, mask=None, causal=False):
    "The path that `attend` does not choose for this dtype"
    if DTYPE == torch.float32: return layers._attend_plain(q, k, v, mask, causal)
    heads_first = (z.transpose(1, 2) for z in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)

def autograd_only(): return patch.object(layers, "_by_hand", lambda *xs: False)
def with_other_attention(): return patch.object(layers, "attend", other_attention)

def pairs():
    "What is measured: name → the step without and with it"
    return {
        "logits at masked positions only, gradient formed forward": (stepper(loss=AllLogits), stepper()),
        "three gradients by hand": (stepper(around=autograd_only), stepper()),
        "the attention path chosen by dtype": (stepper(around=with_other_attention), stepper()),
        "torch.compile of the blocks": (stepper(), stepper(compile=True)),
        "AdamW instead of Muon": (stepper(optimizer="muon"), stepper())}

def row(name, off, on):
    r = spread([a/b for a, b in zip(off, on)])
    return {"name": name, "off": statistics.median(off), "on": statistics.median(on),
            "ratio": r["value"], "low": r["low"], "high": r["high"]}

def steady(keep):
    "Seconds of a step; keep=1: the process keeps freed memory"
    if int(keep): keep_memory()
    step = stepper()
    for _ in range(2): step()
    return statistics.median(clock(step, DEVICE)[0] for _ in range(5))

def paid(rounds=5):
    keep_memory()
    rows = []
    for name, (off, on) in pairs().items():
        print(name, file=sys.stderr)
        off()
        on()
        times = [(clock(off, DEVICE)[0], clock(on, DEVICE)[0]) for _ in range(rounds)]
        rows.append(row(name, *zip(*times)))
    if DEVICE.type == "cpu":  # the allocator's settings cannot be taken back: fresh processes, turn by turn
        times = [(alone("steady", 0), alone("steady", 1)) for _ in range(3)]
        rows.append(row("freed memory is kept (glibc)", *zip(*times)))
    return about() | {"rounds": rounds, "rows": rows}

def about():
    "On what it was measured"
    return {"machine": describe_machine(DEVICE), "device": str(DEVICE), "dtype": str(DTYPE)[6:],
            "torch": torch.__version__, "preset": "small", "vocab": V, "batch": B, "load_before": os.getloadavg()[0]}

SIZES = ((16, 256), (8, 256), (4, 256), (2, 256), (1, 256), (32, 128), (16, 128), (8, 128))

def sizes(rounds=9):
    "MFU by windows and their length: each round measures the peak, then every step once"
    keep_memory()
    found, mfu = {(b, l): contestant(batch=b, length=l) for b, l in SIZES}, defaultdict(list)
    for c in found.values(): c.step()
    for _ in range(rounds):
        peak = matmul_peak(DEVICE, DTYPE)*1e9
        for k, c in found.items():
            n = max(1, 4096//c.batch[0].numel())  # small steps are measured several at a time
            seconds = clock(lambda c=c, n=n: [c.step() for _ in range(n)], DEVICE).wall/n
            mfu[k].append(c.flops/seconds/peak)
    first = mfu[SIZES[0]]
    rows = [{"windows": b, "length": l, "mfu": spread(values),
             "of_first": spread([v/w for v, w in zip(values, first)])} for (b, l), values in mfu.items()]
    return about() | {"rounds": rounds, "rows": rows}

# ---- the roofline ----

GROUPS = {  # kinds of operations by the beginning of their names; the rest is "other"
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"), "optimizer and clipping": ("_fused", "_foreach", "linalg"),
    "softmax": ("_softmax", "_log_softmax", "exp", "amax", "logsumexp"), "copies": ("clone", "_to_copy", "copy", "cat"),
    "products of elements": ("mul", "addcmul", "silu"), "sums": ("sum", "mean", "add", "sub", "mv", "var", "rsqrt"),
    "shifts": ("roll",), "lookups": ("embedding", "index", "gather", "scatter", "nonzero")}

def group(name): return next((k for k, starts in GROUPS.items() if name.startswith(starts)), "other")

class Operations(TorchDispatchMode):
    "Seconds, floating-point operations and bytes of a step by kind of operation; on a CPU, which finishes each at once"
    def __init__(self):
        super().__init__()
        self.found = defaultdict(lambda: [0., 0, 0])

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        start = time.perf_counter()
        out = op(*args, **(kwargs or {}))
        seconds, count = time.perf_counter() - start, flop_registry.get(op.overloadpacket)
        each = {id(z): z for z in tree_leaves((args, kwargs, out)) if isinstance(z, torch.Tensor)}
        moved = 0 if op.is_view else sum(z.numel()*z.element_size() for z in each.values())
        operations = count(*args, **(kwargs or {}), out_val=out) if count else 0
        name = op._schema.name.removeprefix("aten::")
        self.found[group(name)] = [a + b for a, b in zip(self.found[group(name)], (seconds, operations, moved))]
        return out

def bandwidth(n=2**26):
    "Bytes that are read and written in a second by a copy that no cache holds"
    a, b = torch.ones(n), torch.ones(n)
    return 8*n/min(clock(lambda: b.copy_(a), DEVICE).wall for _ in range(5))

def roofline(rounds=5):
    "Of each kind of operations: its share of a step, and the time that arithmetic and memory would allow"
    keep_memory()
    step = stepper()
    for _ in range(2): step()
    peak, memory, rows = matmul_peak(DEVICE, DTYPE)*1e9, bandwidth(), []
    with Operations() as operations:
        for _ in range(rounds): step()
    for name, totals in sorted(operations.found.items(), key=lambda r: -r[1][0]):
        seconds, flops, moved = (z/rounds for z in totals)
        bounds = {"arithmetic": flops/peak, "memory": moved/memory}
        bound = max(bounds, key=bounds.get)
        rows.append({"name": name, "seconds": seconds, "gflops": flops/1e9, "megabytes": moved/1e6,
                     "bound": bound, "least": bounds[bound]})
    return about() | {"peak_gflops": peak/1e9, "gigabytes_per_second": memory/1e9, "rounds": rounds, "rows": rows}

# ---- compiling ----

def alone(*args, **more):
    "The number that this script prints in a process of its own; more: environment variables"
    command = [sys.executable, __file__, *map(str, args)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | more).stdout)

def first_steps(compile):
    "Seconds of the first two steps"
    keep_memory()
    step = stepper(compile=bool(int(compile)))
    return sum(clock(step, DEVICE).wall for _ in range(2))

def faster(windows, rounds=7):
    "How many times as fast a compiled step is, turn by turn"
    keep_memory()
    plain, compiled = (stepper(batch=int(windows), compile=c) for c in (False, True))
    plain(), compiled()
    return statistics.median(clock(plain, DEVICE).wall/clock(compiled, DEVICE).wall for _ in range(rounds))

def compiling(rounds=3):
    "Seconds before training is under way: plain, compiled for the first time, and with what another process compiled"
    ways = {"plain": [], "cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for way, seconds in ways.items():
                seconds.append(alone("first_steps", int(way != "plain"), TORCHINDUCTOR_CACHE_DIR=cache))
    gains = [{"windows": w, "ratio": spread([alone("faster", w) for _ in range(rounds)])} for w in (16, 8)]
    return about() | {"rounds": rounds, **{way: spread(seconds) for way, seconds in ways.items()}, "gains": gains}

MEASURES = {"paid": paid, "sizes": sizes, "roofline": roofline, "compile": compiling}

PARTS = {"steady": steady, "first_steps": first_steps, "faster": faster}  # in processes of their own

def main(what="", *args):
    if what in PARTS: print(PARTS[what](*args))
    elif what in MEASURES: write_json(RECORDS/"speed"/f"{what}.json", MEASURES[what]())
    else:
        print(__doc__)
        return 2

if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
