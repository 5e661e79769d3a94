"""Write README.md from nbs/index.ipynb, without Quarto; with --check only tell whether it is up to date.

nbdev's own nbdev_readme calls Quarto, which is on no package registry. nbconvert does the work here, so
that anyone who can install the package can also refresh and check its README.
"""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, README = ROOT/"nbs/index.ipynb", ROOT/"README.md"
NOTE = "<!-- Written by `make readme` from nbs/index.ipynb: edit the notebook, not this file. -->"
DIRECTIVE = re.compile(r"^#\|\s*(.+?)\s*$\n?", re.M)
DROPPED = {"hide", "export", "exporti", "default_exp", "include: false"}  # what nbdev leaves off the page


def visible(cell):
    "Strip nbdev's directives from `cell`; True if any of it belongs on the page."
    if cell.cell_type != "code": return cell.cell_type == "markdown"
    found = DIRECTIVE.findall(cell.source)
    if any(d in DROPPED or d.split()[0] in DROPPED for d in found): return False
    cell.source = "" if "echo: false" in found else DIRECTIVE.sub("", cell.source)
    if "output: false" in found: cell.outputs = []
    # A picture in an output would be a stray file next to README.md, which shows those in nbs/images only; and a page
    # within the page is nothing for it.
    def drawn(output): return any(k.startswith(("image/", "text/html")) for k in output.get("data", {}))
    cell.outputs = [o for o in cell.outputs if not drawn(o)]
    return bool(cell.source.strip() or cell.outputs)


def from_root(match):
    "Links in the notebook are relative to nbs/, in README.md to the root."
    start, target = match.groups()
    return f"{start}nbs/{target}" if (ROOT/"nbs"/target).exists() else match[0]


def render():
    "The text that README.md should have."
    nb = nbformat.read(NOTEBOOK, as_version=4)
    nb.metadata.language_info = {"name": "python"}  # nbdev_clean removes it, and code fences want it
    nb.cells = [c for c in nb.cells if visible(c)]
    nb.cells.insert(1, nbformat.v4.new_markdown_cell(NOTE))
    config = Config({"NbConvertBase": {"display_data_priority": ["text/markdown", "text/plain"]}})
    text, _ = MarkdownExporter(config=config).from_notebook_node(nb)
    text = re.sub(r"(\]\(|<img src=\")([^)\"#:\s]+)", from_root, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def problem():
    "None, or what is wrong with README.md."
    if README.exists() and README.read_text(encoding="utf-8") == render(): return None
    return "README.md: differs from nbs/index.ipynb: run make readme"


if __name__ == "__main__":
    if "--check" in sys.argv[1:]: sys.exit(problem())
    README.write_text(render(), encoding="utf-8")
    print("wrote README.md")
