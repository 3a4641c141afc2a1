"""Generated samples as files: grids, arrays, folders of images, animations."""

import io
from collections.abc import Iterable
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from wgan import plots
from wgan.files import GENERATED, check_output, write_whole

GRID_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SUFFIXES = ("", ".npy", ".npz", *GRID_FORMATS, ".gif")
MAX_GRID_PIXELS = 100_000_000  # that a browser shows
MAX_ANIMATION_PIXELS = 1_000_000_000  # of all frames, which are in memory until they are written


def check_target(out: str, interpolate: bool, is_points: bool) -> Path:
    """The target; ValueError if samples of this kind cannot be written to it."""
    target = Path(out)
    suffix = target.suffix.lower()
    if is_points and interpolate:
        raise ValueError("points cannot be interpolated: remove --interpolate")
    if suffix not in SUFFIXES:
        names = ", ".join(filter(None, SUFFIXES))
        raise ValueError(f"--out {out}: the suffix must be one of {names}, or none")
    if interpolate != (suffix == ".gif"):
        raise ValueError(f"--out {out}: use the suffix .gif with --interpolate, and only then")
    if is_points and not suffix:
        raise ValueError(f"--out {out}: points need .png, .npz or .npy")
    if suffix:
        return check_output("--out", out)
    used = target.is_dir() and any(path.name != GENERATED for path in target.iterdir())
    if target.is_file() or used:
        raise ValueError(f"--out {target}: the folder is not empty; choose a new one")
    return target


def check_size(target: Path, count: int, shape: tuple[int, ...], frames: int = 1) -> None:
    """ValueError if a grid of `count` images of this shape, or an animation, is too large."""
    limit = MAX_ANIMATION_PIXELS if frames > 1 else MAX_GRID_PIXELS
    most = limit // (frames * shape[-2] * shape[-1])
    if count <= most or target.suffix.lower() not in (*GRID_FORMATS, ".gif"):
        return
    sizes = f"{shape[-2]}x{shape[-1]} images"
    if frames > 1:
        raise ValueError(
            f"{frames} frames of {count} {sizes} are too many for a GIF: use fewer frames, stops "
            "or images side by side (--count)"
        )
    raise ValueError(
        f"--count {count}: one grid can hold {most} {sizes}; to write more, give a folder, .npz or "
        ".npy as --out"
    )


def write_samples(samples: Tensor, target: Path) -> None:
    """Write images `(N, C, H, W)` uint8, or points `(N, 2)` float32, in the target's format."""
    if target.suffix == "":
        write_images(samples, target)
        return
    is_images, suffix, buffer = samples.dim() == 4, target.suffix.lower(), io.BytesIO()
    if suffix in GRID_FORMATS:
        save_grid(draw(samples.numpy()), buffer, GRID_FORMATS[suffix])
    else:
        array = samples.permute(0, 2, 3, 1).numpy() if is_images else samples.numpy()
        np.save(buffer, array) if suffix == ".npy" else np.savez(buffer, samples=array)
    write_whole(target, buffer.getvalue())


def draw(samples: np.ndarray) -> Image.Image:
    """A grid of images, about square if they are many, or points."""
    if samples.ndim == 2:
        return plots.scatter(fake=samples)
    return plots.image_grid(samples, columns=max(8, ceil(len(samples) ** 0.5)))


def save_grid(image: Image.Image, buffer: io.BytesIO, kind: str) -> None:
    if kind == "PNG":
        buffer.write(plots.png(image))  # with a mark that keeps it out of data sets
        return
    try:
        image.save(buffer, kind, quality=95)
    except (OSError, ValueError, KeyError) as error:  # too large, or not in this Pillow
        size = "x".join(map(str, image.size))
        raise ValueError(f"{kind} cannot hold {size} pixels ({error}): use .png") from error


def write_images(images: Tensor, folder: Path) -> None:
    """Write one PNG per image, 000000.png and so on, and a mark that keeps the folder out of data
    sets in folders above it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GENERATED).touch()
    bar = tqdm(images, "writing", delay=2, leave=False, disable=None)
    for index, pixels in enumerate(bar):
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy().squeeze())
        image.save(folder / f"{index:06d}.png", compress_level=1)


def write_animation(frames: Iterable[Image.Image], fps: float, target: Path) -> None:
    buffer = io.BytesIO()
    plots.save_gif(frames, round(1000 / fps), buffer)
    write_whole(target, buffer.getvalue())
