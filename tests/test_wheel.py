"""The wheel, outside the repository and without notebook tools: it has all that it needs, and `dlm demo` runs."""
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = """import sys
from importlib.machinery import ModuleSpec
class Block:
    "Packages that only work on notebooks needs"
    names = {"nbdev", "execnb", "IPython", "ipykernel", "ipywidgets", "jupyter_core", "jupyterlab", "nbconvert",
             "nbclient", "nbformat", "pypandoc", "pytest", "hypothesis", "ghapi"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.names: return None
        return ModuleSpec(name, self) # it is there, as torch finds out, but an import fails
    def create_module(self, spec): raise ImportError(f"{spec.name} is blocked")
    def exec_module(self, module): pass
sys.meta_path.insert(0, Block())
"""

@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel of the files that git would give, built from a copy"
    copy, dist = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for f in ("pyproject.toml", "settings.ini", "README.md", "LICENSE"): shutil.copy(ROOT/f, copy)
    shutil.copytree(ROOT/"diffusion_lm", copy/"diffusion_lm", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", dist]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, copy], check=True, capture_output=True, text=True)
    return next(dist.glob("*.whl"))

def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT/"diffusion_lm").rglob("*.py")} <= set(names)
    for folder in ("recipes", "assets"):
        files = {f"diffusion_lm/{folder}/{p.name}" for p in (ROOT/"diffusion_lm"/folder).iterdir()}
        assert files and files <= set(names)
    assert not [n for n in names if n.endswith((".ipynb", ".safetensors"))]
    assert not [n for n in names if n.startswith(("tests/", "experiments/", "nbs/"))]
    assert any(n.endswith("entry_points.txt") for n in names)

def test_demo_outside_the_repository(wheel, tmp_path):
    "In a folder of its own, from the unpacked wheel, with a demonstration of a few steps"
    site, home = tmp_path/"site", tmp_path/"home"
    zipfile.ZipFile(wheel).extractall(site)
    (site/"sitecustomize.py").write_text(BLOCK)
    env = {**os.environ, "PYTHONPATH": str(site)}
    def python(code, *args, **more):
        return subprocess.run([sys.executable, "-c", code, *args], cwd=tmp_path, capture_output=True, text=True,
                              env={**env, **more})
    def run(*args):
        code = "import sys; from diffusion_lm.cli import main; sys.exit(main())"
        return python(code, *args, DIFFUSION_LM_HOME=str(home))
    where = python("import diffusion_lm; print(diffusion_lm.__file__)")
    assert where.stdout.startswith(str(site)), where.stderr
    small = ["--model.width", "16", "--model.heads", "2", "--model.layers", "1", "--model.length", "32",
             "--trainer.steps", "4", "--trainer.minutes", "null",
             "--trainer.test_tokens", "512", "--trainer.eval_tokens", "512", "--samples.steps", "4"]
    p = run("demo", *small, "--json")
    assert p.returncode == 0, p.stderr
    assert json.loads(p.stdout)["steps"] == 4 and (home/"checkpoints"/"demo"/"report.md").exists()
    p = run("sample", "demo", "--steps", "4", "--length", "16")
    assert p.returncode == 0 and p.stdout.strip(), p.stderr
