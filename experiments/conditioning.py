"""What is a condition worth, by an encoder and as plain context? The runs behind the results page Conditioning.

    python experiments/conditioning.py pairs FILE   make the pairs of TinyStories, the first sentence of a story and
                                                    what follows, and its training split as plain stories
                                                    → data/conditioning/
    python experiments/conditioning.py list         the arms, and which of them are there
    python experiments/conditioning.py train [NAME …]
                                                    train those that are missing, one after another, on one core
                                                    → records/conditioning/NAME/
    python experiments/conditioning.py score        bits per byte of what follows in all readings, paired by story
                                                    → records/conditioning/scores.json
    python experiments/conditioning.py write [N]    continuations of N stories: BLEU, names kept, the judge's opinion
                                                    → records/conditioning/texts.jsonl, quality.json

A denoiser reads stories. From it go on, with the same pairs in the same number of steps: an encoder and cross-attention
beside the frozen denoiser; the same denoiser that reads the first sentence in its own window, before [SEP]. Of the
first, everything is then trained at a lower rate. The rival of them all is the denoiser as it is, whose window
begins with the first sentence. All are scored on the same tokens: the first `TEXT` that follow the first sentence.
"""
import json
import re
import sys
from dataclasses import asdict

import numpy as np
import torch

from arms import RECORDS, configuration, one_core, recorded, serve, train_and_record
from diffusion_lm.core import UserError
from diffusion_lm.evaluation.metrics import PairWindows, _score_pairs, estimate_ratio
from diffusion_lm.evaluation.quality import Judge, bleu
from diffusion_lm.files import cache_dir, write_json, write_text
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.text.corpus import first_sentence, load_corpus, split
from diffusion_lm.training.callbacks import progress
from pages import relative

PAGE = RECORDS/"conditioning"
TEXT, ROOM = 96, 32      # tokens that are scored, and of a condition
LONG = 420               # a story goes on for so many bytes at least: then no window of `TEXT` tokens is filled up
DRAWS, SEEDS = 8, (0, 1, 2)

def folder(): return cache_dir().parent/"conditioning"
def pairs_file(): return folder()/"pairs.jsonl"
def stories_file(): return folder()/"stories.txt"

def write_pairs(source):
    "A table of the stories that are long enough; and, as plain text, those of them that its split trains on"
    stories = [first_sentence(d.text) for d in load_corpus(source)]
    rows = [{"first": first, "text": rest} for first, rest in stories if len(rest.encode()) >= LONG]
    write_text(pairs_file(), "".join(json.dumps(r) + "\n" for r in rows))
    corpus = load_corpus(pairs_file(), "text", condition="first")
    train = [f"{d.condition} {d.text}" for d, s in zip(corpus, split(corpus), strict=True) if s == 0]
    write_text(stories_file(), "\n<|endoftext|>\n".join(train))
    print(f"{len(rows):,} pairs, {len(train):,} to train on")

# ---- arms ----

PLAIN = {
    "trainer.batch": 16, "trainer.compile": "false", "trainer.eval_every": 250, "trainer.eval_tokens": 16384,
    "trainer.log_every": 50, "trainer.save_every": 250, "trainer.keep": 1, "trainer.test_draws": 1,
    "trainer.test_tokens": 8192, "noise.progress": "none", "trainer.adamw_lr": 10}
BASE = "condition-base"
ENCODER = {
    "model.length": TEXT, "model.condition.like_decoder": "true", "model.condition.length": ROOM}
GENTLE = {"trainer.lr": 1e-3, "trainer.adamw_lr": 1}  # the base's own rates undo what it has learned
KINDS = {  # name → steps, options; of `encoder` and `context`, the best of a few rates after 250 steps
    "encoder": (1000, ENCODER | {"trainer.stage": "condition", "trainer.adamw_lr": 1, "init": BASE}),
    "all": (400, ENCODER | {"trainer.stage": "all"} | GENTLE),
    "context": (1000, {"model.length": TEXT + ROOM, "init": BASE} | GENTLE)}

def name_of(kind, seed): return f"condition-{kind}-s{seed}"

def arms():
    "Name → (options,), the base first"
    size = {"tokenizer.vocab_size": 2048, "model.width": 128, "model.layers": 4, "model.heads": 4}
    out = {BASE: ({"data.path": stories_file(), "trainer.steps": 3000, "model.length": TEXT + ROOM} | size,)}
    pairs = {"data.path": pairs_file(), "data.column": "text", "data.condition": "first"} | size
    for seed in SEEDS:
        for kind, (steps, options) in KINDS.items():
            own = {"trainer.steps": steps, "seed": seed} | options
            if kind == "all": own["init"] = name_of("encoder", seed)
            out[name_of(kind, seed)] = (pairs | own,)
    return out

def train_arm(name, options):
    train_and_record(configuration("demo", PLAIN | options), name, PAGE)

# ---- scores ----

def held_out():
    "The conditions and the texts of the test split, as tokens"
    base = DiffusionLM.from_run(BASE)
    corpus = load_corpus(pairs_file(), "text", condition="first")
    docs = [d for d, s in zip(corpus, split(corpus), strict=True) if s == 2]
    tok = base.tokenizer
    texts = [tok.encode(d.text)[:TEXT] for d in docs]
    whole = [len(t) == TEXT for t in texts]
    docs, texts = ([z for z, w in zip(zs, whole, strict=True) if w] for zs in (docs, texts))
    return docs, [tok.encode(d.condition)[:ROOM - 1] for d in docs], texts

def windows(lm, conditions, texts, joined=()):
    "`PairWindows` of a run, with the conditions where it reads them; `joined` stands between the two in one window"
    x, scored, beside = [], [], None
    if lm.model.room:
        x, scored = np.stack(texts), np.ones((len(texts), TEXT), bool)
        beside = np.full((len(texts), ROOM), lm.model.pad)
        for row, c in zip(beside, conditions, strict=True): row[:len(c)] = c
    else:
        for c, t in zip(conditions, texts, strict=True):
            ids = [*c, *(joined if len(c) else ()), *t]
            x.append(ids + [lm.model.pad]*(TEXT + ROOM - len(ids)))
            scored.append([len(ids) - TEXT <= i < len(ids) for i in range(TEXT + ROOM)])
    x, scored = torch.from_numpy(np.array(x)), torch.from_numpy(np.array(scored))
    return PairWindows(x, scored, None if beside is None else torch.from_numpy(beside))

def readings(lm, conditions, texts):
    "Name → `PairWindows`: given the right condition, another's and none"
    tuned = lm.pairs and not lm.model.room
    joined = [lm.tokenizer.sep] if tuned else ()
    n = len(conditions)
    others = [conditions[(i + n//2) % n] for i in range(n)]
    # without a condition, a run that was tuned to pairs sees [SEP] alone
    nothing = [[lm.tokenizer.sep] if tuned else [] for _ in conditions]
    out = {"right": windows(lm, conditions, texts, joined), "another": windows(lm, others, texts, joined)}
    return out | {"none": windows(lm, nothing, texts)}

def nats_of(lm, w):
    "Nats of each text (n,), with the same masks in all arms"
    nats, _ = _score_pairs(lm.model, w, DRAWS, 32, 0, torch.float32, progress)
    return nats.mean(1)

def by_kind():
    "Kind → the names of its runs that are there"
    kinds = {"base": [BASE]} | {k: [name_of(k, s) for s in SEEDS] for k in KINDS}
    return {k: [n for n in names if recorded(PAGE/n)] for k, names in kinds.items()}

def score():
    "Bits per byte of each kind in each reading, and what is saved against others, paired by story"
    _, conditions, texts = held_out()
    nats, n_bytes = {}, None
    for kind, names in by_kind().items():
        for name in names:
            lm = DiffusionLM.from_run(name, device="cpu")
            n_bytes = np.array([lm.tokenizer.n_bytes[t].sum() for t in texts], float)
            for reading, w in readings(lm, conditions, texts).items():
                nats.setdefault((kind, reading), []).append(nats_of(lm, w))
                print(name, reading, round(nats[kind, reading][-1].sum()/n_bytes.sum()/np.log(2), 4), flush=True)
    nats = {k: np.array(v) for k, v in nats.items()}  # (seeds, stories)
    def bits(v): return asdict(estimate_ratio(v, n_bytes, "bits/byte", "bound", "story", lambda r: r/np.log(2)))
    def change(x, y): return asdict(relative(nats[x], nats[y], by="story"))
    out = {"stories": len(texts), "tokens": TEXT, "draws": DRAWS, "kinds": {}, "changes": {}}
    for (kind, reading), v in nats.items():
        seeds = (v.sum(1)/n_bytes.sum()/np.log(2)).tolist()
        out["kinds"].setdefault(kind, {})[reading] = bits(v) | {"of_seeds": seeds}
    for kind in out["kinds"]:
        out["changes"][f"{kind}: right against none"] = change((kind, "right"), (kind, "none"))
        out["changes"][f"{kind}: another against none"] = change((kind, "another"), (kind, "none"))
    for a, b in (("encoder", "base"), ("all", "context"), ("encoder", "context"), ("context", "base")):
        if {a, b} <= out["kinds"].keys(): out["changes"][f"{a} against {b}"] = change((a, "right"), (b, "right"))
    write_json(PAGE/"scores.json", out)

# ---- texts ----

def continued(lm, doc, seed, scale=0.):
    "What a run writes behind the first sentence of a story"
    length, options = TEXT, dict(sampler="first-hitting", seed=seed, temperature=.8)
    if lm.asks:
        lm = lm.given(doc.condition, scale)
        return lm.generate(length=TEXT + len(lm.before), **options)[0]
    first = len(lm.tokenizer.encode(doc.condition))
    return lm.generate(doc.condition, length=length + first, **options)[0][len(doc.condition):]

_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")

def names_kept(condition, text):
    "The share of the names in a condition that the text repeats; None where there is none"
    names = set(_NAME.findall(condition))
    return sum(n in text for n in names)/len(names) if names else None

def write(n):
    "Continuations of the first n stories by one seed of each kind, and their figures"
    docs, _, texts = held_out()
    docs, texts = docs[:n], texts[:n]
    judge, rows, quality = Judge(), [], {}
    ways = {"base": (BASE, 0.), "context": (name_of("context", 0), 0.), "encoder": (name_of("encoder", 0), 0.),
            "encoder, scale 1": (name_of("encoder", 0), 1.), "all": (name_of("all", 0), 0.),
            "all, scale 1": (name_of("all", 0), 1.)}
    found = {"the story itself": [DiffusionLM.from_run(BASE).tokenizer.decode(t) for t in texts]}
    for way, (name, scale) in ways.items():
        if not recorded(PAGE/name): continue
        lm = DiffusionLM.from_run(name, device="cpu")
        found[way] = [continued(lm, d, f"story {i}", scale) for i, d in enumerate(progress(docs, desc=way))]
    true = found["the story itself"]
    before, _, before_bytes = judge.nats([d.condition for d in docs])
    for way, written in found.items():
        kept = [names_kept(d.condition, t) for d, t in zip(docs, written, strict=True)]
        kept = np.array([k for k in kept if k is not None], float)
        nats, _, size = judge.nats([f"{d.condition} {t.strip()}" for d, t in zip(docs, written, strict=True)])
        judged = estimate_ratio(nats - before, size - before_bytes, "bits/byte", by="story", f=lambda r: r/np.log(2))
        quality[way] = {
            "bleu": None if way == "the story itself" else asdict(bleu(written, true)),
            "names_kept": asdict(estimate_ratio(kept, np.ones(len(kept)), "share", by="story")),
            "judged": asdict(judged)}
        print(way, {k: v and round(v["value"], 3) for k, v in quality[way].items()}, flush=True)
        rows += [{"way": way, "first": d.condition, "text": t} for d, t in list(zip(docs, written, strict=True))[:8]]
    write_json(PAGE/"quality.json", {"stories": len(docs), "ways": quality})
    write_text(PAGE/"texts.jsonl", "".join(json.dumps(r) + "\n" for r in rows))

def main():
    what, *more = sys.argv[1:] or ["list"]
    if what == "pairs" and len(more) == 1: return write_pairs(more[0])
    if what in ("score", "write"): one_core()
    if what == "score": return score()
    if what == "write": return write(int(more[0]) if more else 60)
    todo = arms()
    if not serve(what, {k: v for k, v in todo.items() if not more or k in more}, PAGE,
                 lambda arm: f"{arm[0]['trainer.steps']} steps", train_arm): sys.exit(__doc__)

if __name__ == "__main__":
    try: main()
    except UserError as e: sys.exit(f"conditioning.py: {e}")
