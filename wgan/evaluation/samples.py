"""Images to compare that are not those of a run: arrays, folders, and drawn with labels."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from wgan.data import Dataset, RowReader, load_dataset, seeded_generator, to_byte_images
from wgan.data.folder import load_folder
from wgan.data.sources import FolderSource
from wgan.sampling import generate

CHUNK = 100  # samples generated at a time
ARRAYS = (".npz", ".npy")
MIN_SAMPLES = 4  # precision and recall need the third neighbour of a sample


@dataclass(frozen=True)
class Samples:
    """Images `(N, C, H, W)` uint8 or points `(N, D)` float32, and the class of each, `(N,)` int64,
    if there are classes; of generated samples, the class that was requested."""

    values: Tensor
    labels: Tensor | None = None


def read_pair(source: str, reference: str, data_root: str) -> tuple[Dataset, Dataset]:
    """Two sets of images of one shape, each an array file, a folder or a data set in the table.

    Folders and data sets in the table are loaded with the size of the other set. Raises ValueError
    if one cannot be read or the shapes differ.
    """
    shape = None
    if Path(reference).suffix.lower() in ARRAYS and Path(source).is_dir():
        shape = read_array(Path(reference)).sample_shape
    first = read_dataset(source, data_root, shape)
    second = read_dataset(reference, data_root, first.sample_shape)
    if first.sample_shape != second.sample_shape:
        raise ValueError(
            f"the images in {source} have shape {first.sample_shape}, but those in {reference} "
            f"have {second.sample_shape}: they cannot be compared"
        )
    if len(first) < MIN_SAMPLES:
        raise ValueError(
            f"{source} has {len(first)} images, but comparing needs at least {MIN_SAMPLES}"
        )
    return first, second


def read_dataset(source: str, data_root: str, shape: tuple[int, ...] | None = None) -> Dataset:
    """Images of an array file, a folder, or a data set in the table.

    Folders and data sets are loaded with the size of `shape` `(C, H, W)`, folders also in grey if
    C is 1. Without `shape`, a folder's first image determines both. Raises ValueError if the source
    cannot be read.
    """
    if Path(source).suffix.lower() in ARRAYS:
        return read_array(Path(source))
    if not Path(source).is_dir():
        return load_dataset(source, data_root, "x".join(map(str, shape[1:])) if shape else "")
    channels, *size = shape or first_shape(Path(source))
    return load_folder(Path(source), Path(data_root), tuple(size), channels == 1)


def first_shape(folder: Path) -> tuple[int, int, int]:
    """The shape `(C, H, W)` of a folder's first image that can be read."""
    source = FolderSource(folder)
    for file in source.list():
        try:
            with source.open(file.name) as image:
                return (1 if image.mode == "L" else 3, image.height, image.width)
        except (OSError, ValueError):
            continue
    raise ValueError(f"there is no image in {folder}")


def read_array(path: Path) -> Dataset:
    """Images `(N, H, W, C)` or `(N, C, H, W)` uint8, as generate.py writes them to a .npy or .npz
    file, with the array `labels` `(N,)` of the latter, if there is one.

    Raises ValueError if the file cannot be read or contains anything else.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    labels = None
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            with content as arrays:
                if "samples" not in arrays:
                    raise ValueError(f"it has {', '.join(arrays) or 'nothing'}, but no samples")
                content, labels = arrays["samples"], arrays.get("labels")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if content.dtype != np.uint8 or content.ndim != 4 or not {1, 3} & set(content.shape[1::2]):
        raise ValueError(
            f"{path} contains {content.dtype} {content.shape}: comparing needs images "
            "(N, H, W, C) or (N, C, H, W) uint8 with 1 or 3 channels"
        )
    if labels is not None and (labels.shape != content.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(
            f"{path} contains {len(content)} images, but labels {labels.dtype} {labels.shape}"
        )
    if content.shape[3] in (1, 3):
        content = content.transpose(0, 3, 1, 2)
    labels = None if labels is None else labels.astype(np.int64)
    return Dataset(RowReader.from_array(np.ascontiguousarray(content)), labels)


def sample_run(generator: nn.Module, dataset: Dataset, count: int, seed: int) -> Samples:
    """`count` samples of a generator, with labels if it has classes (`num_classes > 0`).

    Raises ValueError if the data set has more classes.
    """
    classes = getattr(generator, "num_classes", 0)
    if not classes:
        return Samples(generate(generator, count, seed))
    labels = torch.arange(classes) if dataset.labels is None else torch.from_numpy(dataset.labels)
    frequencies = labels[labels >= 0].bincount(minlength=classes)
    if len(frequencies) > classes:
        raise ValueError(
            f"the run has {classes} classes, but the data set now has {len(frequencies)}: give the "
            "run's data with --dataset"
        )
    return sample_with_labels(generator, count, seed, frequencies)


@torch.no_grad()
def sample_with_labels(
    generator: nn.Module, count: int, seed: int, class_frequencies: Tensor
) -> Samples:
    """`count` samples of a generator of classes, `generator(noise, labels)`.

    The labels are drawn with the frequencies `(K,)` of the data. A larger count continues the same
    sequence of samples.
    """
    device = next(generator.parameters()).device
    values, labels = [], []
    for start in tqdm(range(0, count, CHUNK), "generating", delay=2, leave=False, disable=None):
        rng = seeded_generator("cpu", seed, "generate", start)
        noise = torch.randn(CHUNK, generator.noise_dim, generator=rng)
        classes = class_frequencies.float().multinomial(CHUNK, replacement=True, generator=rng)
        made = generator(noise.to(device), classes.to(device))
        values.append(to_byte_images(made.cpu()) if made.dim() == 4 else made.cpu())
        labels.append(classes)
    return Samples(torch.cat(values)[:count], torch.cat(labels)[:count])
