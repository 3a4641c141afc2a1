"""Images as arrays and tensors: bytes and floats, transparency, scaling and resizing."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wgan.data.image_options import ImageOptions, Range, Size
from wgan.data.rows import RowReader

CHECKED_IMAGES, FEW_LEVELS, DARK = 16, 32, 128  # how grey levels are counted, and what is reported
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode "L"


def to_float_images(samples: Tensor) -> Tensor:
    """Convert bytes to floats in [-1, 1]. Points, which are floats already, stay as they are."""
    return samples.float() / 127.5 - 1 if samples.dtype == torch.uint8 else samples


def to_byte_images(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to bytes: the inverse of `to_float_images`."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def flip_where(images: Tensor, where: Tensor) -> Tensor:
    """Mirror the images `(B, C, H, W)` for which `where` `(B,)` is true, left to right."""
    return torch.where(where.view(-1, 1, 1, 1), images.flip(3), images)


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


def check_transparency(samples: RowReader, name: str) -> None:
    """ValueError if no pixel of images `(N, 4, H, W)` is transparent."""
    for indices in torch.arange(len(samples)).split(256):
        if (samples.read(indices)[:, 3] < 255).any():
            return
    raise ValueError(f"no image of {name} is transparent: remove --alpha")


def black_and_white(minimum: float, maximum: float, integers: bool) -> Range:
    """The values that become black and white: 0 replaces a positive minimum of integers."""
    return (min(minimum, 0.0) if integers else minimum), maximum


def report_scale(samples: RowReader, scale: Range | None, path: Path) -> None:
    """Print the values that became black and white, if images `(N, C, H, W)` were scaled, and a
    warning if they use few of the 256 grey levels, unless these are all values in the scale."""
    if scale:
        print(f"{path}: black is {scale[0]:g}, white is {scale[1]:g}", file=sys.stderr)
    indices = np.linspace(0, len(samples) - 1, CHECKED_IMAGES).astype(int)
    levels = np.unique(samples.read(indices)[:, :3].numpy())
    are_all = scale is None or len(levels) == scale[1] - scale[0] + 1
    if len(levels) < FEW_LEVELS and not (are_all and levels[-1] >= DARK):
        print(
            f"{path}: the images use {len(levels)} of 256 grey levels, up to {levels[-1]}: if that "
            "is too few, train.py --range LOW HIGH sets the values of black and white",
            file=sys.stderr,
        )


def to_bytes(values: np.ndarray, scale: Range) -> np.ndarray:
    """Values of any shape as bytes: those of the scale become 0 and 255, and NaN 0."""
    black, white = scale
    factor = 255 / (white - black) if white != black else 0
    with np.errstate(over="ignore"):  # what lies far outside the range is black or white
        values = (values.astype(np.float64) - black) * factor
    return np.nan_to_num(values).clip(0, 255).round().astype(np.uint8)


def fit_images(images: np.ndarray, options: ImageOptions) -> np.ndarray:
    """Resize, crop and grey an array of bytes `(N, C, H, W)` as `image_to_bytes` does a file.

    Colours are weighted by the alpha channel, if there is one.
    """
    if options.grey and images.shape[1] == 3:
        images = (images * LUMA[:, None, None]).sum(1, keepdims=True).round().astype(np.uint8)
    size = options.size
    if size is None or size == images.shape[2:]:
        return np.ascontiguousarray(images)
    inner, (top, left) = resize_then_crop(images.shape[2:], size)
    fitted = np.empty((*images.shape[:2], *size), np.uint8)
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
