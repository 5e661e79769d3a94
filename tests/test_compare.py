"""`dlm compare`: a planted difference is found, leakage is refused, and nothing depends on the order of the runs."""
import json
import random
import shutil

import pytest
import torch

from conftest import RECIPE, story, train_runs, tree
from diffusion_lm.lab import compare as lab
from diffusion_lm.lab.compare import CompareOptions, compare
from diffusion_lm.weights import load_weights, save_weights

FAST = ["--draws", "2", "--texts", "2", "--length", "16", "--rounds", "1", "--steps", "4"]
SCORED = ("text", "runs", "pairs", "curves", "caveats") # all that no clock has a part in


def compared(dlm, *args):
    "The answer of `dlm compare … --json`"
    status, out, err = dlm("compare", *args, *FAST, "--json")
    assert status == 0, err
    return json.loads(out)

def refused(dlm, *args):
    "The one line with which `dlm compare` is refused"
    status, out, err = dlm("compare", *args, *FAST)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    return err

def altered(home, run, name, change):
    "A copy of a run whose weights were changed"
    shutil.copytree(home/"checkpoints"/run, home/"checkpoints"/name)
    file = home/"checkpoints"/name/"model.safetensors"
    weights = load_weights(file)
    change(weights)
    save_weights(weights, file)
    return name

def write_recipe(path, text):
    "A recipe for another text"
    book = path.with_suffix(".txt")
    book.write_text(text, encoding="utf-8")
    path.write_text(RECIPE.format(book=book), encoding="utf-8")
    return path

def trained_on(home, path, text, name, *args):
    "A run of another text; its name"
    train_runs(home, write_recipe(path, text), ["--name", name, *args])
    return name

@pytest.fixture(scope="module")
def more_home(tiny_home, recipe, tmp_path_factory):
    "The two runs, and more: in blocks, with thoughts, with another vocabulary, of the same story in another order"
    folder = tmp_path_factory.mktemp("more")
    home = folder/"home"
    shutil.copytree(tiny_home, home)
    short = ["--trainer.steps", "4", "--samples.templates", "[]"]
    thought = "{dims: [2, 2], channels: 8, depth: 2}"
    train_runs(home, recipe,
               ["--name", "blocks", *short, "--objective", "block", "--model.block", "8"],
               ["--name", "minds", *short, "--objective", "block", "--model.block", "16", "--model.thought", thought],
               ["--name", "words", *short, "--tokenizer.vocab_size", "340"])
    paragraphs = story(0).split("\n\n")
    random.Random(0).shuffle(paragraphs)
    trained_on(home, folder/"shuffled.yaml", "\n\n".join(paragraphs), "shuffled", *short)
    trained_on(home, folder/"elsewhere.yaml", story(7), "elsewhere", *short)
    return home

@pytest.fixture
def more(home, more_home):
    shutil.copytree(more_home, home)
    return home


def test_two_kinds(trained, dlm):
    r = compared(dlm, "tiny", "tiny-ar")
    best, other = r["runs"]
    assert best["bits_per_byte"]["value"] < other["bits_per_byte"]["value"]
    kinds = {x["run"]: (x["bits_per_byte"]["kind"], x["kind"]) for x in r["runs"]}
    assert kinds == {"tiny": ("bound", "masked diffusion"), "tiny-ar": ("exact", "autoregressive")}
    assert {x["tokens"] for x in r["runs"]} == {24*8*32}
    assert [(w["run"], w["how"]) for w in r["writing"] if w["run"] == "tiny"] == [
        ("tiny", "ancestral, 64 steps"), ("tiny", "ancestral, 4 steps")]
    pair, = r["pairs"]
    gap = other["bits_per_byte"]["value"] - best["bits_per_byte"]["value"]
    assert abs(pair["difference"]["value"] - gap) < 1e-9 and not pair["same_masks"]
    status, out, err = dlm("compare", "tiny", "tiny-ar", *FAST)
    assert status == 0 and "scoring tiny" in err and "95 % interval" in out and "- A figure with ≤" in out

def test_its_score_is_that_of_eval(trained, dlm):
    "The autoregressive score is exact, so it does not depend on masks"
    status, out, _ = dlm("eval", "tiny-ar", "--json")
    assert status == 0
    r = compared(dlm, "tiny", "tiny-ar")
    mine = next(x for x in r["runs"] if x["run"] == "tiny-ar")["bits_per_byte"]
    assert abs(mine["value"] - json.loads(out)["bits_per_byte"]["value"]) < 1e-6

def test_same_run_twice(trained, dlm):
    r = compared(dlm, "tiny", "tiny")
    assert [x["run"] for x in r["runs"]] == ["tiny", "tiny (2)"]
    d = r["pairs"][0]["difference"]
    assert (d["value"], d["low"], r["pairs"][0]["same_masks"], r["pairs"][0]["monte_carlo_error"]) == (0, None, True, 0)
    assert "they do not differ" in dlm("compare", "tiny", "tiny", *FAST)[1]

def test_order_does_not_matter(more, dlm):
    runs = ["tiny", "tiny-ar", "blocks"]
    forth, back = (compared(dlm, *some) for some in (runs, runs[::-1]))
    for k in SCORED: assert forth[k] == back[k], k
    texts = [[w.get("text") for w in r["writing"]] for r in (forth, back)]
    assert texts[0] == texts[1] and len(forth["pairs"]) == 3

@pytest.mark.parametrize("run", ["tiny", "tiny-ar"])
def test_planted_difference(trained, dlm, run):
    def spoil(weights):
        g = torch.Generator().manual_seed(0)
        w = weights["embed.weight"]
        w += w.std()*torch.randn(w.shape, generator=g)
    r = compared(dlm, altered(trained, run, "spoilt", spoil), run)
    pair, = r["pairs"]
    assert (pair["better"], pair["worse"]) == (run, "spoilt")
    d, own = pair["difference"], r["runs"][0]["bits_per_byte"]
    assert 0 < d["low"] < d["value"] < d["high"] and pair["same_masks"]
    assert d["high"] - d["low"] < own["high"] - own["low"] # pairing pays

def test_other_tokenizer(more, dlm):
    r = compared(dlm, "tiny", "words")
    assert {x["vocabulary"] for x in r["runs"]} == {300, 340} and "different tokenizers" in r["caveats"][0]
    d = r["pairs"][0]["difference"]
    assert d["by"] == "block" and d["n"] == 20 and d["low"] < d["value"]

def test_thoughts(more, dlm):
    r = compared(dlm, "minds", "tiny")
    kinds = {x["run"]: x["kind"] for x in r["runs"]}
    assert kinds["minds"] == "diffusion in blocks of 16, with thoughts"
    assert all(w["tokens_per_second"]["value"] > 0 for w in r["writing"][:-1])

def test_other_split_of_the_same_text(more, dlm):
    for runs in (["tiny", "shuffled"], ["shuffled", "tiny"]):
        line = refused(dlm, *runs)
        assert "leakage" in line and "in another split" in line and "--file" in line

def test_no_common_text(more, dlm, tmp_path):
    assert "no held-out text in common" in refused(dlm, "tiny", "elsewhere")
    new = tmp_path/"new.txt"
    new.write_text(story(3, 2000))
    r = compared(dlm, "tiny", "elsewhere", "--file", new)
    assert r["text"]["name"] == "text of new.txt" and any("different texts" in c for c in r["caveats"])
    known = tmp_path/"known.txt"
    known.write_text(story(3, 1000) + story(7)[2000:12_000])
    assert "leakage: 'elsewhere' was trained on" in refused(dlm, "tiny", "elsewhere", "--file", known)
    assert "is missing" in refused(dlm, "tiny", "elsewhere", "--file", tmp_path/"not.txt")

def test_text_that_has_changed(more, dlm):
    "What the token store has kept counts, as for `eval`; without it there is nothing to score"
    book = more.parent/"own.txt"
    trained_on(more, book.with_suffix(".yaml"), story(5), "own", "--trainer.steps", "2")
    book.write_text(story(6))
    dlm("train", "--config", book.with_suffix(".yaml"), "--name", "new", "--trainer.steps", "2")
    book.write_text(story(5) + " More.")
    status, out, err = dlm("compare", "own", "own", *FAST)
    assert status == 0 and "own: the text of" in err and "has changed" in err
    shutil.rmtree(more/"data"/"cache")
    assert "has changed since this run was trained" in refused(dlm, "own", "own")

@pytest.mark.parametrize("run", ["tiny", "tiny-ar"])
def test_nan(trained, dlm, run):
    def spoil(weights): weights["embed.weight"][200] = torch.nan
    name = altered(trained, run, "spoilt", spoil)
    status, out, err = dlm("compare", run, name, *FAST, "--json")
    assert (status, out, err.count("\n")) == (2, "", 1) and "'spoilt' predicts NaN" in err
    for way in ([], ["order"], ["bracket"]) if run == "tiny" else ([],):
        likelihood = ["--likelihood", *way] if way else []
        status, out, err = dlm("eval", name, *likelihood, "--max-tokens", "64", "--json")
        assert (status, out) == (2, "") and "predicts NaN" in err.splitlines()[-1]

def test_damaged_weights(trained, dlm):
    file = trained/"checkpoints"/"tiny"/"model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert "model.safetensors is damaged" in refused(dlm, "tiny-ar", "tiny")

def test_old_runs(trained, dlm):
    (trained/"checkpoints"/"tiny"/"summary.json").write_text('{"tokens": "many"')
    (trained/"checkpoints"/"tiny"/"log.jsonl").unlink()
    status, out, err = dlm("compare", "tiny", "tiny-ar", *FAST, "--report", "old.md")
    assert status == 0, err
    row = next(line for line in out.splitlines() if line.startswith("training tokens"))
    assert "–" in row and "6,144" in row

def test_report(trained, dlm, tmp_path):
    before = tree(trained)
    assert "folder no is missing" in refused(dlm, "tiny", "tiny-ar", "--report", "no/a.md")
    assert "should end in .md" in refused(dlm, "tiny", "tiny-ar", "--report", "a.txt")
    status, out, err = dlm("compare", "tiny", "tiny-ar", *FAST, "--report", "a.md")
    assert status == 0, err
    assert sorted(tree(".")) == ["a-curves.png", "a-scores.png", "a.md"] and tree(trained) == before
    page = open("a.md", encoding="utf-8").read()
    command = "dlm compare tiny tiny-ar " + " ".join([*FAST, "--report", "a.md"])
    for part in ("](a-scores.png)", "](a-curves.png)", command, "torch 2", "95 % interval", "several seeds", "\n> "):
        assert part in page, part

def test_mistakes(trained, dlm):
    for args, why in ((["tiny"], "two runs or more"), ([], "required"), (["tiny", "tyni"], "did you mean 'tiny'"),
                      (["tiny", "tiny-ar", "--draws", "0"], "draws must be at least 1"),
                      (["tiny", "tiny-ar", "--seed", "-1"], "seed must not be negative"),
                      (["tiny", "tiny-ar", "--max-bites", "9"], "did you mean '--max-bytes'")):
        status, out, err = dlm("compare", *args)
        assert (status, out, err.count("\n")) == (2, "", 1) and why in err, err

def test_judge(trained, monkeypatch):
    "A judge that is missing is missed before anything is scored; one that is there is asked"
    def fail(*a, **kw): raise AssertionError("scored")
    with monkeypatch.context() as m:
        m.setattr("diffusion_lm.evaluation.quality.find_spec", lambda name: None)
        m.setattr(lab, "score_arm", fail)
        with pytest.raises(ValueError, match="the judge is not installed"):
            compare(["tiny", "tiny"], CompareOptions(judge=True))
