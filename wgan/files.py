"""Writing files that survive faults: whole or not at all, and by one process at a time."""

import errno
import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

SECONDS_BETWEEN_TRIES = 0.2


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at any moment the old content or the new is there, and whole."""
    os.replace(write_temporary(path, content), path)


def write_temporary(path: Path, content: bytes) -> Path:
    """The content, safely on disk, in a temporary file beside `path`."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def lock_folder(path: Path) -> BinaryIO:
    """Keep other processes out of a folder while the returned file is open.

    The system releases the lock when its process ends, however it ends. BlockingIOError where
    another process holds it.
    """
    file = open(path / "lock", "ab")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            file.close()
            raise BlockingIOError(errno.EWOULDBLOCK, "in use", str(path)) from None
        print(
            f"{path} cannot be locked ({error}): take care that no other process works there",
            file=sys.stderr,
        )
    return file


def wait_for_lock(path: Path, message: str) -> BinaryIO:
    """`lock_folder`, as soon as no other process holds it; the message is said if one does."""
    try:
        return lock_folder(path)
    except BlockingIOError:
        print(message, file=sys.stderr, flush=True)
    while True:
        time.sleep(SECONDS_BETWEEN_TRIES)
        try:
            return lock_folder(path)
        except BlockingIOError:
            continue
