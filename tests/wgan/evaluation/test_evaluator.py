"""What is compared with what, and the reports."""

import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from wgan.data import Dataset, RowReader
from wgan.evaluation import features
from wgan.evaluation.evaluator import Evaluator, report_points, split_indices
from wgan.evaluation.features import Classifier


@pytest.fixture(autouse=True)
def no_inception(monkeypatch, tmp_path):
    """As on a machine without Inception's weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def dataset_of(samples, labels=None):
    return Dataset(RowReader.from_array(samples), labels)


def random_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)


def test_held_out_images_are_neither_reference_nor_training_data(tmp_path, cpu, monkeypatch):
    samples = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1).repeat(8, 2).repeat(8, 3)

    def values(images):
        return set(images[:, 0, 0, 0].tolist())

    def train(images, labels, classes, device):
        learned.update(values(images[torch.arange(len(images))]))
        return Classifier(1, 2).eval()

    learned = set()
    monkeypatch.setattr(features, "train_classifier", train)
    dataset = dataset_of(samples, np.arange(200) % 2)
    evaluator = Evaluator(dataset, str(tmp_path), cpu, samples=50)
    held_out, reference = values(evaluator.held_out), values(evaluator.reference)
    assert (len(held_out), len(reference), len(learned)) == (50, 50, 150)
    assert not held_out & learned
    assert reference <= learned


def test_a_class_that_the_classifier_never_saw_counts_in_the_data(tmp_path, cpu):
    """Class 3 has one image, and that one is held out; classes 1 and 2 do not occur."""
    held_out, _, _ = split_indices(40, 20)
    labels = np.zeros(40, np.int64)
    labels[held_out[0]] = 3
    evaluator = Evaluator(dataset_of(random_images(40), labels), str(tmp_path), cpu)
    report = evaluator.report(evaluator.held_out)
    assert (report["classes"], report["smallest_class"]) == (1, 0)
    # With one added to each class: 20 samples of class 0, against 39 of class 0 and one of 3.
    samples, data = np.array([21, 1, 1, 1]) / 24, np.array([40, 1, 1, 2]) / 44
    expected = float((samples * np.log(samples / data)).sum())
    assert report["class_divergence"] == pytest.approx(expected, abs=1e-6)


def test_a_report_uses_the_classifier_once(tmp_path, cpu):
    dataset = dataset_of(random_images(40), np.arange(40) % 2)
    evaluator = Evaluator(dataset, str(tmp_path), cpu)
    forward = Mock(side_effect=evaluator.features.classifier.features.forward)
    evaluator.features.classifier.features.forward = forward
    report = evaluator.report(evaluator.reference)
    assert forward.call_count == 1
    assert report["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert report["precision"] == report["recall"] == 1


def test_images_without_features_are_compared_by_patches(tmp_path, cpu):
    evaluator = Evaluator(dataset_of(random_images(40)), str(tmp_path), cpu)
    assert evaluator.features is None
    assert list(evaluator.report(evaluator.held_out)) == ["sliced_wasserstein_8x8"]


@pytest.mark.parametrize("labels", [None, np.arange(40) % 2])
def test_the_nearest_neighbour_of_a_real_image_is_itself(labels, tmp_path, cpu):
    evaluator = Evaluator(dataset_of(random_images(40), labels), str(tmp_path), cpu)
    grid = np.asarray(evaluator.neighbours(evaluator.reference[:3]))
    assert grid.shape == (3 * 10 + 2, 8 * 10 + 2)
    for row, image in enumerate(evaluator.reference[:3, 0].numpy()):
        top = 2 + 10 * row
        assert np.array_equal(grid[top : top + 8, 2:10], image)
        assert np.array_equal(grid[top : top + 8, 12:20], image)


def test_too_few_images_are_refused(tmp_path, cpu):
    samples = np.zeros((7, 1, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="at least 8 images, but the data set has 7"):
        Evaluator(dataset_of(samples, np.arange(7) % 2), str(tmp_path), cpu)


def test_points_are_reported_with_modes_only_if_there_are_labels():
    reference = torch.tensor([[0.0, 0.0], [4.0, 0.0]]).repeat(50, 1)
    reference += 0.1 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(2).repeat(50)
    found = report_points(reference, reference, labels)
    assert found["modes"] == found["modes_in_all"] == 2
    assert found["wasserstein_distance"] == pytest.approx(0, abs=1e-6)
    moved = report_points(reference + torch.tensor([0.0, 3.0]), reference, None)
    assert list(moved) == ["wasserstein_distance"]
    assert math.isclose(moved["wasserstein_distance"], 3, rel_tol=1e-5)
