"""Models of pictures end to end: tables of pictures, a denoiser that rests, runs by the command line, bad files."""
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import write_table
from diffusion_lm.cli import main, parse_train
from diffusion_lm.core import UserError
from diffusion_lm.files import read_json, read_jsonl, run_path
from diffusion_lm.lm import DiffusionLM, create_conditional
from diffusion_lm.models.adapters import added, read_adapter
from diffusion_lm.models.condition import OF_CONDITION, ConditionObjective, set_stage
from diffusion_lm.models.make import make_model
from diffusion_lm.models.transformer import ConditionConfig
from diffusion_lm.text.corpus import DataConfig
from diffusion_lm.text.store import TokenizerConfig, prepare
from diffusion_lm.training.run import train
from diffusion_lm.weights import load_weights

COLOURS = "red green blue yellow purple black white orange pink brown".split()
TEXT = ["--tokenizer.vocab_size", "300", "--model.width", "16", "--model.heads", "1", "--model.layers", "2",
        "--model.length", "24"]
SMALL = ["--trainer.batch", "4", "--trainer.steps", "4", "--trainer.eval_every", "2", "--trainer.eval_tokens", "96",
         "--trainer.test_tokens", "96", "--trainer.test_draws", "1", "--trainer.save_every", "2",
         "--trainer.sample_every", "2", "--samples.steps", "2", "--trainer.compile", "false", "--trainer.device", "cpu",
         "--trainer.dtype", "float32", "--trainer.lr", "0.01"]
EYE = ["--model.condition.width", "16", "--model.condition.heads", "1", "--model.condition.layers", "1",
       "--model.condition.picture", "8", "--model.condition.patch", "4"]
PAIRS = ["--data.column", "words", "--data.condition", "image"]
SEES = ["--init", "text", *PAIRS, *SMALL, *EYE, "--trainer.stage", "condition"]

def words(i): return f"Number {i} is all {COLOURS[i % 10]}."

def draw(folder, n=60):
    "Pictures of one colour each, no two of them the same"
    (folder/"pictures").mkdir(exist_ok=True)
    for i in range(n):
        im = Image.new("RGB", (16, 16), COLOURS[i % 10])
        im.putpixel((0, 0), (i, i, i))
        im.save(folder/"pictures"/f"{i}.png")
    return [{"image": f"pictures/{i}.png", "words": words(i)} for i in range(n)]

@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_LM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.fixture
def text(home):
    "A plain denoiser that is trained for four steps"
    path = home/"story.txt"
    path.write_text("<|endoftext|>".join(f"{words(i)} So it was." for i in range(60)))
    return train(parse_train(["--data.path", str(path), *TEXT, *SMALL])[0], "text", quiet=True)

@pytest.fixture
def shown(home): return write_table(home/"shown.csv", draw(home))

def settings(path, *more): return parse_train(["--data.path", str(path), *SEES, *more])[0]

def test_pictures_of_a_table(home):
    "The same pictures and texts in any format; a changed picture is noticed"
    table, prints = draw(home), set()
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = write_table(home/f"shown{suffix}", table)
        data = DataConfig(str(path), "words", condition="image", picture=16)
        corpus, tok, store = prepare(data, TokenizerConfig(vocab_size=300))
        prints.add(corpus.fingerprint)
    assert len(prints) == 1
    for i in range(60):
        picture, ids = store.pair(i)
        number = picture[0, 0, 0]
        assert tok.decode(ids[:-1]) == words(number)
        assert (picture == np.asarray(Image.open(home/"pictures"/f"{number}.png")).transpose(2, 0, 1)).all()
    Image.new("RGB", (16, 16), (1, 2, 3)).save(home/"pictures"/"3.png")
    assert prepare(data, TokenizerConfig(vocab_size=300))[0].fingerprint not in prints

def test_at_first_nothing_changes(text, shown):
    "A model that is given eyes writes as before, whatever it is shown and however strongly"
    plain = DiffusionLM.from_run("text")
    new = create_conditional("text", ConditionConfig(width=16, heads=1, layers=1, picture=8, patch=4))
    x = torch.randint(5, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    x[:, 5:12] = plain.model.mask
    dots = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(new.model.given(dots)(x), plain.model(x)) and torch.equal(new.model(x), plain.model(x))
    for picture in ("", shown.parent/"pictures"/"7.png", Image.new("L", (40, 9))):
        assert new.given(picture).generate("Number", n=2, steps=3) == plain.generate("Number", n=2, steps=3)

@pytest.mark.parametrize("more", [[], ["--adapter.rank", "2"]], ids=["encoder", "lora"])
def test_what_rests_does_not_move(text, shown, more):
    "Two optimizers, weight decay and an average of the weights: the frozen denoiser stays, to the last bit"
    first = load_weights(text/"model.safetensors")
    run = train(settings(shown, *more, "--trainer.ema", ".5"), "sees", quiet=True)
    new = load_weights(run/"model.safetensors")
    assert {n for n in new if n not in first} == {n for n in new if n.startswith(OF_CONDITION)}
    adapter = read_adapter(run/"adapter.safetensors") if more else None
    deltas = added([(adapter, 1.)]) if more else {}
    assert not more or len(deltas) == 8 and all(d.abs().max() > 0 for d in deltas.values())
    for n, p in first.items():
        delta = deltas.get(n.removesuffix(".weight"))
        assert torch.equal(new[n], p if delta is None else p + delta)
    if more: assert {n for n in adapter.state if ".lora_" not in n} == {n for n in new if n.startswith(OF_CONDITION)}
    untrained = create_conditional("text", ConditionConfig(width=16, heads=1, layers=1, picture=8, patch=4))
    shapes = {n: p.shape for n, p in untrained.model.state_dict().items()}
    assert {n: p.shape for n, p in new.items()} == shapes
    assert all(new[n].abs().max() > 0 for n in new if n.startswith("looks.")) # the gates have opened

def test_a_run_of_pictures(home, text, shown, capsys):
    "Trained by LoRA, stopped, resumed, loaded, scored, sampled and shared; the unbroken run is the same"
    args = ["--data.path", str(shown), *SEES, "--adapter.rank", "2"]
    assert not main(["prepare", *args, "--json"])
    prepared = json.loads(capsys.readouterr().out)["store"]
    assert not main(["train", "--name", "whole", *args])
    assert "an adapter of rank 2 and what tells it a condition" in capsys.readouterr().err
    assert not main(["train", "--name", "broken", *args, "--trainer.stop_at", "2"])
    assert not main(["train", "--name", "broken", "--resume"])
    weights = [load_weights(run_path(n)/"model.safetensors") for n in ("whole", "broken")]
    assert all(torch.equal(weights[1][n], p) for n, p in weights[0].items())
    summary = read_json(run_path("whole")/"summary.json")
    assert summary["data"]["store"] == prepared and set(summary["conditions"]) == {"right", "another", "none"}
    assert {r["condition"].split("/")[-2] for r in read_jsonl(run_path("whole")/"samples.jsonl")} == {"pictures"}
    assert "--image FILE" in (run_path("whole")/"report.md").read_text()
    capsys.readouterr()
    assert not main(["eval", "whole", "--json", "--draws", "1"])
    found = json.loads(capsys.readouterr().out)
    bits = {k: v["bits_per_byte"]["value"] for k, v in found["conditions"].items()}
    assert bits["right"] != bits["none"]
    file = str(home/"pictures"/"4.png")
    assert not main(["sample", "whole", "--image", file, "--condition-scale", "1.5", "--steps", "3", "--json"])
    out, = json.loads(capsys.readouterr().out)
    lm = DiffusionLM.from_run("whole")
    assert (out["image"], out["text"]) == (file, lm.given(file, 1.5).generate("", steps=3, top_p=.9)[0])
    with torch.no_grad():
        x = torch.full((1, 24), lm.model.mask)
        for scale, same in ((0., True), (1.5, False)): # of guidance: 0 is plain
            view = lm.given(file, scale).model
            assert torch.equal(view(x), lm.given(Image.open(file)).model(x)) == same
    lm.save_pretrained(home/"shared")
    shared = DiffusionLM.from_pretrained(home/"shared")
    assert shared.given(file).generate("Number", steps=3) == lm.given(file).generate("Number", steps=3)
    Image.new("RGB", (16, 16), (1, 2, 3)).save(file)
    assert main(["train", "--name", "broken", "--resume", "--trainer.stop_at", "4"]) == 2
    assert "has changed since run 'broken'" in capsys.readouterr().err

def refused(capsys, *args):
    "The one line of a refusal"
    assert main([*args]) == 2
    said, = (line for line in capsys.readouterr().err.splitlines() if line.startswith("dlm: "))
    return said

def bomb(w, h):
    "A PNG of some hundred bytes that promises w×h pixels"
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")

def bad_files(home):
    "Contents of a picture's file, and what is said of it"
    frames = [Image.new("RGB", (8, 8), c) for c in COLOURS[:3]]
    frames[0].save(home/"film.gif", save_all=True, append_images=frames[1:])
    whole = (home/"pictures"/"4.png").read_bytes()
    return {
        b"It was night.": "is no picture: not a PNG, JPEG, WebP, BMP or GIF",
        b"": "is no picture",
        whole[:-30]: "is damaged",
        bomb(60_000, 60_000): "is too large: at most",
        bomb(6000, 6000): "is too large: 6000×6000 pixels",
        (home/"film.gif").read_bytes(): "is animated: it has 3 frames"}

def test_bad_pictures(home, text, shown, capsys):
    "In a table and by the command line: one line that names the file, and nothing half-written"
    train(settings(shown), "sees", quiet=True)
    stores = sorted((home/"data"/"cache").glob("*"))
    for content, why in bad_files(home).items():
        (home/"pictures"/"4.png").write_bytes(content)
        said = refused(capsys, "train", "--name", "new", "--data.path", str(shown), *SEES)
        assert "row 5 of shown.csv: picture pictures/4.png" in said and why in said
        said = refused(capsys, "sample", "sees", "--image", "pictures/4.png")
        assert "picture pictures/4.png" in said and why in said
    (home/"pictures"/"4.png").unlink()
    said = refused(capsys, "train", "--name", "new", "--data.path", str(shown), *SEES)
    assert "row 5 of shown.csv: picture pictures/4.png is missing" in said
    assert "nowhere.png is missing" in refused(capsys, "sample", "sees", "--image", "nowhere.png")
    assert "is not a file" in refused(capsys, "sample", "sees", "--image", str(home))
    assert not run_path("new").exists()
    assert {p for p in (home/"data"/"cache").glob("tokens-*")} <= {*stores}

def test_bad_input(home, text, shown, capsys):
    train(settings(shown), "sees", quiet=True)
    assert "writes about pictures: give --image FILE, or --image '' for none" in refused(capsys, "sample", "sees")
    assert "reads pictures, not texts: give --image FILE" in refused(capsys, "sample", "sees", "--condition", "red")
    assert "reads no pictures" in refused(capsys, "sample", "text", "--image", "pictures/4.png")
    assert "goes with --condition or --image" in refused(capsys, "sample", "text", "--condition-scale", "2")
    assert "exclude each other" in refused(capsys, "sample", "sees", "--condition", "red", "--image", "")
    assert not main(["sample", "sees", "--image", "", "--steps", "2"])
    assert "an exported folder reads texts alone" in refused(capsys, "export", "sees", "--out", str(home/"out"))
    assert "answers to a condition" in refused(capsys, "chat", "sees")
    assert "answers to conditions" in refused(capsys, "compare", "sees", "text")
    assert not (home/"out").exists()
    capsys.readouterr()
    assert not main(["eval", "sees", "--file", str(shown), "--draws", "1", "--json"])
    scored = json.loads(capsys.readouterr().out)
    assert scored["conditions"].keys() == {"right", "another", "none"}
    capsys.readouterr()
    with pytest.raises(UserError, match="a picture is a file or a PIL.Image, got int"):
        DiffusionLM.from_run("sees").given(3)
    new = ["train", "--name", "new", "--data.path", str(shown), *SEES]
    def typed(*more): return refused(capsys, *new, *more)
    assert "has no column 'picture'; it has image, words (set data.condition)" in typed("--data.condition", "picture")
    assert "set data.condition to the column of their files" in typed("--data.condition", "first sentence")
    assert "patch 3 must divide model.condition.picture 8" in typed("--model.condition.patch", "3")
    assert "leave out model.condition.like_decoder" in typed("--model.condition.like_decoder", "true")
    assert "data.picture is set by model.condition.picture 8" in typed("--data.picture", "16")
    assert "set trainer.stage to condition" in typed("--trainer.stage", "all", "--adapter.rank", "2")
    other = typed("--init", "sees", "--model.condition.picture", "16")
    assert "model.condition.picture is 16 here and 8 there" in other
    assert not run_path("new").exists()
    adapter = train(settings(shown, "--adapter.rank", "2"), "thin", quiet=True)
    said = refused(capsys, "sample", "text", "--adapter", adapter.name)
    assert "with an encoder that it needs: load run 'thin'" in said

class Strips(torch.nn.Module):
    "An encoder of somebody else: a state for each upright strip of a picture"
    def __init__(self):
        super().__init__()
        self.look = torch.nn.Conv2d(3, 10, (8, 2), stride=2)

    def forward(self, x): return self.look(x)[:, :, 0].mT

def test_an_encoder_that_is_handed_in(text, shown):
    "It is trained by the ordinary loop, and loaded by handing it in again"
    def make(cfg, tok):
        torch.manual_seed(0)
        model = make_model(cfg.model, len(tok), tok.specials, cfg.objective, Strips())
        return ConditionObjective(set_stage(model, cfg.trainer.stage), cfg.objective, cfg.noise)
    run = train(settings(shown), "strips", quiet=True, make=make)
    lm = DiffusionLM.from_run(run, encoder=Strips())
    assert lm.given(shown.parent/"pictures"/"7.png").generate("Number", steps=3)
    weights = load_weights(run/"model.safetensors")
    assert torch.equal(lm.model.encoder.look.weight, weights["encoder.look.weight"])
    with pytest.raises(UserError, match="do not fit its config.yaml"): DiffusionLM.from_run(run)
