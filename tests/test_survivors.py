"""What could be broken without any page noticing: each test was written for a change that all other tests let pass."""
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion_lm.core import rng, seed_everything
from diffusion_lm.evaluation.metrics import by_level, evaluate, score_windows, yardsticks
from diffusion_lm.files import read_json
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.layers import RMSNorm, SwiGLU, TimeEmbedding, TransformerLayer, rope_freq, rope_table
from diffusion_lm.models.thought import (
    Reader,
    ThoughtConfig,
    ThoughtLosses,
    Writer,
    between,
    newest_first,
    no_thoughts,
    push,
)
from diffusion_lm.models.thought_model import StackedDiffusionModel3D, ThoughtObjective
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig, randomize_
from diffusion_lm.sampling.policies import Ancestral, PredictorCorrector, ReMDM, Step
from diffusion_lm.text.store import Batch, eval_windows, prepare
from diffusion_lm.theory.denoiser import NOTHING, Denoiser
from diffusion_lm.theory.objective import NoiseConfig, Objective, token_nll
from diffusion_lm.theory.oracle import ToyLanguage
from diffusion_lm.theory.schedule import grid, information_grid
from diffusion_lm.training.callbacks import Awaken, MaskRange, Validate
from diffusion_lm.training.checkpoint import EMA, Checkpoint
from diffusion_lm.training.curriculum import Curriculum, CurriculumConfig, Stage
from diffusion_lm.training.learner import Best, Callback, Learner, StageSpan, TrainConfig, lr_factor, make_optimizers
from diffusion_lm.training.recipe import load_config
from diffusion_lm.weights import load_weights

SPECIALS = (0, 1, 2, 3, 4)
REFERENCE = Path(__file__).resolve().parents[1]/"checkpoints"/"sotu-4m"

# ---- training ----

class Batches:
    "A loader of random tokens: batch number n depends on n alone"
    batch_size, length = 4, 16
    def batch(self, step, rank=0, world=1):
        g = torch.Generator().manual_seed(step)
        x = torch.randint(5, 60, (4, 16), generator=g)
        b = Batch(x, torch.rand(4, 1, generator=g).clamp(min=.1), torch.rand(4, 16, generator=g))
        return Batch(*(v if v is None else v[rank::world] for v in b))

class Faulty(Objective):
    "NaN at the calls in `bad`"
    bad, calls = (), 0
    def forward(self, *batch):
        self.calls += 1
        return super().forward(*batch)*(math.nan if self.calls - 1 in self.bad else 1)

class Keep(Callback):
    "Remember losses, learning rates and weights"
    def __init__(self): self.losses, self.rates, self.weights = [], [], []
    def after_step(self, learn):
        self.losses.append(float(learn.loss))
        self.rates.append({g["lr"] for o in learn.opts for g in o.param_groups})
        self.weights.append([p.detach().clone() for p in learn.model.parameters()])

def learner(*callbacks, bad=(), dropout=0., **kw):
    seed_everything(0)
    model = BaselineDreamModel(ModelConfig(width=16, heads=2, layers=2, length=16, dropout=dropout), 60, SPECIALS)
    cfg = TrainConfig(**dict(steps=6, lr=1e-2, batch=4, device="cpu", dtype="float32") | kw)
    learn = Learner(Faulty(model), Batches(), cfg, callbacks)
    learn.raw.bad = bad
    return learn

def test_resumed_with_dropout_is_unbroken(tmp_path):
    "Dropout draws from PyTorch's generator, whose state is part of a checkpoint"
    whole, first, then = Keep(), Keep(), Keep()
    learner(whole, dropout=.3).fit()
    learner(first, Checkpoint(tmp_path), dropout=.3, stop_at=3).fit()
    torch.manual_seed(99) # what the second process happens to have drawn
    learn = learner(then, Checkpoint(tmp_path), dropout=.3)
    torch.rand(7)
    assert learn.restore(tmp_path)[0].name == "step-000003"
    learn.fit()
    assert first.losses + then.losses == whole.losses
    for a, b in zip(whole.weights[-1], then.weights[-1]): assert torch.equal(a, b)

def test_ema_stands_still_in_skipped_steps(tmp_path):
    keep = Keep()
    learn = learner(EMA(), keep, Checkpoint(tmp_path), bad=(1, 2), ema=.75, steps=5)
    learn.fit()
    w = [keep.weights[i] for i in (0, 3, 4)] # steps 1 and 2 were skipped: nothing moved
    for a, b in zip(keep.weights[0], keep.weights[2]): assert torch.equal(a, b)
    assert int(learn.ema.n_averaged) == 3
    for average, *ws in zip(learn.ema.module.parameters(), *w):
        assert torch.allclose(average, .75*(.75*ws[0] + .25*ws[1]) + .25*ws[2], atol=1e-6)
    saved = load_weights(tmp_path/"model.safetensors") # the weights to use are the averaged ones
    for k, v in learn.ema.module.state_dict().items(): assert torch.equal(saved[k], v)

@pytest.mark.parametrize("schedule, expected", [
    ("wsd", [1/4, 2/4, 3/4, 1, 1, 1, 1, 1, 1, 1, 1, 9/10, 8/10, 7/10, 6/10, 5/10, 4/10, 3/10, 2/10, 1/10]),
    ("cosine", [1/4, 2/4, 3/4, 1, *(.5 + .5*math.cos(math.pi*k/16) for k in range(16))])])
def test_learning_rate_of_every_step(schedule, expected):
    "Four steps up of twenty; a trapezoid falls over the last ten, half a cosine over all that are left"
    cfg = TrainConfig(steps=20, warmup=.2, decay=.5, lr_schedule=schedule)
    assert np.allclose([lr_factor(s, cfg) for s in range(20)], expected, atol=1e-12)
    keep = Keep()
    learner(keep, steps=20, warmup=.2, decay=.5, lr_schedule=schedule, stop_at=3).fit()
    assert np.allclose([list(r) for r in keep.rates], [[1e-2*e] for e in expected[:3]]) # all groups of all optimizers
    assert lr_factor(0, replace(cfg, warmup=0.)) == 1 and lr_factor(19, replace(cfg, decay=0., lr_schedule="wsd")) == 1

TIMED = ModelConfig(width=16, heads=2, layers=2, length=16, time_conditioning=True)

@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_what_decays(optimizer):
    "Without a gradient a step is the decay alone: every matrix shrinks, the embedding too; no gain or bias does"
    model = randomize_(BaselineDreamModel(TIMED, 60, SPECIALS), std=1.)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    opts = make_optimizers(model, TrainConfig(optimizer=optimizer, lr=.1, weight_decay=.5))
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    for o in opts: o.step()
    for n, p in model.named_parameters():
        kept = 1 - .1*.5 if p.ndim > 1 else 1.
        assert torch.allclose(p, before[n]*kept, atol=1e-6), n
    assert {p.ndim for p in model.parameters()} == {1, 2}

def test_which_optimizer_steps_what():
    "Muon takes the matrices of the blocks, but not those that only scale and shift them; AdamW the rest"
    model = BaselineDreamModel(TIMED, 60, SPECIALS)
    adamw, muon = make_optimizers(model, TrainConfig())
    own = {id(p) for g in muon.param_groups for p in g["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in own}
    parts = ("attn.qkv", "attn.out", "ff.up", "ff.down")
    assert names == {f"blocks.{i}.{part}.weight" for i in (0, 1) for part in parts}
    assert len(own) + sum(len(g["params"]) for g in adamw.param_groups) == len([*model.parameters()])
    assert len(make_optimizers(model, TrainConfig(), muon=False)) == 1

class Ones:
    "An optimizer that notes the norm of the gradient that it is given"
    param_groups = [{}]
    def __init__(self, model): self.model, self.norms = model, []
    def step(self, *args):
        self.norms.append(float(torch.stack([p.grad.norm() for p in self.model.parameters()]).norm()))
    def zero_grad(self):
        for p in self.model.parameters(): p.grad = None

@pytest.mark.parametrize("clip", [.5, 1e6])
def test_gradient_is_clipped_after_it_is_measured(clip):
    learn = learner(steps=2, clip=clip)
    learn.opts = [ones := Ones(learn.model)]
    learn.train_step()
    assert float(learn.grad_norm) > 1 and math.isclose(ones.norms[0], min(clip, float(learn.grad_norm)), rel_tol=1e-3)

def test_betas_and_rates_of_the_optimizers():
    model = BaselineDreamModel(ModelConfig(width=16, heads=2, layers=1, length=16), 60, SPECIALS)
    adamw, muon = make_optimizers(model, TrainConfig(lr=.007))
    assert {tuple(g["betas"]) for g in adamw.param_groups} == {(.9, .95)}
    assert {g["lr"] for o in (adamw, muon) for g in o.param_groups} == {.007}
    for p in model.parameters(): p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    for p in model.parameters(): p.data.zero_()
    muon.step()
    for p in muon.param_groups[0]["params"]: # one learning rate serves both: an update is as large as one of AdamW
        assert .12 < float(p.detach().square().mean().sqrt())/.007 < .25, p.shape

def test_mask_ratios_move_the_times():
    "A curriculum's range of mask ratios, [low, high], is where times between 0 and 1 go"
    learn = learner()
    learn.mask_range = .2, .6
    (x, t, *_), = learn._split(b := Batches().batch(0))
    assert torch.allclose(t, .2 + .4*b.t) and torch.equal(x, b.x)

# ---- callbacks ----

class StandIn(SimpleNamespace):
    @property
    def progress(self): return self.step/self.cfg.steps

def stand_in(step=0, steps=10, **kw):
    "As much of a learner as a callback looks at"
    notes = []
    usual = dict(step=step, cfg=TrainConfig(steps=steps, eval_every=5), best=None, stage=None, skipped=False,
                 done=False, mask_range=(0., 1.), notes=notes, note=lambda **r: notes.append(r),
                 read_from=lambda loader: None)
    return StandIn(**usual | kw)

def test_masks_widen_line_by_line():
    learn, c = stand_in(), MaskRange(NoiseConfig(progress="linear", low=.2, high=.7))
    c.before_fit(learn)
    seen = [learn.mask_range]
    for learn.step in range(1, 11):
        c.after_step(learn)
        seen.append(learn.mask_range)
    assert np.allclose(seen, [(0., .2 + .05*i) for i in range(11)]) # behind the last step, all of it

def test_masks_widen_where_nothing_improves():
    learn, c = stand_in(steps=40), MaskRange(NoiseConfig(progress="adaptive", low=.2, high=.45))
    c.before_fit(learn)
    # of evaluations every 5 steps, those at 10, 20 and 25 were no better
    for learn.step, best in ((5, 5), (7, 5), (10, 5), (15, 15), (20, 15), (25, 15)):
        learn.best = Best(1., best)
        c.after_step(learn)
    assert np.allclose([n["mask_range"][1] for n in learn.notes], [.3, .4, .45])
    assert np.allclose(learn.mask_range, (0., .45))

def test_random_ranges_are_ranges():
    learn, c = stand_in(steps=200), MaskRange(NoiseConfig(progress="random", low=.2, high=.7), seed=3)
    seen = []
    for learn.step in range(200):
        c.narrow(learn)
        seen.append(learn.mask_range)
    lo, hi = np.array(seen).T
    assert (lo < hi).all() and .2 <= lo.min() < .22 and .68 < hi.max() <= .7 and abs(np.mean(seen) - .45) < .02

def test_when_thoughts_awake():
    learn, c, seen = stand_in(steps=10, raw=SimpleNamespace()), Awaken(late=.3, ramp=.4), []
    for learn.step in range(10):
        c.after_step(learn)
        seen.append((learn.raw.awake, round(learn.raw.ramp, 6)))
    assert seen == [(False, 0.)]*3 + [(True, r) for r in (0., .25, .5, .75, 1., 1., 1.)]
    Awaken().after_step(learn := stand_in(raw=SimpleNamespace()))
    assert (learn.raw.awake, learn.raw.ramp) == (True, 1.)

def test_early_stop_counts_evaluations():
    c = Validate.__new__(Validate)
    cfg = replace(TrainConfig(), steps=100, eval_every=5, early_stop=3)
    def enough(step, best, stage=None): return c.enough(stand_in(step, cfg=cfg, best=Best(1., best), stage=stage))
    assert [enough(s, 10) for s in (20, 24, 25)] == [False, False, True] # three after the best
    early, last = StageSpan("a", 0, 95, False), StageSpan("b", 30, 95, True)
    assert not enough(90, 10, early) # only in the last stage,
    assert [enough(s, 10, last) for s in (44, 45)] == [False, True] # from its beginning on
    assert not c.enough(stand_in(90, cfg=replace(cfg, early_stop=None), best=Best(1., 10)))

# ---- a curriculum ----

def curriculum(masking="linear", steps=20, **kw):
    low, high, loader = [.5, .2, 0], [.9, .4, 1], SimpleNamespace(batch_size=2, length=10)
    stages = [Stage(f"{i}", loader, lo, hi, 5, 60, (lo, hi) == (0, 1)) for i, (lo, hi) in enumerate(zip(low, high))]
    cfg = CurriculumConfig(reads=["sentences", "pairs", "text"], easy=[.5, 1, 1], low=low, high=high, shares=[2, 1, 1],
                           masking=masking, **kw)
    return Curriculum(stages, cfg.check()), stand_in(steps=steps)

def run_stages(c, learn, losses=None):
    "Walk through all steps; the stage and the masked shares of each"
    c.before_fit(learn)
    seen = []
    for i in range(learn.cfg.steps):
        seen.append((learn.stage.name, *(round(float(v), 6) for v in learn.mask_range)))
        learn.step, learn.loss = i + 1, torch.tensor(1. if losses is None else losses[i])
        c.after_step(learn)
    return seen

def test_stages_and_masks_step_by_step():
    "Masks fall from the highest to the lowest share of each stage, both ends included; the last stage has all of them"
    seen = run_stages(*curriculum())
    assert [s for s, *_ in seen] == ["0"]*10 + ["1"]*5 + ["2"]*5
    assert np.allclose([s[1] for s in seen[:15]], [*np.linspace(.9, .5, 10), *np.linspace(.4, .2, 5)], atol=1e-5)
    assert all(a == b for _, a, b in seen[:15]) and {s[1:] for s in seen[15:]} == {(0., 1.)}

def test_stages_by_epochs():
    "So often does a stage read its 60 tokens, 20 a step; the last goes on to the end, and a step is left for the next"
    c, learn = curriculum(epochs=[1., 2.5, 1.])
    assert [s for s, *_ in run_stages(c, learn)] == ["0"]*3 + ["1"]*8 + ["2"]*9
    c, learn = curriculum(epochs=[9., 9., 1.])
    assert [s for s, *_ in run_stages(c, learn)] == ["0"]*19 + ["1"]

def test_a_stage_without_progress_is_left():
    "An eighth counts as progress if the loss fell by 1 % or more of the least one"
    falling, nearly = [.98**i for i in range(80)], [1 - .0005*i for i in range(80)]
    # eighths of 40 steps: the first sets the mark, two without progress end it
    for losses, first in ((falling, 40), (nearly, 15)):
        c, learn = curriculum(steps=80, patience=2)
        stages = [s for s, *_ in run_stages(c, learn, losses)]
        assert stages.count("0") == first, stages.count("0")

def test_masks_widen_while_the_loss_falls():
    "A quarter of the range at first, another with each eighth whose mean loss is lower than that of the one before"
    c, learn = curriculum("adaptive", steps=32)
    tops = [s[2] for s in run_stages(c, learn, [1, 1, .9, .9, .8, .8, .9, .9] + [.7]*24)][:16]
    assert np.allclose(tops, .5 + .4*np.array([1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4])/4, atol=1e-5)

# ---- what is minimised ----

def test_plain_loss_is_the_default():
    toy = ToyLanguage()
    h = toy.conditional(torch.full((1, 4), toy.mask))[0]
    y = torch.tensor([5, 6, 7, 5])
    assert torch.allclose(token_nll(toy, h, y), -h.gather(1, y[:, None])[:, 0])

def test_grids_between_their_ends():
    assert np.allclose(grid("uniform", 4), [1, .75, .5, .25, 0])
    assert np.allclose(grid("cosine", 4), [1, math.cos(math.pi/8), math.cos(math.pi/4), math.cos(3*math.pi/8), 0])
    assert np.allclose(grid("fisher-rao", 4), [1, math.cos(math.pi/8)**2, .5, math.cos(3*math.pi/8)**2, 0])
    # nothing to tell the ratios apart
    assert np.allclose(grid(information_grid([2., 2., 2., 2.]), 4), [1, .75, .5, .25, 0])

def test_llada_floor():
    "At time 0 one token in a thousand is still masked, with a weight of a thousand; at time 1 all are"
    obj = Objective(ToyLanguage(), "llada")
    x = torch.full((3, 4), 5)
    masked, w = obj.corrupt(x, torch.tensor([[0.], [.5], [1.]]), torch.tensor([[.0009, .0011, .5, .9999]]).expand(3, 4))
    assert masked.tolist() == [[True, False, False, False], [True, True, True, False], [True]*4]
    assert torch.allclose(w, torch.tensor([[1000.], [1/.5005], [1.]]).expand(3, 4))

# ---- the network ----

def test_angles_of_rotary_positions():
    assert torch.allclose(rope_freq(8), torch.tensor([1., .1, .01, .001]))
    cos, sin = rope_table(torch.tensor([0, 3]), 8)
    angles = torch.tensor([3., .3, .03, .003])
    assert torch.allclose(cos[1, 0], angles.cos().repeat(2))
    assert torch.allclose(sin[1, 0], torch.cat([-angles.sin(), angles.sin()]))

def test_time_is_told_by_waves_of_many_lengths():
    e = TimeEmbedding(6, n_freq=4)
    assert torch.allclose(e.freq, torch.tensor([1000., 100., 10., 1.]))
    a = .3*e.freq
    assert torch.allclose(e(torch.tensor([.3]))[0, 0], e.net(torch.cat([a.cos(), a.sin()])), atol=1e-6)
    # a time for each token
    assert torch.allclose(e(torch.tensor([[.3, .7]]))[0, 0], e(torch.tensor([.3]))[0, 0], atol=1e-6)

def test_width_of_the_gated_layer():
    "Eight thirds of the width, rounded up to 64"
    assert [SwiGLU(d).down.in_features for d in (24, 25, 128, 256, 384, 512)] == [64, 128, 384, 704, 1024, 1408]

def test_a_timed_block_scales_shifts_and_gates():
    torch.manual_seed(0)
    b, x, c = TransformerLayer(16, 2, timed=True), torch.randn(2, 6, 16), torch.randn(2, 1, 16)
    torch.nn.init.normal_(b.ada.weight)
    torch.nn.init.normal_(b.ada.bias)
    c1, s1, g1, c2, s2, g2 = b.ada(c).chunk(6, -1)
    y = x + (1 + g1)*b.attn(b.norm1(x)*(1 + c1) + s1)[0]
    assert torch.allclose(b(x, cond=c)[0], y + (1 + g2)*b.ff(b.norm2(y)*(1 + c2) + s2), atol=1e-5)

def test_dropout_drops_what_both_halves_add():
    torch.manual_seed(0)
    x = torch.randn(1, 400, 16)
    for part in ("attn", "ff"):
        b = TransformerLayer(16, 2, dropout=.25)
        torch.nn.init.zeros_((b.ff.down if part == "attn" else b.attn.out).weight)
        added, whole = b(x)[0] - x, b.eval()(x)[0] - x
        dropped = added == 0
        assert abs(float(dropped.float().mean()) - .25) < .03
        assert torch.allclose(added[~dropped], whole[~dropped]/.75, atol=1e-5)

def test_norm_of_nearly_nothing():
    x = torch.full((1, 4), 1e-3)
    for y in (RMSNorm(4)(x), RMSNorm(4).requires_grad_(False)(x.clone())): assert torch.allclose(y, x/(1e-6 + 1e-6)**.5)

# ---- thoughts ----

THOUGHT = ThoughtConfig([2, 2], 8, 3, forget=0.)

def test_which_slots_the_heads_see():
    "Of eight thoughts the first third of the heads sees two, the second the next four, the last all; all see *nothing*"
    reader = Reader(replace(THOUGHT, depth=8), 16, heads=3)
    sees = reader.sees(torch.ones(1, 8, dtype=torch.bool))[0, :, 0].int().tolist()
    assert sees == [[1, 1, 0, 0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1, 1, 0, 0, 1], [1]*9]

def test_a_new_writer_mostly_writes_and_importance_has_bounds():
    torch.manual_seed(0)
    w = Writer(THOUGHT, 16)
    assert torch.equal(w.gate.bias, torch.full((8,), 2.))
    h, old = torch.randn(3, 5, 16), torch.randn(3, 2, 2, 8)
    for bias, worth in ((1e4, 3.), (-1e4, -3.), (0., None)):
        with torch.no_grad(): w.worth.bias.fill_(bias)
        new, importance = w(h, old)
        if worth: assert torch.allclose(importance, torch.tensor(worth).sigmoid().expand(3))
    with torch.no_grad():
        w.worth.weight.zero_()
        w.worth.bias.fill_(1.)
    assert torch.allclose(w(h, old)[1], (3*torch.tensor(1/3).tanh()).sigmoid().expand(3))
    with torch.no_grad(): w.gate.weight.zero_()
    g = torch.tensor(2.).sigmoid()
    candidate = ((w(h, old)[0] - (1 - g)*old)/g).flatten(1, -2)
    assert torch.allclose(candidate.square().mean(-1), torch.ones(3, 4), atol=1e-3) # of size one

def test_auxiliary_losses_one_by_one():
    torch.manual_seed(0)
    weights = {"next": .5, "contrastive": 2., "sparsity": 3., "diversity": 0.}
    aux = ThoughtLosses(THOUGHT, 16, 16, weights)
    new, before, memory = torch.randn(4, 2, 2, 8), torch.randn(4, 2, 2, 8), torch.randn(4, 4, 16)
    rows = torch.tensor([True, True, False, True])
    parts = aux(new, rows, memory, before)
    z = new[rows]
    assert set(parts) == {"next", "contrastive", "sparsity"} # a weight of zero leaves its loss out
    assert torch.allclose(parts["next"], (aux.guess(memory[rows]).flatten(1) - z.flatten(1)).square().mean())
    assert torch.allclose(parts["sparsity"], z.abs().mean())
    a, b = (torch.nn.functional.normalize(aux.point(v.flatten(1)), dim=-1) for v in (z, before[rows]))
    assert torch.allclose(parts["contrastive"], -(a @ b.T/.1).log_softmax(-1).diagonal().mean(), atol=1e-5)
    assert torch.allclose(aux.total(parts, .25), .25*sum(weights[k]*v for k, v in parts.items()))
    aux(new, rows, memory, before)["next"].backward()
    assert aux.guess.weight.grad.abs().max() > 0

def test_between_two_stacks_only_what_both_have():
    def one(v, w): return push(no_thoughts(THOUGHT, 1), torch.full((1, 2, 2, 8), v), torch.tensor([w]))
    a, b = one(1., .2), one(3., .6)
    b = push(b, torch.full((1, 2, 2, 8), 5.), torch.tensor([1.]))
    m = between(a, b, .5)
    assert m.filled.tolist() == [[True, False, False]] and m.maps[0, 0].unique().tolist() == [3.]
    assert math.isclose(m.importance[0, 0], .6, rel_tol=1e-6)
    assert m.age[0].tolist() == torch.maximum(newest_first(a).age, newest_first(b).age)[0].tolist()

def stacked(seed=0, **kw):
    torch.manual_seed(seed)
    cfg = ModelConfig(width=32, heads=2, layers=kw.pop("layers", 2), length=16, block=4, thought=replace(THOUGHT, **kw))
    return randomize_(StackedDiffusionModel3D(cfg, 20, SPECIALS), 1)

TEXT = torch.randint(5, 20, (3, 8), generator=torch.Generator().manual_seed(1))
HIDDEN = torch.rand(3, 8, generator=torch.Generator().manual_seed(2)) < .5

def test_text_looks_at_thoughts_evenly_between_the_blocks():
    at = [[*stacked(layers=n, looks=k).looks] for n, k in ((2, 1), (4, 2), (6, 3), (1, 3))]
    assert at == [["0"], ["0", "2"], ["1", "2", "3"], ["0"]]

@pytest.mark.parametrize("forget", [0., 1.])
def test_forgetting_is_for_training(forget):
    "A row that forgets reads its passage as if it began the document"
    m = stacked(forget=forget)
    s = m.study(TEXT[:, :4]).detach()
    for training in (True, False):
        m.train(training)
        h, *_ = m.passages(TEXT[:, 4:], HIDDEN[:, 4:], thoughts=s)
        fresh, *_ = m.passages(TEXT[:, 4:], HIDDEN[:, 4:])
        assert torch.allclose(h, fresh, atol=1e-6) == (training and forget == 1.)

def test_noise_on_thoughts_is_for_training():
    m, seen = stacked(noise=.5), []
    read = m.reader.forward
    m.reader.forward = lambda s: (seen.append(s.maps), read(s))[1]
    s = m.study(TEXT[:, :4]).detach()
    for training in (True, False):
        m.train(training)
        seen.clear()
        m.passages(TEXT[:, 4:].repeat(1, 1), HIDDEN[:, 4:], thoughts=s)
        assert abs(float((seen[0] - s.maps).std()) - (.5 if training else 0.)) < .06

def test_typos_are_tokens_and_as_many_as_asked_for():
    m = stacked(typos=.3)
    x = torch.randint(5, 20, (200, 40), generator=torch.Generator().manual_seed(0))
    x[:, 30:] = m.pad
    y = m._mistype(x)
    assert (y[:, 30:] == m.pad).all() and not m.banned[y[:, :30]].any()
    # of twenty tokens three may not occur, and one is the same
    assert abs(float((y != x)[:, :30].float().mean()) - .3*16/20) < .02

def test_a_thought_knows_the_words_and_the_hidden_states():
    m = stacked().eval()
    s, h = m.begin(3), torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    a, b, c = m.write(h, TEXT[:, :4], s), m.write(h, TEXT[:, 4:], s), m.write(h.flip(0), TEXT[:, :4], s)
    assert not torch.allclose(a.maps, b.maps, atol=1e-3) and not torch.allclose(a.maps, c.maps, atol=1e-3)
    assert ThoughtObjective(stacked(segment=7)).segment == 7 and ThoughtObjective(stacked(segment=None)).segment is None

def test_steering_goes_a_step_of_the_size_asked_for():
    m = stacked().eval()
    s = newest_first(m.study(TEXT))
    def target(logits): return logits.log_softmax(-1)[..., 11].mean(1)
    def length(z): return z.flatten(1).norm(dim=1)
    moved = m.steer(s, torch.full((3, 4), m.mask), target, steps=1, size=.2)
    assert torch.allclose(length(moved.maps[:, 0] - s.maps[:, 0]), .2*length(s.maps[:, 0]), rtol=1e-4)

# ---- figures ----

class Even(Denoiser):
    "Gives each of seven tokens the same probability"
    def __init__(self): super().__init__(12, (0, 1, 2, 3, 4))
    def features(self, x, t=None, **kw):
        return torch.zeros(*x.shape, 12).index_fill(-1, torch.arange(5), -torch.inf), NOTHING
    def head(self, h): return h

def test_bands_of_the_masked_share():
    "Of twelve tokens, twelve stratified passes mask one to twelve, each number once: a band for each"
    x = torch.randint(5, 12, (3, 12), generator=torch.Generator().manual_seed(0))
    nats, bands = score_windows(Even(), x, draws=12)
    assert bands[1].tolist() == [3.*k for k in range(1, 13)] and np.allclose(bands[2], bands[1]*math.log(7))
    assert np.allclose(nats.sum(1), 12*math.log(7), atol=1e-4) # in every pass
    _, eighths = score_windows(Even(), x[:, :8], draws=8) # of eight, every share goes to the band that it ends in
    assert eighths[1].tolist() == [0., 3*1, 3*2, 0., 3*3, 3*4, 0., 3*5, 3*6, 0., 3*7, 3*8]
    hits = np.array([3., 2, 2, 1, 5, 4, 4, 4, 9, 0, 0, 1])
    assert by_level(np.stack([hits, bands[1], bands[2]])).tolist() == [[8, 17, 10], [30, 78, 126]]

def test_unigram_counts_the_training_side():
    test, train = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1, 1, 1])
    y = yardsticks("abcd", test, train, 3)["unigram"]
    p = np.array([1.5, 5.5, .5])/7.5 # add one half
    assert math.isclose(y, -np.log2(p[test]).sum()/4)

def test_unigram_of_a_run(tiny_home, recipe):
    "The yardstick in a summary knows how frequent tokens are in training, not in what it is scored on"
    run = tiny_home/"checkpoints"/"tiny"
    cfg, s = load_config(run/"config.yaml"), read_json(run/"summary.json")
    _, tok, store = prepare(cfg.data, replace(cfg.tokenizer, load=str(run)), tiny_home/"data"/"cache")
    test, counts = np.asarray(store.split("test")), np.bincount(store.split("train"), minlength=len(tok)) + .5
    bits = -np.log2(counts[test]/counts.sum()).sum()
    assert math.isclose(s["yardsticks"]["unigram"], bits/len(tok.decode(test).encode()), rel_tol=1e-9)
    assert s["tokens_scored"] == len(test)

class TwoBytes: n_bytes = np.array([0]*5 + [2]*3) # a stand-in for a tokenizer

def test_monte_carlo_error_is_the_spread_over_seeds():
    """How much the figure of one pass moves with its masks, over the root of the number of passes: nothing of that
    comes from within an evaluation. (Its passes are stratified, so the truth is smaller still, and the error is on the
    safe side.)"""
    toy = ToyLanguage()
    drawn = torch.multinomial(toy.p, 100, replacement=True, generator=torch.Generator().manual_seed(0))
    tokens = toy.sentences[drawn].flatten().numpy()
    x = torch.from_numpy(tokens).view(-1, 4)
    def one_pass(seed): return score_windows(toy, x, draws=1, batch=100, seed=seed)[0].sum()/800/math.log(2)
    def error(draws, seed):
        r = evaluate(toy, TwoBytes, tokens, np.array([0, 400]), length=4, draws=draws, batch=100, seed=seed)
        return r["monte_carlo_error"]
    single = np.std([one_pass(s) for s in range(200)], ddof=1) # known to 5 %
    for draws in (8, 32):
        mc = np.mean([error(draws, s) for s in range(3)])
        assert .8 < mc/(single/draws**.5) < 1.2, draws

# ---- the reference model ----

@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    "The reference model, the store of its corpus, and its record"
    lm, cfg = DiffusionLM.from_run(REFERENCE, device="cpu"), load_config(REFERENCE/"config.yaml")
    tokenizer = replace(cfg.tokenizer, load=str(REFERENCE))
    corpus, tok, store = prepare(cfg.data, tokenizer, tmp_path_factory.mktemp("cache"))
    return lm, tok, store, read_json(REFERENCE/"summary.json")

def test_reference_on_its_first_speech(reference):
    """The same passes over the first test document as in its record give the same nats: corpus, split, tokenizer,
    weights and masks are what they were"""
    lm, tok, store, s = reference
    assert store.path.name == s["data"]["store"] == "tokens-8bf242bf8de6ec7d"
    bounds = store.documents("test") - store.documents("test")[0]
    n = -(-int(bounds[1])//256) # windows that the document reaches into
    x = torch.from_numpy(store.split("test")[:256*n].astype(np.int64)).view(n, 256)
    nats = score_windows(lm.model, x, draws=s["draws"])[0].mean(-1).ravel()[:bounds[1]].sum()
    assert len(bounds) - 1 == s["bits_per_byte"]["n"] == 10
    assert math.isclose(nats, s["by_document"]["nats"][0], rel_tol=1e-3)

@pytest.mark.slow
def test_reference_on_all_of_the_test_side(reference):
    """The record is older than the control variates of `evaluate`: its figure is the plain mean of the same passes, and
    today's estimate, whose error is smaller, agrees with it within the errors of both"""
    lm, tok, store, s = reference
    tokens, bounds = store.split("test"), store.documents("test")
    x, _ = eval_windows(np.asarray(tokens, np.int64), bounds - bounds[0], 256, lm.model.pad)
    plain = score_windows(lm.model, x, draws=s["draws"])[0].mean(-1).sum()/s["bytes_scored"]/math.log(2)
    assert abs(plain - s["bits_per_byte"]["value"]) < 2e-4
    r = evaluate(lm.model, tok, tokens, bounds, draws=s["draws"])
    assert r["monte_carlo_error"] < .7*s["monte_carlo_error"]
    apart = abs(r["bits_per_byte"]["value"] - s["bits_per_byte"]["value"])
    assert apart < 2*math.hypot(r["monte_carlo_error"], s["monte_carlo_error"])
    assert abs(r["bits_per_byte"]["value"] - 1.168) < .01 # as the README says
    assert r["tokens_scored"] == s["tokens_scored"]

# ---- samplers ----

def sigmas(policy, now, nxt, seen=(0., -.5, -2., 0.), masked=(False, False, False, True)):
    "σ of four free positions, the last of them masked"
    step = Step(0, np.array([now, nxt]), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4), torch.tensor([seen]))
    return policy.sigma(torch.tensor([masked]), step)[0].double().numpy()*np.ones(4)

@pytest.mark.parametrize("policy, now, nxt, expected", [
    # cap: at most (1-α_s)/α_t, and at most 1
    (ReMDM(.2), .5, .4, .2), (ReMDM(.2), .1, .09, .1), (ReMDM(.2), .1, 0., 0.), (ReMDM(.2), .9, .89, .2),
    (ReMDM(1.), .9, .8, 1.),
    (ReMDM(.2, "rescale"), .5, .4, .2*.8), (ReMDM(.2, "rescale"), .1, .09, .2*.1), (ReMDM(.2, "rescale"), .9, .8, .2),
    (ReMDM(1., "rescale"), .5, .25, .5),
    # loop: only where the mask ratio does not fall
    (ReMDM(.2, "loop"), .5, .4, 0.), (ReMDM(.2, "loop"), .1, 0., 0.), (ReMDM(.05, "loop"), .1, .1, .05),
    (ReMDM(.2, "loop"), .1, .1, .1/.9),
    (PredictorCorrector(.2), .5, .4, 0.), (PredictorCorrector(.2), .5, .5, .2),
    (PredictorCorrector(.2), .1, .1, .1/.9)])
def test_rates_of_remasking(policy, now, nxt, expected):
    assert np.allclose(sigmas(policy, now, nxt), expected, atol=1e-12)

@pytest.mark.parametrize("now, nxt, most", [(.5, .4, .8), (.9, .8, 1.), (.1, 0., 0.)])
def test_rates_of_remasking_by_confidence(now, nxt, most):
    "A softmax of minus the probabilities over what is revealed, all of σ_max; masked positions have none"
    w = np.exp(-np.exp([0., -.5, -2.]))
    assert np.allclose(sigmas(ReMDM(kind="confidence"), now, nxt), [*(most*w/w.sum()), 0.], atol=1e-6)
    assert np.allclose(sigmas(ReMDM(kind="confidence"), now, nxt, masked=(True,)*4), 0.) # nothing is revealed yet

def test_only_masked_positions_are_asked_for():
    g = rng("asked")
    remdm = [ReMDM(.3), ReMDM(.3, "rescale"), ReMDM(kind="confidence"), ReMDM(.3, "loop")]
    for policy in (*remdm, PredictorCorrector(.3)):
        for now, nxt in ((.5, .4), (.5, .5), (.1, 0.)):
            masked, u = torch.from_numpy(g.random((3, 40)) < now), torch.from_numpy(g.random((3, 40, 2)))
            free, zeros = torch.ones(3, 40, dtype=torch.bool), torch.zeros(3, 40)
            step = Step(0, np.array([now, nxt]), free, zeros, zeros)
            asked, back = policy.ask(None, masked, step, u), policy.forget(None, masked, step, u)
            assert not (asked & ~masked).any() and not (back & masked).any() and (asked == masked).all() | (nxt > 0)

def test_ancestral_steps_go_down():
    "What has the largest times comes first: all that fall into the first busy interval of the grid"
    times = torch.tensor([[.95, .1, .65, .7, .3]])
    step = Step(0, np.array([1, .8, .6, .4, .2, 0]), torch.ones(1, 5, dtype=torch.bool), times, torch.zeros(1, 5))
    masked, seen = torch.ones(1, 5, dtype=torch.bool), []
    for _ in range(4):
        new = Ancestral().ask(times, masked, step, None)
        seen.append(new[0].nonzero()[:, 0].tolist())
        masked = masked & ~new
    assert seen == [[0], [2, 3], [4], [1]]

def test_short_loops_are_plain_grids():
    assert [len(ReMDM(.3, "loop").grid("uniform", n)) for n in (1, 2, 3, 7)] == [2, 3, 4, 8]
    assert np.allclose(ReMDM(.3, "loop").grid("uniform", 2), [1, .5, 0])
    assert np.allclose(ReMDM(.3, "loop").grid("cosine", 4)[1:4], .1)

def test_a_loop_takes_nothing_back_while_it_falls():
    policy = ReMDM(.3, "loop")
    shares = policy.grid("uniform", 20)
    u = torch.zeros(1, 4, 2, dtype=torch.float64) # u = 0: whatever may be forgotten is
    back = []
    for i in range(20):
        step = Step(i, shares, torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4), torch.zeros(1, 4))
        back.append(bool(policy.forget(None, torch.zeros(1, 4, dtype=torch.bool), step, u).any()))
    assert back == [bool(a == b) for a, b in zip(shares, shares[1:])] and sum(back) == 10
