"""What makes a training step fast, measured singly: the records behind the results page "Speed".

    python experiments/speed.py paid [--json FILE]   each measure on and off, turn by turn in one process
                                                      (allocator: fresh processes)

The rest of that page comes from `dlm bench train|overhead|memory --json`. Run it with nothing else on the machine.
"""
import contextlib
import statistics
import subprocess
import sys
from unittest.mock import patch

import torch

from diffusion_lm.bench import AllLogits, Contestant, FixedBatch, spread
from diffusion_lm.core import clock, describe_machine, keep_memory, pick_device, pick_dtype
from diffusion_lm.files import to_json, write_text
from diffusion_lm.models import layers
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig
from diffusion_lm.theory.objective import Objective

V, B, CONFIG, DEVICE = 8192, 16, ModelConfig("small"), pick_device()
DTYPE = pick_dtype(DEVICE)

def stepper(loss=Objective, optimizer="adamw", compile=False, around=contextlib.nullcontext):
    torch.manual_seed(0)
    model = BaselineDreamModel(CONFIG, V, range(5)).to(DEVICE)
    if compile: model.compile_blocks()
    fixed = FixedBatch(model.config, V, B)
    c = Contestant("ours", loss(model), optimizer, fixed.b.to(DEVICE)[:3], DTYPE, fixed.masked)
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
        "logits at masked positions only, gradient formed forward": (stepper(AllLogits), stepper()),
        "three gradients by hand": (stepper(around=autograd_only), stepper()),
        "the attention path chosen by dtype": (stepper(around=with_other_attention), stepper()),
        "torch.compile of the blocks": (stepper(), stepper(compile=True)),
        "AdamW instead of Muon": (stepper(optimizer="muon"), stepper())}

def row(name, off, on):
    r = spread([a/b for a, b in zip(off, on)])
    return {"name": name, "off": statistics.median(off), "on": statistics.median(on),
            "ratio": r["value"], "low": r["low"], "high": r["high"]}

def fresh(keep):
    "Seconds of a step in a process of its own; keep=1: it keeps freed memory"
    command = [sys.executable, __file__, "step", str(keep)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

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
        times = [(fresh(0), fresh(1)) for _ in range(3)]
        rows.append(row("freed memory is kept (glibc)", *zip(*times)))
    return {"machine": describe_machine(DEVICE), "device": str(DEVICE), "dtype": str(DTYPE)[6:],
            "torch": torch.__version__, "preset": "small", "vocab": V, "batch": B, "rounds": rounds, "rows": rows}

if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        if int(sys.argv[2]): keep_memory()
        step = stepper()
        for _ in range(2): step()
        print(statistics.median(clock(step, DEVICE)[0] for _ in range(5)))
    elif sys.argv[1:2] == ["paid"]:
        out = to_json(paid(), indent=1) + "\n"
        if sys.argv[2:3] == ["--json"]: write_text(sys.argv[3], out)
        else: print(out)
    else: sys.exit(__doc__)
