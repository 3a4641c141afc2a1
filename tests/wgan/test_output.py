"""Output that cannot be written is dropped or escaped, and the command continues."""

import io
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from wgan.output import SafeStream, safe_output


class Broken(io.StringIO):
    """A stream whose writes fail as long as `error` is set."""

    error: Exception | None = None

    def write(self, text):
        if self.error:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(32, "Broken pipe"), OSError(5, "Input/output error"), ValueError("closed")],
)
def test_a_failure_is_reported_once_on_the_other_stream(error):
    stream, other = Broken(), io.StringIO()
    safe = SafeStream(stream, other)
    print("before", file=safe)
    stream.error = error
    for _ in range(3):
        print("lost", file=safe, flush=True)
    assert stream.getvalue() == "before\n"
    assert other.getvalue().count("cannot be written") == 1
    assert str(error) in other.getvalue()


def test_output_continues_when_there_is_space_again():
    stream, other = Broken(), io.StringIO()
    safe = SafeStream(stream, other)
    stream.error = OSError(28, "No space left on device")
    print("lost", file=safe)
    stream.error = None
    print("written", file=safe)
    assert stream.getvalue().endswith("written\n")
    assert "No space left" in other.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "cp1251"])
def test_characters_that_the_encoding_lacks_are_escaped(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    print("Fr\u00e9chet \U0001f642 7", file=SafeStream(stream, None), flush=True)
    text = raw.getvalue().decode(encoding)
    assert "7" in text and "\\U0001f642" in text


def test_streams_that_do_not_exist_are_left_alone(monkeypatch):
    """A program without a console on Windows has neither."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with safe_output():
        print("nowhere")
        assert sys.stdout is None and sys.stderr is None


def test_streams_are_restored(capsys):
    before = sys.stdout, sys.stderr
    with safe_output():
        assert isinstance(sys.stdout, SafeStream)
        print("hello")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "hello\n"


def program_of(code):
    """The command of a program that runs lines inside `safe_output`, then writes a file."""
    lines = ["import sys", f"sys.path.insert(0, {str(ROOT)!r})"]
    lines += ["from wgan.output import safe_output", "with safe_output():"]
    lines += [f"    {line}" for line in code] + ["open(sys.argv[1], 'w').write('done')"]
    return [sys.executable, "-c", "\n".join(lines)]


MANY_LINES = ["for i in range(20000):", "    print('line', i)"]


def test_failures_leave_no_open_files():
    stream = io.StringIO()
    safe = SafeStream(stream, None)
    stream.close()
    before = os.dup(1)
    os.close(before)
    for _ in range(20):
        print("lost", file=safe, flush=True)
    after = os.dup(1)
    os.close(after)
    assert after == before  # the lowest free number


def test_blocks_in_two_threads_restore_the_streams(capsys):
    """Also if the one that began first ends first."""
    before = sys.stdout, sys.stderr
    first, second = safe_output(), safe_output()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes of this kind")
@pytest.mark.parametrize("lines", [["print('one line')"], MANY_LINES])
def test_a_reader_that_goes_away_does_not_change_the_exit_code(lines, tmp_path):
    command = program_of(lines)
    reading, writing = os.pipe()
    os.close(reading)
    done = tmp_path / "done"
    process = subprocess.run([*command, done], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (process.returncode, done.read_text()) == (0, "done")
    assert process.stderr.count("\n") <= 1 and "Traceback" not in process.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("lines", [["print('one line')"], MANY_LINES])
def test_a_full_disk_under_the_log_does_not_change_the_exit_code(lines, tmp_path):
    command = program_of(lines)
    done = tmp_path / "done"
    with open("/dev/full", "w") as full:
        process = subprocess.run([*command, done], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (process.returncode, done.read_text()) == (0, "done")
    assert "Traceback" not in process.stderr
