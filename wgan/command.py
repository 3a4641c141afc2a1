"""What all commands share: a parser, messages and exit codes, output that never ends a command."""

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TextIO

from wgan import distributed
from wgan.config import at_least
from wgan.errors import BadInput, CommandError, PeerFailed, one_line, suggestion

UNWRITABLE = (OSError, ValueError)  # a closed pipe or terminal, a full disk; a closed stream

# ---------------------------------------------------------------- arguments


class Parser(argparse.ArgumentParser):
    """Invalid flags raise a ValueError, as invalid values do, so that one place reports both."""

    def __init__(self, formatter_class=argparse.RawDescriptionHelpFormatter, **options):
        super().__init__(formatter_class=formatter_class, allow_abbrev=False, **options)

    def parse_args(self, *arguments) -> argparse.Namespace:
        options, unknown = self.parse_known_args(*arguments)
        if unknown:
            flags = [text for action in self._actions for text in action.option_strings]
            hint = suggestion(unknown[0].split("=")[0], flags)
            raise ValueError(f"unknown argument {unknown[0]!r}{hint}")
        return options

    def error(self, message):
        raise ValueError(message)


def integer(minimum: int, maximum: float = math.inf) -> Callable[[str], int]:
    """The type of an argument that is an integer from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        if problem := at_least(minimum, maximum)(int(text)):
            raise argparse.ArgumentTypeError(f"{text}: {problem}")
        return int(text)

    parse.__name__ = "int"  # in argparse's message about a text that is no integer
    return parse


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of commands that sample a generator; `seed` and `weights` are None if they
    are not given."""
    add = parser.add_argument
    add("--seed", metavar="N", type=integer(0), help="random seed of the noise (default: 0)")
    weights_help = "weights of the moving average, or of the last step (default: ema)"
    add("--from", dest="weights", choices=("ema", "raw"), help=weights_help)
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, mps (default: auto)")


def refuse_unused(values: Mapping[str, object], case: str) -> None:
    """ValueError for the first flag that was given although it has no effect in this case.

    `values` maps flags to their values; None: not given.
    """
    for flag, value in values.items():
        if value is not None:
            raise ValueError(f"{flag} has no effect {case}: remove it")


# ---------------------------------------------------------------- running


def run_script(
    run: Callable[[], int | None],
    bad_input: tuple[type[Exception], ...] = (ValueError, OSError),
) -> int:
    """Run a command whose output never ends it, and report its error in one line.

    Returns the exit code: that of `run` (None: 0), 1 or 2 for a `CommandError`, 2 for exceptions
    of the kinds `bad_input`, 130 for Ctrl-C.
    """
    if "ipykernel" not in sys.modules:  # a notebook's cells pass on a backend that may not exist
        os.environ.pop("MPLBACKEND", None)
    with safe_output():
        try:
            return run() or 0
        except PeerFailed as error:
            print(error, file=sys.stderr)
            return error.exit_code
        except (CommandError, *bad_input) as error:
            rank = "" if distributed.is_first() else f" on rank {distributed.rank()}"
            print(f"error{rank}: {one_line(error)}", file=sys.stderr)
            return getattr(error, "exit_code", BadInput.exit_code)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130


class SafeStream:
    """A text stream that drops what it cannot write."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # characters that the encoding lacks

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(*UNWRITABLE):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(*UNWRITABLE):
            self.stream.flush()


@contextmanager
def safe_output() -> Iterator[None]:
    """Inside the block, `print` and progress bars never fail: a reader that goes away (`head`, a
    closed terminal) or a full disk must not end hours of training."""
    streams = sys.stdout, sys.stderr  # None if they were closed before Python started
    sys.stdout, sys.stderr = (stream and SafeStream(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in filter(None, streams):
            flush_or_discard(stream)


def flush_or_discard(stream: TextIO) -> None:
    """Flush a stream; if that fails, connect it to the null device, because the interpreter's last
    flush would fail, too, and change the exit code."""
    try:
        stream.flush()
    except UNWRITABLE:
        with suppress(*UNWRITABLE), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), stream.fileno())
