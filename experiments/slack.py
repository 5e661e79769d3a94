"""How much of a bound is slack: the records behind the results page of that name.

    python experiments/slack.py twin              train sotu-4m-ar: the text, the network and the tokens of sotu-4m,
                                                  and the next token as the target → records/slack/sotu-4m-ar/
    python experiments/slack.py RUN [BLOCK …]     a run that writes in blocks of so many tokens (2 4 8 16 32 128)
                                                  → records/slack/RUN.jsonl, a line for each size; those there are kept

Up to blocks of 8 the bound and the likelihood are exact, over all sets of masked tokens. Larger blocks are read in
random orders, and the figure above the likelihood is what that many orders can show.
"""
import sys

import torch

from arms import RECORDS, configuration, one_core, train_and_record
from diffusion_lm.command import own_text
from diffusion_lm.core import UserError
from diffusion_lm.evaluation.metrics import _windows_of
from diffusion_lm.files import append_jsonl, read_json, read_jsonl
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.theory.likelihood import InBlocks, any_order, bracket, exact_nelbo, exact_nll
from diffusion_lm.training.callbacks import progress

PAGE = RECORDS/"slack"
EXACT, LENGTH = 8, 128  # the largest block that is enumerated; tokens in a window
WINDOWS = {2: 16, 4: 16, 8: 8}  # and otherwise 8
ORDERS = 32

TWIN = {"objective": "ar", "noise.progress": "none", "trainer.best": "true",
        "trainer.dtype": "bfloat16", "trainer.compile": "true"}

def train_twin(name="sotu-4m-ar"):
    "As many steps as `sotu-4m` took, on one core"
    one_core()
    steps = read_json(RECORDS.parents[1]/"checkpoints/sotu-4m/summary.json")["steps"]
    train_and_record(configuration("sotu-4m", TWIN | {"trainer.steps": steps}), name, PAGE)

def figures(model, x):
    "Nats of a window under the bound and nearer the truth, and the spread of log p over orders"
    if model.block <= EXACT: return float(exact_nelbo(model, x).sum()), float(exact_nll(model, x).sum()), None
    log_p = any_order(model, x, ORDERS)
    return float(-log_p.mean(-1).sum()), float(bracket(log_p)[1].sum()), float(log_p.std(-1).mean())

def measure(run, size):
    "A record: what each window costs in blocks of `size` tokens"
    lm = DiffusionLM.from_run(run)
    store = own_text(lm)
    model = lm.model if lm.model.block else InBlocks(lm.model, size)
    n = WINDOWS.get(size, 8)
    x, _ = _windows_of(model, store.split("test"), store.documents("test"), LENGTH, n*LENGTH)
    rows = [figures(model, w[None]) for w in progress(x, desc=f"{run}, blocks of {size}")]
    bound, nearer, spread = zip(*rows)
    return {"run": run, "block": size, "windows": len(x), "tokens": int((x != model.pad).sum()),
            "bytes": int(lm.tokenizer.n_bytes[x.numpy()].sum()), "exact": size <= EXACT,
            "orders": None if size <= EXACT else ORDERS, "bound": bound, "nearer": nearer, "spread": spread}

def main(run=None, *sizes):
    if run is None:
        print(__doc__)
        return 2
    if run == "twin": return train_twin()
    torch.set_num_threads(1)
    records = PAGE/f"{run}.jsonl"
    done = {r["block"] for r in read_jsonl(records)} if records.exists() else set()
    for size in map(int, sizes or (2, 4, 8, 16, 32, 128)):
        if size not in done: append_jsonl(records, measure(run, size))
    return 0

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"slack.py: {e}")
