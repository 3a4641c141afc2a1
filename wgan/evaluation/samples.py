"""The samples that are compared: of data sets, and of a run's generator."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wgan.data import Dataset
from wgan.data.classes import match_classes
from wgan.sampling import TrainedGenerator, draw_labels, generate

SAMPLES = 10_000
MIN_SAMPLES = 4  # precision and recall need the third neighbour of a sample


@dataclass(frozen=True)
class Samples:
    """Images `(N, C, H, W)` uint8 or points `(N, D)` float32, and the class of each, `(N,)` int64,
    if there are classes; of generated samples, the class that was requested."""

    values: Tensor
    labels: Tensor | None = None


def check_enough(dataset: Dataset, minimum: int = 2 * MIN_SAMPLES) -> None:
    """ValueError if the data set is too small; by default, for a reference and held-out samples."""
    if (count := len(dataset)) < minimum:
        raise ValueError(f"evaluation needs at least {minimum} samples, but the data has {count}")


# ---------------------------------------------------------------- samples of a data set


def shuffled(total: int) -> np.ndarray:
    """The indices of `total` samples in an order that is random and always the same."""
    return np.random.default_rng(0).permutation(total)


def random_indices(total: int, count: int) -> np.ndarray:
    """`count` indices out of `total` in ascending order: of held-out samples, or of one of two
    sets that are compared."""
    return np.sort(shuffled(total)[:count])


def reference_indices(total: int, count: int) -> np.ndarray:
    """`count` indices of reference samples, none of them in `random_indices(total, count)`."""
    start = max(unseen(total), count)
    return np.sort(shuffled(total)[start : start + count])


def training_indices(total: int) -> np.ndarray:
    """Indices of the samples that a classifier learns from. They include the reference and none of
    up to `SAMPLES` held-out samples, and do not depend on the number of samples compared."""
    return np.sort(shuffled(total)[unseen(total) :])


def unseen(total: int) -> int:
    """Number of samples that a classifier does not learn from."""
    return min(SAMPLES, total // 2)


def labelled_samples(dataset: Dataset, indices: np.ndarray) -> Samples:
    labels = None if dataset.labels is None else torch.from_numpy(dataset.labels[indices]).long()
    return Samples(dataset.read(indices), labels)


# ---------------------------------------------------------------- samples of a run


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
