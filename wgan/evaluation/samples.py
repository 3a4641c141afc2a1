"""The samples that are compared: of arrays, folders and data sets, and of a run's generator."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wgan.data import Dataset, ImageOptions, load_dataset
from wgan.data.arrays import ARRAY_SUFFIXES
from wgan.data.classes import match_classes
from wgan.data.folder import load_folder
from wgan.data.sources import FolderSource
from wgan.sampling import TrainedGenerator, draw_labels, generate

SAMPLES = 10_000
MIN_SAMPLES = 4  # precision and recall need the third neighbour of a sample


@dataclass(frozen=True)
class Samples:
    """Images `(N, C, H, W)` uint8 or points `(N, D)` float32, and the class of each, `(N,)` int64,
    if there are classes; of generated samples, the class that was requested."""

    values: Tensor
    labels: Tensor | None = None


def check_enough(dataset: Dataset) -> None:
    """ValueError if the data are too few for a reference and held-out samples."""
    if len(dataset) < 2 * MIN_SAMPLES:
        kind = "points" if dataset.is_points else "images"
        raise ValueError(
            f"evaluation needs at least {2 * MIN_SAMPLES} {kind}, but the data set has "
            f"{len(dataset)}"
        )


def labelled_samples(dataset: Dataset, indices: np.ndarray) -> Samples:
    labels = None if dataset.labels is None else torch.from_numpy(dataset.labels[indices]).long()
    return Samples(dataset.read(indices), labels)


def read_pair(source: str, reference: str, data_root: str) -> tuple[Dataset, Dataset]:
    """Two sets of images of one shape, each an array file, a folder or a data set in the table.

    Folders and data sets in the table are loaded with the size of the other set. The labels of the
    first are those of the second, for classes of the same name. Raises ValueError if one cannot be
    read or the shapes differ.
    """
    shape = None
    if is_array(reference) and Path(source).is_dir():
        shape = read_dataset(reference, data_root).sample_shape
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
    if first.labels is None or second.labels is None:
        return first, second
    positions = match_classes(first.class_names, second.class_names)
    return replace(first, labels=positions[first.labels], class_names=second.class_names), second


def read_dataset(source: str, data_root: str, shape: tuple[int, ...] | None = None) -> Dataset:
    """Images of an array file, a folder, or a data set in the table.

    Folders and data sets are loaded with the size of `shape` `(C, H, W)`, folders also in grey if
    C is 1. Without `shape`, a folder's first image determines both. Raises ValueError if the source
    cannot be read or contains no images.
    """
    if is_array(source):
        dataset = load_dataset(source, data_root)
        if dataset.is_points:
            raise ValueError(f"{source} contains vectors: comparing needs images")
        return dataset
    if not Path(source).is_dir():
        return load_dataset(source, data_root, ImageOptions(shape[1:] if shape else None))
    channels, *size = shape or first_shape(Path(source))
    options = ImageOptions(tuple(size), grey=channels == 1)
    return load_folder(Path(source), Path(data_root), options)


def is_array(source: str) -> bool:
    return Path(source).suffix.lower() in ARRAY_SUFFIXES


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


def sample_run(generator: TrainedGenerator, dataset: Dataset, count: int, seed: int) -> Samples:
    """`count` samples of a generator, with their classes if it has classes; those that the data
    set does not have are no class. Points and vectors are scaled like the data set."""
    labels = draw_labels(generator, count, seed)
    values = generate(generator, count, seed, labels)
    if dataset.standardisation:
        values = dataset.standardisation.apply(values)
    if not (generator.class_names and dataset.class_names):
        return Samples(values)
    positions = match_classes(generator.class_names, dataset.class_names)
    return Samples(values, torch.from_numpy(positions)[labels])
