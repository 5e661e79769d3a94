"""Is anything on a page wider than a phone, or cut off? Asked of a headless Chromium, where there is one.

Quarto is on no package registry, so each page stands in a frame that imitates its narrow layout: one column, its
margins, the site's own style sheet, and what its themes say of code and tables. What may be pushed sideways within a
box of its own (a table, a formula) is not too wide; what widens the page is.
"""
import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent/"nbs"
WIDTH = 390  # pixels of a phone
BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"

QUARTO = """
* { box-sizing: border-box; }
body { margin: 0; font: 17px/1.5 sans-serif; }
main { padding: 0 1em; }
pre { padding: .4em .6em; font-size: .875em; margin: 0 0 1em; }
pre > code { white-space: pre-wrap; }
code { font-size: .875em; }
table { border-collapse: collapse; margin-bottom: 1rem; }
th, td { padding: .5rem; vertical-align: top; }
.dataframe th, .dataframe td { padding: .2rem .5rem; white-space: nowrap; }
"""

# Goes from page to page in one frame, and leaves what it found as JSON in the document.
DRIVER = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const found = {}, names = PAGES, f = document.body.appendChild(document.createElement('iframe'));
f.style.cssText = 'border:0;width:WIDTHpx;height:800px';
const scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
const about = e => e.tagName.toLowerCase() + ' ' + (e.textContent || e.title || '').trim().slice(0, 60);
function measure(doc) {
  const out = [], widens = doc.scrollingElement.scrollWidth > WIDTH;
  for (const e of doc.querySelectorAll('main *')) {
    if (e.closest('svg')) continue;
    const box = e.getBoundingClientRect(), hides = getComputedStyle(e).overflowX === 'hidden';
    let a = e.parentElement;
    while (a && a.tagName !== 'MAIN' && !scrolls(a)) a = a.parentElement;
    const free = a && a.tagName === 'MAIN';
    if (widens && free && box.right > WIDTH + 1) out.push(['wide', Math.round(box.right), about(e)]);
    if (hides && box.width > 1 && e.scrollWidth > e.clientWidth + 1) out.push(['cut', e.scrollWidth, about(e)]);
  }
  return out.slice(0, 3);
}
function next() {
  const name = names.shift();
  if (name === undefined) {
    const done = document.createElement('pre'); done.id = 'found'; done.textContent = JSON.stringify(found);
    return document.body.replaceChildren(done);
  }
  f.onload = () => { found[name] = measure(f.contentDocument); next(); };
  f.src = name;
}
next();
</script>"""


def browser(): return next(filter(None, map(shutil.which, BROWSERS)), None)


def framed(body):
    "A page as a phone shows it"
    style = QUARTO + (NBS/"styles.css").read_text(encoding="utf-8")
    return f'<!DOCTYPE html><html><meta charset="utf-8"><style>{style}</style><body><main>{body}</main></body></html>'


def too_wide(bodies):
    "Of each page (path → HTML): kind, pixels and text of what is too wide or cut off"
    with tempfile.TemporaryDirectory() as d:
        names = {f"page{i}.html": path for i, path in enumerate(bodies)}
        for name, path in names.items(): (Path(d)/name).write_text(framed(bodies[path]), encoding="utf-8")
        driver = DRIVER.replace("PAGES", json.dumps([*names])).replace("WIDTH", str(WIDTH))
        (Path(d)/"index.html").write_text(driver, encoding="utf-8")
        run = subprocess.run(
            [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
             f"--user-data-dir={d}/profile", "--virtual-time-budget=600000", "--dump-dom", f"file://{d}/index.html"],
            capture_output=True, text=True, encoding="utf-8", timeout=600)
    found = re.search(r'<pre id="found">(.*?)</pre>', run.stdout, re.S)
    if not found: raise RuntimeError(f"the browser gave no answer: {run.stderr.strip()[-300:]}")
    return {names[n]: what for n, what in json.loads(html.unescape(found[1])).items()}


def problems(bodies):
    "(page, what is wrong) for all pages; nothing where there is no browser"
    if not browser(): return
    for path, found in too_wide(bodies).items():
        for kind, pixels, text in found:
            what = f"wider than a phone ({pixels} of {WIDTH} pixels)" if kind == "wide" else "cut off on a phone"
            yield path, f"{what}: {' '.join(text.split())}"
