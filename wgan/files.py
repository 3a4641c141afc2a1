"""Atomic writes, sizes, locks between processes, and marks of this project's own output."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock

MARK = "drawn by the Wasserstein GAN project"  # in every grid, plot and animation
GENERATED = ".generated"  # a file in each folder of generated images


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: at any moment it has the old content or the new."""
    os.replace(write_temporary(path, content), path)


def write_temporary(path: Path, content: bytes) -> Path:
    """Write and sync the content to a temporary file next to `path`, unique to the process."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def try_to_write(what: str, write: Callable, *arguments) -> bool:
    """Whether it could be written; if not, the reason is printed and the command continues."""
    try:
        write(*arguments)
        return True
    except OSError as error:
        print(f"could not write the {what}: {error}", file=sys.stderr)
        return False


def check_output(option: str, text: str) -> Path:
    """The path of a file to write; ValueError if it is a folder, or in a missing one."""
    path = Path(text)
    if path.is_dir() or text.endswith(("/", os.sep)):
        raise ValueError(f"{option} {text} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {text}: there is no folder {path.parent}: create it first")
    return path


def format_size(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def acquire_lock(path: Path, timeout: float = -1) -> ExitStack:
    """Lock a file against other processes; closing the returned stack releases the lock, and so
    does the end of the process.

    Raises filelock.Timeout if another process holds it after `timeout` seconds (negative: waits).
    On a file system without locks, a warning is printed instead.
    """
    stack, lock = ExitStack(), FileLock(path)
    try:
        lock.acquire(timeout=timeout)
        stack.callback(lock.release)
    except OSError as error:
        if isinstance(error, TimeoutError) or error.errno not in NO_LOCKS:
            raise
        print(
            f"cannot lock {path} ({error.strerror}): make sure that no other process uses its "
            "folder",
            file=sys.stderr,
        )
    return stack


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
