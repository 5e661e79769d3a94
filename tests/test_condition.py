"""Conditional models end to end: pairs from tables, stages that do not move what rests, a run by the command line."""
import json

import pytest
import torch

from conftest import write_table
from diffusion_lm.cli import main, parse_train
from diffusion_lm.core import UserError
from diffusion_lm.files import read_json, read_jsonl, run_path
from diffusion_lm.lm import DiffusionLM, create_conditional
from diffusion_lm.models.transformer import ConditionConfig
from diffusion_lm.text.corpus import DataConfig
from diffusion_lm.text.store import TokenizerConfig, prepare
from diffusion_lm.training.recipe import build
from diffusion_lm.training.run import train
from diffusion_lm.weights import load_weights

ANIMALS = "cat dog fox owl hen pig ant bee cow elk".split()
SMALL = ["--tokenizer.vocab_size", "300", "--model.width", "16", "--model.heads", "1", "--model.layers", "2",
         "--model.length", "24", "--trainer.batch", "4", "--trainer.steps", "4", "--trainer.eval_every", "2",
         "--trainer.eval_tokens", "96", "--trainer.test_tokens", "240", "--trainer.test_draws", "1",
         "--trainer.save_every", "2", "--trainer.sample_every", "2", "--samples.steps", "2",
         "--trainer.compile", "false", "--trainer.device", "cpu", "--trainer.dtype", "float32", "--trainer.lr", "0.01"]
ENCODER = ["--model.condition.width", "16", "--model.condition.heads", "1", "--model.condition.layers", "1",
           "--model.condition.length", "8"]

def rows(n=60):
    return [{"question": f"Who came at {i}?", "answer": f"At {i} the {ANIMALS[i*7 % 10]} came in."} for i in range(n)]

@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_LM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.fixture
def story(home):
    "A text that a plain denoiser can read"
    path = home/"story.txt"
    path.write_text("<|endoftext|>".join(f"Who came at {r['question'][12:]} {r['answer']} So it was." for r in rows()))
    return path

def settings(path, *more):
    args = ["--data.path", str(path), "--data.column", "answer", "--data.condition", "question", *SMALL, *more]
    return parse_train(args)[0]

def decoder(story, name="decoder"):
    "A plain denoiser that is trained for four steps"
    return train(parse_train(["--data.path", str(story), *SMALL])[0], name, quiet=True)

def with_encoder(init, path, stage, *more):
    return parse_train(["--init", init, "--data.path", str(path), "--data.column", "answer", "--data.condition",
                        "question", *SMALL[2:], *ENCODER, "--trainer.stage", stage, *more])[0]

def of_condition(name): return name.startswith(("encoder.", "looks."))

@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_pairs_of_a_table(home, suffix):
    path = write_table(home/f"qa{suffix}", rows())
    corpus, tok, store = prepare(DataConfig(str(path), "answer", condition="question"), TokenizerConfig(vocab_size=300))
    assert [(d.condition, d.text) for d in corpus] == [(r["question"], r["answer"]) for r in rows()]
    found = {tuple(map(tok.decode, store.pair(i))) for i in range(len(store.middle))}
    assert found == {(r["question"], r["answer"]) for r in rows()}
    with pytest.raises(UserError, match=r"no column 'asks'; it has question, answer \(set data.condition\)"):
        prepare(DataConfig(str(path), "answer", condition="asks"), TokenizerConfig(vocab_size=300))
    with pytest.raises(UserError, match=r"no column 'text'; it has question, answer \(set data.column\)"):
        prepare(DataConfig(str(path), condition="question"), TokenizerConfig(vocab_size=300))

def test_the_same_pairs_in_any_format(home):
    prints = {prepare(DataConfig(str(write_table(home/f"qa{s}", rows())), "answer", condition="question"),
                      TokenizerConfig(vocab_size=300))[0].fingerprint for s in (".jsonl", ".csv", ".parquet")}
    assert len(prints) == 1

def test_stages_move_what_they_train_and_nothing_else(home, story):
    "Two optimizers, weight decay, an average of the weights and checkpoints: what rests stays, to the last bit"
    first, path = load_weights(decoder(story)/"model.safetensors"), write_table(home/"qa.jsonl", rows())
    run = train(with_encoder("decoder", path, "condition", "--trainer.ema", ".5"), "taught", quiet=True)
    taught, saved = load_weights(run/"model.safetensors"), load_weights(run/"step-000004"/"model.safetensors")
    for weights in (taught, saved):
        assert all(torch.equal(weights[n], p) for n, p in first.items())
        assert any(of_condition(n) for n in weights)
    untrained = build(with_encoder("decoder", path, "condition"), DiffusionLM.from_run("taught").tokenizer).model
    moved = {n for n, p in untrained.state_dict().items() if of_condition(n) and not torch.equal(p, saved[n])}
    assert moved == {n for n in saved if of_condition(n)}
    run = train(with_encoder("taught", path, "all"), "whole", quiet=True)
    whole = load_weights(run/"model.safetensors")
    assert {n for n, p in whole.items() if not torch.equal(p, taught[n])} == set(whole)
    cfg = parse_train(["--init", "taught", "--data.path", str(story), *SMALL[2:], "--trainer.stage", "decoder"])[0]
    alone = load_weights(train(cfg, "alone", quiet=True)/"model.safetensors")
    assert {n for n, p in alone.items() if torch.equal(p, taught[n])} == {n for n in whole if of_condition(n)}

def test_at_first_nothing_changes(home, story):
    "A conditional model that is new writes and scores as its decoder, with every condition and scale"
    decoder(story)
    plain = DiffusionLM.from_run("decoder")
    new = create_conditional("decoder", ConditionConfig(width=16, heads=1, layers=1))
    x = torch.randint(5, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    x[:, 5:12] = plain.model.mask
    with torch.no_grad():
        told = new.model.given(torch.tensor([[7, 8, 9], [10, 11, 0]]))(x)
        assert torch.equal(told, plain.model(x)) and torch.equal(new.model(x), plain.model(x))
    for c in ("", "Who came?", "Who came? "*40):
        assert new.given(c).generate("At", n=2, steps=3) == plain.generate("At", n=2, steps=3)

def test_a_conditional_run(home, story, capsys):
    "Trained, stopped, resumed, loaded, scored and sampled; the unbroken run is the same"
    decoder(story)
    path = write_table(home/"qa.csv", rows())
    args = ["--init", "decoder", "--data.path", str(path), "--data.column", "answer", "--data.condition", "question",
            *SMALL[2:], *ENCODER[:-1], "3", "--trainer.stage", "condition"]
    assert not main(["train", "--name", "whole", *args])
    said = capsys.readouterr().err
    assert "conditions are cut: only the first 3 tokens are read" in said
    assert not main(["train", "--name", "broken", *args, "--trainer.stop_at", "2"])
    assert not main(["train", "--name", "broken", "--resume"])
    weights = [load_weights(run_path(n)/"model.safetensors") for n in ("whole", "broken")]
    assert all(torch.equal(weights[1][n], p) for n, p in weights[0].items())
    summary, log = read_json(run_path("whole")/"summary.json"), read_jsonl(run_path("whole")/"log.jsonl")
    assert set(summary["conditions"]) == {"right", "another", "none"}
    assert summary["bits_per_byte"] == summary["conditions"]["right"]["bits_per_byte"]
    assert any("validation" in r for r in log)
    samples = read_jsonl(run_path("whole")/"samples.jsonl")
    said, = {r["condition"] for r in samples}
    assert "Who came at".startswith(said[:5]) and len(said) > 5 # cut, as the note says
    assert "its own condition" in (run_path("whole")/"report.md").read_text()
    capsys.readouterr()
    assert not main(["eval", "whole", "--json", "--draws", "1"])
    assert set(json.loads(capsys.readouterr().out)["conditions"]) == {"right", "another", "none"}
    asked = ["--condition", "Who came at 3?", "--condition-scale", "1.5", "--steps", "3", "--json"]
    assert not main(["sample", "whole", *asked])
    out, = json.loads(capsys.readouterr().out)
    assert out["condition"] == "Who came at 3?"
    lm = DiffusionLM.from_run("whole")
    assert out["text"] == lm.given("Who came at 3?", 1.5).generate("", steps=3, top_p=.9)[0]
    lm.save_pretrained(home/"shared")
    shared = DiffusionLM.from_run(home/"shared")
    assert shared.given("Who?").generate("At", steps=3) == lm.given("Who?").generate("At", steps=3)

def test_answers_in_the_window(home, capsys):
    "Without an encoder the prompt is plain context: it is read, and only the answer is masked and counted"
    path = write_table(home/"qa.jsonl", rows())
    run = train(settings(path), "answers", quiet=True)
    objective = build(settings(path), DiffusionLM.from_run("answers").tokenizer)
    assert type(objective).__name__ == "AnswerObjective"
    assert "conditions" in read_json(run/"summary.json")
    assert not main(["sample", "answers", "--condition", "Who came at 3?", "--prompt", "At 3", "--steps", "3"])
    assert capsys.readouterr().out.startswith("At 3")
    for objective in ("ar", "dual", "block"):
        more = ["--objective", objective] + (["--model.block", "8"] if objective == "block" else [])
        assert "conditions" in read_json(train(settings(path, *more), objective, quiet=True)/"summary.json")

def test_other_objectives_with_an_encoder(home):
    path = write_table(home/"qa.jsonl", rows())
    for objective in ("ar", "dual", "llada"):
        run = train(settings(path, *ENCODER, "--objective", objective), f"told-{objective}", quiet=True)
        assert "conditions" in read_json(run/"summary.json")
        assert DiffusionLM.from_run(run).given("Who came at 3?").generate("At", steps=3)

def refused(capsys, *args):
    "The one line of a refusal"
    assert main([*args]) == 2
    said, = (line for line in capsys.readouterr().err.splitlines() if line.startswith("dlm: "))
    return said

def test_bad_input(home, story, capsys):
    path = write_table(home/"qa.csv", rows())
    decoder(story)
    train(with_encoder("decoder", path, "condition"), "told", quiet=True)
    pairs = ["--data.path", str(path), "--data.column", "answer", "--data.condition", "question", *SMALL]
    said = refused(capsys, "sample", "told")
    assert "goes on from a condition: give --condition TEXT, or --condition '' for none" in said
    assert not main(["sample", "told", "--condition", "", "--steps", "2"])
    capsys.readouterr()
    assert "was not trained on pairs" in refused(capsys, "sample", "decoder", "--condition", "Who?")
    assert "goes with --condition" in refused(capsys, "sample", "decoder", "--condition-scale", "2")
    new = ["train", "--name", "new"]
    assert "needs pairs: set data.condition" in refused(capsys, *new, "--data.path", str(story), *SMALL, *ENCODER)
    assert "set model.condition" in refused(capsys, *new, *pairs, "--trainer.stage", "condition")
    assert "give a trained one with --init" in refused(capsys, *new, *pairs, *ENCODER, "--trainer.stage", "condition")
    assert "leave out data.condition" in refused(capsys, *new, *pairs, *ENCODER, "--trainer.stage", "decoder")
    assert "trainer.stage" in refused(capsys, *new, *pairs, *ENCODER, "--trainer.stage", "encoder")
    assert "leave out model.block" in refused(capsys, *new, *pairs, *ENCODER, "--objective", "block")
    asks = [a if a != "question" else "asks" for a in pairs]
    assert "it has question, answer (set data.condition)" in refused(capsys, *new, *asks)
    other = ["--model.condition.layers", "2"]
    said = refused(capsys, *new, "--init", "told", *pairs[:6], *SMALL[2:], *other)
    assert "model.condition.layers is 2 here and 1 there" in said
    assert not run_path("new").exists()
