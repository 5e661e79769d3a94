"""Optimizers that were tried in the speedrun."""
import contextlib
import math
from functools import partial
from unittest.mock import patch

import torch

from diffusion_lm.training import learner

COEFFICIENTS = 3.4445, -4.7750, 2.0315

def blocked(p, rows, side):
    "Blocks (n,rows,…) of a matrix whose long or short side is cut"
    long_first = p if p.shape[0] >= p.shape[1] else p.mT
    return (long_first if side == "long" else long_first.mT).unflatten(0, (-1, rows))

def inverse_root(g, steps=5):
    "About the inverse square root of matrices g (k,r,r), up to a factor between 0.7 and 1.2"
    a, b, c = COEFFICIENTS
    size = g.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None].clamp(min=1e-14)
    g, q = g/size, None
    for i in range(steps):
        p = torch.baddbmm(g, g, g, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        q = p if q is None else p @ q
        if i < steps - 1: g = p @ g @ p
    return q*size.rsqrt()

class BlockMuon(torch.optim.Optimizer):
    "Muon that makes each block of rows orthogonal by itself"
    def __init__(self, params, lr, weight_decay, rows, side="long", steps=5, momentum=.95, **kw):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, rows=rows, side=side, momentum=momentum, steps=steps))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params, cut, updates = [p for p in group["params"] if p.grad is not None], (group["rows"], group["side"]), []
            for p in params:
                state = self.state[p]
                if not state: state["momentum_buffer"] = torch.zeros_like(p)
                m = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                updates.append(blocked(torch.lerp(p.grad, m, group["momentum"]), *cut))
            roots = inverse_root(torch.cat([u @ u.mT for u in updates]), group["steps"])
            for p, u, q in zip(params, updates, roots.split([len(u) for u in updates])):
                v, scale = blocked(p, *cut), .2*group["lr"]*math.sqrt(u.shape[-1])
                torch.baddbmm(v, q, u, beta=1 - group["lr"]*group["weight_decay"], alpha=-scale, out=v)

def blocks(rows, **kw): return lambda: patch.object(learner, "Muon", partial(BlockMuon, rows=rows, **kw))

def rounds(n): return lambda: patch.object(learner, "Muon", partial(learner.Muon, ns_steps=n))

def momentum(value): return lambda: patch.object(learner, "Muon", partial(learner.Muon, momentum=value))

def _faster(make, factor, model, cfg, muon=True):
    opts = make(model, cfg, muon)
    for g in opts[0].param_groups: g["factor"] = factor
    return opts

def _set_lr(self):
    rate = self.cfg.lr*learner.lr_factor(self.step, self.cfg)
    for o in self.opts:
        for g in o.param_groups: g["lr"] = rate*g.get("factor", 1.)

@contextlib.contextmanager
def _rest_faster(factor):
    with (patch.object(learner, "make_optimizers", partial(_faster, learner.make_optimizers, factor)),
          patch.object(learner.Learner, "_set_lr", _set_lr)): yield

def rest_faster(factor): return partial(_rest_faster, factor)
