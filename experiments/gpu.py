"""What only a GPU can show, in one command: the record behind the results page "On a GPU".

    python experiments/gpu.py             all steps that are not in the record yet
    python experiments/gpu.py STEP …      these steps, even if they are; what the record has of the others stays
    python experiments/gpu.py list        what each step measures, what it needs, and whether it is in the record

Every step runs in a process of its own and is written down when it ends, in `records/gpu/gpu.json`. If one fails or
runs out of memory, the record says so and the next one begins. All steps together are meant to take about ten minutes
on an H100. Without CUDA, this prints the list and writes nothing. Run it with nothing else on the machine.
"""
import gc
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from arms import RECORDS
from diffusion_lm.bench import SAYS, FixedBatch, afresh, met, spread, train_flops
from diffusion_lm.bench_sample import Setting, bench_blocks, ours
from diffusion_lm.core import UserError, clock, describe_machine, matmul_peak, one_of, peak_memory, seed_everything
from diffusion_lm.deploy.bench_device import BadInput, bench_device, load_runtime
from diffusion_lm.deploy.export import build_engine, export_lm
from diffusion_lm.doctor import installed_version
from diffusion_lm.files import read_json, write_json
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.block import stream_mask
from diffusion_lm.models.layers import attend
from diffusion_lm.models.make import make_model
from diffusion_lm.models.transformer import ModelConfig, n_params, randomize_
from diffusion_lm.sampling.sampler import denoise
from diffusion_lm.theory.objective import Objective
from diffusion_lm.training.budget import HalveMicroBatch
from diffusion_lm.training.learner import Learner, TrainConfig

ROOT, RECORD = Path(__file__).resolve().parent.parent, RECORDS/"gpu"/"gpu.json"
ROOM = 22.5e9  # bytes for tensors on a GPU of 24 GB: the context and the libraries take the rest

def say(text): print(text, file=sys.stderr, flush=True)

# ---- on what is measured ----

@dataclass(frozen=True)
class Scale:
    "The sizes of all steps; tests take small ones, on a CPU"
    device: torch.device = torch.device("cuda")
    dtype: torch.dtype = torch.bfloat16
    middle: ModelConfig = field(default_factory=lambda: ModelConfig("xlarge").resolve())
    large: ModelConfig = field(default_factory=lambda: ModelConfig("1b").resolve())
    vocab: int = 32768
    batch: int = 32              # sequences of the middle model in a training step
    large_batch: int = 8         # and of the large one
    compile: bool = True
    rounds: int = 3
    calls: int = 5               # training steps that are measured together
    products: tuple = ()         # sizes of the matrices whose product is the peak; what suits the device if not given
    block: int = 16
    steps: int = 64              # denoising steps of a text of the middle model
    large_steps: int = 256       # and of the large one
    exact: int = 128             # tokens of the text that is written with a cache and without

def clear(device):
    "Forget tensors and compiled code: another shape would be compiled as a dynamic one, which is slower"
    gc.collect()
    torch.compiler.reset()
    if device.type != "cuda": return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)

def most_taken(device):
    "The most bytes that the allocator has held since `clear`, what it could not use included"
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory(device)

def limit_memory(device):
    "From now on, running out of `ROOM` is running out of memory, however large the GPU is"
    if device.type != "cuda": return
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1., ROOM/whole), torch.cuda.current_device())

# ---- training ----

def make_learner(s, config, batch, objective="nelbo-count", **options):
    "A learner on a fixed batch; its model is made on the device, where a billion random numbers take no time"
    seed_everything(0)
    with s.device: model = make_model(config, s.vocab, range(5), objective)
    cfg = TrainConfig(batch=batch, device=s.device.type, dtype=str(s.dtype)[6:], compile=s.compile, **options)
    loader = FixedBatch(model.config, s.vocab, batch)
    return Learner(Objective(model, objective), loader, cfg, [HalveMicroBatch()])

def train_row(s, name, *args, **options): # as for make_learner
    "Speed and memory of a training step; three steps compile and warm up"
    clear(s.device)
    learn = make_learner(s, *args, **options)
    for _ in range(3): learn.train_step()
    memory, seconds, peaks, loader = most_taken(s.device), [], [], learn.loader
    for _ in range(s.rounds):
        peaks.append(matmul_peak(s.device, s.dtype, s.products))
        seconds.append(clock(learn.train_step, s.device, s.calls).wall)
    tokens = loader.batch_size*loader.length
    flops = train_flops(learn.model, tokens, loader.masked, loader.length)
    mfu = [flops/second/1e9/peak for second, peak in zip(seconds, peaks)]
    return {"name": name, "parameters": n_params(learn.model), "batch": loader.batch_size,
            "micro_batch": learn.micro or loader.batch_size, "seconds": spread(seconds),
            "tokens_per_second": tokens/spread(seconds)["value"], "mfu": spread(mfu), "peak_gflops": spread(peaks),
            "memory": memory, "loss": float(learn.loss)}

def train(s):
    "Training steps of both sizes with both optimizers, nothing recomputed"
    for config, batch in ((s.middle, s.batch), (s.large, s.large_batch)):
        for optimizer in ("adamw", "muon"):
            yield train_row(s, f"{config.preset}, {optimizer}", config, batch, optimizer=optimizer)

# ---- attention in blocks ----

def attention(qkv, mask):
    "What attention finds, and the gradients of its sum of squares"
    y = attend(*qkv, mask)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), qkv)]

def distance(a, b):
    "The largest difference, relative to the largest value"
    return float((a.float() - b.float()).abs().max()/b.float().abs().max())

def attention_row(s, name, qkv, mask, truth):
    "How exact, how fast and how large an attention is"
    clear(s.device)
    def run(): return attention(qkv, mask)
    output, *gradients = run()
    _, *true_gradients = truth
    before = torch.cuda.memory_allocated(s.device) if s.device.type == "cuda" else 0
    seconds = [clock(run, s.device, s.calls).wall for _ in range(s.rounds)]
    return {"name": name, "output_error": distance(output, truth[0]),
            "gradient_error": max(map(distance, gradients, true_gradients)),
            "seconds": spread(seconds), "memory": peak_memory(s.device) - before}

def flex(s):
    "Both attentions against a float32 one, and a training step in blocks"
    c, g = s.middle, torch.Generator().manual_seed(0)
    shape = 4, 2*c.length, c.heads, c.width//c.heads
    wide = [torch.randn(shape, generator=g).to(s.device).requires_grad_() for _ in "qkv"]
    plain, sparse = (stream_mask(c.length, s.block, s.device, kind) for kind in (False, True))
    truth = attention(wide, plain)
    qkv = [z.detach().to(s.dtype).requires_grad_() for z in wide]
    yield attention_row(s, "masked attention", qkv, plain, truth)
    yield attention_row(s, "FlexAttention", qkv, sparse, truth)
    row = train_row(s, "training in blocks", replace(c, block=s.block), s.batch//2, "block", optimizer="adamw")
    row.pop("mfu")  # its operations are counted for one stream, and there are two
    yield row

# ---- writing ----

def exact_row(s):
    "How far a model with its cache is from the same without, in float32"
    config = replace(s.middle, length=s.exact, block=s.block)
    model = randomize_(make_model(config, s.vocab, range(5), "block"), std=.02).to(s.device).eval()
    x = torch.full((2, s.exact), model.mask, device=s.device)
    write = partial(denoise, model, x, sampler="confidence", temperature=0, steps=s.exact//4)
    same, apart = True, 0.
    for a, b in zip(write(), write(cache="off"), strict=True):
        same = same and torch.equal(a.x, b.x)
        apart = max(apart, float((a.logp - b.logp).abs().max()))
    return {"name": "with its cache and without, float32", "same_text": same, "largest_difference": apart}

def cache(s):
    "Is the cache exact, and how much faster is a long text with it?"
    yield exact_row(s)
    clear(s.device)
    yield from bench_blocks(Setting(s.middle, s.vocab, 1, 0, s.device, s.dtype), s.block, s.rounds, say)

ASKS = {"item", "tolist", "numpy", "cpu", "nonzero", "equal", "masked_select",
        "__bool__", "__int__", "__float__", "__index__"}

class WouldWait(TorchFunctionMode):
    """Count the calls for which a CPU would have to wait for a GPU, by line of code.

    Parameters count as being on the GPU, with all that is sent there (`to` a device) or computed from what is there.
    """
    def __init__(self):
        super().__init__()
        self.lines, self.there = Counter(), WeakIdKeyDictionary()

    def __torch_function__(self, f, types, args=(), kwargs=None):
        out, name = f(*args, **(kwargs or {})), f.__name__
        given = [z for z in tree_leaves((args, kwargs)) if isinstance(z, torch.Tensor)]
        there = any(map(self.is_there, given))
        if there and (name in ASKS or self.is_indirect(name, args)): self.lines[self.here()] += 1
        if there and name == "__setitem__": self.there[args[0]] = True
        if name == "cpu": out = out.clone() # the same tensor on a CPU; the copy is not there
        elif there or name == "to" and any(isinstance(a, torch.device) for a in args): out = self.sent(out, given)
        return out

    def is_there(self, z): return isinstance(z, torch.nn.Parameter) or z in self.there

    def is_indirect(self, name, args):
        "An index that is a mask, or that has to be copied first"
        if name not in ("__getitem__", "__setitem__"): return False
        index = [z for z in tree_leaves(args[1]) if isinstance(z, torch.Tensor) and z.ndim]
        return any(z.dtype == torch.bool or not self.is_there(z) for z in index)

    def sent(self, out, given):
        "What a call returned, noted as being on the GPU; a copy of what it was given"
        if any(out is z for z in given): out = out.clone()
        for z in tree_leaves(out):
            if isinstance(z, torch.Tensor): self.there[z] = True
        return out

    def here(self):
        "The innermost line of the library, without the functions that only wait for others"
        calls = ((Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_stack(None))
        return next((f"{path.name}:{line}" for path, line in calls
                     if "diffusion_lm" in path.parts and path.name != "core.py"), "elsewhere")

def waits(f, device):
    "How often the CPU waits for the GPU while `f` runs, by line of code; on a CPU, how often it would"
    if device.type != "cuda":
        with WouldWait() as would: f()
        return would.lines
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try: f()
        finally: torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in seen if "called a synchroniz" in str(w.message))

def write_row(s, name, config, batch, steps, **options): # further options of `ours`
    "Speed and memory of writing, and for what each step waits"
    clear(s.device)
    setting = Setting(config, s.vocab, batch, steps, s.device, s.dtype)
    with s.device: write = ours(setting, **options)
    calls, length = write(), config.length
    seconds = [clock(write, s.device).wall for _ in range(s.rounds)]
    memory, lines = most_taken(s.device), waits(write, s.device)
    where = {line: n/calls for line, n in lines.most_common()}
    return {"name": name, "batch": batch, "length": length, "evaluations": calls, "seconds": spread(seconds),
            "written_per_second": spread([batch*length/second for second in seconds]), "memory": memory,
            "waits_a_step": sum(where.values()), "where": where}

def sampler(s):
    "Writing by three samplers, one text and sixteen at a time"
    in_blocks = replace(s.middle, block=s.block)
    for batch in (1, 16):
        for name in ("confidence", "ancestral"): yield write_row(s, name, s.middle, batch, s.steps, sampler=name)
        yield write_row(s, "in blocks, with the cache", in_blocks, batch, s.steps, objective="block")

def one_b(s):
    "Writing and training with a billion parameters in the memory of a GPU of 24 GB"
    limit_memory(s.device)
    yield write_row(s, "whole texts", s.large, 1, s.large_steps)
    in_blocks = replace(s.large, block=s.block)
    yield write_row(s, "in blocks, with the cache", in_blocks, 1, s.large.length//4, objective="block")
    yield train_row(s, "training, one sequence at a time, layers recomputed", s.large, 4, micro_batch=1,
                    checkpointing=True)

# ---- export ----

def logits_error(folder, provider, length):
    "How far a provider's logits are from the CPU's"
    runtime, ids = load_runtime(folder), np.random.default_rng(0).integers(5, 200, (2, length))
    there, here = (runtime.Model(str(folder), provider=p).logits(ids) for p in (provider, "cpu"))
    finite = np.isfinite(here)
    return float(np.abs(there[finite] - here[finite]).max())

def without_path(said, folder): return said.replace(str(folder.parent) + "/", "")  # a record names no machine's path

def provider_rows(folder, provider):
    "Rows of an export on one provider of ONNX Runtime; a row with the reason where it does not run"
    try:
        record = bench_device(folder, provider, steps=16, n=3, say=say)
        error = logits_error(folder, provider, record["length"])
    except (BadInput, ValueError) as e:
        return [{"name": provider, "missing": without_path(one_line(e), folder)}]
    return [{"name": f"{provider}, {r['precision']}, batch {r['batch']}", "seconds": r["step_seconds"],
             "written_per_second": r["tokens_per_second"], "logits_error": error} for r in record["rows"]]

def engine_row(folder):
    "An engine built by TensorRT's own package; the reason where that does not work"
    name = "engine by the package tensorrt"
    try: return {"name": name, "bytes": build_engine(folder, precision="fp16").stat().st_size}
    except UserError as e: return {"name": name, "missing": without_path(one_line(e), folder)}

def export(s, run="sotu-4m"):
    "The reference model through the providers of ONNX Runtime"
    lm = DiffusionLM.from_run(run, device="cpu")
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)/"export"
        export_lm(lm, folder, fp16=True, say=say)
        for provider in ("cpu", "cuda", "tensorrt"): yield from provider_rows(folder, provider)
        yield engine_row(folder)

# ---- tests ----

def result(name, command):
    "Which tests of a command passed: its row; raises `UserError` if there was no test at all"
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    said = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped|xfailed)", said[-1])}
    if not counts: raise UserError(f"{name} ended with status {done.returncode}: {said[-1][:200]}")
    failed = [line.split()[1] for line in said if line.startswith(("FAILED ", "ERROR "))]
    return {"name": name, "passed": counts.get("passed", 0), "skipped": counts.get("skipped", 0),
            "failed": counts.get("failed", 0) + counts.get("error", 0), "which": failed,
            "seconds": time.perf_counter() - start}

def needs_gpu(notebook):
    "Has it cells that only run on a GPU?"
    text = notebook.read_text(encoding="utf-8")
    return '"#| cuda' in text or '"if torch.cuda.is_available()' in text

def cells_row(path):
    "Whether a notebook passes with its cells for a GPU"
    test, start = Path(sys.executable).with_name("nbdev_test"), time.perf_counter()
    done = subprocess.run([test, "--n_workers", "0", "--flags", "cuda", "--path", path], cwd=ROOT, capture_output=True)
    return {"name": path.relative_to(ROOT).as_posix(), "passed": int(done.returncode == 0),
            "failed": int(done.returncode != 0), "seconds": time.perf_counter() - start}

def tests(s):
    "All tests and cells for a GPU"
    yield result("pytest -m cuda", [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests"])
    for path in sorted(filter(needs_gpu, (ROOT/"nbs").rglob("*.ipynb"))): yield cells_row(path)

# ---- steps and targets ----

@dataclass(frozen=True)
class Target:
    "What a figure should reach"
    figure: str
    bound: float
    most: bool = False # may it be at most this?

    def verdict(self, row):
        "Whether a row meets it: a value, or a median with its range"
        v = row[self.figure]
        v = v if isinstance(v, dict) else {"value": v, "low": v, "high": v}
        if not self.most: ok = met(v, self.bound)
        else: ok = None if v["low"] <= self.bound < v["high"] else v["high"] <= self.bound
        return {"name": row["name"], "figure": self.figure, **v, "target": self.bound, "most": self.most, "met": ok}

@dataclass(frozen=True)
class Step:
    "A part of the measurement"
    run: Callable       # Scale → rows, each with a name
    measures: str
    needs: str = "CUDA"
    targets: tuple = ()

    def verdicts(self, rows):
        "How the targets fare in the rows that have their figures"
        return [t.verdict(r) for t in self.targets for r in rows if t.figure in r]

STEPS = {
    "tests": Step(tests, "every test and every cell that needs a GPU", "CUDA, and the extra dev",
                  (Target("failed", 0, most=True),)),
    "train": Step(train, "training steps of xlarge and 1b, compiled, in bfloat16: MFU, tokens a second, memory",
                  "CUDA with bfloat16, and 80 GB for 1b", (Target("mfu", .45),)),
    "flex": Step(flex, "FlexAttention against masked attention: outputs, gradients, time, memory", "CUDA and Triton",
                 (Target("output_error", .02, most=True), Target("gradient_error", .02, most=True))),
    "cache": Step(cache, "block diffusion with its cache and without: the same text, and the speed", "CUDA",
                  (Target("largest_difference", 1e-3, most=True),)),
    "sampler": Step(sampler, "writing at batch 1 and 16: tokens a second, and where a step waits for the GPU", "CUDA",
                    (Target("waits_a_step", .5, most=True),)),
    "export": Step(export, "an exported model through ONNX Runtime on CUDA and TensorRT",
                   "CUDA, onnxruntime-gpu, TensorRT, and the extra export", (Target("logits_error", .01, most=True),)),
    "1b": Step(one_b, "a billion parameters: writing in bfloat16, and training with one sequence at a time",
               "CUDA with bfloat16 and 24 GB",
               (Target("written_per_second", 100.), Target("memory", ROOM, most=True))),
}

# ---- carrying them out ----

def one_line(e):
    "What an error says, on a line"
    said = " ".join(str(e).split())[:200]
    return said if isinstance(e, (UserError, BadInput)) and said else f"{type(e).__name__}: {said}"

def versions():
    "Of what decides how fast it is"
    found = {name: installed_version(name) for name in ("triton", "onnxruntime-gpu", "tensorrt")}
    return {"torch": torch.__version__, "cuda": torch.version.cuda, **found}

def measure(step, s):
    "The rows of a step, and why it ended early if it did"
    start, rows = time.perf_counter(), []
    out = {"machine": describe_machine(s.device), "versions": versions(), "rows": rows}
    try:
        for row in step.run(s): rows.append(row)
    except Exception as e: out["failed"] = one_line(e)
    return out | {"seconds": time.perf_counter() - start}

def carry_out(names, steps=STEPS, path=RECORD, s=None, isolate=afresh):
    "Measure some steps, one after another; each is in the record before the next begins"
    record = read_json(path) if path.exists() else {}
    for name in names:
        say(f"== {name}: {steps[name].measures}")
        try: got = isolate(measure, steps[name], s or Scale())
        except Exception as e: got = {"rows": [], "failed": f"its process ended ({one_line(e)})"}
        record[name] = got | {"targets": steps[name].verdicts(got["rows"])}
        write_json(path, record)
        for line in outcome(record[name]): say(line)
    return record

def outcome(entry):
    "What came of a step, in lines"
    for v in entry["targets"]:
        limit = "at most" if v["most"] else "at least"
        yield f"{v['name']}: {v['figure']} {v['value']:.4g}, {limit} {v['target']:g}: {SAYS[v['met']]}"
    if "failed" in entry: yield f"not finished: {entry['failed']}"

def state(name, record):
    "Is a step in the record?"
    if name not in record: return "–"
    return "failed" if "failed" in record[name] else "done"

def listing(record, steps=STEPS):
    "A line for each step"
    return [f"{state(k, record):8s}{k:9s}{v.measures} (needs {v.needs})" for k, v in steps.items()]

def main(*args):
    record = read_json(RECORD) if RECORD.exists() else {}
    here = torch.cuda.is_available()
    if not here: print("There is no CUDA device here: nothing is measured, and the record stays as it is. The steps:")
    if not here or args == ("list",):
        print("\n".join(listing(record)))
        return 0
    for name in args: one_of("step", name, STEPS)
    carry_out(args or [k for k in STEPS if state(k, record) != "done"])
    return 0

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"gpu.py: {e}")
