"""Check the comments of parameters, which the reference pages show: one parameter a line, no backticks.

nbdev gives the comment of a line to the parameter that stands there. Where several stand, or where the line goes on
with what the function returns, the comment comes to the last; and a name in backticks would become a raw link in the
signature. Read are the functions and methods that cells export, without the private ones. Every finding is one line,
`nbs/…ipynb: NAME: what is wrong`.
"""
import ast
import io
import json
import re
import sys
import tokenize
from collections import defaultdict

from check_storeys import ROOT, hidden

EXPORTED = re.compile(r"^#\s*\|\s*export[is]?\b", re.M)
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


def functions(body, prefix=""):
    "The public functions and methods among some statements: (name, definition)."
    for node in body:
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)): continue
        if node.name.startswith("_") and node.name != "__init__": continue
        if isinstance(node, ast.ClassDef): yield from functions(node.body, f"{node.name}.")
        else: yield prefix + node.name, node


def parameters(definition):
    "Its parameters by line, and what it returns: line → names. Neither `self` nor `cls` needs a comment."
    a, lines = definition.args, defaultdict(list)
    for p in filter(None, [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]):
        if p.arg not in ("self", "cls"): lines[p.lineno].append(p.arg)
    return lines


def comments(code):
    "The comments of some Python code: line → text."
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def wrong(definition, said):
    "What is wrong with the comments of one function; `said` is the comment of each line."
    returned, lines = definition.returns, parameters(definition)
    behind = {node.lineno for node in (returned, definition.body[0]) if node}
    for line, names in lines.items():
        if line not in said: continue
        what = f"{len(names)} parameters" if len(names) > 1 else f"{names[0]} and on what follows it"
        if len(names) > 1 or line in behind: yield f'the comment "{said[line]}" stands on {what}: one parameter a line'
        if "`" in said[line]: yield f"backticks in the comment of {', '.join(names)} become raw Markdown"
    if returned and returned.lineno not in lines and "`" in said.get(returned.lineno, ""):
        yield "backticks in the comment of what it returns become raw Markdown"


def problems(root=ROOT):
    "All findings in the exported cells of all notebooks."
    for file in sorted((root/"nbs").rglob("*.ipynb")):
        path = file.relative_to(root)
        if hidden(path): continue
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            code = "".join(cell["source"])
            if cell["cell_type"] != "code" or not EXPORTED.search(code): continue
            said = comments(code)
            for name, definition in functions(ast.parse(code).body):
                for what in wrong(definition, said): yield f"{path.as_posix()}: {name}: {what}"


if __name__ == "__main__":
    found = [*problems()]
    print(*found, f"signatures check: {len(found)} findings", sep="\n")
    sys.exit(bool(found))
