"""What results pages share: where the records are, figures with their intervals, and the box with the answer."""
from pathlib import Path

from IPython.display import Markdown

from diffusion_lm.evaluation.metrics import estimate_ratio
from diffusion_lm.files import read_json, read_jsonl

RECORDS = Path(__file__).parent/"records"

def read(name):
    "A record by its path below `records/`: `.json` gives what it holds, `.jsonl` a list"
    return (read_jsonl if name.endswith(".jsonl") else read_json)(RECORDS/name)

def relative(x, y, by="document"):
    "Relative change from y to x, an `Estimate`: nats of each unit (units,) or of each seed and unit (seeds,units)"
    return estimate_ratio(x, y, "change", by=by, f=lambda r: r - 1)

def percent_range(e, sign=1, digits=2):
    "The interval of a relative change; with sign -1 that of what is saved"
    low, high = sorted((sign*e.low, sign*e.high))
    return f"{low:+.{digits}%} to {high:+.{digits}%}"

def with_interval(e, f=".2f"):
    "A figure and its interval, if it has one: of an `Estimate`, or of the record of one"
    e = e if isinstance(e, dict) else vars(e)
    interval = "" if e["low"] is None else f" [{e['low']:{f}}, {e['high']:{f}}]"
    return f"{e['value']:{f}}{interval}"

def percent(e, sign=1, digits=2):
    "A relative change and its interval"
    low, high = sorted((sign*e.low, sign*e.high))
    return f"{sign*e.value:+.{digits}%} [{low:+.{digits}%}, {high:+.{digits}%}]"

def verdict(low, high, goal):
    "Whether a goal is met by the whole interval, missed by all of it, or open"
    if low >= goal: return "met"
    return "missed" if high < goal else "open"

def answer(text):
    "What a page has found, in a box: Markdown"
    return Markdown(f'<div class="answer">\n\n{text.strip()}\n\n</div>')
