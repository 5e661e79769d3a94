"""`dlm bench`: what it prints and what it refuses; never how fast anything is."""
import json
import sys

import pytest

from conftest import run_dlm
from diffusion_lm.bench import PEERS, met

SMALL = ("train", "--preset", "tdlm", "--vocab", 64, "--length", 16, "--batch", 2, "--rounds", 2, "--device", "cpu",
         "--dtype", "float32")

@pytest.fixture(autouse=True)
def small_peak(monkeypatch):
    "Matrix products of a size that takes no time, and no process of its own for each peak of memory"
    from diffusion_lm import bench
    peak = bench.matmul_peak
    monkeypatch.setattr(bench, "matmul_peak", lambda device, dtype, sizes=(), reps=3: peak(device, dtype, (64,), 1))
    monkeypatch.setattr(bench, "afresh", lambda f, *args, **kw: f(*args, **kw))

def test_json(home):
    status, out, err = run_dlm(home, "bench", *SMALL, "--all-dtypes", "--json")
    assert status == 0, err
    r = json.loads(out)
    assert [(c["name"], c["dtype"], c["optimizer"]) for c in r["contestants"]] == [
        ("diffusion_lm", "float32", "adamw"), ("diffusion_lm", "float32", "muon"),
        *((peer, dtype, "adamw") for peer in PEERS for dtype in ("float32", "bfloat16"))]
    asked = {"device": "cpu", "dtype": "float32", "length": 16, "vocab": 64, "batch": 2, "rounds": 2, "notes": []}
    assert {k: r[k] for k in asked} == asked
    assert {"machine", "threads", "torch", "load_before", "load_after", "process_peak_memory"} <= set(r)
    assert set(r["peaks_gflops"]) == {"float32", "bfloat16"}
    for c in r["contestants"]:
        assert c["tokens_per_second"] == pytest.approx(32/c["seconds"]) and isinstance(c["peak_memory"], int)
        assert c["ratio"]["low"] <= c["ratio"]["value"] <= c["ratio"]["high"]
    for t in (r["targets"][k] for k in ("mfu", "speedup")):
        assert t["met"] is met(t, t["target"]) and t["aim_met"] is met(t, t["aim"])
    assert r["targets"]["applies"] is False and not home.exists()

def test_table(home):
    status, out, err = run_dlm(home, "bench", *SMALL)
    assert status == 0, err
    assert "x-transformers" in out and out.count(": target ") == 2 and "stated for preset small" in out
    assert "round 2 of 2" in err

@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_without_the_peer(home, monkeypatch, flags):
    monkeypatch.setitem(sys.modules, "x_transformers", None)
    status, out, err = run_dlm(home, "bench", *SMALL, *flags)
    note = "x-transformers is not installed; add it with: pip install 'diffusion_lm[bench]'"
    assert status == 0 and err.splitlines()[-1] == note
    if not flags:
        assert "x-transformers" not in out.replace("(these", "") and out.count(": target ") == 1
        return
    r = json.loads(out)
    assert {c["name"] for c in r["contestants"]} == {"diffusion_lm", "mdlm-like", "plain PyTorch"}
    assert r["targets"]["speedup"]["met"] is None

def test_peer_not_wanted(home):
    status, out, err = run_dlm(home, "bench", *SMALL, "--no-peer", "--json")
    assert status == 0 and "x-transformers" not in err + json.dumps(json.loads(out)["contestants"])

@pytest.mark.parametrize("args, why", [
    ([], "required: what"), (["trian"], "did you mean 'train'"), (["train", "twice"], "one argument too many"),
    (["train", "--batchs", 3], "did you mean '--batch'"),
    (["train", "--batch", "many"], "batch must be a whole number"),
    (["train", "--batch", 0], "batch must be between 1"),
    (["train", "--rounds", 0], "rounds must be between 1"), (["train", "--vocab", 5], "vocab must be between 6"),
    (["train", "--vocab", 1 << 25], "vocab must be between"), (["train", "--length", 0], "length must be at least 1"),
    (["train", "--length", -3], "length must be at least 1"), (["train", "--preset", "smal"], "did you mean 'small'"),
    (["train", "--dtype", "float61"], "unknown dtype"), (["train", "--device", "tpu"], "unknown device"),
    (["overhead", "--minutes", 0], "minutes must be above 0"),
])
def test_bad_options(refused, args, why): assert why in refused("bench", *args)

def test_overhead(home, monkeypatch):
    from diffusion_lm import bench
    def part(name, share, longest=None):
        return {"name": name, "calls": 3, "seconds": 2*share, "longest": longest, "share": share}
    canned = {"machine": "a machine", "device": "cpu", "dtype": "float32", "model": "a model", "steps": 3,
              "seconds": 2., "tokens_per_second": 1234., "load": None,
              "parts": [part("step", .9), part("data", .1, .05)]}
    asked = []
    monkeypatch.setattr(bench, "overhead", lambda minutes: asked.append(minutes) or canned)
    status, out, _ = run_dlm(home, "bench", "overhead", "--minutes", .5)
    assert (status, asked) == (0, [.5]) and "1,234 tokens/s" in out and "90.0%" in out and out.count("\n") == 6
    assert json.loads(run_dlm(home, "bench", "overhead", "--json")[1]) == canned
