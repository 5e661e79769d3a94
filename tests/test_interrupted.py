"""Wherever a run is stopped, and whatever happens to its checkpoints, it goes on as if unbroken: small runs, in this
process and in copies of it."""
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from conftest import posix, run_dlm, same_run, start_dlm, tree
from diffusion_lm.core import rng
from diffusion_lm.files import damage
from diffusion_lm.training.checkpoint import steps_of


@posix
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_signals(dlm, home, recipe, tiny_home, monkeypatch, tmp_path, sig, times):
    "The first signal ends the run after its step; a second one at once, and then the last checkpoint is what remains"
    from diffusion_lm.training import checkpoint
    train_step = checkpoint.Learner.train_step
    def step(learn):
        train_step(learn)
        if learn.step == 12: # that is, in the thirteenth step
            for _ in range(times): os.kill(os.getpid(), sig)
    with monkeypatch.context() as m:
        m.setattr(checkpoint.Learner, "train_step", step)
        status, out, err = dlm("train", "--config", recipe, "--out", tmp_path/"mine")
    run = tmp_path/"mine"/"tiny"
    assert status == 130 and "Traceback" not in err and out == ""
    last = err.splitlines()[-1]
    assert last.startswith("dlm: ")
    assert "--resume" in last and str(tmp_path/"mine") in last # the command as it must be typed
    assert steps_of(run)[-1].name == {1: "step-000013", 2: "step-000008"}[times]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler # put back
    status, out, err = dlm("train", "--name", "tiny", "--resume", "--out", tmp_path/"mine")
    assert status == 0, err
    same_run(tiny_home/"checkpoints"/"tiny", run)

def test_interrupted_while_it_is_scored(dlm, home, recipe, tiny_home, monkeypatch):
    "All steps are done and saved; the report is not yet written"
    with monkeypatch.context() as m:
        def stop(*args, **kw): raise KeyboardInterrupt
        m.setattr("diffusion_lm.training.run.test_figures", stop)
        status, out, err = dlm("train", "--config", recipe)
    assert status == 130 and "dlm train --name tiny --resume" in err.splitlines()[-1]
    status, out, err = dlm("train", "--name", "tiny", "--resume")
    assert status == 0 and (home/"checkpoints"/"tiny"/"report.md").exists(), err
    same_run(tiny_home/"checkpoints"/"tiny", home/"checkpoints"/"tiny")

def forked(home, *args):
    "`dlm` in a copy of this process, which has imported everything already: the copy's number"
    if pid := os.fork(): return pid
    code = 1
    # the lock that the copy came with is shared: killed while it holds that, the copy would stop all others
    tqdm.set_lock(threading.RLock())
    try: code = run_dlm(home, *args)[0]
    finally: os._exit(code)

@posix
@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(home, recipe, kills):
    """One run, killed again and again wherever it happens to be (reading the text, in a step, writing a checkpoint or
    the report), and resumed each time: the same losses and weights as without, to the last bit"""
    args = ["--config", recipe, "--trainer.steps", 160, "--trainer.save_every", 2, "--trainer.sample_every", 500,
            "--trainer.eval_every", 50]
    begin = time.monotonic()
    _, status = os.waitpid(forked(home, "train", *args, "--name", "whole"), 0)
    assert status == 0
    span, g, run, killed, at = time.monotonic() - begin, rng("kill", kills), home/"checkpoints"/"killed", 0, []
    while killed < kills or (len(set(at)) <= kills//4 and killed < 4*kills): # a slow start is hit often
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
    options = ["--resume"] if (run/"config.yaml").exists() else args
    status, out, err = run_dlm(home, "train", *options, "--name", "killed")
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
    assert not (home/"checkpoints"/"quick"/"model.safetensors").exists()
    assert not [f for f in tree(home) if f.endswith(".tmp")]

# ---- damaged checkpoints ----

def cut(p): p.write_bytes(p.read_bytes()[:-7])
def flip(p):
    b = bytearray(p.read_bytes())
    b[len(b)//2] ^= 16
    p.write_bytes(b)

@pytest.mark.parametrize("file, harm", [
    ("model.safetensors", cut),
    ("model.safetensors", flip),
    ("trainer.pt", flip),
    ("trainer.pt", Path.unlink),
    ("manifest.json", cut),
    ("manifest.json", Path.unlink),
    ("manifest.json", lambda p: p.write_text("[]")),
    ("manifest.json", lambda p: p.write_text('{"trainer.pt": {"sise": 1}}'))])
def test_damaged_checkpoint_is_passed_over(dlm, trained, tiny_home, recipe, file, harm):
    run = trained/"checkpoints"/"tiny"
    newest = steps_of(run)[-1]
    assert newest.name == "step-000024"
    harm(newest/file)
    status, out, err = dlm("train", "--name", "tiny", "--resume")
    assert status == 0, err
    notes = err.splitlines()
    assert any("step-000024 is passed over" in line for line in notes)
    assert any("resuming 'tiny' from step-000016" in line for line in notes)
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
    log = run/"log.jsonl"
    log.write_text(log.read_text() + '{"step": 24, "lo') # and the log may end in half a line
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
    args = ["train", "--config", recipe, "--objective", "block", "--model.block", 4, "--model.thought.dims", "[2,2]",
            "--model.thought.depth", 3]
    assert dlm(*args, "--name", "a")[0] == 0
    assert dlm(*args, "--name", "b", "--trainer.stop_at", stop_at)[0] == 0
    status, out, err = dlm("train", "--name", "b", "--resume")
    assert status == 0, err
    same_run(home/"checkpoints"/"a", home/"checkpoints"/"b")
