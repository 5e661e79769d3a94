"""What has been tried in the speedrun: each idea with what was expected of it before it ran.

An `Idea` changes the recipe (`options`), the objective and its network (`changes`), or a function of the library while
it trains (`around`). It builds on another one, and all of them on the demo as it was before the speedrun.
"""
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import networks
import optimizers
import torch

from arms import FIRST_DEMO
from diffusion_lm.models.transformer import PRESETS
from diffusion_lm.theory.objective import Objective, ar_nll


@dataclass
class Idea:
    "A change, and what it was expected to bring"
    says: str            # what changes
    expects: str         # the prediction, written before the run
    options: dict = field(default_factory=dict) # of the recipe
    changes: tuple = ()  # functions of the objective, which they alter or replace
    around: Callable = contextlib.nullcontext   # a context in which the learner is made and trains
    base: str | None = None # what it builds on

class Reweighted(Objective):
    "The loss of the demo with another weight of each masked token"
    def __init__(self, o, power=0., cap=float("inf")):
        super().__init__(o.model, o.name, o.noise, o.smoothing)
        self.power, self.cap = power, cap

    def corrupt(self, x, t, u):
        masked, w = super().corrupt(x, t, u) # w = n/k
        return masked, w.clamp(max=self.cap)**self.power

    def mean(self, nll, masked, w, x): return (nll*w[masked]).sum()/w[masked].sum()

class Complementary(Objective):
    "Two opposite masks of each row, in half as many rows"
    def __init__(self, o): super().__init__(o.model, o.name, o.noise, o.smoothing)

    def corrupt(self, x, t, u):
        half, l = len(x)//2, x.shape[1]
        masked, w = super().corrupt(x[:half], t[:half], u[:half])
        rest = l - masked.sum(-1, keepdim=True)
        return torch.cat([masked, ~masked]), torch.cat([w, (l/rest.clamp(min=1)).expand_as(w)])

    def forward(self, x, t, u):
        half = len(x)//2
        return super().forward(torch.cat([x[:half], x[:half]]), t, u)

class Dual(Objective):
    "A share of the rows is read from left to right"
    def __init__(self, o, share):
        super().__init__(o.model, o.name, o.noise, o.smoothing)
        self.share = share

    def forward(self, x, t, u):
        n = round(self.share*len(x))
        loss = super().forward(x[n:], t[n:], u[n:])
        self.model.causal = True
        ar = ar_nll(self.model, x[:n]).sum()/(x[:n] != self.model.pad).sum()
        self.model.causal = False
        return (1 - self.share)*loss + self.share*ar

def weighted(**kw): return partial(Reweighted, **kw)

def window(low, high, opens=1.):
    "Options of a window of mask ratios"
    return {"noise.progress": "window", "noise.low": low, "noise.high": high, "noise.opens": opens}

def size(**kw): return {f"model.{k}": v for k, v in kw.items()}
def vocabulary(n): return {"tokenizer.vocab_size": n}
def trainer(**kw): return {f"trainer.{k}": v for k, v in kw.items()}
def preset(name):
    "Options of a larger network, with windows of 256 tokens and a vocabulary of 8,192"
    width, heads, layers, length = PRESETS[name]
    return size(width=width, heads=heads, layers=layers, length=length) | vocabulary(8192) | trainer(batch=16)

IDEAS = {
    "demo": Idea("the demo as it was", "", FIRST_DEMO, around=optimizers.pytorch()),

    # where the steps go
    "capped": Idea("weights of the bound capped at 8", "2 % less", changes=(weighted(power=1., cap=8.),)),
    "root": Idea("square root of the bound's weights", "3 % less", changes=(weighted(power=.5),)),
    "flat": Idea("every masked token counts alike, ratios 0–1", "3 % less", changes=(weighted(),)),
    "window-3-8": Idea("ratios 0.3–0.8", "6 % less", window(.3, .8)),
    "half": Idea("ratios 0.45–0.55", "7 % less", window(.45, .55)),
    "opens-70": Idea("behind 70 % of the steps the window opens to 0–1", "as good, and better at the ends",
                     window(.45, .55, .7), base="embed-10"),
    "higher": Idea("ratios 0.55–0.65", "as good", window(.55, .65), base="embed-10"),
    "complementary": Idea("two opposite masks of each row, half as many rows", "worse: half as much text",
                          changes=(Complementary,), base="embed-10"),
    "dual": Idea("a quarter of the rows from left to right", "a little better early",
                 changes=(partial(Dual, share=.25),), base="embed-10"),

    # the optimizer
    "blocks-64": Idea("Muon in blocks of 64 rows", "12 % more steps of the same worth",
                      around=optimizers.blocks(64), base="half"),
    "blocks-32": Idea("Muon in blocks of 32 rows", "15 % more steps, a little worse each",
                      around=optimizers.blocks(32), base="half"),
    "short-64": Idea("Muon in blocks of 64 of the shorter side", "as good a step, 12 % cheaper",
                     around=optimizers.blocks(64, side="short"), base="half"),
    "short-128": Idea("Muon in blocks of 128 of the shorter side", "as good a step, 8 % cheaper",
                      around=optimizers.blocks(128, side="short"), base="half"),
    "short-96-3": Idea("Muon in blocks of 96 of the shorter side, three rounds in place of five",
                       "as good a step, 8 % cheaper", around=optimizers.blocks(96, side="short", steps=3),
                       base="embed-10"),
    "rounds-3": Idea("three Newton–Schulz rounds in place of five", "as good a step, 5 % cheaper",
                     around=optimizers.pytorch(ns_steps=3), base="embed-10"),
    "rounds-2": Idea("two Newton–Schulz rounds in place of five", "too few",
                     around=optimizers.pytorch(ns_steps=2), base="embed-10"),
    "polar": Idea("three rounds in Muon, each with a polynomial of its own", "as good a step, 5 % cheaper",
                  around=optimizers.turns(1), base="half"),
    "turns-4": Idea("Muon steps a matrix every fourth time, four times as far", "nearly as good a step, 6 % cheaper",
                    around=optimizers.turns(4), base="polar"),
    "wandering-64": Idea("Muon in 4 blocks of the shorter side: neighbours, and every fourth, in turn",
                         "better than blocks that stay", base="half",
                         around=optimizers.blocks(64, side="short", wander=True)),
    "momentum-9": Idea("momentum 0.9 in Muon", "better in a short run", around=optimizers.pytorch(momentum=.9),
                       base="embed-10"),
    "rate-5": Idea("rate 0.005", "a little better in a short run", trainer(lr=5e-3), base="half"),
    "embed-rate-3": Idea("three times the rate for the embedding", "better early", trainer(adamw_lr=3), base="half"),
    "embed-rate-10": Idea("ten times the rate for the embedding", "too much", trainer(adamw_lr=10), base="half"),
    "batch-16": Idea("16 windows a step", "twice the steps: 3 % less", trainer(batch=16), base="half"),
    "rate-5-10": Idea("rate 0.005 for all", "a little better", trainer(lr=5e-3), base="embed-10"),
    "decay-100": Idea("the rate falls from the end of the warmup on", "a little better", trainer(decay=1),
                      base="embed-10"),
    "batch-24": Idea("24 windows a step", "a little better", trainer(batch=24), base="embed-10"),

    # the size
    "thin": Idea("width 192", "more steps: better at 80 s", size(width=192), base="half"),
    "thin-16": Idea("16 windows a step", "3 % less", trainer(batch=16), base="thin"),
    "thin-embed": Idea("width 192, five times the rate for the embedding", "both gains",
                       size(width=192) | trainer(adamw_lr=5), base="half"),
    "thin-embed-16": Idea("16 windows a step", "better with a faster embedding", trainer(batch=16),
                          base="thin-embed"),
    "embed-10": Idea("width 192, ten times the rate for the embedding", "a little better than five times",
                     size(width=192) | trainer(adamw_lr=10), base="half"),
    "embed-20": Idea("width 192, twenty times the rate for the embedding", "too much",
                     size(width=192) | trainer(adamw_lr=20), base="half"),
    "embed-10-blocks-16": Idea("16 windows a step, Muon in blocks of 64", "2 % less", trainer(batch=16),
                               around=optimizers.blocks(64), base="embed-10"),
    "layers-6": Idea("6 layers", "fewer steps, better each", size(layers=6), base="embed-10"),
    "layers-3": Idea("3 layers", "more steps, worse each", size(layers=3), base="embed-10"),
    "layers-2": Idea("2 layers", "too few", size(layers=2), base="embed-10"),
    "width-160": Idea("width 160", "more steps, worse each", size(width=160), base="embed-10"),
    "l3-256": Idea("3 layers of width 256", "better at 240 s", size(width=256), base="layers-3"),
    "heads-6": Idea("6 heads", "more neighbours from the start", size(heads=6), base="embed-10"),
    "heads-8": Idea("8 heads", "more neighbours from the start", size(heads=8), base="embed-10"),

    # the network
    "unigram": Idea("a bias of the logits that begins as the log frequency of each token",
                    "saves the first thirty steps", changes=(networks.unigram,), base="half"),
    "co-occurrence": Idea("embeddings begin as directions of which tokens stand near which", "saves some steps",
                          changes=(networks.co_occurrence,), base="embed-10"),
    "qk-norm": Idea("queries and keys normalised", "no change at this size", changes=(networks.qk_norm,),
                    base="embed-10"),
    "relu2": Idea("squared ReLU, four times as wide", "a little faster", changes=(networks.squared_relu,),
                  base="embed-10"),
    "values": Idea("values mixed with those of the first layer", "1 % less", changes=(networks.value_residual,),
                   base="embed-10"),
    "again": Idea("the embedding added before each layer", "little", changes=(networks.embedding_again,),
                  base="embed-10"),
    "skips": Idea("early layers added before late ones", "little with 4 layers", changes=(networks.skips,),
                  base="embed-10"),
    "softcap": Idea("logits capped at 15", "no change, and slower", changes=(networks.softcap,), base="embed-10"),
    "looped": Idea("two layers, run twice", "worse than four layers", size(layers=2), (networks.looped,),
                   base="embed-10"),
    "untied": Idea("a head of its own, vocabulary 2,048", "better early", vocabulary(2048), (networks.untied,),
                   base="embed-10"),
    "pairs": Idea("hashed embeddings of neighbouring pairs, vocabulary 2,048", "better early", vocabulary(2048),
                  (networks.hashed_pairs,), base="embed-10"),
    "l3-mixed": Idea("values mixed with those of the first layer, the embedding added before each layer", "1 % less",
                     changes=(networks.value_residual, networks.embedding_again), base="layers-3"),

    # the text
    "length-64": Idea("windows of 64 tokens, 64 a step", "faster, and less context",
                      size(length=64) | trainer(batch=64), base="half"),
    "vocab-2k": Idea("vocabulary 2,048", "better in a short run", vocabulary(2048), base="embed-10"),
    "l3-8k": Idea("vocabulary 8,192", "better: fewer tokens a byte", vocabulary(8192), base="layers-3"),
    "l3-12k": Idea("vocabulary 12,288", "better still", vocabulary(12288), base="layers-3"),
    "l2-12k": Idea("vocabulary 12,288", "better still", vocabulary(12288), base="layers-2"),
    "l2-16k": Idea("vocabulary 16,384", "better still", vocabulary(16384), base="layers-2"),
    "l4-12k": Idea("4 layers", "better from 10 minutes on", size(layers=4), base="l3-12k"),
    "l6-8k": Idea("6 layers, vocabulary 8,192", "better still from 45 minutes on",
                  size(layers=6) | vocabulary(8192), base="l3-12k"),
    "l4-12k-wide": Idea("ratios 0.3–0.7", "as good at 10 minutes, better later", window(.3, .7), base="l4-12k"),
    "l4-12k-opens": Idea("behind 70 % of the steps the window opens to 0–1", "better at the ends, and as good",
                         window(.45, .55, .7), base="l4-12k"),
    "l3-12k-values": Idea("values mixed with those of the first layer", "1 % less",
                          changes=(networks.value_residual,), base="l3-12k"),
    "l3-12k-skips": Idea("early layers added before late ones", "1 % less", changes=(networks.skips,),
                         base="l3-12k"),
    "l3-12k-co-occurrence": Idea("embeddings begin as directions of which tokens stand near which", "1 % less",
                                 changes=(networks.co_occurrence,), base="l3-12k"),

    # larger networks: too large for a record
    "small": Idea("preset small, vocabulary 8,192", "", preset("small")),
    "small-half": Idea("ratios 0.45–0.55", "5 % less", window(.45, .55), base="small"),
    "small-half-10": Idea("ten times the rate for the embedding", "2 % less", trainer(adamw_lr=10),
                          base="small-half"),
    "medium": Idea("preset medium, vocabulary 8,192", "", preset("medium")),
    "medium-half": Idea("ratios 0.45–0.55", "5 % less", window(.45, .55), base="medium"),
    "medium-half-10": Idea("ten times the rate for the embedding", "2 % less", trainer(adamw_lr=10),
                           base="medium-half"),
}
LADDER = ["demo", "l3-12k"] # the records, the first of them the demo as it was
