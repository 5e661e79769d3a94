"""A run that is stopped, interrupted or killed and then resumed is the run that was never interrupted; and what a finished run leaves."""
import json, os, re, shutil, signal, threading, time
from pathlib import Path

import pytest
from tqdm import tqdm

from conftest import end_dlm, run_dlm, start_dlm, tree
from diffusion_lm import cli
from diffusion_lm.core import damage, read_jsonl, rng
from diffusion_lm.trainer import steps_of

RECIPES = ["quick", "quick-ar"]

@pytest.fixture(scope="session")
def quick_home(tmp_path_factory):
    """Both packaged recipes in processes of their own, two at a time: unbroken as `quick`, and as `quick-part` stopped at step 30
    and then resumed. The home, and what each process returned; for each recipe also the checkpoints that it left when it stopped"""
    home, results = tmp_path_factory.mktemp("quick")/"home", {}
    def start(recipe, kind):
        name = recipe if kind == "unbroken" else recipe + "-part"
        return start_dlm(home, "train", "--name", name, *(["--resume"] if kind == "resumed" else ["--config", recipe]), *(["--trainer.stop_at", 30] if kind == "stopped" else []))
    home.mkdir()
    for jobs in ([("quick", "unbroken")], [("quick", "stopped"), ("quick-ar", "unbroken")], [("quick", "resumed"), ("quick-ar", "stopped")], [("quick-ar", "resumed")]):
        for job, process in [(job, start(*job)) for job in jobs]:
            results[job] = end_dlm(process)
            if job[1] == "stopped": results[job[0]] = [p.name for p in steps_of(home/"checkpoints"/f"{job[0]}-part")]
    return home, results

def losses(run): return [(r["step"], r.get("loss"), r.get("grad_norm"), r.get("validation")) for r in read_jsonl(run/"log.jsonl")]

def same_run(a, b):
    "Same losses in the log, same weights, to the last bit"
    assert losses(a) == losses(b) and len(losses(a)) > 3
    assert (a/"model.safetensors").read_bytes() == (b/"model.safetensors").read_bytes()

@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_and_resumed_is_unbroken(quick_home, recipe):
    home, results = quick_home
    for kind in ("unbroken", "stopped", "resumed"): assert results[recipe, kind][0] == 0, results[recipe, kind]
    assert results[recipe] == ["step-000030"] and "step-000030" in results[recipe, "resumed"][2] # where it stopped, and went on
    a, b = (home/"checkpoints"/n for n in (recipe, f"{recipe}-part"))
    same_run(a, b)
    drop = lambda s: {k: v for k, v in s.items() if not re.search("second|memory|^name$", k)}
    assert drop(json.loads((a/"summary.json").read_text())) == drop(json.loads((b/"summary.json").read_text()))
    assert (a/"samples.jsonl").read_text() == (b/"samples.jsonl").read_text()

# ---- interruptions of a process ----

def interrupt(home, name, sig, ready, tmp_path):
    "Train `quick`, send `sig` once `ready(run)`; (status, stderr). It samples at every step, to take long enough for that"
    p = start_dlm(home, "train", "--config", "quick", "--name", name, "--trainer.sample_every", 1, "--trainer.save_every", 10,
                  "--samples.prompts", '[""]', "--samples.templates", "[]", log=tmp_path/"log")
    run, deadline = home/"checkpoints"/name, time.monotonic() + 240
    try:
        while not ready(run) and p.poll() is None and time.monotonic() < deadline: time.sleep(.01)
        p.send_signal(sig)
        return p.wait(240), (tmp_path/"log.err").read_text(encoding="utf-8")
    finally: p.kill(); p.wait()

def logged(step): return lambda run: (run/"log.jsonl").exists() and any(r["step"] >= step for r in read_jsonl(run/"log.jsonl"))

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

@posix
def test_interrupted(quick_home, tmp_path):
    "It finishes its step, saves, says how to go on"
    home, _ = quick_home
    status, err = interrupt(home, "interrupted", signal.SIGINT, logged(10), tmp_path)
    assert status == 130 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("dlm: ") and "dlm train --name interrupted --resume" in err.splitlines()[-1]
    run = home/"checkpoints"/"interrupted"
    assert 10 <= int(steps_of(run)[-1].name[5:]) < 60 and damage(steps_of(run)[-1]) is None
    status, out, err = run_dlm(home, "train", "--name", "interrupted", "--resume", "--trainer.sample_every", 30)
    assert status == 0, err
    same_run(home/"checkpoints"/"quick", run)

@posix
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_signals(dlm, home, recipe, tiny_home, monkeypatch, tmp_path, sig, times):
    "The first signal ends the run after its step; a second one at once, and then the last checkpoint is what remains"
    from diffusion_lm import trainer
    train_step = trainer.Learner.train_step
    def step(learn):
        train_step(learn)
        if learn.step == 12: # that is, in the thirteenth step
            for _ in range(times): os.kill(os.getpid(), sig)
    with monkeypatch.context() as m:
        m.setattr(trainer.Learner, "train_step", step)
        status, out, err = dlm("train", "--config", recipe, "--out", tmp_path/"mine")
    run = tmp_path/"mine"/"tiny"
    assert status == 130 and "Traceback" not in err and out == ""
    last = err.splitlines()[-1]
    assert last.startswith("dlm: ") and "--resume" in last and str(tmp_path/"mine") in last # the command as it must be typed
    assert steps_of(run)[-1].name == {1: "step-000013", 2: "step-000008"}[times]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler # put back
    status, out, err = dlm("train", "--name", "tiny", "--resume", "--out", tmp_path/"mine")
    assert status == 0, err
    same_run(tiny_home/"checkpoints"/"tiny", run)

def test_interrupted_while_it_is_scored(dlm, home, recipe, tiny_home, monkeypatch):
    "All steps are done and saved; the report is not yet written"
    with monkeypatch.context() as m:
        def stop(*args, **kw): raise KeyboardInterrupt
        m.setattr("diffusion_lm.run.test_figures", stop)
        status, out, err = dlm("train", "--config", recipe)
    assert status == 130 and "dlm train --name tiny --resume" in err.splitlines()[-1]
    status, out, err = dlm("train", "--name", "tiny", "--resume")
    assert status == 0 and (home/"checkpoints"/"tiny"/"report.md").exists(), err
    same_run(tiny_home/"checkpoints"/"tiny", home/"checkpoints"/"tiny")

@posix
def test_killed(quick_home, tmp_path):
    "Nobody can catch SIGKILL: the run goes on from its last checkpoint, and steps after it are trained and logged again, once"
    home, _ = quick_home
    status, err = interrupt(home, "killed", signal.SIGKILL, lambda run: (run/"step-000010").exists(), tmp_path)
    assert status == -signal.SIGKILL
    status, out, err = run_dlm(home, "train", "--name", "killed", "--resume", "--trainer.sample_every", 30)
    assert status == 0, err
    same_run(home/"checkpoints"/"quick", home/"checkpoints"/"killed")

def forked(home, *args):
    "`dlm` in a copy of this process, which has imported everything already: the copy's number"
    if pid := os.fork(): return pid
    code = 1
    tqdm.set_lock(threading.RLock()) # the lock that it came with is shared: killed while it holds that, the copy would stop all others
    try: code = run_dlm(home, *args)[0]
    finally: os._exit(code)

@posix
@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(home, recipe, kills):
    """One run, killed again and again wherever it happens to be (reading the text, in a step, writing a checkpoint or the report),
    and resumed each time: the same losses and weights as without, to the last bit"""
    args = ["--config", recipe, "--trainer.steps", 160, "--trainer.save_every", 2, "--trainer.sample_every", 500, "--trainer.eval_every", 50]
    begin = time.monotonic()
    _, status = os.waitpid(forked(home, "train", *args, "--name", "whole"), 0)
    assert status == 0
    span, g, run, killed, at = time.monotonic() - begin, rng("kill", kills), home/"checkpoints"/"killed", 0, []
    while killed < kills:
        started = (run/"config.yaml").exists()
        pid = forked(home, "train", *(["--name", "killed", "--resume"] if started else [*args, "--name", "killed"]))
        time.sleep(span*g.uniform(.02, .5))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status): # it was faster: once more from the beginning
            assert os.WEXITSTATUS(status) == 0
            shutil.rmtree(run)
            continue
        killed += 1
        at.append(len(steps_of(run)) and int(steps_of(run)[-1].name[5:]))
        for p in steps_of(run)[-1:]: assert damage(p) is None
    print("checkpoints at the kills:", at)
    assert len(set(at)) > kills//4 # they hit the run in many places
    status, out, err = run_dlm(home, "train", *(["--name", "killed", "--resume"] if (run/"config.yaml").exists() else [*args, "--name", "killed"]))
    assert status == 0, err
    same_run(home/"checkpoints"/"whole", run)

@posix
def test_interrupted_before_training(home, tmp_path):
    "While it is still importing or reading the text there is nothing to resume: it just ends"
    p = start_dlm(home, "train", "--config", "quick", log=tmp_path/"log")
    while "preparing" not in (tmp_path/"log.err").read_text(encoding="utf-8") and p.poll() is None: time.sleep(.01)
    p.send_signal(signal.SIGINT)
    assert p.wait(240) == 130
    err = (tmp_path/"log.err").read_text(encoding="utf-8")
    assert "Traceback" not in err and err.splitlines()[-1].startswith("dlm: ")
    assert not (home/"checkpoints"/"quick"/"model.safetensors").exists() and not [f for f in tree(home) if f.endswith(".tmp")]

# ---- damaged checkpoints ----

def cut(p): p.write_bytes(p.read_bytes()[:-7])
def flip(p): b = bytearray(p.read_bytes()); b[len(b)//2] ^= 16; p.write_bytes(b)

@pytest.mark.parametrize("file, harm", [("model.safetensors", cut), ("model.safetensors", flip), ("trainer.pt", flip), ("trainer.pt", Path.unlink),
                                        ("manifest.json", cut), ("manifest.json", Path.unlink), ("manifest.json", lambda p: p.write_text("[]")),
                                        ("manifest.json", lambda p: p.write_text('{"trainer.pt": {"sise": 1}}'))])
def test_damaged_checkpoint_is_passed_over(dlm, trained, tiny_home, recipe, file, harm):
    run = trained/"checkpoints"/"tiny"
    newest = steps_of(run)[-1]
    assert newest.name == "step-000024"
    harm(newest/file)
    status, out, err = dlm("train", "--name", "tiny", "--resume")
    assert status == 0, err
    notes = err.splitlines()
    assert any("step-000024 is passed over" in line for line in notes) and any("resuming 'tiny' from step-000016" in line for line in notes)
    same_run(tiny_home/"checkpoints"/"tiny", run)
    assert damage(newest) is None # made anew

def test_no_whole_checkpoint(refused, trained):
    run = trained/"checkpoints"/"tiny"
    for p in steps_of(run): flip(p/"trainer.pt")
    line = refused("train", "--name", "tiny", "--resume", notes=["preparing "])
    assert "no whole checkpoint" in line and "step-000024" in line

def test_half_made_checkpoint_does_not_matter(dlm, trained, tiny_home):
    "What a killed process left beside the checkpoints is no checkpoint, and the next save clears it"
    run = trained/"checkpoints"/"tiny"
    shutil.rmtree(run/"step-000024")
    (run/".step-000024.tmp").mkdir()
    (run/".step-000024.tmp"/"model.safetensors").write_bytes(b"half")
    (run/".model.safetensors.123.tmp").write_bytes(b"half")
    (run/"log.jsonl").write_text((run/"log.jsonl").read_text() + '{"step": 24, "lo') # and the log may end in half a line
    status, out, err = dlm("train", "--name", "tiny", "--resume")
    assert status == 0, err
    same_run(tiny_home/"checkpoints"/"tiny", run)
    assert not (run/".step-000024.tmp").exists()

def test_resuming_a_finished_run(dlm, trained, tiny_home):
    "There is nothing left to train, and nothing changes but the report's dates"
    status, out, err = dlm("train", "--name", "tiny", "--resume")
    assert status == 0, err
    a, b = tiny_home/"checkpoints"/"tiny", trained/"checkpoints"/"tiny"
    same_run(a, b)
    assert (a/"samples.jsonl").read_text() == (b/"samples.jsonl").read_text()

def test_ema_resumes_too(dlm, home, recipe):
    args = ["train", "--config", recipe, "--trainer.ema", .8]
    assert dlm(*args, "--name", "a")[0] == 0
    assert dlm(*args, "--name", "b", "--trainer.stop_at", 13)[0] == 0
    status, out, err = dlm("train", "--name", "b", "--resume")
    assert status == 0, err
    same_run(home/"checkpoints"/"a", home/"checkpoints"/"b")
    assert json.loads((home/"checkpoints"/"a"/"summary.json").read_text())["weights"] == "last ema"

@pytest.mark.parametrize("stop_at", [13, 16])
def test_thoughts_resume_too(dlm, home, recipe, stop_at):
    "They are carried from step to step, so a checkpoint holds them"
    args = ["train", "--config", recipe, "--objective", "block", "--model.block", 4, "--model.thought.dims", "[2,2]", "--model.thought.depth", 3]
    assert dlm(*args, "--name", "a")[0] == 0
    assert dlm(*args, "--name", "b", "--trainer.stop_at", stop_at)[0] == 0
    status, out, err = dlm("train", "--name", "b", "--resume")
    assert status == 0, err
    same_run(home/"checkpoints"/"a", home/"checkpoints"/"b")

# ---- what a run leaves ----

FILES = {"config.yaml", "tokenizer.json", "model.safetensors", "log.jsonl", "summary.json", "samples.jsonl", "loss.png", "report.md", "denoising.html"}
ESTIMATE = {"value", "low", "high", "n", "unit", "kind", "by"}

def check_figures(s, kind):
    for k, unit in dict(bits_per_byte="bits/byte", nats_per_token="nats/token", perplexity="perplexity").items():
        e = s[k]
        assert ESTIMATE <= set(e) and e["unit"] == unit and e["kind"] == kind and e["low"] <= e["value"] <= e["high"] and e["n"] > 0
    assert {"parameters", "tokens", "seconds", "tokens_per_second", "device", "dtype"} <= set(s)

@pytest.mark.parametrize("recipe", RECIPES)
def test_run_folder(quick_home, recipe):
    run = quick_home[0]/"checkpoints"/recipe
    assert {p.name for p in run.iterdir()} == FILES | {"step-000030", "step-000060"} # no leftovers
    for p in steps_of(run): assert damage(p) is None and set(json.loads((p/"manifest.json").read_text())) == {"model.safetensors", "trainer.pt"}
    s = json.loads((run/"summary.json").read_text())
    check_figures(s, "exact" if recipe == "quick-ar" else "bound")
    assert s["steps"] == s["planned_steps"] == 60 and s["tokens"] == 60*16*64 and s["weights"] == "last" and s["name"] == recipe
    assert (run/"loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert f"{s['bits_per_byte']['value']:.3f}" in (run/"report.md").read_text(encoding="utf-8")
    assert "__DATA__" not in (run/"denoising.html").read_text(encoding="utf-8")
    samples = read_jsonl(run/"samples.jsonl")
    assert {r["step"] for r in samples} == {30, 60} and all({"text", "prompt", "seed", "sampler", "steps"} <= set(r) for r in samples)
    assert all(r["text"].startswith(r["prompt"]) for r in samples if "[MASK" not in r["prompt"])

@pytest.mark.parametrize("recipe", RECIPES)
def test_result_of_training_on_stdout(quick_home, recipe):
    status, out, err = quick_home[1][recipe, "unbroken"]
    assert "bits/byte" in out and "report.md" in out and "training" in err and "Traceback" not in err

@pytest.mark.parametrize("recipe", RECIPES)
def test_sample_json(quick_home, recipe):
    status, out, err = run_dlm(quick_home[0], "sample", recipe, "--json", "--prompt", "The state of the Union", "-n", 3, "--steps", 8, "--seed", 5)
    assert status == 0, err
    samples = json.loads(out)
    assert len(samples) == 3 == len({r["text"] for r in samples}) and not err
    for r in samples:
        assert set(r) == {"text", "prompt", "seed", "sampler", "steps"} and r["seed"] == 5
        assert r["text"].startswith("The state of the Union")

def test_sample_by_name_folder_or_weights(trained, dlm, tmp_path):
    "A run is found by its name, its folder or its weights, and a text does not depend on how many are asked for"
    run = trained/"checkpoints"/"tiny"
    texts = [json.loads(dlm("sample", r, "--json", "-n", n)[1])[0]["text"] for r, n in (("tiny", 1), (run, 1), (run/"model.safetensors", 2), ("tiny", 20))]
    assert len(set(texts)) == 1

def test_infill_json(trained, dlm):
    status, out, err = dlm("sample", "tiny", "--json", "--infill", "The river [MASK:4] the sea.", "-n", 2)
    for r in json.loads(out): assert r["text"].startswith("The river ") and r["text"].endswith(" the sea.")

@pytest.mark.parametrize("recipe", RECIPES)
def test_eval_json(quick_home, recipe, book):
    home = quick_home[0]
    status, out, err = run_dlm(home, "eval", recipe, "--json", "--draws", 2, "--max-tokens", 16384)
    assert status == 0, err
    s, summary = json.loads(out), json.loads((home/"checkpoints"/recipe/"summary.json").read_text())
    check_figures(s, "exact" if recipe == "quick-ar" else "bound")
    assert s["bits_per_byte"]["value"] == pytest.approx(summary["bits_per_byte"]["value"], rel=1e-3) # `eval` repeats the report's figure
    status, out, err = run_dlm(home, "eval", recipe, "--json", "--draws", 1, "--file", book)
    assert status == 0 and json.loads(out)["bytes_scored"] == book.stat().st_size

def test_runs_json(quick_home):
    status, out, err = run_dlm(quick_home[0], "runs", "--json")
    rows = {r["name"]: r for r in json.loads(out)}
    assert status == 0 and not err and set(RECIPES) <= set(rows) and rows["quick"]["steps"] == 60

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
    check = cli.training_check
    monkeypatch.setattr(cli, "training_check", lambda *a: check(*a, seconds=0))
    status, out, _ = dlm("doctor")
    assert status == 1 and "DOES NOT LEARN" in out and " in 1 steps" in out
