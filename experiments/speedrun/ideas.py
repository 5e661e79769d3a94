"""What has been tried in the speedrun: each idea with what was expected of it before it ran.

An `Idea` changes the recipe (`options`), the objective and its network (`changes`), what happens around the steps
(`callbacks`), or a function of the library while it trains (`around`). It builds on another one, the demo at last.
"""
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import networks
import optimizers
import torch

from diffusion_lm.theory.objective import Objective, ar_nll
from diffusion_lm.training.learner import Callback


@dataclass
class Idea:
    "A change of the demo, and what it was expected to bring"
    says: str                # what changes
    expects: str             # the prediction, written before the run
    options: dict = field(default_factory=dict)   # of the recipe
    changes: tuple = ()      # functions of the objective, which they may alter or replace
    callbacks: tuple = ()    # makers of callbacks
    around: Callable = contextlib.nullcontext     # a context in which the learner is made and trains
    base: str | None = None  # what it builds on

class Window(Callback):
    "Mask ratios from `low` to `high`; in the last part of the training the window opens to 0–1"
    def __init__(self, low, high, opens=1., opened=1.):
        self.low, self.high, self.opens, self.opened = low, high, opens, opened

    def before_fit(self, learn): self.after_step(learn)

    def after_step(self, learn):
        done = learn.step/learn.cfg.steps
        part = min(1., max(0., (done - self.opens)/max(1e-9, self.opened - self.opens)))
        learn.mask_range = self.low*(1 - part), self.high + (1 - self.high)*part

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
        half = len(x)//2
        masked, w = super().corrupt(x[:half], t[:half], u[:half])
        k = masked.sum(-1, keepdim=True).float()
        l = x.shape[1]
        return torch.cat([masked, ~masked]), torch.cat([w, (l/(l - k).clamp(min=1)).expand_as(w)])

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

def window(*args): return partial(Window, *args)
def weighted(**kw): return partial(Reweighted, **kw)
HALF = window(.45, .55)

IDEAS = {
    "demo": Idea("the demo as it is", "—"),

    # where the steps go
    "capped": Idea("weights of the bound capped at 8", "2 % less", changes=(weighted(power=1., cap=8.),)),
    "root": Idea("square root of the bound's weights", "3 % less", changes=(weighted(power=.5),)),
    "flat": Idea("every masked token counts alike, ratios 0–1", "3 % less", changes=(weighted(),)),
    "window-3-8": Idea("ratios 0.3–0.8", "6 % less", callbacks=(window(.3, .8),)),
    "window-2-9": Idea("ratios 0.2–0.9", "5 % less", callbacks=(window(.2, .9),)),
    "half": Idea("ratios 0.45–0.55", "7 % less", callbacks=(HALF,)),
    "half-opens": Idea("ratios 0.45–0.55; from 70 % of the steps on the window opens to 0–1",
                       "as good as the narrow window, and better at the ends", callbacks=(window(.45, .55, .7),)),
    "window-5-7": Idea("ratios 0.5–0.7", "as good as 0.45–0.55", callbacks=(window(.5, .7),)),
    "complementary": Idea("two opposite masks of each row, half as many rows", "worse: half as much text",
                          changes=(Complementary,), base="embed-10"),
    "dual": Idea("a quarter of the rows from left to right", "a little better early", changes=(partial(Dual, share=.25),),
                 base="embed-10"),

    # the optimizer
    "blocks-64": Idea("Muon in blocks of 64 rows", "12 % more steps of the same worth", around=optimizers.blocks(64), base="half"),
    "blocks-32": Idea("Muon in blocks of 32 rows", "15 % more steps, a little worse each", around=optimizers.blocks(32), base="half"),
    "short-64": Idea("Muon in blocks of 64 of the shorter side", "as good a step, 12 % cheaper",
                     around=optimizers.blocks(64, side="short"), base="half"),
    "short-128": Idea("Muon in blocks of 128 of the shorter side", "as good a step, 8 % cheaper",
                      around=optimizers.blocks(128, side="short"), base="half"),
    "rounds-3": Idea("three Newton–Schulz rounds in place of five", "as good a step, 5 % cheaper",
                     around=optimizers.rounds(3), base="embed-10"),
    "rounds-4": Idea("four Newton–Schulz rounds in place of five", "as good a step, 3 % cheaper",
                     around=optimizers.rounds(4), base="embed-10"),
    "rounds-2": Idea("two Newton–Schulz rounds in place of five", "too few",
                     around=optimizers.rounds(2), base="embed-10"),
    "short-96-3": Idea("Muon in blocks of 96 of the shorter side, three rounds", "as good a step, 8 % cheaper",
                       around=optimizers.blocks(96, side="short", steps=3), base="embed-10"),
    "adamw": Idea("AdamW at rate 0.002", "worse by 5 %", {"trainer.optimizer": "adamw", "trainer.lr": 2e-3}, base="half"),
    "rate-5": Idea("rate 0.005", "a little better in a short run", {"trainer.lr": 5e-3}, base="half"),
    "rate-2": Idea("rate 0.002", "worse", {"trainer.lr": 2e-3}, base="half"),
    "batch-16": Idea("16 windows a step", "twice the steps: 3 % less", {"trainer.batch": 16}, base="half"),
    "embed-rate-3": Idea("three times the rate for the embedding", "better early",
                         around=optimizers.rest_faster(3.), base="half"),
    "momentum-9": Idea("momentum 0.9 in Muon", "better in a short run", around=optimizers.momentum(.9), base="embed-10"),
    "batch-8": Idea("8 windows a step", "Muon costs too much", {"trainer.batch": 8}, base="blocks-32"),
    "decay-9": Idea("decay over 90 % of the steps", "a little better", {"trainer.decay": .9}, base="embed-10"),

    # the network
    "qk-norm": Idea("queries and keys normalised", "no change at this size", changes=(networks.qk_norm,), base="embed-10"),
    "relu2": Idea("squared ReLU, four times as wide", "a little faster", changes=(networks.squared_relu,), base="embed-10"),
    "values": Idea("values mixed with those of the first layer", "1 % less", changes=(networks.value_residual,), base="embed-10"),
    "skips": Idea("early layers added before late ones", "little with 4 layers", changes=(networks.skips,), base="embed-10"),
    "again": Idea("the embedding added before each layer", "little", changes=(networks.embedding_again,), base="embed-10"),
    "softcap": Idea("logits capped at 15", "no change, and slower", changes=(networks.softcap,), base="embed-10"),
    "looped": Idea("two layers, run twice", "worse than four layers", {"model.layers": 2}, (networks.looped,), base="embed-10"),
    "untied": Idea("a head of its own, vocabulary 2,048", "better early", {"tokenizer.vocab_size": 2048},
                   (networks.untied,), base="embed-10"),
    "pairs": Idea("hashed embeddings of neighbouring pairs, vocabulary 2,048", "better early",
                  {"tokenizer.vocab_size": 2048}, (networks.hashed_pairs,), base="embed-10"),
    "wide": Idea("2 layers of width 336", "faster steps, worse each", {"model.layers": 2, "model.width": 336}, base="half"),
    "deep": Idea("8 layers", "worse in a short run", {"model.layers": 8}, base="embed-10"),
    "thin": Idea("4 layers of width 192", "more steps: better at 80 s", {"model.width": 192}, base="half"),
    "unigram": Idea("a bias of the logits that begins as the log frequency of each token",
                    "saves the first thirty steps", changes=(networks.unigram,), base="half"),
    "co-occurrence": Idea("embeddings begin as directions of which tokens stand near which", "saves some steps",
                          changes=(networks.co_occurrence,), base="embed-10"),
    "gate": Idea("a gate on what each head found", "little", changes=(networks.head_gate,), base="embed-10"),

    "thinner": Idea("4 layers of width 128", "too thin", {"model.width": 128}, base="half"),
    "thin-6": Idea("6 layers of width 192", "too slow", {"model.width": 192, "model.layers": 6}, base="half"),
    "thin-3": Idea("3 layers of width 192", "faster, worse each", {"model.width": 192, "model.layers": 3}, base="half"),
    "thin-16": Idea("16 windows a step", "3 % less", {"trainer.batch": 16}, base="thin"),
    "thin-rate-5": Idea("rate 0.005", "a little better", {"trainer.lr": 5e-3}, base="thin"),
    "thin-unigram": Idea("a bias of the logits that begins as the log frequency of each token", "saves the first steps",
                         changes=(networks.unigram,), base="thin"),
    "thin-blocks": Idea("Muon in blocks of 64 rows", "10 % more steps", around=optimizers.blocks(64), base="thin"),

    "embed-rate-10": Idea("ten times the rate for the embedding", "too much", around=optimizers.rest_faster(10.), base="half"),
    "thin-embed": Idea("4 layers of width 192, five times the rate for the embedding", "both gains",
                       {"model.width": 192}, around=optimizers.rest_faster(5.), base="half"),
    "embed-10": Idea("4 layers of width 192, ten times the rate for the embedding", "a little better",
                     {"model.width": 192}, around=optimizers.rest_faster(10.), base="half"),
    "embed-20": Idea("4 layers of width 192, twenty times the rate for the embedding", "too much",
                     {"model.width": 192}, around=optimizers.rest_faster(20.), base="half"),
    "embed-10-blocks-16": Idea("16 windows a step, Muon in blocks of 64", "2 % less", {"trainer.batch": 16},
                               around=optimizers.blocks(64), base="embed-10"),
    "embed-10-blocks-32-16": Idea("16 windows a step, Muon in blocks of 32", "2 % less", {"trainer.batch": 16},
                               around=optimizers.blocks(32), base="embed-10"),
    "embed-10-8": Idea("8 windows a step, Muon in blocks of 64", "better still", {"trainer.batch": 8},
                        around=optimizers.blocks(64), base="embed-10"),
    "embed-10-16": Idea("16 windows a step", "2 % less", {"trainer.batch": 16}, base="embed-10"),
    "thin-embed-16": Idea("16 windows a step", "better with a faster embedding", {"trainer.batch": 16}, base="thin-embed"),
    "thin-embed-2k": Idea("vocabulary 2,048", "better in a short run", {"tokenizer.vocab_size": 2048}, base="thin-embed"),

    "unigram-10": Idea("a bias of the logits that begins as the log frequency of each token", "saves the first steps",
                       changes=(networks.unigram,), base="embed-10"),
    "opens-70": Idea("from 70 % of the steps on the window opens to 0–1", "as good, and better at the ends",
                     callbacks=(window(.45, .55, .7),), base="embed-10"),
    "opens-90": Idea("from 90 % of the steps on the window opens to 0–1", "as good, and better at the ends",
                     callbacks=(window(.45, .55, .9),), base="embed-10"),
    "higher": Idea("ratios 0.55–0.65", "as good", callbacks=(window(.55, .65),), base="embed-10"),
    "rate-5-10": Idea("rate 0.005 for all", "a little better", {"trainer.lr": 5e-3}, base="embed-10"),
    "decay-100": Idea("the rate falls from the end of the warmup on", "a little better", {"trainer.decay": 1.},
                      base="embed-10"),
    "layers-3": Idea("3 layers", "more steps, worse each", {"model.layers": 3}, base="embed-10"),
    "layers-6": Idea("6 layers", "fewer steps, better each", {"model.layers": 6}, base="embed-10"),
    "heads-6": Idea("6 heads", "more neighbours from the start", {"model.heads": 6}, base="embed-10"),
    "heads-8": Idea("8 heads", "more neighbours from the start", {"model.heads": 8}, base="embed-10"),
    "batch-24": Idea("24 windows a step", "a little better", {"trainer.batch": 24}, base="embed-10"),
    "batch-48": Idea("48 windows a step", "worse", {"trainer.batch": 48}, base="embed-10"),
    "length-64-10": Idea("windows of 64, 64 a step", "faster, less context",
                         {"model.length": 64, "trainer.batch": 64}, base="embed-10"),
    "width-160": Idea("width 160", "more steps, worse each", {"model.width": 160}, base="embed-10"),
    "ema": Idea("averaged weights, decay 0.98 a step, and no decay of the rate", "as good", {"trainer.ema": .98},
                base="embed-10"),

    "layers-2": Idea("2 layers", "too few", {"model.layers": 2}, base="embed-10"),
    "l3-mixed": Idea("values mixed with those of the first layer, the embedding added before each layer", "1 % less",
                     changes=(networks.value_residual, networks.embedding_again), base="layers-3"),
    "l3-256": Idea("3 layers of width 256", "better at 240 s", {"model.width": 256}, base="layers-3"),
    "l2-256": Idea("2 layers of width 256", "worse", {"model.width": 256}, base="layers-2"),
    "l3-16": Idea("16 windows a step", "no change", {"trainer.batch": 16}, base="layers-3"),
    "l3-2k": Idea("vocabulary 2,048", "worse", {"tokenizer.vocab_size": 2048}, base="layers-3"),
    "l3-12k": Idea("vocabulary 12,288", "better still", {"tokenizer.vocab_size": 12288}, base="layers-3"),
    "l2-12k": Idea("vocabulary 12,288", "better still", {"tokenizer.vocab_size": 12288}, base="layers-2"),
    "l3-8k": Idea("vocabulary 8,192", "better: fewer tokens a byte", {"tokenizer.vocab_size": 8192}, base="layers-3"),

    # the text
    "vocab-2k": Idea("vocabulary 2,048", "better in a short run", {"tokenizer.vocab_size": 2048}, base="embed-10"),
    "vocab-1k": Idea("vocabulary 1,024", "worse than 2,048", {"tokenizer.vocab_size": 1024}, base="embed-10"),
    "vocab-8k": Idea("vocabulary 8,192", "worse in a short run", {"tokenizer.vocab_size": 8192}, base="embed-10"),
    "length-64": Idea("windows of 64, 64 a step", "faster, and less context", {"model.length": 64, "trainer.batch": 64}, base="half"),
    "length-256": Idea("windows of 256, 16 a step", "slower, and more context", {"model.length": 256, "trainer.batch": 16}, base="embed-10"),
}
