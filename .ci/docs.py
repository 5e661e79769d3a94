"""Build the site into _docs with nbdev_docs, leave README.md as it was, and look at what was built.

nbdev writes a README.md of its own with Quarto before it builds the site, even when the build then fails; ours is
written by readme.py. A warning of Quarto, or a link that leads nowhere on the built site, fails the build.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
README = ROOT/"README.md"


WARNING = re.compile(r"\bWARN(?:ING)?\b")  # as Quarto and pandoc begin such a line


class Links(HTMLParser):
    "The anchors of a page, and where its links lead"
    def __init__(self, html):
        super().__init__()
        self.ids, self.hrefs = set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"): self.hrefs.append(a["href"])
        if tag in ("img", "script") and a.get("src"): self.hrefs.append(a["src"])


def dead_links(site, url=""):
    "page: link, for each link of a built site that leads nowhere on it; `url` is the site's own address"
    pages = {p.resolve(): Links(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html"))}
    for page, links in pages.items():
        for href in dict.fromkeys(links.hrefs):
            inside = href.removeprefix(url) if url and href.startswith(url) else None
            if inside is None and re.match(r"[a-z]+:|//", href): continue
            target, _, anchor = unquote(href if inside is None else inside).partition("#")
            target = target.partition("?")[0]
            base = page.parent if inside is None else site
            file = (base/target).resolve() if target or inside is not None else page
            if file.is_dir(): file = file/"index.html"
            missing = anchor and file in pages and anchor not in pages[file].ids and not anchor.startswith("sample=")
            if not file.exists() or missing: yield f"{page.relative_to(site.resolve())}: dead link {href}"


def built(env):
    "Run nbdev_docs, show what it says, and return its status and its warnings"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = subprocess.Popen(["nbdev_docs"], cwd=ROOT, env=env, **pipes)
    warnings = []
    for line in run.stdout:
        print(line, end="", flush=True)
        if WARNING.search(line): warnings.append(line.strip())
    return run.wait(), warnings


def main():
    if not shutil.which("quarto"):
        sys.exit("Quarto is not installed: get it from https://quarto.org/docs/get-started/ and run make docs again")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` is reached
    kept = README.read_bytes()
    README.touch()  # nbdev leaves one alone that is newer than its notebook
    paths = [str(ROOT/".ci"), *filter(None, [os.environ.get("PYTHONPATH")])]  # settings.ini names symbol_links
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try: status, warnings = built(env)
    finally:
        if not README.is_file() or README.read_bytes() != kept: README.write_bytes(kept)
    if status: return status
    cfg = ConfigParser()
    cfg.read(ROOT/"settings.ini", encoding="utf-8")
    url = "{doc_host}{doc_baseurl}/".format(**cfg["DEFAULT"])
    found = [*warnings, *dead_links(ROOT/"_docs", url)]
    for what in found: print(what)
    return bool(found)


if __name__ == "__main__": sys.exit(main())
