"""A run as a folder that needs no PyTorch: the folder's own runtime writes what `dlm sample` writes.

It runs in a process in which PyTorch and this library cannot be imported.
"""
import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import run_dlm

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BLOCKED = """
import sys, runpy
ABSENT = ("torch", "diffusion_lm", "fastcore", "datasets", "safetensors", "onnx", "onnxscript")
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT: raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Blocked())
try: import torch
except ImportError: pass
else: sys.exit("PyTorch could be imported")
script, *sys.argv = sys.argv[1], *sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""

def alone(folder, *args, python=sys.executable):
    "The folder's runtime.py without PyTorch, from another working directory: (status, stdout, stderr)"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DIFFUSION_LM_HOME")}
    command = [python, "-c", BLOCKED, str(folder/"runtime.py"), *map(str, args)]
    r = subprocess.run(command, cwd=folder.parent, capture_output=True, env=env | {"PYTHONIOENCODING": "utf-8"})
    return r.returncode, r.stdout.decode(), r.stderr.decode() # not text=True: a text may hold \r

@pytest.fixture(scope="session")
def exported(tiny_home, tmp_path_factory):
    "Exports of the two runs: the denoiser with a graph in int8, the autoregressive model"
    at = tmp_path_factory.mktemp("exported")
    for run, more in (("tiny", ["--int8"]), ("tiny-ar", [])):
        status, out, err = run_dlm(tiny_home, "export", run, "--out", at/run, *more)
        assert status == 0, err
    return at

@pytest.fixture
def folder(exported, tmp_path):
    "A copy of the denoiser's export, to be damaged at will"
    return Path(shutil.copytree(exported/"tiny", tmp_path/"tiny"))

SAMPLERS = ("ancestral", "first-hitting", "left-to-right", "confidence", "entropy", "threshold")

@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_text_without_pytorch(exported, tiny_home, sampler):
    args = ["--prompt", "the river", "--seed", 3, "--n", 3, "--steps", 9, "--sampler", sampler, "--json"]
    status, out, err = alone(exported/"tiny", exported/"tiny", *args)
    assert status == 0 and err == "", err
    assert json.loads(out) == json.loads(run_dlm(tiny_home, "sample", "tiny", *args)[1])

@pytest.mark.parametrize("args", [
    ["--infill", "the [MASK:3] sea"], ["--infill", "a house[MASK:2] of [MASK] and"],
    ["--block", 8, "--temperature", .7], ["--temperature", 0], ["--length", 12], ["--top-p", .5], ["--top-p", 1],
    ["--sampler", "threshold", "--tau", .3]], ids=str)
def test_the_same_options(exported, tiny_home, args):
    args = [*args, "--seed", 5, "-n", 2]
    assert alone(exported/"tiny", exported/"tiny", *args) == (0, run_dlm(tiny_home, "sample", "tiny", *args)[1], "")

def test_an_autoregressive_run(exported, tiny_home):
    args = ["--prompt", "the king", "--seed", 1, "-n", 2]
    want = run_dlm(tiny_home, "sample", "tiny-ar", *args)[1]
    assert alone(exported/"tiny-ar", exported/"tiny-ar", *args) == (0, want, "")

def test_eight_bits(exported):
    about = json.loads((exported/"tiny"/"export.json").read_text())
    b = {k: e["value"] for k, e in about["bits_per_byte"].items()}
    assert about["bytes"]["int8"] < about["bytes"]["fp32"] and abs(b["int8"]/b["fp32"] - 1) < .02
    status, out, err = alone(exported/"tiny", exported/"tiny", "--precision", "int8", "--prompt", "the river")
    assert status == 0 and out.startswith("the river")

def test_what_is_in_the_folder(exported):
    about = json.loads((exported/"tiny"/"export.json").read_text())
    names = {p.name for p in (exported/"tiny").iterdir()}
    assert names == {"model.onnx", "model.int8.onnx", "tokenizer.json", "runtime.py", "export.json"}
    assert set(about["digests"]) == names - {"export.json"} and about["kind"] == "denoiser" and about["opset"] == 18
    for p in (exported/"tiny").iterdir(): # no path of this machine
        text = p.read_text(errors="replace")
        assert str(Path.home()) not in text and str(exported) not in text
    ast.parse((exported/"tiny"/"runtime.py").read_text(), feature_version=(3, 10))

def test_on_python_3_10(exported):
    python = shutil.which("python3.10")
    needs = [python, "-c", "import numpy, onnxruntime, tokenizers"]
    if not python or subprocess.run(needs, capture_output=True).returncode:
        pytest.skip("no Python 3.10 with NumPy, tokenizers and ONNX Runtime")
    args = [exported/"tiny", "--prompt", "the river", "--seed", 3, "--n", 3]
    assert alone(exported/"tiny", *args, python=python) == alone(exported/"tiny", *args)

# ---- mistakes ----

@pytest.mark.parametrize("args, why", [
    (["--format", "onxn"], "did you mean 'onnx'"), (["--opset", 9], "opset must be between 18"),
    (["--opset", 99], "opset must be between 18"), (["--static"], "goes with --int8"),
    (["--format", "torch", "--int8"], "go with --format onnx"), (["--max-tokens", 0], "must be at least 1"),
    (["--fp61"], "did you mean '--fp16'")], ids=str)
def test_bad_options(refused, trained, args, why):
    assert why in refused("export", "tiny", *args)

def test_a_damaged_run(refused, trained):
    path = trained/"checkpoints"/"tiny"/"model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert "is damaged" in refused("export", "tiny")
    assert "unknown run 'tniy'" in refused("export", "tniy")

def test_another_folder_is_left_alone(refused, trained, tmp_path):
    (tmp_path/"letters").mkdir()
    (tmp_path/"letters"/"letter.txt").write_text("dear")
    assert "is not an export" in refused("export", "tiny", "--out", tmp_path/"letters")

def flipped(data):
    "Bytes of which the last bit is another"
    return data[:-1] + bytes([data[-1] ^ 1])

@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "export.json"])
@pytest.mark.parametrize("how", ["cut", "altered", "gone"])
def test_a_folder_that_was_touched(folder, name, how):
    path = folder/name
    data = path.read_bytes()
    if how == "gone": path.unlink()
    elif how == "cut": path.write_bytes(data[:-9])
    elif name == "export.json": path.write_bytes(data.replace(b'"length": 32', b'"length": 64'))
    else: path.write_bytes(flipped(data))
    status, out, err = alone(folder, folder)
    assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("runtime: ") and name in err, err

def test_weights_beside_the_graph(trained, tmp_path, monkeypatch):
    "A graph of more than a gigabyte has its weights in a file of their own, which is watched over, too"
    from diffusion_lm.deploy import export, runtime
    from diffusion_lm.lm import DiffusionLM
    monkeypatch.setattr(export, "_BIG", 0)
    lm = DiffusionLM.from_run(trained/"checkpoints"/"tiny", device="cpu")
    export.export_lm(lm, tmp_path/"large", fp16=True)
    assert runtime.Model(tmp_path/"large").generate(seed=3) == lm.generate(seed=3)
    assert runtime.Model(tmp_path/"large", "fp16").generate(length=8)
    weights = tmp_path/"large"/"model.onnx.data"
    weights.write_bytes(flipped(weights.read_bytes()))
    with pytest.raises(runtime.UserError, match="model.onnx.data has been altered"): runtime.Model(tmp_path/"large")
    weights.unlink()
    with pytest.raises(runtime.UserError, match="model.onnx.data is missing"): runtime.Model(tmp_path/"large")

@pytest.mark.parametrize("args, why", [
    (["--sampler", "best"], "unknown sampler 'best'"), (["--steps", 0], "steps must be"),
    (["--steps", "many"], "invalid int value"), (["--precision", "fp16"], "no fp16 graph"),
    (["--provider", "tensorrt"], "no provider 'tensorrt'"), (["--provider", "tpu"], "unknown provider"),
    (["--prompt", "word "*99], "the prompt has"), (["--infill", "no hole"], "nothing to fill"),
    (["--infill", "[MASK:999]"], "the template has"), (["--length", 33], "length must be"),
    (["--seed", -1], "must not be negative"), (["--tau", .5], "takes no tau"), (["--wat"], "unrecognized arguments"),
    (["--infill", "[MASK]", "--prompt", "a"], "do not go with")], ids=str)
def test_mistakes_of_the_runtime(exported, args, why):
    import contextlib
    import io

    from diffusion_lm.deploy.runtime import main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(a) for a in [exported/"tiny", *args]])
    said = err.getvalue()
    assert (status, out.getvalue(), said.count("\n")) == (2, "", 1)
    assert said.startswith("runtime: ") and why in said, said

def test_not_an_export(exported, tmp_path):
    status, out, err = alone(exported/"tiny", tmp_path)
    assert (status, out) == (2, "") and "is not an export" in err
