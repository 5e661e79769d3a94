"""Low-rank adapters: trained beside the frozen weights of a run, used beside them or merged, refused elsewhere."""
import json
import shutil

import pytest
import torch

from conftest import same_run, story, train_runs
from diffusion_lm.files import digest, read_json
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.adapters import (
    AdapterConfig,
    adapter_state,
    add_adapter,
    base_digest,
    find_adapter,
    merge_adapters,
    read_adapter,
    save_adapter,
    shared_copy,
    take_adapter,
    weigh,
    with_adapters,
)
from diffusion_lm.models.make import make_model
from diffusion_lm.models.transformer import ModelConfig, n_params, randomize_
from diffusion_lm.text.store import Batch
from diffusion_lm.theory.objective import Objective
from diffusion_lm.training.checkpoint import EMA, Checkpoint
from diffusion_lm.training.learner import Best, Callback, Learner, TrainConfig
from diffusion_lm.training.monitor import Norms
from diffusion_lm.weights import load_weights, save_weights

SPECIALS = (0, 1, 2, 3, 4)

# ---- a network ----

KINDS = {
    "plain": {},
    "timed": {"time_conditioning": True},
    "causal": {"objective": "ar"},
    "blocks": {"objective": "block", "block": 4},
    "thoughts": {"objective": "block", "block": 4, "thought": {"dims": [2, 2], "depth": 2}},
    "grouped": {"anatomy": {"kv_heads": 1, "bias": True}, "neighbours": False},
}

def network(kind="plain", seed=0, objective="nelbo-count", **kw):
    "A small network with random weights"
    more = dict(KINDS[kind]) | kw
    objective = more.pop("objective", objective)
    config = ModelConfig(**{"width": 32, "heads": 2, "layers": 2, "length": 16} | more)
    torch.manual_seed(seed)
    return randomize_(make_model(config, 40, SPECIALS, objective), seed, std=.05).eval()

def filled(model, *names, seed=0, rank=4, std=.1):
    "A model with adapters of these names, as if they had been trained"
    for i, name in enumerate(names):
        add_adapter(model, AdapterConfig(rank), name, of="base")
        randomize_(torch.nn.ParameterList(adapter_state(model, name).values()), seed + i, std)
    return model

def hidden(model):
    "What it makes of some tokens with holes: floats (2,16,32)"
    x = torch.randint(5, 40, (2, 16), generator=torch.Generator().manual_seed(1))
    masked = torch.arange(16).expand(2, -1) % 3 == 0
    with torch.no_grad(): return model.hidden(x, masked, torch.full((2, 4), .3) if model.block else None)

def far(a, b): return (a - b).abs().max().item()

@pytest.mark.parametrize("kind", KINDS)
def test_untrained_changes_nothing_and_merged_is_unmerged(kind):
    "In every kind of network: to the last bit before training, within rounding after it"
    base, model = network(kind), add_adapter(network(kind), AdapterConfig(4))
    assert torch.equal(hidden(model), hidden(base))
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in merge_adapters(model).state_dict().items())
    filled(model, "b")
    plain = merge_adapters(model)
    assert far(hidden(plain), hidden(model)) <= 1e-5 < far(hidden(model), hidden(base))
    assert [*plain.state_dict()] == [*base.state_dict()] and type(plain) is type(base)
    assert [type(m) for m in plain.modules()] == [type(m) for m in base.modules()]
    assert n_params(plain) == n_params(base)

def test_the_sum_of_two_is_the_sum_of_what_each_adds():
    base, model = network(), filled(network(), "a", "b")
    def layer(weights):
        x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
        with torch.no_grad(): return weigh(model, weights).blocks[1].ff.up(x)
    none, a, b = layer({}), layer({"a": 1.}), layer({"b": 1.})
    assert far(layer({"a": 1., "b": 1.}), a + b - none) <= 1e-5 < far(a, none)
    assert far(layer({"a": 2., "b": -.5}), none + 2*(a - none) - .5*(b - none)) <= 1e-5
    assert torch.equal(layer({"a": 1., "b": 0.}), a)
    assert torch.equal(hidden(weigh(model, {})), hidden(base))

def test_it_adds_what_the_formula_says():
    "W + alpha/rank B A, with the weight"
    model = add_adapter(network(), AdapterConfig(4, alpha=3., layers="ff.down"), "a")
    randomize_(torch.nn.ParameterList(adapter_state(model, "a").values()))
    state, w = adapter_state(model, "a"), network().blocks[0].ff.down.weight
    a, b = (state[f"blocks.0.ff.down.lora_{z}.weight"] for z in "AB")
    got = merge_adapters(weigh(model, {"a": .5})).blocks[0].ff.down.weight
    assert far(got, w + .5*3/4*b @ a) <= 1e-6
    assert {k.split(".lora")[0] for k in state} == {"blocks.0.ff.down", "blocks.1.ff.down"}

def test_in_bfloat16_merging_rounds_once():
    model = filled(network(), "a", "b")
    exact = {k: v.double() for k, v in merge_adapters(weigh(model, {"a": 1., "b": 1.}), ()).state_dict().items()}
    half = shared_copy(model).bfloat16()
    for name in ("a", "b"):
        take = take_adapter(half, name)
        for k, a in take.state.items():
            if ".lora_A." not in k: continue
            layer = k.split(".lora_A.")[0]
            exact[f"{layer}.weight"] += 2*take.state[f"{layer}.lora_B.weight"].double() @ a.double()
    for k, w in merge_adapters(half).state_dict().items():
        if "blocks" not in k or w.ndim < 2: continue
        start = half.get_submodule(k.removesuffix(".weight")).base_layer.weight.double()
        want = exact[k] - network().state_dict()[k].double() + start
        assert w.dtype == torch.bfloat16 and ((w.double() - want).abs() <= want.abs()*2**-8 + 1e-6).all()

def test_the_base_is_shared_and_only_read():
    base = network()
    before, pointers = base_digest(base), {k: v.data_ptr() for k, v in base.state_dict().items()}
    a = take_adapter(filled(network(), "a"), "a")
    beside, plain = with_adapters(base, [(a, 1.)]), merge_adapters(base, [(a, 1.)])
    merge_adapters(beside)
    assert base_digest(base) == before == base_digest(beside) != base_digest(plain)
    assert base.adapted is None and all(p.requires_grad for p in base.parameters())
    assert beside.blocks[0].ff.up.base_layer.weight.data_ptr() == pointers["blocks.0.ff.up.weight"]
    shared = {k for k, v in plain.state_dict().items() if v.data_ptr() == pointers[k]}
    assert pointers.keys() - shared == {k for k in pointers if "attn" in k and k.endswith("weight") or ".ff." in k}

# ---- training ----

class OneBatch:
    def __init__(self):
        g, self.batch_size, self.length = torch.Generator().manual_seed(0), 4, 16
        x = torch.randint(5, 40, (4, 16), generator=g)
        self.b = Batch(x, torch.linspace(.2, .8, 4)[:, None], torch.rand(4, 16, generator=g))
    def batch(self, step, rank=0, world=1): return self.b

class Keep(Callback):
    def __init__(self): self.losses, self.notes = [], []
    def after_step(self, learn): self.losses.append(float(learn.loss))
    def on_note(self, learn, record): self.notes.append(record)

def learner(run=None, calls=(), dropout=0., **kw):
    model = add_adapter(network(), AdapterConfig(4, dropout=dropout), of="base")
    cfg = {"steps": 10, "lr": 1e-2, "batch": 4, "device": "cpu", "dtype": "float32", "save_every": 4, **kw}
    keep = Keep()
    more = [Checkpoint(run)] if run else []
    torch.manual_seed(3)
    return keep, Learner(Objective(model), OneBatch(), TrainConfig(**cfg), [EMA(), keep, *more, *calls])

@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_only_the_adapter_moves(optimizer):
    "And it learns; the base stays as it is, to the last bit, whatever decays or averages the weights"
    keep, learn = learner(optimizer=optimizer, weight_decay=.1, ema=.9, steps=30, calls=[Norms(5)])
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.fit()
    moved = {k for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if ".lora_" in k} and len(moved) == 16
    assert all(p.grad is None for n, p in learn.model.named_parameters() if ".lora_" not in n)
    assert keep.losses[-1] < .8*keep.losses[0]
    assert sum(p.numel() for o in learn.opts for g in o.param_groups for p in g["params"]) == sum(
        v.numel() for k, v in before.items() if ".lora_" in k)
    average = learn.ema.module
    assert not torch.equal(hidden(average), hidden(learn.model))
    for (n, a), p in zip(average.named_parameters(), learn.model.parameters(), strict=True):
        assert (a.data_ptr() == p.data_ptr()) == (".lora_" not in n), n
    assert any("norms" in r for r in keep.notes)

@pytest.mark.parametrize("options", [{}, {"ema": .8, "optimizer": "adamw"}, {"dropout": .3}], ids=str)
def test_resumed_as_if_unbroken(tmp_path, options):
    "Losses, checkpoint and both results are the same to the last bit; checkpoints hold the adapter alone"
    kept, whole = learner(tmp_path/"whole", **options)
    whole.fit()
    kept1, first = learner(tmp_path/"parts", stop_at=6, **options)
    first.fit()
    kept2, second = learner(tmp_path/"parts", **options)
    assert second.restore(tmp_path/"parts")[0].name == "step-000006"
    second.fit()
    assert kept.losses == kept1.losses + kept2.losses and len(set(kept.losses)) == 10
    for f in ("adapter.safetensors", "model.safetensors", "step-000010/adapter.safetensors"):
        assert (tmp_path/"whole"/f).read_bytes() == (tmp_path/"parts"/f).read_bytes()
    step = load_weights(tmp_path/"whole"/"step-000010"/"adapter.safetensors")
    assert all(".lora_" in k for k in step) and len(step) == 16
    assert not (tmp_path/"whole"/"step-000010"/"model.safetensors").exists()
    to_use = merge_adapters(whole.best_model).state_dict()
    got = load_weights(tmp_path/"whole"/"model.safetensors")
    assert got.keys() == to_use.keys() and all(torch.equal(got[k], to_use[k]) for k in got)

@pytest.mark.parametrize("ema", [0., .5])
def test_the_best_weights(tmp_path, ema):
    class LikesFour(Callback):
        order = 10
        def after_step(self, learn):
            if learn.step == 4: learn.best = Best(0., 4)
    _, learn = learner(tmp_path, [LikesFour()], best=True, ema=ema)
    learn.fit()
    best = load_weights(tmp_path/"step-000004"/("ema.safetensors" if ema else "adapter.safetensors"))
    used = load_weights(tmp_path/"adapter.safetensors")
    assert all(torch.equal(best[k], used[k]) and torch.equal(adapter_state(learn.best_model)[k], best[k]) for k in best)
    merged, got = merge_adapters(learn.best_model).state_dict(), load_weights(tmp_path/"model.safetensors")
    assert all(torch.equal(merged[k], got[k]) for k in got)
    last = load_weights(tmp_path/"step-000010"/"adapter.safetensors")
    assert any(not torch.equal(last[k], used[k]) for k in last)

def test_compiled_layers():
    "They train as plain ones do, they are averaged, and they can be merged"
    plain, learn = learner(steps=3, ema=.5)
    learn.fit()
    compiled, other = learner(steps=3, ema=.5, compile=True)
    other.fit()
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4) and other.model.compiled
    assert far(hidden(merge_adapters(other.model)), hidden(learn.model)) < 1e-3
    torch.compiler.reset()

# ---- files ----

def test_round_trip_and_what_is_no_adapter(tmp_path):
    model = filled(network(), "a")
    a = take_adapter(model, "a", tokenizer="1234")
    save_adapter(a, tmp_path/"a.safetensors")
    again = read_adapter(tmp_path/"a.safetensors")
    assert again._replace(state=a.state) == a._replace(config=AdapterConfig(4, 8.)) # alpha as it is used
    assert all(torch.equal(again.state[k], a.state[k]) for k in a.state) and again.state.keys() == a.state.keys()
    assert torch.equal(hidden(with_adapters(network(), [(again, 1.)])), hidden(model))
    small, large = (p.stat().st_size for p in (tmp_path/"a.safetensors", tmp_path/"a.safetensors"))
    assert small == large < 4*n_params(network())/2

class Bomb:
    def __reduce__(self): return pytest.fail, ("it was unpickled",)

@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_pickle_is_never_opened(tmp_path, how, refused, trained):
    import pickle
    path = tmp_path/"evil.safetensors"
    if how == "pickle": path.write_bytes(pickle.dumps({"blocks.0.attn.qkv.lora_A.weight": Bomb()}))
    else: torch.save({"w": torch.zeros(2), "b": Bomb()}, path, _use_new_zipfile_serialization=how == "zip")
    line = refused("sample", "tiny", "--adapter", path)
    assert "is a pickle" in line and "safetensors" in line

def test_damaged_files(tmp_path, refused, trained):
    a = take_adapter(filled(network(), "a"), "a")
    save_adapter(a, tmp_path/"a.safetensors")
    whole = (tmp_path/"a.safetensors").read_bytes()
    for cut in (whole[:-7], whole[:20], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        (tmp_path/"a.safetensors").write_bytes(cut)
        assert "is damaged" in refused("sample", "tiny", "--adapter", tmp_path/"a.safetensors")
    save_weights(network().state_dict(), tmp_path/"w.safetensors")
    assert "holds no adapter" in refused("sample", "tiny", "--adapter", tmp_path/"w.safetensors")

# ---- runs ----

SHORT = ["--trainer.steps", 8, "--trainer.batch", 4, "--trainer.log_every", 2, "--trainer.save_every", 4,
         "--trainer.eval_every", 50, "--trainer.sample_every", 50, "--trainer.lr", .02,
         "--trainer.device", "cpu", "--trainer.dtype", "float32",
         "--samples.steps", 4, "--samples.prompts", '[""]', "--samples.templates", "[]"]

@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")/"other.txt"
    path.write_text(story(7), encoding="utf-8")
    return path

@pytest.fixture(scope="module")
def adapted_home(tiny_home, other, tmp_path_factory):
    "The home of `tiny`, with two adapters of it"
    home = tmp_path_factory.mktemp("adapted")/"home"
    shutil.copytree(tiny_home, home)
    options = ["--init", "tiny", "--data.path", other, *SHORT, "--adapter.rank", 4]
    recipe = home/"empty.yaml"
    recipe.write_text("seed: 0")
    train_runs(home, recipe, ["--name", "mine", *options],
               ["--name", "yours", *options, "--seed", 5, "--adapter.layers", "ff.up"])
    return home

@pytest.fixture
def adapted(home, adapted_home):
    shutil.copytree(adapted_home, home)
    return home

def load(name): return DiffusionLM.from_run(name, device="cpu")

def test_a_run_that_trains_an_adapter(adapted, other):
    "Its folder holds the adapter and the complete network, small checkpoints, and says what it is"
    run, base = adapted/"checkpoints"/"mine", adapted/"checkpoints"/"tiny"
    s = read_json(run/"summary.json")
    lm = load("tiny")
    assert s["parameters"] == n_params(lm.model) and s["weights"] == "last, adapter and base merged"
    a = find_adapter("mine")
    assert s["adapter"]["parameters"] == sum(v.numel() for v in a.state.values()) and s["adapter"]["rank"] == 4
    assert s["adapter"]["share"] == pytest.approx(s["adapter"]["parameters"]/s["parameters"], abs=1e-5)
    assert (a.of, a.base, a.tokenizer) == ("tiny", base_digest(lm.model), lm.tokenizer.fingerprint)
    assert "Only an adapter of rank 4 was trained" in (run/"report.md").read_text()
    step = run/"step-000008"
    assert {p.name for p in step.iterdir()} == {"adapter.safetensors", "trainer.pt", "manifest.json"}
    assert read_adapter(step/"adapter.safetensors").base == a.base
    was, now = (load_weights(p/"model.safetensors") for p in (base, run))
    moved = {k for k in was if not torch.equal(was[k], now[k])}
    assert moved == {k.replace(".lora_A", "") for k in a.state if ".lora_A" in k}
    whole, merged = load("mine"), lm.adapt("mine", merge=True)
    assert all(torch.equal(v, merged.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    text = "The river walks and the sea sleeps under a stone."
    assert whole.bits_per_byte(text).value == merged.bits_per_byte(text).value
    assert lm.adapt("mine").bits_per_byte(text).value == pytest.approx(merged.bits_per_byte(text).value, abs=1e-5)

def test_commands_take_adapters(adapted, dlm, tmp_path, monkeypatch):
    "A run beside its adapter is the complete run; weights and several adapters; scores and exports"
    def sample(*args):
        status, out, err = dlm("sample", *args, "--prompt", "the river", "--steps", 4, "-n", 2, "--json")
        assert status == 0, err
        return [r["text"] for r in json.loads(out)]
    complete = sample("mine")
    assert complete == sample("tiny", "--adapter", "mine") == sample("tiny", "--adapter=mine:1.0")
    assert complete == sample("tiny", "--adapter", adapted/"checkpoints"/"mine"/"adapter.safetensors")
    assert complete == sample("tiny", "--adapter", adapted/"checkpoints"/"mine", "--adapter", "yours:0")
    assert sample("tiny") == sample("tiny", "--adapter", "mine:0") != complete
    both = load("tiny").adapt({"mine": 8., "yours": -6.})
    texts = both.generate("the river", 2, steps=4, top_p=.9)
    assert texts == sample("tiny", "--adapter", "mine:8", "--adapter", "yours:-6") != complete

    def score(*args):
        status, out, err = dlm("eval", *args, "--json", "--max-tokens", 256)
        assert status == 0, err
        return json.loads(out)["bits_per_byte"]["value"]
    assert score("tiny", "--adapter", "mine") != score("tiny")
    assert score("mine") < 20

def test_export_and_hub(adapted, dlm, tmp_path):
    "The complete run leaves like any other; adapters beside a run are merged on the way out"
    pytest.importorskip("onnxruntime")
    from diffusion_lm.deploy.export import export_lm
    status, out, err = dlm("export", "tiny", "--adapter", "mine", "--out", tmp_path/"beside", "--json")
    assert status == 0, err
    about = export_lm(load("tiny").adapt("mine"), tmp_path/"unmerged", say=lambda line: None)
    assert about["parity"]["same_order"]
    a, b = ((tmp_path/n/"model.onnx").read_bytes() for n in ("beside", "unmerged"))
    assert a == b

    lm = load("mine")
    lm.save_pretrained(tmp_path/"hub")
    assert digest(tmp_path/"hub"/"adapter.safetensors") == digest(adapted/"checkpoints"/"mine"/"adapter.safetensors")
    back = DiffusionLM.from_pretrained(tmp_path/"hub", device="cpu")
    o = dict(steps=4, length=12)
    assert back.generate("the sea", **o) == lm.generate("the sea", **o)
    assert load("tiny").adapt(str(tmp_path/"hub")).generate("the sea", **o) == lm.generate("the sea", **o)
    load("tiny").adapt({"mine": 1., "yours": 1.}).save_pretrained(tmp_path/"two")
    both = DiffusionLM.from_pretrained(tmp_path/"two", device="cpu")
    want = load("tiny").adapt(["mine", "yours"], merge=True).model.state_dict()
    assert all(torch.equal(v, want[k]) for k, v in both.model.state_dict().items())
    assert not (tmp_path/"two"/"adapter.safetensors").exists()

@pytest.mark.parametrize("args, says", [
    (["sample", "tiny", "--adapter", "mnie"], "unknown run 'mnie'; did you mean 'mine'?"),
    (["sample", "tiny", "--adapter", "tiny-ar"], "run 'tiny-ar' is no adapter"),
    (["sample", "tiny", "--adapter", "mine:much"], "the weight of adapter 'mine' must be a number, got 'much'"),
    (["sample", "tiny", "--adapter", "mine:inf"], "must be finite"),
    (["sample", "tiny", "--adapter", "mine", "--adapter", "mine:2"], "'mine' is named twice"),
    (["sample", "tiny-ar", "--adapter", "mine"], "adapter 'mine' was trained on 'tiny' (weights "),
    (["eval", "mine", "--adapter", "mine"], "and does not fit 'mine' (weights "),
    (["export", "tiny-ar", "--adapter", "mine"], "does not fit 'tiny-ar'"),
    (["train", "--name", "x", "--adapter.rank", 4], "name that run with --init RUN"),
    (["train", "--name", "x", "--init", "tiny", "--adapter.rank", 0], "adapter.rank must be at least 1, got 0"),
    (["train", "--name", "x", "--init", "tiny", "--adapter.rank", 17], "adapter.rank 17 is above 16"),
    (["train", "--name", "x", "--init", "tiny", "--adapter.layers", "attn.query"], "fits no layer"),
    (["train", "--name", "x", "--init", "tiny", "--adapter.rnak", 4], "unknown key 'adapter.rnak'"),
    (["train", "--name", "x", "--init", "tiny", "--adapter.rank", 4, "--trainer.adamw_lr", 2], "changes nothing"),
    (["train", "--name", "x", "--init", "mine", "--model.width", 32, "--adapter.rank", 4], "model.width is 32 here"),
    (["train", "--name", "mine", "--resume", "--adapter.rank", 8], "adapter.rank was 4 and cannot be 8"),
], ids=lambda a: " ".join(map(str, a[-3:])) if isinstance(a, list) else None)
def test_mistakes_are_one_line(refused, adapted, args, says):
    assert says in refused(*args, cache=args[0] == "train")

def test_another_tokenizer_and_a_changed_base(refused, adapted, recipe):
    a = find_adapter("mine")
    path = adapted/"checkpoints"/"mine"/"adapter.safetensors"
    save_adapter(a._replace(tokenizer="0"*32), path)
    assert "with tokenizer 00000000, and 'tiny' has tokenizer" in refused("sample", "tiny", "--adapter", "mine")
    save_adapter(a, path)
    train_runs(adapted, recipe, ["--overwrite", "--seed", 9, "--trainer.steps", 1])
    assert "adapter 'mine' was trained on 'tiny' (weights " in refused("sample", "tiny", "--adapter", "mine")

def test_stopped_resumed_and_without_its_base(refused, adapted, dlm, other):
    "A resumed run ends as an unbroken one; it needs its base, unchanged"
    options = ["--init", "tiny", "--data.path", other, *SHORT, "--adapter.rank", 4]
    status, _, err = dlm("train", "--name", "half", *options, "--trainer.stop_at", 5)
    assert status == 0, err
    base = adapted/"checkpoints"/"tiny"
    shutil.move(base, base.with_name("gone"))
    line = refused("train", "--name", "half", "--resume", notes=["preparing"], cache=True)
    assert "the adapter 'half' goes on only beside its base, 'tiny': unknown run 'tiny'" in line
    shutil.move(base.with_name("gone"), base)
    weights = (base/"model.safetensors").read_bytes()
    shutil.copy(base/"step-000016"/"model.safetensors", base/"model.safetensors")
    line = refused("train", "--name", "half", "--resume", notes=["preparing"], cache=True)
    assert "goes on only beside its base" in line
    (base/"model.safetensors").write_bytes(weights)
    status, _, err = dlm("train", "--name", "half", "--resume")
    assert status == 0 and "training an adapter of rank 4: " in err, err
    same_run(adapted/"checkpoints"/"mine", adapted/"checkpoints"/"half")

def test_begin_with_an_adapter_run(adapted, dlm, other):
    "Its complete network is a base like any other, for another adapter or for all weights"
    for name, more in (("deeper", ["--adapter.rank", 2]), ("full", [])):
        status, _, err = dlm("train", "--name", name, "--init", "mine", "--data.path", other, *SHORT, *more)
        assert status == 0, err
    assert find_adapter("deeper").base == base_digest(load("mine").model)
    assert "adapter" not in read_json(adapted/"checkpoints"/"full"/"summary.json")

def test_without_peft(adapted, refused, dlm, monkeypatch):
    "To train one needs the extra; to use one does not"
    import sys
    monkeypatch.setitem(sys.modules, "peft", None)
    line = refused("train", "--name", "x", "--init", "tiny", "--adapter.rank", 4, notes=["preparing"], cache=True)
    assert "pip install 'diffusion_lm[adapters]'" in line
    status, _, err = dlm("sample", "tiny", "--adapter", "mine:0.5", "--steps", 2)
    assert status == 0, err
