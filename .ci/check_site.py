"""Check the site and the repository's housekeeping without Quarto, which is on no package registry.

nbdev processes the notebooks just as nbdev_docs does, then pandoc renders each page and the links of the
result are followed. Besides, this reads what Quarto would not mind: stored errors, outputs that are missing or
older than their code, pictures without a text, paths of somebody's machine, heavy files. Every problem is one line, `file: what is wrong`.
"""
import ast, json, os, re, subprocess, sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pypandoc, yaml
from nbdev.config import get_config
from nbdev.doclinks import _nbpath2html, nbglob
from nbdev.serve import proc_nbs

import llms
from check_export import ROOT, listed_files

NBS = ROOT/"nbs"
MB = 10**6
LIMITS = {"checkpoints/sotu-4m/model.safetensors": 9*MB}  # the one reference model
# Home and scratch folders anywhere; temporary ones in the outputs of notebooks.
HOMES = re.compile(r"(?<![\w.:/+-])/(?:(?:root|work|workspace|mnt|scratch)/\w|(?:home|Users)/\w)[^\s\"'`,;)]*")
TEMPORARY = re.compile(r"(?<![\w.:/+-])/(?:var/)?tmp/\w[^\s\"'`,;)]*")


def notebooks():
    "Every page: path below nbs/ → the notebook."
    return {p.relative_to(NBS).as_posix(): json.loads(p.read_text(encoding="utf-8")) for p in sorted(nbglob(NBS, as_path=True))}


def source(cell): return "".join(cell["source"])


def strings(o):
    "All texts within a piece of JSON."
    if isinstance(o, str): yield o
    elif isinstance(o, list): yield "".join(o) if all(isinstance(x, str) for x in o) else "\n".join(s for x in o for s in strings(x))
    elif isinstance(o, dict): yield from (s for v in o.values() for s in strings(v))


def check_config(nbs):
    "The link to _quarto.yml, the sidebar, and page names."
    link = NBS/"_quarto.yml"
    if not link.is_symlink() or link.resolve() != ROOT/"_quarto.yml":
        yield "nbs/_quarto.yml", "is not a symbolic link to ../_quarto.yml"

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
    return all(any(isinstance(n, kinds) for n in nodes) for kinds in ((ast.Import, ast.ImportFrom), (ast.Expr, ast.Assign)))


def check_notebook(nb):
    "Title, imports apart, no stored errors."
    first = nb["cells"][0] if nb["cells"] else {"cell_type": "none", "source": ""}
    lines = [l for l in source(first).splitlines() if l.strip()]
    if first["cell_type"] != "markdown" or not lines or not re.match(r"# \S", lines[0]):
        yield "the first cell does not begin with `# Title`"
    elif len(lines) < 2 or not re.match(r"> \S", lines[1]): yield "the title lacks its `> ` promise line"
    elif len(lines) > 2: yield "text in the title cell besides `# Title` and one `> ` line: nbdev drops it from the page"
    exports = any("#| default_exp" in source(c) for c in nb["cells"])  # pages without exports are not run
    for i, c in enumerate(nb["cells"]):
        if exports and mixes_imports(c): yield f"cell {i} mixes imports with other code: give them a cell of their own"
        for o in c.get("outputs", []):
            if o["output_type"] == "error": yield f"stored error: {o['ename']}: {o['evalue']}"


def pieces(call):
    "The literal texts that a `print` writes, whatever the values between them."
    for a in call.args:
        for part in a.values if isinstance(a, ast.JoinedStr) else [a]:
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.strip(): yield part.value.strip()


def check_outputs(nb):
    """Outputs that are missing, or older than their code as far as that can be seen without running it.

    Statements at the top of a cell have run, one and all, when it left no error: so a `print` there must have an
    output with its literal texts in it, a value at the end one that shows it, a figure one with a picture.
    """
    for i, c in enumerate(nb["cells"]):
        if c["cell_type"] != "code" or re.search(r"^#\|\s*(eval:\s*false|slow|cuda)", source(c), re.M): continue
        try: body = ast.parse(source(c)).body
        except SyntaxError: continue  # a magic
        outs = c.get("outputs", [])
        kinds = {k for o in outs for k in o.get("data", {})}
        printed = "".join("".join(o["text"]) for o in outs if o.get("name") == "stdout")
        calls = [s.value for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
        for call in (v for v in calls if isinstance(v.func, ast.Name) and v.func.id == "print" and not any(k.arg == "file" for k in v.keywords)):
            for p in pieces(call):
                if p not in printed: yield f"cell {i} prints {p[:40]!r}, which its output lacks: execute the notebook again"; break
            else:
                if call.args and not printed: yield f"cell {i} prints, and has no output: execute the notebook"
        shows = body and isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.Dict, ast.List, ast.Tuple))
        if shows and not source(c).rstrip().endswith(";") and not kinds: yield f"cell {i} ends with a value, and has no output: execute the notebook"
        if re.search(r"^#\|\s*fig-alt|^plt\.show\(\)|; plt\.show\(\)\s*$", source(c), re.M) and not any(k.startswith("image/") for k in kinds): yield f"cell {i} draws, and has no picture: execute the notebook"
        if outs and body and all(isinstance(s, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)) for s in body): yield f"cell {i} only defines, and has an output: execute the notebook again"


class Page(HTMLParser):
    "The anchors of a rendered page, and the links and pictures that its author wrote."
    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.images, self.divs = set(), [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        a = {k: v or "" for k, v in attrs}
        if "id" in a: self.ids.add(a["id"])
        if tag == "div": self.divs.append("output" in a.get("class", "").split())
        if tag == "a" and "href" in a: self.links.append(a["href"])
        if tag == "img" and not any(self.divs): self.images.append((a.get("src", ""), a.get("alt", "")))

    def handle_endtag(self, tag):
        if tag == "div" and self.divs: self.divs.pop()


def page_name(path): return _nbpath2html(PurePosixPath(path)).as_posix()


def as_markdown(nb):
    "One text of all that the page shows, as Quarto also makes it; pandoc's own notebook reader knows less Markdown."
    def fence(text, kind=""): return f"~~~~~~~~{kind}\n{text}\n~~~~~~~~"
    for c in nb["cells"]:
        if c["cell_type"] == "markdown": yield source(c)
        if c["cell_type"] == "code": yield fence(source(c), "python")
        for o in c.get("outputs", []):
            data = {k: "".join(v) for k, v in o.get("data", {"text/plain": o.get("text", "")}).items() if k.startswith("text/")}
            if "text/html" in data: shown = fence(data["text/html"], "{=html}")
            else: shown = data.get("text/markdown") or fence(data.get("text/plain", ""))
            yield f"::::::::{{.output}}\n{shown}\n::::::::"


def render(path):
    "A processed notebook as HTML, and pandoc's complaints."
    text = "\n\n".join(as_markdown(json.loads(path.read_text(encoding="utf-8"))))
    run = subprocess.run([pypandoc.get_pandoc_path(), "-f", "markdown", "-t", "html", "--mathml"],
                         input=text, capture_output=True, text=True, encoding="utf-8")
    return run.stdout, " ".join(run.stderr.split())[:300]  # a warning counts, but still leaves a page to check


def check_links(path, pages):
    "Dead links and unexplained or missing pictures on the page of notebook `path`."
    outputs = {page_name(p): p for p in pages}
    cfg = get_config()
    site = f"{cfg.doc_host}{cfg.doc_baseurl}/"
    for href in pages[path].links:
        if href.startswith(site):  # nbdev's links of `symbols`: not each has an anchor of its own
            if href[len(site):].split("#")[0] not in outputs: yield f"dead link {href}"
            continue
        if re.match(r"[a-z]+:", href): continue
        target, _, anchor = unquote(href).partition("#")
        file = os.path.normpath(PurePosixPath(path).parent/target) if target else path
        page = file if file in pages else outputs.get(file)
        if page is None and (file.startswith("..") or not (NBS/file).is_file()): yield f"dead link {href}"
        elif anchor and page and anchor not in pages[page].ids: yield f"dead link {href}: no such heading"
    for src, alt in pages[path].images:
        if not alt.strip(): yield f"picture {src[:60]} has no alt text"
        if not re.match(r"[a-z]+:", src) and not (NBS/PurePosixPath(path).parent/unquote(src)).is_file(): yield f"picture {src} does not exist"


def check_pages(nbs):
    "Process and render every page, then follow its links."
    try: proc = proc_nbs(force=True, n_workers=2)
    except Exception as e:
        yield "nbs", f"nbdev could not process the notebooks: {' '.join(str(e).split())}"
        return
    pages = {}
    with ThreadPoolExecutor(2) as pool: rendered = [*pool.map(lambda p: render(proc/p), nbs)]
    for p, (html, complaint) in zip(nbs, rendered):
        if complaint: yield f"nbs/{p}", f"pandoc: {complaint}"
        pages[p] = Page(html)
    for p in pages: yield from ((f"nbs/{p}", what) for what in check_links(p, pages))


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


def main():
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # nbdev's worker processes inherit this: this tree, not an installed copy
    nbs = notebooks()
    found = [*check_config(nbs), *((f"nbs/{p}", w) for p, nb in nbs.items() for check in (check_notebook, check_outputs) for w in check(nb)),
             *check_pages(nbs), *(("nbs/llms.txt", w) for w in [llms.problem()] if w), *((p, w) for p in listed_files() for w in check_file(p))]
    for file, what in found: print(f"{file}: {what}")
    print(f"site check: {len(nbs)} pages, {len(found)} problems")
    return bool(found)


if __name__ == "__main__": sys.exit(main())
