"""The site check refuses what nbdev and Quarto refuse or drop silently, and `make docs` leaves README.md alone."""
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusion_lm.figures import contrast

ROOT = Path(__file__).resolve().parent.parent
CI = ROOT/".ci"

def load(name):
    "A module of .ci, which is no package"
    spec = importlib.util.spec_from_file_location(name, CI/f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

# In this order, because later ones import earlier ones.
llms, check_export, rules = load("llms"), load("check_export"), load("quarto_rules")
storeys, width, own_symbols = load("check_storeys"), load("check_width"), load("own_symbols")
site, built_docs = load("check_site"), load("docs")

PNG = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}, "metadata": {}}
TEXT = {"output_type": "stream", "name": "stdout", "text": "three\n"}
def html(text): return {"output_type": "display_data", "data": {"text/html": text}, "metadata": {}}
def code(source, *outputs, id="a1"):
    return {"cell_type": "code", "id": id, "source": source, "outputs": [*outputs], "metadata": {}}
def md(source): return {"cell_type": "markdown", "id": "b1", "source": source, "metadata": {}}
def found(cell): return [*rules.check_cell(cell, flags=["slow"])]

REFUSED = [  # a cell, and what the check says of it
    (code("#| fig-alt: Left: a line. Right: a dot.\ndraw()", PNG), "is not YAML (mapping values are not allowed here)"),
    (code("#| fig-alt: 'It's a line'\ndraw()", PNG), "is not YAML"),
    (code("#| fig-alt: 2024\ndraw()", PNG), "`fig-alt` is not a text"),
    (code("#| fig-alt:\ndraw()", PNG), "`fig-alt` is not a text"),
    (code('#| fig-alt: "a"\n#| fig-alt: "b"\ndraw()', PNG), "the option `fig-alt` stands there twice"),
    (code('#| figalt: "a line"\n1'), "Quarto knows no option `figalt`"),
    (code("#| hide_input\n1"), "`#| hide_input` is no directive of nbdev"),
    (code('#| fig-alt: "a line"\n#|   and more\ndraw()', PNG), "`#|   and more` is no directive of nbdev"),
    (code('#| fig-alt:\n#|   - "a line"\ndraw()', PNG), "is no directive of nbdev"),
    (code('  #| fig-alt: "a line"\ndraw()', PNG), "is indented"),
    (code('draw()\n#| fig-alt: "a line"', PNG), "stands below code"),
    (code("x = 1 #| hide\n"), "stands below code"),
    (code("# a remark\n#| export\nx = 1"), "stands below code"),
    (code("draw()", PNG), "has a picture without a text"),
    (code('#| fig-alt: ""\ndraw()', PNG), "has a picture without a text"),
    (code('#| fig-alt: "a line"\ndraw(); draw()', PNG, PNG), "has 2 pictures and one fig-alt"),
    (code('#| fig-alt: ["a line"]\nprint(3); draw()', TEXT, PNG), "Quarto takes number 2"),
    (code("show()", html("<img src='a.png'>")), "has an <img> without a text"),
    (code('#| fig-alt: "a line"\nImage("a.png", alt="a line")', PNG), "gives `Image` an alt"),
    (code("x = (7\n     % 4)"), "begins with %"),
    (code("print('{{< meta title >}}')"), "takes for a shortcode"),
    (code("show()", {**TEXT, "text": "{{< meta title >}}"}), "takes for a shortcode"),
    (md("{{< include a.md >}}"), "takes for a shortcode"),
    (md("## To do -"), "off the page"),
    (md("Text.\n\n---\nnote: lost\n---\n\nMore."), "are read as metadata"),
    (md("Text. <!-- to do\n\nMore."), "without its end"),
    (md("::: {.callout-hint}\nDo.\n:::"), "no callout-hint"),
    (md(r"The loss \(x^2\) falls."), "write formulas as"),
    (md("So\n\\[\nx^2\n\\]"), "write formulas as"),
]

@pytest.mark.parametrize("cell,what", REFUSED, ids=[f"{i}-{w[:30]}" for i, (_, w) in enumerate(REFUSED)])
def test_refused(cell, what): assert any(what in w for w in found(cell)), found(cell)

ALLOWED = [
    code("#| default_exp core"), code("#| export\nx = 1"), code("#| exporti\nx = 1"), code("#| hide\n#| slow\nx = 1"),
    code("#| eval: false\nx = 1"), code("x = 1\ny = 2 #| hide_line"), code("#|hide\nx"), code(""),
    code('#| fig-alt: "Left: a line. Right: it\'s a \\"dot\\"."\ndraw()', PNG),
    code("\n#| fig-alt: A line\n\ndraw()", PNG),
    code('#| fig-alt: ["", "a line", "a dot"]\nprint(3); draw(); draw()', TEXT, PNG, PNG),
    code("#| hide\ndraw()", PNG), code("#| include: false\ndraw()", PNG), code("#| output: false\ndraw()", PNG),
    code("show()", html("<img src='a.png' alt='a line'>")), code("#| echo: false\nshow()", html("<b>b</b>")),
    code("%time x = 1"), code("x = '#| hide'"), code("# | a | table |\n"[2:]), code("x = 7 % 4"),
    md("::: {.callout-note}\nDo.\n:::"), md("A regular expression: `\\(a\\)`.\n\n```\n\\(x\\)\n```"),
    md(r"A hole is written \[MASK\]."), md("Well -"),
    md("One\n\n---\n\nTwo\n\n---\n\nThree <!-- to do -->"), md("| a | b |\n|---|---|\n| 1 | 2 |"),
]

@pytest.mark.parametrize("cell", ALLOWED, ids=[c["source"][:30] for c in ALLOWED])
def test_allowed(cell): assert found(cell) == []

def test_a_list_of_texts_counts_as_quarto_does():
    "Text that only names the parts of a plot is no output to Quarto"
    parts = {"output_type": "execute_result", "data": {"text/plain": "[<matplotlib.lines.Line2D>]"}, "metadata": {}}
    assert found(code('#| fig-alt: ["a line"]\ndraw()', parts, PNG)) == []

def pages(**cells):
    "What the check says of a site of made-up pages"
    rendered = {f"{n}.ipynb": site.render({"cells": c}) for n, c in cells.items()}
    made = {n: site.Page(html) for n, (html, _) in rendered.items()}
    said = [c for _, c in rendered.values() if c]
    return said + [w for n, p in made.items() for w in (*site.check_page(p), *site.check_links(n, made))]

def markdown(text): return {"output_type": "display_data", "data": {"text/markdown": text}}

def symbols(*names, id="a1"):
    "What nbdev shows of symbols"
    shown = [markdown(f"### {n}") for n in names]
    return code("#| echo: false\n#| output: asis\nshow_doc(f)", *shown, id=id)

config = site.get_config(cfg_name="settings.ini", path=ROOT)
HOME = f"{config.doc_host}{config.doc_baseurl}"
BAD_PAGES = [
    ([md("# A\n\n## Chat\n"), symbols("Chat")], "2 headings become #chat"),
    ([symbols("Chat"), symbols("Chat", id="a2")], "2 headings become #chat"),
    ([md(f"See [`g`]({HOME}/b.html#g)."), symbols("g")], "though this page has one too"),
    ([md("## a1"), code("x = 1")], "the anchor #a1 is there 2 times"),
    ([code("x = 1"), code("x = 2")], "the anchor #a1 is there 2 times"),
    ([md("::: {.callout-note}\nOpen.")], "left on the page|unclosed|<div>"),
    ([md("Open\n\n:::\n\nshut")], "left on the page"),
    ([md("<details>\n\nMore.")], "<details> has no partner"),
    ([code("show()", html("<div><b>x</div>"))], "<b> has no partner"),
    ([md("Text.[^1]")], "`[^1]` is left"),
    ([md("As in @fig-loss.")], "@fig-loss is read as a citation"),
    ([md("See [@sahoo2024].")], "@sahoo2024 is read as a citation"),
    ([md("See [there](#nowhere).")], "dead link #nowhere: no such heading"),
    ([md("See [there](b.ipynb#nowhere).")], "dead link b.ipynb#nowhere"),
    ([md(f"See [`_f`]({HOME}/b.html#_f).")], "that page shows no such symbol"),
    ([md(f"See [`f`]({HOME}/c.html#f).")], "dead link"),
    ([md(f"See [[`f`]({HOME}/b.html)](b.ipynb).")], "is left on the page"),
    ([code("", markdown(f"```\nf (x: see [`g`]({HOME}/b.html#g))\n```"))], "is left in code"),
    ([md("![](a.png)")], "has no alt text"),
    ([md("![a line](a.png)")], "picture a.png does not exist"),
    ([md("See [there](c.ipynb).")], "dead link c.ipynb"),
]

@pytest.mark.parametrize("cells,what", BAD_PAGES, ids=[f"{i}-{w[:30]}" for i, (_, w) in enumerate(BAD_PAGES)])
def test_bad_pages(cells, what):
    said = pages(a=cells, b=[md("## F"), md("### g")])
    assert any(w in s for s in said for w in what.split("|")), said

def test_a_good_page():
    "Nothing is said of links, formulas, footnotes, blocks and outputs as they should be"
    links = f"See [`g`]({HOME}/b.html#g), [F](b.ipynb#f) and [two](#two).[^1]"
    blocks = "::: {.callout-note}\nDo.\n:::\n\n<details><summary>More</summary>\n\nText.\n\n</details>"
    table = html("<table><tr><td>1<td>2</table><br><svg><path d=''/></svg>")
    cells = [md(f"## One\n\n{links}\n\n[^1]: A note with $x^2$."), md("## G\n\nIs not a symbol."),
             md(f"## Two\n\n{blocks}"), code("#| fig-alt: 'a'\ndraw()", PNG, TEXT, table),
             symbols("Entropy", "entropy", id="a2")]  # a class and a function must share an anchor
    assert pages(a=cells, b=[md("## F"), md("### g")]) == []

def test_options_are_no_part_of_the_page():
    cells = [code("#| fig-alt: 'a'\ndraw()"), code("#| echo: false\nsecret()")]
    text = "\n".join(site.as_markdown({"cells": cells}))
    assert "draw()" in text and "fig-alt" not in text and "secret" not in text

@pytest.mark.parametrize("old,new,what", [
    ("project:", "projects:", "Quarto knows no `projects`"),
    ("  type: website", "  kind: website", "Quarto knows no `kind` in `project`"),
    ("toc: true", "tocs: true", "Quarto knows no `tocs` in `format.html`"),
    ("page-navigation:", "page-navigaton:", "in `website`"),
    ("css: styles.css", "css: style.css", "names style.css, which does not exist"),
    ("    toc: true", "    toc: true\n    toc: false", "`format.html.toc` stands there twice"),
    ("- section: Get started", "- section: Get started\n        section: Again",
     "`website.sidebar.contents.section` stands there twice"),
    ("style: floating", "stile: floating", "in `website.sidebar`"),
    ("- llms.txt", "- llm.txt", "names llm.txt")])
def test_keys_of_the_configuration(old, new, what):
    text = (ROOT/"_quarto.yml").read_text()
    assert [*site.check_keys(text)] == [] and text.count(old) == 1
    assert any(what in w for w in site.check_keys(text.replace(old, new)))

TITLE, FIGURE = md("# A page\n\n> What it promises"), "#| fig-alt: 'a line'\n"
ERROR = {"output_type": "error", "ename": "E", "evalue": "no"}
NOTEBOOKS = [
    ([], "does not begin with `# Title`"),
    ([md("# A page")], "lacks its `> ` promise line"),
    ([md("# A page\n\n> What\n\nMore.")], "text in the title cell"),
    ([code("#| default_exp a"), code("import a\nx = 1")], "cell 2 mixes imports"),
    ([code("1/0", ERROR)], "stored error: E: no"),
    ([code("#| figalt: a\n1")], "cell 1 Quarto knows no option `figalt`"),
    ([code("print('old')", {**TEXT, "text": "new"})], "its output lacks"),
    ([code("print(3)")], "cell 1 prints, and has no output"),
    ([code("x + 1")], "ends with a value"),
    ([code(FIGURE + "plt.show()")], "draws, and has no picture"),
    ([code("def f(): pass", TEXT)], "only defines, and has an output")]

@pytest.mark.parametrize("cells,what", NOTEBOOKS, ids=[w[:30] for _, w in NOTEBOOKS])
def test_bad_notebooks(cells, what):
    nb = {"cells": cells if "title" in what or "Title" in what or "promise" in what else [TITLE, *cells]}
    assert any(what in w for check in (site.check_notebook, site.check_outputs) for w in check(nb))

def test_a_good_notebook():
    nb = {"cells": [TITLE, code("#| default_exp a"), code("import a"),
                    code("print(f'{3} is three')", {**TEXT, "text": "3 is three"}), code(FIGURE + "plt.show()", PNG)]}
    assert [*site.check_notebook(nb), *site.check_outputs(nb)] == []

@pytest.fixture
def small_site(tmp_path, monkeypatch):
    "A made-up site of one page, which nbdev has processed"
    (tmp_path/"nbs").mkdir()
    (tmp_path/"_quarto.yml").write_text("website: {sidebar: {contents: [{section: One, contents: [00_a.ipynb]}]}}")
    (tmp_path/"nbs/_quarto.yml").symlink_to("../_quarto.yml")
    (tmp_path/"nbs/00_a.ipynb").write_text(json.dumps({"cells": [md("Text")]}))
    monkeypatch.setattr(site, "ROOT", tmp_path)
    monkeypatch.setattr(site, "NBS", tmp_path/"nbs")
    monkeypatch.setattr(site, "proc_nbs", lambda **kw: tmp_path/"nbs")
    return tmp_path

def config_of(root, nbs): return [w for _, w in site.check_config({n: {} for n in nbs})]

def test_the_sidebar(small_site):
    assert config_of(small_site, ["00_a.ipynb"]) == []
    assert config_of(small_site, []) == ["the sidebar names 00_a.ipynb, which does not exist"]
    assert config_of(small_site, ["00_a.ipynb", "b.ipynb"]) == ["is not in the sidebar of _quarto.yml"]
    assert "another notebook also becomes a.html" in config_of(small_site, ["00_a.ipynb", "01_a.ipynb"])
    (small_site/"_quarto.yml").write_text("websites: {}\nwebsite: {sidebar: [00_a.ipynb, 00_a.ipynb]}")
    assert config_of(small_site, ["00_a.ipynb"]) == ["Quarto knows no `websites`", "the sidebar names 00_a.ipynb twice"]
    (small_site/"nbs/_quarto.yml").unlink()
    assert "is not a symbolic link to ../_quarto.yml" in config_of(small_site, ["00_a.ipynb"])

def test_pages_are_rendered(small_site, monkeypatch):
    assert [*site.check_pages({"00_a.ipynb": {}})] == []
    (small_site/"nbs/00_a.ipynb").write_text(json.dumps({"cells": [md("[a](#b)[^1]\n\n[^1]: one\n\n[^2]: two\n\n@c")]}))
    said = [what for _, what in site.check_pages({"00_a.ipynb": {}})]
    for what in ("dead link #b", "@c is read", "pandoc: "): assert any(w.startswith(what) for w in said), said
    def broken(**kw): raise ValueError("no")
    monkeypatch.setattr(site, "proc_nbs", broken)
    assert [*site.check_pages({})] == [("nbs", "nbdev could not process the notebooks: no")]

def test_files(small_site):
    "Paths of one machine, and files that are too large"
    home = "/".join(["", "home", "me", "x"])
    cases = [("fine", []), (f"see {home}", [f"names a path of one machine: {home}"]),
             ("a"*(10**6 + 1), ["1.00 MB: more than 1"])]
    for text, what in cases:
        (small_site/"a.txt").write_text(text)
        assert [*site.check_file("a.txt")] == what
    temporary = "/".join(["", "tmp", "y"])
    for text in (f"in {temporary}", ["in ", temporary]):  # as notebooks have it: in one piece or by lines
        (small_site/"a.ipynb").write_text(json.dumps({"cells": [code("x", {**TEXT, "text": text})]}))
        assert [*site.check_file("a.ipynb")] == [f"names a path of one machine: {temporary}"]

def docs(tmp, nbdev_docs, quarto=True):
    "What `make docs` leaves of README.md, with programs that only seem to build: (status, README.md)"
    (tmp/".ci").mkdir()
    for f in ("Makefile", "settings.ini", ".ci/docs.py"): shutil.copy(ROOT/f, tmp/f)
    (tmp/"README.md").write_text("ours")
    os.utime(tmp/"README.md", (1, 1))
    bin = tmp/"bin"
    bin.mkdir()
    (bin/"python").symlink_to(sys.executable)
    for name, text in {"nbdev_docs": nbdev_docs, **({"quarto": "exit 0"} if quarto else {})}.items():
        (bin/name).write_text(f"#!/bin/sh\n{text}\n")
        (bin/name).chmod(0o755)
    run = subprocess.run(["make", "-o", ".venv/.installed-dev", "docs", "BIN=bin"], cwd=tmp,
                         env={**os.environ, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    return run, (tmp/"README.md").read_text()

@pytest.mark.skipif(os.name != "posix" or not shutil.which("make"), reason="needs make and a POSIX shell")
@pytest.mark.parametrize("does,status", [
    ("echo theirs > README.md", 0), ("echo theirs > README.md; exit 3", 2), ("rm README.md; exit 3", 2),
    ("echo theirs > README.md; kill -TERM $PPID; sleep 1", 2)])
def test_docs_leave_the_readme(tmp_path, does, status):
    run, readme = docs(tmp_path, does)
    assert readme == "ours" and run.returncode == status, run.stderr

@pytest.mark.skipif(os.name != "posix" or not shutil.which("make"), reason="needs make and a POSIX shell")
def test_docs_without_quarto(tmp_path):
    run, readme = docs(tmp_path, "echo theirs > README.md", quarto=False)
    assert run.returncode == 2 and "Quarto is not installed" in run.stderr and readme == "ours"

@pytest.mark.skipif(os.name != "posix" or not shutil.which("make"), reason="needs make and a POSIX shell")
def test_nbdev_finds_the_processor_of_links(tmp_path):
    "settings.ini names a module of .ci"
    assert "procs = symbol_links:SymbolLinks" in (ROOT/"settings.ini").read_text()
    run, _ = docs(tmp_path, 'case "$PYTHONPATH" in "$PWD/.ci"*) ;; *) exit 4 ;; esac')
    assert run.returncode == 0, run.stderr

@pytest.mark.skipif(os.name != "posix" or not shutil.which("make"), reason="needs make and a POSIX shell")
def test_nbdev_sees_a_new_readme(tmp_path):
    "README.md is newer than any notebook while nbdev runs, so nbdev leaves it alone"
    run, _ = docs(tmp_path, "touch -d 2020-01-01 old; [ README.md -nt old ]")
    assert run.returncode == 0, run.stderr

@pytest.mark.skipif(os.name != "posix" or not shutil.which("make"), reason="needs make and a POSIX shell")
@pytest.mark.parametrize("does,said", [
    ("echo 'WARN: no such crossref'", "WARN: no such crossref"),
    ("mkdir _docs; echo '<a href=gone.html>' > _docs/index.html", "index.html: dead link gone.html")])
def test_a_built_site_must_be_faultless(tmp_path, does, said):
    run, _ = docs(tmp_path, does)
    assert run.returncode == 2 and said in run.stdout

def test_links_of_a_built_site(tmp_path):
    (tmp_path/"sub").mkdir()
    (tmp_path/"sub/index.html").write_text("<h2 id='one'>One</h2><img src='../no.png'>")
    (tmp_path/"index.html").write_text(
        "<a href='sub/#one'></a><a href='sub/index.html#two'></a><a href='#here'></a><p id='here'><a href='sub/'></a>"
        "<a href='https://site/lib/sub/index.html#one'></a><a href='https://site/lib/gone.html'></a>"
        "<a href='https://elsewhere.org/x'></a><a href='mailto:a@b'></a><a href='#sample=1'></a>")
    assert [*built_docs.dead_links(tmp_path, "https://site/lib/")] == [
        "index.html: dead link sub/index.html#two", "index.html: dead link https://site/lib/gone.html",
        "sub/index.html: dead link ../no.png"]

WIDE = "<p>fine</p><div style='width:600px'>a fixed width</div>"
CUT = "<pre style='overflow:hidden;white-space:pre'>" + "a long line that nobody sees the end of "*4 + "</pre>"
CELLS = "<td>a long cell, and another</td>"*9
SCROLLS = f"<div class='cell-output'><table class='dataframe'><tr>{CELLS}</tr></table></div>"

@pytest.mark.skipif(not width.browser(), reason="there is no Chromium")
def test_pages_on_a_phone():
    found = width.too_wide({"wide": WIDE, "cut": CUT, "scrolls": SCROLLS, "both": SCROLLS + WIDE,
                            "fine": "<p>" + "a word "*200 + "</p>"})
    assert [(kind, text) for kind, _, text in found["wide"]] == [("wide", "div a fixed width")]
    assert [kind for kind, *_ in found["cut"]] == ["cut"]
    assert found["both"] == found["wide"] and found["scrolls"] == found["fine"] == []
    assert [*width.problems({"a": WIDE})] == [
        ("a", "wider than a phone (617 of 390 pixels): div a fixed width")]

def test_without_a_browser(monkeypatch):
    monkeypatch.setattr(width, "browser", lambda: None)
    assert [*width.problems({"a": WIDE})] == []

def test_one_title():
    assert [*site.check_page(site.Page("<h1>Another</h1>"))] == [
        "has a heading of the first level below its title: begin it with ##"]
    assert [*site.check_page(site.Page("<h2>A part</h2>"))] == []

def test_colours_of_the_site():
    "Each ink on each of its papers, in the light and in the dark"
    css = (ROOT/"nbs/styles.css").read_text(encoding="utf-8")
    modes = re.findall(r"^(:root|body\.quarto-dark) \{(.*?)\}", css, re.M | re.S)
    assert [name for name, _ in modes] == [":root", "body.quarto-dark"]
    for _, rules in modes:
        colours = dict(re.findall(r"--([\w-]+): (#\w+)", rules))
        inks = {k: ["code-paper"] for k in colours if k.startswith("code-") and k != "code-paper"}
        inks |= {"ink": ["paper", "box"], "quiet": ["paper", "box"], "link": ["paper", "box", "code-paper"]}
        for ink, papers in inks.items():
            for paper in papers: assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
        assert len(inks) == 9

MODULE = '''
class Box(NamedTuple):
    "A box"
    width: int           # in pixels,
                         # at most 9
    names: tuple["str"] | None = None
    _own: int = 0 # not shown

class Rule(Base):
    "A rule"
    exact = "no" # does it draw?

class Bare: "Nothing"

class Error(ValueError): "A mistake"

@patch
def open(self:Box): return 1

@dataclass(frozen=True)
class Frame:
    "How it is framed"
    names: list = field(default_factory=list)
    # in millimetres,
    # on each side
    border: float = 1e-3
    open: Callable = field(default_factory=lambda: print)

class Door:
    # not about its width
    def __init__(self, width: int, *, glass="clear"): self.width = width

class Gate(Door): "Inherits"

@patch(as_prop=True)
def area(self:Box) -> "int": # in square pixels
    return 1

@patch
def save(
    self:Box,
    path: str | Path, # where to,
                      # and under which name
    keep: bool = False,
    *more,
    # what is written
    # beside it
    extra: float = 1e-3,
    **options, # of the writer
) -> Path: # of the file
    "Write it"

def one(x: int) -> int: ... # of x

async def long(one_name: str = "a default", another_name: str = "another", a_third_name: str = "a third"): ...
'''

SAVE = '''def save(
    path: str | Path, # where to, and under which name
    keep: bool = False,
    *more,
    extra: float = 1e-3, # what is written beside it
    **options, # of the writer
) -> Path # of the file'''

def test_fields_of_classes(tmp_path):
    (tmp_path/"a.py").write_text(MODULE)
    tree, lines = own_symbols.read(tmp_path/"a.py")
    rows = {n.name: [*own_symbols.fields(n, lines)] for n in tree.body if hasattr(n, "bases")}
    assert rows["Box"] == [["`width: int`", "in pixels, at most 9"],
                           ["<code>names: tuple[&#x27;str&#x27;] &#124; None = None</code>", ""]]
    assert rows["Bare"] == rows["Error"] == []
    assert own_symbols.table(rows["Rule"]).splitlines() == [
        "| field | what it is |", "| :--- | :----- |", "| `exact = 'no'` | does it draw? |"]
    assert own_symbols.table([["`a`", ""]]).splitlines() == ["| field |", "| :--- |", "| `a` |"]
    assert own_symbols.record(own_symbols.definition(tree, "Error")) == "class Error(ValueError)"
    assert own_symbols.record(own_symbols.definition(tree, "Frame")) == "@dataclass(frozen=True)\nclass Frame"
    assert rows["Frame"] == [["`names: list = list()`", ""],
                             ["`border: float = 0.001`", "in millimetres, on each side"],
                             ["`open: Callable = print`", ""]]
    assert own_symbols.definition(tree, "Box.open").lineno == 18 and own_symbols.definition(tree, "Rule.open") is None

def test_signatures(tmp_path):
    (tmp_path/"a.py").write_text(MODULE)
    tree, lines = own_symbols.read(tmp_path/"a.py")
    def signature(name): return own_symbols.function(own_symbols.definition(tree, name), lines)
    assert signature("Box.open") == "def open()"
    assert signature("Box.area") == "@property\ndef area() -> int # in square pixels"
    assert signature("Box.save") == SAVE
    assert signature("one") == "def one(\n    x: int, # of x\n) -> int"
    assert signature("long").splitlines() == [
        "def long(", '    one_name: str = "a default",', '    another_name: str = "another",',
        '    a_third_name: str = "a third",', ")"]
    known = own_symbols.classes(tmp_path)
    init, where = own_symbols.init_of(*known["Gate"], known)
    assert own_symbols.called(init, "class Gate", where) == 'class Gate(width: int, *, glass="clear")'
    assert own_symbols.init_of(*known["Rule"], known) is None

def test_a_class_and_its_source(tmp_path, monkeypatch):
    "nbdev's own text of a class, and what becomes of it"
    given = ("[source](https://site/blob/main/lib/other.py#L9){target=x}\n\n### Box\n\n"
             "```python\ndef Box(\n    *args, **kwargs\n):\n```\n\n*A box*")
    (tmp_path/"a.py").write_text(MODULE)
    monkeypatch.setattr(own_symbols, "get_config", lambda: SimpleNamespace(config_path=tmp_path, lib_name="."))
    mend = own_symbols.OwnSymbols(None)
    mend.path = "a.py"
    text = mend.mend(given, "Box")
    assert "/blob/main/a.py#L2)" in text and "class Box(NamedTuple)" in text and "*args" not in text
    assert text.index("*A box*") < text.index("| field |")
    assert mend.mend(given, "Missing") == given
    assert "class Gate(width: int, *" in mend.mend(given.replace("*args, **kwargs", "width:int, *"), "Gate")
    of_bare = given.replace("*args, **kwargs", "nothing:int") # from a class that is not in this package
    assert "nothing:int" in mend.mend(of_bare, "Rule")
