"""Documents share windows: how much does it change a score, and the interval around it?

    python experiments/shared_windows.py RUN      score the run's test split twice → records/metrics/shared_windows.json

Once as `evaluate` does, in windows that are cut from all documents one behind another, so the end of one is predicted
with the beginning of the next in sight; and once with each document in windows of its own, filled up with padding. Use
a run whose documents are short: `dlm train --config quick --data.path stories.txt --name stories --trainer.steps 600`.
"""
import math
import sys
from dataclasses import asdict

import numpy as np
import torch

from arms import RECORDS, one_core
from diffusion_lm.core import UserError
from diffusion_lm.evaluation.metrics import blocks, estimate_ratio, score_windows
from diffusion_lm.files import find_run, write_json
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.text.store import eval_windows, store_of
from diffusion_lm.training.recipe import load_config


def alone(tokens, offsets, length, pad):
    "Windows (n,l) in which each document is by itself, and the document of each token (n,l), -1 at padding"
    parts = [eval_windows(tokens[a:b], np.array([0, b - a]), length, pad) for a, b in zip(offsets, offsets[1:])]
    documents = [np.where(d < 0, -1, i) for i, (_, d) in enumerate(parts)]
    return torch.cat([x for x, _ in parts]), np.concatenate(documents)

def by_document(lm, x, doc, draws):
    "Nats of each document (docs,)"
    nats, _ = score_windows(lm.model, x, draws)
    return np.bincount(doc[doc >= 0], nats.mean(-1)[doc >= 0])

def neighbours(nats, size):
    "Correlation of a document's deviation from the mean rate with that of the next"
    z = nats - size*nats.sum()/size.sum()
    return float((z[1:]*z[:-1]).sum()/(z**2).sum())

def main(run, draws=8):
    one_core()
    lm = DiffusionLM.from_run(run, device="cpu")
    store = store_of(load_config(find_run(run)/"config.yaml").data, lm.tokenizer)
    tokens, offsets = np.asarray(store.split("test"), np.int64), store.documents("test")
    offsets = offsets - offsets[0]
    size = np.array([lm.tokenizer.n_bytes[tokens[a:b]].sum() for a, b in zip(offsets, offsets[1:])], float)
    shared = by_document(lm, *eval_windows(tokens, offsets, lm.length, lm.model.pad), draws)
    own = by_document(lm, *alone(tokens, offsets, lm.length, lm.model.pad), draws)
    def bits(nats, size, **kw):
        return asdict(estimate_ratio(nats, size, "bits/byte", "bound", f=lambda r: r/math.log(2), **kw))
    write_json(RECORDS/"metrics"/"shared_windows.json", {
        "run": lm.name, "documents": len(size), "length": lm.length,
        "tokens_a_document": float(np.mean(np.diff(offsets))), "draws": draws,
        "shared": bits(shared, size), "alone": bits(own, size),
        "change": asdict(estimate_ratio(shared, own, "change", f=lambda r: r - 1)),
        "shared_by_block": bits(blocks(shared), blocks(size), by="block"),
        "correlation": {"shared": neighbours(shared, size), "alone": neighbours(own, size)}})

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except (TypeError, UserError) as e: sys.exit(f"shared_windows.py: {e}")
