"""The checks of style find what they are made for, on made-up notebooks and modules, and let the rest pass."""
import json
import re
import sys
from pathlib import Path

import pytest
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/".ci"))

import check_signatures as signatures  # noqa: E402
import check_spelling as spelling  # noqa: E402
import check_storeys as storeys  # noqa: E402
import symbol_links  # noqa: E402


def code(source): return {"cell_type": "code", "id": "a1", "source": source, "outputs": [], "metadata": {}}
def md(source): return {"cell_type": "markdown", "id": "b1", "source": source, "metadata": {}}
def notebook(*cells): return json.dumps({"cells": [*cells], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


# The tree of a small library: a notebook's path → the module that it exports, and what that imports.
TREE = {
    "00_nano": (None, ""),
    "01_core": ("core", "from . import __version__\nimport math, torch.nn"),
    "text/10_tokenizer": ("text.tokenizer", "from ..core import UserError"),
    "text/11_corpus": ("text.corpus", "from .tokenizer import BPE\nfrom .. import core"),
    "models/30_layers": ("models.layers", "import diffusion_lm.text.corpus as c\nfrom diffusion_lm import core"),
    "90_cli": ("cli", "def main():\n    from diffusion_lm.models.layers import norm\n    from .text import corpus"),
}
IMPORTERS = {"core.py": "01_core", "text/tokenizer.py": "text/10_tokenizer", "text/corpus.py": "text/11_corpus"}


def write(root, tree):
    "Write the notebooks and modules of `tree` below `root`."
    (root/"diffusion_lm").mkdir()
    (root/"diffusion_lm/__init__.py").write_text("from .cli import main")  # exempt, as are these two:
    (root/"diffusion_lm/__main__.py").write_text("from .cli import main")
    (root/"diffusion_lm/_modidx.py").write_text("d = {}")
    (root/"nbs/explanations").mkdir(parents=True)
    (root/"nbs/explanations/why.ipynb").write_text(notebook(md("# Why"), code("from diffusion_lm.cli import main")))
    for path, (module, imports) in tree.items():
        file = root/f"nbs/{path}.ipynb"
        file.parent.mkdir(exist_ok=True)
        file.write_text(notebook(md("# A title"), *([code(f"#| default_exp {module}")] if module else [])))
        if not module: continue
        file = root/"diffusion_lm"/(module.replace(".", "/") + ".py")
        file.parent.mkdir(exist_ok=True)
        (file.parent/"__init__.py").touch()
        file.write_text(f'"A module"\n{imports}\n')
    return root


def renamed(old, new): return {new if path == old else path: value for path, value in TREE.items()}


def importing(path, imports):
    "The tree with further imports in the module of one notebook."
    module, before = TREE[path]
    return {**TREE, path: (module, f"{before}\n{imports}")}


def test_a_sound_tree(tmp_path): assert storeys.problems(write(tmp_path, TREE)) == []


NO_MODULE = "which is no module: import names from the module that defines them"
WRONG = {
    "a higher module of the same package": (
        importing("text/10_tokenizer", "from .corpus import load"),
        ["diffusion_lm/text/tokenizer.py: line 3 imports text.corpus (11): text.tokenizer (10) may only import lower"]),
    "a higher package, absolutely": (
        importing("text/11_corpus", "from diffusion_lm.models.layers import norm"),
        ["diffusion_lm/text/corpus.py: line 4 imports models.layers (30)"]),
    "a module by the name of its package": (
        importing("text/11_corpus", "from ..models import layers"),
        ["diffusion_lm/text/corpus.py: line 4 imports models.layers (30)"]),
    "a plain import": (
        importing("01_core", "import os, diffusion_lm.cli"),
        ["diffusion_lm/core.py: line 4 imports cli (90): core (01) may only import lower"]),
    "inside a function": (
        importing("01_core", "def f():\n    if True:\n        from .text.corpus import load"),
        ["diffusion_lm/core.py: line 6 imports text.corpus (11)"]),
    "a name that the package passes on": (
        importing("90_cli", "from diffusion_lm import DiffusionLM"),
        [f"diffusion_lm/cli.py: line 5 imports DiffusionLM, {NO_MODULE}"]),
    "a name that a sub-package passes on": (
        importing("90_cli", "from .text import BPE"), [f"diffusion_lm/cli.py: line 5 imports text.BPE, {NO_MODULE}"]),
    "a gap": (
        renamed("text/11_corpus", "text/12_corpus"),
        ["nbs/text/12_corpus.ipynb: no notebook has the number 11"]),
    "a storey that does not begin with 0": (
        renamed("models/30_layers", "models/31_layers"),
        ["nbs/models/31_layers.ipynb: no notebook has the number 30"]),
    "a number twice": (
        renamed("text/11_corpus", "text/10_corpus"),
        ["nbs/text/10_tokenizer.ipynb: nbs/text/10_corpus.ipynb has the number 10 too",
         "diffusion_lm/text/corpus.py: line 2 imports text.tokenizer (10): text.corpus (10) may only import lower"]),
    "a number twice, once without a module": (
        {**TREE, "text/11_more": (None, "")},
        ["nbs/text/11_more.ipynb: nbs/text/11_corpus.ipynb has the number 11 too"]),
    "a letter": (
        renamed("text/11_corpus", "text/10a_corpus"),
        ["nbs/text/10a_corpus.ipynb: exports text.corpus, so its name needs two digits and no letter"]),
    "no number": (
        renamed("text/11_corpus", "text/corpus"),
        ["nbs/text/corpus.ipynb: exports text.corpus, so its name needs two digits"]),
    "a wrong folder": (
        renamed("text/11_corpus", "models/11_corpus"),
        ["nbs/models/11_corpus.ipynb: exports text.corpus, so it belongs in nbs/text"]),
    "a folder for a module on top": (
        renamed("01_core", "text/01_core"), ["nbs/text/01_core.ipynb: exports core, so it belongs in nbs/"]),
    "another name": (
        renamed("text/11_corpus", "text/11_reading"),
        ["nbs/text/11_reading.ipynb: exports text.corpus, so its name should be 11_corpus.ipynb"]),
}


@pytest.mark.parametrize("tree,what", WRONG.values(), ids=WRONG)
def test_a_wrong_tree(tmp_path, tree, what):
    found = storeys.problems(write(tmp_path, tree))
    assert len(found) == len(what), found
    assert all(line.startswith(start) for line, start in zip(found, what)), found


def test_a_module_without_a_notebook(tmp_path):
    write(tmp_path, TREE)
    (tmp_path/"diffusion_lm/text/extra.py").write_text("x = 1")
    assert storeys.problems(tmp_path) == ["diffusion_lm/text/extra.py: no notebook exports it, so it has no storey"]


def test_export_check_asks_for_storeys():
    "`make test` reaches the check through check_export.py."
    assert "check_storeys.problems()" in (ROOT/".ci/check_export.py").read_text()


def exported(source): return code(f"#| export\n{source}")


TWO, ONE = "stands on 2 parameters: one parameter a line", "stands on a and on what follows it: one parameter a line"
SIGNATURES = {  # cells, and what is said of the functions in them
    "two in a line": ([exported("def f(a, b): # sizes\n    pass")], [f'f: the comment "sizes" {TWO}']),
    "two in one line of several": (
        [exported("async def f(\n    a, # first\n    *b, c=1, # others\n    **d,\n): pass")],
        [f'f: the comment "others" {TWO}']),
    "the comment of a parameter on what is returned": (
        [exported("def f(a) -> int: # a size\n    return a")], [f'f: the comment "a size" {ONE}']),
    "a comment on the body": ([exported("def f(a): return 2*a # twice")], [f'f: the comment "twice" {ONE}']),
    "methods": (
        [exported("class A:\n    def __init__(self, a, b): # as for B\n        pass\n"
                  "    def f(self, a, b): # too\n        pass")],
        [f'A.__init__: the comment "as for B" {TWO}', f'A.f: the comment "too" {TWO}']),
    "not in __all__": ([code("#| exporti\ndef f(a, b): # sizes\n    pass")], [f'f: the comment "sizes" {TWO}']),
    "backticks": (
        [exported("def f(\n    a, # as for `g`\n    **kw, # for `h`\n) -> int: # of `b`\n    pass")],
        [f"f: backticks in the comment of {name} become raw Markdown" for name in ("a", "kw", "what it returns")]),
    "both": (
        [exported("def f(a) -> int: # as for `g`\n    pass")],
        [f'f: the comment "as for `g`" {ONE}', "f: backticks in the comment of a become raw Markdown"]),
    "what is fine": ([
        exported("def f(\n    self:A, a, # a size\n    b, c, *, d=1,\n) -> int: # another\n    return a # `b`"),
        exported("def f(cls, a): # a size\n    pass\ndef g(a, b): pass\ndef h() -> int: # a size\n    pass"),
        exported("def _f(a, b): # sizes\n    pass\nclass _A:\n    def f(self, a, b): # sizes\n        pass"),
        exported("class A:\n    a: int # `b`\n    def __call__(self, a, b): # sizes\n        pass"),
        exported("def f(a):\n    def g(b, c): # sizes\n        pass"),
        code("def f(a, b): # sizes\n    pass"), md("def f(a, b): # sizes")], []),
}


@pytest.mark.parametrize("cells,what", SIGNATURES.values(), ids=SIGNATURES)
def test_comments_of_parameters(tmp_path, cells, what):
    (tmp_path/"nbs/text").mkdir(parents=True)
    (tmp_path/"nbs/text/10_a.ipynb").write_text(notebook(*cells))
    assert [*signatures.problems(tmp_path)] == [f"nbs/text/10_a.ipynb: {line}" for line in what]


def test_hidden_notebooks_have_no_signatures(tmp_path):
    (tmp_path/"nbs/.ipynb_checkpoints").mkdir(parents=True)
    (tmp_path/"nbs/.ipynb_checkpoints/a.ipynb").write_text(notebook(exported("def f(a, b): # sizes\n    pass")))
    assert [*signatures.problems(tmp_path)] == []


def test_style_asks_for_signatures():
    assert "check_spelling.py && $(BIN)/python .ci/check_signatures.py" in (ROOT/"Makefile").read_text()


MISSPELT = "rec" + "ieve"  # so that this file passes the check
PAGE, LIBRARY = "nbs/text/10_a.ipynb", "tests/a.py"
FOUND = [  # a file, its text, and what is said of it
    ("README.md", f"One\nto {MISSPELT}", f'README.md: line 2: "{MISSPELT}": write receive'),
    (PAGE, notebook(md("# A"), md(f"One\n\nto {MISSPELT}")), f'cell 1 (b1), line 3: "{MISSPELT}"'),
    (PAGE, notebook(code(f"#| export\nx = 1 # to {MISSPELT}")), f'cell 0 (a1), line 2: "{MISSPELT}"'),
    (PAGE, notebook(code(f"%time x\n'we {MISSPELT} a letter'")), f'cell 0 (a1), line 2: "{MISSPELT}"'),
    (LIBRARY, f'def f():\n    """One.\n\n    We {MISSPELT} two."""', f'tests/a.py: line 4: "{MISSPELT}"'),
    (LIBRARY, f'f"{{x}} we {MISSPELT} a letter"', f'line 1: "{MISSPELT}"'),
    (".github/workflows/a.yml", f"on: push # to {MISSPELT}", f'line 1: "{MISSPELT}"'),
    ("README.md", "The loss is " + "no bound.", "write is not a bound"),
    ("README.md", "What looks like a hole and is " + "none.", "write is not one"),
    ("README.md", "Exact and " + "dear.", "write expensive"),
    ("README.md", "Who" + "ever reads this", "write a user who"),
    ("README.md", "every so-" + "manieth token", "write every n-th"),
    ("README.md", "they are deal" + "t to rows", "write shuffled"),
    ("README.md", "The col" + "our of the col" + "or", "British"),
    (LIBRARY, "x = 1 # this is " + "no bound", "write is not a bound"),
    ("README.md", "it costs ." + "5 % more", '".5": write 0.5'),
    ("README.md", "between ." + "05 and 1", '".05": write 0.05'),
    (LIBRARY, "x = 1 # it costs ." + "5 % more", 'write 0.5 %'),
]


def with_output(cell, text): return {**cell, "outputs": [{"output_type": "stream", "name": "stdout", "text": text}]}


FINE = [
    ("README.md", f"`{MISSPELT}`\n\n```\n{MISSPELT}\n```\n\n$x_{MISSPELT}$ [one]({MISSPELT}.md) <b {MISSPELT}>"),
    ("README.md", "There is none. It is dealt with. Version 2.5 of file.5 costs 0.5 %, or more …"),
    ("README.md", "Colour, neighbour, optimizer, `color`; user-color-scheme"),  # codespell:ignore
    (PAGE, notebook(with_output(code("x"), f"{MISSPELT} .5 %"))),
    (PAGE, notebook(code(f"{MISSPELT} = 1\nx = '{MISSPELT}', b'we {MISSPELT} a letter'"))),
    (PAGE, notebook(code(f"%%bash\n!echo we {MISSPELT}"))),
    (LIBRARY, f"f'we have {{{MISSPELT}:.0%}} of {{x if y else f\"{{z}}\"}} letters'"),
    (LIBRARY, f"x = r'we {MISSPELT} a letter'; y = 'one|{MISSPELT}|or two or three'"),
    (LIBRARY, "x = .5 # .5 at most; '{:.0%} of all the letters'"),
    (LIBRARY, "'a dear friend of the book' # data, codespell:ignore"),
    ("README.md", f"we {MISSPELT} <!-- codespell:ignore -->"),
]


@pytest.fixture(scope="module")
def said():
    "What the check says of all these files, in one go: codespell reads a large dictionary first."
    files = {f"found{i}/{path}": text for i, (path, text, _) in enumerate(FOUND)}
    files |= {f"fine{i}/{path}": text for i, (path, text) in enumerate(FINE)}
    return spelling.findings(files)


@pytest.mark.parametrize("i,what", [*enumerate(what for *_, what in FOUND)])
def test_spelling_is_found(said, i, what):
    found = [line for line in said if line.startswith(f"found{i}/{FOUND[i][0]}: ")]
    assert len(found) == 1 and what in found[0], found


def test_the_rest_passes(said): assert [line for line in said if not line.startswith("found")] == []


def test_what_is_left_of_code_keeps_its_place():
    source = 'x = 1  # a remark\nprint("three words here", y)\n"""A text\n of two lines."""\n'
    kept = spelling.python(source)
    assert [len(line) for line in kept.split("\n")] == [len(line) for line in source.split("\n")]
    assert kept.split("\n")[0] == "       # a remark" and '"three words here"' in kept and "print" not in kept
    assert [m.start() for m in re.finditer("remark|three|lines", kept)] == \
           [m.start() for m in re.finditer("remark|three|lines", source)]


def test_files_that_are_read():
    files = [p for p in spelling.listed_files() if spelling.is_read(p)]
    for path in ("README.md", "CONTRIBUTING.md", "Makefile", ".github/workflows/test.yml", "tests/test_checks.py",
                 "diffusion_lm/__main__.py", "nbs/index.ipynb"):
        assert path in files
    assert "nbs/_quarto.yml" not in files  # a link
    assert not any(p.startswith("checkpoints/") and not p.endswith(".md") for p in files)
    assert {p for p in files if p.startswith("diffusion_lm/") and p.endswith(".py")} <= {
        p for p in files if Path(p).name in ("__init__.py", "__main__.py")}  # the others are checked as notebooks


SITE = "https://site/lib/"
INDEX = {  # of nbdev: module → symbol → (link, source)
    "lib.deploy.runtime": {"lib.deploy.runtime.draw": (f"{SITE}deploy/runtime.html#draw", "")},
    "lib.empty": {},
    "lib.sampling.policies": {"lib.sampling.policies.draw": (f"{SITE}sampling/policies.html#draw", ""),
                              "lib.sampling.policies.Policy.init": (f"{SITE}sampling/policies.html#policy.init", "")},
}
PAGES = ["index.html", "sampling/policies.html", "deploy/runtime.html"]


@pytest.mark.parametrize("own,page", [("index.html", "sampling/policies"), ("deploy/runtime.html", "deploy/runtime"),
                                      ("elsewhere.html", "sampling/policies")])
def test_a_symbol_of_several_modules(own, page):
    links = symbol_links.choose(INDEX, [own, *PAGES], SITE)
    assert links["draw"] == (f"{SITE}{page}.html#draw", "")
    assert links["Policy.init"][0].endswith("#policy.init")


def test_a_module_that_is_not_in_the_sidebar():
    assert symbol_links.choose(INDEX, ["deploy/runtime.html"], SITE)["draw"][0].startswith(f"{SITE}deploy")


@pytest.mark.parametrize("own,line,linked", [
    ("index.ipynb", "the samplers `margin` and `entropy`", False),
    ("theory/24_likelihood.ipynb", "`entropy` of a row", True),  # its own
    ("index.ipynb", "| [41 sampler](sampling/41_sampler.ipynb) | `denoise` |", True),
    ("results/samplers.ipynb", "In the [loop](../sampling/41_sampler.ipynb#blocks), `denoise` goes on.", True),
    ("results/samplers.ipynb", "In the [loop](sampling/41_sampler.ipynb), `denoise` goes on.", False),  # another folder
    ("results/samplers.ipynb", "`make_model` and `Denoiser` are nothing else.", True)])
def test_a_plain_word_is_a_link_where_its_page_is_named(own, line, linked):
    cfg = get_config(cfg_name="settings.ini", path=ROOT)
    site = f"{cfg.doc_host}{cfg.doc_baseurl}/"
    lookup = symbol_links.Lookup(own, symbol_links.sidebar(ROOT/"_quarto.yml"), cfg.lib_name, site)
    assert (f"]({site}" in lookup.link_line(line)) is linked


def test_pages_of_the_sidebar():
    pages = symbol_links.sidebar(ROOT/"_quarto.yml")
    assert pages[0] == "index.html" and len(pages) > 40 and not any(re.search(r"\d\d_|ipynb", p) for p in pages)
