"""Several processes train what one trains, on the CPU with gloo: forked from this process, or started by torchrun and accelerate."""
import datetime, multiprocessing, os, signal, subprocess, sys, time, traceback
from pathlib import Path

import pytest, torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from conftest import DLM, run_dlm, tree
from diffusion_lm.callbacks import Validate
from diffusion_lm.core import UserError, read_jsonl, seed_everything
from diffusion_lm.data import DataConfig, Loader, TokenizerConfig, prepare
from diffusion_lm.models import BaselineDreamModel, ModelConfig, load_weights, randomize_
from diffusion_lm.objective import Objective
from diffusion_lm.trainer import Callback, Checkpoint, Learner, TrainConfig, steps_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes")

def together(f, folder, world=2, seconds=120):
    "What `f(rank)` returns, or the error it raises, in each of `world` forked processes joined by gloo; all must end, and none hang"
    folder.mkdir()
    def go(rank):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=seconds))
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

def learner(text, shard=False, callbacks=(), layout="packed", validate=True, **kw):
    store, tok = text
    seed_everything(0)
    model = randomize_(BaselineDreamModel(ModelConfig(width=16, heads=2, layers=2, length=32), len(tok), tok.specials), std=.05)
    objective = Objective(model)
    if shard:
        for block in model.blocks: fully_shard(block)
        fully_shard(objective)
    cfg = TrainConfig(**dict(dict(steps=6, batch=8, eval_every=3, eval_tokens=256, save_every=3, device="cpu", dtype="float32"), **kw))
    return Learner(objective, Loader(store, 32, cfg.batch, layout=layout), cfg, callbacks)

def whole(x): return x.full_tensor() if isinstance(x, DTensor) else x

def fit(text, shard=False, run=None, resume=False, **kw):
    "Train: losses and gradient norms, best evaluation, weights"
    keep = Keep()
    learn = learner(text, shard, [keep, Validate(*text), *([Checkpoint(run)] if run else [])], **kw)
    if resume: assert learn.restore(run)[0].name == "step-000003"
    learn.fit()
    return keep.losses, learn.best, {k: v.clone() for k, v in learn.best_model.state_dict().items()}

def same(a, b, losses=slice(None)):
    "Two results of `fit` agree up to rounding: sums over processes and shards are taken in another order"
    torch.testing.assert_close(torch.tensor(a[0][losses]), torch.tensor(b[0]), rtol=2e-5, atol=0)
    assert a[1][1] == b[1][1] and a[1][0] == pytest.approx(b[1][0], rel=1e-6)
    torch.testing.assert_close(a[2], b[2], rtol=0, atol=1e-4) # a gradient near zero may have either sign, and AdamW steps by the sign

def gradients(text, **kw):
    learn = learner(text, **kw)
    b = learn.batch(5)
    return float(learn._gradients(b)), torch.cat([whole(p.grad).flatten() for p in learn.model.parameters()]), int((b.x != learn.model.pad).sum())

@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("layout", ["packed", "streams"])
def test_gradients(text, tmp_path, layout, shard):
    "Of two processes, all at once or sequence by sequence: those of one process, also where one process has more padding than the other"
    loss, g, n = gradients(text, layout=layout)
    for micro in (None, 1):
        out = together(lambda rank: gradients(text, layout=layout, shard=shard, micro_batch=micro), tmp_path/str(micro))
        assert sum(o[2] for o in out) == n and (out[0][2] != out[1][2]) == (layout == "streams")
        for l, h, _ in out: assert l == pytest.approx(loss, rel=1e-6) and (h - g).norm() < 1e-6*g.norm()

@pytest.mark.parametrize("kw", [dict(), dict(micro_batch=1, layout="streams"), dict(optimizer="adamw")], ids=str)
def test_steps(text, tmp_path, kw):
    a, b = together(lambda rank: fit(text, **kw), tmp_path/"pair")
    same(fit(text, **kw), a)
    torch.testing.assert_close(a[2], b[2], rtol=0, atol=0) # the processes stay together
