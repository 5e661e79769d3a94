"""Keys of older versions work under their present names, and one line on stderr says so.

That holds in a recipe, in a section, as an option, and in a run's own configuration.
"""
import pytest

from diffusion_lm import files
from diffusion_lm.cli import parse_train
from diffusion_lm.core import UserError
from diffusion_lm.files import read_yaml

THOUGHT = """objective: block
model: {width: 16, heads: 2, layers: 1, length: 32, block: 16, thought: {stretch: 3, depth: 4}}
"""
NOTE = "model.thought.stretch is called"

@pytest.mark.parametrize("args", [
    ["--config", "FILE"],
    ["--config=FILE"],
    ["--config", "thought", "--model.thought.stretch", "3"],
    ["--config", "thought", "--model.thought.stretch=3"],
    ["--config", "thought", "--model.thought", "{stretch: 3}"],
    ["--config", "thought", "--model", "{thought: {stretch: 3}}"],
    ["--config", "thought", "--model", "SECTION"],
], ids=lambda args: " ".join(args))
def test_every_way_to_say_it(tmp_path, capsys, monkeypatch, args):
    monkeypatch.setattr(files, "_noted", set())
    (tmp_path/"old.yaml").write_text(THOUGHT)
    (tmp_path/"section.yaml").write_text("thought: {stretch: 3}\n")
    paths = {"FILE": str(tmp_path/"old.yaml"), "SECTION": str(tmp_path/"section.yaml")}
    for word, path in paths.items(): args = [a.replace(word, path) for a in args]
    cfg, _ = parse_train(args)
    err = capsys.readouterr().err
    assert cfg.model.thought.segment == 3
    assert err.count("\n") == 1 and "stretch is called" in err and "segment now" in err, err

def test_a_mistake_beside_an_old_name(tmp_path):
    (tmp_path/"old.yaml").write_text(THOUGHT.replace("depth", "deph"))
    with pytest.raises(UserError, match="unknown key 'model.thought.deph'; did you mean 'model.thought.depth'"):
        parse_train(["--config", str(tmp_path/"old.yaml")])

def test_resuming_a_run_of_an_older_version(dlm, recipe, home):
    "Its config.yaml has the old name; the run goes on to the same end"
    options = "--objective block --model.block 16 --model.thought.segment 2 --samples.templates []"
    args = ["--config", recipe, *options.split()]
    stop = ["--trainer.steps", 6, "--trainer.save_every", 2, "--samples.steps", 2]
    for name in ("old", "whole"):
        early = ["--trainer.stop_at", 4] if name == "old" else []
        status, out, err = dlm("train", *args, *stop, "--name", name, *early)
        assert status == 0, err
    path = home/"checkpoints"/"old"/"config.yaml"
    text = path.read_text()
    assert text.count("segment:") == 1
    path.write_text(text.replace("segment:", "stretch:"))
    status, out, err = dlm("train", "--resume", "--name", "old")
    assert status == 0 and err.count(NOTE) == 1, err
    weights = [(home/"checkpoints"/name/"model.safetensors").read_bytes() for name in ("old", "whole")]
    assert weights[0] == weights[1]
    assert "stretch" in path.read_text() or read_yaml(path)["model"]["thought"]["segment"] == 2
