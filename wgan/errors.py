"""The errors that end a command, their exit codes, and the text of error messages."""

from collections.abc import Iterable, Iterator
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


def one_line(error: object) -> str:
    """An error's message without line breaks, which other libraries' messages may contain, and with
    escapes of terminal codes, which names of files and classes may contain."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def suggestion(name: str, names: Iterable[str]) -> str:
    """The end of an error about an unknown name: the closest of the existing ones, if one is
    close."""
    # All flags resemble each other by "--".
    bare = {other.lstrip("-").lower(): other for other in names}
    close = get_close_matches(name.lstrip("-").lower(), bare, 1, cutoff=0.7)
    return f"; did you mean {bare[close[0]]!r}?" if close else ""


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
