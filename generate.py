"""Generate samples from a trained generator: `python generate.py images/RUN --count 64`.

The suffix of --out determines the format: `.png`, `.jpg` or `.webp` is one grid; `.npz` and `.npy`
are one array (images `(N, H, W, C)` uint8, points `(N, 2)` float32, vectors `(N, D)` float64 in the
data's units); `.gif` is an interpolation between noise vectors; a name without suffix is a folder
of numbered images. In Python:

    from wgan import load_generator, generate
    samples = generate(load_generator("images/RUN"), count=64, seed=0)
"""

import argparse
import io
import os
import sys
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from wgan import plots
from wgan.errors import Parser
from wgan.files import GENERATED, check_output, write_whole
from wgan.output import run_script
from wgan.sampling import generate, interpolation_frames, load_generator

GRID_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SUFFIXES = ("", ".npy", ".npz", *GRID_FORMATS, ".gif")
FRAME_MILLISECONDS = 80  # of a GIF


def write_samples(samples: Tensor, target: Path) -> None:
    """Write images `(N, C, H, W)` uint8, or points or vectors `(N, D)`, in the target's format."""
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


def write_interpolation(generator: nn.Module, seed: int, target: Path) -> None:
    buffer = io.BytesIO()
    plots.save_gif(interpolation_frames(generator, seed), FRAME_MILLISECONDS, buffer)
    write_whole(target, buffer.getvalue())


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


def make_parser() -> Parser:
    parser = Parser(
        prog="generate.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", type=os.path.expanduser, help="folder of a run, or a checkpoint")
    add("--count", type=int, default=64, help="number of samples (default: 64)")
    out_help = "output file or folder (default: generated.png, or generated.gif to interpolate)"
    add("--out", type=os.path.expanduser, help=out_help)
    add("--seed", type=int, default=0, help="random seed of the noise (default: 0)")
    weights_help = "weights of the moving average, or of the last step (default: ema)"
    add("--from", dest="weights", choices=("ema", "raw"), default="ema", help=weights_help)
    add("--interpolate", action="store_true", help="interpolate between noise vectors, as a GIF")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    return parser


def run(argv: list[str] | None) -> None:
    options = make_parser().parse_args(argv)
    if options.count < 1 or options.seed < 0:
        raise ValueError("--count must be at least 1, and --seed at least 0")
    generator = load_generator(options.source, options.weights, options.device)
    out = options.out or ("generated.gif" if options.interpolate else "generated.png")
    target = check_target(out, options.interpolate, is_points=len(generator.sample_shape) == 1)
    if options.interpolate:
        write_interpolation(generator, options.seed, target)
    else:
        write_samples(generate(generator, options.count, options.seed), target)
    print(f"wrote {target}")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
