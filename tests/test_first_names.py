"""`from diffusion_lm import DiffusionLM` works, and nothing heavy is loaded before somebody asks for it."""
import subprocess
import sys

import pytest

import diffusion_lm

NAMES = sorted(set(diffusion_lm.__all__) - {"__version__"})


def fresh(code):
    "What a new Python prints that runs `code`"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_module_defines(name):
    found = getattr(diffusion_lm, name)
    assert found.__name__ == name
    assert found.__module__ == f"diffusion_lm.{diffusion_lm._MODULES[name]}"


def test_they_are_listed():
    assert {"DiffusionLM", "train", "Tokenizer", "__version__"} <= set(dir(diffusion_lm))


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match="has no attribute 'DifusionLM'"): _ = diffusion_lm.DifusionLM
    with pytest.raises(ImportError, match="DifusionLM"):
        from diffusion_lm import DifusionLM  # noqa: F401


@pytest.mark.parametrize("code", [
    "import diffusion_lm",
    "import diffusion_lm; dir(diffusion_lm)",
    "import sys; sys.argv = ['dlm', '--version']; from diffusion_lm.cli import main; main()",
])
def test_no_torch_before_it_is_needed(code):
    heavy = "{'torch', 'numpy', 'datasets', 'tokenizers'} & {*sys.modules}"
    assert fresh(f"{code}\nimport sys; print(*{heavy})")[-1:] in ([], [diffusion_lm.__version__])


def test_a_star_brings_them():
    said = fresh("from diffusion_lm import *; print(DiffusionLM.__name__, load_config.__name__)")
    assert said == ["DiffusionLM", "load_config"]
