"""Signatures as the source has them, the fields of classes, and where a symbol stands.

nbdev puts parameters without a comment on the line of the next one that has a comment, so that it seems to be theirs;
it writes a default out, be it a dataclass with twenty fields; and of the fields of a dataclass it loses the comments.
For a NamedTuple, a policy or an exception it shows `(*args, **kwargs)`. Here each parameter has its line where one of
them has a comment, and a class shows its bases, and its fields in a table: names, types, defaults, and what they are.
And where several modules define one name, nbdev's link to the source may lead to another module than that of the page;
here it leads to the page's own.
"""
import ast
import re
from functools import cache
from html import escape
from itertools import takewhile
from pathlib import Path

from nbdev.config import get_config
from nbdev.process import Processor

from check_storeys import default_exp

SIGNATURE = re.compile(r"```python\n(?:async )?(?:def|class) .*?\n```", re.S)
NO_PARAMETERS = re.compile(r"```python\ndef \w+\(\n    \*args, \*\*kwargs\n\):\n```")
SOURCE = re.compile(r"(\[source\]\([^)]*/blob/[^/]+/)([^#)]+)#L\d+(\))")
WIDTH = 88  # of a signature in one line


def module_of(notebook):
    "The file below the repository's root that a notebook exports, or None"
    name = default_exp(Path(notebook))
    return name and f"{get_config().lib_name}/{name.replace('.', '/')}.py"


@cache
def read(path):
    "The tree of a module, and its lines"
    text = Path(path).read_text(encoding="utf-8")
    return ast.parse(text), text.splitlines()


def definition(tree, name):
    "The node that defines `name`, or `Class.name`, also by `@patch`; None if there is none"
    owner, _, last = name.rpartition(".")
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in (n for n in ast.walk(tree) if isinstance(n, kinds) and n.name == last):
        inside = next((c.name for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and node in c.body), "")
        first = node.args.args[0].annotation if not isinstance(node, ast.ClassDef) and node.args.args else None
        if owner in (inside, first is not None and ast.unparse(first)): return node
    return None


def remark(lines, first, last):
    "The comment behind line `last` of a module and below it, or, where there is none, alone above line `first`"
    text, more = lines[last - 1].partition(" # ")[2], last
    while text and more < len(lines) and re.match(r" {20,}# ", lines[more]):
        text, more = f"{text} {lines[more].strip().lstrip('# ')}", more + 1
    above = takewhile(lambda line: re.match(r" {1,16}# ", line), reversed(lines[:first - 1]))
    return text or " ".join(line.strip().lstrip("# ") for line in reversed([*above]))


def default_of(value):
    "A default as text; of `field(default_factory=f)` what a call of f gives"
    if value is None: return ""
    made = next((k.value for k in getattr(value, "keywords", []) if k.arg == "default_factory"), None)
    if made is None: return ast.unparse(value)
    return ast.unparse(made.body) if isinstance(made, ast.Lambda) else f"{ast.unparse(made)}()"


def code(text):
    "Code for the cell of a table, where a bar would end the cell, and a backslash before it would be seen"
    return f"<code>{escape(text).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def fields(node, lines):
    "Rows of a table: each field of a class, with its type and default as in the source, and its comment"
    for stmt in node.body:
        if isinstance(stmt, ast.AnnAssign):
            name, text = ast.unparse(stmt.target), f"{ast.unparse(stmt.target)}: {ast.unparse(stmt.annotation)}"
        elif isinstance(stmt, ast.Assign): name = text = ast.unparse(stmt.targets[0])
        else: continue
        default = default_of(stmt.value)
        said = remark(lines, stmt.lineno, stmt.end_lineno).replace("|", "\\|")
        if not name.startswith("_"): yield [code(f"{text} = {default}" if default else text), said]


def table(rows):
    "Rows as Markdown, without comments if there are none; the dashes are the widths where a row is long"
    heads = {"field": ":---", "what it is": ":-----"}
    columns = [(*head, *cells) for head, cells in zip(heads.items(), zip(*rows), strict=True) if any(cells)]
    return "\n".join("| " + " | ".join(row) + " |" for row in zip(*columns, strict=True))


def parameters(node):
    "Its parameters with what stands before each and its default, as nodes; a bare `*` or `/` has no node"
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    defaults = [None]*(len(plain) - len(a.defaults)) + a.defaults
    for i, (p, default) in enumerate(zip(plain, defaults, strict=True)):
        if i or p.arg not in ("self", "cls"): yield "", p, default
        if i + 1 == len(a.posonlyargs): yield "/", None, None
    if a.vararg or a.kwonlyargs: yield "*", a.vararg, None
    yield from (("", p, default) for p, default in zip(a.kwonlyargs, a.kw_defaults, strict=True))
    if a.kwarg: yield "**", a.kwarg, None


def written(node, lines):
    "A node as its source has it; an annotation in quotes without them"
    if node.lineno != node.end_lineno: return ast.unparse(node)
    return lines[node.lineno - 1].encode()[node.col_offset:node.end_col_offset].decode()


def annotation(node, lines): return written(node, lines).strip("\"'") if node else ""


def parameter(stars, p, default, lines, head):
    "A parameter as the source has it, and its comment; `head` is the line of the function's name"
    if p is None: return stars, ""
    kind = annotation(p.annotation, lines)
    text = f"{stars}{p.arg}: {kind}" if kind else stars + p.arg
    if default is not None: text += f" = {written(default, lines)}" if kind else f"={written(default, lines)}"
    first = p.lineno if p.lineno > head else 1  # what stands above the function is not about its parameters
    return text, remark(lines, first, (default or p).end_lineno)


def called(node, start, lines):
    "A signature: in one line, or one parameter a line where one has a comment or all of them are too long"
    takes = [*parameters(node)]
    found = [parameter(*p, lines, node.lineno) for p in takes]
    back, said = "", ""
    if node.returns and node.name != "__init__":
        back = f" -> {annotation(node.returns, lines)}"
        behind = node.returns.end_lineno
        if all(p is None or (default or p).end_lineno < behind for _, p, default in takes):
            said = remark(lines, 1, behind)
    end = f"){back}" + (f" # {said}" if said else "")
    short = f"{start}({', '.join(text for text, _ in found)}{end}"
    if len(short) <= WIDTH and not any(comment for _, comment in found): return short
    rows = [f"    {text}," + (f" # {comment}" if comment else "") for text, comment in found]
    return "\n".join([f"{start}(", *rows, end])


@cache
def classes(folder):
    "The classes of all modules below a folder: name → node, and the lines of its module"
    modules = [read(path) for path in sorted(Path(folder).rglob("*.py"))]
    return {n.name: (n, lines) for tree, lines in modules for n in tree.body if isinstance(n, ast.ClassDef)}


def init_of(node, lines, known):
    "The `__init__` of a class or of the nearest class above it, and the lines of its module; None if there is none"
    own = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if own: return own, lines
    above = (known.get(ast.unparse(base).rpartition(".")[2]) for base in node.bases)
    return next(filter(None, (init_of(*base, known) for base in above if base and base[0] is not node)), None)


def record(node):
    "A class without an `__init__`: what makes it a dataclass, its name and its bases"
    bases = ", ".join(map(ast.unparse, node.bases))
    kinds = [f"@{text}" for d in node.decorator_list if "dataclass" in (text := ast.unparse(d))]
    return "\n".join([*kinds, f"class {node.name}({bases})" if bases else f"class {node.name}"])


def function(node, lines):
    "A function or method, and what kind of method it is"
    kinds = " ".join(map(ast.unparse, node.decorator_list))
    shown = {"property": "@property", "as_prop=True": "@property", "classmethod": "@classmethod",
             "cls_method=True": "@classmethod", "staticmethod": "@staticmethod", "contextmanager": "@contextmanager"}
    heads = dict.fromkeys(text for word, text in shown.items() if word in kinds)
    return "\n".join([*heads, called(node, f"def {node.name}", lines)])


def signed(text, signature):
    "What nbdev shows of a symbol, with another signature"
    return SIGNATURE.sub(lambda _: f"```python\n{signature}\n```", text, count=1)


class OwnSymbols(Processor):
    "Signatures, fields of classes, and links to the source"
    def begin(self): self.path = module_of(self.nb.path_)

    def mend(self, text, name):
        tree, lines = read(get_config().config_path/self.path)
        node = definition(tree, name)
        if node is None: return text
        text = SOURCE.sub(rf"\g<1>{self.path}#L{node.lineno}\g<3>", text)
        if not isinstance(node, ast.ClassDef): return signed(text, function(node, lines))
        rows = [*fields(node, lines)]
        if "@dataclass" in record(node) or NO_PARAMETERS.search(text):
            return signed(text, record(node)) + ("\n\n" + table(rows) if rows else "")
        made = init_of(node, lines, classes(get_config().config_path/get_config().lib_name))
        return signed(text, called(made[0], f"class {node.name}", made[1])) if made else text

    def cell(self, cell):
        found = re.search(r"^show_doc\(([\w.]+)", cell.source, re.M) if self.path else None
        for output in cell.get("outputs", []) if found else []:
            data = output.get("data", {})
            if "text/markdown" in data: data["text/markdown"] = self.mend("".join(data["text/markdown"]), found[1])

    def end(self):
        "Quarto loads the scripts of widgets wherever a notebook has this field, and nbdev puts it into each"
        kinds = {k for c in self.nb.cells for o in c.get("outputs", []) for k in o.get("data", {})}
        if not any("widget-view" in k for k in kinds): self.nb.metadata.pop("widgets", None)
