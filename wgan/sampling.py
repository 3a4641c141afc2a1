"""Samples from a trained generator."""

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor, nn
from tqdm import tqdm

from wgan import plots
from wgan.checkpoints import read_any_checkpoint
from wgan.config import stored_config
from wgan.data import Standardisation, seeded_generator, to_byte_images
from wgan.state import build_network
from wgan_gp import MODELS, choose_device

CHUNK = 100  # samples computed at a time
WALK_STOPS, WALK_FRAMES, WALK_IMAGES = 5, 16, 16  # noises, frames between two, images per frame


def load_generator(path: str | Path, weights: str = "ema", device: str = "auto") -> nn.Module:
    """The generator of a run folder or a checkpoint, in evaluation mode.

    It maps noise `(B, generator.noise_dim)` to samples `(B, *generator.sample_shape)`; vectors are
    standardised, as `generator.standardisation` says, and `generate` undoes that. `weights` is
    "ema", the moving average, or "raw", the weights of the last step. ValueError if the file is
    corrupt or was not written by this project.
    """
    return generator_of(read_any_checkpoint(path), str(path), weights, device)


def generator_of(checkpoint: dict, path: str, weights: str, device: str) -> nn.Module:
    """`load_generator` for a checkpoint that was already read from `path`."""
    try:
        config = stored_config(checkpoint["config"])
        generator = build_network(
            MODELS[config.model].generator, config, checkpoint["sample_shape"]
        )
        generator.load_state_dict(checkpoint["ema" if weights == "ema" else "generator"])
        generator.standardisation = Standardisation.from_checkpoint(checkpoint)
    except Exception as error:  # a foreign checkpoint may contain anything
        raise ValueError(f"{path} contains no generator of this project: {error}") from error
    return generator.to(choose_device(device)).eval().requires_grad_(False)


def generate(generator: nn.Module, count: int, seed: int = 0) -> Tensor:
    """`count` samples on the CPU: images `(N, C, H, W)` uint8, points `(N, D)` float32, vectors
    `(N, D)` float64 in the data's units.

    A larger count continues the same sequence of samples.
    """
    return torch.cat(list(generate_chunks(generator, count, seed)))


@torch.no_grad()
def generate_chunks(generator: nn.Module, count: int, seed: int) -> Iterator[Tensor]:
    device = next(generator.parameters()).device
    standardisation = getattr(generator, "standardisation", None)
    for start in tqdm(range(0, count, CHUNK), "generating", delay=2, leave=False, disable=None):
        rng = seeded_generator("cpu", seed, "generate", start)
        # Always a whole chunk, because rounding depends on the size of a batch.
        noise = torch.randn(CHUNK, generator.noise_dim, generator=rng).to(device)
        samples = generator(noise)[: count - start].cpu()
        if standardisation:
            samples = standardisation.undo(samples)
        yield to_byte_images(samples) if samples.dim() == 4 else samples


@torch.no_grad()
def interpolation_frames(generator: nn.Module, seed: int) -> Iterator[Image]:
    """Frames of a closed walk between noise vectors, along great circles of the sphere near which
    high-dimensional noise lies; a straight line would pass near its centre."""
    device = next(generator.parameters()).device
    rng = seeded_generator("cpu", seed, "walk")
    stops = torch.randn(WALK_STOPS, WALK_IMAGES, generator.noise_dim, generator=rng)
    for start, end in zip(stops, stops.roll(-1, 0), strict=True):
        for fraction in torch.arange(WALK_FRAMES) / WALK_FRAMES:
            samples = generator(slerp(start, end, fraction).to(device))
            yield plots.image_grid(to_byte_images(samples).cpu().numpy(), columns=4)


def slerp(start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of rows `(B, D)`; their lengths are interpolated
    linearly."""
    lengths = start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)
    unit_start, unit_end = start / lengths[0], end / lengths[1]
    angle = (unit_start * unit_end).sum(1, keepdim=True).clamp(-1, 1).acos()
    direction = (
        ((1 - fraction) * angle).sin() * unit_start + (fraction * angle).sin() * unit_end
    ) / angle.sin()
    parallel = angle.sin() < 1e-6  # no unique arc, and a division by zero
    return torch.where(parallel, unit_start, direction) * torch.lerp(*lengths, fraction)
