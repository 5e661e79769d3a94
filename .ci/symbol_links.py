"""Which page a `symbol` in prose links to where several modules define one of that name.

nbdev links to the module that comes first in the alphabet: deploy/runtime, which repeats what an exported model needs,
would hide sampling/policies. Here the page's own symbol comes first, then the order of the sidebar. And a plain word
(`entropy`, `train`, `rows`) is often something else: an option, a method, a column. It becomes a link only on the page
that defines it, or in a line that names that page. settings.ini names this processor in place of nbdev's add_links.
"""
import posixpath
import re
from pathlib import Path, PurePosixPath

import yaml
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup, _nbpath2html
from nbdev.process import Processor


def page_name(path): return _nbpath2html(PurePosixPath(path)).as_posix()


def pages_named(line, own):
    "The pages that a line of the notebook `own` has links to."
    targets = re.findall(r"\]\(([^)#:]+\.ipynb)", line)
    return {page_name(posixpath.normpath(posixpath.join(posixpath.dirname(own), target))) for target in targets}


def notebooks_of(contents):
    "The notebooks of a part of the sidebar, in its order."
    for item in contents:
        if isinstance(item, str): yield item
        else: yield from notebooks_of(item["contents"])


def sidebar(config):
    "The pages that the sidebar names, in its order."
    contents = yaml.safe_load(Path(config).read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return [page_name(path) for path in notebooks_of(contents)]


def choose(modules, pages, site):
    """The link of each name: of the modules that define it, the one whose page comes first in `pages`.

    `modules` is the index of nbdev: module → full name of a symbol → (link, …); links begin with `site`.
    """
    def place(module):
        page = next(iter(modules[module].values()))[0].removeprefix(site).partition("#")[0]
        return pages.index(page) if page in pages else len(pages)

    links = {}
    for module in sorted(filter(modules.get, modules), key=place):
        for name, link in modules[module].items(): links.setdefault(name.removeprefix(module + "."), link)
    return links


class Lookup(NbdevLookup):
    "nbdev's links to symbols, with another choice among those of one name, and fewer for plain words"
    def __init__(self, own, pages, lib, site):
        super().__init__()
        self.own, self.site, self.near = own, site, set()
        self.syms = {**self.syms, **choose(self.entries[lib]["syms"], [page_name(own), *pages], site)}

    def link_line(self, line):
        self.near = {page_name(self.own), *pages_named(line, self.own)}
        return super().link_line(line)

    def doc(self, sym):
        link = super().doc(sym)
        if link is None or not (sym.isalpha() and sym.islower()): return link
        return link if link.removeprefix(self.site).partition("#")[0] in self.near else None


class SymbolLinks(Processor):
    "nbdev's add_links, with the links of `Lookup`"
    def begin(self):
        cfg = get_config()
        own = Path(self.nb.path_).resolve().relative_to(Path(cfg.nbs_path).resolve()).as_posix()
        pages, site = sidebar(cfg.config_path/"_quarto.yml"), f"{cfg.doc_host}{cfg.doc_baseurl}/"
        self.lookup = Lookup(own, pages, cfg.lib_name, site)

    def cell(self, cell):
        if cell.cell_type == "markdown": cell.source = self.lookup.linkify(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data: data["text/markdown"] = [*map(self.lookup.link_line, data["text/markdown"])]
