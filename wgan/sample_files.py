"""Generated samples as files: grids, arrays, folders of images, animations."""

import csv
import io
from collections.abc import Iterable
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from wgan import plots
from wgan.data.classes import class_numbers
from wgan.files import GENERATED, check_output, write_whole
from wgan.sampling import TrainedGenerator

MAX_GRID_PIXELS = 100_000_000  # that a browser shows
FRAME_MILLISECONDS = 80  # of an animation


def check_target(
    out: str, interpolate: bool, is_points: bool, class_names: tuple[str, ...] = ()
) -> Path:
    """The target; ValueError if samples of this kind cannot be written to it."""
    target = Path(out)
    suffix = target.suffix.lower()
    if is_points and interpolate:
        raise ValueError("points cannot be interpolated: remove --interpolate")
    suffixes = (".gif",) if interpolate else (".png", ".npz", ".npy", *[".csv"] * is_points)
    if suffix not in suffixes and (suffix or is_points or interpolate):
        names = ", ".join(suffixes)
        raise ValueError(f"--out {out}: samples of this kind need a file with the suffix {names}")
    if suffix:
        return check_output("--out", out)
    used = target.is_dir() and any(path.name != GENERATED for path in target.iterdir())
    if target.is_file() or used:
        raise ValueError(f"--out {target}: the folder is not empty; choose a new one")
    for name in class_names:  # of any checkpoint; they name subfolders
        if Path(name).name != name or name == "..":
            raise ValueError(f"the class {name!r} cannot name a folder: use a .npz file as --out")
    return target


def check_size(count: int, shape: tuple[int, ...]) -> None:
    """ValueError if a grid of `count` images of this shape is too large."""
    maximum = MAX_GRID_PIXELS // (shape[-2] * shape[-1])
    if count > maximum:
        raise ValueError(
            f"{count} samples are too many: a grid can hold {maximum} images of "
            f"{shape[-2]}x{shape[-1]}; a folder, .npz or .npy holds more"
        )


def write_samples(
    samples: Tensor, labels: Tensor, generator: TrainedGenerator, per_class: int, target: Path
) -> None:
    """Write images `(N, C, H, W)` uint8, or points `(N, D)`, in the target's format.

    If there are class names, those of `labels` `(N,)` name a subfolder per class, and `.npz` files
    contain them as numbers (`class_numbers`). `per_class` samples in a row are of one class; 0:
    any. In `.npz` files, a byte b is the value low + b / 255 * (high - low) if there is a `range`.
    """
    class_names, scale = generator.class_names, generator.standardisation
    if target.suffix == "":
        write_images(samples, [class_names[k] if class_names else "" for k in labels], target)
        return
    is_images, suffix, buffer = samples.dim() == 4, target.suffix.lower(), io.BytesIO()
    if suffix == ".png" and is_images:
        columns = per_class or max(8, ceil(len(samples) ** 0.5))  # about square
        row_labels = [class_names[k] for k in labels[::per_class]] if per_class else None
        buffer.write(plots.png(plots.image_grid(samples.numpy(), columns, row_labels)))
    elif suffix == ".png":
        plot = plots.vectors(None, scale.apply(samples), scale) if scale else None
        buffer.write(plots.png(plot or plots.scatter(fake=samples.numpy())))
    elif suffix == ".csv":
        names = (scale and scale.columns) or [f"x{k}" for k in range(1, samples.shape[1] + 1)]
        csv.writer(text := io.StringIO(), lineterminator="\n").writerows([names, *samples.tolist()])
        buffer.write(text.getvalue().encode())
    else:
        array = samples.permute(0, 2, 3, 1).numpy() if is_images else samples.numpy()
        numbers = np.array(class_numbers(class_names), np.int64)
        arrays = {"samples": array} | ({"labels": numbers[labels.numpy()]} if class_names else {})
        arrays |= {"range": np.array(generator.scale)} if generator.scale else {}
        np.save(buffer, array) if suffix == ".npy" else np.savez(buffer, **arrays)
    write_whole(target, buffer.getvalue())


def write_images(images: Tensor, subfolders: list[str], folder: Path) -> None:
    """Write one PNG per image, 000000.png and so on, into a subfolder unless its name is empty, and
    a mark that keeps the folder out of data sets in folders above it."""
    for name in {"", *subfolders}:
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / GENERATED).touch()
    bar = tqdm(images, "writing", delay=2, leave=False, disable=None)
    for index, (pixels, name) in enumerate(zip(bar, subfolders, strict=True)):
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy().squeeze())
        image.save(folder / name / f"{index:06d}.png", compress_level=1)


def write_animation(frames: Iterable[Image.Image], target: Path) -> None:
    buffer = io.BytesIO()
    plots.save_gif(frames, FRAME_MILLISECONDS, buffer)
    write_whole(target, buffer.getvalue())
