"""Probes: `dlm probe` for every kind of run and for damaged ones; a monitored training is the same training."""
import json
import shutil
from html.parser import HTMLParser

import pytest
import torch

from conftest import losses, run_dlm, tree
from diffusion_lm.files import read_jsonl
from diffusion_lm.lab.probe_page import PICTURES, health, known_ranges, range_of
from diffusion_lm.training.monitor import RATIOS
from diffusion_lm.weights import load_weights, save_weights


class Page(HTMLParser):
    "Titles and sources of pictures of a page"
    def __init__(self, text):
        super().__init__()
        self.titles, self.sources, self.here = [], [], None
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.here = tag
        if tag == "img": self.sources.append(dict(attrs)["src"])
    def handle_data(self, data):
        if self.here == "h2": self.titles.append(data)
        self.here = None

def probed(dlm, run, *options):
    "The page and probes.json of a run"
    status, out, err = dlm("probe", run, "--tokens", 128, "--out", "page", "--device", "cpu", *options)
    assert status == 0, err
    return Page(open("page/index.html", encoding="utf-8").read()), json.load(open("page/probes.json"))

def test_a_monitored_run_is_the_same_run(recipe, tiny_home, tmp_path):
    "Losses and weights to the last bit, and gradients of each layer at each ratio"
    status, _, err = run_dlm(tmp_path, "train", "--config", recipe, "--monitor.gradients", 8)
    assert status == 0, err
    run = tmp_path/"checkpoints"/"tiny"
    other = tiny_home/"checkpoints"/"tiny"
    assert [r for r in losses(run) if any(r[1:])] == losses(other) and len(losses(other)) > 3
    assert (run/"model.safetensors").read_bytes() == (other/"model.safetensors").read_bytes()
    found = {r["step"]: r["gradients"] for r in read_jsonl(run/"log.jsonl") if "gradients" in r}
    assert list(found) == [8, 16, 24]
    for g in found.values():
        assert g["ratios"] == list(RATIOS) and list(g["norms"]) == ["embed", "block 0", "rest"]
        assert all(v > 0 for row in g["norms"].values() for v in row)

def test_page(dlm, trained):
    page, p = probed(dlm, "tiny")
    assert page.titles == [z.title for z in PICTURES] + ["All measures"]
    assert len(page.sources) == len(PICTURES) - 2 and all(s.startswith("data:image/png;base64,") for s in page.sources)
    assert "--monitor.gradients" in open("page/index.html", encoding="utf-8").read()
    assert p["kind"] == "bidirectional" and p["training"]["gradients"] is None and p["tokens"] == 128
    again = probed(dlm, "tiny")[1]
    assert again == p

def test_json(dlm, trained):
    status, out, err = dlm("probe", "tiny", "--tokens", 64, "--json")
    assert status == 0, err
    p = json.loads(out)
    assert p["verdict"] in ("fine", "look", "alarming") and p["health"]["light_loss"]["value"] > 0
    assert not (set(p["health"]) & {"balance", "heavy_over_light"}) # they need gradients

def test_autoregressive_and_block_runs(dlm, trained, recipe):
    "What applies is shown, and what does not is said in a line"
    page, p = probed(dlm, "tiny-ar")
    assert p["kind"] == "causal" and p["order"] is None and len(p["said"]) == 1 and p["verdict"] == "not measured"
    text = open("page/index.html", encoding="utf-8").read()
    assert "does not choose an order" in text and len(page.sources) == len(PICTURES) - 4
    status, _, err = dlm("train", "--config", recipe, "--name", "blocks", "--objective", "block", "--model.block", 8,
                         "--monitor.gradients", 12)
    assert status == 0, err
    page, p = probed(dlm, "blocks")
    assert p["kind"] == "block" and len(p["said"]) == len(p["attention"]) == 4 and p["convergence"] is None
    assert len(page.sources) == len(PICTURES) - 2 # gradients are there

def test_run_without_summary_or_log(dlm, trained):
    run = trained/"checkpoints"/"tiny"
    (run/"summary.json").unlink()
    probed(dlm, "tiny")
    (run/"log.jsonl").unlink()
    _, p = probed(dlm, "tiny")
    assert p["training"] is None and "It has no log" in open("page/index.html", encoding="utf-8").read()
    (run/"log.jsonl").write_text('{"step": 1\nnot a line\n')
    _, p = probed(dlm, "tiny")
    assert p["training"]["loss"]["steps"] == []

def test_weights_that_are_not_finite(dlm, trained):
    path = trained/"checkpoints"/"tiny"/"model.safetensors"
    state = load_weights(path)
    name = next(iter(state))
    state[name].view(-1)[0] = torch.nan
    from diffusion_lm.text.tokenizer import Tokenizer
    save_weights(state, path, tokenizer=Tokenizer.load(path.parent/"tokenizer.json").fingerprint)
    status, out, err = dlm("probe", "tiny", "--out", "page")
    assert (status, out) == (2, "") and "predicts NaN" in err.splitlines()[-1]
    assert not tree("page")

@pytest.mark.parametrize("options, message", [
    (("tinny",), "unknown run"), (("tiny", "--tokens", "0"), "--tokens"), (("tiny", "--seed", "-1"), "--seed"),
    (("tiny", "--token", "5"), "did you mean '--tokens'")])
def test_mistakes(refused, trained, options, message): assert message in refused("probe", *options)

def test_names_are_escaped(dlm, trained):
    run = trained/"checkpoints"/"tiny"
    shutil.copytree(run, run.with_name("a <img> & b"))
    probed(dlm, "a <img> & b")
    text = open("page/index.html", encoding="utf-8").read()
    assert "a &lt;img&gt; &amp; b" in text and "<img>" not in text

def test_files_of_others_are_not_touched(dlm, trained):
    from pathlib import Path
    Path("page").mkdir()
    Path("page/order.png").write_text("mine")
    status, out, err = dlm("probe", "tiny", "--tokens", 64, "--out", "page")
    assert (status, out) == (2, "") and "order.png" in err.splitlines()[-1]
    assert Path("page/order.png").read_text() == "mine" and len(list(Path("page").iterdir())) == 1

def test_every_packaged_range_holds_good_values():
    "An alarm is outside of what is fine"
    for r in known_ranges().values():
        assert r.low <= r.high
        assert r.alarm_low is None or r.alarm_low < r.low
        assert r.alarm_high is None or r.alarm_high > r.high
    assert range_of([1., 1.], [1., 1.]).verdict(1.) == "fine"
    assert callable(health)
