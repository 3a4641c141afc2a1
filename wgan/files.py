"""Atomic writes."""

import os
from pathlib import Path


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
