"""Objective `dual` and the augmentations of autoregression: from the command line, and what they learn."""
import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from conftest import same_run, train_runs
from diffusion_lm.core import rng, seed_everything
from diffusion_lm.evaluation.metrics import score_windows
from diffusion_lm.files import read_jsonl
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig, randomize_
from diffusion_lm.theory.objective import ARConfig, LeftToRight, Objective, ar_nll


def network(causal=False, seed=0, **kw):
    seed_everything(seed)
    return BaselineDreamModel(ModelConfig(width=32, heads=2, layers=2, length=16, **kw), 13, range(5), causal)

def test_the_reading_is_that_of_a_causal_model():
    "The same weights in a causal model give the same numbers, padding and cache included"
    both, causal = (randomize_(network(c, neighbours=False)) for c in (False, True))
    causal.load_state_dict(both.state_dict())
    x = torch.randint(5, 13, (4, 16))
    x[1, 9:] = 0
    assert_close(ar_nll(LeftToRight(both), x), ar_nll(causal, x))
    start, more = x[:, :7], x[:, 7:]
    left = LeftToRight(both)
    _, carry = left.features(start)
    assert_close(left.features(more, cache=carry.cache)[0][0], causal.features(x)[0][0, 7:])

def cycles(n, seed):
    "Sentences that count on from a random token: the one before tells the next, and so does any other"
    first = torch.from_numpy(rng(seed, "cycles").integers(8, size=(n, 1)))
    return 5 + (first + torch.arange(16)) % 8

def learned(objective, steps):
    opt = torch.optim.AdamW(objective.parameters(), 3e-3)
    g = torch.Generator().manual_seed(0)
    for s in range(steps):
        loss = objective(cycles(32, s), torch.rand(32, 1, generator=g), torch.rand(32, 16, generator=g))
        opt.zero_grad()
        loss.backward()
        opt.step()

def nats(model): return float(score_windows(model, cycles(64, -1))[0].sum(1).mean())

def test_dual_learns_both_readings():
    "A guess costs 33 nats a sentence, perfect knowledge 2.1; one objective alone learns one reading"
    dual, masked = network(), network()
    learned(Objective(dual, "dual"), 200)
    learned(Objective(masked, "nelbo-count"), 200)
    assert nats(dual) < 8 and nats(LeftToRight(dual)) < 8
    assert nats(masked) < 8 and nats(LeftToRight(masked)) > 16

def test_augmented_rows_do_not_disturb_the_plain_reading():
    model = network(causal=True)
    learned(Objective(model, "ar", ar=ARConfig(replace=.05, reverse=.5, ahead=5)), 300)
    assert nats(model) < 4
    backwards = cycles(64, -1).flip(1)
    read = torch.cat([torch.full((64, 1), model.mask), backwards[:, :-1]], 1) # [MASK] says: from right to left
    logits = model(read)[:, 1:].log_softmax(-1)
    assert logits.argmax(-1).eq(backwards[:, 1:]).float().mean() > .99

@pytest.fixture(scope="module")
def dual_home(recipe, tmp_path_factory):
    home = tmp_path_factory.mktemp("dual")/"home"
    train_runs(home, recipe, ["--name", "both", "--objective", "dual"])
    return home

@pytest.fixture
def with_dual(home, dual_home):
    shutil.copytree(dual_home, home)
    return home

def test_a_dual_run_is_scored_both_ways(with_dual, dlm):
    run = with_dual/"checkpoints"/"both"
    summary = json.loads((run/"summary.json").read_text())
    assert summary["bits_per_byte"]["kind"] == "bound"
    assert summary["left_to_right"]["bits_per_byte"]["kind"] == "exact"
    notes = [r for r in read_jsonl(run/"log.jsonl") if "validation" in r]
    assert notes and all("bits_per_byte" in r["left_to_right"] for r in notes)
    assert "Read from left to right" in (run/"report.md").read_text()
    status, out, err = dlm("eval", "both", "--likelihood", "ar", "--json")
    assert status == 0, err
    r = json.loads(out)
    assert r["bits_per_byte"]["kind"] == "exact"
    assert r["bits_per_byte"]["value"] == pytest.approx(summary["left_to_right"]["bits_per_byte"]["value"], rel=.01)
    assert DiffusionLM.from_run("both").left_to_right().generate("The", n=2, seed=1)

def test_resumed_like_unbroken(dual_home, home, recipe, dlm, tmp_path):
    more = ("--config", recipe, "--objective", "dual", "--name", "both", "--trainer.save_every", 4)
    assert dlm("train", *more, "--trainer.stop_at", 8)[0] == 0
    assert dlm("train", *more, "--resume")[0] == 0
    same_run(home/"checkpoints"/"both", dual_home/"checkpoints"/"both")

@pytest.mark.parametrize("options, why", [
    (["--objective", "dual", "--ar.share", "1.5"], "share must be between 0 and 1"),
    (["--objective", "ar", "--ar.ahead", "0"], "ahead must be at least 1"),
    (["--objective", "dual", "--model.block", "8"], "goes with objective block")])
def test_bad_recipes(refused, recipe, options, why):
    assert why in refused("train", "--config", recipe, *options)

def test_a_causal_run_has_no_other_reading(trained, refused):
    assert "from left to right anyway" in refused("eval", "tiny-ar", "--likelihood", "ar")

def test_idle_fields_are_named(home, recipe, dlm):
    _, _, err = dlm("train", "--config", recipe, "--ar.replace", ".1", "--trainer.stop_at", 1)
    assert "ar.replace changes nothing: it goes with objectives ar and dual" in err
