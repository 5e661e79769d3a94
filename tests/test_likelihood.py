"""Likelihoods: what a rule scores is what its sampler writes, and `dlm eval --likelihood` from the command line."""
import json

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from diffusion_lm.core import rng
from diffusion_lm.models.block import BlockDiffusionModel
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig, randomize_
from diffusion_lm.sampling.sampler import sample
from diffusion_lm.theory.denoiser import NOTHING, Denoiser
from diffusion_lm.theory.likelihood import InBlocks, any_order, exact_nll, order_nll, path_nats
from diffusion_lm.theory.oracle import ToyLanguage


class Tables(Denoiser):
    "A random model, as a table of logits for each partly masked sentence of three words"
    def __init__(self, seed):
        super().__init__(8, (0, 1, 2, 3, 4))
        self.logits = torch.from_numpy(rng(seed, "tables").normal(size=(256, 4, 3)))
    def features(self, x, t=None, **kw):
        state = (torch.where(x == self.mask, 3, x - 5)*4**torch.arange(4)).sum(1)
        h = torch.full((*x.shape, 8), -torch.inf, dtype=torch.float64)
        h[..., 5:] = self.logits[state]
        return h, NOTHING
    def head(self, h): return h

SENTENCES, N = ToyLanguage().sentences, 20_000

def p_value(model, p, **options):
    "How well the texts of a sampler fit a law over all sentences (81,)"
    x = sample(model, torch.full((N, 4), model.mask), **options)
    counts = torch.bincount(((x - 5)*3**torch.arange(3, -1, -1)).sum(1), minlength=81).numpy()
    rare = N*p < 8
    seen, due = (np.append(v[~rare], v[rare].sum()) for v in (counts, N*p))
    keep = due > 0
    return chisquare(seen[keep], due[keep]).pvalue

def law(model, order, k=1): return order_nll(model, SENTENCES, order, k).sum(1).neg().exp().numpy()

RULES = [("left-to-right", 1), ("margin", 1), ("entropy", 1), ("margin", 2), ("entropy", 2)]

@pytest.mark.parametrize("order, k", RULES)
def test_a_rule_scores_what_its_sampler_writes(order, k):
    model = Tables(0)
    assert p_value(model, law(model, order, k), sampler=order, steps=4//k) > 1e-3
    wrong = law(model, order) if k > 1 else law(model, "margin" if order == "left-to-right" else "left-to-right")
    assert p_value(model, wrong, sampler=order, steps=4//k) < 1e-6

def test_random_order_is_first_hitting():
    model = Tables(1)
    p = exact_nll(model, SENTENCES)[:, 0].neg().exp().numpy()
    assert p_value(model, p, sampler="first-hitting") > 1e-3
    assert p_value(model, law(model, "margin"), sampler="first-hitting") < 1e-6

def test_in_blocks_is_the_sampler_in_blocks():
    model = Tables(2)
    p = exact_nll(InBlocks(model, 2), SENTENCES).sum(1).neg().exp().numpy()
    assert p_value(model, p, sampler="first-hitting", block=2) > 1e-3
    whole = exact_nll(model, SENTENCES)[:, 0].neg().exp().numpy()
    assert p_value(model, whole, sampler="first-hitting", block=2) < 1e-6

def net(objective="masked"):
    config = ModelConfig(width=32, heads=2, layers=2, length=12, block=4 if objective == "block" else None)
    kind = BlockDiffusionModel if objective == "block" else BaselineDreamModel
    return randomize_(kind(config, 20, (0, 1, 2, 3, 4))).eval().requires_grad_(False)

@pytest.mark.parametrize("objective", ["masked", "block"])
def test_networks(objective):
    "Sets, orders and rules agree on what a real network says; a short window that is padded, too"
    model, size = net(objective), 4 if objective == "block" else 6
    x = torch.randint(5, 20, (3, 2*size if objective == "block" else size), generator=torch.Generator().manual_seed(0))
    x[2, -2:] = model.pad
    units = x.shape[1]//size
    rank = torch.arange(size).repeat(units).expand(len(x), -1)
    torch.testing.assert_close(path_nats(model, x, rank), order_nll(model, x, "left-to-right"), atol=1e-5, rtol=0)
    torch.testing.assert_close(path_nats(model, x, rank, batch=3), path_nats(model, x, rank), atol=1e-5, rtol=0)
    exact, log_p = exact_nll(model, x), any_order(model, x, orders=200)
    assert log_p.shape == (3, units, 200)
    mean = log_p.logsumexp(-1) - np.log(200)
    spread = (log_p - mean[..., None]).exp().std(-1)/200**.5
    assert ((mean + exact).exp() - 1).abs().le(5*spread + 1e-4).all()

def test_orders_do_not_depend_on_the_batch():
    model, x = Tables(3), SENTENCES[:6]
    parts = [any_order(model, x[i:i + 2], 8, first=i) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), any_order(model, x, 8))

def test_eval_order(dlm, trained):
    status, out, err = dlm("eval", "tiny", "--likelihood", "order", "--order", "entropy", "--max-tokens", 128, "--json")
    assert status == 0, err
    said = json.loads(out)
    assert said["bits_per_byte"]["kind"] == "exact" and said["order"] == "entropy" and said["tokens_a_step"] == 1
    hasty = json.loads(dlm("eval", "tiny", "--likelihood", "order", "--k", 16, "--max-tokens", 128, "--json")[1])
    assert hasty["tokens_a_step"] == 16 and hasty["tokens_scored"] == said["tokens_scored"] <= 128
    status, out, _ = dlm("eval", "tiny", "--likelihood", "order", "--order", "left-to-right", "--max-tokens", 64)
    assert status == 0 and "≤" not in out and "bits/byte" in out

def test_eval_bracket(dlm, trained, tmp_path):
    text = tmp_path/"a.txt"
    text.write_text("The river sees a light. A road opens to the sea.")
    status, out, err = dlm("eval", "tiny", "--likelihood", "bracket", "--orders", 4, "--file", text, "--json")
    assert status == 0, err
    said = json.loads(out)
    assert said["below"]["value"] <= said["above"]["value"] <= said["nelbo"]["value"]
    assert 1 <= said["orders_that_count"] <= 4 == said["orders"] and said["bytes_scored"] >= len(text.read_text())
    out = dlm("eval", "tiny", "--likelihood", "bracket", "--orders", 3, "--file", text)[1]
    assert "above the true value" in out and "orders hold the mean" in out

@pytest.mark.parametrize("args, why", [
    (["--order", "margin"], "goes with --likelihood order"),
    (["--likelihood", "order", "--orders", 8], "goes with --likelihood bracket"),
    (["--likelihood", "bracket", "--draws", 2], "goes with --likelihood nelbo"),
    (["--likelihood", "best"], "likelihood"),
    (["--likelihood", "bracket", "--orders", 2], "at least 3"),
    (["--likelihood", "order", "--k", 0], "at least 1"),
    (["--style", "--likelihood", "order"], "--likelihood does not go with --style"),
])
def test_bad_likelihood(refused, trained, args, why): assert why in refused("eval", "tiny", *args)

def test_unknown_order(refused, trained):
    line = refused("eval", "tiny", "--likelihood", "order", "--order", "shortest")
    assert "unknown order 'shortest'" in line and "margin" in line
