"""A new run with the weights of another run: it begins where that one ended, and afterwards it needs it no longer.

What must match is named.
"""
import json
import shutil
from dataclasses import replace

import pytest

from conftest import same_run, story, tree
from diffusion_lm.cli import parse_train
from diffusion_lm.core import UserError
from diffusion_lm.files import digest, read_json, read_jsonl
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.text.store import Loader, store_of
from diffusion_lm.theory.objective import Objective
from diffusion_lm.training.checkpoint import steps_of
from diffusion_lm.training.recipe import config_from, load_config
from diffusion_lm.training.run import train
from diffusion_lm.weights import load_weights


@pytest.fixture
def other(tmp_path):
    "Another text than the one that the runs were trained on"
    path = tmp_path/"other.txt"
    path.write_text(story(7), encoding="utf-8")
    return path

SHORT = ["--trainer.steps", 12, "--trainer.batch", 4, "--trainer.log_every", 1, "--trainer.save_every", 4,
         "--trainer.eval_every", 50, "--trainer.sample_every", 50,
         "--trainer.device", "cpu", "--trainer.dtype", "float32",
         "--samples.steps", 4, "--samples.prompts", '[""]', "--samples.templates", "[]"]

def begun(dlm, other, name="mine", *more):
    status, out, err = dlm("train", "--init", "tiny", "--data.path", other, "--name", name, *SHORT, *more)
    assert status == 0, err
    return err

def test_it_begins_where_the_other_run_ended(dlm, trained, other):
    "Model, tokenizer and objective are the other run's; the first loss is what its weights have on that batch"
    err = begun(dlm, other)
    run, source = trained/"checkpoints"/"mine", trained/"checkpoints"/"tiny"
    cfg, was = load_config(run/"config.yaml"), load_config(source/"config.yaml")
    assert cfg.model == was.model and cfg.objective == was.objective == "nelbo-count"
    assert digest(run/"tokenizer.json") == digest(source/"tokenizer.json")
    assert "beginning with the weights of 'tiny'" in err
    lm = DiffusionLM.from_run("tiny", device="cpu")
    b = Loader(store_of(cfg.data, lm.tokenizer), cfg.model.length, 4, seed=cfg.seed).batch(0)
    loss = Objective(lm.model, cfg.objective, cfg.noise).train()(b.x, b.t, b.u)
    first = next(r for r in read_jsonl(run/"log.jsonl") if "loss" in r)
    assert first["step"] == 1 and first["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    want = {"run": "tiny", "digest": digest(source/"model.safetensors")}
    assert read_json(run/"summary.json")["init"] == want and (cfg.init.run, cfg.init.digest) == ("tiny", want["digest"])
    assert f"weights of `tiny` (digest {want['digest'][:12]})" in (run/"report.md").read_text()
    assert read_json(run/"summary.json")["steps"] == 12 # counted anew

def test_what_may_differ(dlm, trained, other):
    "Length, dropout, the objective within its family; the run is named by its folder or by a file of weights"
    source = trained/"checkpoints"/"tiny"
    starts = [
        (source, ["--model.length", 64]),
        (source/"model.safetensors", ["--objective", "llada"]),
        (source/"step-000016"/"model.safetensors", ["--model.dropout", .1, "--tokenizer.load", source]),
    ]
    for i, (init, more) in enumerate(starts):
        options = ["--data.path", other, "--name", f"n{i}", *SHORT, "--trainer.steps", 1, *more]
        status, out, err = dlm("train", f"--init={init}", *options)
        assert status == 0, err
    assert load_config(trained/"checkpoints"/"n0"/"config.yaml").init.run == "tiny"
    init = read_json(trained/"checkpoints"/"n2"/"summary.json")["init"]
    assert init["run"].endswith("step-000016/model.safetensors")

@pytest.mark.parametrize("args, named", [
    (["--model.width", 32], ["model.width is 32 here and 16 there"]),
    (["--model.layers", 3, "--model.heads", 1],
     ["model.layers is 3 here and 1 there", "model.heads is 1 here and 2 there"]),
    (["--model.preset", "tiny"], ["model.width is 256 here and 16 there"]),
    (["--model.time_conditioning", "true"], ["model.time_conditioning is True here and False there"]),
    (["--objective", "ar"], ["objective is ar (causal) here and nelbo-count (bidirectional) there"]),
    (["--objective", "block", "--model.block", 4], ["model.block is 4 here and None there", "(in blocks) here"]),
    (["--objective", "block", "--model.block", 4, "--model.thought.dims", "[2]"],
     ["model.thought is a stack here and none there"]),
    (["--tokenizer.vocab_size", 400], ["tokenizer.vocab_size is 400 here and 300 there"]),
    (["--tokenizer.load", "OTHER"], ["vocabulary is 290 here and 300 there", "tokenizer is "]),
    (["--init", "tinny"], ["unknown run 'tinny'; did you mean 'tiny'?"]),
    (["--resume"], ["leave out one of them"])], ids=lambda a: a[0])
def test_what_must_match_is_named(refused, trained, other, tmp_path, args, named):
    "And nothing is written"
    if "OTHER" in args:
        from diffusion_lm.text.tokenizer import train_tokenizer
        train_tokenizer([story(3, 500)], vocab_size=290).save(tmp_path/"tokenizer.json")
        args = ["--tokenizer.load", tmp_path/"tokenizer.json"]
    args = args if "--init" in args else ["--init", "tiny", *args]
    line = refused("train", "--data.path", other, "--name", "mine", *args)
    for n in named: assert n in line

def test_damaged_or_changed_weights(refused, trained, other, dlm):
    begun(dlm, other)
    weights = trained/"checkpoints"/"tiny"/"model.safetensors"
    shutil.copy(trained/"checkpoints"/"tiny"/"step-000016"/"model.safetensors", weights)
    config = trained/"checkpoints"/"mine"/"config.yaml"
    assert "have changed since" in refused("train", "--config", config, "--name", "again")
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "is damaged" in refused("train", "--init", "tiny", "--data.path", other, "--name", "again")

@pytest.mark.parametrize("stop", [None, 5])
def test_it_stands_alone(dlm, trained, other, monkeypatch, stop):
    "Resumed without the other run, it ends as if it had not been stopped, even before its first checkpoint"
    begun(dlm, other, "whole")
    if stop: begun(dlm, other, "mine", "--trainer.stop_at", stop)
    else:
        with monkeypatch.context() as m:
            def killed(learn): raise KeyboardInterrupt
            m.setattr("diffusion_lm.training.learner.Learner.fit", killed)
            assert dlm("train", "--init", "tiny", "--data.path", other, "--name", "mine", *SHORT)[0] == 130
        assert not steps_of(trained/"checkpoints"/"mine")
    shutil.rmtree(trained/"checkpoints"/"tiny")
    status, out, err = dlm("train", "--name", "mine", "--resume")
    assert status == 0, err
    same_run(trained/"checkpoints"/"whole", trained/"checkpoints"/"mine")

def test_in_python_and_in_a_recipe(trained, other, tmp_path, monkeypatch):
    cfg = config_from("tiny")
    assert cfg.init.run == "tiny" and cfg.model.width == 16
    assert cfg.tokenizer.vocab_size == 300 and cfg.trainer.steps == 2000
    path = tmp_path/"r.yaml"
    for init in ("tiny", "{run: tiny}"):
        path.write_text(f"init: {init}\ndata: {{path: {other}}}\ntrainer: {{steps: 3}}")
        got, _ = parse_train(["--config", str(path)])
        assert got.init == cfg.init and got.model == cfg.model
        assert got.trainer.steps == 3 and got.tokenizer == cfg.tokenizer
    assert parse_train(["--config", str(path), "--init", "null"])[0].init is None
    with pytest.raises(UserError, match="leave out one"): train(cfg, "mine", resume=True, init="tiny")
    wider = replace(cfg, model=replace(cfg.model, width=32))
    with pytest.raises(UserError, match="model.width is 32"): train(wider, "mine", init="tiny", quiet=True)
    assert not (trained/"checkpoints"/"mine").exists()

def test_an_autoregressive_run_and_its_text_prepared(dlm, trained, other):
    "The objective is the other run's, and `prepare` makes the store that the training reads"
    status, out, err = dlm("prepare", "--init", "tiny-ar", "--data.path", other, "--json")
    assert status == 0, err
    store, stores = json.loads(out)["store"], tree(trained/"data")
    options = ["--data.path", other, "--name", "mine", *SHORT, "--trainer.steps", 1]
    status, out, err = dlm("train", "--init", "tiny-ar", *options)
    assert status == 0, err
    assert set(tree(trained/"data")) == set(stores)
    s = read_json(trained/"checkpoints"/"mine"/"summary.json")
    assert s["objective"] == "ar" and s["data"]["store"] == store

def test_thoughts(dlm, home, recipe, other):
    "A model with thoughts goes on with all of its weights, however it is trained to use them"
    block = ["--objective", "block", "--model.block", 4, "--model.thought.dims", "[2,2]", "--model.thought.depth", 3]
    status, out, err = dlm("train", "--config", recipe, "--name", "first", *block, "--trainer.steps", 2)
    assert status == 0, err
    still = ["--trainer.steps", 2, "--trainer.lr", 1e-12, "--trainer.weight_decay", 0]
    options = ["--data.path", other, "--name", "second", *SHORT, *still, "--model.thought.typos", .1]
    status, out, err = dlm("train", "--init", "first", *options)
    assert status == 0, err
    a, b = (load_weights(home/"checkpoints"/n/"model.safetensors") for n in ("first", "second"))
    assert all((a[k] - b[k]).abs().max() < 1e-6 for k in a)
