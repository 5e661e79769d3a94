"""Any terminal, any encoding, or none: results arrive or one line says why not, and nothing ends in a traceback."""
import io
import json
import os
import subprocess
import sys

import pytest

from conftest import posix
from diffusion_lm.cli import main
from diffusion_lm.terminal import print_json, rows, show

SAMPLE = ["sample", "tiny", "--length", "8", "--steps", "2", "--device", "cpu"]

class Tube(io.TextIOWrapper):
    "A text stream over bytes, in some encoding, as a process has for its output"
    def __init__(self, encoding="utf-8", tty=False, data=b""):
        super().__init__(io.BytesIO(data), encoding=encoding)
        self.tty = tty
    def isatty(self): return self.tty
    def fileno(self): raise io.UnsupportedOperation("no file")
    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)

def dlm(monkeypatch, *args, encoding="utf-8", stdin=b"", out=None):
    "`dlm` in this process, with streams of its own: (status, stdout, stderr)"
    out, err = out or Tube(encoding), Tube()
    with monkeypatch.context() as m:
        for name, s in dict(stdin=None if stdin is None else Tube(encoding, data=stdin), stdout=out,
                            stderr=err).items():
            m.setattr(sys, name, s)
        status = main([str(a) for a in args])
    return status, out.text() if isinstance(out, Tube) else None, err.text()

# ---- characters that the output does not have ----

@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8", "utf-16", "koi8-r"])
def test_an_output_of_any_encoding(trained, monkeypatch, encoding):
    "The prompt holds what a code page lacks; the separator of samples is no character of most"
    args = [*SAMPLE, "-n", "2", "--prompt", "\u2581\U0001f642 the"]
    args[args.index("8")] = "24"
    plain = dlm(monkeypatch, *args)[1]
    status, out, err = dlm(monkeypatch, *args, encoding=encoding)
    assert status == 0
    assert out.encode(encoding).decode(encoding) == plain.encode(encoding, "backslashreplace").decode(encoding)
    for command in (["runs"], ["eval", "tiny", "--max-tokens", "32"], ["--help"], ["sample", "--help"]):
        status, out, err = dlm(monkeypatch, *command, encoding=encoding)
        assert status == 0 and len(out) > 40, err
    status, out, err = dlm(monkeypatch, *args, "--json", encoding=encoding)
    assert [r["text"] for r in json.loads(out)] == [r["text"] for r in json.loads(dlm(monkeypatch, *args, "--json")[1])]
    assert (encoding == "utf-8") == ("\U0001f642" in out) # elsewhere it is escaped

def test_json_is_json(monkeypatch):
    for encoding in ("utf-8", "ascii"):
        out = Tube(encoding)
        with monkeypatch.context() as m:
            m.setattr(sys, "stdout", out)
            print_json({"a": float("nan"), "b": [float("inf")], "c": "half \ud83d of \U0001f642 \xe9"})
        assert json.loads(out.text(), parse_constant=pytest.fail) == {"a": None, "b": [None],
                                                                      "c": "half \ud83d of \U0001f642 \xe9"}

# ---- what is typed ----

@pytest.mark.parametrize("command", [["chat", "tiny", "--length", "4", "--steps", "2"],
                                     [*SAMPLE, "--interactive"]], ids=["chat", "interactive"])
def test_bad_bytes_cost_nothing(trained, monkeypatch, command):
    "Bytes that are no UTF-8, an empty line, a null, a line that is too long or does not end: the talk goes on"
    lines = [b"the river", b"\xff\xfe caf\xe9", b"", b"\0", b"the sea", "\u2028 \U0001f642".encode(), b"the last"]
    status, out, err = dlm(monkeypatch, *command, stdin=b"\n".join(lines))
    assert status == 0 and "Traceback" not in err
    assert len(err.splitlines()) + out.count("\n") >= len(lines)

def test_a_line_too_long_for_the_prompt(trained, monkeypatch):
    status, out, err = dlm(monkeypatch, *SAMPLE, "--interactive", stdin=b"the river " * 50 + b"\nthe")
    assert status == 0 and err.startswith("dlm: the prompt has") and out.startswith("the")

@pytest.mark.parametrize("command", [["chat", "tiny"], ["sample", "tiny", "--interactive"]],
                         ids=["chat", "interactive"])
def test_nothing_can_be_asked_for(trained, monkeypatch, tmp_path, command):
    more = ["--session", tmp_path/"talk"] if command[0] == "chat" else []
    status, out, err = dlm(monkeypatch, *command, *more, stdin=None)
    assert (status, out, err) == (2, "", "dlm: standard input is closed: nothing can be asked for\n")
    assert not (tmp_path/"talk").exists()
    class Away(Tube):
        def readline(self, *args): raise IsADirectoryError(21, "Is a directory")
    with monkeypatch.context() as m:
        m.setattr(sys, "stdin", Away())
        m.setattr(sys, "stdout", out := Tube())
        m.setattr(sys, "stderr", err := Tube())
        assert main(command) == 2 and err.text() == "dlm: standard input cannot be read: Is a directory\n"

# ---- terminals ----

TEXT = "My fellow citizens, the state \u4f60\u597d\U0001f642 of\tthe \x1b[31mUnion\n\nis strong."

@pytest.mark.parametrize("columns", [0, 1, 2, 3, 7, 80, 10**6])
def test_rows(columns):
    lines = rows(TEXT, columns)
    assert "".join(lines) == "".join(filter(str.isprintable, TEXT)) # nothing is lost, nothing can steer the terminal
    if columns > 3: assert all(sum(1 + (c > "\u2e80") for c in r) < columns for r in lines)
    assert max(map(len, lines)) <= max(1, columns)

@pytest.mark.parametrize("term", ["xterm", "dumb", ""])
@pytest.mark.parametrize("size", [("1", "1"), ("2", "0"), ("0", "0"), ("5", "3"), ("80", "24"), ("100000", "1"),
                                  ("x", "-3")])
def test_a_terminal_of_any_size(monkeypatch, size, term):
    "In the end the whole text is there, however small the screen"
    for k, v in zip(("COLUMNS", "LINES", "TERM"), (*size, term)): monkeypatch.setenv(k, v)
    out = Tube(tty=True)
    show([(TEXT[:i], None) for i in range(1, len(TEXT) + 1)], out)
    shown = "\n".join("".join(filter(str.isprintable, l)) for l in TEXT.split("\n"))
    end = out.text().split("\x1b[J")[-1]
    assert end == shown + "\n" and (term == "xterm" or "\x1b" not in out.text())

@posix
@pytest.mark.parametrize("env", [{"TERM": "xterm", "COLUMNS": "1", "LINES": "1"},
                                 pytest.param({"TERM": "dumb", "NO_COLOR": "1"}, marks=pytest.mark.slow)], ids=str)
def test_a_real_terminal(trained, env):
    import pty
    args = [sys.executable, "-m", "diffusion_lm", *SAMPLE, "--stream"]
    pid, fd = pty.fork()
    if pid == 0: os.execvpe(args[0], args, {**os.environ, "DIFFUSION_LM_HOME": str(trained), **env})
    got = b""
    try:
        while part := os.read(fd, 65536): got += part
    except OSError: pass # how a terminal ends
    assert os.waitpid(pid, 0)[1] == 0 and b"Traceback" not in got and len(got) > 3, got

# ---- streams that are closed or full ----

def shell(home, line):
    "The status, stdout and stderr of a line of the shell; `dlm` stands for the command"
    p = subprocess.run(["bash", "-c", line.replace("dlm", f"'{sys.executable}' -m diffusion_lm")],
                       capture_output=True, text=True, timeout=300,
                       env={**os.environ, "DIFFUSION_LM_HOME": str(home)})
    return p.returncode, p.stdout, p.stderr

@posix
@pytest.mark.parametrize("line, status, why", [
    ("dlm --help >&-", 0, ""), ("dlm --help 2>&-", 0, ""), ("dlm runs <&- >&- 2>&-", 0, ""),
    ("dlm chat tiny <&-", 2, "standard input is closed"),
    ("dlm --help >/dev/full", 2, "the output cannot be written: No space left on device"),
    ("dlm nonsense 2>/dev/full", 2, ""),
    ("dlm --help | true; exit ${PIPESTATUS[0]}", 0, ""),
], ids=str)
def test_closed_and_full(trained, line, status, why):
    got, out, err = shell(trained, line)
    assert got == status and err.count("\n") == bool(why) and why in err, (got, out, err)

@posix
@pytest.mark.parametrize("ears", ["<&- 2>&-", pytest.param("2> >(true)", marks=pytest.mark.slow)])
def test_a_training_that_nobody_listens_to(trained, recipe, ears):
    "Notes that cannot be written are dropped; the run is there, whole, and nothing has been written into its files"
    got, out, err = shell(trained, f"dlm train --config {recipe} --name alone --json {ears}; exit $?")
    assert got == 0 and json.loads(out)["steps"] == 24
    run = trained/"checkpoints"/"alone"
    assert (run/"model.safetensors").read_bytes() == (trained/"checkpoints"/"tiny"/"model.safetensors").read_bytes()

# ---- the module as a command ----

@pytest.mark.parametrize("module", ["diffusion_lm", "diffusion_lm.cli"])
def test_python_m(trained, module):
    p = subprocess.run([sys.executable, "-m", module, "no-such-command"], capture_output=True, text=True,
                       env={**os.environ, "DIFFUSION_LM_HOME": str(trained)})
    assert (p.returncode, p.stdout) == (2, "") and p.stderr.startswith("dlm: unknown command 'no-such-command'")

def test_importing_starts_nothing():
    p = subprocess.run([sys.executable, "-c", "import diffusion_lm.__main__; print('quiet')"],
                       capture_output=True, text=True)
    assert (p.stdout, p.stderr) == ("quiet\n", "")

def test_help_of_a_command(monkeypatch):
    assert dlm(monkeypatch, "help", "runs") == dlm(monkeypatch, "runs", "--help")
