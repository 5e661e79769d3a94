"""Holes of unknown length: what is scored, what the chain writes, runs that learn it, and what is refused."""
import json
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from conftest import same_run, train_runs
from diffusion_lm.core import rng
from diffusion_lm.evaluation.metrics import evaluate
from diffusion_lm.files import read_json, read_yaml
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig, randomize_
from diffusion_lm.sampling.lengths import Parts, best_of, length_scores, write_open
from diffusion_lm.sampling.sampler import PLAIN
from diffusion_lm.text.tokenizer import Hole, Tokenizer
from diffusion_lm.theory.holes import HolesConfig, HolesObjective, ToyHoles, length_prior, open_canvas
from diffusion_lm.theory.oracle import ToyLanguage

TOY = ToyLanguage(2, 4)
ORACLE = ToyHoles(TOY)
BETWEEN = Parts([[5], [6]], [Hole(0, 40)], [False])

# ---- scores ----

def test_scores_are_the_posterior():
    "For every text around a hole, in a language of another seed; a score of the best passage is not"
    toy, best = ToyLanguage(3, 5, seed=3), []
    for a, b, c in product((5, 6, 7), repeat=3):
        found = length_scores(toy, Parts([[a], [b, c]], [Hole(1, 2)], [False]), 5)
        here = [(toy.sentences[:, [0, 1 + n, 2 + n]] == torch.tensor([a, b, c])).all(1) for n in (1, 2)]
        p = np.array([float(toy.p[h].sum()) for h in here])
        np.testing.assert_allclose([s.p for s in found], p/p.sum(), atol=1e-9)
        assert best_of(found).lengths == (int(p.argmax()) + 1,)
        best.append(max(toy.p[here[1]]) > toy.p[here[0]].sum())
    assert not all(best)

def test_text_before_the_hole_cancels():
    "Scoring all the text gives the same posterior as scoring what is behind the hole"
    toy = ToyLanguage(3, 5)
    found = length_scores(toy, Parts([[5, 6], [7]], [Hole(1, 2)], [False]), 5)
    whole = [float(toy.p[(toy.sentences[:, [0, 1, 2 + n]] == torch.tensor([5, 6, 7])).all(1)].sum()) for n in (1, 2)]
    assert np.isclose(np.exp(found[0].nats - found[1].nats), whole[0]/whole[1])

# ---- the chain ----

def law(prior):
    out = {}
    for s in (s for n in range(3) for s in product((5, 6), repeat=n)):
        x = torch.tensor([5, *s, 6])
        out[s] = float(prior[len(s)]*TOY.p[(TOY.sentences[:, :len(x)] == x).all(1)].sum())
    return np.array([*out.values()])/sum(out.values()), [*out]

def written(k, n, **kw):
    *_, rows = write_open(ORACLE, BETWEEN, 12, PLAIN.but(**kw), n, start=(k,))
    return [tuple(r.ids[1:-1]) for r in rows]

def fits(k, n=4000, **kw):
    "p-values of the law and of three wrong ones: no prior, that of one mask more, lengths without texts"
    seen, (right, texts) = written(k, n, **kw), law(length_prior(k, HolesConfig()))
    assert {*seen} <= {*texts}
    counts = np.array([seen.count(s) for s in texts])
    lengths = np.array([len(s) for s in texts])
    of_length = np.array([right[lengths == m].sum() for m in range(3)])
    flat = of_length[lengths]/2**lengths
    wrong = law(np.ones(3))[0], law(length_prior(k + 1, HolesConfig()))[0], flat
    return [chisquare(counts, n*p).pvalue for p in (right, *wrong)]

@pytest.mark.parametrize("k, kw", [
    (2, dict(sampler="first-hitting", seed=1)),
    (1, dict(sampler="left-to-right", seed=2)),
    (2, dict(sampler="margin", steps=64, seed=3)),
])
def test_the_chain_is_exact(k, kw):
    right, *wrong = fits(k, **kw)
    assert right > 1e-3
    assert max(wrong) < 1e-6

def test_hasty_steps_are_not_exact():
    "All masks at a time: some of the texts are in no sentence, and the others are not in proportion"
    seen, (right, texts) = written(2, 500, sampler="ancestral", steps=1), law(length_prior(2, HolesConfig()))
    assert not {*seen} <= {*texts}
    counts = np.array([seen.count(s) for s in texts])
    assert abs(counts/counts.sum() - right).sum()/2 > .1

# ---- the canvas ----

class Ids(ToyHoles):
    "A toy with room for 128 words"
    def __init__(self): super(ToyHoles, self).__init__(300, (0, 1, 2, 3, 4, 298, 299))

def test_the_canvas_can_be_undone():
    "Each kept token, target and size follows from the text: played out, a row gives the text back"
    x = torch.arange(5, 133).expand(400, -1)
    u = torch.from_numpy(rng(5, "u").random((400, 128), dtype=np.float32))
    canvas = open_canvas(Ids(), x, u, HolesConfig())
    again = open_canvas(Ids(), x, u, HolesConfig())
    assert torch.equal(canvas.x, again.x) and torch.equal(canvas.y, again.y)
    assert (canvas.x[canvas.open] == 298).all() and not canvas.open.all(1).any()
    kept = (canvas.x >= 5) & (canvas.x < 298)
    assert not (kept & canvas.open).any() and (canvas.x[:, -21:] == 1).all() # a sixth is always free
    for row, y, o in zip(canvas.x.tolist(), canvas.y.tolist(), canvas.open.tolist()):
        at = 5
        for t, target, is_open in zip(row, y, o):
            if is_open and 5 <= target < 298: t = target
            if 5 <= t < 298:
                assert t >= at
                at = t + 1

@pytest.mark.parametrize("length", [8, 9, 16, 33, 128])
def test_windows_of_any_size(length):
    x = torch.randint(5, 298, (64, length), generator=torch.Generator().manual_seed(0))
    u = torch.from_numpy(rng(6, "u", length).random((64, length), dtype=np.float32))
    c = open_canvas(Ids(), x, u, HolesConfig())
    assert c.open.any(1).float().mean() > .9 and c.x.shape == x.shape

def test_expected_loss_is_the_oracle_s_entropy():
    "A network that is trained on nothing but the loss comes near the oracle's answers"
    toy, holes = ToyLanguage(2, 8), HolesConfig(share=1.)
    vocabulary, specials = 9, (0, 1, 2, 3, 4, 7, 8)
    torch.manual_seed(0)
    model = BaselineDreamModel(ModelConfig(width=32, heads=2, layers=2, length=8), vocabulary, specials)
    o, best = HolesObjective(model, holes=holes), HolesObjective(ToyHoles(toy, holes), holes=holes)
    opt, g = torch.optim.AdamW(model.parameters(), 3e-3), rng(0, "train")
    def batch(n):
        x = toy.sentences[g.choice(len(toy.p), n, p=toy.p.numpy())]
        return x, torch.ones(n, 1), torch.from_numpy(g.random((n, 8), dtype=np.float32))
    first = float(o(*batch(500)).detach())
    for _ in range(200):
        opt.zero_grad()
        o(*batch(128)).backward()
        opt.step()
    test = batch(500)
    with torch.no_grad(): got, least = float(o(*test)), float(best(*test))
    assert least < got < least + .15*(first - least)

# ---- runs ----

@pytest.fixture(scope="module")
def holes_home(tiny_home, recipe, tmp_path_factory):
    "A home with `tiny`, `tiny-ar` and `holes`, a run that has learned open masks"
    home = tmp_path_factory.mktemp("holes")/"home"
    shutil.copytree(tiny_home, home)
    train_runs(home, recipe, ["--name", "holes", "--holes", "{share: .5}"])
    return home

@pytest.fixture
def with_holes(home, holes_home):
    "A copy of it, to be damaged at will"
    shutil.copytree(holes_home, home)
    return home

def test_a_run_with_holes(with_holes):
    runs = [with_holes/"checkpoints"/name for name in ("tiny", "holes")]
    plain, more = map(Tokenizer.load, runs)
    assert plain.edits == () and len(more) == len(plain) + 2 and more.edits == (len(plain), len(plain) + 1)
    other, lm = map(DiffusionLM.from_run, runs)
    assert lm.model.edits == more.edits and not other.model.edits
    figures = [read_json(r/"summary.json") for r in runs]
    assert figures[0]["tokens_scored"] == figures[1]["tokens_scored"]
    assert figures[1]["bits_per_byte"]["kind"] == "bound"
    for template in ("the [MASK:?] sea", "The river [MASK:2-4] the sea and [MASK:2] a house"):
        for f in lm.fill(template, 3, steps=8):
            assert f.text.startswith(template.split(" [")[0]) and f.text.endswith(template.split("]")[-1])
            assert not f.scores
        assert other.fill(template)[0].scores

def test_an_export_fills_holes_whose_lengths_are_given(with_holes, tmp_path, capsys):
    "It writes as the run does, can write neither [EXPAND] nor [DELETE], and finds no lengths"
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from diffusion_lm.deploy import runtime
    from diffusion_lm.deploy.export import export_lm
    lm = DiffusionLM.from_run("holes", device="cpu")
    export_lm(lm, tmp_path/"holes")
    m, edits = runtime.Model(tmp_path/"holes"), list(lm.tokenizer.edits)
    assert m.generate("the river", n=4, seed=3) == lm.generate("the river", n=4, seed=3)
    assert m.infill("the [MASK:3] sea", n=4, seed=3) == lm.infill("the [MASK:3] sea", n=4, seed=3)
    assert (m.logits([[lm.tokenizer.mask]*8])[..., edits] == -float("inf")).all()
    for hole in ("[MASK:?]", "[MASK:1-4]"):
        assert runtime.main([str(tmp_path/"holes"), "--infill", f"the {hole} sea"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and f"{hole} leaves the length to the model" in err

def test_json_says_lengths(dlm, with_holes):
    status, out, err = dlm("sample", "tiny", "--json", "--infill", "the [MASK:1-4] sea", "-n", 2)
    assert status == 0, err
    said = json.loads(out)
    scores = said[0]["length_scores"]
    assert [s["lengths"] for s in scores] == [[1], [2], [3], [4]] and abs(sum(s["p"] for s in scores) - 1) < 1e-4
    assert said[0]["lengths"] == said[1]["lengths"] == max(scores, key=lambda s: s["p"])["lengths"]
    assert "tokens in the holes" in err
    said = json.loads(dlm("sample", "holes", "--json", "--infill", "the [MASK:1-4] sea", "-n", 3)[1])
    assert all(1 <= s["lengths"][0] <= 4 and "length_scores" not in s for s in said)
    plain = json.loads(dlm("sample", "tiny", "--json", "--infill", "the [MASK:2] sea")[1])
    assert "lengths" not in plain[0]
    for run in ("tiny", "holes"):
        status, out, err = dlm("sample", run, "--infill", "the [MASK:1-4] sea", "--stream")
        assert status == 0 and "sea" in out, err

def test_resumed_holes(dlm, with_holes, recipe):
    "A run with holes that was stopped goes on as if it had not been"
    options = "--config", recipe, "--name", "halted", "--holes", "{share: .5}"
    assert dlm("train", *options, "--trainer.stop_at", 8)[0] == 0
    status, _, err = dlm("train", "--name", "halted", "--resume")
    assert status == 0, err
    assert "not a bound" in err
    same_run(*(with_holes/"checkpoints"/name for name in ("halted", "holes")))

def test_a_run_that_begins_with_another(dlm, refused, with_holes):
    "The section goes along with the weights; a vocabulary without the two tokens is named"
    status, _, err = dlm("train", "--init", "holes", "--name", "more", "--trainer.steps", 8, "--data.path",
                         read_yaml(with_holes/"checkpoints"/"holes"/"config.yaml")["data"]["path"])
    assert status == 0, err
    assert DiffusionLM.from_run(with_holes/"checkpoints"/"more").model.edits
    said = refused("train", "--init", "tiny", "--name", "x", "--holes", "{}")
    assert "holes is a section here and none there" in said

def test_edits_are_never_counted(tiny_home):
    "Bits per byte are those of the vocabulary without the two tokens, whatever their weights"
    tok = Tokenizer.load(tiny_home/"checkpoints"/"tiny")
    more, config = tok.with_edits(), ModelConfig(width=16, heads=2, layers=1, length=32)
    model = randomize_(BaselineDreamModel(config, len(more), more.specials), 1).eval()
    plain = BaselineDreamModel(config, len(tok), tok.specials).eval()
    with torch.no_grad(): model.embed.weight[-2:] += 5
    weights = model.state_dict()
    plain.load_state_dict(weights | {"embed.weight": weights["embed.weight"][:-2]})
    text = "The river sees a light. A road opens to the sea. "*8
    got, due = (evaluate(m, t, t.encode(text), [0, len(t.encode(text))]) for m, t in ((model, more), (plain, tok)))
    assert got["tokens_scored"] == due["tokens_scored"] and got["bytes_scored"] == len(text)
    assert abs(got["bits_per_byte"]["value"] - due["bits_per_byte"]["value"]) < 1e-6
    x = torch.from_numpy(tok.encode(text))[None, :32]
    assert (model.head(model.features(x)[0])[..., -2:] == -torch.inf).all()
    assert model.edit_head(model.features(x)[0])[..., -2:].isfinite().all()

@pytest.mark.parametrize("args, why", [
    (["--holes.share", 0], "holes.share must be above 0"),
    (["--holes.expand", .6], "holes.expand"),
    (["--holes.expand", .4, "--holes.delete", .6], "leave room for tokens"),
    (["--holes", "{shares: 1}"], "holes.share"),
    (["--holes", "{}", "--objective", "ar"], "not with ar"),
    (["--holes", "{}", "--objective", "dual"], "not with dual"),
    (["--holes", "{}", "--objective", "block", "--model.block", 8], "not with block"),
])
def test_bad_recipes(refused, recipe, args, why):
    assert why in refused("train", "--config", recipe, "--name", "x", *args)

@pytest.mark.parametrize("template, why", [
    ("a [MASK:5-2] b", "the smaller number first"),
    ("a [MASK:?]", "text on both sides"),
    ("a [MASK:1-99] b", "there is room for"),
])
def test_bad_templates_of_a_recipe(refused, recipe, template, why):
    args = "--config", recipe, "--name", "x", "--samples.templates", json.dumps([template])
    assert why in refused("train", *args, notes=["preparing"], cache=True)

@pytest.mark.parametrize("template, why", [
    ("a [MASK:5-2] b", "the smaller number first"),
    ("a [MASK:0-3] b", "1 or more"),
    ("a [MASK:3-] b", "'[MASK:3-]' is misspelt"),
    ("a [MASK:-3] b", "is misspelt"),
    ("a [MASK:1--3] b", "is misspelt"),
    ("a [MASK:?2] b", "[MASK:?] where you do not know how many"),
    ("a [MASK: ?] b", "is misspelt"),
    ("a [mask:?] b", "is misspelt"),
    ("a [MASK:1-" + "9"*500 + "] b", "more than 1,048,576"),
    ("a [MASK:1-200] b", "there is room for 30"),
    ("a [MASK:40-50] b", "context only 32"),
    ("[MASK:?] b", "text on both sides"),
    ("a [MASK:?]", "text on both sides"),
    ("a [MASK:?][MASK:?] b", "text on both sides"),
    ("a [MASK:1-9] b [MASK:1-9] c [MASK:1-9] d", "combinations of lengths"),
    ("a b", "[MASK:?] where you do not know how many"),
])
def test_bad_templates(refused, trained, template, why):
    assert why in refused("sample", "tiny", "--infill", template)

def test_a_model_that_looks_back(refused, trained):
    assert "cannot infill" in refused("sample", "tiny-ar", "--infill", "a [MASK:?] b")

@pytest.mark.parametrize("args, why", [
    (["--guidance", 1], "guidance does not go"),
    (["--sampler", "remdm"], "masks again"),
    (["--cool", .5], "give one"),
    (["--block", 4], "block does not go"),
])
def test_options_that_do_not_go_with_growing(refused, with_holes, args, why):
    assert why in refused("sample", "holes", "--infill", "the [MASK:?] sea", *args)
