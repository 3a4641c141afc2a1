"""Output that cannot be written is dropped or escaped, and the command continues."""

import io
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers import arguments_for

from wgan.checkpoints import read_checkpoint
from wgan.command import SafeStream, run_script, safe_output

pytestmark = pytest.mark.slow


class Full(io.StringIO):
    """A stream that cannot be written to as long as `full`."""

    full = True

    def write(self, text):
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_output_continues_when_there_is_space_again():
    stream = Full()
    safe = SafeStream(stream)
    print("lost", file=safe, flush=True)
    stream.full = False
    print("written", file=safe, flush=True)
    assert stream.getvalue() == "written\n"
    stream.close()
    print("lost", file=safe, flush=True)


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "cp1251"])
def test_characters_that_the_encoding_lacks_are_escaped(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    print("Fr\u00e9chet \U0001f642 7", file=SafeStream(stream), flush=True)
    text = raw.getvalue().decode(encoding)
    assert "7" in text and "\\U0001f642" in text


def test_streams_are_restored(monkeypatch, capsys):
    before = sys.stdout, sys.stderr
    with safe_output():
        print("hello")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "hello\n"
    monkeypatch.setattr(sys, "stdout", None)  # closed before Python started
    with safe_output():
        print("nowhere")
    assert sys.stdout is None


NIGHTLY_TARGETS = [("full disk", 1), ("terminal", 20_000)]


def open_target(name):
    """A file descriptor to which nothing can be written."""
    if name == "full disk":
        return os.open("/dev/full", os.O_WRONLY)
    other, writing = os.pipe() if name == "pipe" else os.openpty()
    os.close(other)
    return writing


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ("pipe", 1),
        ("full disk", 20_000),
        *(pytest.param(*case, marks=pytest.mark.nightly) for case in NIGHTLY_TARGETS),
    ],
)
def test_output_that_cannot_be_written_does_not_change_the_exit_code(target, lines, tmp_path):
    program = [
        "import sys",
        "from wgan.command import safe_output",
        "with safe_output():",
        f"    for number in range({lines}): print('line', number)",
        "    open(sys.argv[1], 'w').write('done')",
    ]
    command = [sys.executable, "-c", "\n".join(program), str(tmp_path / "done")]
    writing = open_target(target)
    process = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, b"")
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_training_into_head_reaches_its_end(image_folder, tmp_path):
    arguments = arguments_for(image_folder, tmp_path / "r", "--steps", 4)
    train = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    head = subprocess.run(["head", "-n", "1"], stdin=train.stdout, capture_output=True, text=True)
    train.stdout.close()
    errors = train.stderr.read()
    assert train.wait() == 0, errors
    assert "Traceback" not in errors
    assert head.stdout == "options: configs/images.toml\n"
    assert read_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 4


@pytest.mark.parametrize("in_kernel", [False, True])
def test_commands_of_a_notebook_cell_ignore_its_backend(in_kernel, monkeypatch):
    """The commands' environment may lack it, and importing matplotlib would fail. In the notebook's
    own process, figures need it."""
    monkeypatch.setenv("MPLBACKEND", "module://backend_of_a_notebook")
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if in_kernel:
        monkeypatch.setitem(sys.modules, "ipykernel", None)
    assert run_script(lambda: "MPLBACKEND" in os.environ) == in_kernel
