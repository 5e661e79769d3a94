"""Check the site and the repository's housekeeping without Quarto, which is on no package registry.

Each cell is read with the rules of nbdev and Quarto (quarto_rules.py). Then nbdev processes the notebooks as
nbdev_docs does, pandoc renders each page, and this checks the links, anchors and leftover markup. It also looks for
what Quarto accepts: stored errors, outputs that are missing or older than their code, paths of somebody's machine,
and heavy files. Every problem is one line, `file: what is wrong`.
"""
import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import PurePosixPath
from urllib.parse import unquote

import pypandoc
import yaml
from nbdev.config import get_config
from nbdev.doclinks import _nbpath2html, nbglob
from nbdev.serve import proc_nbs

import check_width
import llms
import quarto_rules
from check_export import ROOT, listed_files

NBS = ROOT/"nbs"
MB = 10**6
LIMITS = {"checkpoints/sotu-4m/model.safetensors": 9*MB}  # the one reference model
# Home and scratch folders anywhere; temporary ones in the outputs of notebooks.
HOMES = re.compile(r"(?<![\w.:/+-])/(?:(?:root|work|workspace|mnt|scratch)/\w|(?:home|Users)/\w)[^\s\"'`,;)]*")
TEMPORARY = re.compile(r"(?<![\w.:/+-])/(?:var/)?tmp/\w[^\s\"'`,;)]*")
IMPORTS = (ast.Import, ast.ImportFrom)
DEFINITIONS = (*IMPORTS, ast.FunctionDef, ast.ClassDef)
VALUES = (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.Dict, ast.List, ast.Tuple)


def read_json(path): return json.loads(path.read_text(encoding="utf-8"))


def notebooks():
    "Every page: path below nbs/ → the notebook."
    return {p.relative_to(NBS).as_posix(): read_json(p) for p in sorted(nbglob(NBS, as_path=True))}


source = quarto_rules.source


def strings(o):
    "All texts within a piece of JSON."
    if isinstance(o, str): yield o
    elif isinstance(o, list) and all(isinstance(x, str) for x in o): yield "".join(o)  # a text by lines
    elif isinstance(o, list): yield "\n".join(s for x in o for s in strings(x))
    elif isinstance(o, dict): yield from (s for v in o.values() for s in strings(v))


# Keys of _quarto.yml, as Quarto 1.7 has them: of `project` and `website` it refuses others, of `html` it ignores them.
KEYS = {
    "": "project metadata-files execute format website bibliography",
    "project": "type title render resources output-dir execute-dir lib-dir preview pre-render post-render",
    "execute": "enabled echo eval output warning error include cache freeze daemon",
    "website":
        "title description favicon site-url site-path repo-url repo-branch repo-subdir repo-actions issue-url "
        "reader-mode search navbar sidebar page-navigation back-to-top-navigation bread-crumbs page-footer "
        "body-header body-footer margin-header margin-footer announcement image image-alt open-graph twitter-card "
        "other-links code-links drafts draft-mode",
    "website.navbar":
        "title logo logo-alt logo-href background foreground search pinned collapse collapse-below left right "
        "toggle-position tools tools-collapse",
    "website.sidebar":
        "id title logo logo-alt logo-href search tools contents style background foreground border alignment "
        "collapse-level pinned header footer",
    "format": "html",
    "format.html":
        "theme css toc toc-depth toc-location toc-title toc-expand code-fold code-overflow code-copy "
        "code-line-numbers code-summary code-tools highlight-style respect-user-color-scheme grid "
        "html-math-method smooth-scroll anchor-sections include-in-header include-before-body include-after-body "
        "link-external-icon link-external-newwindow page-layout max-width fontsize linestretch lightbox "
        "fig-cap-location fig-align fig-responsive",
}


def twice(node, path=""):
    "The keys of a YAML text that stand there twice, which Quarto refuses and PyYAML does not."
    if isinstance(node, yaml.SequenceNode): yield from (k for n in node.value for k in twice(n, path))
    if not isinstance(node, yaml.MappingNode): return
    for k, n in Counter(k.value for k, _ in node.value).items():
        if n > 1: yield f"{path}{k}"
    for k, v in node.value: yield from twice(v, f"{path}{k.value}.")


def check_keys(text, here=NBS):
    "Keys that Quarto does not know, and files that are not there."
    config = yaml.safe_load(text)
    for k in twice(yaml.compose(text)): yield f"`{k}` stands there twice"
    for part, known in KEYS.items():
        values = config
        for name in filter(None, part.split(".")): values = values.get(name) if isinstance(values, dict) else None
        keys = {*values} if isinstance(values, dict) else set()
        for k in sorted(keys - {*known.split()}): yield f"Quarto knows no `{k}`" + (f" in `{part}`" if part else "")
    css = config.get("format", {}).get("html", {}).get("css", [])
    for f in [*config.get("project", {}).get("resources", []), *([css] if isinstance(css, str) else css)]:
        if not (here/f).exists(): yield f"names {f}, which does not exist"


def check_config(nbs):
    "The link to _quarto.yml, its keys, the sidebar, and page names."
    link = NBS/"_quarto.yml"
    if not link.is_symlink() or link.resolve() != ROOT/"_quarto.yml":
        yield "nbs/_quarto.yml", "is not a symbolic link to ../_quarto.yml"

    yield from (("_quarto.yml", what) for what in check_keys((ROOT/"_quarto.yml").read_text(encoding="utf-8")))

    def hrefs(o):
        if not o: return []
        if isinstance(o, str): return [o]
        if isinstance(o, list): return [h for x in o for h in hrefs(x)]
        return hrefs(o.get("contents", [])) + ([o["href"]] if "href" in o else [])
    sidebar = Counter(hrefs(yaml.safe_load((ROOT/"_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]))
    for p in sorted(sidebar.keys() - nbs.keys()): yield "_quarto.yml", f"the sidebar names {p}, which does not exist"
    for p in sorted(nbs.keys() - sidebar.keys()): yield f"nbs/{p}", "is not in the sidebar of _quarto.yml"
    for p in (p for p, n in sidebar.items() if n > 1): yield "_quarto.yml", f"the sidebar names {p} twice"

    names = Counter(page_name(p) for p in nbs)
    for p in nbs:
        if names[page_name(p)] > 1: yield f"nbs/{p}", f"another notebook also becomes {page_name(p)}"


def mixes_imports(cell):
    "True if `cell` has an import and other code; nbdev runs such a cell, without its predecessors, to build the page."
    if cell["cell_type"] != "code" or re.search(r"^#\|\s*(export|eval:\s*false)", source(cell), re.M): return False
    try: nodes = [*ast.walk(ast.parse(source(cell)))]
    except SyntaxError: return False  # a magic
    imports = any(isinstance(n, IMPORTS) for n in nodes)
    return imports and any(isinstance(n, (ast.Expr, ast.Assign)) for n in nodes)


def check_notebook(nb):
    "Title, imports apart, no stored errors, cells that nbdev and Quarto read as they are meant."
    first = nb["cells"][0] if nb["cells"] else {"cell_type": "none", "source": ""}
    lines = [l for l in source(first).splitlines() if l.strip()]
    if first["cell_type"] != "markdown" or not lines or not re.match(r"# \S", lines[0]):
        yield "the first cell does not begin with `# Title`"
    elif len(lines) < 2 or not re.match(r"> \S", lines[1]): yield "the title lacks its `> ` promise line"
    elif len(lines) > 2:
        yield "text in the title cell besides `# Title` and one `> ` line: nbdev drops it from the page"
    exports = any("#| default_exp" in source(c) for c in nb["cells"])  # pages without exports are not run
    flags = get_config(cfg_name="settings.ini", path=ROOT).tst_flags.split()
    for i, c in enumerate(nb["cells"]): yield from (f"cell {i} {what}" for what in quarto_rules.check_cell(c, flags))
    for i, c in enumerate(nb["cells"]):
        if exports and mixes_imports(c): yield f"cell {i} mixes imports with other code: give them a cell of their own"
        for o in c.get("outputs", []):
            if o["output_type"] == "error": yield f"stored error: {o['ename']}: {o['evalue']}"


def printing(body):
    "The calls of `print` at the top of a cell that write to its output."
    calls = [s.value for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    for call in calls:
        is_print = isinstance(call.func, ast.Name) and call.func.id == "print"
        if is_print and not any(k.arg == "file" for k in call.keywords): yield call


def pieces(call):
    "The literal texts that a `print` writes, whatever the values between them."
    for a in call.args:
        for part in a.values if isinstance(a, ast.JoinedStr) else [a]:
            is_text = isinstance(part, ast.Constant) and isinstance(part.value, str)
            if is_text and part.value.strip(): yield part.value.strip()


def check_cell_outputs(text, outs):
    "What the outputs of one cell lack, or have in excess, in view of its code."
    try: body = ast.parse(text).body
    except SyntaxError: return  # a magic
    kinds = {k for o in outs for k in o.get("data", {})}
    printed = "".join("".join(o["text"]) for o in outs if o.get("name") == "stdout")
    for call in printing(body):
        missing = next((p for p in pieces(call) if p not in printed), None)
        if missing: yield f"prints {missing[:40]!r}, which its output lacks: execute the notebook again"
        elif call.args and not printed: yield "prints, and has no output: execute the notebook"
    shows = body and isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, VALUES)
    if shows and not text.rstrip().endswith(";") and not kinds:
        yield "ends with a value, and has no output: execute the notebook"
    draws = re.search(r"^#\|\s*fig-alt|^plt\.show\(\)|; plt\.show\(\)\s*$", text, re.M)
    if draws and not any(k.startswith("image/") for k in kinds):
        yield "draws, and has no picture: execute the notebook"
    if outs and body and all(isinstance(s, DEFINITIONS) for s in body):
        yield "only defines, and has an output: execute the notebook again"


def check_outputs(nb):
    """Outputs that are missing, or older than their code as far as that can be seen without running it.

    All statements at the top of a cell have run when it left no error. So a `print` there must have an output with
    its literal texts in it, a value at the end must have one that shows it, and a figure must have a picture.
    """
    for i, c in enumerate(nb["cells"]):
        if c["cell_type"] != "code" or re.search(r"^#\|\s*(eval:\s*false|slow|cuda)", source(c), re.M): continue
        yield from (f"cell {i} {what}" for what in check_cell_outputs(source(c), c.get("outputs", [])))


class Page(HTMLParser):
    "What a rendered page has: anchors, headings, links, pictures, citations, text, code, and tags left open."
    VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
    # Tags that may stay open.
    OPTIONAL = {"p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option", "colgroup"}

    def __init__(self, html):
        super().__init__()
        self.ids, self.cites = Counter(), set()
        self.headings, self.links, self.images = [], [], []
        self.open, self.tags = [], []
        self.text, self.code = "", ""  # text is what stands outside code
        self.titles = 0  # headings of the first level, besides the title, which Quarto writes
        self.feed(html)
        self.open += [t for t, _ in self.tags if t not in self.OPTIONAL]

    def inside(self, *tags): return any(t in tags for t, _ in self.tags)

    def handle_starttag(self, tag, attrs):
        a = {k: v or "" for k, v in attrs}
        of_cell = any("cell" in c for _, c in self.tags)
        if "id" in a and not self.inside("svg", "math"): self.ids[a["id"]] += 1
        if tag == "a" and "href" in a: self.links.append((a["href"], of_cell))
        if tag == "img" and not any("output" in c for _, c in self.tags):
            self.images.append((a.get("src", ""), a.get("alt", "")))
        if re.fullmatch("h[1-6]", tag): self.headings.append(["", of_cell])
        self.titles += tag == "h1"
        self.cites |= {*a.get("data-cites", "").split()}
        if tag not in self.VOID: self.tags.append((tag, a.get("class", "").split()))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID: self.tags.pop()

    def handle_endtag(self, tag):
        at = next((i for i in reversed(range(len(self.tags))) if self.tags[i][0] == tag), None)
        if at is None:
            if tag not in self.VOID: self.open.append("/" + tag)
            return
        self.open += [t for t, _ in self.tags[at + 1:] if t not in self.OPTIONAL]
        del self.tags[at:]

    def handle_data(self, data):
        if self.headings and self.inside("h1", "h2", "h3", "h4", "h5", "h6"): self.headings[-1][0] += data
        if self.inside("pre", "code"): self.code += data
        elif not self.inside("math", "script", "style"): self.text += data


def anchor(heading):
    "The anchor that pandoc gives to a heading, if no other has it."
    text = re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", heading.strip().lower()))
    return re.sub(r"^[^a-z]+", "", text)


def check_page(page):
    "What of a page's own markup was not read as it was meant."
    alike = {}
    for text, of_cell in page.headings: alike.setdefault(anchor(text), []).append(text if of_cell else None)
    for name, texts in alike.items():  # two symbols that differ only in case must share one
        if len(texts) > 1 and (None in texts or len({*texts}) < len(texts)):
            yield f"{len(texts)} headings become #{name}: links reach the first only"
    for name, n in page.ids.items():
        if n > 1: yield f"the anchor #{name} is there {n} times"
    for tag in page.open: yield f"<{tag}> has no partner"
    if page.titles: yield "has a heading of the first level below its title: begin it with ##"
    for key in sorted(page.cites):
        yield f"@{key} is read as a citation or a reference, which this site does not have: put it in backticks"
    for what in sorted({*re.findall(r"\[\^[^\]\s]+\]|^:::+.*$|\]\([^)\s]+\)", page.text, re.M)}):
        yield f"`{what.strip()}` is left on the page as it is"
    for what in sorted({*re.findall(r"\[`[^`]+`\]\(http[^)\s]+\)", page.code)}):
        yield f"`{what}` is left in code as it is: no backticks in the comments of parameters"


def page_name(path): return _nbpath2html(PurePosixPath(path)).as_posix()


def fence(text, kind=""): return f"~~~~~~~~{kind}\n{text}\n~~~~~~~~"


def shown(output):
    "An output of a cell as Markdown: the richest of its texts."
    data = output.get("data", {"text/plain": output.get("text", "")})
    texts = {k: "".join(v) for k, v in data.items() if k.startswith("text/")}
    if "text/html" in texts: return fence(texts["text/html"], "{=html}")
    return texts.get("text/markdown") or fence(texts.get("text/plain", ""))


def as_markdown(nb):
    "One text of all that the page shows, as Quarto also makes it; pandoc's own notebook reader knows less Markdown."
    for c in nb["cells"]:
        if c["cell_type"] == "markdown": yield source(c)
        if c["cell_type"] != "code": continue
        opts = quarto_rules.options(c)
        yield f"::::::::::{{#{c['id']} .cell}}" if c.get("id") else "::::::::::{.cell}"
        if opts.get("echo") is not False: yield fence("\n".join(quarto_rules.partition(source(c))[1]), "python")
        for o in c.get("outputs", []): yield f"::::::::{{.output .cell-output}}\n{shown(o)}\n::::::::"
        yield "::::::::::"


def render(nb):
    "A processed notebook as HTML, and pandoc's complaints."
    text = "\n\n".join(as_markdown(nb))
    run = subprocess.run([pypandoc.get_pandoc_path(), "-f", "markdown", "-t", "html", "--mathml"],
                         input=text, capture_output=True, text=True, encoding="utf-8")
    return run.stdout, " ".join(run.stderr.split())[:300]  # a warning counts, but still leaves a page to check


def check_links(path, pages):
    "Dead links and unexplained or missing pictures on the page of notebook `path`."
    outputs = {page_name(p): p for p in pages}
    cfg = get_config(cfg_name="settings.ini", path=ROOT)
    site = f"{cfg.doc_host}{cfg.doc_baseurl}/"
    own = {anchor(text) for text, of_cell in pages[path].headings if of_cell}  # the symbols of this page
    for href, of_cell in pages[path].links:
        if href.startswith(site):  # nbdev's links of `symbols`
            to, _, symbol = href[len(site):].partition("#")
            if to not in outputs: yield f"dead link {href}"
            elif symbol and symbol not in pages[outputs[to]].ids:
                yield f"dead link {href}: that page shows no such symbol"
            elif not of_cell and outputs[to] != path and symbol in own:
                yield f"the text links {symbol} to {to}, though this page has one too: write it without backticks"
            continue
        if re.match(r"[a-z]+:", href): continue
        target, _, heading = unquote(href).partition("#")
        file = os.path.normpath(PurePosixPath(path).parent/target) if target else path
        page = file if file in pages else outputs.get(file)
        if page is None and (file.startswith("..") or not (NBS/file).is_file()): yield f"dead link {href}"
        elif heading and page and heading not in pages[page].ids: yield f"dead link {href}: no such heading"
    for src, alt in pages[path].images:
        if not alt.strip(): yield f"picture {src[:60]} has no alt text"
        elsewhere = re.match(r"[a-z]+:", src)
        if not elsewhere and not (NBS/PurePosixPath(path).parent/unquote(src)).is_file():
            yield f"picture {src} does not exist"


def check_pages(nbs):
    "Process and render every page, then follow its links."
    try: proc = proc_nbs(force=True, n_workers=2)
    except Exception as e:
        yield "nbs", f"nbdev could not process the notebooks: {' '.join(str(e).split())}"
        return
    pages = {}
    with ThreadPoolExecutor(2) as pool: rendered = [*pool.map(lambda p: render(read_json(proc/p)), nbs)]
    for p, (html, complaint) in zip(nbs, rendered):
        if complaint: yield f"nbs/{p}", f"pandoc: {complaint}"
        pages[p] = Page(html)
    for p in pages: yield from ((f"nbs/{p}", what) for what in (*check_page(pages[p]), *check_links(p, pages)))
    bodies = {p: html for p, (html, _) in zip(nbs, rendered, strict=True)}
    yield from ((f"nbs/{p}", what) for p, what in check_width.problems(bodies))


def check_file(path):
    "Size and machine paths of one file of the repository."
    file = ROOT/path
    if file.is_symlink(): return
    limit = MB//2 if path.endswith(".ipynb") else LIMITS.get(path, MB)
    if file.stat().st_size > limit: yield f"{file.stat().st_size/MB:.2f} MB: more than {limit/MB:g}"
    try: text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError: return
    outputs = ""
    if path.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        outputs = "\n".join(strings([c.get("outputs", []) for c in cells]))
        text = "\n".join(map(source, cells)) + "\n" + outputs
    for m in sorted({*HOMES.findall(text), *TEMPORARY.findall(outputs)}): yield f"names a path of one machine: {m}"


def problems(nbs):
    "All problems of the site and of the repository's files: (file, what is wrong)."
    yield from check_config(nbs)
    for p, nb in nbs.items(): yield from ((f"nbs/{p}", what) for what in (*check_notebook(nb), *check_outputs(nb)))
    yield from check_pages(nbs)
    if what := llms.problem(): yield "nbs/llms.txt", what
    for p in listed_files(): yield from ((p, what) for what in check_file(p))


def main():
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # nbdev's worker processes inherit this: this tree, not an installed copy
    nbs = notebooks()
    found = [*problems(nbs)]
    for file, what in found: print(f"{file}: {what}")
    print("widths on a phone: " + ("checked" if check_width.browser() else "not checked, there is no Chromium"))
    print(f"site check: {len(nbs)} pages, {len(found)} problems")
    return bool(found)


if __name__ == "__main__": sys.exit(main())
