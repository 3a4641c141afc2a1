"""Standard output and error that never end a command.

A reader that goes away (`head`, a closed terminal), a full disk under a log file, or a console
whose encoding lacks a character must not end hours of training.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
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
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


@contextmanager
def safe_output() -> Iterator[None]:
    """Inside the block, `print` and progress bars never fail."""
    with ExitStack() as stack:
        error, output = sys.stderr, sys.stdout
        if error is not None:  # None: a program without a console on Windows
            safe_error = SafeStream(error, None)
            stack.callback(safe_error.close_safely)
            stack.enter_context(redirect_stderr(safe_error))
        if output is not None:
            safe = SafeStream(output, sys.stderr)
            stack.callback(safe.close_safely)
            stack.enter_context(redirect_stdout(safe))
        yield


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
