"""What the tests share: a small text, a small recipe, two runs of it, and `dlm` in this or another process."""
import atexit
import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# matrices this small are slower on two threads, and many times slower on a busy machine
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="dlm-hf-")  # what `datasets` keeps of a table goes here
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("DIFFUSION_LM_HOME", None)
# a shell has it ignored in what it starts in the background, and children inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import pytest
import torch
from hypothesis import HealthCheck, settings

from diffusion_lm.cli import main
from diffusion_lm.core import rng
from diffusion_lm.files import read_jsonl

torch.set_num_threads(1)
settings.register_profile("dlm", deadline=None, derandomize=True, database=None, max_examples=50,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.load_profile("dlm")

WORDS = ("the a river sea house light road king paper winter apple stone bird voice letter garden night morning "
         "of in on under with from and but then walks sleeps sings falls burns waits opens remembers asks").split()

def story(seed, words=6000):
    "Sentences of random words in paragraphs: no two stories share eight words in a row, but by chance"
    g, out = rng("story", seed), []
    while words > 0:
        n = min(words, int(g.integers(4, 15)))
        out.append(" ".join(g.choice(WORDS, n)).capitalize() + ("." if g.random() < .8 else ".\n\n"))
        words -= n
    return " ".join(out)

def write_table(path, table):
    "A table from a list of rows, in the format that the suffix says"
    if path.suffix == ".jsonl": path.write_text("\n".join(map(json.dumps, table)))
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as f:
            w = csv.DictWriter(f, [*table[0]])
            w.writeheader()
            w.writerows(table)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq
        pq.write_table(pa.table({k: [r[k] for r in table] for k in table[0]}), path)
    return path

RECIPE = """
data: {{path: {book}}}
tokenizer: {{vocab_size: 300}}
model: {{width: 16, heads: 2, layers: 1, length: 32}}
objective: nelbo-count
trainer: {{steps: 24, batch: 8, log_every: 4, eval_every: 8, eval_tokens: 512, test_draws: 2, sample_every: 12,
          save_every: 8, device: cpu}}
samples: {{prompts: ["", "the river"], templates: ["the [MASK:3] sea"], steps: 8}}
"""

def tree(*folders):
    "All folders and files below `folders`, with a digest of every file: what is there and what is in it"
    return {str(p): hashlib.blake2b(p.read_bytes()).hexdigest() if p.is_file() and os.access(p, os.R_OK) else None
            for f in folders for p in sorted(Path(f).rglob("*"))}

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

def losses(run):
    return [(r["step"], r.get("loss"), r.get("grad_norm"), r.get("validation")) for r in read_jsonl(run/"log.jsonl")]

def same_run(a, b):
    "Same losses in the log, same weights, to the last bit"
    assert losses(a) == losses(b) and len(losses(a)) > 3
    assert (a/"model.safetensors").read_bytes() == (b/"model.safetensors").read_bytes()

def run_dlm(home, *args):
    "`dlm` in this process, with its files in `home`: (status, stdout, stderr)"
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as m, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        m.setenv("DIFFUSION_LM_HOME", str(home))
        status = main([str(a) for a in args])
    return status, out.getvalue(), err.getvalue()

def train_runs(home, recipe, *runs):
    "Train a run by a recipe for each list of options"
    for options in runs:
        status, _, err = run_dlm(home, "train", "--config", recipe, *options)
        assert status == 0, err

# what the console script runs
DLM = [sys.executable, "-c", "import sys; from diffusion_lm.cli import main; sys.exit(main())"]

def start_dlm(home, *args, log=None):
    "`dlm` as a process of its own; its output goes to the files `log`.out and `log`.err, else to pipes"
    out, err = (open(f"{log}.{k}", "w", encoding="utf-8") for k in ("out", "err")) if log else (subprocess.PIPE,)*2
    script = Path(sys.executable).with_name("dlm")
    return subprocess.Popen([*([str(script)] if script.exists() else DLM), *map(str, args)], stdout=out, stderr=err,
                            text=True, encoding="utf-8", stdin=subprocess.DEVNULL,
                            env={**os.environ, "DIFFUSION_LM_HOME": str(home)})

def end_dlm(process, timeout=1200):
    "(status, stdout, stderr) of a process that `start_dlm` started with pipes"
    try: out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process.returncode, out, err

@pytest.fixture(scope="session")
def book(tmp_path_factory):
    "A text file of some 35,000 characters: a single document, to be cut into blocks"
    path = tmp_path_factory.mktemp("text")/"book.txt"
    path.write_text(story(0), encoding="utf-8")
    return path

@pytest.fixture(scope="session")
def recipe(book, tmp_path_factory):
    "A recipe for a run of seconds; without --name the run is called tiny"
    path = tmp_path_factory.mktemp("recipe")/"tiny.yaml"
    path.write_text(RECIPE.format(book=book), encoding="utf-8")
    return path

@pytest.fixture(scope="session")
def tiny_home(recipe, tmp_path_factory):
    "A home with two finished runs, `tiny` (diffusion) and `tiny-ar`; only to be read or copied"
    home = tmp_path_factory.mktemp("trained")/"home"
    train_runs(home, recipe, [], ["--name", "tiny-ar", "--objective", "ar"])
    return home

@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home folder that is not there yet; the working directory is another, empty one"
    (tmp_path/"cwd").mkdir()
    monkeypatch.chdir(tmp_path/"cwd")
    monkeypatch.setenv("DIFFUSION_LM_HOME", str(tmp_path/"home"))
    return tmp_path/"home"

@pytest.fixture
def trained(home, tiny_home):
    "A home with copies of the two runs, to be damaged at will"
    shutil.copytree(tiny_home, home)
    return home

@pytest.fixture
def dlm(home, capfd):
    "Call `dlm` in this process: dlm('train', …) → (status, stdout, stderr), as they reach the file descriptors"
    def call(*args):
        capfd.readouterr()
        status = main([str(a) for a in args])
        return status, *capfd.readouterr()
    return call

@pytest.fixture
def dlm_process(home):
    "Call `dlm` in a process of its own: (status, stdout, stderr)"
    return lambda *args: end_dlm(start_dlm(home, *args))

@pytest.fixture
def refused(dlm, home, tmp_path, monkeypatch):
    "Assert that `dlm` refuses arguments as every mistake is to be refused; returns the line that says why"
    def call(*args, status=2, notes=(), cache=False):
        """`notes`: beginnings of lines that may come before the message; `cache`: may prepared data have been kept?
        (where the mistake shows only once the text has been read)"""
        before = tree(tmp_path)
        with monkeypatch.context() as m:
            m.setattr("diffusion_lm.training.learner.Learner.fit", lambda learn: pytest.fail("the training has begun"))
            got, out, err = dlm(*args)
        lines = err.splitlines()
        assert got == status and out == "", (got, out, err)
        assert "Traceback" not in err and lines and lines[-1].startswith("dlm: "), err
        assert all(line.startswith(tuple(notes)) for line in lines[:-1]), err
        assert 10 < len(lines[-1]) < 400, "not a clear line: " + lines[-1]
        after = tree(tmp_path)
        if cache:
            after = {k: v for k, v in after.items() if k in before or not Path(k).is_relative_to(home/"data")
                     and Path(k) != home}
        assert after == before, sorted(set(after) ^ set(before)) or "a file has been changed"
        return lines[-1]
    return call
