"""Standard output and error that never end a command.

A reader that goes away (`head`, a closed terminal), a full disk under a log file, or a console
whose encoding lacks a character must not end hours of training.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from wgan.errors import BadInput, one_line

TEMPORARY = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EAGAIN, errno.EINTR)


class SafeStream:
    """A text stream like `stream`, except that what it cannot write is escaped or dropped.

    The first failure is reported on `other`, if that is another stream. After a failure that is not
    temporary, everything goes to the null device, so that the interpreter's last flush succeeds.
    """

    def __init__(self, stream: TextIO, other: TextIO | None):
        self.stream, self.other, self.failed = stream, other, False

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding
            escaped = text.encode(encoding, "backslashreplace").decode(encoding)
            self.attempt(self.stream.write, escaped)
        except (OSError, ValueError) as error:  # ValueError: closed
            self.report(error)
        return len(text)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, function, *arguments) -> None:
        try:
            function(*arguments)
        except (OSError, ValueError) as error:
            self.report(error)

    def report(self, error: Exception) -> None:
        if getattr(error, "errno", None) not in TEMPORARY:
            self.discard()
        if not self.failed and self.other is not None:
            self.failed = True
            with suppress(OSError, ValueError):
                print(
                    f"the output cannot be written ({error}); the command continues without it",
                    file=self.other,
                    flush=True,
                )

    def close_safely(self) -> None:
        """Flush; what cannot be written then is discarded, as the exit code would change."""
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self.discard()

    def discard(self) -> None:
        """Connect the stream's file descriptor to the null device."""
        with suppress(OSError, ValueError, AttributeError):
            descriptor = self.stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


@contextmanager
def safe_output() -> Iterator[None]:
    """Inside the block, `print` and progress bars never fail."""
    if isinstance(sys.stdout, SafeStream) or isinstance(sys.stderr, SafeStream):
        yield  # another thread's block has replaced them
        return
    error, output = sys.stderr, sys.stdout  # None: a program without a console on Windows
    safe_error = None if error is None else SafeStream(error, None)
    safe_output = None if output is None else SafeStream(output, safe_error)
    sys.stderr, sys.stdout = safe_error, safe_output
    try:
        yield
    finally:
        sys.stderr, sys.stdout = error, output
        for stream in (safe_output, safe_error):
            if stream is not None:
                stream.close_safely()


def run_script(run: Callable[[], None]) -> int:
    """Run a command whose output never ends it; the exit code: 0 done, 2 bad input, 130 Ctrl-C.

    Bad input is a ValueError or an OSError, reported in one line.
    """
    with safe_output():
        try:
            run()
        except (ValueError, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return BadInput.exit_code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    return 0
