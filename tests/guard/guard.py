"""What must not move when the code is rewritten: losses, texts, scores, exports.

    python tests/guard/guard.py              # compare with record.json; exit status 1 where something differs
    python tests/guard/guard.py --write      # make record.json anew
    python tests/guard/guard.py sample       # only the cases whose name begins so

Everything goes through the command line, which stays while the code behind it changes. Ten minutes on two cores.
On one machine, losses, scores and texts are the same to the last bit. On another machine, the last digits of sums
differ: there, numbers are compared to five digits, and a text may differ where two tokens are equally likely."""
import argparse
import contextlib
import io
import json
import math
import os
import platform
import runpy
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
RECORD = HERE/"record.json"
MODEL = str(ROOT/"checkpoints/sotu-4m")

SMALL = "--model.width 64 --model.heads 2 --model.layers 2 --model.length 64 --model.block 16"
FIRST = "--trainer.stop_at 20 --trainer.log_every 1 --trainer.dtype float32 --trainer.device cpu " \
        "--trainer.test_tokens 4096"
RUNS = {  # name → options of `dlm train`; each stops after 20 steps and is then scored and sampled from
    "quick": "--config quick",
    "quick-ar": "--config quick-ar",
    "block": "--config quick --objective block --model.block 16 --samples.templates []",
    "thought": f"--config thought {SMALL} --model.thought.depth 4 --trainer.minutes null --trainer.steps 24 "
               "--trainer.eval_tokens 4096",
    "latent": f"--config thought {SMALL} --model.thought.loophole 0.5 --model.thought.late 0 "
              "--model.thought.writer clean --model.thought.typos 0.05 --model.thought.losses.next 0.1 "
              "--model.thought.losses.contrastive 0.1 --trainer.minutes null --trainer.steps 24 "
              "--trainer.eval_tokens 4096",
    "curriculum": "--config book-quick --data.path story.txt --noise.progress none --model.width 64 --model.heads 2 "
                  "--curriculum.reads [text,text,text,text] --curriculum.easy [1,1,1,1] --model.layers 2 "
                  "--model.length 64 --trainer.minutes null --trainer.steps 40 --trainer.eval_every 5 "
                  "--trainer.eval_tokens 2048",
}

SAMPLERS = ("ancestral", "first-hitting", "left-to-right", "confidence", "margin", "entropy", "threshold", "factor",
            "entropy-bounded", "remdm", "predictor-corrector")
SHORT = "--steps 16 --length 48 --seed 3"
HOLES = "We must [MASK:6] our children, and [MASK:4] the [MASK]."
PROMPT = "My fellow citizens, the"
SAMPLES = {  # name → options of `dlm sample`, run by run
    **{f"sotu-4m {s}": (MODEL, f"--sampler {s} {SHORT} --n 3") for s in SAMPLERS},
    **{f"sotu-4m {s}, one of a batch": (MODEL, f"--sampler {s} {SHORT} --n 1") for s in SAMPLERS},
    **{f"sotu-4m prompt {s}": (MODEL, ["--prompt", PROMPT, *f"--sampler {s} {SHORT} --n 2".split()]) for s in SAMPLERS},
    **{f"sotu-4m holes {s}": (MODEL, ["--infill", HOLES, *f"--sampler {s} --steps 8 --n 2".split()]) for s in SAMPLERS},
    "sotu-4m blocks": (MODEL, f"{SHORT} --block 16 --n 2"),
    "sotu-4m blocks confidence": (MODEL, f"{SHORT} --block 16 --n 2 --sampler confidence"),
    "sotu-4m prefix cache": (MODEL, f"{SHORT} --block 16 --cache prefix --n 2"),
    "sotu-4m dual cache": (MODEL, f"{SHORT} --block 16 --cache dual --n 2"),
    "sotu-4m guidance": (MODEL, ["--prompt", "The state of the Union", "--guidance", "1.5", *SHORT.split()]),
    "sotu-4m guidance holes": (MODEL, ["--infill", HOLES, "--guidance", "1.5", "--steps", "8"]),
    "sotu-4m avoid": (MODEL, f"{SHORT} --avoid the,government --n 2"),
    "sotu-4m include": (MODEL, f"{SHORT} --include liberty,law --n 2"),
    "sotu-4m avoid and include": (MODEL, f"{SHORT} --include liberty --avoid of --n 2"),
    "sotu-4m toward": (MODEL, f"{SHORT} --toward war,army --strength 4 --n 2"),
    "sotu-4m temperature": (MODEL, f"{SHORT} --temperature 0.7 --n 2"),
    "sotu-4m greedy": (MODEL, f"{SHORT} --temperature 0"),
    "sotu-4m cool": (MODEL, f"{SHORT} --temperature 1.2 --cool 0.5 --n 2"),
    "sotu-4m top-k": (MODEL, f"{SHORT} --top-k 20 --n 2"),
    "sotu-4m top-p": (MODEL, f"{SHORT} --top-p 0.8 --n 2"),
    "sotu-4m repetition": (MODEL, f"{SHORT} --repetition 1.3 --n 2"),
    "sotu-4m cosine grid": (MODEL, f"{SHORT} --grid cosine --n 2"),
    "sotu-4m fisher-rao grid": (MODEL, f"{SHORT} --grid fisher-rao --n 2"),
    "sotu-4m learned grid": (MODEL, f"{SHORT} --grid learned --n 2"),
    "sotu-4m remdm loop": (MODEL, f"{SHORT} --sampler remdm --kind loop --n 2"),
    "sotu-4m remdm confidence": (MODEL, f"{SHORT} --sampler remdm --kind confidence --n 2"),
    "sotu-4m corrector": (MODEL, f"{SHORT} --sampler predictor-corrector --correct 2 --eta 0.2 --n 2"),
    "quick": ("quick", f"{SHORT} --n 2"),
    "quick-ar": ("quick-ar", f"{SHORT} --n 3"),
    "quick-ar prompt": (
        "quick-ar", ["--prompt", "My fellow citizens", *f"{SHORT} --n 2 --temperature 0.8 --top-k 50".split()]),
    "block": ("block", f"{SHORT} --n 2"),
    "block long": ("block", f"{SHORT} --length 150 --sampler confidence"),
    "block without cache": ("block", f"{SHORT} --cache off --length 100"),
    "block prompt": ("block", ["--prompt", "The state of the Union", *f"{SHORT} --n 2 --repetition 1.2".split()]),
    "thought": ("thought", f"{SHORT} --n 2"),
    "thought long": ("thought", f"{SHORT} --length 150 --sampler confidence"),
    "thought prompt": ("thought", ["--prompt", "The state of the Union is", *f"{SHORT} --n 2".split()]),
    "latent": ("latent", f"{SHORT} --n 2"),
    "latent long": ("latent", f"{SHORT} --length 150"),
    "curriculum": ("curriculum", f"{SHORT} --n 2"),
}
TALK = "The state of the Union\n/again\n/mend 0.3\n/steer war\n/stack\nAnd now\n/steps\n/quit\n"

def dlm(*args, typed=""):
    "What `dlm` prints on stdout, in this process"
    out, err, before = io.StringIO(), io.StringIO(), (sys.argv, sys.stdin)
    sys.argv, sys.stdin = ["dlm", *map(str, args)], io.StringIO(typed)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module("diffusion_lm", run_name="__main__")
    except SystemExit as e:
        if e.code: raise RuntimeError(f"dlm {' '.join(map(str, args))}: {err.getvalue()[-500:]}") from None
    finally: sys.argv, sys.stdin = before
    return out.getvalue()

NAMES = "river sea house light road king paper winter apple stone bird voice letter garden night morning".split()
VERBS = ["sees", "opens", "burns", "follows"]

def paragraph(g):
    "Six sentences"
    draws = (g.choice(NAMES, 6), g.choice(NAMES, 6), g.choice(NAMES, 6), g.choice(VERBS, 6))
    return " ".join(f"The {a} of the {b} {v} the {c}." for a, b, c, v in zip(*draws))

def story(words=12000):
    "A book of made-up sentences; the same on every machine"
    import numpy as np
    g = np.random.default_rng(7)
    return "\n\n".join(paragraph(g) for _ in range(words//48))

def words(options): return options.split() if isinstance(options, str) else options

def train(home, name, options):
    dlm("train", *words(options), *FIRST.split(), "--name", name)
    log = [json.loads(line) for line in (home/"checkpoints"/name/"log.jsonl").read_text().splitlines()]
    return [[r["step"], r["loss"], r["grad_norm"]] for r in log if "loss" in r]

VARYING = ("seconds", "seconds_to_score", "run", "device", "tokens_per_second", "file")

def scores(s):
    "The numbers of a JSON of `dlm eval`, without those that a clock or a path decides"
    if isinstance(s, dict): return {k: scores(v) for k, v in s.items() if k not in VARYING}
    return [scores(v) for v in s] if isinstance(s, list) else s

def export(home):
    folder = home/"sotu-onnx"
    dlm("export", MODEL, "--out", folder, "--json")
    def write(*args):
        command = [sys.executable, folder/"runtime.py", folder, "--json", *args]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    short = "--steps 8 --n 2 --seed 3 --length 48".split()
    texts = {s: write("--sampler", s, *short) for s in ("ancestral", "confidence", "threshold")}
    texts["holes"] = write("--infill", HOLES, "--steps", "8", "--n", "2")
    return {k: [r["text"] for r in v] for k, v in texts.items()}

def evaluate(run, *options): return scores(json.loads(dlm("eval", run, *options, "--json")))

def sample(run, options): return [s["text"] for s in json.loads(dlm("sample", run, *words(options), "--json"))]

def chat(run, typed): return dlm("chat", run, typed=typed)

def cases(home):
    "Yield (name, function that measures it)"
    for name, options in RUNS.items(): yield f"train {name}", partial(train, home, name, options)
    for name in RUNS: yield f"eval {name}", partial(evaluate, name, "--max-tokens", "2048")
    for name, (run, options) in SAMPLES.items(): yield f"sample {name}", partial(sample, run, options)
    yield "chat thought", partial(chat, "thought", TALK)
    yield "chat block", partial(chat, "block", "The state of the Union\n/again\nAnd now\n/quit\n")
    yield "export sotu-4m", partial(export, home)
    yield "eval sotu-4m", partial(evaluate, MODEL)

def differs(was, now, exact, at=""):
    "Where two records differ"
    if type(was) is not type(now) and not {type(was), type(now)} <= {int, float}: return [f"{at}: {was!r} → {now!r}"]
    if isinstance(was, dict):
        keys = was.keys() | now.keys()
        return [d for k in keys for d in differs(was.get(k), now.get(k), exact, f"{at}.{k}")]
    if isinstance(was, list):
        if len(was) != len(now): return [f"{at}: {len(was)} → {len(now)} entries"]
        return [d for i, (a, b) in enumerate(zip(was, now)) for d in differs(a, b, exact, f"{at}[{i}]")]
    same = was == now or (isinstance(was, float) and not exact and math.isclose(was, now, rel_tol=1e-5, abs_tol=1e-6))
    return [] if same else [f"{at}: {was!r} → {now!r}"]

def machine():
    import torch
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"

def keep(record):
    record["machine"] = machine()
    RECORD.write_text(json.dumps(record, indent=0, ensure_ascii=False) + "\n")

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("only", nargs="*", help="prefixes of the cases to look at")
    p.add_argument("--write", action="store_true", help="keep what is found as the record")
    a = p.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"cases": {}}
    import torch
    torch.set_num_threads(1)
    exact, wrong = record.get("machine") == machine(), 0
    with tempfile.TemporaryDirectory() as tmp:
        home = Path(tmp)
        (home/"checkpoints").mkdir()
        (home/"story.txt").write_text(story())
        os.environ["DIFFUSION_LM_HOME"] = tmp
        os.chdir(home)
        sys.path.insert(0, str(ROOT))
        for name, measure in cases(home):
            needed = name.startswith("train") and any(o.split(" ")[0] in ("eval", "sample", "chat") for o in a.only)
            if a.only and not needed and not name.startswith(tuple(a.only)): continue
            now = json.loads(json.dumps(measure()))
            if a.write:
                record["cases"][name] = now
                keep(record)
                print("kept  ", name, flush=True)
                continue
            found = differs(record["cases"].get(name), now, exact)
            wrong += bool(found)
            print("DIFFERS" if found else "same   ", name, *found[:3], sep="\n    " if found else " ", flush=True)
    if wrong: print(f"{wrong} differ")
    else: print(f"kept in {RECORD}" if a.write else "all the same")
    return 1 if wrong else 0

if __name__ == "__main__": sys.exit(main())
