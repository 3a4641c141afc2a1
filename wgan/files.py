"""Atomic writes, sizes, locks between processes, and marks of this project's own output."""

import errno
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

MARK = "drawn by the Wasserstein GAN project"  # in every grid, plot and animation
GENERATED = ".generated"  # a file in each folder of generated images
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP)  # by a file system


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as `replacing` does. What is no regular file, such as /dev/stdout, is written to
    and not replaced."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        path.write_bytes(content)
        return
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A file that replaces the one at `path` at the end of the block: at any moment, also after a
    power loss, `path` has the old content or the new. `previous` then has the old one."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "w+b") as file:
            yield file
        sync(temporary)
        if previous and path.exists():
            previous.unlink(missing_ok=True)
            try:
                os.link(path, previous)
            except OSError:  # a file system without links
                os.replace(path, previous)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where that is offered."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, *UNSUPPORTED):
            raise
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """A name next to `path` for what is not whole so far, which no other process uses."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path, name: str, seconds: float) -> None:
    """Remove the temporary files of killed processes for paths in the folder that match `name`, if
    nothing was written to them for a while."""
    for path in folder.glob(f"{name}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= seconds:
                path.unlink()


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
        if isinstance(error, TimeoutError) or error.errno not in (errno.ENOLCK, *UNSUPPORTED):
            raise
        print(
            f"cannot lock {path} ({error.strerror}): make sure that no other process uses its "
            "folder",
            file=sys.stderr,
        )
    return stack
