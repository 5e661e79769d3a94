"""SIGKILL, which nobody can catch, at random moments of `prepare`, `train`, `export` and `chat`: what was being written
is whole or absent, nothing that was there is lost, and the next call goes on as if nothing had happened. Half of the
kills come before a random file operation of the process, so that they fall between two of them; the other half come
after a random time, so that they fall within one."""
import io
import json
import os
import shutil
import signal
import sys
import time

import pytest

from conftest import posix, same_run, tree
from diffusion_lm import cli, files
from diffusion_lm.core import rng
from diffusion_lm.deploy.chat import load_talk
from diffusion_lm.files import damage, digest
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.text.store import TokenStore
from diffusion_lm.training.checkpoint import steps_of

pytestmark = posix
KILLS = [int(os.environ.get("DLM_KILLS", 4)), pytest.param(25, marks=pytest.mark.slow)] # of each of the four
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"}

def dlm_fork(root, *args, die_at=None, typed=""):
    """`dlm` in a copy of this process, which kills itself before file operation number `die_at` below `root`:
    (process, file with the number of operations)"""
    count = root.parent/"count"
    pid = os.fork()
    if pid: return pid, count
    status, seen = 1, [0]
    def hook(event, given):
        path = given[0] if event in FILE_EVENTS else None
        if not isinstance(path, (str, bytes, os.PathLike)) or str(root) not in os.fsdecode(path): return
        seen[0] += 1
        if seen[0] == die_at: os.kill(os.getpid(), signal.SIGKILL)
    try:
        for fd in (1, 2): os.dup2(os.open(root.parent/f"log{fd}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        sys.stdin, sys.stdout, sys.stderr = io.StringIO(typed), open(1, "w", closefd=False), open(2, "w", closefd=False)
        sys.addaudithook(hook)
        status = cli.main([str(a) for a in args])
        sys.stdout.flush()
        sys.stderr.flush()
        n = seen[0]
        count.write_text(str(n))
    finally: os._exit(status)

class Killer:
    "Runs `dlm` once whole, then kills it at random"
    def __init__(self, root, name, kills):
        self.root, self.name, self.left, self.total = root, name, kills, kills
        self.g = rng("kill at random", name, kills)

    def whole(self, *args, **kw):
        "To its end"
        start = time.monotonic()
        pid, count = dlm_fork(self.root, *args, **kw)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, (self.root.parent/"log2").read_text()
        return int(count.read_text()), time.monotonic() - start

    def measure(self, *args, **kw): self.events, self.seconds = self.whole(*args, **kw)

    def kill(self, *args, **kw):
        "Once; False if it was faster"
        by_event = self.left % 2
        pid, _ = dlm_fork(self.root, *args, die_at=int(self.g.integers(1, self.events + 1)) if by_event else None, **kw)
        if not by_event:
            time.sleep(self.seconds*self.g.uniform(.02, 1))
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL), (self.root.parent/"log2").read_text()
        if status: self.left -= 1
        return status != 0

def leftovers(folder): return [p for p in tree(folder) if p.split("/")[-1].endswith((".tmp", ".lock", ".old"))]

@pytest.mark.parametrize("kills", KILLS)
def test_prepare(home, book, kills):
    args, cache = ["prepare", "--data.path", book, "--tokenizer.vocab_size", 300], home/"data"/"cache"
    k = Killer(home, "prepare", kills)
    k.measure(*args)
    want = tree(cache)
    while k.left:
        shutil.rmtree(home)
        k.kill(*args)
        for store in cache.glob("tokens-*"): TokenStore(store) # whole
        k.whole(*args)
        # an archive holds its date
        assert {p: d for p, d in tree(cache).items() if not p.endswith((".lock", "docs.npz"))} == {p: d for p,
            d in want.items() if not p.endswith("docs.npz")}
        assert not [p for p in leftovers(cache) if not p.endswith(".lock")]

@pytest.mark.parametrize("kills", KILLS)
def test_train(home, recipe, tiny_home, kills):
    "Killed, resumed, killed again; and where it had ended, overwritten, with notes of somebody in the folder"
    k, run, unbroken = Killer(home, "train", kills), home/"checkpoints"/"tiny", tiny_home/"checkpoints"/"tiny"
    begin = ["train", "--config", recipe]
    k.measure(*begin)
    same_run(unbroken, run)
    (run/"notes.txt").write_text("mine")
    def begun(): return (run/"config.yaml").exists() and not (run/".emptied").exists()
    overwrite, ended = True, 0
    while k.left:
        if overwrite: killed = k.kill(*begin, "--overwrite")
        else: killed = k.kill("train", "--name", "tiny", "--resume")
        assert (run/"notes.txt").read_text() == "mine"
        if begun(): # while a run is being emptied, a checkpoint of it may be half gone
            for p in steps_of(run)[-1:]: assert damage(p) is None
        if killed: overwrite = not begun()
        else:
            same_run(unbroken, run)
            overwrite, ended = True, ended + 1
    k.whole(*(["train", "--name", "tiny", "--resume"] if begun() else begin))
    same_run(unbroken, run)
    assert not leftovers(home/"checkpoints"), leftovers(home/"checkpoints")

@pytest.mark.parametrize("kills", KILLS)
def test_export(trained, tmp_path, monkeypatch, kills):
    "In a folder with a program of somebody's; tracing, which writes nothing, is left out"
    from diffusion_lm.deploy import export
    pytest.importorskip("onnxscript")
    def package(model, folder):
        for i in range(3): (folder/f"graph{i}.onnx").write_bytes(os.urandom(8)*20_000) # other bytes at each export
        return {"files": {"fp32": {"model": "graph0.onnx"}}}
    monkeypatch.setattr(export, "_torch_package", package)
    out = trained/"out"
    args, k = ["export", "tiny", "--format", "torch", "--out", out], Killer(trained, "export", kills)
    k.measure(*args)
    fresh = False
    while k.left:
        if not fresh: (out/"app.py").write_text("mine")
        k.kill(*args)
        assert fresh or (out/"app.py").read_text() == "mine"
        if (out/"export.json").exists():
            about = json.loads((out/"export.json").read_text())
            assert about.get("unfinished") or all(digest(out/n) == d for n, d in about["digests"].items())
        else: assert fresh
        k.whole(*args)
        assert not leftovers(out) and not leftovers(trained/"checkpoints")
        assert not json.loads((out/"export.json").read_text()).get("unfinished")
        fresh = k.left % 3 == 0
        if fresh: shutil.rmtree(out) # also where there was none

def refill(out, die_at):
    "`refill_folder` in a copy of this process, which dies as it is about to sync for the `die_at`-th time: its status"
    pid, seen = os.fork(), [0]
    if pid: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    sync = files._fsync
    def dying(path):
        seen[0] += 1
        if seen[0] == die_at: os._exit(9)
        sync(path)
    files._fsync = dying
    def fill(folder):
        (folder/"graph").write_text("a graph")
        files.write_json(folder/"index.json", {"digests": {"graph": digest(folder/"graph")}})
    try: files.refill_folder(out, fill, "index.json")
    finally: os._exit(0)

def test_refilled_folder_keeps_nothing_of_a_killed_call(tmp_path):
    status, die_at = 9, 0
    while status:
        status, die_at = refill(tmp_path/"out", die_at + 1), die_at + 1
        assert refill(tmp_path/"out", None) == 0
        assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["graph", "index.json"]
    assert die_at > 5

@pytest.mark.parametrize("kills", KILLS)
def test_chat(trained, kills):
    "The session is a talk of so many whole turns, and goes on"
    file, lm = trained/"talk", DiffusionLM.from_run("tiny")
    args, typed = ["chat", "tiny", "--session", file, "--steps", 2, "--length", 6], "the river\nthe sea\nthe road\n"
    k = Killer(trained, "chat", kills)
    k.measure(*args, typed=typed)
    whole = load_talk(lm, file)[1].turns
    file.unlink()
    while k.left:
        k.kill(*args, typed=typed)
        turns = load_talk(lm, file)[1].turns if file.exists() else ()
        assert turns == whole[:len(turns)]
        k.whole(*args, typed="a last word\n")
        assert load_talk(lm, file)[1].turns[:-1] == turns and not leftovers(trained)
        file.unlink()
