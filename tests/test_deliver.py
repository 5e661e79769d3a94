"""Conditional runs and their adapters leave the house: exported, shared, and read by every command or refused by it."""
import json
import shutil

import pytest
import torch

from conftest import run_dlm, train_runs, write_table
from diffusion_lm.deploy.chat import Chat
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.adapters import find_adapter
from test_condition import ENCODER, SMALL, rows
from test_export import alone


def pairs_of(path): return ["--data.path", path, "--data.column", "answer", "--data.condition", "question"]

@pytest.fixture(scope="module")
def told_home(tmp_path_factory):
    "A home with runs that were trained on pairs: `told` with an encoder, `answers` without; two adapters of `told`"
    home = tmp_path_factory.mktemp("told")/"home"
    home.mkdir()
    (home/"empty.yaml").write_text("seed: 0")
    pairs = pairs_of(write_table(home/"qa.jsonl", rows(200)))
    adapter = ["--init", "told", *pairs, *SMALL[2:], "--adapter.rank", 2, "--trainer.lr", .1]
    train_runs(home, home/"empty.yaml", ["--name", "told", *pairs, *SMALL, *ENCODER],
               ["--name", "answers", *pairs, *SMALL],
               ["--name", "sea", *adapter], ["--name", "hill", *adapter, "--seed", 5])
    return home

def load(home, name): return DiffusionLM.from_run(home/"checkpoints"/name, device="cpu")

def done(home, *args):
    "What a command prints, which must not fail"
    status, out, err = run_dlm(home, *args)
    assert status == 0, err
    return out

@pytest.fixture(scope="module")
def exported(told_home, tmp_path_factory):
    "Exports: `told` with two adapters, also in int8; and `answers`"
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    at = tmp_path_factory.mktemp("exported")
    for run, more in (("told", [*ADAPTERS, "--int8", "--max-tokens", 240]), ("answers", [])):
        done(told_home, "export", run, "--runs", told_home/"checkpoints", "--out", at/run, *more)
    return at

ADAPTERS = ["--adapter", "sea:0.5", "--adapter", "hill"]
ASKED = ["--condition", "Who came at 3?", "--seed", 3, "-n", 2, "--steps", 6, "--json"]

@pytest.mark.parametrize("run, args", [
    ("told", [*ASKED, "--condition-scale", 1.5, "--prompt", "At 3"]),
    ("told", [*ASKED, "--infill", "At [MASK:3] came in."]),
    ("told", ["--condition", "", *ASKED[2:]]), ("answers", ASKED)], ids=str)
def test_the_same_answers_without_pytorch(exported, told_home, run, args):
    status, out, err = alone(exported/run, exported/run, *args)
    assert status == 0 and err == "", err
    assert json.loads(out) == json.loads(done(told_home, "sample", run, *args, *(ADAPTERS if run == "told" else [])))

def test_an_export_says_what_it_needs(exported):
    told, answers = (json.loads((exported/name/"export.json").read_text()) for name in ("told", "answers"))
    assert told["condition"] == {"stands": "beside", "tokens": 8} and set(told["files"]["fp32"]) == {"model", "encode"}
    assert answers["condition"] == {"stands": "before", "tokens": 12} and set(answers["files"]["fp32"]) == {"model"}
    assert told["parity"]["max"] < 1e-4 and told["parity"]["same_order"]
    bits = {k: e["value"] for k, e in told["bits_per_byte"].items()}
    assert abs(bits["int8"]/bits["fp32"] - 1) < .02
    status, out, err = alone(exported/"told", exported/"told")
    assert (status, out, err.count("\n")) == (2, "", 1) and "give --condition TEXT, or --condition '' for none" in err
    assert not alone(exported/"told", exported/"told", "--precision", "int8", *ASKED)[0]

def answer(lm, x, condition="Who came at 3?"):
    "Logits of a conditional run given a condition"
    with torch.no_grad(): return lm.given(condition).model(x)[..., 3:]

def test_shared_and_back(told_home, tmp_path):
    "A conditional run, one with adapters, and an adapter by itself: the same logits after a folder of the hub's kind"
    x, lm = torch.tensor([[1, 7, 1, 8]]), load(told_home, "told")
    adapted = lm.adapt(["sea", "hill:0.5"], told_home/"checkpoints")
    for m, name in ((lm, "told"), (adapted, "adapted"), (load(told_home, "sea"), "sea")):
        m.save_pretrained(tmp_path/name)
        back = DiffusionLM.from_pretrained(tmp_path/name, device="cpu")
        assert back.asks and torch.equal(answer(m.merged(), x), answer(back, x))
    assert (answer(adapted, x) - answer(lm, x)).abs().max() > 1e-3
    assert {p.name for p in (tmp_path/"sea").iterdir()} >= {"adapter.safetensors", "summary.json"}
    assert not {p.name for p in (tmp_path/"adapted").iterdir()} & {"adapter.safetensors", "summary.json"}
    load(told_home, "sea").share_adapter(tmp_path/"alone")
    assert [p.name for p in (tmp_path/"alone").iterdir()] == ["adapter.safetensors"]
    want = answer(lm.adapt("sea", told_home/"checkpoints"), x)
    assert torch.equal(answer(lm.adapt(str(tmp_path/"alone")), x), want)
    assert find_adapter(str(tmp_path/"sea")).of == "told"

def test_a_file_of_pairs_is_scored(told_home, tmp_path):
    "The test pairs in a file of their own score what they score as test text"
    from diffusion_lm.training.recipe import load_config
    from diffusion_lm.training.report import text_of
    for run in ("told", "answers"):
        lm = load(told_home, run)
        store = text_of(load_config(lm.folder/"config.yaml"), lm.tokenizer, lm.folder, told_home/"data"/"cache").store
        pairs = [map(lm.tokenizer.decode, store.pair(i)) for i in store.numbers("test")]
        path = write_table(tmp_path/"test.jsonl", [{"question": q, "answer": a} for q, a in pairs])
        def score(*more, run=run): return json.loads(done(told_home, "eval", run, "--draws", 2, "--json", *more))
        own, file = score(), score("--file", path)
        assert file["conditions"] == own["conditions"] and file["bits_per_byte"] == own["bits_per_byte"]

@pytest.fixture
def told(home, told_home):
    shutil.copytree(told_home, home)
    return home

@pytest.mark.parametrize("args, why", [
    (["eval", "told", "--file", "qa.txt"], "qa.txt is no table"),
    (["eval", "told", "--file", "none.jsonl"], "none.jsonl"),
    (["eval", "told", "--likelihood", "order"], "'told' was trained with them"),
    (["eval", "answers", "--likelihood", "bracket"], "--likelihood bracket reads text without conditions"),
    (["eval", "answers", "--task", "piqa", "--file", "piqa.jsonl"], "--task reads text without conditions"),
    (["eval", "answers", "--style"], "--style reads text without conditions"),
    (["probe", "told"], "probe reads text without conditions, and 'told' was"),
    (["bench", "drift", "answers"], "bench drift reads text without conditions"),
    (["chat", "told"], "'told' answers to a condition"),
    (["chat", "answers"], "ask it with dlm sample"),
    (["compare", "told", "answers"], "dlm eval scores its answers")], ids=str)
def test_commands_that_read_no_conditions_say_so(refused, told, args, why):
    (told.parent/"cwd"/"qa.txt").write_text("Who came at 3? At 3 the cat came in.")
    (told.parent/"cwd"/"piqa.jsonl").write_text(json.dumps({"goal": "a", "sol1": "b", "sol2": "c", "label": 0}))
    assert why in refused(*args)

def test_a_chat_is_held_without_conditions(told_home):
    with pytest.raises(ValueError, match="answers to a condition"): Chat(load(told_home, "told").given("Who?"))
