"""lm-evaluation-harness with a run as its model: the command, offline, with a task and a file of its own."""
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from diffusion_lm.core import UserError
from diffusion_lm.evaluation.tasks import evaluate_task, load_items
from diffusion_lm.lm import DiffusionLM

needs_lm_eval = pytest.mark.skipif(not find_spec("lm_eval"), reason="lm-eval is not installed")

TASK = r"""task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: '{file}'}}, cache_dir: '{cache}'}}
test_split: test
{more}
"""
CHOICE = r"""output_type: multiple_choice
doc_to_text: "Question: {{goal}}\nAnswer:"
doc_to_target: label
doc_to_choice: "{{[sol1, sol2]}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"""
ROLLING = r"""output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{goal}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]"""
WRITING = r"""output_type: generate_until
doc_to_text: "{{goal}}"
doc_to_target: "{{sol1}}"
generation_kwargs: {until: ["."], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""
PAIRS = [("river", "sea"), ("house", "road"), ("king", "stone"), ("bird", "garden")]
ROWS = [{"goal": f"What does the {a} see{mark}", "sol1": f"the {b}", "sol2": f"a light in the {a}", "label": i % 2}
        for mark in ("?", " now?") for i, (a, b) in enumerate(PAIRS)]

@pytest.fixture
def tasks(tmp_path):
    "A folder with three tasks and their data"
    folder = tmp_path/"tasks"
    folder.mkdir()
    file = folder/"rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    for name, more in (("choice", CHOICE), ("rolling", ROLLING), ("writing", WRITING)):
        (folder/f"{name}.yaml").write_text(TASK.format(name=name, file=file, cache=tmp_path/"cache", more=more))
    return folder

def harness(*args):
    return subprocess.run([sys.executable, "-m", "diffusion_lm.lab.harness", *map(str, args)],
                          capture_output=True, text=True, encoding="utf-8", env=os.environ, timeout=300)

@needs_lm_eval
def test_the_command(trained, tasks, tmp_path):
    p = harness("--model", "diffusion_lm", "--model_args", "run=tiny,draws=16", "--tasks", "choice,rolling,writing",
                "--include_path", tasks, "--output_path", tmp_path/"out", "--device", "cpu")
    assert p.returncode == 0, p.stderr
    found = json.loads(next((tmp_path/"out").rglob("results*.json")).read_text())["results"]
    lm = DiffusionLM.from_run("tiny", trained/"checkpoints")
    own = evaluate_task(lm.model, lm.tokenizer, load_items("piqa", tasks/"rows.jsonl"), draws=16)
    assert found["choice"]["acc,none"] == pytest.approx(own["acc"]["value"])
    assert 0 < found["rolling"]["bits_per_byte,none"] < 20 and found["writing"]["exact_match,none"] == 0

@needs_lm_eval
def test_mistakes(trained, tasks):
    "One line, status 2; every other mistake in `--model_args` is raised in the same way"
    p = harness("--model", "diffusion_lm", "--model_args", "run=tiny-a", "--tasks", "choice", "--include_path", tasks)
    assert p.returncode == 2 and "Traceback" not in p.stderr
    assert p.stderr.splitlines()[-1].startswith("dlm: unknown run 'tiny-a'")
    from diffusion_lm.lab.harness import Harness
    with pytest.raises(UserError, match="draws must be at least 1, got 0"): Harness("tiny", draws="0")

def test_without_lm_eval(home):
    "Nothing but the harness itself needs lm-eval, and it says what to install"
    code = ("import sys; sys.modules['lm_eval'] = None\n"
            "import diffusion_lm.cli, diffusion_lm.evaluation.tasks\n"
            "from diffusion_lm.lab.harness import main; sys.exit(main(['--help']))")
    p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert p.returncode == 2 and p.stderr.strip() == (
        "dlm: the harness needs lm-eval; add it with: pip install 'diffusion_lm[eval]'")
