"""The errors that end a command, their exit codes, and a parser that raises them."""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches

import torch


class CommandError(Exception):
    """Ends a command with one line on standard error and this exit code."""

    exit_code = 1


class BadInput(CommandError, ValueError):
    """The request cannot be carried out, and the user can correct it."""

    exit_code = 2


class TrainingFailed(CommandError):
    """Training cannot continue; the last good checkpoint is untouched."""


class PeerFailed(CommandError):
    """Another rank failed, and reports the reason itself."""


def one_line(error: Exception) -> str:
    """An error's message without line breaks, which other libraries' messages may contain."""
    return " ".join(str(error).split())


def suggestion(name: str, names: Iterable[str]) -> str:
    """The end of an error about an unknown name: the closest of the known ones, if any is close."""
    # All flags resemble each other by "--".
    bare = {other.lstrip("-").lower(): other for other in names}
    close = get_close_matches(name.lstrip("-").lower(), bare, 1, cutoff=0.7)
    return f"; did you mean {bare[close[0]]!r}?" if close else ""


class Parser(argparse.ArgumentParser):
    """Invalid flags raise a ValueError, as invalid values do, so that one place reports both.

    `hints` says what to use instead of flags of other programs.
    """

    hints: Mapping[str, str] = {}

    def parse_args(self, *arguments) -> argparse.Namespace:
        found, unknown = self.parse_known_args(*arguments)
        if unknown:
            name = unknown[0].split("=")[0]
            known = [text for action in self._actions for text in action.option_strings]
            hint = self.hints.get(name.replace("_", "-"))
            hint = f": {hint}" if hint else suggestion(name, known)
            raise ValueError(f"unknown argument {unknown[0]!r}{hint}")
        return found

    def error(self, message):
        raise ValueError(message)


def refuse_unused(options: argparse.Namespace, names: Iterable[str], case: str) -> None:
    """ValueError for the first of these options that was given although it has no effect in this
    case; one that was not given is None."""
    for name in names:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} has no effect {case}: remove it")


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into a `TrainingFailed` that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingFailed(
            f"out of memory: {advice} ({(str(error) or 'no details').splitlines()[0]})"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has an exception class for it; MPS and the CPU's allocator raise a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory")
    )
