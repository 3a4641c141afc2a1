"""Image files as bytes `(C, H, W)` of one size, whatever their format."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from wgan.data.image_options import ImageOptions, Range
from wgan.data.pixels import black_and_white, clear_transparent, resize_then_crop, to_bytes
from wgan.files import MARK

# ---------------------------------------------------------------- opening files

REFUSED = ("EPS", "WMF")  # Pillow runs another program to draw them
INSTALL_HEIF = "HEIC: install pillow-heif"
EXTRA_SAMPLES = 338  # the TIFF tag that says whether a fourth band is opacity
LARGE, ONE_LARGE_IMAGE = 2**25, Lock()  # pixels, and what threads hold while they use more


@contextmanager
def open_image(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image file, which is not decoded yet. Threads open one large image at a time, as
    several may exceed the memory.

    Raises UnidentifiedImageError if Pillow does not read the file, others if it is corrupt.
    """
    register_formats()
    try:
        image = Image.open(source, formats=[name for name in Image.OPEN if name not in REFUSED])
    except UnidentifiedImageError as error:
        name = str(getattr(source, "name", "")).lower()
        heic = name.endswith((".heic", ".heif")) and not reads_heic()
        reason = INSTALL_HEIF if heic else "not an image that Pillow reads"
        raise UnidentifiedImageError(reason) from error
    if image.mode == "RGBA" and EXTRA_SAMPLES not in getattr(image, "tag_v2", (EXTRA_SAMPLES,)):
        image.close()
        raise UnidentifiedImageError("a fourth band that is not marked as opacity: save RGB")
    with image, ONE_LARGE_IMAGE if image.width * image.height > LARGE else nullcontext():
        yield image


@cache
def register_formats() -> None:
    """Let Pillow read all its formats, and HEIC if pillow-heif is installed."""
    Image.init()
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # failures are reported by name
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def reads_heic() -> bool:
    register_formats()
    return "HEIF" in Image.OPEN


def is_drawn_here(image: Image.Image) -> bool:
    """Whether this project drew the image, as a grid, a plot or an animation."""
    marks = image.info.get("Software"), image.info.get("comment")  # PNG, GIF
    return MARK in marks or MARK.encode() in marks


# ---------------------------------------------------------------- images to bytes


def image_to_bytes(
    image: Image.Image, options: ImageOptions, scale: Range | None = None
) -> np.ndarray:
    """Convert an image, or the first frame of an animation, to bytes `(C, H, W)`, upright.

    The shorter side is resized and the centre cropped; `options` have a size. An image of more than
    8 bits needs a scale; others have that of `options.range` if there is none. With
    `options.alpha`, the fourth channel is the opacity; otherwise the background is white.
    """
    size = options.size
    # JPEG files are decoded at the smallest eighth that still covers the size, many times faster.
    image.draft(None, (2 * max(size), 2 * max(size)))
    image.load()
    with suppress(Exception):  # broken EXIF data raises all kinds
        ImageOps.exif_transpose(image, in_place=True)
    if is_deep(image):
        image = scaled(image, scale)
    elif image.has_transparency_data and not options.alpha:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGBA" if options.alpha else "L" if options.grey else "RGB")
    if options.range and scale is None:
        table = to_bytes(np.arange(256), options.range).tolist() * 3 + [*range(256)]
        image = image.point(table[: 256 * len(image.getbands())])
    (height, width), (top, left) = resize_then_crop((image.height, image.width), size)
    scale_x, scale_y = image.width / width, image.height / height
    box = (
        left * scale_x,
        top * scale_y,
        (left + size[1]) * scale_x,
        (top + size[0]) * scale_y,
    )
    image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    pixels = np.ascontiguousarray(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))
    return clear_transparent(pixels) if options.alpha else pixels


# ---------------------------------------------------------------- more than 8 bits

PHOTOMETRIC, SAMPLE_FORMAT, NO_DATA = 262, 339, 42113  # TIFF tags
WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC
UNSIGNED, SIGNED = 1, 2  # values of SAMPLE_FORMAT


def is_deep(image: Image.Image) -> bool:
    """Whether the values of an image need a scale: more than 8 bits, signed, or floats."""
    signed = image.mode == "L" and sample_format(image) == SIGNED
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or signed


def sample_format(image: Image.Image) -> int | None:
    """UNSIGNED, SIGNED or another value in a TIFF file; None in others."""
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0]


def value_range(image: Image.Image) -> Range | None:
    """The values of a deep image that become black and white; None if it has no values."""
    values = deep_values(image)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    return black_and_white(float(values.min()), float(values.max()), image.mode != "F")


def scaled(image: Image.Image, scale: Range) -> Image.Image:
    """A deep image in 8 bits: the scale's ends become 0 and 255, or 255 and 0 in a TIFF file in
    which zero is white, and pixels without a value 0."""
    values = deep_values(image)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        scale = scale[::-1]
    return Image.fromarray(to_bytes(values, scale))


def deep_values(image: Image.Image) -> np.ndarray:
    """The values `(H, W)` of a deep image, float64, and NaN where it has none."""
    values = np.asarray(image)
    if image.mode == "I" and sample_format(image) == UNSIGNED:
        values = values.view(np.uint32)  # Pillow has no mode for them
    elif image.mode.startswith("I;16") and image.format == "FITS":
        values = values.view(np.int16)
    elif image.mode == "L":
        values = values.view(np.int8)
    floats = values.astype(np.float64)
    floats[~np.isfinite(floats)] = np.nan
    with suppress(ValueError, TypeError):  # no number
        no_data = float(getattr(image, "tag_v2", {}).get(NO_DATA, "nan"))
        floats[floats == (float(np.float32(no_data)) if image.mode == "F" else no_data)] = np.nan
    return floats
