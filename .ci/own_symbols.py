"""What nbdev shows of a class that has no `__init__` of its own, and where it says that a symbol stands.

For a NamedTuple, a policy or an exception nbdev shows `(*args, **kwargs)`. Here a class shows its bases, and its
fields in a table: names, types, defaults, and the comments behind them. And where several modules define one name,
nbdev's link to the source may lead to another module than that of the page; here it leads to the page's own.
"""
import ast
import re
from functools import cache
from pathlib import Path

from nbdev.config import get_config
from nbdev.process import Processor

from check_storeys import default_exp

SIGNATURE = re.compile(r"```python\ndef (\w+)\(\n    \*args, \*\*kwargs\n\):\n```")
SOURCE = re.compile(r"(\[source\]\([^)]*/blob/[^/]+/)([^#)]+)#L\d+(\))")


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


def remark(lines, at):
    "The comment behind line `at` of a module, with those alone on the lines below it"
    text, more = lines[at - 1].partition(" # ")[2], at
    while text and more < len(lines) and re.match(r" {20,}# ", lines[more]):
        text, more = f"{text} {lines[more].strip().lstrip('# ')}", more + 1
    return text


def fields(node, lines):
    "Rows of a table: name, type, default and comment of each field of a class"
    for stmt in node.body:
        if isinstance(stmt, ast.AnnAssign): name, kind = ast.unparse(stmt.target), ast.unparse(stmt.annotation)
        elif isinstance(stmt, ast.Assign): name, kind = ast.unparse(stmt.targets[0]), ""
        else: continue
        default = "" if stmt.value is None else ast.unparse(stmt.value)
        texts = [f"`{t}`" if t else "" for t in (name, kind, default)]
        if not name.startswith("_"): yield [t.replace("|", "\\|") for t in (*texts, remark(lines, stmt.end_lineno))]


def table(rows):
    "Rows as Markdown, without the columns that are empty"
    heads = "field", "type", "default", "what it is"
    columns = [(head, *cells) for head, cells in zip(heads, zip(*rows), strict=True) if any(cells)]
    head, *body = zip(*columns, strict=True)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, [":--"]*len(head), *body))


def signature(node):
    "The first line of a class"
    bases = ", ".join(map(ast.unparse, node.bases))
    return f"```python\nclass {node.name}{f'({bases})' if bases else ''}\n```"


class OwnSymbols(Processor):
    "Signatures of classes, and links to the source"
    def begin(self): self.path = module_of(self.nb.path_)

    def mend(self, text, name):
        tree, lines = read(get_config().config_path/self.path)
        node = definition(tree, name)
        if node is None: return text
        text = SOURCE.sub(rf"\g<1>{self.path}#L{node.lineno}\g<3>", text)
        if not isinstance(node, ast.ClassDef) or not SIGNATURE.search(text): return text
        rows = [*fields(node, lines)]
        return SIGNATURE.sub(signature(node), text) + ("\n\n" + table(rows) if rows else "")

    def cell(self, cell):
        found = re.search(r"^show_doc\(([\w.]+)", cell.source, re.M) if self.path else None
        for output in cell.get("outputs", []) if found else []:
            data = output.get("data", {})
            if "text/markdown" in data: data["text/markdown"] = self.mend("".join(data["text/markdown"]), found[1])

    def end(self):
        "Quarto loads the scripts of widgets wherever a notebook has this field, and nbdev puts it into each"
        kinds = {k for c in self.nb.cells for o in c.get("outputs", []) for k in o.get("data", {})}
        if not any("widget-view" in k for k in kinds): self.nb.metadata.pop("widgets", None)
