"""Build the site into _docs with nbdev_docs, and leave README.md as it was.

nbdev writes a README.md of its own with Quarto before it builds the site, even when the build then fails; ours is
written by readme.py.
"""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT/"README.md"


def main():
    if not shutil.which("quarto"):
        sys.exit("Quarto is not installed: get it from https://quarto.org/docs/get-started/ and run make docs again")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` is reached
    kept = README.read_bytes()
    README.touch()  # nbdev leaves one alone that is newer than its notebook
    paths = [str(ROOT/".ci"), *filter(None, [os.environ.get("PYTHONPATH")])]  # settings.ini names symbol_links
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try: return subprocess.run(["nbdev_docs"], cwd=ROOT, env=env).returncode
    finally:
        if not README.is_file() or README.read_bytes() != kept: README.write_bytes(kept)


if __name__ == "__main__": sys.exit(main())
