"""Metrics of images against a data set."""

import sys
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from wgan import plots
from wgan.data import Dataset
from wgan.evaluation import metrics
from wgan.evaluation.features import (
    INCEPTION_FILES,
    Features,
    InceptionFeatures,
    RandomFeatures,
    cached_classifier,
    describe_chance,
)
from wgan.evaluation.samples import (
    SAMPLES,
    Samples,
    check_enough,
    labelled_samples,
    random_indices,
    reference_indices,
    training_indices,
)
from wgan.files import write_whole

CHOICES = ("auto", "classifier", "random", "inception")
CHECKED_IMAGES = 2000  # held-out ones that a classifier must recognise better than by chance
NEIGHBOURS, NEIGHBOUR_ROWS = 7, 8  # real images next to a sample, and number of samples


def choose_features(
    choice: str, dataset: Dataset, data_root: str, device: torch.device
) -> Features:
    """The features that `choice` names.

    "auto" is Inception if its weights exist on this machine, otherwise a classifier if the data
    set has labels and it learns something from them, otherwise "random", which needs neither.
    Raises ValueError if the data set has fewer than 8 images, if a classifier is requested and has
    no labels or learns nothing, or if Inception's weights cannot be loaded.
    """
    check_enough(dataset)
    weights = Path(torch.hub.get_dir()).glob(INCEPTION_FILES)
    if choice == "inception" or (choice == "auto" and any(weights)):
        return InceptionFeatures(device)
    if choice == "classifier" and dataset.labels is None:
        raise ValueError("a classifier needs a data set with labels: use --features random")
    if choice != "random" and dataset.labels is not None:
        classifier = cached_classifier(dataset, training_indices(len(dataset)), data_root, device)
        count = min(CHECKED_IMAGES, len(dataset) // 2)
        held_out = labelled_samples(dataset, random_indices(len(dataset), count))
        problem = describe_chance(classifier, held_out)
        if not problem:
            return classifier
        if choice == "classifier":
            raise ValueError(f"{problem}: check the classes, or use --features random")
        print(f"{problem}: comparing without classes", file=sys.stderr)
    return RandomFeatures(dataset.sample_shape[0], device)


class Evaluator:
    """Compares images with `reference` images of a data set, in given features.

    `held_out` images give each metric's floor. Both sets are drawn with a fixed seed; each has
    `count` images: `samples`, or half of the data if that is less, or `SAMPLES` if the features are
    learned from the others. With `test`, the reference is drawn from these images instead.
    """

    def __init__(
        self,
        dataset: Dataset,
        features: Features,
        samples: int = SAMPLES,
        test: Dataset | None = None,
    ):
        self.features = features
        self.count = min(samples, len(dataset) // 2, len(test or dataset))
        if features.learned:
            self.count = min(self.count, SAMPLES)
        self.held_out = labelled_samples(dataset, random_indices(len(dataset), self.count))
        if test is None:
            indices = reference_indices(len(dataset), self.count)
            self.reference = labelled_samples(dataset, indices)
        else:
            self.reference = labelled_samples(test, random_indices(len(test), self.count))
        labels = dataset.labels
        self.labels = None if labels is None else torch.from_numpy(labels[labels >= 0]).long()
        self.reference_features = features(self.reference.values)

    def frechet_distance(self, images: Tensor) -> float:
        """Fréchet distance of images `(N, C, H, W)` uint8 from the reference."""
        return metrics.frechet_distance(self.features(images), self.reference_features)

    def report(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """All available metrics of images `(N, C, H, W)` uint8; `labels` `(N,)` int64 are the
        classes that they were generated for, if any."""
        features, reference = self.features(images), self.reference_features
        precision, recall = metrics.precision_and_recall(features, reference)
        density, coverage = metrics.density_and_coverage(features, reference)
        values = {
            "frechet_distance": metrics.frechet_distance(features, reference),
            "kernel_distance": metrics.kernel_distance(features, reference),
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            "nearest_distance": metrics.nearest_distance(images, self.reference.values),
        }
        return values | self.features.metrics(features) | self.report_classes(features, labels)

    def report_classes(self, features: Tensor, labels: Tensor | None) -> dict[str, float]:
        """The metrics that need classes: of the data, predicted, or requested."""
        values: dict[str, float] = {}
        probabilities = self.features.probabilities(features)
        if probabilities is not None:
            values |= metrics.class_coverage(probabilities, self.labels)
        if labels is None or not (labels >= 0).any():
            return values
        if probabilities is not None:
            values["class_agreement"] = metrics.class_agreement(probabilities, labels)
        if self.reference.labels is not None:
            values["within_class_frechet"] = metrics.within_class_frechet(
                features, labels, self.reference_features, self.reference.labels
            )
        return values

    def compare(self, samples: Samples, neighbours: Path | None = None) -> dict:
        """Metrics of samples ("generated") and of held-out images ("real"), and what was compared.

        `neighbours` is where to write the image of samples next to the most similar real images.
        """
        print(f"comparing {self.count:,} samples with {self.count:,} real ones", file=sys.stderr)
        real_labels = None if samples.labels is None else self.held_out.labels
        result: dict = {
            "samples": self.count,
            "features": self.features.name,
            "generated": self.report(samples.values, samples.labels),
            "real": self.report(self.held_out.values, real_labels),
        }
        if neighbours is None:
            return result
        write_whole(neighbours, plots.png(self.neighbours(samples.values)))
        return result | {"neighbours": str(neighbours)}

    def neighbours(self, images: Tensor) -> Image:
        """A grid of samples, each next to the reference images nearest to it, where memorised
        images are easy to spot."""
        images, reference = images[:NEIGHBOUR_ROWS], self.reference.values
        if self.features.similar_images_are_near:
            positions = self.features(images), self.reference_features
        else:
            positions = (part.flatten(1).float() for part in (images, reference))
        nearest = metrics.nearest_neighbours(*positions, min(NEIGHBOURS, self.count))
        return plots.neighbour_grid(images.numpy(), reference[nearest].numpy())
