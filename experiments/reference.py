"""The reference model, checkpoints/sotu-4m: trained by the recipe of that name, packed as bfloat16, then scored.

    python experiments/reference.py [OPTIONS OF dlm train]   train it, or resume it, then pack and score it

An hour on two CPU cores, which may be interrupted. Afterwards commit config.yaml, log.jsonl, summary.json,
tokenizer.json and model.safetensors.
"""
import sys
from dataclasses import replace

import torch

from diffusion_lm.cli import parse_train
from diffusion_lm.core import UserError
from diffusion_lm.files import read_json, read_jsonl, run_path, write_json, write_text
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.text.store import prepare
from diffusion_lm.training.recipe import load_config
from diffusion_lm.training.report import report, test_figures
from diffusion_lm.training.run import train
from diffusion_lm.weights import save_weights

LIMIT = 9_000_000 # bytes that the packed weights may have

def pack(run):
    "Round the weights of a finished run to bfloat16, in place; its summary and report get the rounded model's figures"
    cfg = load_config(run/"config.yaml")
    lm = DiffusionLM.from_run(run)
    weights = {k: v.to(torch.bfloat16) for k, v in lm.model.state_dict().items()}
    _, tok, store = prepare(cfg.data, replace(cfg.tokenizer, load=str(run)))
    lm.model.load_state_dict(weights)  # rounded, in float32 again
    figures = test_figures(lm.model, tok, store, cfg.trainer.test_draws, cfg.trainer.test_tokens, quiet=False)
    save_weights(weights, run/"model.safetensors", tokenizer=tok.fingerprint)
    size = (run/"model.safetensors").stat().st_size
    if size > LIMIT: raise UserError(f"the packed weights have {size:,} bytes, more than {LIMIT:,}")
    summary = {**read_json(run/"summary.json"), **figures, "weights": "last, in bfloat16"}
    write_json(run/"summary.json", summary)
    samples = [r for r in read_jsonl(run/"samples.jsonl") if r["step"] == summary["steps"]]
    write_text(run/"report.md", report(cfg, summary, samples))
    return summary

def main(*args):
    begun = (run_path("sotu-4m")/"config.yaml").exists()
    cfg, _ = parse_train(["--resume", "--name", "sotu-4m", *args] if begun else ["--config", "sotu-4m", *args])
    s = pack(train(cfg, "sotu-4m", resume=begun))
    bits = s["bits_per_byte"]
    print(f"{bits['value']:.3f} bits/byte [{bits['low']:.3f}, {bits['high']:.3f}], "
          f"{s['parameters']:,} parameters, {s['tokens']:,} tokens")

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except (UserError, KeyboardInterrupt) as e: sys.exit(f"reference.py: {e}")
