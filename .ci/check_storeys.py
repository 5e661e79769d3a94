"""Check that the tree shows the architecture: numbers of notebooks, their folders, and the direction of imports.

A notebook that defines a module is called `nbs/FOLDER/NN_name.ipynb` and exports `diffusion_lm/FOLDER/name.py`. The
first digit of NN is the storey. Numbers are unique and without gaps within a storey, and a module imports only
modules with lower numbers, inside its functions too. Every problem is one line, `file: what is wrong`.
"""
import ast
import json
import re
import sys
from collections import defaultdict
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
LIB = "diffusion_lm"
EXEMPT = {"__init__.py", "__main__.py", "_modidx.py"}
NUMBERED = re.compile(r"(?P<number>\d\d)_(?P<name>[a-z]\w*)\.ipynb")


def default_exp(notebook):
    "The module that a notebook exports, as it names it ('text.tokenizer'); None if it exports nothing."
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code": continue
        found = re.search(r"^#\s*\|\s*default_exp\s+(\S+)", "".join(cell["source"]), re.M)
        if found: return found[1]
    return None


def notebooks(root):
    "Path below nbs/ → the module that it exports, or None."
    found = sorted((root/"nbs").rglob("*.ipynb"))
    paths = {p: p.relative_to(root/"nbs") for p in found}
    return {rel.as_posix(): default_exp(p) for p, rel in paths.items() if not hidden(rel)}


def hidden(path):
    "True if a part of `path` begins with . or _, which nbdev passes over."
    return any(part.startswith((".", "_")) for part in path.parts)


def modules(root):
    "Name of each module of the library, such as 'text.tokenizer' → its file."
    lib = root/LIB
    files = sorted(p for p in lib.rglob("*.py") if p.name not in EXEMPT)
    return {".".join(p.relative_to(lib).with_suffix("").parts): p for p in files}


def check_names(nbs):
    "What is wrong with the name and the folder of each notebook that exports a module."
    for path, module in nbs.items():
        if module is None: continue
        file, named = f"nbs/{path}", NUMBERED.fullmatch(PurePosixPath(path).name)
        if not named:
            yield f"{file}: exports {module}, so its name needs two digits and no letter: NN_name.ipynb"
            continue
        *packages, name = module.split(".")
        folder = "/".join(packages)
        if PurePosixPath(path).parent.as_posix() != (folder or "."):
            yield f"{file}: exports {module}, so it belongs in nbs/{folder}"
        if named["name"] != name:
            yield f"{file}: exports {module}, so its name should be {named['number']}_{name}.ipynb"


def number_of(path):
    "The number of a notebook; None if its name has none."
    named = NUMBERED.fullmatch(PurePosixPath(path).name)
    return int(named["number"]) if named else None


def check_numbers(nbs):
    "Numbers that two notebooks share, and gaps within a storey."
    holders = defaultdict(list)
    for path in nbs: holders[number_of(path)].append(path)
    holders.pop(None, None)
    for number, paths in sorted(holders.items()):
        for other in paths[1:]: yield f"nbs/{other}: nbs/{paths[0]} has the number {number:02} too"
    for number, paths in sorted(holders.items()):
        if number % 10 and number - 1 not in holders:
            yield f"nbs/{paths[0]}: no notebook has the number {number - 1:02}: numbers have no gaps within a storey"


def imported(tree, package, known):
    """The modules of the library that a syntax tree imports, anywhere in it: (line, 'text.tokenizer').

    `package` is the package of the importing module ('text', or ''); `known` are the names of all modules. A name that
    no module has, such as a class that an `__init__` passes on, comes as ('package.name').
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom): names = imported_from(node, package, known)
        else: continue
        for name in names:
            if name.startswith(LIB + "."): yield node.lineno, name.removeprefix(LIB + ".")


def imported_from(node, package, known):
    "The full names of what one `from … import …` asks for: the module, or each name if that is a package."
    here = [LIB, *filter(None, package.split("."))]
    start = here[:len(here) + 1 - node.level] if node.level else []  # each dot but the first goes one package up
    source = ".".join([*start, *filter(None, [node.module])])
    if source.split(".")[0] != LIB or source.removeprefix(LIB + ".") in known: return [source]
    return [f"{source}.{a.name}" for a in node.names if not a.name.startswith("__")]


def check_imports(root, nbs):
    "Imports that do not go down, and modules without a number."
    files = modules(root)
    numbers = {module: number_of(path) for path, module in nbs.items() if module}
    for module, file in files.items():
        where = file.relative_to(root).as_posix()
        if module not in numbers: yield f"{where}: no notebook exports it, so it has no storey"
        if numbers.get(module) is None: continue
        package = module.rpartition(".")[0]
        for line, target in imported(ast.parse(file.read_text(encoding="utf-8")), package, files.keys()):
            yield from (f"{where}: line {line} {what}" for what in check_import(module, target, numbers, files))


def check_import(module, target, numbers, files):
    "What is wrong with `module` (e.g. 'text.tokenizer') importing `target`."
    if target not in files:
        yield f"imports {target}, which is no module: import names from the module that defines them"
    elif numbers.get(target) is not None and numbers[target] >= numbers[module]:
        yield f"imports {target} ({numbers[target]:02}): {module} ({numbers[module]:02}) may only import lower numbers"


def problems(root=ROOT):
    "All that is wrong, one line each."
    nbs = notebooks(root)
    return [*check_names(nbs), *check_numbers(nbs), *check_imports(root, nbs)]


if __name__ == "__main__":
    found = problems()
    print(*found, f"storeys check: {len(found)} problems", sep="\n")
    sys.exit(bool(found))
