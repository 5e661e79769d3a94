"""Properties that hold for any input: lossless text, honest splits, exact windows, samplers that keep what is fixed."""
import os
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from conftest import story
from diffusion_lm import files
from diffusion_lm.core import UserError, rng
from diffusion_lm.files import (
    append_jsonl,
    atomic,
    commit_folder,
    damage,
    read_json,
    read_jsonl,
    write_json,
    write_text,
)
from diffusion_lm.models.transformer import BaselineDreamModel, ModelConfig, randomize_
from diffusion_lm.sampling.policies import SAMPLERS
from diffusion_lm.sampling.sampler import denoise, sample
from diffusion_lm.text import corpus as splits
from diffusion_lm.text.corpus import Corpus, Document, cut_pieces, near_duplicates, split
from diffusion_lm.text.store import Loader, eval_windows, token_store
from diffusion_lm.text.tokenizer import SPECIALS, Tokenizer, train_bpe, train_words
from diffusion_lm.theory import schedule
from diffusion_lm.theory.schedule import GRIDS, SCHEDULES, grid, make_schedule, mask_count

# ---- text ----

AWKWARD = [*SPECIALS, "[MASK:3]", "<|endoftext|>", "</s>", "\0", "\ufeff", "\u2028", "\x85", "\r\n", "\r", "\t",
           "  ", "e\u0301", "\u0130", "\ufb01", "\u00e9", "\U0001f469\u200d\U0001f680",
           "\U0001f642", "\u4f60\u597d", "\u0120the", "\u010a", "\u0627\u0644", "\ufffd", "\U0010ffff", "\u200b",
           "'s", "don't", "1234567890", "the river sleeps"]
unicode = st.text(st.characters(exclude_categories=["Cs"]))
texts = st.one_of(unicode, st.lists(st.sampled_from(AWKWARD) | unicode, max_size=8).map("".join),
                  st.integers(0, 99).map(lambda i: story(i, 60)))

@pytest.fixture(scope="module", params=[train_bpe, train_words], ids=["bpe", "word"])
def tok(request): return request.param([story(0, 2000), "".join(AWKWARD)], 320)

@given(texts, texts)
@settings(max_examples=150)
def test_tokenizer_is_lossless(tok, a, b):
    for s, ids in zip((a, b, a + b), tok.encode_batch([a, b, a + b])):
        assert tok.decode(ids) == s and tok.decode(tok.encode(s)) == s
        assert tok.n_bytes[ids].sum() == len(s.encode()) # every byte is counted, once
        assert not set(ids.tolist()) & set(tok.specials) # text cannot forge a special token
        assert ids.dtype == np.int64 and (ids == tok.encode(s)).all()

@given(texts, st.integers(1, 30))
def test_tokenizer_is_lossless_in_pieces(tok, s, size):
    "Long texts are tokenized in pieces, here of a few characters"
    from diffusion_lm.text import tokenizer
    pieces = tokenizer._pieces
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tokenizer, "_pieces", lambda text: pieces(text, size))
        assert "".join(tokenizer._pieces(s)) == s and tok.decode(tok.encode(s)) == s

def test_tokenizer_is_lossless_for_long_texts(tok):
    s = "\u00e9"*1_100_000 + story(3, 1000) # no space where it would be cut
    ids, = tok.encode_batch([s])
    assert tok.decode(ids) == s and tok.n_bytes[ids].sum() == len(s.encode())

def test_tokenizer_survives_its_file(tok, tmp_path):
    tok.save(tmp_path/"tokenizer.json")
    again = Tokenizer.load(tmp_path)
    s = "".join(AWKWARD)
    assert again.fingerprint == tok.fingerprint and (again.encode(s) == tok.encode(s)).all()
    assert again.bytes == tok.bytes

plain = texts.filter(lambda s: "[MASK" not in s)

@given(plain, st.lists(st.tuples(st.integers(1, 40) | st.none(), plain), min_size=1, max_size=5))
def test_template(tok, first, rest):
    "As many masks as were asked for, and all the text between them"
    template = first + "".join(f"[MASK:{n}]{s}" if n else f"[MASK]{s}" for n, s in rest)
    ids, opens = tok.encode_template(template)
    assert (ids == tok.mask).sum() == sum(n or 1 for n, _ in rest) and (ids[opens] == tok.mask).all()
    spaced = np.insert(ids, np.flatnonzero(opens), tok.encode(" ")[0]) # what these holes are bound to begin with
    assert tok.decode(spaced) == first + "".join(s for _, s in rest)

@given(plain)
def test_template_without_holes(tok, s):
    with pytest.raises(UserError, match="nothing to fill"): tok.encode_template(s)

# ---- documents and their splits ----

def name_in(low, high): return next(n for i in range(10**6) if low <= splits._bucket(n := f"doc {i}") < high)

ANCHORS = [name_in(0, 90), name_in(90, 95), name_in(95, 100)] # one name that hashes to each split

@st.composite
def documents(draw, anchors=False):
    """Documents, some of them copies of others, some of them with a passage from another; the name of an original comes
    first in the alphabet, so it decides"""
    n = draw(st.integers(3, 10))
    docs = {(ANCHORS[i] if anchors and i < 3
             else f"{draw(st.integers(0, 999))}-{i}"): story(("doc", i), draw(st.integers(20, 60))) for i in range(n)}
    names = list(docs)
    for k, j in enumerate(draw(st.lists(st.integers(0, n - 1), max_size=4))):
        kind = draw(st.sampled_from(["exact", "part", "case", "touch"]))
        w = docs[names[j]].split()
        docs[f"~copy {k}"] = {"exact": docs[names[j]], "case": docs[names[j]].upper(),
                              "part": " ".join(w[:len(w)*2//3]) + " " + story(("own", k), 30),
                             "touch": " ".join(w[:9]) + " " + story(("own", k), 90)}[kind]
    return [Document(k, v) for k, v in draw(st.permutations(list(docs.items())))]

def corpus(docs): return Corpus("test", docs, files.digest_of(*(d.name + "\0" + d.text for d in docs)))
def splits_of(docs): return dict(zip([d.name for d in docs], split(corpus(docs)).tolist()))

def shingles(text):
    w = re.findall(r"\w+", text.lower())
    return {tuple(w[i:i + 8]) for i in range(len(w) - 7)}

def twins(docs, overlap=.25):
    "Brute force: all pairs that share enough runs of eight words, or all of their text"
    sets = [shingles(d.text) for d in docs]
    return {(i, j): len(sets[i] & sets[j])/min(len(sets[i]), len(sets[j])) for i, j in combinations(range(len(docs)), 2)
            if sets[i] and sets[j] and len(sets[i] & sets[j])/min(len(sets[i]), len(sets[j])) >= overlap}

def distinct(docs):
    "How many groups of documents are left when twins are joined"
    group = list(range(len(docs)))
    for i, j in [*twins(docs), *(p for p in combinations(range(len(docs)), 2) if docs[p[0]].text == docs[p[1]].text)]:
        group = [group[i] if g == group[j] else g for g in group]
    return len(set(group))

@given(documents())
def test_split(docs):
    assume(distinct(docs) >= 3)
    split_of = splits_of(docs)
    assert set(split_of.values()) == {0, 1, 2} # no split is empty
    assert len(split_of) == len(docs) # every document is somewhere
    for i, j in twins(docs): assert split_of[docs[i].name] == split_of[docs[j].name]
    for a, b in combinations(docs, 2):
        if a.text == b.text: assert split_of[a.name] == split_of[b.name]

@given(documents(), st.randoms())
def test_split_does_not_depend_on_the_order(docs, random):
    assume(distinct(docs) >= 3)
    shuffled = random.sample(docs, len(docs))
    assert splits_of(docs) == splits_of(shuffled)

@given(documents(anchors=True), st.integers(1, 20))
def test_split_is_unchanged_by_new_documents(docs, n):
    "Where the hash leaves no split empty"
    before = splits_of(docs)
    assert [before[a] for a in ANCHORS] == [0, 1, 2]
    after = splits_of([*(Document(f"new {i}", story(("new", i), 40)) for i in range(n)), *docs])
    assert {k: after[k] for k in before} == before

@given(documents())
def test_too_few_documents(docs):
    same = [Document(f"{i}", docs[0].text) for i in range(5)]
    with pytest.raises(UserError, match="too short to be split"): split(corpus(same))

small = st.lists(st.sampled_from("a b c".split()), max_size=30).map(" ".join)

@given(st.lists(small | st.integers(0, 5).map(lambda i: story(i, 40)), min_size=1, max_size=8),
       st.sampled_from([.1, .25, .5, 1.]))
def test_near_duplicates(texts, overlap):
    "The pairs, and their shares, of a brute-force count"
    found = {(i, j): s for i, j, s in near_duplicates(texts, overlap)}
    want = twins([Document(str(i), t) for i, t in enumerate(texts)], overlap)
    assert found.keys() == want.keys() and all(abs(found[p] - want[p]) < 1e-12 for p in want)

@given(st.integers(1, 60), st.integers(0, 3))
def test_many_documents_with_one_passage(n, k):
    "More of them than are compared pair by pair"
    passage = story(("passage", k), 40)
    docs = [Document(f"{i}", passage + " " + story(("own", i), 20))
            for i in range(n)] + [Document(f"other {i}", story(("other", i), 40)) for i in range(5)]
    split_of = splits_of(docs)
    assert len({split_of[f"{i}"] for i in range(n)}) == 1

pieces = st.lists(st.sampled_from(["word", "\n\n", "\n", " ", "\u2003", "x"*30, "\U0001f642", ". "]) | unicode,
                  max_size=60).map("".join)

@given(pieces, st.integers(1, 60))
@example("x"*100, 10)
@example(" "*100, 10)
def test_cut_pieces(text, size):
    blocks = list(cut_pieces(text, size))
    assert "".join(blocks) == text and all(blocks)
    assert all(len(b) >= size for b in blocks[:-1])
    assert all(len(b.rstrip()) <= 1.5*size + 2 for b in blocks) # white space that follows a block belongs to it

# ---- windows ----

def ribbon(lengths, other=5):
    "A store whose training split is the numbers from `other` on, in documents of the given lengths; the pad is -1"
    offsets = np.cumsum([0, other, *lengths])
    tokens = np.arange(offsets[-1])
    return SimpleNamespace(tokens=tokens, offsets=offsets, split=lambda s: tokens[offsets[1]:],
                           documents=lambda s: offsets[1:], meta=dict(pad=-1, sep=-2), paired=False)

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)

@given(lengths, st.integers(1, 20), st.integers(0, 2), st.integers(0, 3))
def test_packed_windows(docs, length, seed, epoch):
    "An epoch reads every window once: slices of the split, one after the other, that leave less than two windows out"
    assume(sum(docs) >= length)
    store = ribbon(docs)
    w = Loader(store, length, 4, seed=seed).window
    x = np.stack([w(epoch*w.n + i)[0] for i in range(w.n)])
    assert (np.diff(x, axis=1) == 1).all() # contiguous
    starts = np.sort(x[:, 0])
    assert (np.diff(starts) == length).all() # each once, without a gap
    assert 5 <= starts[0] and x.max() < 5 + sum(docs)
    assert sum(docs) - x.size < 2*length

@given(lengths, st.integers(1, 8), st.integers(1, 6), st.sampled_from(["packed", "streams", "pairs"]),
       st.integers(0, 5), st.data())
def test_rows_do_not_depend_on_the_processes(docs, length, world, layout, step, draw):
    "Rank r of w reads rows r::w of the global batch; sample number n is the same in any batch"
    batch = draw.draw(st.integers(1, 12))
    try: loader = Loader(ribbon(docs), length, batch, seed=3, layout=layout, blocks=draw.draw(st.integers(1, 3)))
    except UserError: assume(False)
    whole, parts = loader.batch(step), [loader.batch(step, r, world) for r in range(min(world, batch))]
    for r, part in enumerate(parts):
        assert part.condition is None # this text has none
        for a, b in zip(whole[:-1], part): assert torch.equal(a[r::world], b)
    again = Loader(ribbon(docs), length, batch, seed=3, layout=layout, blocks=loader.blocks).batch(step) # a new process
    assert all(torch.equal(a, b) for a, b in zip(whole[:-1], again))
    if layout != "streams": # streams give every row of the batch a text of its own
        one = Loader(ribbon(docs), length, 1, seed=3, layout=layout)
        for i in range(batch):
            alone = one.batch(step*batch + i)
            assert torch.equal(alone.x[0], whole.x[i]) and torch.equal(alone.u[0], whole.u[i])

@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 50))
def test_times(batch, blocks, step):
    "One time in each stratum of (0,1] over the global batch"
    t = Loader(ribbon([40]), 4, batch, blocks=blocks).times(step)
    n = batch*blocks
    assert t.shape == (batch, blocks) and (0 < t).all() and (t <= 1).all()
    shifted = np.sort((t.ravel() - t.min())*n)
    assert np.allclose(shifted, np.arange(n))

@given(lengths, st.integers(1, 12), st.integers(1, 4), st.integers(0, 2), st.none() | st.integers(1, 4))
def test_streams(docs, length, batch, epoch, segment):
    "Each row reads on where it stood, or begins a document or a stretch of one, and says so"
    store = ribbon(docs)
    segments = sum(-(-n//length) for n in docs)
    assume(segments >= batch and sum(docs) >= length)
    loader = Loader(store, length, batch, seed=1, layout="streams", segment=segment)
    steps, bounds, seen = segments//batch, set(store.documents("train").tolist()), []
    begins = {a for i, j in zip(store.offsets[1:], store.offsets[2:])
              for a in range(i, j, length*segment)} if segment else bounds
    rows = [[] for _ in range(batch)]
    for step in range(epoch*steps, (epoch + 1)*steps):
        b = loader.batch(step)
        assert (store.offsets[b.document] <= b.x[:, 0].numpy()).all()
        assert (b.x[:, 0].numpy() < store.offsets[b.document + 1]).all()
        for row, x, start in zip(rows, b.x.tolist(), b.start.tolist()): row.append((x, start))
    for row in rows:
        at = None
        for k, (x, start) in enumerate(row):
            real = [v for v in x if v >= 0]
            assert real and x == real + [-1]*(length - len(real)) and real == list(range(real[0], real[-1] + 1))
            assert len(real) == length or real[-1] + 1 in bounds # only the end of a document is padded
            assert start == (k == 0 or real[0] in begins)
            assert real[0] in begins or k == 0 or real[0] == at
            at = real[-1] + 1
            seen += real
    assert len(seen) == len(set(seen)) # nothing twice in an epoch

@given(lengths, st.integers(3, 12), st.integers(0, 2))
def test_pairs(docs, length, epoch):
    store = ribbon(docs)
    assume(max(docs) >= length - 1 and sum(docs) >= length)
    w = Loader(store, length, 2, layout="pairs").window
    bounds = store.documents("train")
    for i in range(w.n):
        x = w(epoch*w.n + i)[0]
        assert len(x) == length and x[length//2] == -2
        rest = np.delete(x, length//2)
        # in one document
        assert (np.diff(rest) == 1).all()
        assert np.searchsorted(bounds, rest[0], "right") == np.searchsorted(bounds, rest[-1], "right")

@given(lengths, st.integers(1, 20))
def test_eval_windows(docs, length):
    "Every token is scored once, in the document that it stands in"
    offsets = np.cumsum([0, *docs])
    x, doc = eval_windows(np.arange(offsets[-1]), offsets, length, -1)
    assert x[x >= 0].tolist() == list(range(offsets[-1])) and ((x.numpy() < 0) == (doc < 0)).all()
    assert Counter(doc[doc >= 0].tolist()) == dict(enumerate(docs))

# ---- stores ----

def docs_of(n, seed=0): return [Document(f"{seed}-{i}", story((seed, i), 50)) for i in range(n)]

@given(st.integers(3, 20), st.integers(0, 3))
@settings(max_examples=20)
def test_store(tok, tmp_path_factory, n, seed):
    "Every document stands in it whole, with [EOS] after it, in the split that `split` gave it"
    docs, cache = docs_of(n, seed), tmp_path_factory.mktemp("cache")
    store = token_store(corpus(docs), tok, cache)
    want, names = dict(zip([d.name for d in docs], split(corpus(docs)))), store.names()
    k = 0
    for i, name in enumerate(splits.SPLITS):
        for a, b in zip(store.documents(name)[:-1], store.documents(name)[1:]):
            text = next(d.text for d in docs if d.name == names[k])
            assert store.tokens[b - 1] == tok.eos and tok.decode(store.tokens[a:b - 1]) == text
            assert want[names[k]] == i and store.n_bytes[k] == len(text.encode())
            k += 1
    assert k == n and not list(cache.glob(".*"))

def test_another_text_or_tokenizer_is_another_store(tok, tmp_path):
    docs = docs_of(5)
    paths = [token_store(corpus(d), t, tmp_path).path for d, t in (
        (docs, tok), (docs, tok), (docs[:4], tok), ([*docs[:4], docs[4]._replace(text=docs[4].text + " ")], tok),
        (docs, train_bpe(["other text"], 300)))]
    assert paths[0] == paths[1] and len(set(paths)) == 4
    assert all((p/"meta.json").exists() for p in paths)

@pytest.mark.parametrize("pid", [1, os.getpid(), 4_000_000], ids=["1", "mine", "none"])
def test_what_a_dead_process_left_does_not_matter(tok, tmp_path, pid):
    "Not even if it had the number of this one: in containers the numbers come again"
    docs = docs_of(5)
    want = token_store(corpus(docs), tok, tmp_path/"other")
    left = tmp_path/f".{want.path.name}.{pid}.tmp"
    left.mkdir()
    (left/"tokens.bin").write_bytes(b"half")
    assert (token_store(corpus(docs), tok, tmp_path).tokens == want.tokens).all()

BUILD = """
import sys, time
from pathlib import Path
from diffusion_lm.text.corpus import DataConfig
from diffusion_lm.text.store import TokenizerConfig, prepare
from diffusion_lm.files import digest
me, cache, book = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
(cache/f"ready{me}").touch()
while not (cache/"go").exists(): time.sleep(.001)
c, tok, store = prepare(DataConfig(book), TokenizerConfig(vocab_size=300), cache)
print(store.path.name, digest(store.path/"tokens.bin"), tok.fingerprint)
"""

def test_two_processes_build_a_store_at_once(tmp_path, book):
    run = [subprocess.Popen([sys.executable, "-c", BUILD, str(i), str(tmp_path), str(book)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(2)]
    while not all((tmp_path/f"ready{i}").exists() for i in range(2)) and None in [p.poll() for p in run]:
        time.sleep(.01)
    (tmp_path/"go").touch()
    (a, ea), (b, eb) = [p.communicate(timeout=240) for p in run]
    assert [p.returncode for p in run] == [0, 0], ea + eb
    assert a == b and not list(tmp_path.glob(".*"))

# ---- schedules, grids and masks ----

powers = st.floats(.2, 5)
ends = st.tuples(st.floats(0, .45), st.floats(.55, 1))

@given(st.sampled_from([*SCHEDULES]), powers, ends)
def test_schedule(name, power, clip):
    s, t = make_schedule(name, power, *clip), torch.linspace(0, 1, 201, dtype=torch.float64)
    m = s.m(t)
    low, high = clip if name == "clipped" else (0, 1)
    assert (m.diff() >= 0).all() and m[0].item() == pytest.approx(low, abs=1e-9)
    assert m[-1].item() == pytest.approx(high, abs=1e-9)
    assert s.proper == (name != "clipped" or clip == (0, 1))
    inner = t[1:-1]
    assert torch.allclose(s.t_of(s.m(inner)), inner, atol=1e-6)
    eps = 1e-5
    slope = (s.m(inner + eps) - s.m(inner - eps))/(2*eps)
    assert torch.allclose(s.w(inner), slope/s.m(inner), rtol=1e-3) # the weight is m'/m

@given(st.sampled_from([*GRIDS]), st.integers(1, 3000))
def test_grid(name, steps):
    g = grid(name, steps)
    assert g.shape == (steps + 1,) and g[0] == 1 and g[-1] == 0 and (np.diff(g) <= 0).all() and np.isfinite(g).all()

@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**31), st.booleans())
def test_mask_count(b, l, seed, ties):
    "Exactly k of the allowed positions, or all of them where there are fewer"
    g = torch.Generator().manual_seed(seed)
    u, ok = torch.rand(b, l, generator=g), torch.rand(b, l, generator=g) < .7
    if ties: u = (u*3).floor()/3
    k = torch.randint(0, l + 2, (b,), generator=g)
    masked = mask_count(k, u, ok)
    assert not (masked & ~ok).any() and torch.equal(masked.sum(1), torch.minimum(k, ok.sum(1)))
    assert torch.equal(mask_count(k.float(), u, ok), masked)

@given(st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_stratified_times(n, u):
    t = schedule.stratified_times(n, u)
    assert t.dtype == torch.float64 and (0 < t).all() and (t <= 1).all()
    assert torch.allclose(t.sort().values.diff()*n, torch.ones(n - 1, dtype=t.dtype))

# ---- sampling ----

V, L = 40, 12

def random_model(causal=False):
    m = BaselineDreamModel(ModelConfig(width=16, heads=2, layers=1, length=L), V, range(5), causal)
    return randomize_(m, std=.5).double().eval() # far from uniform, and not blind to its context

MODEL, CAUSAL = random_model(), random_model(True)
options = st.fixed_dictionaries(dict(steps=st.integers(1, 15), grid_name=st.sampled_from([*GRIDS]),
                                     seed=st.integers(0, 9),
                                     temperature=st.sampled_from([0, .3, 1, 2.5, (1, .2), (0, 2)]),
                                     top_k=st.sampled_from([None, 1, 3, 1000]),
                                     top_p=st.sampled_from([None, .01, .5, 1.]),
                                     repetition=st.sampled_from([1, 1.5, .7])))
blocks = st.sampled_from([{}, {}, {"block": 1}, {"block": 5}, {"block": 5, "cache": "prefix"},
                          {"block": 4, "cache": "dual"}, {"block": 99, "cache": "dual"}])
own = {"remdm": st.fixed_dictionaries({"eta": st.sampled_from([0, .1, 1]),
                                       "kind": st.sampled_from(["cap", "rescale", "loop"])})
       | st.just({"kind": "confidence"}),
       "predictor-corrector": st.fixed_dictionaries({"eta": st.sampled_from([0, .3, 1]),
                                                     "correct": st.integers(0, 3)}),
       "threshold": st.fixed_dictionaries({"tau": st.sampled_from([0, .1, 1])}),
       "factor": st.fixed_dictionaries({"factor": st.sampled_from([.1, 1, 50])}),
       "entropy-bounded": st.fixed_dictionaries({"gamma": st.sampled_from([0, 1, 50])})}
samplers = st.sampled_from([*SAMPLERS]).flatmap(lambda s: st.tuples(st.just(s), own.get(s, st.just({}))))
templates = st.integers(1, 4).flatmap(lambda b: st.lists(st.lists(st.sampled_from([1, 1, 1, *range(3, 12)]),
                                                                  min_size=L, max_size=L), min_size=b,
                                                         max_size=b)).map(torch.tensor)

def check_denoise(model, x, **kw):
    x0, was, frames = x.clone(), x == model.mask, list(denoise(model, x, **kw))
    assert torch.equal(x, x0) # the argument is not changed
    before = x
    forgets = kw.get("sampler") in ("remdm", "predictor-corrector")
    for f in frames: # what is revealed stays, or is masked again
        assert ((f.x == before) | f.new | forgets & was & (f.x == model.mask)).all()
        assert ((before == model.mask) | ~f.new).all()
        before = f.x
    assert not (f.x == model.mask).any() and torch.equal(f.x[~was], x[~was])
    assert not torch.isin(f.x[was], torch.tensor([model.pad, model.mask, model.bos])).any() # which cannot occur
    assert (sum(fr.new.int() for fr in frames) == was).all() or forgets # each once
    return f.x

@given(templates, samplers, options, blocks)
@settings(max_examples=200)
def test_denoise(x, sampler, kw, blocks):
    "Fixed tokens stay, every mask is filled, and a row does not depend on its batch"
    kw |= {"sampler": sampler[0], **sampler[1], **blocks}
    out = check_denoise(MODEL, x, **kw)
    if "block" in blocks and (x[0] == 1).any(): x = torch.cat([x[:1]]*len(x)) # blocks begin where some row is free
    if "block" in blocks: out = sample(MODEL, x, **kw)
    for r in range(len(x)): assert torch.equal(sample(MODEL, x[r:r + 1], rows=[r], **kw), out[r:r + 1])

@given(st.lists(st.integers(0, L), min_size=1, max_size=4), st.sampled_from(["ancestral", "left-to-right"]),
       options, st.integers(0, 99))
@settings(max_examples=60)
def test_denoise_causal(given_tokens, sampler, kw, seed):
    "The same for an autoregressive model, with its cache, for prompts of different lengths"
    x = torch.full((len(given_tokens), L), 1)
    for row, n in zip(x, given_tokens): row[:n] = torch.from_numpy(rng(seed).integers(5, V, n))
    out = check_denoise(CAUSAL, x, sampler=sampler, **kw)
    for r in range(len(x)):
        assert torch.equal(sample(CAUSAL, x[r:r + 1], sampler=sampler, rows=[r], **kw), out[r:r + 1])

@given(templates)
def test_causal_model_refuses_holes(x):
    free = x == 1
    assume((free[:, :-1] & ~free[:, 1:]).any())
    with pytest.raises(UserError, match="infill"): sample(CAUSAL, x)

@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-40, 1e-300])
def test_cold_is_greedy(temperature):
    "A very low temperature is a greedy choice, not an overflow; in float32 too"
    model, x, kw = random_model().float(), torch.full((2, L), 1), dict(sampler="left-to-right", seed=1)
    assert torch.equal(sample(model, x, temperature=temperature, **kw), sample(model, x, temperature=0, **kw))

# ---- files and random numbers ----

keys = st.lists(st.integers(-2**70, 2**70) | st.text(max_size=5) | st.booleans(), max_size=4)

@given(keys, keys)
def test_rng_is_a_function_of_its_key(a, b):
    torch.manual_seed(len(a))
    np.random.seed(len(b)) # nothing else plays a part
    x, y = rng(*a).random(4), rng(*b).random(4)
    assert (rng(*a).random(4) == x).all()
    assert (x == y).all() == (repr(a) == repr(b))

@given(st.integers(0, 2**62))
def test_rng_takes_numpy_numbers(n):
    "An index from an array is the same key as the number that it is"
    assert rng("x", np.int64(n)).random() == rng("x", n).random()

def test_rng_is_the_same_everywhere():
    "Runs are to be repeatable on another machine and another day"
    assert rng(0, "mask", 1).bit_generator.random_raw(2).tolist() == [15310173377132910674, 4996385141568854134]

@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("old", [None, "old"])
def test_atomic(tmp_path, error, old):
    "An exception, at any moment, leaves the old content and no leftovers"
    path = tmp_path/"deep"/"file.txt"
    if old: write_text(path, old)
    with pytest.raises(error):
        with atomic(path) as tmp:
            tmp.write_text("new and hal")
            raise error
    assert [p.name for p in tmp_path.rglob("*.*")] == (["file.txt"] if old else [])
    if old: assert path.read_text() == old

@given(st.binary(max_size=200), st.binary(min_size=1, max_size=200), st.sampled_from(["write", "break", "nothing"]))
def test_commit_folder(tmp_path_factory, a, b, event):
    "Whole and new, or whole and old"
    path = tmp_path_factory.mktemp("c")/"step-1"
    def fill(x, fail=False):
        def f(d):
            (d/"one").write_bytes(x)
            if fail: raise OSError("no space")
            (d/"two").write_bytes(x[::-1])
        return f
    commit_folder(path, fill(a))
    if event == "write": commit_folder(path, fill(b))
    if event == "break":
        with pytest.raises(OSError): commit_folder(path, fill(b, True))
    want = b if event == "write" else a
    assert damage(path) is None and (path/"one").read_bytes() == want and (path/"two").read_bytes() == want[::-1]
    assert [p.name for p in path.parent.iterdir()] == ["step-1"]

def test_flipped_bits_of_a_folder_are_found(tmp_path):
    "Every seventh of them; in its manifest too: whatever it then says, it is no longer believed"
    path = tmp_path/"step-1"
    commit_folder(path, lambda d: [(d/n).write_bytes(bytes(range(40))) for n in ("weights", "state")])
    for f in sorted(path.iterdir()):
        whole = f.read_bytes()
        for bit in range(0, 8*len(whole), 7):
            b = bytearray(whole)
            b[bit//8] ^= 1 << bit % 8
            f.write_bytes(b)
            assert isinstance(damage(path), str), (f.name, bit, bytes(b))
        f.write_bytes(whole[:-2]) # without its last byte, a line feed, the manifest says the same
        assert isinstance(damage(path), str)
        f.write_bytes(whole)
    assert damage(path) is None

json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**60, 2**60)
                           | st.floats(allow_nan=False, allow_infinity=False) | texts,
                           lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=8)

@given(st.lists(st.dictionaries(texts, json_values, max_size=3), max_size=4))
def test_jsonl(tmp_path_factory, records):
    "A record is a line, whatever line separators its texts hold"
    path = tmp_path_factory.mktemp("j")/"log.jsonl"
    path.touch()
    for r in records: append_jsonl(path, r)
    assert read_jsonl(path) == records
    with open(path, "a") as f: f.write('{"half": "a li') # a process died here
    assert read_jsonl(path) == records
    files.trim_jsonl(path, lambda r: True)
    assert read_jsonl(path) == records

@given(json_values)
def test_json_file(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("j")/"x.json"
    write_json(path, {"value": value, "nan": float("nan"), "inf": np.float32("inf"), "n": np.int64(3),
                      "t": torch.tensor(.5)})
    assert read_json(path) == {"value": value, "nan": None, "inf": None, "n": 3, "t": .5}
