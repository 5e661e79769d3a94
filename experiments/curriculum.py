"""Does a curriculum help a model that has one book? The runs behind the results pages on curricula.

    python experiments/curriculum.py costs                CPU seconds of a step of each stage, interleaved
                                                          → records/curriculum/costs.json
    python experiments/curriculum.py list BOOK            the arms, and which of them are there
    python experiments/curriculum.py train BOOK [NAME …]  train those that are missing, and judge their texts
                                                          → records/curriculum/arms.jsonl
    python experiments/curriculum.py long BOOK KIND …     the same, each beyond the point where it stops improving

BOOK is a text file; an arm is called after it, as in frankenstein-closing-s0. Arms have five minutes of one core each,
in bfloat16. (A core that multiplies it in hardware takes 2.6 times as many steps as in float32; other cores take far
fewer.) All steps have 4,096 tokens. An arm's number of steps is fixed beforehand, the budget over the mean cost of its
steps, so it does not matter how busy the machine is while it trains. The last weights are scored, on both held-out
splits: nothing was chosen by them. Long arms choose their weights by the validation split, and are scored on the test
split only. Needs the extras `curriculum`, `judge` and `eval`.
"""
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from arms import RECORDS, one_core, serve, stepper
from arms import configuration as recipe_with
from diffusion_lm.core import UserError, interleaved
from diffusion_lm.evaluation.metrics import score_windows
from diffusion_lm.files import append_jsonl, read_json, read_jsonl, runs_dir, write_json
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.transformer import BaselineDreamModel
from diffusion_lm.text.store import eval_windows, store_of
from diffusion_lm.theory.objective import Objective
from diffusion_lm.training.report import style_figures
from diffusion_lm.training.run import train

COSTS, ARMS = (RECORDS/"curriculum"/name for name in ("costs.json", "arms.jsonl"))
BUDGET = 300  # CPU seconds of an arm
LONG = 3000   # steps of a long arm
DRAWS = 16    # passes over the held-out text
TEXTS = 64    # texts to judge

READS, EASY, LOW, HIGH = ["sentences", "pairs", "paragraphs"], [.3334, .6667, 1.], [.75, .4, .1], [.9, .6, .3]
def stages(reads=READS, easy=EASY, low=LOW, high=HIGH, shares=(1., 1., 1.)):
    given = dict(reads=reads, easy=easy, low=low, high=high, shares=shares)
    return {k: list(v) for k, v in given.items()}
CLOSED = (READS + ["text"], EASY + [1.], LOW + [0.], HIGH + [1.])  # the stages, then the running text under all masks
KINDS = {
    "none": None,
    "three": stages(),
    "order": stages(low=[0.]*3, high=[1.]*3),
    "masking": stages(reads=["text"]*3, easy=[1.]*3),
    "closing": stages(*CLOSED, (.2, .2, .2, .4)),
    "brief": stages(*CLOSED, (.1, .1, .1, .7)),
    "masking-closing": stages(["text"]*4, [1.]*4, LOW + [0.], HIGH + [1.], (.2, .2, .2, .4)),
    "reversed": stages(READS[::-1], EASY[::-1], LOW[::-1], HIGH[::-1]),
    "window": stages(["text"], [1.], [.45], [.55], [1.]),
    "window-closing": stages(["text"]*2, [1.]*2, [.45, 0.], [.55, 1.], (.6, .4))}
MORE = {"word": {"tokenizer.kind": "word"}}  # another vocabulary, without a curriculum

def configuration(book, kind, seed=0, steps=1, long=False):
    c = KINDS.get(kind)
    given = {f"curriculum.{k}": v for k, v in c.items()} if c else {"curriculum": "null"}
    evaluation = {"trainer.eval_every": 100} if long else {"trainer.best": "false", "trainer.eval_every": 50}
    return recipe_with("book", {
        "data.path": book, "trainer.early_stop": "null", **evaluation, "trainer.save_every": 100, "trainer.keep": 1,
        "trainer.dtype": "bfloat16", "noise.progress": "none", **given, **MORE.get(kind, {}),
        "seed": seed, "trainer.steps": steps})

def mask_ratio(low, high): return (low + high)/2  # on average

def costs(rounds=15):
    "CPU seconds of a step at the mask ratio of each stage, on one thread, interleaved"
    one_core()
    cfg, steps = configuration("book.txt", "none"), {}
    c, b, V = cfg.model.resolve(), cfg.trainer.batch, cfg.tokenizer.vocab_size
    g = torch.Generator().manual_seed(0)
    x, u = torch.randint(5, V, (b, c.length), generator=g), torch.rand(b, c.length, generator=g)
    for low, high in ((0., 1.), *zip(LOW, HIGH)):
        t = low + (high - low)*((torch.randperm(b, generator=g) + .5)/b)[:, None]
        o = Objective(BaselineDreamModel(c, V, range(5)))
        steps[f"{mask_ratio(low, high):.3f}"] = stepper(o, (x, t, u), dtype=torch.bfloat16)
    return {k: statistics.median(v) for k, v in interleaved(steps, rounds).items()}

def arms(book):
    "Name → (book, kind, seed, steps): every kind at seeds 0, 1, 2"
    cost, stem, out = read_json(COSTS), Path(book).stem.removeprefix("gutenberg_"), {}
    for seed in (0, 1, 2):
        for kind in KINDS | MORE:
            c = KINDS.get(kind) or stages(["text"], [1.], [0.], [1.], [1.])
            stage_costs = [cost[f"{mask_ratio(a, z):.3f}"] for a, z in zip(c["low"], c["high"])]
            mean = sum(w*v for v, w in zip(stage_costs, c["shares"]))/sum(c["shares"])
            out[f"{stem}-{kind}-s{seed}"] = book, kind, seed, round(BUDGET/mean)
    return out

def held_out(lm, store, splits=("validation", "test")):
    "Nats and bytes of each window that was held out, and the Monte-Carlo error of the nats"
    nats, size, error = [], [], []
    for split in splits:
        tokens, docs = np.asarray(store.split(split), np.int64), store.documents(split)
        x, _ = eval_windows(tokens, docs - docs[0], lm.model.config.length, lm.model.pad)
        scores = score_windows(lm.model, x, DRAWS)[0].sum(1)
        nats.append(scores.mean(-1))
        error.append(scores.std(-1, ddof=1)/DRAWS**.5)
        size.append(lm.tokenizer.n_bytes[x.numpy()].sum(1))
    return {"nats": np.concatenate(nats).round(2).tolist(), "bytes": np.concatenate(size).tolist(),
            "error": float(np.square(np.concatenate(error)).sum()**.5)}

def train_arm(name, book, kind, seed, steps, long=False):
    from diffusion_lm.evaluation.quality import Judge
    from pareto import judged
    cfg, run = configuration(book, kind, seed, steps, long), runs_dir()/name
    if not (run/"summary.json").exists(): train(cfg, name, resume=(run/"config.yaml").exists())
    lm, s = DiffusionLM.from_run(name, device="cpu"), read_json(run/"summary.json")
    figures = held_out(lm, store_of(cfg.data, lm.tokenizer), ("test",) if long else ("validation", "test"))
    scored = [r for r in read_jsonl(run/"log.jsonl") if "validation" in r]
    texts = lm.generate("", n=TEXTS, steps=128, temperature=.8, seed=seed)
    ids = [lm.tokenizer.encode(t).tolist() for t in texts]
    append_jsonl(ARMS, {
        "name": name, "book": Path(book).stem.removeprefix("gutenberg_"), "kind": kind, "seed": seed, "long": long,
        "steps": s["steps"], "parameters": s["parameters"], "cpu_seconds": s["cpu_seconds"], "machine": s["machine"],
        "validation": [[r["step"], round(r["validation"]["bits_per_byte"], 4)] for r in scored],
        "stages": s.get("stages", []), **figures, "judged": judged(lm, ids, Judge()),
        "style": style_figures(cfg, lm, texts=texts, seed=seed)})

def main(what="list", *names):
    if what == "costs": return write_json(COSTS, costs())
    if not names:
        print(__doc__)
        return 2
    book, *names = names
    if not Path(book).is_file(): raise UserError(f"{book} is missing")
    done = {r["name"] for r in read_jsonl(ARMS)} if ARMS.exists() else set()
    todo = arms(book)
    if what == "long":
        chosen = {n: kind for n, (_, kind, seed, _) in todo.items() if seed == 0 and {kind, n} & {*names}}
        what, todo = "train", {n.replace("-s0", "-long"): (book, kind, 0, LONG, True) for n, kind in chosen.items()}
    elif names: todo = {n: todo[n] for n in names if n in todo}
    if len(todo) < len(names): raise UserError(f"not all of these are arms: {' '.join(names)}")
    if serve(what, todo, done.__contains__, lambda a: f"{a[3]:6,} steps", train_arm): return 0
    print(__doc__)
    return 2

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"curriculum.py: {e}")
