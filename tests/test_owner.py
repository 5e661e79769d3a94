"""One process at a time writes a run, a store, an export or a talk; what others keep there stays; and one line says
what cannot be read or written."""
import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import time
from functools import partial

import pytest
import yaml

from conftest import posix, same_run, story
from diffusion_lm import cli, files
from diffusion_lm.core import UserError
from diffusion_lm.files import commit_folder, damage, digest, owner, read_jsonl, refill_folder, write_json
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.terminal import disk_error
from diffusion_lm.text import store
from diffusion_lm.text.corpus import Corpus, Document
from diffusion_lm.text.store import token_store
from diffusion_lm.text.tokenizer import train_tokenizer
from diffusion_lm.training.checkpoint import steps_of

# ---- one owner ----

def fork(work):
    "A copy of this process that does some work and ends: its number"
    pid = os.fork()
    if pid: return pid
    status = 1
    try:
        for fd in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        status = work() or 0
    finally: os._exit(status)

@contextlib.contextmanager
def elsewhere(path, what="it"):
    "Another process owns `path`"
    read, write = os.pipe()
    def work():
        with owner(path, what):
            os.write(write, b"x")
            time.sleep(60)
    pid = fork(work)
    assert os.read(read, 1) == b"x"
    try: yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)

@posix
@pytest.mark.parametrize("args", [["--config", "RECIPE"], ["--name", "tiny", "--resume"],
                                  ["--config", "RECIPE", "--overwrite"]], ids=lambda a: a[-1])
def test_a_run_has_one_owner(refused, trained, recipe, args):
    "Who comes second is told who is there; and a kill frees the run"
    run = trained/"checkpoints"/"tiny"
    args = [recipe if a == "RECIPE" else a for a in args]
    with elsewhere(run) as pid:
        assert f"run 'tiny' is being written by process {pid} since 2" in refused("train", *args)
    assert (run.parent/".tiny.lock").exists() # the killed process has left its file, and that is in nobody's way
    with owner(run, "it") as alone: assert alone
    assert not (run.parent/".tiny.lock").exists()

@posix
def test_two_trainings_of_one_name(home, recipe):
    "Started together: one trains, the other ends with status 2"
    def train(seed): return cli.main(["train", "--config", str(recipe), "--seed", str(seed)])
    pids = [fork(partial(train, seed)) for seed in (1, 2)]
    status = sorted(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids)
    assert status == [0, 2]
    steps = [r["step"] for r in read_jsonl(home/"checkpoints"/"tiny"/"log.jsonl") if "loss" in r]
    assert steps == sorted(set(steps)) and steps[-1] == 24

@posix
def test_an_export_and_a_talk_have_one_owner(trained, dlm, tmp_path):
    pytest.importorskip("onnxscript")
    for path, args in ((tmp_path/"out", ["export", "tiny", "--format", "torch", "--out", tmp_path/"out"]),
                       (tmp_path/"talk", ["chat", "tiny", "--session", tmp_path/"talk"])):
        with elsewhere(path) as pid: status, out, err = dlm(*args)
        assert status == 2 and f"is being written by process {pid}" in err.splitlines()[-1] and not path.exists(), err

@posix
def test_a_store_is_built_once(tmp_path, monkeypatch, capfd):
    "The second process waits, says so, and takes what the first has built"
    docs = [Document(f"d{i}", story(i, 300)) for i in range(12)]
    corpus, tok = Corpus("stories", docs, "f"), train_tokenizer([d.text for d in docs], vocab_size=300)
    build = store._build
    def slow(*args):
        (tmp_path/"begun").touch()
        time.sleep(.5)
        build(*args)
    monkeypatch.setattr(store, "_build", slow)
    pid = fork(lambda: token_store(corpus, tok, tmp_path/"cache") and None)
    while not (tmp_path/"begun").exists(): time.sleep(.01)
    monkeypatch.setattr(store, "_build", lambda *args: pytest.fail("built twice"))
    built = token_store(corpus, tok, tmp_path/"cache")
    assert os.waitpid(pid, 0)[1] == 0
    assert f"the token store of stories is being written by process {pid}" in capfd.readouterr().err
    assert len(built.tokens) and [p.name for p in (tmp_path/"cache").iterdir()] == [built.path.name]

@posix
def test_a_killed_store_is_cleared_away(tmp_path):
    docs = [Document(f"d{i}", story(i, 300)) for i in range(12)]
    corpus, tok = Corpus("stories", docs, "f"), train_tokenizer([d.text for d in docs], vocab_size=300)
    name = token_store(corpus, tok, tmp_path/"other").path.name
    (tmp_path/f".{name}.99999.tmp").mkdir()
    (tmp_path/f".{name}.99999.tmp"/"tokens.bin").write_bytes(b"half")
    (tmp_path/f".{name}.mine.tmp").mkdir() # not a name of ours
    token_store(corpus, tok, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".{name}.mine.tmp", "other", name]

def test_a_disk_without_locks(tmp_path, monkeypatch, capfd):
    "The work goes on, with a note"
    if os.name == "posix":
        import fcntl
        def flock(*a): raise OSError(errno.ENOLCK, "No locks available")
        monkeypatch.setattr(fcntl, "flock", flock)
    else: monkeypatch.setattr(files, "_lock", lambda fd: None)
    with owner(tmp_path/"mine", "run 'mine'") as alone: assert not alone
    assert "a disk without locks" in capfd.readouterr().err and not list(tmp_path.iterdir())

def test_a_lock_that_is_unlinked_is_no_lock(tmp_path):
    "The file that was opened may have been removed by its owner before it was locked: then it is opened anew"
    real, seen = files._lock, []
    def lock(fd):
        if not seen: os.unlink(tmp_path/".mine.lock")
        seen.append(os.fstat(fd).st_ino)
        return real(fd)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(files, "_lock", lock)
        with owner(tmp_path/"mine", "it"):
            assert len(seen) == 2 and (tmp_path/".mine.lock").stat().st_ino == seen[1]
            with pytest.raises(UserError, match="being written by process"):
                with owner(tmp_path/"mine", "it"): pass

def test_the_processes_of_one_training_are_one_owner(tmp_path, monkeypatch):
    with owner(tmp_path/"mine", "run 'mine'"):
        monkeypatch.setenv("RANK", "1")
        with owner(tmp_path/"mine", "run 'mine'") as alone: assert not alone

# ---- links, and files of others ----

@posix
def test_overwriting_a_run_behind_a_link(dlm, trained, recipe, tmp_path):
    "Its old checkpoints go, the link and what somebody else keeps there stay"
    run, disk = trained/"checkpoints"/"tiny", tmp_path/"disk"
    shutil.move(run, disk)
    run.symlink_to(disk)
    (disk/"notes.txt").write_text("mine")
    (disk/"plots").mkdir()
    (disk/"plots"/"a.txt").write_text("mine too")
    (disk/"step-000016"/"why.txt").write_text("a good one")
    (disk/"step-final").mkdir()
    (disk/"step-final"/"trainer.pt").write_text("a copy")
    (disk/".model.safetensors.999.tmp").write_text("half")
    status, out, err = dlm("train", "--config", recipe, "--overwrite", "--trainer.steps", 4)
    assert status == 0 and run.is_symlink(), err
    assert [p.name for p in steps_of(run)] == ["step-000004"] and not (disk/".model.safetensors.999.tmp").exists()
    for f in ("notes.txt", "plots/a.txt", "step-000016/why.txt", "step-final/trainer.pt"): assert (disk/f).exists(), f
    assert not (disk/"step-000016"/"trainer.pt").exists() and not (disk/"step-000024").exists()
    assert dlm("train", "--name", "tiny", "--resume")[0] == 0

@posix
def test_checkpoints_behind_links(dlm, trained, tiny_home, tmp_path):
    "The folder of all runs, and one checkpoint of a run, are elsewhere"
    shutil.move(trained/"checkpoints", tmp_path/"disk")
    (trained/"checkpoints").symlink_to(tmp_path/"disk")
    run = trained/"checkpoints"/"tiny"
    shutil.rmtree(run/"step-000024")
    shutil.move(run/"step-000016", tmp_path/"old")
    (run/"step-000016").symlink_to(tmp_path/"old")
    status, out, err = dlm("train", "--name", "tiny", "--resume", "--trainer.keep", 1)
    assert status == 0 and "from step-000016" in err, err
    same_run(tiny_home/"checkpoints"/"tiny", run)
    assert [p.name for p in steps_of(run)] == ["step-000024"] and not list((tmp_path/"old").iterdir())

@posix
@pytest.mark.parametrize("where", ["checkpoints", "checkpoints/tiny"])
def test_a_disk_that_is_not_there(refused, home, recipe, tmp_path, where):
    (home/where).parent.mkdir(parents=True, exist_ok=True)
    (home/where).symlink_to(tmp_path/"unmounted")
    assert "unmounted, which is not there" in refused("train", "--config", recipe)

def test_somebody_elses_folder_is_no_run(refused, trained, recipe):
    folder = trained/"checkpoints"/"other"
    folder.mkdir()
    for f in ("tokenizer.json", "model.safetensors"): (folder/f).write_text("of another library")
    assert "is no run" in refused("train", "--config", recipe, "--name", "other", "--overwrite")

def test_names_that_some_disks_confuse(refused, trained, recipe):
    assert "run 'tiny' exists" in refused("train", "--config", recipe, "--name", "Tiny")
    for name in ("con", "NUL", "lpt1.txt", "mine."):
        assert "cannot name a run" in refused("train", "--config", recipe, "--name", name)

def test_steps_are_in_order_of_their_numbers(tmp_path):
    for n in (999_999, 1_000_000, 5):
        commit_folder(tmp_path/f"step-{n:06d}", lambda d: (d/"trainer.pt").write_bytes(b"x"))
    assert [p.name for p in steps_of(tmp_path)] == ["step-000005", "step-999999", "step-1000000"]

def test_an_export_keeps_what_others_put_there(trained, dlm, tmp_path):
    "Also where its folder is a link; what the former export wrote and the new one does not is gone"
    pytest.importorskip("onnxscript")
    (tmp_path/"disk").mkdir()
    out = tmp_path/"out"
    if os.name == "posix": out.symlink_to(tmp_path/"disk")
    assert dlm("export", "tiny", "--out", out)[0] == 0
    (out/"app.py").write_text("mine")
    (out/"model.fp32.engine").write_text("built here")
    (out/"notes").mkdir()
    (out/"notes"/"n").write_text("mine")
    status, text, err = dlm("export", "tiny", "--out", out, "--format", "torch")
    assert status == 0 and out.is_symlink() == (os.name == "posix"), err
    assert sorted(p.name for p in out.iterdir()) == ["app.py", "export.json", "model.fp32.engine", "model.pt2",
                                                     "notes", "runtime.py", "tokenizer.json"]
    (out/"model.onnx").write_text("of somebody else")
    status, text, err = dlm("export", "tiny", "--out", out)
    assert status == 2 and "listed: model.onnx;" in err and (out/"model.onnx").read_text() == "of somebody else"
    assert (out/"model.pt2").exists()

class Killed(BaseException): pass

def dies_at(at, real=files._replace):
    "Renames that end in `Killed` before number `at`"
    calls = itertools.count(1)
    def replace(*args):
        if next(calls) == at: raise Killed
        real(*args)
    return replace

@pytest.mark.parametrize("at", range(1, 8))
def test_a_folder_that_is_refilled_is_whole_or_says_so(tmp_path, monkeypatch, at):
    "Killed before any of its renames: the files of others are there, and the next call ends what was begun"
    def fill(*names):
        def f(d):
            for n in names: (d/n).write_text(n + at_*" ")
            write_json(d/"export.json", {"digests": {n: digest(d/n) for n in names}})
        return f
    at_ = 0
    path = tmp_path/"out"
    refill_folder(path, fill("a", "b"), "export.json")
    (path/"mine").write_text("mine")
    at_ = 1
    with monkeypatch.context() as m:
        m.setattr(files, "_replace", dies_at(at))
        m.setattr(files.shutil, "rmtree", lambda *a, **kw: None) # a killed process clears nothing away
        with contextlib.suppress(Killed): refill_folder(path, fill("a", "c"), "export.json")
    about = json.loads((path/"export.json").read_text())
    whole = all((path/n).exists() and digest(path/n) == d for n, d in about["digests"].items())
    assert whole or about["unfinished"]
    refill_folder(path, fill("a", "c"), "export.json")
    assert sorted(p.name for p in path.iterdir()) == ["a", "c", "export.json", "mine"]
    assert (path/"mine").read_text() == "mine"

@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_folder_that_is_committed_again_is_never_lost(tmp_path, monkeypatch, at):
    "Killed between any two renames: the old folder or the new one is there, at once or once it is settled"
    path = tmp_path/"step-000008"
    commit_folder(path, lambda d: (d/"x").write_bytes(b"old"))
    with monkeypatch.context() as m:
        m.setattr(files, "_replace", dies_at(at))
        m.setattr(files, "settle", lambda p: None)
        m.setattr(files.shutil, "rmtree", lambda *a, **kw: None)
        with contextlib.suppress(Killed): commit_folder(path, lambda d: (d/"x").write_bytes(b"new"))
    files.settle(path)
    assert damage(path) is None and (path/"x").read_bytes() in (b"old", b"new")
    assert not (tmp_path/".step-000008.old").exists()
    commit_folder(path, lambda d: (d/"x").write_bytes(b"third"))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000008"] and (path/"x").read_bytes() == b"third"

# ---- settings ----

TWICE = [("trainer: {steps: 3}\nmodel: {preset: tiny}\ntrainer: {batch: 4}\n",
          "'trainer' is there twice, in lines 1 and 3"),
         ("trainer:\n  lr: 1e-4\n  lr: 2e-4\n", "'lr' is there twice, in lines 2 and 3"),
         ("base: &b {lr: 1, lr: 2}\ntrainer: *b\n", "'lr' is there twice")]

@pytest.mark.parametrize("text, why", TWICE)
def test_a_key_that_is_there_twice(refused, trained, recipe, tmp_path, text, why):
    "In a recipe, in a second one, in a section's file, in an option, in a run's own config.yaml"
    path = tmp_path/"r.yaml"
    path.write_text(text)
    assert why in refused("train", "--config", path)
    assert why in refused("train", "--config", recipe, "--config", path, "--name", "x")
    assert "twice" in refused("train", "--config", recipe, "--trainer", "{lr: 1, lr: 2}", "--name", "x")
    path.write_text("lr: 1\nlr: 2")
    assert "'lr' is there twice, in lines 1 and 2" in refused("train", "--config", recipe, "--trainer", path,
                                                              "--name", "x")
    config = trained/"checkpoints"/"tiny"/"config.yaml"
    config.write_text(config.read_text() + text)
    for args in (["eval"], ["sample"], ["train", "--resume", "--name"]):
        assert "is there twice" in refused(*args, "tiny")

def test_anchors_and_merge_keys_are_read(tmp_path):
    path = tmp_path/"r.yaml"
    path.write_text("model: &m {width: 16, heads: 2}\ntrainer: {<<: {steps: 3, batch: 4}, steps: 5}\n")
    cfg, _ = cli.parse_train(["--config", str(path)])
    assert (cfg.trainer.steps, cfg.trainer.batch, cfg.model.width) == (5, 4, 16)

@pytest.mark.parametrize("more, key", [({"future": {"a": 1}}, "future"), ({"model": {"depth": 3}}, "model.depth")])
def test_a_run_of_a_newer_version(refused, trained, more, key):
    "The key is named, and nobody calls the run damaged"
    path = trained/"checkpoints"/"tiny"/"config.yaml"
    d = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**d, **{k: {**d.get(k, {}), **v} for k, v in more.items()}}))
    for args in (["eval"], ["sample"], ["chat"], ["export"], ["train", "--resume", "--name"]):
        line = refused(*args, "tiny")
        assert f"has '{key}', which diffusion_lm" in line and "newer version" in line and "damaged" not in line
    with pytest.raises(UserError, match=key): DiffusionLM.from_run("tiny")

def test_a_trainer_of_a_newer_version(refused, trained, dlm):
    "What the model does not depend on keeps nobody from sampling"
    path = trained/"checkpoints"/"tiny"/"config.yaml"
    path.write_text(path.read_text().replace("trainer:\n", "trainer:\n  warp: 3\n"))
    assert "has 'trainer.warp'" in refused("eval", "tiny")
    assert "has 'trainer.warp'" in refused("train", "--resume", "--name", "tiny")
    assert dlm("sample", "tiny")[0] == 0

def test_the_sections_that_loading_knows_are_those_of_a_run():
    from diffusion_lm import lm
    from diffusion_lm.training.recipe import RunConfig
    assert set(lm._SECTIONS) == set(RunConfig.__dataclass_fields__)

def test_a_talk_and_an_export_of_a_newer_version(trained, tmp_path):
    from diffusion_lm.deploy.chat import Chat, load_talk
    from diffusion_lm.deploy.runtime import read_about
    from diffusion_lm.weights import read_weights, save_weights
    lm = DiffusionLM.from_run("tiny")
    chat = Chat(lm)
    chat.save(chat.begin(), tmp_path/"t")
    z, about = read_weights(tmp_path/"t")
    said = json.loads(about["talk"])
    for k in ("options", None):
        new = {**said, k: {**said[k], "mood": 1}} if k else {**said, "mood": 1}
        save_weights(z, tmp_path/"t", **about | {"talk": json.dumps(new)})
        with pytest.raises(UserError, match="has 'mood', which"): load_talk(lm, tmp_path/"t")
    write_json(tmp_path/"export.json", {"format": "diffusion_lm export", "version": 3})
    with pytest.raises(ValueError, match="version 3.*newer"): read_about(tmp_path)

# ---- disks ----

NUMBERS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your quota", errno.EFBIG: "ulimit -f",
           errno.EROFS: "read-only", errno.EIO: "input/output error"}

@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("wrapped", ["itself", "safetensors", "cause"])
def test_what_disks_say(dlm, home, recipe, monkeypatch, number, wrapped):
    "One line and status 2, however the error reaches us"
    def fails(*args, **kw):
        e = OSError(number, os.strerror(number))
        if wrapped == "itself": raise e
        if wrapped == "safetensors":
            raise Exception(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
        raise RuntimeError("[enforce fail at inline_container.cc:603]") from e
    monkeypatch.setattr("diffusion_lm.weights.save_file", fails)
    status, out, err = dlm("train", "--config", recipe, "--trainer.steps", 2)
    assert status == 2 and out == "" and "Traceback" not in err, err
    assert NUMBERS[number] in err.splitlines()[-1] and sum(line.startswith("dlm: ") for line in err.splitlines()) == 1

def test_disks_of_windows():
    e = OSError(errno.EINVAL, "There is not enough space on the disk")
    e.winerror = 112
    assert "the disk is full" in disk_error(e)
    assert disk_error(ValueError("no such thing")) is None
    assert disk_error(OSError(errno.ENOENT, "No such file")) is None

@posix
def test_fsync_where_it_is_picky(dlm, home, recipe, monkeypatch):
    "On Windows a descriptor must be open for writing, and on some disks no folder can be flushed: the run is written"
    import fcntl
    import stat
    real = os.fsync
    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode): raise OSError(errno.EINVAL, "Invalid argument")
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EIO, "a descriptor for reading was flushed")
        real(fd)
    monkeypatch.setattr(os, "fsync", fsync)
    status, out, err = dlm("train", "--config", recipe, "--trainer.steps", 2)
    assert status == 0, err

def test_other_errors_of_a_store_are_no_damage(trained, dlm, monkeypatch):
    "Nobody is told to delete what can only not be read right now"
    def fails(*args, **kw): raise PermissionError(errno.EACCES, "Permission denied", "docs.npz")
    monkeypatch.setattr(store.np, "load", fails)
    status, out, err = dlm("eval", "tiny")
    assert status == 2 and "no permission: docs.npz" in err and "delete" not in err
