"""Images as bytes `(C, H, W)` of one size, from files of any format and from arrays."""

import math
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

Size = tuple[int, int]  # height, width
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


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Open without decoding. EPS and WMF are refused: Pillow runs another program to draw them."""
    Image.init()
    return Image.open(source, formats=[name for name in Image.OPEN if name not in ("EPS", "WMF")])


def image_to_bytes(image: Image.Image, size: Size, grey: bool) -> np.ndarray:
    """Convert an image, or the first frame of an animation, to bytes `(C, H, W)`, upright.

    The shorter side is resized and the centre cropped.
    """
    # JPEG files are decoded at the smallest eighth that still covers the size, many times faster.
    image.draft(None, (2 * max(size), 2 * max(size)))
    image = flatten_modes(ImageOps.exif_transpose(image)).convert("L" if grey else "RGB")
    (height, width), (top, left) = resize_then_crop((image.height, image.width), size)
    scale_x, scale_y = image.width / width, image.height / height
    box = (
        left * scale_x,
        top * scale_y,
        (left + size[1]) * scale_x,
        (top + size[0]) * scale_y,
    )
    image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.ascontiguousarray(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))


def flatten_modes(image: Image.Image) -> Image.Image:
    """Draw transparent images over white; convert 16 bits, 32 bits and floats to 8 bits."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F":  # no fixed range: the image's own
            low, high = values.min(), values.max()
            values = (values - low) * (255 / (high - low) if high > low else 0)
        else:  # Pillow also uses "I" for 16 bits; larger values have 31 bits and a sign
            values = values / (256 if values.max() < 2**16 else 2**23)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def fit_images(images: np.ndarray, size: Size | None, grey: bool) -> np.ndarray:
    """Resize, crop and grey an array of bytes `(N, C, H, W)` as `image_to_bytes` does a file.

    Raises ValueError if there is not enough memory.
    """
    if grey and images.shape[1] == 3:
        images = (images * LUMA[:, None, None]).sum(1, keepdims=True).round().astype(np.uint8)
    if size is None or size == images.shape[2:]:
        return np.ascontiguousarray(images)
    inner, (top, left) = resize_then_crop(images.shape[2:], size)
    fitted = empty_bytes((*images.shape[:2], *size))
    for start in range(0, len(images), 1000):  # in parts, as floats need four times the memory
        part = slice(start, start + 1000)
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(images[part]).float(), inner, mode="bilinear", antialias=True
        )
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
