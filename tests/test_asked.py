"""An option is obeyed or refused.

An option that changes nothing next to the others gives one line and exit status 2, and so does anything else that a
user can type."""
import json
import re
import shlex
import string
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_lm import cli
from diffusion_lm.cli import BENCHES, COMMANDS, main, parse_train, recipes
from diffusion_lm.core import UserError
from diffusion_lm.deploy.chat import Chat
from diffusion_lm.deploy.runtime import Text
from diffusion_lm.evaluation.metrics import Estimate, estimate_ratio, interval
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.sampling.policies import PredictorCorrector, ReMDM, make_policy
from diffusion_lm.text.tokenizer import Tokenizer
from diffusion_lm.training.recipe import idle

# ---- options that change nothing next to the others ----

REFUSED = [
    ("sample tiny --sampler remdm --kind confidence --eta .5", "eta goes with another kind"),
    ("sample tiny --sampler remdm --kind confidence --eta .05", "eta goes with another kind"),
    ("sample tiny --sampler predictor-corrector --kind confidence --eta .1", "eta goes with another kind"),
    ("sample tiny --sampler predictor-corrector --kind loop", "loop goes with remdm"),
    ("sample tiny --sampler remdm --kind loop --steps 2", "at least three steps"),
    ("sample tiny --sampler confidence --kind cap", "takes no parameters, not kind"),
    ("sample tiny --avoid ,", "--avoid has no word in it"),
    ("sample tiny --include ' , ,'", "--include has no word in it"),
    ("sample tiny --toward ,", "--toward has no word in it"),
    ("sample tiny --strength 2", "--strength goes with --toward"),
    ("sample tiny --toward , --strength 2", "--toward has no word"),
    ("sample tiny --toward sea --strength nan", "strength must be"),
    ("sample tiny --temperature 0 --top-k 5", "--top-k changes nothing at temperature 0"),
    ("sample tiny --temperature 0 --top_p .5", "--top-p changes nothing at temperature 0"),
    ("sample tiny --top-k 0", "top_k must be at least 1"),
    ("sample tiny --steps 1 --cool .5", "--cool needs more than one step"),
    ("sample tiny --sampler first-hitting --grid cosine", "--grid goes with a sampler that follows a grid"),
    ("sample tiny-ar --grid cosine", "--grid goes with a sampler that follows a grid"),
    ("sample tiny-ar --sampler ancestral", "samples left-to-right, not by 'ancestral'"),
    ("sample tiny --guidance 1", "guidance heeds what is given"),
    ("sample tiny --infill [MASK:3] --guidance 1", "guidance heeds what is given"),
    ("sample tiny --json --interactive", "--json does not go with"),
    ("sample tiny --json --stream", "--json does not go with"),
    ("sample tiny --stream -n 2", "-n does not go with"),
    ("sample tiny --stream --avoid war", "--avoid does not go with"),
    ("sample tiny --prompt x --interactive", "--prompt does not go with --interactive"),
    ("sample tiny --interactive --infill [MASK]", "--infill does not go with --interactive"),
    ("sample tiny --infill [MASK] --length 8", "--length goes with --prompt"),
    ("sample tiny --infill [MASK] --include sea", "--include goes with --prompt"),
    ("sample tiny --stream --infill [MASK] --length 8", "--length goes with --prompt"),
    ("chat tiny-ar --sampler ancestral", "samples left-to-right"),
    ("eval tiny --style --draws 8", "--draws does not go with --style"),
    ("eval tiny --style --file x.txt", "--file does not go with --style"),
    ("eval tiny --style --max-tokens 8", "--max-tokens does not go with --style"),
    ("eval tiny --file x.txt --max-tokens 8", "--max-tokens goes with the run's own test text"),
    ("eval tiny --samples 8", "--samples goes with --style"),
    ("eval tiny --seed 1", "--seed goes with --style"),
    ("eval tiny --reference x.txt", "--reference goes with --style"),
    ("eval tiny --max-tokens 0", "--max-tokens must be at least 1"),
    ("eval tiny-ar --draws 8", "the score of this run is exact"),
    ("bench memory --minutes 2", "--minutes goes with bench overhead, not with bench memory"),
    ("bench drift tiny --batch 4", "--batch goes with bench train and bench memory, not with bench drift"),
    ("bench overhead --preset tiny", "not with bench overhead"),
    ("bench sample --batch 4", "not with bench sample"),
    ("bench sample --all-dtypes", "not with bench sample"),
    ("bench memory --dtype float32", "not with bench memory"),
    ("bench overhead --device cpu", "not with bench overhead"),
    ("bench memory --rounds 3", "not with bench memory"),
    ("bench train --minutes 1", "not with bench train"),
    ("bench train --no-peer --all-dtypes", "--no-peer leaves out"),
    ("bench sample --device cpu --dtype bfloat16", "text is written in float32"),
    ("bench train --out x", "--out goes with bench drift"),
    ("export tiny --static", "--static goes with --int8"),
    ("export tiny --max-tokens 100", "--max-tokens goes with --int8 or --fp16"),
    ("export tiny --format torch --opset 18", "--opset goes with --format onnx"),
    ("export tiny --format torch --int8", "--fp16 and --int8 go with --format onnx"),
    ("export tiny --format torch --fp16", "--fp16 and --int8 go with --format onnx"),
    ("prepare --config RECIPE --out x", "--out goes with --inspect"),
    ("train --config RECIPE --memory-efficient --trainer.checkpointing false", "leave out one of them"),
    ("train --name tiny --resume --overwrite", "leave out one of them"),
    ("train --config RECIPE --noise.power 3", "--noise.power changes nothing: it goes with noise.schedule polynomial"),
    ("train --config RECIPE --noise.low=.1", "--noise.low changes nothing"),
    ("train --config RECIPE --objective ar --noise.schedule cosine",
     "--noise.schedule changes nothing: objective ar masks nothing"),
    ("train --config RECIPE --objective llada --noise.schedule cosine", "a schedule of its own"),
    ("train --config RECIPE --objective ar --noise.blocks 2", "--noise.blocks changes nothing"),
    ("train --config RECIPE --trainer.lr_schedule cosine --trainer.decay .3", "--trainer.decay changes nothing"),
    ("train --config RECIPE --name new --tokenizer.load gpt2 --tokenizer.kind word",
     "--tokenizer.kind changes nothing: tokenizer.load takes one"),
    ("runs --out ~nobody-of-this-name/x", "there is no such user"),
    ("sample ~nobody-of-this-name", "there is no such user"),
    ("train --model.thought.help --data 3", "one argument too many"),
    ("demo --config quick", "demo has a recipe of its own"),
    ("demo --resume", "demo starts over"),
]

@pytest.mark.parametrize("line, why", REFUSED, ids=[l for l, _ in REFUSED])
def test_refused(refused, trained, recipe, tmp_path, line, why):
    (tmp_path/"x.txt").write_text("the river")
    (tmp_path/"cwd"/"x.txt").write_text("the river")
    said = refused(*(str(recipe) if a == "RECIPE" else a for a in shlex.split(line)), notes=("warming up",))
    assert re.search(why, said), said

def test_each_benchmark_has_its_options(capsys):
    "The table names options that there are, and every option is of some benchmark"
    known = set()
    def look(parser, args):
        known.update(action.dest for action in parser._actions)
        raise UserError("seen")
    with patch("diffusion_lm.command._parse", look), pytest.raises(UserError, match="seen"):
        cli.BenchCommand.parse(["train"])
    of = {name: set(bench.options.split()) for name, bench in BENCHES.items()}
    assert set().union(*of.values()) == known - {"help", "what", "run", "json"}

def test_steps_that_are_not_counted(dlm, trained):
    "Samplers that choose their own steps note that --steps changes nothing; the record does not claim them"
    for run, *sampler in (("tiny", "--sampler", "first-hitting"), ("tiny", "--sampler", "threshold"), ("tiny-ar",)):
        status, out, err = dlm("sample", run, *sampler, "--length", 8, "--steps", 3, "--json")
        assert status == 0 and json.loads(out)[0]["steps"] is None
        assert "chooses its own number of steps: --steps changes nothing" in err
        assert dlm("sample", run, *sampler, "--length", 8, "--json")[1:] == (out, "")
    status, out, err = dlm("sample", "tiny", "--length", 8, "--steps", 3, "--json")
    assert status == 0 and not err and json.loads(out)[0]["steps"] == 3

OBEYED = [
    ["--sampler", "remdm", "--kind", "confidence"],
    ["--sampler", "remdm", "--eta", ".5"],
    ["--temperature", "0", "--cool", "1", "--top-k", "3"],
    ["--avoid", ""],
    ["--grid", "cosine"],
    ["--prompt", "the", "--guidance", "1"],
    ["--include", "sea", "--guidance", "1"],
    ["--toward", "sea", "--strength", "0"],
    ["--stream", "-n", "1"],
    ["--top-k", "1"],
]

def test_what_is_obeyed(dlm, trained):
    "The neighbours of what is refused"
    for args in OBEYED:
        status, out, err = dlm("sample", "tiny", "--length", 8, "--steps", 3, *args)
        assert status == 0 and out and not err, (args, err)
    assert dlm("sample", "tiny-ar", "--sampler", "left-to-right", "--length", 8)[0] == 0

def test_a_full_stop_is_avoided(dlm, trained):
    "A word stands alone, a sign anywhere"
    plain = dlm("sample", "tiny", "-n", 4, "--steps", 8, "--temperature", ".7")[1]
    signs = [c for c in ".!" if c in plain] or [next(c for c in plain if c in string.punctuation)]
    for c in signs:
        assert c not in dlm("sample", "tiny", "-n", 4, "--steps", 8, "--temperature", ".7", "--avoid", c)[1]

def test_demo_replaces_no_run_but_its_own(refused, trained):
    "Under another name it is a training like any other"
    assert "run 'tiny' exists" in refused("demo", "--name", "tiny")

# ---- recipes ----

def test_idle_fields(dlm, recipe, home):
    "In a recipe they are noted, for one recipe serves several objectives; packaged recipes have none"
    for name in recipes(): assert not idle(parse_train(["--config", name])[0]), name
    status, out, err = dlm("train", "--config", recipe, "--trainer.steps", 2, "--samples.steps", 1)
    assert status == 0 and "changes nothing" not in err
    text = recipe.read_text().replace("objective: nelbo-count", "objective: ar\nnoise: {schedule: cosine, power: 3}\n")
    path = home.parent/"ar.yaml"
    path.write_text(text)
    status, out, err = dlm("train", "--config", path, "--trainer.steps", 2, "--samples.steps", 1)
    assert status == 0 and "noise.schedule changes nothing: objective ar masks nothing" in err
    assert "noise.power changes nothing" in err

# ---- in Python ----

@pytest.fixture(scope="module")
def lm(tiny_home): return DiffusionLM.from_run("tiny", tiny_home/"checkpoints", "cpu")

@pytest.fixture(scope="module")
def ar(tiny_home): return DiffusionLM.from_run("tiny-ar", tiny_home/"checkpoints", "cpu")

def test_a_string_is_one_word(lm):
    kw = dict(length=24, steps=6, seed=3)
    assert lm.generate(avoid="the", **kw) == lm.generate(avoid=["the"], **kw)
    assert lm.generate(include="the sea", **kw) == lm.generate(include=["the sea"], **kw)
    assert " the sea" in lm.generate(include="the sea", **kw)[0]
    assert lm.infill("a [MASK:9] b", avoid="the", steps=4) == lm.infill("a [MASK:9] b", avoid=("the",), steps=4)
    assert lm.generate(target=lm.toward("sea"), **kw) == lm.generate(target=lm.toward([" sea "]), **kw)
    assert lm.generate(avoid=iter(["the"]), **kw) == lm.generate(avoid=["the"], **kw)
    chat = Chat(lm, length=4, steps=2)
    for words in (3, None, [None], [3], [""], " ", ["a", "\n"], [b"a"], [["a"]]):
        for call in (partial(lm.generate, avoid=words), partial(lm.generate, include=words),
                     partial(lm.infill, "[MASK]", avoid=words), partial(lm.toward, words)):
            with pytest.raises(UserError, match="must be a word or a list of words"): call()
    with pytest.raises(UserError, match="needs a word"): lm.toward([])
    with pytest.raises(UserError, match="word"): [*chat.say(chat.begin(), "a", toward=[3])]

def test_prompts_are_a_string_or_several(lm, tmp_path):
    pages = []
    for prompts in ("the", ["the"]):
        lm.watch(tmp_path/"page.html", prompts, steps=2)
        pages.append((tmp_path/"page.html").read_text())
    assert pages[0] == pages[1]
    lm.watch(tmp_path/"page.html", [], "the [MASK:2]", steps=2)
    with pytest.raises(UserError, match="nothing to show"): lm.watch(tmp_path/"none.html", [])
    assert not (tmp_path/"none.html").exists()

@pytest.mark.parametrize("kw, why", [
    (dict(top_k=3, temperature=0), "top_k changes nothing"),
    (dict(top_p=.5, temperature=0.), "top_p changes nothing"),
    (dict(grid_name="cosine", sampler="threshold"), "grid_name goes with"),
    (dict(guidance=1.), "guidance heeds"),
    (dict(stop=3), "stop follows from the text"),
    (dict(only=None), "only follows"),
    (dict(rows=[1]), "rows follows"),
    (dict(sampler="remdm", kind="confidence", eta=.3), "another kind"),
    (dict(tau=.3), "no parameters, not tau"),
    (dict(prompt=None), "a prompt is a text"),
    (dict(prompt=3), "a prompt is a text"),
    (dict(length=0), "length must be"),
], ids=str)
def test_generate_refuses(lm, kw, why):
    with pytest.raises(UserError, match=why): lm.generate(**kw)
    if "length" in kw or "prompt" in kw: return
    with pytest.raises(UserError, match=why): lm.infill("[MASK:4]", **kw)
    with pytest.raises(UserError, match=why): next(lm.stream(**kw))
    with pytest.raises(UserError, match=why): lm.watch("nowhere.html", **kw)
    with pytest.raises(UserError, match=why): lm.play(**kw)
    assert not Path("nowhere.html").exists()

def test_what_belongs_to_another_method(lm, ar, tmp_path):
    page = tmp_path/"p"
    for call, why in (
        (lambda: next(lm.stream(avoid=["a"])), "avoid goes with generate and infill"),
        (lambda: lm.watch(page, n=3), "n goes with"),
        (lambda: lm.infill("[MASK]", length=3), "length goes with"),
        (lambda: lm.play("a", template="[MASK]"), "leave out prompt"),
        (lambda: next(lm.stream("a", template="[MASK]")), "leave out prompt"),
        (lambda: next(lm.stream(template="[MASK]", length=3)), "leave out prompt"),
        (lambda: next(ar.stream(template="[MASK]")), "cannot infill"),
        (lambda: ar.watch(page, templates=["[MASK]"]), "cannot infill"),
        (lambda: lm.infill(None), "a template is a text"),
        (lambda: lm.score("the", draws=0), "draws must be"),
        (lambda: Chat(ar, sampler="ancestral"), "left-to-right"),
        (lambda: ReMDM(.3, "confidence"), "another kind"),
        (lambda: PredictorCorrector(kind="loop"), "goes with remdm"),
        (lambda: make_policy("remdm", kind="confidence", eta=.05), "another kind"),
    ):
        with pytest.raises(UserError, match=why): call()
    assert not page.exists()

def test_a_rewritten_word_is_written_as_asked(lm):
    "Where a word is avoided, what stands in its place is steered like the rest"
    kw = dict(length=24, steps=6, n=4, target=lm.toward("sea", 30.))
    word = next(w for w in re.findall(r"\w+", " ".join(lm.generate(**kw))) if "sea" not in w)
    seen = []
    lm.generate(**kw | dict(target=lambda q: seen.append(1) or kw["target"](q)), avoid=word)
    plain = len(seen)
    seen.clear()
    lm.generate(**kw | dict(target=lambda q: seen.append(1) or kw["target"](q)))
    assert plain > len(seen)

# ---- holes ----

MISSPELT = [
    "[MASK: 3]", "[mask:3]", "[MASK:]", "[MASK 3]", "[MASK:-1]", "[ MASK:3]", "[MASK:3 ]", "[MASK :3]", "[Mask]",
    "[MASK=3]", "[MASK;3]", "[MASK#3]", "[MASK3]", "[MASK_3]", "[MASK-3]", "[MASK:x]", "[MASK:3.5]", "[MASK:1e3]",
    "[MASKS:3]", "[MASK:3", "[MASK::3]", "[MASK:+3]", "[MASK:\uff13]", "[MASK\uff1a3]", "[\nMASK:3]",
]

@pytest.fixture(scope="module")
def spellers(tiny_home):
    "The library's reading of templates, and that of an exported model"
    at = tiny_home/"checkpoints"/"tiny"/"tokenizer.json"
    tok = Tokenizer.load(at)
    return tok, Text(at, dict(zip(("pad", "mask", "bos", "eos", "sep"), tok.specials)))

@pytest.mark.parametrize("hole", MISSPELT)
def test_a_misspelt_hole_is_named(spellers, hole):
    for s in spellers:
        for template in (f"a [MASK:2] b {hole} c", f"{hole}[MASK]", f"a [MASK] {hole}"):
            with pytest.raises(ValueError) as e: s.encode_template(template)
            said = str(e.value)
            assert " ".join(hole.split()) in said and "is misspelt: write [MASK:8]" in said
            assert "nothing to fill" not in said
        with pytest.raises(ValueError, match="nothing to fill.*is misspelt"): s.encode_template(f"a {hole} b")

@pytest.mark.parametrize("text", [
    "[masked men]", "[the mask: his]", "[MASKED]", "MASK:3]", "(MASK)", "[maskara]", "[mask of gold]", "[1]", "[ ]",
    "\\[x]",
])
def test_other_brackets_are_text(spellers, text):
    for s in spellers:
        ids, opens = s.encode_template(f"{text} [MASK:2] {text}")
        assert s.decode(ids[~np.isin(ids, [s.mask])]).replace(" ", "") == (text*2).replace(" ", "")

@pytest.mark.parametrize("template, why", [
    ("[MASK:2] [MASK:99999999999999]", "more than 1,048,576 tokens"),
    ("[MASK:0] [MASK]", "1 or more"),
    ("[MASK:000]", "1 or more"),
    ("[MASK:1048576]"*3, "more than"),
    (None, "a template is a text"),
    (b"[MASK]", "a template is a text"),
])
def test_too_many_or_none(spellers, template, why):
    for s in spellers:
        with pytest.raises(ValueError, match=why): s.encode_template(template)

parts = st.sampled_from([*MISSPELT, "[MASK]", "[MASK:3]", "[MASK:12]", " ", "the", "[", "]", "MASK", ":", "3", "\n"])

@given(st.lists(parts | st.text(max_size=4), max_size=6).map("".join))
@settings(max_examples=300)
def test_both_read_templates_alike(spellers, template):
    said = []
    for s in spellers:
        try: said.append([z.tolist() for z in s.encode_template(template)])
        except ValueError as e: said.append(str(e))
    assert said[0] == said[1]
    if not isinstance(said[0], list): return # both refuse it, with the same words
    assert spellers[0].mask in said[0][0]
    assert not re.search(r"\[\s*mask[\s:0-9]*\]", re.sub(r"\[MASK(:\d+)?\]", "", template), re.I)

# ---- in a chat ----

@pytest.mark.parametrize("line, why", [
    ("/again now", "'now' is one word too many for /again"),
    ("/mend .2 .3", "too many"),
    ("/reset all", "too many"),
    ("/stack 3", "too many"),
    ("/quit please", "too many"),
    ("/help me", "too many"),
    ("/mix a .5 b", "too many"),
    ("/steps 3", "too many"),
    ("/save", "name a file"),
    ("/load  ", "name a file"),
    ("/", "unknown command"),
    ("/mend x", "not a number"),
])
def test_words_behind_a_command(lm, line, why):
    chat = Chat(lm, length=4, steps=2)
    *_, talk = chat.say(chat.begin(), "the")
    with pytest.raises(UserError, match=why): chat.obey(talk, line, lambda f: [*f])

def test_files_of_a_chat(lm, tmp_path, monkeypatch):
    "A name may have spaces; what a kept talk brings with it is said"
    monkeypatch.chdir(tmp_path)
    chat, said = Chat(lm, length=4, steps=2), []
    *_, talk = chat.say(chat.begin(), "the")
    chat.obey(talk, "/save my first talk", lambda f: [*f], said.append)
    assert [p.name for p in tmp_path.iterdir()] == ["my first talk"]
    Chat(lm, length=7, steps=3).obey(talk, "/load my first talk", lambda f: [*f], said.append)
    held = "held with length 4, steps 2, sampler ancestral, temperature 0.8, seed 0"
    assert said == ["kept in my first talk", f"a talk of 1 turns, {held}"]

# ---- intervals ----

def test_one_unit_has_no_interval():
    for num, den in (([3.], [2.]), ([], []), ([3., 0., 0.], [2., 0., 0.]), ([0., 0.], [5., 7.]), ([.1*3]*9, [.3]*9)):
        e = estimate_ratio(num, den, "bits/byte", by="window", f=lambda r: r*1.7)
        assert e.low is None and e.high is None and "no interval" in str(e) and "95" not in str(e)
    assert "(no interval: one window)" in str(estimate_ratio([3], [2], "x", by="window"))
    assert "2 windows that do not differ" in str(estimate_ratio([0, 0], [2, 2], "x", by="window"))
    e = estimate_ratio([3., 4.], [2., 2.], "bits/byte")
    assert e.low < e.value < e.high and "[" in str(e)
    assert Estimate(1., 2., 2., 5, "x", "mean", "text").low is None
    assert interval(None, None) == interval(2., 2.) == "–" and interval(1., 2., ".1f") == "1.0 – 2.0"

def strict(text): return json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))

def test_a_text_of_one_window(dlm, trained, tmp_path):
    (tmp_path/"short.txt").write_text("The river sleeps.")
    e = strict(dlm("eval", "tiny", "--file", tmp_path/"short.txt", "--json")[1])
    for k in ("bits_per_byte", "nats_per_token", "perplexity"): assert e[k]["low"] is None and e[k]["high"] is None
    assert e["bits_per_byte"]["n"] == 1
    status, out, err = dlm("eval", "tiny", "--file", tmp_path/"short.txt")
    assert status == 0 and out.count("(no interval: one window)") == 3 and "nan" not in out.lower()
    status, out, err = dlm("eval", "tiny", "--draws", 1, "--max-tokens", 64)
    assert "one draw has no spread" in out and "nan" not in out
    assert strict(dlm("eval", "tiny", "--draws", 1, "--json")[1])["monte_carlo_error"] is None

def test_a_run_scored_on_one_window(dlm, trained, recipe):
    "Its report, its tables and the list of runs have no interval, and neither has one of before"
    status, out, err = dlm("train", "--config", recipe, "--name", "short", "--trainer.steps", 2,
                           "--trainer.test_tokens", 32, "--trainer.test_draws", 1)
    run = trained/"checkpoints"/"short"
    text = (run/"report.md").read_text()
    assert status == 0 and "nan" not in out + text and "no intervals: there is one window" in text
    assert " – " not in out.split("gzip")[0].split("\n")[-1]
    s = strict((run/"summary.json").read_text())
    assert s["bits_per_byte"]["low"] is None and (run/"denoising.html").exists()
    e = s["bits_per_byte"]
    for low in (None, e["value"]):
        (run/"summary.json").write_text(json.dumps(s | {"bits_per_byte": e | {"low": low, "high": low}}))
        line = next(l for l in dlm("runs")[1].splitlines() if l.startswith("short"))
        assert re.search(r"≤ \d\.\d{3} +–  ", line), line
    assert strict(dlm("runs", "--json")[1])[0]["name"] == "short"

def test_passages_that_no_document_reaches():
    "Of nothing there is no figure, and no crash"
    e = estimate_ratio([], [], "bits/byte", f=lambda r: r)
    assert e.value != e.value and e.n == 0

# ---- anything else that can be typed ----

HOSTILE = [
    "", " ", "0", "-1", "1", "3", "1.5", "nan", ".nan", "inf", "-.inf", "1e309", "9"*40, "0x10", "1_000", "true",
    "null", "[]", "[1,2]", "{}", "{a: 1}", "a: b", "- x", "!!python/object:os.system", "&a *a", "%", "'", '"', "\\",
    "#", "~", "/", ".", "..", "//", "/dev/null", "/proc/self/mem", "-", "--", "---", "-n", "--json", "--help=1",
    "tiny", "tiny-ar", "sotu", "the river", ",", ",,a", ".", "a,b", "[MASK:3]", "[MASK: 3]", "x [MASK:2] y",
    "[MASK:99999999999]", "\0", "\n", "\r", "\x1b[2J", "\udcff", "\ud800", "\ufeff", "\U0001f642", "e\u0301",
    "\u202e", "x"*5000, "${HOME}", "$(id)", "%s%n", "ancestral", "first-hitting", "remdm", "confidence", "loop",
    "cosine", "learned", "dual", "prefix", "off", "cpu", "cuda:99", "float32",
]

def flags(command):
    "The options of a command and those of its parser that take no value"
    found = []
    def look(parser, args):
        for action in parser._actions:
            found.extend((o, action.nargs == 0) for o in action.option_strings if o not in ("-h", "--help"))
        raise UserError("seen")
    line = [command, "tiny"] if command != "train" else [command]
    with patch("diffusion_lm.command._parse", look), redirect_stderr(StringIO()): main(line)
    return found

WRITE = ["sample", "chat", "eval", "runs"] # run to the end; of the others only what is refused beforehand
OPTIONS = {c: flags(c) for c in COMMANDS if c != "demo"}

CHEAP = { # options that keep a command short
    "sample": ["--length", "8", "--steps", "2"],
    "chat": ["--length", "4", "--steps", "2"],
    "eval": ["--max-tokens", "32", "--draws", "1"],
}
COUNTS = ("--samples", "--max-tokens", "-n", "--n") # large values take long

hostile = st.sampled_from(HOSTILE)
value_of_any_kind = hostile | st.integers(-2, 40).map(str) | st.floats(0, 2).map(str) | st.text(max_size=6)

@st.composite
def lines(draw, commands):
    "A command with some of its options, most with hostile values"
    command = draw(st.sampled_from(commands))
    args = [command]
    if command in ("sample", "chat", "eval", "export"):
        args.append(draw(st.sampled_from(["tiny"]*6 + ["tiny-ar"]*2) | hostile))
    if command == "bench": args.append(draw(st.sampled_from([*BENCHES]) | hostile))
    args += CHEAP.get(command, [])
    for _ in range(draw(st.integers(0, 4))): args += draw(options(command))
    return args + draw(st.lists(hostile, max_size=1)) if not draw(st.integers(0, 5)) else args

@st.composite
def options(draw, command):
    "An option of a command as it is typed"
    option, is_flag = draw(st.sampled_from(OPTIONS[command]))
    if option in COUNTS and command in WRITE: value = draw(st.sampled_from(["0", "-1", "2", "x", ""]))
    else: value = draw(value_of_any_kind)
    if is_flag and draw(st.integers(0, 9)): return [option]
    if draw(st.booleans()) or value.startswith("-"): return [f"{option}={value}"]
    return [option, value]

BEGINNINGS = (
    "training.run.train", "training.report.style_figures", "text.store.prepare", "deploy.export.export_lm",
    "doctor.training_check", "bench.bench_train", "bench.overhead", "bench.bench_memory", "bench_sample.bench_sample",
    "bench_sample.bench_drift",
)

def typed(home, args, tree):
    "A line as it is typed: no traceback, a known status, one line that says why, nothing written where it is refused"
    before, out, err = tree(home.parent), StringIO(), StringIO()
    def stop(*args, **kw): raise UserError("here the work would begin")
    with ExitStack() as stack:
        for name in BEGINNINGS: stack.enter_context(patch(f"diffusion_lm.{name}", stop))
        stack.enter_context(patch.object(sys, "stdin", StringIO("the river\n/help\n")))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        status = main(args)
    err = err.getvalue()
    assert status in (0, 2, 130), (args, status, err)
    assert "Traceback" not in err
    if status == 2:
        last = err.splitlines()[-1]
        assert out.getvalue() == "" and last.startswith("dlm: ") and 10 < len(last) < 8000, (args, out.getvalue(), err)
        assert tree(home.parent) == before, args
    return status

@pytest.fixture(scope="module")
def playground(tiny_home, tmp_path_factory):
    "A home that fuzzing may look at, and write talks beside"
    import shutil
    at = tmp_path_factory.mktemp("play")
    shutil.copytree(tiny_home, at/"home")
    (at/"cwd").mkdir()
    with pytest.MonkeyPatch.context() as m:
        m.chdir(at/"cwd")
        m.setenv("DIFFUSION_LM_HOME", str(at/"home"))
        yield at/"home"

def names(folder): return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")} # cheaper than digests

@given(lines([*OPTIONS]))
@settings(max_examples=200)
def test_any_line(playground, line): typed(playground, line, names)

STEERING = [[], ["--stream"], ["--avoid=the"], ["--include=sea"], ["--toward=sea"], ["--temperature=0"], ["-n=2"]]
TAKE_TEXT = ["--prompt", "--infill", "--avoid", "--include", "--toward"]
bits = st.sampled_from([*MISSPELT, *HOSTILE, "[MASK]", "[MASK:3]", "the", "sea", " ", ","]) | st.text(max_size=5)

@given(st.sampled_from(STEERING), st.sampled_from(TAKE_TEXT), st.lists(bits, max_size=5).map("".join))
@settings(max_examples=100)
def test_any_text(playground, more, option, text):
    short = "--length=12" if option != "--infill" else "--seed=1"
    typed(playground, ["sample", "tiny", short, "--steps=2", *more, f"{option}={text}"], names)

TURNS = ["/again", "/mend", "/mend .5", "/steer sea", "/stack", "/steps", "/reset", "/save t", "/load t", "/mix t .5",
         "/help", "/quit x", "the river", "", "/", "//", *HOSTILE]

@given(st.lists(st.sampled_from(TURNS) | st.text(max_size=8), max_size=6))
@settings(max_examples=40)
def test_any_talk(playground, said):
    out, err = StringIO(), StringIO()
    with patch.object(sys, "stdin", StringIO("\n".join(said))), redirect_stdout(out), redirect_stderr(err):
        status = main(["chat", "tiny", "--length=4", "--steps=2"])
    assert status == 0 and "Traceback" not in err.getvalue()
    assert all(l.startswith("dlm: ") for l in err.getvalue().splitlines()), err.getvalue()
