"""What `dlm demo` reaches on this machine, at three seeds, one after another, with nothing else running.

    python experiments/demo.py [SEED …]      → records/index/demo.jsonl, which README and the home page quote

The loop measures a step and takes as many as fit into its minutes, so a busy machine trains less.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from diffusion_lm.files import append_jsonl

RECORD = Path(__file__).parent/"records"/"index"/"demo.jsonl"
KEPT = ("steps", "tokens", "epochs", "seconds", "cpu_seconds", "tokens_per_second", "machine", "dtype", "parameters",
        "bits_per_byte", "monte_carlo_error", "by_document", "yardsticks", "versions")
DLM = "import sys; from diffusion_lm.cli import main; sys.exit(main())"

def main(*seeds):
    for seed in seeds or (0, 1, 2):
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as runs:
            command = [sys.executable, "-c", DLM, "demo", "--seed", str(seed), "--out", runs, "--json"]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if run.returncode: return run.returncode
        summary = json.loads(run.stdout)
        append_jsonl(RECORD, {"seed": int(seed), "load_before": load, **{k: summary[k] for k in KEPT}})

if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
