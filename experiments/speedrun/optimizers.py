"""Optimizers that were tried in the speedrun."""
import math
from functools import partial
from unittest.mock import patch

import torch

from diffusion_lm.training import learner

COEFFICIENTS = 3.4445, -4.7750, 2.0315

def blocked(p, rows, side, apart=False):
    "Blocks (n,rows,…) of a matrix whose long or short side is cut: of neighbours, or of every n-th row"
    tall = p if p.shape[0] >= p.shape[1] else p.mT
    cut = tall if side == "long" else tall.mT
    return cut.unflatten(0, (rows, -1)).transpose(0, 1) if apart else cut.unflatten(0, (-1, rows))

def inverse_root(g, steps):
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
    "Muon that makes each block of rows orthogonal by itself, by iterating on the Gram matrices of all blocks at once"
    def __init__(self, params, lr, weight_decay, rows, side="long", steps=5, momentum=.95, wander=False, **kw):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.cut, self.steps, self.wander, self.apart = (rows, side), steps, wander, False

    def ahead(self, p, momentum):
        "The momentum of a matrix, and a step ahead of it (Nesterov)"
        state = self.state[p]
        if not state: state["momentum_buffer"] = torch.zeros_like(p)
        return torch.lerp(p.grad, state["momentum_buffer"].lerp_(p.grad, 1 - momentum), momentum)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            updates = [blocked(self.ahead(p, group["momentum"]), *self.cut, self.apart) for p in params]
            roots = inverse_root(torch.cat([u @ u.mT for u in updates]), self.steps)
            keep = 1 - group["lr"]*group["weight_decay"]
            for p, u, q in zip(params, updates, roots.split([len(u) for u in updates])):
                of_p = blocked(p, *self.cut, self.apart)
                of_p.baddbmm_(q, u, beta=keep, alpha=-.2*group["lr"]*math.sqrt(u.shape[-1]))
        if self.wander: self.apart = not self.apart  # other blocks in the next step

class PyTorchMuon(torch.optim.Muon):
    "Muon of the first demo: five rounds of one polynomial, and no turns"
    def __init__(self, params, lr, weight_decay, turns=1, dtype=None, **kw):
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw", **kw)

class TurningMuon(learner.Muon):
    "Muon of the library, with a given number of turns"
    def __init__(self, params, lr, weight_decay, turns, fixed, dtype):
        super().__init__(params, lr, weight_decay, turns=fixed, dtype=dtype)

def replaced(make, **kw): return lambda: patch.object(learner, "Muon", partial(make, **kw))

def pytorch(**kw): return replaced(PyTorchMuon, **kw)
def turns(n): return replaced(TurningMuon, fixed=n)
def blocks(rows, **kw): return replaced(BlockMuon, rows=rows, **kw)
