"""Several processes train what one trains, on the CPU with gloo: forked from this one, or started by a launcher."""
import datetime
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from conftest import DLM, run_dlm
from diffusion_lm.cli import parse_train
from diffusion_lm.core import UserError, seed_everything
from diffusion_lm.files import read_jsonl
from diffusion_lm.models.layers import TransformerLayer
from diffusion_lm.models.thought import ThoughtConfig
from diffusion_lm.models.thought_model import StackedDiffusionModel3D, ThoughtObjective
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig, randomize_
from diffusion_lm.text.corpus import DataConfig
from diffusion_lm.text.store import Loader, TokenizerConfig, prepare
from diffusion_lm.theory.objective import Objective
from diffusion_lm.training.callbacks import Validate
from diffusion_lm.training.checkpoint import Checkpoint, steps_of
from diffusion_lm.training.learner import Callback, Learner, TrainConfig
from diffusion_lm.weights import load_weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes")

def without_bf16(capabilities=torch.cpu.get_capabilities):
    "What the processor can do, but for bfloat16: the tests compare what differs by rounding in float32"
    return {k: v for k, v in capabilities().items() if "bf16" not in k}

@pytest.fixture(scope="module", autouse=True)
def float32():
    "Muon and `dtype: auto` calculate in float32 here, whatever the processor has; forked processes inherit it"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch.cpu, "get_capabilities", without_bf16)
        yield

@pytest.fixture(scope="module")
def tiny_home(recipe, tmp_path_factory, float32):
    "A home with the finished run `tiny`, of one process"
    home = tmp_path_factory.mktemp("one")/"home"
    status, out, err = run_dlm(home, "train", "--config", recipe)
    assert status == 0, err
    return home

def together(f, folder, world=2, seconds=120):
    "What `f(rank)` returns, or the error it raises, in each of `world` forked processes joined by gloo; all must end"
    folder.mkdir()
    def go(rank):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world,
                                             timeout=datetime.timedelta(seconds=seconds))
        try: out = f(rank)
        except UserError as e: out = e
        except BaseException: out = traceback.format_exc()
        torch.save(out, folder/str(rank))
    ps = [multiprocessing.get_context("fork").Process(target=go, args=(rank,), daemon=True) for rank in range(world)]
    for p in ps: p.start()
    for p in ps: p.join(seconds)
    for p in ps: p.kill()
    out = [torch.load(folder/str(rank), weights_only=False) for rank in range(world)]
    for o in out: assert not isinstance(o, str), o
    return out

# ---- gradients and steps ----

@pytest.fixture(scope="session")
def text(book, tmp_path_factory):
    "The token store of the small book, and its tokenizer"
    return prepare(DataConfig(path=str(book)), TokenizerConfig(vocab_size=300), tmp_path_factory.mktemp("cache"))[:0:-1]

class Keep(Callback):
    def __init__(self): self.losses = []
    def after_step(self, learn): self.losses.append((float(learn.loss), float(learn.grad_norm)))

def learner(text, shard=False, callbacks=(), layout="packed", validate=True, thoughts=False, **kw):
    store, tok = text
    seed_everything(0)
    small = ModelConfig(width=16, heads=2, layers=2, length=32)
    stacked = replace(small, block=8, thought=ThoughtConfig([2], 4, 3, forget=0.))
    if thoughts: model = randomize_(StackedDiffusionModel3D(stacked, len(tok), tok.specials), std=.05)
    else: model = randomize_(BaselineDreamModel(small, len(tok), tok.specials), std=.05)
    objective = ThoughtObjective(model) if thoughts else Objective(model)
    if shard:
        for block in model.blocks: fully_shard(block)
        fully_shard(objective)
    usual = dict(steps=6, batch=8, eval_every=3, eval_tokens=256, save_every=3, device="cpu", dtype="float32")
    cfg = TrainConfig(**usual | kw)
    return Learner(objective, Loader(store, 32, cfg.batch, blocks=objective.times(32), layout=layout), cfg, callbacks)

def whole(x): return x.full_tensor() if isinstance(x, DTensor) else x

def fit(text, shard=False, run=None, resume=False, **kw):
    "Train: losses and gradient norms, best evaluation, weights"
    keep = Keep()
    learn = learner(text, shard, [keep, Validate(*text), *([Checkpoint(run)] if run else [])], **kw)
    if resume: assert learn.restore(run)[0].name == "step-000003"
    learn.fit()
    return keep.losses, learn.best, {k: v.clone() for k, v in learn.best_model.state_dict().items()}

def same_weights(a, b):
    "They agree up to rounding: a gradient near zero, as a key's bias has, may have either sign, and AdamW steps by it"
    assert a.keys() == b.keys()
    for k, v in a.items():
        torch.testing.assert_close(v, b[k], rtol=0, atol=2e-4 if k.endswith("attn.bias") else 1e-4)

def same(a, b, losses=slice(None)):
    "Two results of `fit` agree up to rounding: sums over processes and shards are taken in another order"
    torch.testing.assert_close(torch.tensor(a[0][losses]), torch.tensor(b[0]), rtol=2e-5, atol=0)
    assert a[1].step == b[1].step and a[1].value == pytest.approx(b[1].value, rel=1e-6)
    same_weights(a[2], b[2])

def gradients(text, **kw):
    learn = learner(text, **kw)
    b = learn.batch(5)
    loss = float(learn._gradients(b))
    g = torch.cat([whole(p.grad).flatten() for p in learn.model.parameters()])
    return loss, g, int((b.x != learn.model.pad).sum())

@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("layout", ["packed", "streams"])
def test_gradients(text, tmp_path, layout, shard):
    "Of two processes, all at once or sequence by sequence: those of one process, also where they differ in padding"
    loss, g, n = gradients(text, layout=layout)
    for micro in (None, 1):
        part = partial(gradients, text, layout=layout, shard=shard, micro_batch=micro)
        out = together(lambda rank, part=part: part(), tmp_path/str(micro))
        assert sum(o[2] for o in out) == n and (out[0][2] != out[1][2]) == (layout == "streams")
        for l, h, _ in out: assert l == pytest.approx(loss, rel=1e-6) and (h - g).norm() < 1e-6*g.norm()

@pytest.mark.parametrize("kw", [dict(), dict(micro_batch=1, layout="streams"), dict(optimizer="adamw"),
                                dict(thoughts=True, layout="streams")], ids=str)
def test_steps(text, tmp_path, kw):
    a, b = together(lambda rank: fit(text, **kw), tmp_path/"pair")
    same(fit(text, **kw), a)
    torch.testing.assert_close(a[2], b[2], rtol=0, atol=0) # the processes stay together

# ---- sharded weights: `fully_shard` on each block and on the objective ----

def test_sharded_steps(text, tmp_path, capfd):
    "Two halves of the weights, stepped by AdamW, make the one-process run; every process may look at the whole model"
    kw = dict(optimizer="adamw", micro_batch=2, checkpointing=True, layout="streams")
    a, b = together(lambda rank: fit(text, True, **kw), tmp_path/"pair")
    same(fit(text, **kw), a)
    same(a, b)
    assert not capfd.readouterr().err

def test_sharded_muon(text, tmp_path, capfd):
    "Muon needs whole matrices: AdamW takes its place, and one process says so"
    a, _ = together(lambda rank: fit(text, True), tmp_path/"pair")
    same(fit(text, optimizer="adamw"), a)
    assert [line[:25] for line in capfd.readouterr().err.splitlines()] == ["Muon needs whole matrices"]

def test_sharded_ema(text, tmp_path):
    for e in together(lambda rank: learner(text, True, ema=.9), tmp_path/"pair"):
        assert str(e) == "trainer.ema does not go with sharded weights: set it to 0"

@pytest.mark.parametrize("first, then", [(2, 1), (1, 2)])
def test_carried_thoughts_move(text, tmp_path, first, then):
    "What is carried is saved in the order of the batch: rows find their thoughts whatever the number of processes"
    kw = dict(thoughts=True, layout="streams", optimizer="adamw")
    def go(world, **more):
        return together(lambda rank: fit(text, run=tmp_path/"run", **kw, **more), tmp_path/f"world{world}", world)[0]
    go(first, stop_at=3)
    same(fit(text, **kw), go(then, resume=True), slice(3, None))

@pytest.mark.parametrize("first, then", [(True, False), (False, True)], ids=["pair to one", "one to pair"])
def test_sharded_checkpoint(text, tmp_path, first, then):
    "Written by a sharded pair it resumes in one plain process, and the reverse"
    kw, run = dict(optimizer="adamw"), tmp_path/"run"
    def part(shard, name, **k):
        if not shard: return fit(text, False, run, **kw, **k)
        return together(lambda rank: fit(text, True, run, **kw, **k), tmp_path/name)[0]
    unbroken = fit(text, **kw)
    part(first, "first", stop_at=3)
    assert [p.name for p in steps_of(run)] == ["step-000003"]
    same(unbroken, part(then, "then", resume=True), slice(3, None))
    assert [p.name for p in steps_of(run)] == ["step-000003", "step-000006"]
    same_weights(load_weights(run/"model.safetensors"), unbroken[2])

def test_sharded_overflow(text, tmp_path):
    "In float16 an infinity in one shard skips the step everywhere, and halves the scale everywhere"
    class Overflow(Learner):
        def _gradients(self, b):
            loss = super()._gradients(b)
            if (self.step, self.rank) == (1, 1): next(self.model.parameters()).grad.to_local().fill_(torch.inf)
            return loss
    def run(rank):
        keep = Keep()
        learn = learner(text, True, [keep], optimizer="adamw", dtype="float16", steps=3)
        learn.__class__ = Overflow
        learn.fit()
        return learn.scaler.get_scale(), [n for _, n in keep.losses]
    a, b = together(run, tmp_path/"pair")
    assert a == b and a[0] == 2**15 and [n == torch.inf for n in a[1]] == [False, True, False]

def test_accelerate_fsdp2(text, tmp_path, monkeypatch):
    """What `accelerate launch --use_fsdp --fsdp_version 2` prepares trains and saves alike. On a CPU Accelerate ignores
    its plugin, so here it is put in by hand"""
    class Sharding(accelerate.Accelerator):
        def __init__(self, **kw):
            super().__init__(**kw)
            self.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
                transformer_cls_names_to_wrap=[TransformerLayer.__name__])
    kw = dict(optimizer="adamw", micro_batch=2)
    with monkeypatch.context() as m:
        m.setattr("accelerate.Accelerator", Sharding)
        m.setenv("ACCELERATE_USE_FSDP", "true")
        def sharded(rank):
            assert learner(text, **kw).sharded
            return fit(text, run=tmp_path/"run", stop_at=3, **kw)
        assert together(sharded, tmp_path/"pair")[0][1].step == 3
    same(fit(text, **kw), fit(text, run=tmp_path/"run", resume=True, **kw), slice(3, None))

# ---- the `dlm` command ----

def same_log(a, b):
    "The same lines, one for each step; figures equal up to rounding, which Muon makes a little larger with every step"
    a, b = (read_jsonl(run/"log.jsonl") for run in (a, b))
    assert [(r["step"], set(r)) for r in a] == [(r["step"], set(r)) for r in b] and len(a) == 9
    tolerance = dict(loss=1e-5, grad_norm=1e-4, lr=0, tokens=0)
    for r, s in zip(a, b):
        if "validation" in r: assert r["validation"] == pytest.approx(s["validation"], rel=1e-5)
        else: assert all(r[k] == pytest.approx(s[k], rel=tol) for k, tol in tolerance.items()), (r, s)

def same_run(a, b):
    same_log(a, b)
    same_weights(*(load_weights(run/"model.safetensors") for run in (a, b)))
    sa, sb = (read_jsonl(run/"samples.jsonl") for run in (a, b))
    # the words of samples depend on the last bits
    assert [(r["step"], r["prompt"]) for r in sa] == [(r["step"], r["prompt"]) for r in sb]
    # one process writes: nothing twice, no leftovers
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}

def pair_dlm(folder, home, *args, world=2): return together(lambda rank: run_dlm(home, *args), folder, world)

@pytest.mark.parametrize("first", [2, 1])
def test_checkpoint_moves(recipe, tiny_home, tmp_path, first):
    "A run of two processes goes on with one, and the reverse, as if it had been one process all along"
    home = tmp_path/"home"
    def part(world, name, *args):
        if world == 1: status, out, err = run_dlm(home, "train", *args)
        else:
            (status, out, err), silent = pair_dlm(tmp_path/name, home, "train", *args)
            assert silent == (0, "", "") # one process speaks
        assert status == 0, err
        return err
    part(first, "first", "--config", recipe, "--trainer.stop_at", 12)
    assert [p.name for p in steps_of(home/"checkpoints"/"tiny")] == ["step-000008", "step-000012"]
    assert "resuming 'tiny' from step-000012" in part(3 - first, "then", "--name", "tiny", "--resume")
    same_run(tiny_home/"checkpoints"/"tiny", home/"checkpoints"/"tiny")

def test_shares_must_be_equal(recipe, tmp_path, monkeypatch):
    """Three processes cannot share eight sequences: one line, status 2, nothing written. The others say it later: by
    then torchrun has ended them"""
    monkeypatch.setattr(time, "sleep", lambda s: None)
    for status, out, err in pair_dlm(tmp_path/"three", tmp_path/"home", "train", "--config", recipe, world=3):
        assert (status, out) == (2, "")
        assert err.splitlines()[-1] == "dlm: trainer.batch 8 must be a multiple of the number of processes, 3"
    assert not (tmp_path/"home"/"checkpoints").exists()

def test_stopped_together(recipe, tiny_home, tmp_path, monkeypatch):
    "A signal that reaches one process ends both after the same step, with a checkpoint"
    step = Learner.train_step
    def train_step(learn):
        step(learn)
        if (learn.step, learn.rank) == (12, 1): os.kill(os.getpid(), signal.SIGTERM)
    home = tmp_path/"home"
    with monkeypatch.context() as m:
        m.setattr(Learner, "train_step", train_step)
        (status, _, err), silent = pair_dlm(tmp_path/"pair", home, "train", "--config", recipe)
    assert status == 130 and silent == (130, "", "")
    assert "stopped at step 13 of 24; go on with: dlm train --name tiny --resume" in err.splitlines()[-1]
    status, _, err = run_dlm(home, "train", "--name", "tiny", "--resume")
    assert status == 0 and "from step-000013" in err
    same_run(tiny_home/"checkpoints"/"tiny", home/"checkpoints"/"tiny")

LAUNCH = dict(torchrun=["torch.distributed.run", "--standalone", "--nproc_per_node=2"],
              accelerate=["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
                          "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"])

@pytest.mark.parametrize("launcher", LAUNCH)
def test_launched(recipe, tiny_home, tmp_path, launcher):
    "The same recipe under torchrun or `accelerate launch`: the same run, written and told once"
    script = tmp_path/"dlm.py"
    script.write_text(f"import torch; torch.cpu.get_capabilities = lambda: {without_bf16()}\n{DLM[-1]}")
    p = subprocess.run([sys.executable, "-m", *LAUNCH[launcher], str(script), "train", "--config", str(recipe)],
                       capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL, timeout=240,
                       env={**os.environ, "DIFFUSION_LM_HOME": str(tmp_path/"home")})
    assert p.returncode == 0, p.stderr
    same_run(tiny_home/"checkpoints"/"tiny", tmp_path/"home"/"checkpoints"/"tiny")
    assert p.stdout.count("bits/byte") == 1
    assert [p.stderr.count(s) for s in ("preparing ", "training Base", "Traceback")] == [1, 1, 0], p.stderr

def test_commands_of_the_page():
    "The commands in nbs/explanations/scaling.ipynb have options that exist: the launchers' parsers and dlm's read them"
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser
    page = json.loads((Path(__file__).parents[1]/"nbs"/"explanations"/"scaling.ipynb").read_text(encoding="utf-8"))
    prose = "\n".join("".join(c["source"]) for c in page["cells"] if c["cell_type"] == "markdown")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", prose, re.S) for line in block.strip().splitlines()]
    commands = [shlex.split(line.replace("$(which dlm)", "dlm")) for line in lines]
    assert {c[0] for c in commands} == {"dlm", "torchrun", "accelerate"}
    for launcher, *args in commands:
        if launcher != "dlm":
            if launcher == "torchrun": o = get_args_parser().parse_args(args)
            else: o = launch_command_parser().parse_args(args[1:])
            assert o.training_script == "dlm"
            if launcher == "accelerate" and o.use_fsdp:
                assert o.fsdp_version == "2" and o.fsdp_transformer_layer_cls_to_wrap == TransformerLayer.__name__
            args = o.training_script_args
        assert args[0] == "train"
        parse_train(args[1:])[0].trainer.check()
