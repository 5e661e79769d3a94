"""Check spelling and wording in what people read: Markdown, comments, and the texts in code.

codespell knows common misspellings; words that it should let pass stand in pyproject.toml. WORDING lists phrases
that this project does not use. Outputs of notebooks are not read, nor are modules that notebooks export, nor
records of runs. Every finding is one line, `file: line 3: "WORD": write INSTEAD`; in a notebook it also names the cell.
`codespell:ignore` in a comment of the same line silences both checks there.
"""
import io
import json
import re
import subprocess
import sys
import tokenize
from typing import NamedTuple

from check_export import ROOT, generated, listed_files

# What not to write, and what to write instead: inverted or archaic English, over which an international reader
# stumbles. A pattern stands here only where a simple one finds no good sentence.
WORDING = {
    r"so-manieth": "every n-th",
    r"whoever|whosoever": "a user who, the code that, anyone who",
    r"dear|dearer|dearest": "expensive, costs more",
    r"of which alone": "only, before the verb: only one of these may be written",
    r"(?<!there )(?:is|are|was|were) none": "is not one",
    r"(?:is|are|was|were) no bound": "is not a bound",
    r"said to be one": "labelled as one",
    r"dealt(?! with)": "shuffled, distributed, assigned",
    r"one and all": "all",
    r"cannot but": "must",
    r"(?:a|one) fourth (?:more|fewer|less)": "the number: 25 % more",
    r"with fewer bits": "the number: 0.5 % lower bits per byte",
    r"whence|whither|hitherto|thereof|therein|whereof|wherein|nought": "a word of today",
    # Spelling is British in prose, but for the field's words (optimizer, program).
    r"(?:col|neighb|behavi|fav|hon|lab)or(?:s|ed|ing)?": "the British spelling: …our",
    r"gray": "grey",
}
WORDING = {re.compile(rf"(?<![\w-])(?:{phrase})(?![\w-])", re.I): instead for phrase, instead in WORDING.items()}
# A number begins with a digit, as in 0.5 %. In code and its comments that holds for percentages only.
NUMBER = re.compile(r"(?<![\w.)\]…%:])\.\d+")
PERCENTAGE = re.compile(NUMBER.pattern + r" ?%")
IGNORE = "codespell:ignore"

# Parts of Markdown that are no prose: fenced code, code in a line, formulas, targets of links, addresses, tags.
NO_PROSE = [
    re.compile(r"^([ >]*)(```+|~~~+).*?(?:^\1\2[^\n]*$|\Z)", re.M | re.S),
    re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S),
    re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.S),
    re.compile(r"\]\([^)\n]*\)|https?://\S+|<(?!!)[^>\n]+>"),
]
RECORDS = ("checkpoints/", "experiments/records/")
DOCUMENTS = {".md", ".yml", ".yaml", ".toml", ".ini", ".cff"}


class Line(NamedTuple):
    "A line of text to read"
    where: str  # file, cell and number
    text: str   # spaces stand for what is not read
    is_markdown: bool


def blank(match):
    "Spaces in place of a match, so that what follows keeps its place."
    return re.sub(r"[^\n]", " ", match[0])


def markdown(text):
    "The prose of a Markdown text; spaces for the rest."
    for pattern in NO_PROSE: text = pattern.sub(blank, text)
    return text


def is_prose(prefix, text):
    "True if a literal of Python is for people: three words or more, and neither bytes nor a regular expression."
    is_pattern = "r" in prefix and not text.startswith('"""') or re.search(r"\w\|\w", text)
    if is_pattern or "b" in prefix: return False
    return len(re.findall(r"(?<![^\s\"'(])[A-Za-z][a-z'’]+(?![\w=(\[{])", text)) >= 3


def literal_text(prefix, text):
    "A literal without escape sequences and, if it is an f-string, without the code in braces."
    text = re.sub(r"\\[uUxN]", "__", text)  # part of a word
    text = re.sub(r"\\.", "  ", text)
    nested = "f" in prefix
    while nested: text, nested = re.subn(r"\{[^{}]*\}", blank, text)
    return text


def texts(code):
    "The comments and the literals for people in some Python code: (row, column, text)."
    prefix = ""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        kind, text = tokenize.tok_name[token.type], token.string
        # Python 3.12 and later take f-strings apart: a start with the prefix, then pieces without code.
        if kind in ("STRING", "FSTRING_START"): prefix = re.match("[a-z]*", text.lower())[0]
        if kind == "COMMENT": yield *token.start, text
        elif kind == "STRING" and is_prose(prefix, text[len(prefix):]): yield *token.start, literal_text(prefix, text)
        elif kind == "FSTRING_MIDDLE" and is_prose(prefix, text): yield *token.start, literal_text("f", text)


def python(code):
    "The comments and texts of some Python code; spaces for the rest. Lines that are magics are not read."
    code = re.sub(r"^\s*[%!].*$", blank, code, flags=re.M)
    kept = [[" "]*len(line) for line in code.split("\n")]
    try:
        for row, column, text in texts(code):
            for i, part in enumerate(text.split("\n")):
                start = 0 if i else column
                kept[row - 1 + i][start:start + len(part)] = part
    except (tokenize.TokenError, SyntaxError): pass  # no Python: ruff says what is wrong
    return "\n".join("".join(line) for line in kept)


def lines(path, text):
    "The lines of one file that are to be read."
    if not path.endswith(".ipynb"):
        yield from text_lines(f"{path}: ", text, path.endswith(".md"), path.endswith(".py"))
        return
    for i, cell in enumerate(json.loads(text)["cells"]):
        where, source = f"{path}: cell {i} ({cell.get('id')}), ", "".join(cell["source"])
        yield from text_lines(where, source, cell["cell_type"] == "markdown", cell["cell_type"] == "code")


def text_lines(where, text, is_markdown, is_python):
    "The lines of one text, each with its place."
    if is_markdown: text = markdown(text)
    if is_python: text = python(text)
    for i, line in enumerate(text.split("\n"), 1): yield Line(f"{where}line {i}", line, is_markdown)


def wording(found):
    "Phrases and numbers that are written otherwise here."
    for line in found:
        if IGNORE in line.text: continue
        for pattern, instead in WORDING.items():
            for m in pattern.finditer(line.text): yield f'{line.where}: "{m[0]}": write {instead}'
        for m in (NUMBER if line.is_markdown else PERCENTAGE).finditer(line.text):
            yield f'{line.where}: "{m[0]}": write 0{m[0]}'


def misspellings(found):
    "What codespell says, with the place of each word."
    command = [sys.executable, "-m", "codespell_lib", "--stdin-single-line", "--disable-colors", "-"]
    run = subprocess.run(command, cwd=ROOT, input="\n".join(line.text for line in found) + "\n",
                         capture_output=True, text=True, encoding="utf-8")
    said = re.findall(r"^(\d+): (.+?) ==> (.+)$", run.stdout, re.M)
    if run.returncode and not said: sys.exit(f"codespell fails: {run.stderr.strip() or run.returncode}")
    for number, word, instead in said: yield f'{found[int(number) - 1].where}: "{word}": write {instead}'


def is_read(path):
    "True if a file of the repository is a notebook, code or a document, written by hand."
    file = ROOT/path
    if path.startswith(RECORDS) and file.suffix != ".md": return False
    if file.is_symlink() or not file.is_file(): return False
    if file.suffix == ".py": return not generated(path, file.read_bytes())
    return file.suffix in {".ipynb", *DOCUMENTS} or file.name == "Makefile"


def findings(files):
    "All findings in some texts: path → text."
    found = [line for path, text in files.items() for line in lines(path, text)]
    return [*misspellings(found), *wording(found)]


def main():
    files = {path: (ROOT/path).read_text(encoding="utf-8") for path in listed_files() if is_read(path)}
    found = findings(files)
    print(*found, f"spelling check: {len(files)} files, {len(found)} findings", sep="\n")
    return bool(found)


if __name__ == "__main__": sys.exit(main())
