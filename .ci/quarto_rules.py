"""What nbdev and Quarto refuse, or drop without a word, in the cells of a notebook.

Quarto is on no package registry, so these are its rules (and nbdev's, which comes before it) as their sources have
them: nbdev 2.4, Quarto 1.7. Each function yields what is wrong with one cell, in words.
"""
import ast
import io
import re
import tokenize

import yaml

# What may stand after `#|` without a colon. nbdev drops any other such line from the page.
DIRECTIVES = {"default_exp", "export", "exporti", "exports", "exec_doc", "hide", "hide_line", "filter_stream"}
# What may stand before the colon. Quarto makes an attribute of the page of any other, and nobody sees it.
OPTIONS = {"eval", "echo", "output", "warning", "error", "include", "label", "classes", "panel", "column", "layout",
           "layout-ncol", "layout-nrow", "layout-align", "layout-valign", "code-fold", "code-summary", "code-overflow",
           "code-line-numbers", "lst-label", "lst-cap", "fig-alt", "fig-cap", "fig-subcap", "fig-align", "fig-link",
           "fig-column", "fig-cap-location", "fig-width", "fig-height", "tbl-cap", "tbl-subcap", "tbl-colwidths",
           "tbl-column", "tbl-cap-location", "cap-location", "html-table-processing"}
CALLOUTS = {"note", "tip", "warning", "important", "caution"}
MARK, KEY = re.compile(r"\s*#\s*\|"), re.compile(r"\s*[\w|-]+\s*:")


def source(cell): return "".join(cell["source"])


def short(text): return text if len(text) <= 50 else text[:47] + "…"


def partition(code):
    "The `#|` lines on top of a cell, blank ones left out, and the lines below them."
    lines = code.splitlines()
    n = next((i for i, l in enumerate(lines) if l.strip() and not MARK.match(l)), len(lines))
    return [l for l in lines[:n] if l.strip()], lines[n:]


def option_text(head):
    "Those of the `#|` lines that nbdev leaves to Quarto, as the YAML that Quarto reads."
    texts = [re.sub(r"^#\s*\| ?", "", l) for l in head if KEY.match(MARK.sub("", l))]
    return "\n".join(re.sub(r"^(\s*[\w|-]+\s*:)\s*", r"\1 ", t) for t in texts)


def options(cell):
    "Quarto's options of a code cell; empty if they are not YAML."
    try: found = yaml.safe_load(option_text(partition(source(cell))[0]))
    except yaml.YAMLError: return {}
    return found if isinstance(found, dict) else {}


def words(cell):
    "nbdev's directives of a code cell."
    return {t.split()[0] for l in partition(source(cell))[0] if (t := MARK.sub("", l).strip()) and not KEY.match(t)}


def visible(cell):
    "True if the page shows this cell."
    return not words(cell) & {"hide", "export", "exporti", "default_exp"} and options(cell).get("include") is not False


def check_directives(cell, flags=()):
    "Each `#|` line is one that nbdev or Quarto reads: `flags` are the project's own."
    head, body = partition(source(cell))
    for line in head:
        text = MARK.sub("", line)
        if KEY.match(text):
            if not line.startswith("#"): yield f"`{short(line.strip())}` is indented: Quarto does not read it"
        elif not text.strip() or text.split()[0] not in DIRECTIVES | {*flags}:
            yield f"`{short(line.strip())}` is no directive of nbdev, which drops it from the page"
    yield from check_options(option_text(head))
    for comment in comments("\n".join(body)):
        text = MARK.sub("", comment).strip()
        is_option = KEY.match(text) and text.split(":")[0].strip() in OPTIONS
        if text != "hide_line" and (comment.startswith("#|") or is_option):
            yield f"`{short(comment)}` stands below code: neither nbdev nor Quarto reads it there"


def comments(code):
    "All comments that begin as a directive does; empty if the code is not Python."
    try: tokens = [*tokenize.generate_tokens(io.StringIO(code).readline)]
    except (tokenize.TokenError, SyntaxError): return []
    return [t.string for t in tokens if t.type == tokenize.COMMENT and MARK.match(t.string)]


def check_options(text):
    "The options of one cell are one YAML mapping, with keys that Quarto knows."
    if not text.strip(): return
    try:
        node, found = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.YAMLError as e:
        line = text.splitlines()[e.problem_mark.line] if getattr(e, "problem_mark", None) else text
        yield f"`#| {short(line)}` is not YAML ({e.problem or 'unreadable'}): quote the value"
        return
    if found is None: return  # indented lines alone
    keys = [k.value for k, _ in node.value]
    for k in sorted({k for k in keys if keys.count(k) > 1}): yield f"the option `{k}` stands there twice"
    for k in sorted({str(k) for k in found} - OPTIONS): yield f"Quarto knows no option `{k}` of a cell"
    for k in {"fig-alt", "fig-cap"} & found.keys():
        values = found[k] if isinstance(found[k], list) else [found[k]]
        if not values or not all(isinstance(v, str) for v in values): yield f"`{k}` is not a text: quote it"


def shown_outputs(cell):
    "The outputs as Quarto counts them: without the text that only names a plot's parts."
    for o in cell.get("outputs", []):
        data = o.get("data", {})
        text = "".join(data.get("text/plain", "")) if len(data) == 1 else ""
        names_parts = text.startswith(("[<matplotlib", "<seaborn.", "<ggplot:"))
        if o["output_type"] != "execute_result" or not names_parts: yield o


def check_pictures(cell):
    "Every picture that the page shows has a text of its own, where Quarto looks for it."
    if not visible(cell) or options(cell).get("output") is False: return
    if [*check_options(option_text(partition(source(cell))[0]))]: return  # said already
    alt, outs = options(cell).get("fig-alt"), [*shown_outputs(cell)]
    drawn = [i for i, o in enumerate(outs) if any(k.startswith("image/") for k in o.get("data", {}))]
    if len(drawn) > 1 and isinstance(alt, str): yield f"has {len(drawn)} pictures and one fig-alt: give a list"
    for i in drawn:
        text = (alt[i] if i < len(alt) else "") if isinstance(alt, list) else alt
        if not str(text or "").strip():
            yield "has a picture without a text: add `#| fig-alt: \"…\"`" + \
                  (f" (of a list Quarto takes number {i + 1}: it counts all outputs)" if isinstance(alt, list) else "")
    for o in outs:
        if re.search(r"<img\b(?![^>]*\balt=[\"'][^\"'])", "".join(o.get("data", {}).get("text/html", ""))):
            yield "has an <img> without a text in its output: give it alt=\"…\""


def check_alt_argument(cell):
    "IPython's `Image(alt=…)` puts no text on the page."
    try: tree = ast.parse(source(cell))
    except SyntaxError: return
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        if name == "Image" and any(k.arg == "alt" for k in call.keywords):
            yield "gives `Image` an alt, which Quarto does not read: use `#| fig-alt: \"…\"`"


def check_dropped(cell):
    "Lines and cells that nbdev takes for something else and leaves off the page."
    text = source(cell)
    if cell["cell_type"] == "markdown" and text.strip().startswith("#") and text.strip().endswith(" -"):
        yield "ends in ` -`: nbdev leaves such a heading, and all of its cell, off the page"
    if cell["cell_type"] == "code" and visible(cell):
        try: ast.parse(text)
        except SyntaxError: return  # magics: meant
        for line in re.findall(r"^\s*%.*", text, re.M):
            yield f"`{short(line.strip())}` begins with %: nbdev takes the line for a magic and leaves it off the page"


def prose(text):
    "A markdown cell without its code."
    text = re.sub(r"^(\s*)(```+|~~~+).*?^\s*\2", "", text, flags=re.M | re.S)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text, flags=re.S)


def check_markdown(cell):
    "Markup of a markdown cell that Quarto does not read, or reads as something else."
    text = prose(source(cell))
    for name in re.findall(r"\.callout-(\w+)", text):
        if name not in CALLOUTS: yield f"Quarto knows no callout-{name}"
    if re.search(r"^---[ \t]*\n(?![ \t]*\n).*?^(---|\.\.\.)[ \t]*$", text, re.M | re.S):
        yield "has lines between `---`, which are read as metadata and not shown: leave a blank line after the rule"
    if text.count("<!--") != text.count("-->"): yield "has a comment `<!--` without its end"
    if re.search(r"\\\(.+?\\\)|^\s*\\\[", text, re.M): yield "has \\(…\\) or \\[…\\]: write formulas as $…$ or $$…$$"


def check_shortcodes(cell):
    "Quarto runs `{{< … >}}` anywhere, in code and outputs too."
    texts = [source(cell)]
    for o in cell.get("outputs", []):
        data = o.get("data", {"text": o.get("text", "")})
        texts += ["".join(v) for kind, v in data.items() if kind.startswith("text")]
    if any("{{<" in t for t in texts): yield "has `{{<`, which Quarto takes for a shortcode"


def check_cell(cell, flags=()):
    "All that is wrong with one cell."
    checks = [check_dropped, check_shortcodes]
    if cell["cell_type"] == "markdown": checks.append(check_markdown)
    if cell["cell_type"] == "code": checks += [lambda c: check_directives(c, flags), check_pictures, check_alt_argument]
    for check in checks: yield from check(cell)
