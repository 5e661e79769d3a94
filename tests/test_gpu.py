"""What only a GPU can show, flagged `cuda`; beside it the same on a CPU, as far as that goes, so that it runs at all.

And the script that measures a GPU: without one it lists what it could not run, and one that fails stops no other.
"""
import contextlib
import io
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_lm.bench import FixedBatch
from diffusion_lm.core import UserError
from diffusion_lm.files import read_json, write_json
from diffusion_lm.models import block, layers
from diffusion_lm.models.block import BlockDiffusionModel, stream_mask
from diffusion_lm.models.make import make_model
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig, randomize_
from diffusion_lm.sampling.player import trace
from diffusion_lm.sampling.policies import SAMPLERS, Ranked
from diffusion_lm.sampling.sampler import denoise, sample
from diffusion_lm.theory.objective import Objective
from diffusion_lm.training.budget import HalveMicroBatch, fit_micro_batch
from diffusion_lm.training.checkpoint import Checkpoint
from diffusion_lm.training.learner import Learner, TrainConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"experiments"))

import gpu  # noqa: E402

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

def on_gpu(*values): return pytest.param(*values, marks=[pytest.mark.cuda, NO_GPU])
def only_gpu(test): return pytest.mark.cuda(NO_GPU(test))
both = pytest.mark.parametrize("device", ["cpu", on_gpu("cuda")])

CONFIG, V, SPECIALS = ModelConfig(width=64, heads=2, layers=2, length=64), 32, range(5)

def network(objective="nelbo-count", config=CONFIG, std=.1):
    "A model on the CPU whose predictions differ from place to place"
    torch.manual_seed(0)
    return randomize_(make_model(config, V, SPECIALS, objective), std=std)

def learner(device, dtype="float32", batch=8, model=None, callbacks=(), **options):
    options = dict(steps=6, lr=1e-3, optimizer="adamw") | options
    cfg = TrainConfig(batch=batch, device=device, dtype=dtype, **options)
    model = network() if model is None else model
    return Learner(Objective(model), FixedBatch(model.config, V, batch), cfg, callbacks)

def close(a, b, tolerance):
    "Are the values alike, relative to the largest?"
    assert gpu.distance(a.cpu(), b.cpu()) < tolerance

# ---- attention in blocks ----

def block_loss(device, flex, gradients, compile=False):
    "The loss of a block-diffusion model with one of the two masks, and the gradients of its weights"
    model = network("block", replace(CONFIG, length=128, block=16)).to(device)
    if compile: model.compile_blocks()
    fixed, only = FixedBatch(model.config, V, 4), lambda l, size, where, _: stream_mask(l, size, where, flex)
    context = contextlib.nullcontext() if gradients else torch.no_grad()
    with patch.object(block, "stream_mask", only), context, warnings.catch_warnings(action="ignore"):
        loss = Objective(model, "block")(*(z.to(device) for z in fixed.b[:3]))
        if gradients: loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]

@pytest.mark.parametrize("device, gradients, compile",
                         [("cpu", False, False), on_gpu("cuda", True, False), on_gpu("cuda", True, True)])
def test_flex_trains_as_the_plain_mask(device, gradients, compile):
    "On a CPU, FlexAttention has no gradients"
    plain, plain_gradients = block_loss(device, False, gradients)
    flex, flex_gradients = block_loss(device, True, gradients, compile)
    close(flex, plain, 1e-4)
    for a, b in zip(flex_gradients, plain_gradients if gradients else []): close(a, b, 1e-2)

@only_gpu
@pytest.mark.parametrize("head", [60, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention(head, dtype):
    "Heads of the presets dream and 1b, and a length that is no multiple of FlexAttention's squares"
    torch.compiler.reset()
    g, where = torch.Generator().manual_seed(0), torch.device("cuda")
    wide = [torch.randn(2, 320, 2, head, generator=g).to(where).requires_grad_() for _ in "qkv"]
    plain, flex = (stream_mask(160, 32, where, kind) for kind in (False, True))
    qkv = [z.detach().to(dtype).requires_grad_() for z in wide]
    for a, b in zip(gpu.attention(qkv, flex), gpu.attention(wide, plain), strict=True): close(a, b, .02)

# ---- training ----

@pytest.mark.parametrize("device, dtype, tolerance", [
    ("cpu", "bfloat16", .05), on_gpu("cuda", "float32", .01), on_gpu("cuda", "bfloat16", .05)])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_trains_as_on_a_cpu(device, dtype, tolerance, optimizer):
    "Loss and gradient of three steps, beside float32 on a CPU"
    here, there = learner("cpu", optimizer=optimizer), learner(device, dtype, optimizer=optimizer)
    for _ in range(3):
        for learn in (here, there): learn.train_step()
        close(there.loss, here.loss, tolerance)
        close(there.grad_norm, here.grad_norm, tolerance)

@only_gpu
@pytest.mark.parametrize("options", [{"compile": True}, {"checkpointing": True},
                                     {"compile": True, "checkpointing": True, "micro_batch": 2}])
def test_savings_change_no_loss(options):
    plain, saving = learner("cuda", "bfloat16"), learner("cuda", "bfloat16", **options)
    for _ in range(3):
        for learn in (plain, saving): learn.train_step()
        close(saving.loss, plain.loss, .02)

def norm_as_under_autocast(x, shape, gain, eps, real=F.rms_norm):
    "`rms_norm` as CUDA's autocast runs it, in float32 and with a float32 result"
    with torch.autocast("cpu", enabled=False): return real(x.float(), shape, gain.float(), eps=eps)

def test_bfloat16_where_norms_are_float32():
    "On CUDA, autocast runs `rms_norm` in float32, which a CPU does not do: here it is made to"
    by_autograd = patch.object(layers, "_by_hand", lambda *xs: False)
    with patch.object(F, "rms_norm", norm_as_under_autocast), by_autograd: learner("cpu", "bfloat16").train_step()

@both
def test_resumes_exactly(device, tmp_path):
    "With dropout, whose random numbers come from the device: the same losses to the last bit as without a break"
    def start(folder):
        torch.manual_seed(1)
        model = network(config=replace(CONFIG, dropout=.2))
        return learner(device, model=model, callbacks=[Checkpoint(tmp_path/folder)])
    def losses(learn, n):
        out = []
        for _ in range(n):
            learn._timed_step()
            out.append(float(learn.loss))
        return out
    with exactly():
        unbroken, again, first = start("unbroken"), start("again"), start("broken")
        torch.manual_seed(2)
        whole = losses(unbroken, 6)
        torch.manual_seed(2)
        assert losses(again, 6) == whole, "two runs without a break differ already"
        torch.manual_seed(2)
        part = losses(first, 3)
        first.callbacks[0].save(first)
        torch.manual_seed(3) # another state, which restoring must put right
        resumed = start("broken")
        torch.rand(5, device=device)
        resumed.restore(tmp_path/"broken")
        assert part + losses(resumed, 3) == whole

@both
def test_trying_what_fits_draws_nothing(device):
    "With dropout: the next random number is the one that it would have been"
    learn = learner(device, model=network(config=replace(CONFIG, dropout=.2)))
    torch.manual_seed(4)
    fit_micro_batch(learn)
    drawn = torch.rand(3, device=device)
    torch.manual_seed(4)
    assert torch.equal(drawn, torch.rand(3, device=device))

@contextlib.contextmanager
def exactly():
    "Only operations that give the same numbers every time"
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(action="ignore"): yield
    finally: torch.use_deterministic_algorithms(False)

@only_gpu
def test_out_of_memory_halves_the_micro_batch():
    "A limit between what one sequence needs and what all need"
    model = network(config=replace(CONFIG, width=256, length=512), std=.02)
    def run(callbacks=(), **options):
        gpu.clear(torch.device("cuda"))
        learn = learner("cuda", batch=64, model=model, callbacks=callbacks, **options)
        learn.train_step()
        return learn, gpu.most_taken(learn.device)
    all_at_once, most = run()
    _, least = run(micro_batch=1)
    assert least < .5*most
    try:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((least + most)/2/whole)
        halved, _ = run([HalveMicroBatch()])
        assert 1 <= halved.micro < 64
        assert 1 <= fit_micro_batch(halved) < 64
    finally: torch.cuda.set_per_process_memory_fraction(1.)

# ---- writing ----

def template(model, rows=2, given=48):
    x = torch.full((rows, model.config.length), model.mask)
    x[:, :given] = torch.randint(5, V, (rows, given), generator=torch.Generator().manual_seed(0))
    return x

WRITERS = {"ancestral": {}, "confidence": {}, "first-hitting": {}, "threshold": {"tau": .3}, "remdm": {},
           "entropy": {"block": 16, "cache": "dual"}, "margin": {"block": 16, "cache": "prefix"}}

@pytest.mark.parametrize("device, dtype", [("cpu", torch.float32), on_gpu("cuda", torch.float32),
                                           on_gpu("cuda", torch.float64)])
@pytest.mark.parametrize("sampler", WRITERS)
def test_writes_as_on_a_cpu(device, dtype, sampler):
    "The most probable tokens, beside float64 on a CPU: the same order, the same text"
    model, how = network(), dict(sampler=sampler, temperature=0, steps=12, **WRITERS[sampler])
    x = template(model)
    truth = [f.x for f in denoise(model.double(), x, **how)]
    there = [f.x.cpu() for f in denoise(model.to(device, dtype), x.to(device), **how)]
    assert all(map(torch.equal, there, truth)) and len(there) == len(truth)

@only_gpu
def test_trace():
    "When each token was revealed, and with which probability"
    model = network()
    x = template(model)
    here = trace(model, x, sampler="confidence", temperature=0, steps=8)
    there = trace(model.cuda(), x.cuda(), sampler="confidence", temperature=0, steps=8)
    assert torch.equal(there.when.cpu(), here.when)
    assert torch.allclose(there.p.cpu(), here.p, atol=1e-3, equal_nan=True)

@both
@pytest.mark.parametrize("cache", [None, "off"])
def test_draws_do_not_depend_on_the_batch(device, cache):
    "In float64, drawn tokens are the same too, alone and beside others"
    model = network("block", replace(CONFIG, block=16)).double().to(device)
    x = template(model).to(device)
    two = sample(model, x, sampler="confidence", steps=8, cache=cache)
    alone = sample(model, x[1:], sampler="confidence", steps=8, cache=cache, rows=[1])
    assert torch.equal(two[1:], alone)

@both
def test_cache_of_blocks_is_exact(device):
    "Step by step, in float32"
    model = network("block", replace(CONFIG, block=16)).to(device)
    x = torch.full((2, 64), model.mask, device=device)
    frames = [[*denoise(model, x, sampler="confidence", temperature=0, steps=24, cache=c)] for c in (None, "off")]
    for with_cache, without in zip(*frames, strict=True):
        assert torch.equal(with_cache.x, without.x)
        close(with_cache.logp, without.logp, 1e-4)

@both
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_waits_for_the_gpu(device, sampler, blocks):
    "A step waits once for a policy that looks at the predictions, never for another"
    model = network("block" if blocks else "nelbo-count", replace(CONFIG, block=16 if blocks else None)).to(device)
    x, steps = torch.full((2, 64), model.mask, device=device), []
    def write(): steps[:] = denoise(model, x, sampler=sampler, steps=32)
    write()
    lines = gpu.waits(write, torch.device(device))
    a_step, start = int(issubclass(SAMPLERS[sampler], Ranked)), 2 if device == "cpu" else 4*4 # of each of four blocks
    assert a_step*len(steps) <= lines.total() <= a_step*len(steps) + start, lines

@pytest.mark.parametrize("options, a_step", [
    ({"temperature": (1., 0.), "repetition": 1.2, "top_k": 5, "top_p": .9}, 0), ({"guidance": 1.}, 0),
    ({"avoid": [[9]]}, 0), ({"avoid": [[9, 8]]}, 1), ({"stop": 9}, 1), ({"block": 16, "cache": "dual"}, 0)])
def test_what_options_wait_for(options, a_step):
    "What asks for the tokens that were written waits for them"
    model, steps = network(), []
    x = torch.full((2, 64), model.mask)
    lines = gpu.waits(lambda: steps.extend(denoise(model, x, steps=32, **options)), torch.device("cpu"))
    assert a_step*(len(steps) - 1) <= lines.total() <= a_step*len(steps) + 2, lines

def test_what_would_wait():
    "Found by line, on a CPU"
    x, y = torch.nn.Parameter(torch.arange(4.), requires_grad=False), torch.arange(4.) # x counts as being on a GPU
    def f(): return (
        x[x > 1], x[y.argsort()], bool((x > 2).any()), x.tolist(), (x > 1).cpu().any().item(), # five that wait
        x + 1, x.masked_fill(x > 1, 0.), x[x.argsort()], y[y > 1], bool(y.any()), y.to(x.device) > 1)
    assert gpu.waits(f, torch.device("cpu")).total() == 5
    model = network()
    x = torch.full((1, 64), model.mask)
    lines = gpu.waits(lambda: sample(model, x, sampler="confidence", steps=8), torch.device("cpu"))
    assert any(k.startswith("policies.py:") for k in lines) and "elsewhere" not in lines

# ---- the script ----

def printed(*args):
    "What `main` prints, and its status"
    out = io.StringIO()
    with contextlib.redirect_stdout(out): status = gpu.main(*args)
    return status, out.getvalue()

@pytest.mark.parametrize("args", [(), ("list",), ("train",)])
@pytest.mark.parametrize("record", [None, {"train": {"rows": []}, "flex": {"rows": [], "failed": "why"}}])
def test_without_a_gpu_it_lists_the_steps(tmp_path, monkeypatch, args, record):
    path = tmp_path/"gpu.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "RECORD", path)
    monkeypatch.setattr(gpu, "carry_out", None) # whatever is asked for
    if record: write_json(path, record)
    before = path.read_bytes() if record else None
    status, out = printed(*args)
    assert status == 0 and "no CUDA device here" in out
    lines = out.splitlines()[1:]
    assert [l.split()[1] for l in lines] == [*gpu.STEPS] and all("needs CUDA" in l for l in lines)
    states = Counter(l.split()[0] for l in lines)
    assert states == (Counter({"–": 5, "done": 1, "failed": 1}) if record else Counter({"–": 7}))
    assert (path.read_bytes() if path.exists() else None) == before

def good(s): yield {"name": "a", "speed": {"value": 2., "low": 1.5, "high": 3.}, "size": 7}
def bad(s):
    yield {"name": "b", "size": 5}
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
def dies(s): raise AssertionError("never reached")

FAKE = {"bad": gpu.Step(bad, "what fails", targets=(gpu.Target("size", 6, most=True),)),
        "dies": gpu.Step(dies, "what ends its process"),
        "good": gpu.Step(good, "what works", targets=(gpu.Target("speed", 2.), gpu.Target("size", 6, most=True)))}

def test_a_failure_is_written_down_and_the_others_go_on(tmp_path, capsys):
    path = tmp_path/"records"/"gpu.json"
    write_json(path, {"older": {"rows": []}})
    def isolate(f, step, s):
        if step is FAKE["dies"]: raise RuntimeError("a child process ended abruptly")
        return f(step, s)
    gpu.carry_out(FAKE, FAKE, path, gpu.Scale(device=torch.device("cpu")), isolate)
    record = read_json(path)
    assert [*record] == ["older", "bad", "dies", "good"]
    assert record["bad"]["failed"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert [r["name"] for r in record["bad"]["rows"]] == ["b"] # what was measured before stays
    assert record["bad"]["targets"][0]["met"] is True
    assert "its process ended" in record["dies"]["failed"]
    assert "failed" not in record["good"] and [t["met"] for t in record["good"]["targets"]] == [None, False]
    assert {"machine", "versions", "seconds"} <= set(record["good"])
    assert "not finished: its process ended" in capsys.readouterr().err
    assert [gpu.state(k, record) for k in ("bad", "good", "another")] == ["failed", "done", "–"]

def test_the_record_grows_step_by_step(tmp_path):
    path, seen = tmp_path/"gpu.json", []
    def isolate(f, step, s):
        seen.append([*read_json(path)] if path.exists() else [])
        return f(step, s)
    gpu.carry_out(["good", "bad"], FAKE, path, gpu.Scale(device=torch.device("cpu")), isolate)
    assert seen == [[], ["good"]]

@pytest.mark.parametrize("value, most, ok", [(3, False, True), (1, False, False), (1, True, True), (3, True, False),
                                             ({"value": 2.5, "low": 1., "high": 3.}, False, None),
                                             ({"value": 2.5, "low": 1., "high": 3.}, True, None)])
def test_targets(value, most, ok):
    assert gpu.Target("x", 2, most).verdict({"name": "a", "x": value})["met"] is ok

def test_unknown_step(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="did you mean 'train'"): gpu.main("trian")

TINY = {"width": 32, "heads": 2, "layers": 1, "length": 32}
LITTLE = gpu.Scale(
    device=torch.device("cpu"), middle=ModelConfig("xlarge", **TINY).resolve(),
    large=ModelConfig("1b", **TINY).resolve(), vocab=32, batch=4, large_batch=2, compile=False, rounds=2, calls=1,
    products=(32,), block=8, steps=2, large_steps=2, exact=16)

@pytest.mark.parametrize("name, figures", [
    ("train", {"mfu", "tokens_per_second", "memory", "peak_gflops"}), ("cache", {"largest_difference", "seconds"}),
    ("sampler", {"written_per_second", "waits_a_step", "where"}), ("1b", {"written_per_second", "memory", "mfu"})])
def test_steps_run_at_a_small_size(name, figures):
    "All but what needs a GPU to run at all"
    got = gpu.measure(gpu.STEPS[name], LITTLE)
    assert "failed" not in got, got
    assert figures <= {k for r in got["rows"] for k in r}
    rows = [(r["name"], r.get("batch")) for r in got["rows"]]
    assert len(rows) == len(set(rows)) > 1
    assert gpu.STEPS[name].verdicts(got["rows"])

def test_a_training_step_in_blocks():
    row = gpu.train_row(LITTLE, "in blocks", replace(LITTLE.middle, block=8), 4, "block", optimizer="adamw")
    assert row["batch"] == 4 and row["loss"] == pytest.approx(3.3, abs=.3)

def test_flex_has_no_gradients_on_a_cpu():
    got = gpu.measure(gpu.STEPS["flex"], replace(LITTLE, dtype=torch.float32))
    assert [r["name"] for r in got["rows"]] == ["masked attention"] and "failed" in got
    assert got["rows"][0]["output_error"] < 1e-6

def test_results_of_pytest():
    "Counted from its last line; no test at all is a failure that says why"
    def prints(*lines): return [sys.executable, "-c", f"print({chr(10).join(lines)!r})"]
    row = gpu.result("three", prints("..", "FAILED tests/a.py::test_b - assert 0", "1 failed, 2 passed in 0.1s"))
    assert (row["passed"], row["failed"], row["skipped"]) == (2, 1, 0) and row["which"] == ["tests/a.py::test_b"]
    with pytest.raises(UserError, match="none ended with status 1: .*No module named"):
        gpu.result("none", [sys.executable, "-m", "no_such_module"])

def test_what_is_missing_is_named_without_a_path(tmp_path, monkeypatch):
    "A provider or a package that is not there is a row with the reason"
    def refuse(folder, *args, **options): raise UserError(f"TensorRT cannot read {folder}/model.onnx")
    monkeypatch.setattr(gpu, "build_engine", refuse)
    monkeypatch.setattr(gpu, "bench_device", refuse)
    said = {"missing": "TensorRT cannot read export/model.onnx"}
    assert gpu.engine_row(tmp_path/"export") == {"name": "engine by the package tensorrt", **said}
    assert gpu.provider_rows(tmp_path/"export", "cuda") == [{"name": "cuda", **said}]

def test_cells_for_a_gpu_are_found():
    found = {p.name for p in (gpu.ROOT/"nbs").rglob("*.ipynb") if gpu.needs_gpu(p)}
    assert {"33_block.ipynb", "93_jetson.ipynb"} <= found and len(found) < 6

def test_models_are_what_the_script_says():
    "Both presets with the sizes that the page names"
    s = gpu.Scale()
    assert (s.middle.preset, s.large.preset) == ("xlarge", "1b") and gpu.ROOM < 24e9
    assert isinstance(make_model(LITTLE.middle, 32, SPECIALS), BaselineDreamModel)
    assert isinstance(make_model(replace(LITTLE.middle, block=8), 32, SPECIALS, "block"), BlockDiffusionModel)
