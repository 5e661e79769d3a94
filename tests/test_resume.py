"""A run that is stopped, interrupted or killed and then resumed equals an unbroken one; and what a run leaves."""
import json
import re
import signal
import time

import pytest

from conftest import end_dlm, posix, run_dlm, same_run, start_dlm
from diffusion_lm.files import damage, read_jsonl
from diffusion_lm.training.checkpoint import steps_of

RECIPES = ["quick", "quick-ar"]
STEPS, HALF = 20, 10
SHORT = ["--trainer.steps", STEPS, "--trainer.eval_every", HALF, "--trainer.sample_every", HALF,
         "--trainer.save_every", HALF]

@pytest.fixture(scope="session")
def quick_home(tmp_path_factory):
    """Both packaged recipes, for fewer steps: unbroken as `quick`, and as `quick-part` stopped half-way, then resumed
    by a process of its own. The home, and what each run returned; for each recipe also the checkpoints that it left
    when it stopped"""
    home, results = tmp_path_factory.mktemp("quick")/"home", {}
    home.mkdir()
    for recipe in RECIPES:
        new, part = ["train", "--config", recipe, *SHORT, "--name"], f"{recipe}-part"
        results[recipe, "unbroken"] = run_dlm(home, *new, recipe)
        results[recipe, "stopped"] = run_dlm(home, *new, part, "--trainer.stop_at", HALF)
        results[recipe] = [p.name for p in steps_of(home/"checkpoints"/part)]
        results[recipe, "resumed"] = end_dlm(start_dlm(home, "train", "--resume", "--name", part))
    return home, results

@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_and_resumed_is_unbroken(quick_home, recipe):
    home, results = quick_home
    for kind in ("unbroken", "stopped", "resumed"): assert results[recipe, kind][0] == 0, results[recipe, kind]
    assert results[recipe] == [f"step-{HALF:06d}"] # where it stopped
    assert f"step-{HALF:06d}" in results[recipe, "resumed"][2] # and went on
    a, b = (home/"checkpoints"/n for n in (recipe, f"{recipe}-part"))
    same_run(a, b)
    def drop(s): return {k: v for k, v in s.items() if not re.search("second|memory|^name$", k)}
    assert drop(json.loads((a/"summary.json").read_text())) == drop(json.loads((b/"summary.json").read_text()))
    assert (a/"samples.jsonl").read_text() == (b/"samples.jsonl").read_text()

# ---- interruptions of a process ----

def interrupt(home, name, sig, ready, tmp_path):
    "Train `quick`, send `sig` once `ready(run)`; (status, stderr). It samples at every step, to take long enough"
    p = start_dlm(home, "train", "--config", "quick", *SHORT, "--name", name, "--trainer.sample_every", 1,
                  "--trainer.save_every", 5, "--samples.prompts", '[""]', "--samples.templates", "[]",
                  log=tmp_path/"log")
    run, deadline = home/"checkpoints"/name, time.monotonic() + 240
    try:
        while not ready(run) and p.poll() is None and time.monotonic() < deadline: time.sleep(.01)
        p.send_signal(sig)
        return p.wait(240), (tmp_path/"log.err").read_text(encoding="utf-8")
    finally:
        p.kill()
        p.wait()

def logged(step):
    def ready(run): return (run/"log.jsonl").exists() and any(r["step"] >= step for r in read_jsonl(run/"log.jsonl"))
    return ready

@posix
def test_interrupted(quick_home, tmp_path):
    "It finishes its step, saves, says how to go on"
    home, _ = quick_home
    status, err = interrupt(home, "interrupted", signal.SIGINT, logged(5), tmp_path)
    assert status == 130 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("dlm: ") and "dlm train --name interrupted --resume" in err.splitlines()[-1]
    run = home/"checkpoints"/"interrupted"
    assert 5 <= int(steps_of(run)[-1].name[5:]) < STEPS and damage(steps_of(run)[-1]) is None
    status, out, err = run_dlm(home, "train", "--name", "interrupted", "--resume", "--trainer.sample_every", HALF)
    assert status == 0, err
    same_run(home/"checkpoints"/"quick", run)

@posix
def test_killed(quick_home, tmp_path):
    "Nothing can catch SIGKILL: the run goes on from its last checkpoint, and trains and logs the steps after it again"
    home, _ = quick_home
    status, err = interrupt(home, "killed", signal.SIGKILL, lambda run: (run/"step-000005").exists(), tmp_path)
    assert status == -signal.SIGKILL
    status, out, err = run_dlm(home, "train", "--name", "killed", "--resume", "--trainer.sample_every", HALF)
    assert status == 0, err
    same_run(home/"checkpoints"/"quick", home/"checkpoints"/"killed")

# ---- what a run leaves ----

FILES = {"config.yaml", "tokenizer.json", "model.safetensors", "log.jsonl", "summary.json", "samples.jsonl", "loss.png",
         "report.md", "denoising.html"}
ESTIMATE = {"value", "low", "high", "n", "unit", "kind", "by", "seeds"}

def check_figures(s, kind):
    for k, unit in dict(bits_per_byte="bits/byte", nats_per_token="nats/token", perplexity="perplexity").items():
        e = s[k]
        assert ESTIMATE <= set(e) and e["unit"] == unit and e["kind"] == kind
        assert e["low"] <= e["value"] <= e["high"] and e["n"] > 0
    assert {"parameters", "tokens", "seconds", "tokens_per_second", "device", "dtype"} <= set(s)

@pytest.mark.parametrize("recipe", RECIPES)
def test_run_folder(quick_home, recipe):
    run = quick_home[0]/"checkpoints"/recipe
    assert {p.name for p in run.iterdir()} == FILES | {f"step-{HALF:06d}", f"step-{STEPS:06d}"} # no leftovers
    for p in steps_of(run):
        assert damage(p) is None
        assert set(json.loads((p/"manifest.json").read_text())) == {"model.safetensors", "trainer.pt"}
    s = json.loads((run/"summary.json").read_text())
    check_figures(s, "exact" if recipe == "quick-ar" else "bound")
    assert s["steps"] == s["planned_steps"] == STEPS and s["tokens"] == STEPS*16*64
    assert s["weights"] == "last" and s["name"] == recipe
    assert (run/"loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert f"{s['bits_per_byte']['value']:.3f}" in (run/"report.md").read_text(encoding="utf-8")
    assert "__DATA__" not in (run/"denoising.html").read_text(encoding="utf-8")
    samples = read_jsonl(run/"samples.jsonl")
    assert {r["step"] for r in samples} == {HALF, STEPS}
    assert all({"text", "prompt", "seed", "sampler", "steps"} <= set(r) for r in samples)
    assert all(r["text"].startswith(r["prompt"]) for r in samples if "[MASK" not in r["prompt"])

@pytest.mark.parametrize("recipe", RECIPES)
def test_result_of_training_on_stdout(quick_home, recipe):
    status, out, err = quick_home[1][recipe, "unbroken"]
    assert "bits/byte" in out and "report.md" in out and "training" in err and "Traceback" not in err

@pytest.mark.parametrize("recipe", RECIPES)
def test_sample_json(quick_home, recipe):
    steps = [] if recipe == "quick-ar" else ["--steps", 8]
    status, out, err = run_dlm(quick_home[0], "sample", recipe, "--json", "--prompt", "The state of the Union",
                               "-n", 3, *steps, "--seed", 5)
    assert status == 0, err
    samples = json.loads(out)
    assert len(samples) == 3 == len({r["text"] for r in samples}) and not err
    for r in samples:
        assert set(r) == {"text", "prompt", "seed", "sampler", "steps"} and r["seed"] == 5
        assert r["text"].startswith("The state of the Union")

def test_sample_by_name_folder_or_weights(trained, dlm, tmp_path):
    "A run is found by its name, its folder or its weights, and a text does not depend on how many are asked for"
    run = trained/"checkpoints"/"tiny"
    asked = (("tiny", 1), (run, 1), (run/"model.safetensors", 2), ("tiny", 20))
    texts = [json.loads(dlm("sample", r, "--json", "-n", n)[1])[0]["text"] for r, n in asked]
    assert len(set(texts)) == 1

def test_infill_json(trained, dlm):
    status, out, err = dlm("sample", "tiny", "--json", "--infill", "The river [MASK:4] the sea.", "-n", 2)
    for r in json.loads(out): assert r["text"].startswith("The river ") and r["text"].endswith(" the sea.")

@pytest.mark.parametrize("recipe", RECIPES)
def test_eval_json(quick_home, recipe, book):
    home = quick_home[0]
    draws = [] if recipe == "quick-ar" else ["--draws", 2]
    status, out, err = run_dlm(home, "eval", recipe, "--json", *draws, "--max-tokens", 16384)
    assert status == 0, err
    s, summary = json.loads(out), json.loads((home/"checkpoints"/recipe/"summary.json").read_text())
    check_figures(s, "exact" if recipe == "quick-ar" else "bound")
    # `eval` repeats the report's figure
    assert s["bits_per_byte"]["value"] == pytest.approx(summary["bits_per_byte"]["value"], rel=1e-3)
    status, out, err = run_dlm(home, "eval", recipe, "--json", *["--draws", 1]*(recipe != "quick-ar"), "--file", book)
    assert status == 0 and json.loads(out)["bytes_scored"] == book.stat().st_size

def test_runs_json(quick_home):
    status, out, err = run_dlm(quick_home[0], "runs", "--json")
    rows = {r["name"]: r for r in json.loads(out)}
    assert status == 0 and not err and set(RECIPES) <= set(rows) and rows["quick"]["steps"] == STEPS

def test_train_json(dlm, recipe):
    status, out, err = dlm("train", "--config", recipe, "--json", "--trainer.steps", 1)
    assert status == 0 and json.loads(out)["steps"] == 1

def test_json_of_a_process(trained, dlm_process):
    "Nothing but JSON reaches the stdout of a real process"
    status, out, err = dlm_process("eval", "tiny", "--json", "--draws", 1)
    assert status == 0 and json.loads(out)["name"] == "tiny", err

def test_doctor_json(dlm, monkeypatch):
    "However busy this machine is, the training learns; and one that is not given the time is told so"
    status, out, err = dlm("doctor", "--json")
    s = json.loads(out)
    assert status == 0 and s["ok"] and s["training"]["ok"] and s["packages"]["torch"] and "Traceback" not in err
    from diffusion_lm import doctor
    check = doctor.training_check
    monkeypatch.setattr(doctor, "training_check", lambda *a: check(*a, seconds=0))
    status, out, _ = dlm("doctor")
    assert status == 1 and "DOES NOT LEARN" in out and " in 1 steps" in out
