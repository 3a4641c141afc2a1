"""Samples from a trained generator: `python generate.py images/RUN --count 64`.

The ending of `--out` says as what: `.png` one grid, `.npz` or `.npy` one array (bytes,
`(N, H, W, C)`; points float32 `(N, 2)`), `.gif` a walk between noises, none a folder of
numbered pictures. Other code says

    from generate import load_generator, generate
    samples = generate(load_generator("images/RUN"), count=64, seed=0)
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from wgan import plots
from wgan.config import Parser, restore
from wgan.data.table import floats_to_bytes, seeded_generator
from wgan.files import write_whole
from wgan.run_folder import read_any_checkpoint
from wgan_gp import MODELS, choose_device

CHUNK = 100  # samples computed at a time
WALK_STOPS, WALK_FRAMES, WALK_IMAGES = 5, 16, 16  # noises, frames between two, images in a frame


def load_generator(path: str | Path, weights: str = "average", device: str = "auto") -> nn.Module:
    """The generator of a run folder or a checkpoint, in evaluation mode; noise `(B, noise_dim)`
    to samples. Its `noise_dim` says how much noise it takes.

    `weights` is "average", the moving average of training, or "raw". ValueError where the
    file is broken or none of this project's.
    """
    checkpoint = read_any_checkpoint(str(path))
    try:
        config = restore(checkpoint["config"])
        network = MODELS[config.model].generator
        generator = network(tuple(checkpoint["sample_shape"]), **config.arguments_for(network))
        generator.load_state_dict(checkpoint["average" if weights == "average" else "generator"])
    except Exception as error:  # another's checkpoint may hold anything in its place
        raise ValueError(f"{path} does not hold a generator of this project: {error}") from error
    return generator.to(choose_device(device)).eval().requires_grad_(False)


def generate(generator: nn.Module, count: int, seed: int = 0) -> Tensor:
    """`count` samples on the CPU: bytes `(N, C, H, W)`, points float32 `(N, 2)`.

    The first samples of a seed are the same for every count.
    """
    return torch.cat(list(chunks(generator, count, seed)))


def chunks(generator: nn.Module, count: int, seed: int) -> Iterator[Tensor]:
    device = next(generator.parameters()).device
    for start in tqdm(range(0, count, CHUNK), "generating", delay=2, leave=False, disable=None):
        random = seeded_generator("cpu", seed, "generate", start)
        # A whole chunk even if fewer are wanted: rounding depends on the size of a batch.
        noise = torch.randn(CHUNK, generator.noise_dim, generator=random).to(device)
        samples = generator(noise)[: count - start].cpu()
        yield floats_to_bytes(samples) if samples.dim() == 4 else samples


def walk(generator: nn.Module, seed: int) -> Iterator[Image.Image]:
    """Frames of a closed walk from noise to noise, along great circles of the sphere on which
    high-dimensional noise lies; a straight line would pass near its centre."""
    device = next(generator.parameters()).device
    random = seeded_generator("cpu", seed, "walk")
    stops = torch.randn(WALK_STOPS, WALK_IMAGES, generator.noise_dim, generator=random)
    for before, after in zip(stops, stops.roll(-1, 0), strict=True):
        for fraction in torch.arange(WALK_FRAMES) / WALK_FRAMES:
            samples = generator(slerp(before, after, fraction).to(device))
            yield plots.image_grid(floats_to_bytes(samples).cpu().numpy(), columns=4)


def slerp(start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) between rows of noise `(B, D)`, lengths included."""
    lengths = start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)
    one, other = start / lengths[0], end / lengths[1]
    angle = (one * other).sum(1, keepdim=True).clamp(-1, 1).acos()
    direction = (((1 - fraction) * angle).sin() * one + (fraction * angle).sin() * other) / (
        angle.sin()
    )
    parallel = angle.sin() < 1e-6  # one direction: no arc, and nothing to divide by
    return torch.where(parallel, one, direction) * torch.lerp(*lengths, fraction)


def write(samples: Tensor, target: Path) -> None:
    """Samples as the target's ending says."""
    if target.suffix == "":
        target.mkdir(parents=True, exist_ok=True)
        for index, sample in enumerate(
            tqdm(samples, "writing", delay=2, leave=False, disable=None)
        ):
            picture = Image.fromarray(sample.permute(1, 2, 0).numpy().squeeze())
            picture.save(target / f"{index:06d}.png", compress_level=1)
        return
    buffer = io.BytesIO()
    if target.suffix == ".png":
        draw = plots.image_grid if samples.dim() == 4 else plots.scatter
        draw(samples.numpy()).save(buffer, "PNG")
    else:
        array = samples.permute(0, 2, 3, 1).numpy() if samples.dim() == 4 else samples.numpy()
        np.save(buffer, array) if target.suffix == ".npy" else np.savez(buffer, samples=array)
    write_whole(target, buffer.getvalue())


def check_target(target: Path, interpolate: bool, points: bool) -> None:
    if target.suffix not in ("", ".npy", ".npz", ".png", ".gif"):
        raise ValueError(f"--out {target}: end it in one of .png, .npz, .npy, .gif, or no ending")
    if interpolate != (target.suffix == ".gif"):
        raise ValueError(f"--out {target}: --interpolate makes a .gif, and only it does")
    if points and target.suffix in ("", ".gif"):
        raise ValueError(f"--out {target}: points are written to .png, .npz or .npy")
    if not target.suffix and target.exists() and (target.is_file() or any(target.iterdir())):
        raise ValueError(f"--out {target}: this folder is not empty; name a new one")


def main(argv: list[str] | None = None) -> int:
    """`python generate.py`; 0, or 2 for bad input."""
    parser = Parser(
        prog="generate.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", help="a run's folder, or a checkpoint")
    parser.add_argument("--count", type=int, default=64, help="how many samples (default: 64)")
    parser.add_argument("--out", type=Path, help="default: generated.png, .gif to interpolate")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument(
        "--from", dest="weights", choices=("average", "raw"), default="average",
        help="the moving average's weights, or those of the last step (default: average)",
    )  # fmt: skip
    parser.add_argument("--interpolate", action="store_true", help="a walk between noises, a .gif")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    try:
        arguments = parser.parse_args(argv)
        if arguments.count < 1 or arguments.seed < 0:
            raise ValueError("--count must be at least 1, and --seed at least 0")
        generator = load_generator(arguments.source, arguments.weights, arguments.device)
        target = arguments.out or Path(
            "generated.gif" if arguments.interpolate else "generated.png"
        )
        check_target(target, arguments.interpolate, points=len(generator.sample_shape) == 1)
        if arguments.interpolate:
            frames = list(walk(generator, arguments.seed))
            frames[0].save(target, save_all=True, append_images=frames[1:], duration=80, loop=0)
        else:
            write(generate(generator, arguments.count, arguments.seed), target)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
