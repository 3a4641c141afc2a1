"""Picture files of every kind to bytes of one size."""

import math
import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

Size = tuple[int, int]  # height, width


def list_files(folder: Path) -> list[str]:
    """Paths, relative and with "/", of all files but hidden ones, sorted.

    Linked folders are entered once, so that a loop of links ends.
    """
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        found += [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return sorted(found)


def read_pictures(
    readers: Iterable[tuple[str, Callable]], count: int, size: Size, grey: bool
) -> tuple[np.ndarray, dict[str, str]]:
    """Decode `count` pictures on all cores into bytes `(N, C, *size)`.

    Each reader is a name and a function that opens the picture. Also returns, by name, why
    a picture could not be read.
    """
    samples = empty_bytes((count, 1 if grey else 3, *size))
    kept = np.zeros(count, bool)
    skipped: dict[str, str] = {}

    def read(item: tuple[int, tuple[str, Callable]]) -> None:
        index, (name, opener) = item
        try:
            with opener() as picture:
                samples[index] = picture_to_bytes(picture, size, grey)
            kept[index] = True
        except UnidentifiedImageError:
            skipped[name] = "no picture"
        except Exception as error:  # decoders meet broken files with every kind of exception
            skipped[name] = f"{type(error).__name__}: {error}"

    # Pillow warns of much that it then reads well; what it cannot read is reported by name.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(os.cpu_count()) as pool:
        items = enumerate(readers)
        with tqdm(desc="reading pictures", total=count, delay=2, leave=False, disable=None) as bar:
            while chunk := list(islice(items, 1000)):  # so that not all wait in memory at once
                bar.update(len(list(pool.map(read, chunk))))
    return samples if kept.all() else samples[kept], dict(sorted(skipped.items()))


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


def open_picture(source: Path | BinaryIO):
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
