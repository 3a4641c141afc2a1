"""Where pictures come from, and one of any kind to bytes of one size."""

import io
import math
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageOps

Size = tuple[int, int]  # height, width

# ---------------------------------------------------------------- sources


@dataclass(frozen=True)
class Listing:
    """The names of pictures, and `(N, 2)` what tells that one has changed: its file's size in
    bytes and its time of change in nanoseconds."""

    names: list[str]
    stamps: np.ndarray

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Listing)
            and self.names == other.names
            and np.array_equal(self.stamps, other.stamps)
        )


class PictureSource(Protocol):
    """Pictures by name. It can be pickled, so that other processes can open them, too."""

    path: Path

    def list(self) -> Listing: ...

    def open(self, name: str) -> Image.Image: ...


@dataclass(frozen=True)
class FolderSource:
    """All files below a folder, but for those below `leave_out`."""

    path: Path
    leave_out: Path | None = None

    def list(self) -> Listing:
        found = list_files(self.path, self.leave_out)
        stamps = np.array([stamp for _, *stamp in found], np.int64).reshape(-1, 2)
        return Listing([name for name, *_ in found], stamps)

    def open(self, name: str) -> Image.Image:
        return open_picture(self.path / name)


class LsunSource:
    """The pictures in one of LSUN's data bases, which tells only of itself when it changed.

    ValueError where there is no package to read it.
    """

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def base(self):
        try:
            import lmdb
        except ImportError as error:
            raise ValueError("lsun needs one more package: pip install lmdb") from error
        try:
            return lmdb.open(str(self.path), readonly=True, lock=False)
        except lmdb.Error as error:
            raise ValueError(f"the data base {self.path} cannot be read: {error}") from error

    def __getstate__(self) -> dict:
        return {"path": self.path}  # each process opens the data base itself

    def list(self) -> Listing:
        status = (self.path / "data.mdb").stat()
        with self.base.begin() as transaction:
            keys = transaction.cursor().iternext(values=False)
            names = [key.decode("utf-8", "surrogateescape") for key in keys]
        stamp = np.array([status.st_size, status.st_mtime_ns], np.int64)
        return Listing(names, np.tile(stamp, (len(names), 1)))

    def open(self, name: str) -> Image.Image:
        with self.base.begin() as transaction:
            value = transaction.get(name.encode("utf-8", "surrogateescape"))
        return open_picture(io.BytesIO(value))


def list_files(folder: Path, leave_out: Path | None = None) -> list[tuple[str, int, int]]:
    """Path, size and time of change (ns) of all files but hidden ones, sorted by path.

    Paths are relative and with "/". Linked folders are entered once, so that a loop of links
    ends.
    """
    found: list[tuple[str, int, int]] = []
    seen = {os.path.realpath(leave_out)} if leave_out else set()
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        path = os.path.join(folder, parent)
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        folders = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    with suppress(OSError):  # gone meanwhile
                        if entry.is_dir():
                            folders.append(f"{parent}{entry.name}/")
                        elif entry.is_file():
                            status = entry.stat()
                            stamp = status.st_size, status.st_mtime_ns
                            found.append((parent + entry.name, *stamp))
        except OSError as error:
            if not parent:
                raise
            print(f"{path} is left out: {error}", file=sys.stderr)
        waiting += sorted(folders, reverse=True)
    return sorted(found)


# ---------------------------------------------------------------- one picture


def open_picture(source: Path | BinaryIO) -> Image.Image:
    """Open without decoding; not formats that Pillow hands to another program to draw."""
    Image.init()
    return Image.open(source, formats=[name for name in Image.OPEN if name not in ("EPS", "WMF")])


def picture_to_bytes(picture, size: Size, grey: bool) -> np.ndarray:
    """One Pillow image, the first frame of an animation, upright, as bytes `(C, H, W)`."""
    # JPEG files are decoded at the smallest eighth that still covers the size, many times faster.
    picture.draft(None, (2 * max(size), 2 * max(size)))
    picture = flatten_modes(ImageOps.exif_transpose(picture)).convert("L" if grey else "RGB")
    (height, width), (top, left) = resize_then_crop((picture.height, picture.width), size)
    scale_x, scale_y = picture.width / width, picture.height / height
    box = (
        left * scale_x,
        top * scale_y,
        (left + size[1]) * scale_x,
        (top + size[0]) * scale_y,
    )
    picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)


def flatten_modes(picture):
    """Transparent pictures over white; 16 bits, 32 bits and floats to 8 bits."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.float64)
        if picture.mode == "F":  # no fixed range: the picture's own
            low, high = values.min(), values.max()
            values = (values - low) * (255 / (high - low) if high > low else 0)
        else:  # Pillow has 16 bits as "I" too; more than that is 31 bits and a sign
            values = values / (256 if values.max() < 2**16 else 2**23)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture)
    return picture


def resize_then_crop(source: Size, target: Size) -> tuple[Size, tuple[int, int]]:
    """The size to resize to so that `target` is just covered, and the crop's top and left."""
    scale = max(target[0] / source[0], target[1] / source[1])
    inner = tuple(max(t, round(s * scale)) for s, t in zip(source, target, strict=True))
    return inner, ((inner[0] - target[0]) // 2, (inner[1] - target[1]) // 2)


def empty_bytes(shape: tuple[int, ...]) -> np.ndarray:
    """An array of bytes; ValueError, with its size, where there is no memory for it."""
    try:
        return np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:  # ValueError: more than can be addressed
        size = math.prod(shape) / 2**30
        text = "x".join(map(str, shape))
        raise ValueError(
            f"{text} bytes of pictures need {size:,.1f} GiB of memory: use a smaller --image-size"
        ) from error
