"""Metrics of generated samples against a data set, for images and for points."""

import sys

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
CHECKED_IMAGES = 2000  # held-out ones that a classifier must recognise better than by chance
SLICED_IMAGES = 2048  # for the sliced Wasserstein distance
PAIRED_POINTS = 2000  # for the exact distance, whose cost grows with the cube
NEIGHBOURS, NEIGHBOUR_ROWS = 7, 8  # real images next to a sample, and number of samples


class Evaluator:
    """Compares images with `reference` images of a data set.

    `held_out` images, which a classifier has not seen, give each metric's floor. Both sets are
    drawn with a fixed seed; each has `count` images: `samples`, or half of the data if that is
    less, or 10,000 if there is a classifier, so that one classifier serves every `samples`.
    `features` is a choice of `wgan.evaluation.features.choose_features`; if there are no features,
    or a classifier that "auto" chose has learned nothing, the only metric is the sliced Wasserstein
    distance.

    Raises ValueError if the data set has fewer than 8 images, or if a classifier is requested and
    has no labels or learns nothing.
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
        *_, training = split_indices(len(dataset), self.count)
        self.features = choose_features(features, dataset, training, data_root, device)
        learned = isinstance(self.features, ClassifierFeatures)
        if learned and self.count > SAMPLES:
            self.count = SAMPLES
            print(f"comparing {SAMPLES:,} samples: a classifier has seen the rest", file=sys.stderr)
        held_out, reference, _ = split_indices(len(dataset), self.count)
        self.held_out, self.reference = dataset.read(held_out), dataset.read(reference)
        self.labels = None
        if learned:
            labels = torch.from_numpy(dataset.labels).long()
            self.labels = labels[labels >= 0]
            unseen, *_ = split_indices(len(dataset), min(CHECKED_IMAGES, len(dataset) // 2))
            problem = describe_chance(self.features, dataset.read(unseen), labels[unseen])
            if problem and features == "classifier":
                raise ValueError(
                    f"{problem}: check the classes, or use evaluate.py --features inception"
                )
            if problem:
                print(f"{problem}: comparing without classes", file=sys.stderr)
                self.features = None
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
        """A grid of samples, each next to the reference images nearest to it in features, or in
        pixels if there are none. Memorised images are easy to spot there."""
        images = images[:NEIGHBOUR_ROWS]
        if self.features:
            positions, reference_positions = self.features(images), self.reference_features
        else:
            positions, reference_positions = (
                part.flatten(1).float() for part in (images, self.reference)
            )
        count = min(NEIGHBOURS, self.count)
        nearest = metrics.nearest_neighbours(positions, reference_positions, count)
        return plots.neighbour_grid(images.numpy(), self.reference[nearest].numpy())


def split_indices(total: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of `count` held-out and `count` reference samples out of `total`, and of all samples
    a classifier may learn from; each in ascending order.

    The last do not depend on `count`. If it is at most `SAMPLES`, they include the reference and no
    held-out sample.
    """
    order = np.random.default_rng(0).permutation(total)
    unseen = min(SAMPLES, total // 2)
    start = max(unseen, count)
    return np.sort(order[:count]), np.sort(order[start : start + count]), np.sort(order[unseen:])


def describe_chance(features: ClassifierFeatures, images: Tensor, labels: Tensor) -> str | None:
    """The accuracy of a classifier on images `(N, C, H, W)` that it has not seen, if it is not
    better than chance by two standard errors; None if it is.

    `labels` `(N,)` int64; images without a class, whose label is negative, do not count. The
    accuracy is the mean over the classes, as the largest class alone could give a high one.
    """
    images, labels = images[labels >= 0], labels[labels >= 0]
    if not len(labels):
        return "none of the held-out real images has a class"
    correct = features.probabilities(features(images)).argmax(1) == labels
    counts = labels.bincount()  # (K,)
    hits, counts = labels.bincount(correct.float())[counts > 0], counts[counts > 0]
    accuracy, chance = (hits / counts).mean().item(), 1 / len(counts)
    error = (chance * (1 - chance) / counts).sum().sqrt().item() / len(counts)
    if accuracy > chance + 2 * error:
        return None
    return (
        f"the classifier's accuracy on {len(labels):,} held-out real images is {accuracy:.1%}, "
        f"averaged over the classes, which is no better than chance ({chance:.1%})"
    )


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
