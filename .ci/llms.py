"""Write nbs/llms.txt, the site's table of contents for language models, from the notebooks' titles and promise lines.

The sections and their order are those of the sidebar. With --check only tell whether the file is up to date
(the site check does that as well), so it cannot go stale.
"""
import json
import re
import sys
from pathlib import Path, PurePosixPath

import yaml
from nbdev.config import get_config
from nbdev.doclinks import _nbpath2html

ROOT = Path(__file__).resolve().parent.parent
NBS, FILE = ROOT/"nbs", ROOT/"nbs/llms.txt"


INTRODUCTION = """Every page is an executed Jupyter notebook. Reference pages define a module each and test it; \
explanations, tutorials and results export nothing."""


def heading(path):
    "Title and promise of a notebook."
    first = json.loads((NBS/path).read_text(encoding="utf-8"))["cells"][0]
    lines = [l for l in "".join(first["source"]).splitlines() if l.strip()]
    return lines[0].removeprefix("# ").strip(), lines[1].removeprefix("> ").strip()


def render():
    "The text that nbs/llms.txt should have."
    cfg = get_config(cfg_name="settings.ini", path=ROOT)
    sections = yaml.safe_load((ROOT/"_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    title, promise = heading("index.ipynb")
    lines = [f"# {title}", "", f"> {promise}", "", INTRODUCTION]
    for name, pages in parts(sections):
        lines += ["", f"## {name}", ""]
        for path in pages:
            name, promise = heading(path)
            page = _nbpath2html(PurePosixPath(path)).as_posix()
            lines.append(f"- [{name}]({cfg.doc_host}{cfg.doc_baseurl}/{page}): {plain(promise)}")
    return "\n".join(lines) + "\n"


def parts(sections, within=""):
    "Each part of the sidebar that holds pages: its name, with that of the part that it is in, and its pages."
    for s in sections:
        name = within + s["section"]
        pages = [c for c in s["contents"] if isinstance(c, str)]
        if pages: yield name, pages
        yield from parts((c for c in s["contents"] if not isinstance(c, str)), f"{name}: ")


def plain(text):
    "Markdown links as their text."
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)


def problem():
    "None, or what is wrong with nbs/llms.txt."
    if FILE.exists() and FILE.read_text(encoding="utf-8") == render(): return None
    return "differs from the notebooks' titles: run make readme"


if __name__ == "__main__":
    if "--check" in sys.argv[1:]: sys.exit(f"nbs/llms.txt: {p}" if (p := problem()) else None)
    FILE.write_text(render(), encoding="utf-8")
    print("wrote nbs/llms.txt")
