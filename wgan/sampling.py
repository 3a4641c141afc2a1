"""Samples from a trained generator."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from tqdm import tqdm

from wgan import plots
from wgan.checkpoints import class_names_of, config_of, read_any_checkpoint
from wgan.data import Standardisation, seeded_generator, to_byte_images
from wgan.data.classes import are_numbers, class_numbers
from wgan.data.image_options import Range
from wgan.errors import one_line, suggestion
from wgan.state import build_network, load_weights
from wgan_gp import MODELS, choose_device

CHUNK = 100  # samples computed at a time

Labels = Tensor | np.ndarray | Sequence[int | str] | None


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator in evaluation mode, and what its samples are.

    It maps noise `(B, noise_dim)` to samples `(B, *sample_shape)`: images in [-1, 1], or points.
    Vectors are standardised; `generate` undoes that. The values of `scale` became black and white
    in the real images, if these were not bytes. `class_counts` are the numbers of real samples of
    the classes or clusters, if there are any. It then takes their numbers, `(B,)` int64, as a
    second argument. Classes have `class_names`.
    """

    network: nn.Module
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    standardisation: Standardisation | None = None
    scale: Range | None = None

    def __call__(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.network(noise, labels)

    @property
    def noise_dim(self) -> int:
        return self.network.noise_dim

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.network.sample_shape

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device


def load_generator(
    path: str | Path, weights: str = "ema", device: str = "auto"
) -> TrainedGenerator:
    """The generator of a run folder, a checkpoint or a `.safetensors` file.

    `weights` is "ema", the moving average, or "raw", the weights of the last step. ValueError if
    the file is corrupt or was not written by this project.
    """
    return generator_of(read_any_checkpoint(path), str(path), weights, device)


def generator_of(checkpoint: dict, path: str, weights: str, device: str) -> TrainedGenerator:
    """`load_generator` for a checkpoint that was already read from `path`."""
    if weights == "raw" and path.endswith(".safetensors"):
        raise ValueError(f"{path} has no weights but those of the moving average: no --from raw")
    try:
        config, class_names = config_of(checkpoint), class_names_of(checkpoint)
        network = build_network(
            MODELS[config.model].generator, config, checkpoint["sample_shape"], len(class_names)
        )
        load_weights(network, checkpoint["generator" if weights == "raw" else "ema"])
        standardisation = Standardisation.from_checkpoint(checkpoint)
        class_counts, scale = checkpoint["class_counts"], checkpoint["data"].get("scale")
        generator = TrainedGenerator(network, class_names, class_counts, standardisation, scale)
        draw_labels(generator, 1)
        if standardisation:
            standardisation.undo(torch.zeros(generator.sample_shape))
    except Exception as error:  # a foreign checkpoint may contain anything
        raise ValueError(f"{path} contains no generator of this project: {error}") from error
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise ValueError(f"{path}: the generator's weights are infinite or NaN: use another one")
    network.to(choose_device(device)).eval().requires_grad_(False)
    return generator


def generate(
    generator: TrainedGenerator,
    count: int | None = None,
    seed: int = 0,
    labels: Labels = None,
    noise: Tensor | np.ndarray | None = None,
    truncation: float = 1.0,
) -> Tensor:
    """`count` samples on the CPU: images `(N, C, H, W)` uint8, points `(N, D)` float32, vectors
    `(N, D)` float64 in the data's units.

    `labels` `(N,)` are the classes of the samples, if the generator has classes: their names, or
    positions in `class_names`; or the numbers of clusters. The count follows from them. Without
    labels, classes and clusters are as frequent as in the data (`draw_labels`). A larger count
    continues the same sequence of samples.
    `noise` `(N, noise_dim)` replaces the noise of the seed; `truncation` multiplies either.
    ValueError for a class that does not exist, invalid noise, or if there are not `count` labels.
    """
    if noise is not None:
        noise = check_noise(generator, noise)
        count = len(noise) if count is None else count
    if labels is not None:
        labels = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else labels
        labels = torch.tensor([find_class(generator, label) for label in labels])
        count = len(labels) if count is None else count
    if (count or 0) < 1:
        raise ValueError(f"the count is {count}: give one of 1 or more, or a label for each sample")
    if noise is not None and len(noise) != count:
        raise ValueError(f"there are {len(noise)} noise vectors for {count} samples")
    if labels is None:
        labels = draw_labels(generator, count, seed)
    if len(labels) != count:
        raise ValueError(f"there are {len(labels)} labels for {count} samples")
    return torch.cat(list(generate_chunks(generator, labels, seed, noise, truncation)))


def check_noise(generator: TrainedGenerator, noise: Tensor | np.ndarray) -> Tensor:
    """Noise vectors as float32; ValueError if they are not finite or not `(N, noise_dim)`."""
    noise = torch.as_tensor(noise, dtype=torch.float32, device="cpu")
    if noise.dim() != 2 or noise.shape[1] != generator.noise_dim or not len(noise):
        shape, needed = tuple(noise.shape), f"(N, {generator.noise_dim})"
        raise ValueError(f"the noise has shape {shape}, but this generator needs {needed}")
    if not noise.isfinite().all():
        raise ValueError("the noise contains infinite values or NaN: use finite float32 values")
    return noise


def draw_labels(generator: TrainedGenerator, count: int, seed: int = 0) -> Tensor:
    """The classes or clusters `(count,)` int64 of the samples of `generate`; zeros if there are
    none."""
    if not generator.class_counts:
        return torch.zeros(count, dtype=torch.int64)
    counts = torch.tensor(generator.class_counts, dtype=torch.float32)
    parts = []
    for start in range(0, count, CHUNK):
        rng = seeded_generator("cpu", seed, "classes", start)
        parts.append(torch.multinomial(counts, CHUNK, replacement=True, generator=rng))
    return torch.cat(parts)[:count]


def find_class(generator: TrainedGenerator, label: str | int) -> int:
    """The class with this name, with this number as text, or at this position in `class_names`, or
    a cluster's number (0 if there are none); ValueError, with the names there are, for another."""
    names, is_text = list(generator.class_names), isinstance(label, str)
    if is_text:
        label = unicodedata.normalize("NFC", label)
    counts = generator.class_counts or (1,)
    if label in range(len(counts)) and (names or counts[int(label)]):  # unused clusters have none
        return int(label)
    if label in names:
        return names.index(label)
    numbers = class_numbers(names)
    if is_text and label.isdecimal() and int(label) in numbers:
        return numbers.index(int(label))
    numbered = (f"{numbers[k]} {name}" if numbers[k] >= 0 else name for k, name in enumerate(names))
    listed = one_line(", ".join(names if are_numbers(names) else numbered)) or "none"
    text = repr(label) if is_text else f"at position {label}"
    text += suggestion(str(label), names)
    raise ValueError(f"there is no class {text}; the classes: {listed}")


@torch.no_grad()
def generate_chunks(
    generator: TrainedGenerator, labels: Tensor, seed: int, noise: Tensor | None, truncation: float
) -> Iterator[Tensor]:
    count, device = len(labels), generator.device
    for start in tqdm(range(0, count, CHUNK), "generating", delay=2, leave=False, disable=None):
        # Always a whole chunk, because rounding depends on the size of a batch.
        part = labels[start : start + CHUNK]
        part = F.pad(part, (0, CHUNK - len(part))).to(device)
        rows = noise_chunk(generator, seed, start) if noise is None else noise[start:][:CHUNK]
        rows = F.pad(truncation * rows, (0, 0, 0, CHUNK - len(rows))).to(device)
        samples = generator(rows, part)[: count - start].cpu()
        if generator.standardisation:
            samples = generator.standardisation.undo(samples)
        yield to_byte_images(samples) if samples.dim() == 4 else samples


def noise_chunk(generator: TrainedGenerator, seed: int, start: int) -> Tensor:
    """The noise `(CHUNK, noise_dim)` of the samples from number `start`, a multiple of `CHUNK`."""
    rng = seeded_generator("cpu", seed, "generate", start)
    return torch.randn(CHUNK, generator.noise_dim, generator=rng)


def noise_of(generator: TrainedGenerator, numbers: Sequence[int], seed: int) -> Tensor:
    """The noise `(N, noise_dim)` from which `generate` makes the samples with these numbers."""
    starts = {number - number % CHUNK for number in numbers}
    chunks = {start: noise_chunk(generator, seed, start) for start in starts}
    return torch.stack([chunks[n - n % CHUNK][n % CHUNK] for n in numbers])


@torch.no_grad()
def interpolation_frames(
    generator: TrainedGenerator, stops: Tensor, labels: Tensor, frames: int
) -> Iterator[Image]:
    """Frames of closed walks through noise `stops` `(S, N, noise_dim)`: S stops of N walks, which
    are shown side by side, each of one class, `labels` `(N,)`. There are `frames` from one stop to
    the next.

    The walks follow great circles of the sphere near which high-dimensional noise lies; a straight
    line would pass near its centre.
    """
    device = generator.device
    columns, labels = ceil(stops.shape[1] ** 0.5), labels.to(device)
    for start, end in zip(stops, stops.roll(-1, 0), strict=True):
        for fraction in torch.arange(frames) / frames:
            samples = generator(slerp(start, end, fraction).to(device), labels)
            yield plots.image_grid(to_byte_images(samples).cpu().numpy(), columns)


def slerp(start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of rows `(B, D)`; their lengths are interpolated
    linearly."""
    lengths = start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)
    unit_start, unit_end = F.normalize(start), F.normalize(end)  # zeros stay zeros
    angle = (unit_start * unit_end).sum(1, keepdim=True).clamp(-1, 1).acos()
    direction = (
        ((1 - fraction) * angle).sin() * unit_start + (fraction * angle).sin() * unit_end
    ) / angle.sin()
    parallel = angle.sin() < 1e-6  # no unique arc, and a division by zero
    return torch.where(parallel, unit_start, direction) * torch.lerp(*lengths, fraction)
