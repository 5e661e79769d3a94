"""A disk fills up during a run: one clear line, a whole last checkpoint, and it goes on once there is space."""
import errno
import os
import shutil
import subprocess

import pytest

from conftest import tree
from diffusion_lm import files
from diffusion_lm.files import damage
from diffusion_lm.training import callbacks, checkpoint
from diffusion_lm.training.checkpoint import steps_of
from diffusion_lm.weights import load_weights


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 1 MB"
    disk = tmp_path/"disk"
    disk.mkdir()
    if os.geteuid() or not shutil.which("mount"): pytest.skip("only root may mount a small disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)

def fill(disk, leave):
    "Fill a disk up, but for `leave` bytes"
    s = os.statvfs(disk)
    (disk/"ballast").write_bytes(b"x"*(s.f_bavail*s.f_frsize - leave))

def whole(run, step):
    "The checkpoint of `step` is there and undamaged, everything else is complete or marked as not"
    newest = steps_of(run)[-1]
    assert newest.name == f"step-{step:06d}" and damage(newest) is None
    load_weights(run/"model.safetensors")
    assert not [p for p in tree(run) if p.endswith(".tmp")], "leftovers"

def one_line(status, out, err):
    lines = err.splitlines()
    assert status == 2 and out == "" and "Traceback" not in err, err
    assert lines[-1].startswith("dlm: the disk is full") and "--resume" in lines[-1]
    assert sum(line.startswith("dlm: ") for line in lines) == 1

# so that one file or another does not fit
@pytest.mark.parametrize("leave", [0, 4096, 32_768, 65_536, 131_072, 196_608, 262_144])
def test_disk_fills_up(dlm, recipe, tiny_home, small_disk, leave):
    status, out, err = dlm("train", "--config", recipe, "--out", small_disk, "--trainer.stop_at", 8)
    run = small_disk/"tiny"
    whole(run, 8)
    fill(small_disk, leave)
    result = dlm("train", "--name", "tiny", "--out", small_disk, "--resume")
    if result[0] == 0: pytest.skip("that was space enough")
    one_line(*result)
    whole(run, int(steps_of(run)[-1].name[5:]))
    (small_disk/"ballast").unlink()
    status, out, err = dlm("train", "--name", "tiny", "--out", small_disk, "--resume")
    assert status == 0, err
    whole(run, 24)
    unbroken = tiny_home/"checkpoints"/"tiny"
    assert (run/"model.safetensors").read_bytes() == (unbroken/"model.safetensors").read_bytes()

def full(*args): raise OSError(errno.ENOSPC, "No space left on device")

@pytest.mark.parametrize("what", ["weights", "state", "manifest", "fsync", "log"])
def test_simulated(dlm, home, recipe, tiny_home, monkeypatch, what):
    "The same without a disk: the second checkpoint meets ENOSPC in one place or another"
    run = home/"checkpoints"/"tiny"
    def late(call):
        return lambda *a, **kw: (full() if (run/"step-000008").exists() else call(*a, **kw))
    with monkeypatch.context() as m:
        module, name = {"weights": (checkpoint, "save_weights"), "state": (checkpoint.torch, "save"),
                        "manifest": (files, "write_json"),
                        "fsync": (files, "_fsync"), "log": (callbacks, "append_jsonl")}[what]
        m.setattr(module, name, late(getattr(module, name)))
        one_line(*dlm("train", "--config", recipe))
    whole_or_none = steps_of(run)
    assert all(damage(p) is None for p in whole_or_none) and not [p for p in tree(run) if p.endswith(".tmp")]
    status, out, err = dlm("train", "--name", "tiny", "--resume")
    assert status == 0, err
    whole(run, 24)
    assert (run/"model.safetensors").read_bytes() == (tiny_home/"checkpoints"/"tiny"/"model.safetensors").read_bytes()

def test_full_before_the_first_checkpoint(dlm, home, recipe, tiny_home, monkeypatch):
    "There is nothing to resume from: the next attempt says so and begins at the first step"
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "commit_folder", full)
        one_line(*dlm("train", "--config", recipe))
    status, out, err = dlm("train", "--name", "tiny", "--resume")
    assert status == 0 and "no checkpoint yet: starting at the first step" in err, err
    run, unbroken = (h/"checkpoints"/"tiny" for h in (home, tiny_home))
    assert (run/"model.safetensors").read_bytes() == (unbroken/"model.safetensors").read_bytes()

@pytest.mark.parametrize("command", [["train"], ["eval", "tiny"]])
def test_full_while_preparing(dlm, trained, recipe, monkeypatch, command):
    "No half-built store stays behind"
    shutil.rmtree(trained/"data")
    args = [*command, *(["--config", recipe, "--name", "new"] if command == ["train"] else [])]
    with monkeypatch.context() as m:
        m.setattr("diffusion_lm.text.store._fsync", full)
        before = tree(trained/"checkpoints")
        status, out, err = dlm(*args)
    assert status == 2 and err.splitlines()[-1].startswith("dlm: the disk is full"), err
    assert tree(trained/"checkpoints") == before
    assert not list((trained/"data"/"cache").glob("*tokens-*"))
