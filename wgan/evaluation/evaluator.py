"""Metrics of generated samples against a data set, for images and for points."""

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from utils import wasserstein_estimate
from wgan import plots
from wgan.config import Config
from wgan.data import Dataset
from wgan.evaluation import metrics
from wgan.evaluation.features import ClassifierFeatures, choose_features
from wgan.state import build_networks

SAMPLES = 10_000
MIN_SAMPLES = 4  # precision and recall need the third neighbour of a sample
SLICED_IMAGES = 2048  # for the sliced Wasserstein distance
PAIRED_POINTS = 2000  # for the exact distance, whose cost grows with the cube
NEIGHBOURS, NEIGHBOUR_ROWS = 7, 8  # real images next to a sample, and number of samples


class Evaluator:
    """Compares images with `reference` images of a data set.

    `held_out` images, which a classifier has not seen, give each metric's floor. Both sets are
    drawn with a fixed seed; each has `count` images: `samples`, or half of the data if that is
    less. `features` is a choice of `wgan.evaluation.features.choose_features`; if there are no
    features, the only metric is the sliced Wasserstein distance.

    Raises ValueError if the data set has fewer than 8 images, or no labels for a classifier.
    """

    def __init__(
        self,
        dataset: Dataset,
        data_root: str,
        device: torch.device,
        samples: int = SAMPLES,
        features: str = "auto",
    ):
        if len(dataset) < 2 * MIN_SAMPLES:
            raise ValueError(
                f"evaluation needs at least {2 * MIN_SAMPLES} images, but the data set has "
                f"{len(dataset)}"
            )
        self.count = min(samples, len(dataset) // 2)
        held_out, reference, training = split_indices(len(dataset), self.count)
        self.held_out, self.reference = dataset.read(held_out), dataset.read(reference)
        self.labels = None if dataset.labels is None else torch.from_numpy(dataset.labels).long()
        self.features = choose_features(features, dataset, training, data_root, device)
        self.reference_features = self.features(self.reference) if self.features else None

    def frechet_distance(self, images: Tensor) -> float:
        """Fréchet distance of images `(N, C, H, W)` uint8 from the reference; needs features."""
        return metrics.frechet_distance(self.features(images), self.reference_features)

    def report(self, images: Tensor) -> dict[str, float]:
        """All available metrics of images `(N, C, H, W)` uint8."""
        found: dict[str, float] = {}
        if self.features:
            features, reference = self.features(images), self.reference_features
            found["frechet_distance"] = metrics.frechet_distance(features, reference)
            found["kernel_distance"] = metrics.kernel_distance(features, reference)
            precision, recall = metrics.precision_and_recall(features, reference)
            found |= {"precision": precision, "recall": recall}
            if isinstance(self.features, ClassifierFeatures):
                probabilities = self.features.probabilities(features)
                found |= metrics.class_coverage(probabilities, self.labels)
        sliced = metrics.sliced_wasserstein(images[:SLICED_IMAGES], self.reference[:SLICED_IMAGES])
        return found | {f"sliced_wasserstein_{size}": value for size, value in sliced.items()}

    def neighbours(self, images: Tensor) -> Image:
        """A grid of samples, each followed by the reference images nearest to it in features, or
        in pixels if there are none. Memorised images are easy to spot there."""
        images = images[:NEIGHBOUR_ROWS]
        if self.features:
            positions, reference_positions = self.features(images), self.reference_features
        else:
            positions, reference_positions = (
                part.flatten(1).float() for part in (images, self.reference)
            )
        count = min(NEIGHBOURS, self.count)
        nearest = metrics.nearest_neighbours(positions, reference_positions, count)
        rows = torch.cat([images[:, None], self.reference[nearest]], dim=1)  # (8, 1 + 7, C, H, W)
        return plots.image_grid(rows.flatten(0, 1).numpy(), columns=1 + count)


def split_indices(total: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of `count` held-out and `count` reference samples out of `total`, and of all samples
    a classifier may learn from, which include the reference; each in ascending order."""
    order = np.random.default_rng(0).permutation(total)
    held_out, rest = order[:count], order[count:]
    return np.sort(held_out), np.sort(rest[:count]), np.sort(rest)


# ---------------------------------------------------------------- points


def report_points(
    points: Tensor, reference: Tensor, labels: Tensor | None, seed: int = 0
) -> dict[str, float]:
    """All available metrics of points `(N, 2)` against reference points `(M, 2)`.

    `labels` `(M,)` int64 are the modes of the reference, if it is a mixture of Gaussians. The
    exact distance uses up to 2,000 of the points, and of the reference drawn with `seed`.
    """
    found: dict[str, float] = {}
    if labels is not None:
        found |= metrics.mode_coverage(points, reference, labels)
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))
    count = min(PAIRED_POINTS, len(points), len(reference))
    found["wasserstein_distance"] = metrics.wasserstein_distance(
        points[:count], reference[order[:count]]
    )
    return found


def critic_estimate(checkpoint: dict, config: Config, real: Tensor, fake: Tensor) -> float:
    """E f(real) - E f(fake): the estimate by the critic f of a checkpoint, for samples
    `(N, ...)`."""
    _, critic = build_networks(config, tuple(real.shape[1:]))
    try:
        critic.load_state_dict(checkpoint["critic"])
    except Exception as error:  # a foreign checkpoint may contain anything
        raise ValueError(f"the critic in the checkpoint does not fit: {error}") from error
    with torch.no_grad():
        return wasserstein_estimate(critic(real), critic(fake)).item()
