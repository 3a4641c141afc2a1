"""Metrics of images against a data set."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from wgan import plots
from wgan.data import Dataset
from wgan.evaluation import metrics
from wgan.evaluation.features import (
    ClassifierFeatures,
    Features,
    InceptionFeatures,
    RandomFeatures,
    choose_features,
)
from wgan.evaluation.samples import SAMPLES, Samples, check_enough, labelled_samples
from wgan.files import write_whole

CHECKED_IMAGES = 2000  # held-out ones that a classifier must recognise better than by chance
NEIGHBOURS, NEIGHBOUR_ROWS = 7, 8  # real images next to a sample, and number of samples


class Evaluator:
    """Compares images with `reference` images of a data set.

    `held_out` images, which a classifier has not seen, give each metric's floor. Both sets are
    drawn with a fixed seed; each has `count` images: `samples`, or half of the data if that is
    less, or 10,000 if there is a classifier, so that one classifier serves every `samples`. With
    `test`, the reference is drawn from these images instead. `features` is a choice of
    `wgan.evaluation.features.choose_features`; a classifier that "auto" chose and that has learned
    nothing is replaced by random features.

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
        test: Dataset | None = None,
    ):
        check_enough(dataset)
        self.count = min(samples, len(dataset) // 2, len(test or dataset))
        *_, training = split_indices(len(dataset), self.count)
        self.features = choose_features(features, dataset, training, data_root, device)
        if isinstance(self.features, ClassifierFeatures):
            self.features = self.check_classifier(dataset, training, data_root, device, features)
        if isinstance(self.features, ClassifierFeatures) and self.count > SAMPLES:
            self.count = SAMPLES
            print(f"comparing {SAMPLES:,} samples: a classifier has seen the rest", file=sys.stderr)
        held_out, reference, _ = split_indices(len(dataset), self.count)
        if test is not None:
            reference, *_ = split_indices(len(test), self.count)
        self.held_out = labelled_samples(dataset, held_out)
        self.reference = labelled_samples(dataset if test is None else test, reference)
        labels = dataset.labels
        self.labels = None if labels is None else torch.from_numpy(labels[labels >= 0]).long()
        self.reference_features = self.features(self.reference.values)

    def check_classifier(
        self,
        dataset: Dataset,
        training: np.ndarray,
        data_root: str,
        device: torch.device,
        choice: str,
    ) -> Features:
        """The classifier, or random features if it has learned nothing and was not
        requested."""
        unseen, *_ = split_indices(len(dataset), min(CHECKED_IMAGES, len(dataset) // 2))
        labels = torch.from_numpy(dataset.labels[unseen]).long()
        problem = describe_chance(self.features, dataset.read(unseen), labels)
        if problem and choice == "classifier":
            raise ValueError(f"{problem}: check the classes, or use --features random")
        if not problem:
            return self.features
        print(f"{problem}: comparing without classes", file=sys.stderr)
        return choose_features("random", dataset, training, data_root, device)

    def frechet_distance(self, images: Tensor) -> float:
        """Fréchet distance of images `(N, C, H, W)` uint8 from the reference."""
        return metrics.frechet_distance(self.features(images), self.reference_features)

    def report(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """All available metrics of images `(N, C, H, W)` uint8; `labels` `(N,)` int64 are the
        classes that they were generated for, if any."""
        found: dict[str, float] = {}
        with tqdm(total=4, desc="comparing", delay=2, leave=False, disable=None) as bar:
            features, reference = self.features(images), self.reference_features
            bar.update()
            found["frechet_distance"] = metrics.frechet_distance(features, reference)
            bar.update()
            found["kernel_distance"] = metrics.kernel_distance(features, reference)
            bar.update()
            precision, recall = metrics.precision_and_recall(features, reference)
            found |= {"precision": precision, "recall": recall}
            bar.update()
        return found | self.report_classes(features, labels)

    def report_classes(self, features: Tensor, labels: Tensor | None) -> dict[str, float]:
        """The metrics that need classes: of the data, predicted, or requested."""
        found: dict[str, float] = {}
        if labels is not None and not (labels >= 0).any():
            labels = None
        if isinstance(self.features, InceptionFeatures):
            found["inception_score"] = metrics.inception_score(
                self.features.probabilities(features)
            )
        if isinstance(self.features, ClassifierFeatures):
            probabilities = self.features.probabilities(features)
            found |= metrics.class_coverage(probabilities, self.labels)
            if labels is not None:
                known = labels >= 0
                predicted = probabilities.argmax(1)
                found["class_agreement"] = metrics.class_agreement(predicted[known], labels[known])
        if labels is not None and self.reference.labels is not None:
            try:
                found["within_class_frechet"] = metrics.within_class_frechet(
                    features, labels, self.reference_features, self.reference.labels
                )
            except ValueError as error:
                print(f"no distance within the classes: {error}", file=sys.stderr)
        return found

    def compare(self, samples: Samples, neighbours: Path | None = None) -> dict:
        """Metrics of samples ("generated") and of held-out images ("real"), and what was compared.

        `neighbours` is where to write the image of samples next to the most similar real images.
        """
        wanted = None if samples.labels is None else self.held_out.labels
        result: dict = {
            "samples": self.count,
            "features": self.features.name,
            "generated": self.report(samples.values, samples.labels),
            "real": self.report(self.held_out.values, wanted),
        }
        if neighbours is None:
            return result
        write_whole(neighbours, plots.png(self.neighbours(samples.values)))
        return result | {"neighbours": str(neighbours)}

    def neighbours(self, images: Tensor) -> Image:
        """A grid of samples, each next to the reference images nearest to it: in features, or in
        pixels if features are random, as these change much with little noise. Memorised images are
        easy to spot there."""
        images, reference = images[:NEIGHBOUR_ROWS], self.reference.values
        if isinstance(self.features, RandomFeatures):
            positions = (part.flatten(1).float() for part in (images, reference))
        else:
            positions = self.features(images), self.reference_features
        nearest = metrics.nearest_neighbours(*positions, min(NEIGHBOURS, self.count))
        return plots.neighbour_grid(images.numpy(), reference[nearest].numpy())


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
