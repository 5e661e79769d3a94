"""Tasks: files in every layout and with every mistake, and datasets in a folder."""
import bz2
import csv
import gzip
import json
import lzma

import numpy as np
import pytest

from diffusion_lm.core import UserError
from diffusion_lm.evaluation.tasks import TASKS, Item, answer_masks, load_items

ROWS = {
    "hellaswag": {"ctx": "A man sits. he", "endings": ["rises.", "flies.", "melts.", "rings."], "label": "2"},
    "mmlu": {"question": "Two and two?", "choices": ["1", "2", "3", "4"], "answer": 3, "subject": "some_sums"},
    "lambada": {"text": "She went down to the sea"},
    "arc-easy": {"question": "What is cold?", "choices": {"text": ["fire", "ice"], "label": ["A", "B"]},
                 "answerKey": "B"},
    "piqa": {"goal": "Open a door.", "sol1": "Push.", "sol2": "Sing.", "label": 0},
}
GOLD = {"hellaswag": " melts.", "mmlu": " D", "lambada": " sea", "arc-easy": " ice", "piqa": " Push."}

def write(path, *rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path

@pytest.mark.parametrize("task", TASKS)
def test_every_task(task, tmp_path):
    item, = load_items(task, write(tmp_path/"a.jsonl", ROWS[task]))
    assert item.choices[item.gold] == GOLD[task] and item.context == item.context.rstrip()
    assert len({c for c in item.choices}) == len(item.choices)

@pytest.mark.parametrize("task", TASKS)
def test_every_missing_field(task, tmp_path):
    "Each field that a reader needs is missed by its name, in the line where it is missing"
    row, names = ROWS[task], TASKS[task].needs.split(", ")
    for name in names:
        path = write(tmp_path/"a.jsonl", row, row, {k: v for k, v in row.items() if k != name})
        with pytest.raises(UserError, match=f"a.jsonl: line 3: there is no '{name}'") as e: load_items(task, path)
        assert "\n" not in str(e.value) and TASKS[task].needs in str(e.value)

@pytest.mark.parametrize("pack, suffix", [(gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz")])
def test_archives(pack, suffix, tmp_path):
    plain = write(tmp_path/"a.jsonl", *[ROWS["piqa"] | {"goal": f"Number {i} – é"} for i in range(5)])
    (tmp_path/f"b.jsonl{suffix}").write_bytes(pack(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n")))
    items = load_items("piqa", plain)
    assert load_items("piqa", tmp_path/f"b.jsonl{suffix}") == items and "Number 4 – é" in items[4].context

def test_other_layouts(tmp_path):
    text = "Roofing: A man sits. he\r\n2\r\nrises.\r\nflies.\r\nmelts.\r\nrings.\r\n"
    (tmp_path/"a.txt.bz2").write_bytes(bz2.compress((text*3).encode()))
    items = load_items("hellaswag", tmp_path/"a.txt.bz2")
    assert len(items) == 3 and items[0].choices[items[0].gold] == " melts."
    row = ROWS["mmlu"]
    with open(tmp_path/"a.csv", "w", newline="") as f:
        questions = ("A \"strange\",\nquestion", "Two and two?")
        csv.writer(f).writerows([q, *row["choices"], "D"] for q in questions)
    items = load_items("mmlu", tmp_path/"a.csv")
    assert [i.gold for i in items] == [3, 3] and 'A "strange",\nquestion' in items[0].context
    own = write(tmp_path/"m.jsonl", {k: v for k, v in row.items() if k != "subject"})
    assert load_items("mmlu", own) == [items[1]]

@pytest.mark.parametrize("task, text, why", [
    ("hellaswag", '{"ctx": "a"}\n', "line 1: there is no 'endings'"),
    ("hellaswag", '\n\n[1]\n', "line 3 is not an object"),
    ("hellaswag", '{"ctx"\n', "line 1 is not JSON"),
    ("hellaswag", '{"ctx": 3, "endings": ["a", "b"], "label": 0}\n', "line 1: 'ctx' must be text, and it is 3"),
    ("hellaswag", '{"ctx": "a", "endings": "ab", "label": 0}\n', "'endings' must be a list"),
    ("hellaswag", '{"ctx": "a", "endings": ["a"], "label": 0}\n', "at least two texts"),
    ("hellaswag", '{"ctx": "a", "endings": ["a", null], "label": 0}\n', "at least two texts"),
    ("hellaswag", '{"ctx": "a", "endings": ["a", "b"], "label": 2}\n', "one of 2 choices, and it is 2"),
    ("hellaswag", '{"ctx": "a", "endings": ["a", "b"], "label": ""}\n', "one of 2 choices, and it is ''"),
    ("mmlu", '{"question": "a", "choices": ["a", "b"], "answer": [1]}\n', "one of 2 choices"),
    ("lambada", '{"text": "one"}\n', "two words"),
    ("arc-easy", '{"question": "a", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}\n', "1 labels"),
    ("arc-easy", '{"question": {"stem": "a", "choices": [{"text": "a"}]}, "answerKey": "A"}\n', "there is no 'label'"),
    ("arc-easy", '{"question": {"stem": "a", "choices": ["a", "b"]}, "answerKey": "A"}\n',
     "there must be an object with 'text', and it is 'a'"),
    ("piqa", '{"goal": "a", "sol1": "b", "sol2": "c", "label": "x"}\n', "one of 2 choices, and it is 'x'"),
    ("piqa", '\n', "has no items"),
])
def test_bad_rows(task, text, why, tmp_path):
    (tmp_path/"bad.jsonl").write_text(text)
    with pytest.raises(UserError) as e: load_items(task, tmp_path/"bad.jsonl")
    said = str(e.value)
    assert why in said and "bad.jsonl" in said and "\n" not in said and len(said) < 400, said

def test_bad_files(tmp_path):
    (tmp_path/"a.txt").write_text("c\n0\na\nb\n")
    with pytest.raises(UserError, match="a.txt: line 1 begins an item that has 4 lines"):
        load_items("hellaswag", tmp_path/"a.txt")
    (tmp_path/"a.csv").write_text("question,A,B,C,D,answer\n")
    with pytest.raises(UserError, match="line 1: 'answer' must name one of 4 choices"):
        load_items("mmlu", tmp_path/"a.csv")
    (tmp_path/"a.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-6])
    with pytest.raises(UserError, match="is damaged"): load_items("piqa", tmp_path/"a.jsonl.gz")
    (tmp_path/"latin.jsonl").write_bytes('{"text": "Käse"}'.encode("latin1"))
    with pytest.raises(UserError, match="is not UTF-8"): load_items("lambada", tmp_path/"latin.jsonl")

def test_a_folder_of_a_dataset(tmp_path):
    "As `datasets` reads it: the split of the task, else the only one"
    for name in ("train", "validation"):
        write(tmp_path/f"{name}.jsonl", *[ROWS["piqa"] | {"goal": f"{name} {i}"} for i in range(4)])
    items = load_items("piqa", tmp_path, 2)
    assert [i.context.split("\n")[0] for i in items] == ["Question: validation 0", "Question: validation 3"]
    with pytest.raises(UserError, match="no split 'test'"): load_items("lambada", tmp_path)
    (tmp_path/"only").mkdir()
    write(tmp_path/"only"/"some.jsonl", *[ROWS["arc-easy"]]*3)
    assert len(load_items("arc-easy", tmp_path/"only")) == 3
    with pytest.raises(UserError, match="row 1: there is no 'sol1'"): load_items("piqa", tmp_path/"only")

def test_the_hub_cannot_be_reached():
    why = "no dataset 'nobody/nothing': neither a file here nor could the hub give it"
    with pytest.raises(UserError, match=why) as e: load_items("piqa", "nobody/nothing")
    assert "\n" not in str(e.value)

def test_items_are_spread(tmp_path):
    path = write(tmp_path/"a.jsonl", *[{"text": f"number {i}"} for i in range(100)])
    numbers = [int(i.choices[0]) for i in load_items("lambada", path, 5)]
    assert numbers == [0, 25, 50, 74, 99] and len(load_items("lambada", path, 1000)) == 100
    assert load_items("lambada", path)[7] == Item("number", [" 7"])

@pytest.mark.parametrize("start, n, size", [(0, 3, None), (5, 6, 4), (4, 4, 4), (3, 30, 16), (2, 9, 1), (7, 1, 8)])
def test_masks_are_unbiased(start, n, size):
    "Over many draws, each token counts once, and every set of k tokens of a block is as frequent as any other"
    draws = [answer_masks(start, n, size, 5, (s,)) for s in range(1500)]
    weight = np.stack([m.weight.sum(0) for m in draws])
    error = weight.std(0)/len(draws)**.5
    assert (abs(weight.mean(0) - 1) <= 4.5*error + 1e-9).all()
    assert all(((m.weight > 0) == m.masked).all() for m in draws)


def questions(folder, n=6):
    "A file of PIQA with words of the run's text"
    rows = [{"goal": f"the {a} sees", "sol1": f"a {a} of paper", "sol2": "the sea", "label": i % 2}
            for i, a in enumerate(("river", "house", "king", "bird", "stone", "road")[:n])]
    return write(folder/"questions.jsonl", *rows)

def test_eval_task(dlm, trained, tmp_path):
    file = questions(tmp_path)
    status, out, err = dlm("eval", "tiny", "--task", "piqa", "--file", file, "--draws", 16, "--json")
    assert status == 0, err
    said = json.loads(out)
    assert said["items"] == 6 and said["chance"] == .5 and said["draws"] == 16 and said["nats"]["kind"] == "bound"
    assert said["acc"].keys() >= {"value", "low", "high", "n", "unit", "kind"} and said["acc"]["by"] == "item"
    again = json.loads(dlm("eval", "tiny", "--task", "piqa", "--file", file, "--draws", 16, "--json")[1])
    assert again["nats"] == said["nats"]
    status, out, err = dlm("eval", "tiny", "--task", "piqa", "--file", file, "--max-items", 3)
    assert status == 0 and "acc_norm: by nats a byte" in out and "3 questions" in out and "128 draws" in out, (out, err)
    assert "answering piqa" in err and "answering" not in out

def test_eval_task_of_an_autoregressive_run(dlm, trained, tmp_path, refused):
    texts = "the river sees a light and the road opens", "the sea "*40
    file = write(tmp_path/"words.jsonl", *[{"text": t} for t in texts])
    status, out, err = dlm("eval", "tiny-ar", "--task", "lambada", "--file", file, "--json")
    assert status == 0, err
    said = json.loads(out)
    assert said["nats"]["kind"] == "exact" and "draws" not in said
    assert said["chance"] is None and said["contexts_cut"] == 1
    out = dlm("eval", "tiny-ar", "--task", "lambada", "--file", file)[1]
    assert "written greedily" in out and "1 of 2 contexts were too long" in out
    assert "exact" in refused("eval", "tiny-ar", "--task", "lambada", "--file", file, "--draws", 9)

@pytest.mark.parametrize("args, why", [
    (["--task", "pika"], "unknown task 'pika'; did you mean 'piqa'"),
    (["--task", ""], "unknown task ''"),
    (["--max-items", 3], "goes with --task"),
    (["--task", "piqa", "--max-items", 0], "max_items must be at least 1"),
    (["--task", "piqa", "--max-tokens", 9], "--max-tokens does not go with --task"),
    (["--task", "piqa", "--likelihood", "bracket"], "--likelihood does not go with --task"),
    (["--task", "piqa", "--style"], "--task does not go with --style"),
    (["--task", "piqa", "--file", "nowhere.jsonl"], "nowhere.jsonl is missing"),
    (["--task", "piqa", "--draws", 0], "at least 1"),
])
def test_bad_task(refused, trained, args, why): assert why in refused("eval", "tiny", *args)

def test_a_bad_line(refused, trained, tmp_path):
    file = questions(tmp_path)
    with open(file, "a") as f: f.write('{"goal": "x", "sol1": "y", "label": 0}\n')
    assert "line 7: there is no 'sol2'" in refused("eval", "tiny", "--task", "piqa", "--file", file)
    long = write(tmp_path/"long.jsonl", {"goal": "x", "sol1": "sea " * 60, "sol2": "y", "label": 0})
    assert "item 1: an answer has" in refused("eval", "tiny", "--task", "piqa", "--file", long)
