"""A book's curriculum from the command line: prepared and inspected, trained, stopped and resumed, and refused."""
import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from conftest import same_run, story
from diffusion_lm.lm import DiffusionLM

NOTES = ("preparing ", "the text is too small for ", "measuring how hard ")
STAGES = ["--curriculum.reads", "[sentences, pairs, paragraphs, text]",
          "--trainer.save_every", 4, "--trainer.sample_every", 24]

def stage_notes(run):
    "What the log of a run says about stages"
    records = map(json.loads, (run/"log.jsonl").read_text().splitlines())
    return [r for r in records if "stage" in r or "stage_end" in r]

def test_every_stage_resumes(dlm, home, recipe):
    "24 steps: stages begin at 0, 5, 10 and 15"
    assert dlm("train", "--config", recipe, *STAGES, "--name", "whole")[0] == 0
    runs = home/"checkpoints"
    ends = json.loads((runs/"whole"/"summary.json").read_text())["stages"]
    assert [z["name"] for z in ends] == ["1 sentences", "2 pairs", "3 paragraphs", "4 text"]
    assert [z["steps"] for z in ends] == [5, 5, 5, 9]
    report = (runs/"whole"/"report.md").read_text()
    assert all(f"| {z['name']} |" in report for z in ends)
    for stop in (2, 5, 8, 13, 20):
        assert dlm("train", "--config", recipe, *STAGES, "--name", f"at{stop}", "--trainer.stop_at", stop)[0] == 0
        status, out, err = dlm("train", "--name", f"at{stop}", "--resume")
        assert status == 0, err
        same_run(runs/"whole", runs/f"at{stop}")
        assert stage_notes(runs/"whole") == stage_notes(runs/f"at{stop}")

def test_null_is_none(dlm, home, recipe):
    assert dlm("train", "--config", recipe, *STAGES, "--curriculum", "null", "--trainer.steps", 4)[0] == 0
    run = home/"checkpoints"/"tiny"
    assert not stage_notes(run) and "stages" not in json.loads((run/"summary.json").read_text())

def test_inspect(dlm, home, recipe, book):
    status, out, err = dlm("prepare", "--config", recipe, "--inspect", "--json")
    assert status == 0, err
    said, folder = json.loads(out), Path("book-inspect")
    files = {"segments.parquet", "pairs.parquet", "stages.json", "scores.png", "report.html"}
    assert {p.name for p in folder.iterdir()} == files
    assert said["inspect"] == json.loads((folder/"stages.json").read_text())
    assert sum(said["tokens"].values()) > 5000
    t = pd.read_parquet(folder/"segments.parquet")
    whole = book.read_text()
    assert set(t.side) == {"train", "validation", "test"} and t.score.between(0, 1).all()
    assert all(x in whole for x in t.text.sample(50, random_state=0))
    status, out, _ = dlm("prepare", "--config", recipe)
    assert status == 0 and "vocabulary 300" in out

def test_style(dlm, trained, book):
    "A model of seconds writes no sentences; that is said, or they are measured"
    status, out, err = dlm("eval", "tiny", "--style", "--reference", book, "--samples", 64, "--json")
    if status == 0: assert json.loads(out)["memorisation"]["n"] == 8
    else: assert status == 2 and not out and err.splitlines()[-1].startswith("dlm: ")

@pytest.mark.parametrize("args, why", [
    (["--reference", "x.txt"], "--reference goes with --style"),
    (["--style", "--reference", "none.txt"], "none.txt is missing"),
    (["--style", "--samples", 1], "at least 2"),
    (["--style", "--file", "x"], "--file does not go with --style"),
    (["--style", "--seed", -1], "must not be negative"),
])
def test_bad_style(refused, trained, args, why): assert why in refused("eval", "tiny", *args)

def test_style_without_its_extra(refused, trained, monkeypatch):
    "It is said before minutes go into texts"
    monkeypatch.setitem(sys.modules, "pysbd", None)
    monkeypatch.setattr(DiffusionLM, "generate", lambda *a, **kw: pytest.fail("texts were written first"))
    assert "pysbd is missing" in refused("eval", "tiny", "--style", notes=("writing ",))

LATIN, CYRILLIC = "abcdefghijklmnopqrstuvwxyz", "абвгдежзийклмнопрстуфхцчшщ"

BOOKS = {
    "small": (story(1, 2000), "needs at least 20 kB|kB of text; a curriculum needs"),
    "one-sentence": ("a river " + "and the sea "*3000, "sentence"),
    "no-punctuation": (story(1).replace(".", ""), "sentence"),
    "another-script": (story(1).translate(str.maketrans(LATIN, CYRILLIC)), "curriculum.difficulty.language"),
}

@pytest.mark.parametrize("kind", BOOKS)
def test_bad_book(refused, recipe, tmp_path, kind):
    text, why = BOOKS[kind]
    path = tmp_path/f"{kind}.txt"
    path.write_text("\n\n".join(f"{i} {p}" for i, p in enumerate(text.split("\n\n"))))
    for command in (["train", *STAGES], ["prepare", "--inspect"]):
        said = refused(*command, "--config", recipe, "--data.path", path, notes=NOTES, cache=True)
        assert re.search(why, said)

@pytest.mark.parametrize("args, why", [
    (["--curriculum.easy", "[1.0e-9, 1, 1, 1]"], "stage 1 has 1 sentences"),
    (["--curriculum.easy", "[2, 1, 1, 1]"], "curriculum.easy of stage 1"),
    (["--curriculum.high", "[.5, .6, .3, 1]"], "stage 1 needs"),
    (["--curriculum.reads", "[poems, pairs, paragraphs, text]"], "unknown"),
    (["--curriculum.difficulty.language", "tlh"], "unknown"),
    (["--objective", "ar"], "masks nothing"),
    (["--noise.progress", "linear"], "set noise.progress to none"),
    (["--curriculum.easyy", "1"], "easy"),
])
def test_bad_curriculum(refused, recipe, args, why):
    assert why in refused("train", "--config", recipe, *STAGES, *args, notes=NOTES, cache=True)

def test_missing_extra(refused, recipe, monkeypatch):
    "The line names the extra"
    monkeypatch.setitem(sys.modules, "pysbd", None)
    assert "diffusion_lm[curriculum]" in refused("train", "--config", recipe, *STAGES, notes=NOTES, cache=True)
