"""Changes of the network that were tried in the speedrun; each alters the objective that it is given."""
from types import MethodType

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from diffusion_lm.models.layers import QKV, Attention, linear_nll


def _override(o, name, f): setattr(o, name, MethodType(f, o))

# %% attention
def _normed_project(self, x, memory=None):
    q, k, v = Attention.project(self, x, memory)
    d = q.shape[-1]
    return QKV(F.rms_norm(q, (d,))*self.gain.to(q.dtype), F.rms_norm(k, (d,)), v)

def qk_norm(o, gain=1.5):
    "Queries and keys of unit mean square, and a learned gain of each head"
    for b in o.model.blocks:
        b.attn.gain = nn.Parameter(torch.full((b.attn.heads, 1), gain))
        _override(b.attn, "project", _normed_project)

def value_residual(o):
    "Values of each layer mixed with those of the first"
    first = {}
    def project(self, x, memory=None):
        q, k, v = Attention.project(self, x, memory)
        if self.mix is None: first["v"] = v
        else: v = torch.lerp(v, first["v"], self.mix.to(v.dtype))
        return QKV(q, k, v)
    for i, b in enumerate(o.model.blocks):
        b.attn.mix = nn.Parameter(torch.tensor(.5)) if i else None
        _override(b.attn, "project", project)

# %% feed-forward
class SquaredReLU(nn.Module):
    "Feed-forward layer of squared ReLU, with as many parameters as SwiGLU"
    def __init__(self, d):
        super().__init__()
        hidden = 4*d
        self.up, self.down = nn.Linear(d, hidden, bias=False), nn.Linear(hidden, d, bias=False)
        nn.init.normal_(self.up.weight, std=d**-.5)
        nn.init.zeros_(self.down.weight)
    def forward(self, x): return self.down(F.relu(self.up(x)).square())

def squared_relu(o):
    "Squared ReLU in place of SwiGLU"
    for b in o.model.blocks: b.ff = SquaredReLU(o.model.config.width)

# %% residual stream
def _run_with_skips(self, h, rot, mask, cache, cond, tokens):
    kept, n = [], len(self.blocks)
    for i, layer in enumerate(self.blocks):
        if i >= n//2 and n - 1 - i < len(kept): h = h + self.skip[n - 1 - i].to(h.dtype)*kept[n - 1 - i]
        h, _ = layer(h, rot, mask, self.causal, None, cond, None)
        if i < n//2: kept.append(h)
    return h, []

def skips(o):
    "Early layers' outputs are added before the late ones"
    m = o.model
    m.skip = nn.Parameter(torch.zeros(m.config.layers//2, m.config.width))
    _override(m, "_run", _run_with_skips)

def embedding_again(o):
    "The embedding is added before each layer, by learned channel gains"
    m = o.model
    m.again = nn.Parameter(torch.zeros(m.config.layers, m.config.width))
    def run(self, h, rot, mask, cache, cond, tokens):
        first = h
        for gain, layer in zip(self.again, self.blocks):
            h, _ = layer(h + gain.to(h.dtype)*first, rot, mask, self.causal, None, cond, None)
        return h, []
    _override(m, "_run", run)

def looped(o, times=2):
    "All layers are run several times"
    def run(self, h, rot, mask, cache, cond, tokens):
        for _ in range(times):
            for layer in self.blocks: h, _ = layer(h, rot, mask, self.causal, None, cond, None)
        return h, []
    _override(o.model, "_run", run)

# %% embedding and head
def softcap(o, cap=15.):
    "Logits pass through cap·tanh(·/cap)"
    m = o.model
    def head(self, h):
        z = F.linear(h, self.embed.weight.to(h.dtype)).float()
        return (cap*torch.tanh(z/cap)).masked_fill(self.banned, -torch.inf)
    def nll(self, h, y, smoothing=0.): return F.cross_entropy(self.head(h), y, reduction="none")
    _override(m, "head", head)
    _override(m, "nll", nll)

def untied(o):
    "A vocabulary matrix of its own for the logits"
    m = o.model
    m.unembed = nn.Parameter(m.embed.weight.detach().clone())
    def head(self, h): return F.linear(h, self.unembed.to(h.dtype)).masked_fill(self.banned, -torch.inf)
    def nll(self, h, y, smoothing=0.): return linear_nll(h, self.unembed, y, self.banned, smoothing)
    _override(m, "head", head)
    _override(m, "nll", nll)

class Neighbours(nn.Module):
    "Embedding of a token, and of hashed pairs with the token before and the one behind"
    def __init__(self, embed, buckets, width):
        super().__init__()
        self.weight, self.buckets = embed.weight, buckets
        self.table, self.out = nn.Embedding(2*buckets, width), nn.Linear(width, embed.embedding_dim, bias=False)
        nn.init.normal_(self.table.weight, std=.02)
        nn.init.normal_(self.out.weight, std=width**-.5)
    def forward(self, x):
        before, behind = F.pad(x, (1, 0))[:, :-1], F.pad(x, (0, 1))[:, 1:]
        left = (before*7919 + x*104729) % self.buckets
        right = (x*7919 + behind*104729) % self.buckets + self.buckets
        return F.embedding(x, self.weight) + self.out(self.table(left) + self.table(right))

def hashed_pairs(o, buckets=4096, width=64):
    "Hashed embeddings of neighbouring pairs are added to those of tokens"
    o.model.embed = Neighbours(o.model.embed, buckets, width)

def _frequencies(text, vocab): return (np.bincount(text, minlength=vocab) + .5)/(len(text) + .5*vocab)

def unigram(o):
    "A bias of the logits, which begins as the log frequency of each token"
    m = o.model
    m.bias = nn.Parameter(torch.from_numpy(np.log(_frequencies(o.text, m.vocab_size))).float())
    def head(self, h):
        return (F.linear(h, self.embed.weight.to(h.dtype)) + self.bias.to(h.dtype)).masked_fill(self.banned, -torch.inf)
    def nll(self, h, y, smoothing=0.): # the bias as the weight of one more channel, which is always 1
        w = torch.cat([self.embed.weight, self.bias[:, None]], 1)
        return linear_nll(torch.cat([h, torch.ones_like(h[:, :1])], 1), w, y, self.banned, smoothing)
    _override(m, "head", head)
    _override(m, "nll", nll)

def co_occurrence(o, reach=4):
    "Embeddings begin as the leading directions of which tokens stand near which"
    m, V = o.model, o.model.vocab_size
    x = torch.from_numpy(np.asarray(o.text, np.int64))
    counts = torch.zeros(V*V)
    for k in range(1, reach + 1): counts += torch.bincount(x[:-k]*V + x[k:], minlength=V*V).float()/k
    counts = counts.view(V, V)
    counts = counts + counts.t()
    p = counts/counts.sum()
    f = p.sum(1).clamp(min=1e-9)
    pmi = (p/(f[:, None]*f[None])).clamp(min=1e-9).log().clamp(min=0)
    torch.manual_seed(0)
    u, s, _ = torch.svd_lowrank(pmi, q=m.config.width, niter=2)
    e = u*s.sqrt()
    m.embed.weight.data.copy_(.02*(e + .2*e.std()*torch.randn_like(e))/e.std())
