"""Images as bytes `(C, H, W)` of one size, from files of any format and from arrays."""

import logging
import math
import re
import struct
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from wgan.data.batches import RowReader
from wgan.files import MARK

Size = tuple[int, int]  # height, width
Range = tuple[float, float]  # the values that become black and white
AUTOMATIC = (0.0, 0.0)  # no range was given: take the images' own
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode "L"


def parse_image_size(text: str) -> Size | None:
    """Parse "64" to (64, 64), "64x96" to (64, 96), "" to None; ValueError for anything else."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise ValueError(f"image size {text!r} is neither a side (64) nor height x width (64x96)")
    return height, width


# ---------------------------------------------------------------- opening files

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")  # what the image depends on
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
INSTALL_HEIF = "HEIC: install pillow-heif"
BITS, PHOTOMETRIC, BANDS, SAMPLE_FORMAT, NO_DATA = 258, 262, 277, 339, 42113  # TIFF tags
WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # values of SAMPLE_FORMAT
BIG_TIFF = (b"\x00\x2b", b"\x2b\x00")


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Open an image; PNG files are decoded, others are not yet.

    Broken or large metadata of a PNG file is ignored. UnidentifiedImageError, which says what the
    file is, if Pillow does not read it.
    """
    try:
        return open_with_pillow(source)
    except Exception as error:
        content = read_start(source, len(PNG_SIGNATURE))
        if content == PNG_SIGNATURE:
            return open_with_pillow(BytesIO(without_metadata(read_start(source))))
        if isinstance(error, UnidentifiedImageError):
            raise UnidentifiedImageError(describe_unreadable(source)) from error
        raise


def open_with_pillow(source: Path | BinaryIO) -> Image.Image:
    """EPS and WMF are refused: Pillow runs another program to draw them."""
    register_formats()
    image = Image.open(source, formats=[name for name in Image.OPEN if name not in ("EPS", "WMF")])
    if image.format == "PNG":  # metadata may also follow the pixels
        try:
            image.load()
        except BaseException:
            image.close()
            raise
    return image


@cache
def register_formats() -> None:
    """Let Pillow read all its formats, and HEIC if pillow-heif is installed."""
    Image.init()
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # failures are reported by name
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def read_start(source: Path | BinaryIO, size: int = -1) -> bytes:
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return file.read(size)
    source.seek(0)
    return source.read(size)


def without_metadata(png: bytes) -> bytes:
    """A PNG file without its text, colour profiles and whatever else is not needed to draw it."""
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        end = start + 12 + length  # with the length, the kind and a checksum
        if kind in PNG_CHUNKS:
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


def describe_unreadable(source: Path | BinaryIO) -> str:
    """What a file is that Pillow does not read."""
    start = read_start(source, 16)
    if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS and "HEIF" not in Image.OPEN:
        return INSTALL_HEIF
    with suppress(Exception):  # not a TIFF file, or a broken one
        return describe_tiff(source, start)
    return "not an image"


def describe_tiff(source: Path | BinaryIO, start: bytes) -> str:
    """The values of a TIFF file that Pillow does not read; an error if it is no such file."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(start if start[2:4] in BIG_TIFF else start[:8])
    file = BytesIO(read_start(source))
    file.seek(tags.next)
    tags.load(file)
    bits, bands = max(tags[BITS]), tags.get(BANDS, 1)
    if bits <= 8 and bands <= 4:
        raise ValueError("a broken file of a kind that Pillow reads")
    kind = {UNSIGNED: "integers", SIGNED: "signed integers", FLOAT: "floats"}.get(
        tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0], "complex numbers"
    )
    advice = "32-bit floats" if bits == 32 else "32 bits"
    if bands > 1:
        kind, advice = f"{kind} in {bands} bands", "1 or 3 bands of 8 bits"
    return f"{bits}-bit {kind}, which Pillow does not read: convert to {advice}"


def is_drawn_here(image: Image.Image) -> bool:
    """Whether this project drew the image, as a grid, a plot or an animation."""
    marks = image.info.get("Software"), image.info.get("comment")  # PNG, GIF
    return MARK in marks or MARK.encode() in marks


# ---------------------------------------------------------------- images to bytes


def image_to_bytes(
    image: Image.Image,
    size: Size,
    grey: bool,
    scale: Range | None = None,
    alpha: bool = False,
) -> np.ndarray:
    """Convert an image, or the first frame of an animation, to bytes `(C, H, W)`, upright.

    The shorter side is resized and the centre cropped. A deep image needs a scale. With `alpha`,
    the fourth channel is the opacity; otherwise the background is white.
    """
    # JPEG files are decoded at the smallest eighth that still covers the size, many times faster.
    image.draft(None, (2 * max(size), 2 * max(size)))
    image.load()
    turn = find_rotation(image)
    if is_deep(image):
        image = scaled(image, scale)
    elif not alpha:
        image = over_white(image)
    image = image.convert("RGBA" if alpha else "L" if grey else "RGB")
    if turn is not None:
        image = image.transpose(turn)
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
    return clear_transparent(pixels) if alpha else pixels


Transpose = Image.Transpose
TURNS = {  # by the value of EXIF's orientation
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def find_rotation(image: Image.Image) -> Image.Transpose | None:
    """How to turn an image upright by its EXIF data; None if they are missing or broken."""
    with suppress(Exception):
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return None


def over_white(image: Image.Image) -> Image.Image:
    """The image over a white background if it is transparent."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def clear_transparent(images: np.ndarray) -> np.ndarray:
    """Images `(..., 4, H, W)` uint8 in which all fully transparent pixels are white, because files
    contain arbitrary colours there, which nobody sees but a critic would."""
    return np.where(images[..., 3:, :, :] == 0, np.uint8([255, 255, 255, 0])[:, None, None], images)


def opaque(images: np.ndarray) -> np.ndarray:
    """Images `(..., 4, H, W)` uint8 over a white background, `(..., 3, H, W)`; others unchanged."""
    if images.shape[-3] != 4:
        return images
    colours, alpha = images[..., :3, :, :].astype(np.float32), images[..., 3:, :, :] / 255
    return (colours * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def check_transparency(samples: RowReader, path: Path) -> None:
    """ValueError if no pixel of images `(N, 4, H, W)` is transparent."""
    for indices in torch.arange(len(samples)).split(256):
        if (samples.read(indices)[:, 3] < 255).any():
            return
    raise ValueError(f"no image of {path} is transparent: remove --alpha")


# ---------------------------------------------------------------- more than 8 bits


def is_deep(image: Image.Image) -> bool:
    """Whether the values of an image need a scale: more than 8 bits, signed, or floats."""
    signed = image.mode == "L" and sample_format(image) == SIGNED
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or signed


def sample_format(image: Image.Image) -> int | None:
    """UNSIGNED, SIGNED or FLOAT in a TIFF file; None in others."""
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0]


def value_range(image: Image.Image) -> Range | None:
    """The smallest and largest value of a deep image, and 0 in place of positive smallest integers;
    None if it has no values."""
    values = deep_values(image)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    return (low if image.mode == "F" else min(low, 0.0)), high


def scaled(image: Image.Image, scale: Range) -> Image.Image:
    """A deep image in 8 bits: the scale's ends become 0 and 255, or 255 and 0 in a TIFF file in
    which zero is white, and pixels without a value 0."""
    values = deep_values(image)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        scale = scale[::-1]
    return Image.fromarray(to_bytes(values, scale))


def to_bytes(values: np.ndarray, scale: Range) -> np.ndarray:
    """Values of any shape as bytes: those of the scale become 0 and 255, and NaN 0."""
    black, white = scale
    factor = 255 / (white - black) if white != black else 0
    with np.errstate(over="ignore"):  # what lies far outside the range is black or white
        values = (values.astype(np.float64) - black) * factor
    return np.nan_to_num(values).clip(0, 255).round().astype(np.uint8)


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


# ---------------------------------------------------------------- arrays


def fit_images(images: np.ndarray, size: Size | None, grey: bool) -> np.ndarray:
    """Resize, crop and grey an array of bytes `(N, C, H, W)` as `image_to_bytes` does a file.

    Colours are weighted by the alpha channel, if there is one. Raises ValueError if there is not
    enough memory.
    """
    if grey and images.shape[1] == 3:
        images = (images * LUMA[:, None, None]).sum(1, keepdims=True).round().astype(np.uint8)
    if size is None or size == images.shape[2:]:
        return np.ascontiguousarray(images)
    inner, (top, left) = resize_then_crop(images.shape[2:], size)
    fitted = empty_bytes((*images.shape[:2], *size))
    for start in range(0, len(images), 1000):  # in parts, as floats need four times the memory
        part = slice(start, start + 1000)
        floats = torch.from_numpy(images[part]).float()
        if images.shape[1] == 4:
            floats[:, :3] *= floats[:, 3:] / 255
        resized = torch.nn.functional.interpolate(floats, inner, mode="bicubic", antialias=True)
        if images.shape[1] == 4:
            resized[:, :3] *= 255 / resized[:, 3:].clamp(min=0.5)
        crop = resized[:, :, top : top + size[0], left : left + size[1]]
        fitted[part] = crop.round().clamp(0, 255).byte().numpy()
    return fitted


def resize_then_crop(source: Size, target: Size) -> tuple[Size, tuple[int, int]]:
    """The smallest size that covers `target`, and the top and left of the central crop."""
    scale = max(target[0] / source[0], target[1] / source[1])
    inner = tuple(max(t, round(s * scale)) for s, t in zip(source, target, strict=True))
    return inner, ((inner[0] - target[0]) // 2, (inner[1] - target[1]) // 2)


def empty_bytes(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised array of bytes; ValueError, with its size, if there is no memory for it."""
    try:
        return np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:  # ValueError: larger than the address space
        size = math.prod(shape) / 2**30
        text = "x".join(map(str, shape))
        raise ValueError(
            f"{text} bytes of images need {size:,.1f} GiB of memory: use a smaller --image-size"
        ) from error
