"""A document of many megabytes on one line is like any other: cut, split, tokenized and trained on in sane memory."""
import json

import pytest

from conftest import WORDS
from diffusion_lm.core import rng


def one_line(path, megabytes, gap):
    "A file without a line break; `gap` stands between its words, of which no eight in a row come again"
    words, g = [w + gap for w in WORDS], rng("one line")
    with open(path, "w", encoding="utf-8") as f:
        while f.tell() < megabytes*1_000_000: f.write("".join(words[i] for i in g.integers(len(words), size=200_000)))
    return path

ARGS = ["--trainer.steps", 2, "--trainer.test_tokens", 512]

# BPE is slow where there are no words
@pytest.mark.parametrize("kind, gap, megabytes", [("bpe", " ", 3), ("word", "", 3), ("bpe", "", 1.2)])
def test_some_megabytes(dlm, recipe, tmp_path, kind, gap, megabytes):
    path = one_line(tmp_path/"line.txt", megabytes, gap)
    status, out, err = dlm("train", "--config", recipe, "--data.path", path, "--tokenizer.kind", kind, *ARGS, "--json")
    assert status == 0, err
    s = json.loads(out)
    assert s["steps"] == 2 and s["bits_per_byte"]["value"] > 0

@pytest.mark.slow
@pytest.mark.parametrize("gap", [" ", ""])
def test_fifty_megabytes(dlm_process, recipe, tmp_path, gap):
    path = one_line(tmp_path/"line.txt", 50, gap)
    status, out, err = dlm_process("train", "--config", recipe, "--data.path", path, *ARGS, "--json")
    assert status == 0, err
    assert json.loads(out)["peak_memory"] < 3e9
