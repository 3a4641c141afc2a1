"""What is compared with what, and the reports."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from wgan.data import Dataset, RowReader
from wgan.evaluation import evaluator as evaluator_module
from wgan.evaluation import features
from wgan.evaluation.evaluator import Evaluator, describe_chance, split_indices
from wgan.evaluation.features import Classifier
from wgan.evaluation.samples import Samples

WITHOUT_CLASSES = ["frechet_distance", "kernel_distance", "precision", "recall"]


@pytest.fixture(autouse=True)
def no_inception(monkeypatch, tmp_path):
    """As on a machine without Inception's weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def dataset_of(samples, labels=None):
    return Dataset(RowReader.from_array(samples), labels)


def two_classes(count, labels=None):
    """Dark and bright images, which a classifier tells apart."""
    labels = np.arange(count) % 2 if labels is None else labels
    bright = (128 * labels).astype(np.uint8)[:, None, None, None]
    return dataset_of(random_images(count) // 2 + bright, labels.copy())


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
    held_out, reference = values(evaluator.held_out.values), values(evaluator.reference.values)
    assert (len(held_out), len(reference), len(learned)) == (50, 50, 100)
    assert not held_out & learned
    assert reference <= learned


def test_a_class_that_the_classifier_never_saw_counts_in_the_data(tmp_path, cpu, monkeypatch):
    """Class 3 has one image, and that one is held out; classes 1 and 2 do not occur."""
    held_out, _, _ = split_indices(40, 20)
    labels = np.zeros(40, np.int64)
    labels[held_out[0]] = 3
    monkeypatch.setattr(evaluator_module, "describe_chance", lambda *arguments: None)
    evaluator = Evaluator(dataset_of(random_images(40), labels), str(tmp_path), cpu)
    report = evaluator.report(evaluator.held_out.values)
    assert (report["classes"], report["smallest_class"]) == (1, 0)
    # With one added to each class: 20 samples of class 0, against 39 of class 0 and one of 3.
    samples, data = np.array([21, 1, 1, 1]) / 24, np.array([40, 1, 1, 2]) / 44
    expected = float((samples * np.log(samples / data)).sum())
    assert report["class_divergence"] == pytest.approx(expected, abs=1e-6)


def test_a_report_uses_the_classifier_once(tmp_path, cpu):
    evaluator = Evaluator(two_classes(80), str(tmp_path), cpu)
    forward = Mock(side_effect=evaluator.features.classifier.features.forward)
    evaluator.features.classifier.features.forward = forward
    report = evaluator.report(evaluator.reference.values)
    assert forward.call_count == 1
    assert report["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert report["precision"] == report["recall"] == 1


@pytest.mark.parametrize("samples", [4, 30, 40])
def test_the_classifier_does_not_depend_on_the_number_of_samples(samples, tmp_path, cpu):
    names = {
        Evaluator(two_classes(80), str(tmp_path), cpu, samples=count).features.name
        for count in (10_000, samples)
    }
    assert len(names) == len(list(tmp_path.glob("classifier-*.pt"))) == 1


def test_more_samples_than_the_classifier_left_unseen_are_not_compared(
    tmp_path, cpu, monkeypatch, capsys
):
    monkeypatch.setattr(evaluator_module, "SAMPLES", 20)
    evaluators = [Evaluator(two_classes(80), str(tmp_path), cpu, samples=n) for n in (40, 20)]
    assert [evaluator.count for evaluator in evaluators] == [20, 20]
    assert evaluators[0].features.name == evaluators[1].features.name
    assert torch.equal(evaluators[0].held_out.values, evaluators[1].held_out.values)
    assert capsys.readouterr().err.count("comparing 20 samples") == 1
    plain = Evaluator(dataset_of(random_images(80)), str(tmp_path), cpu, samples=40)
    assert len(plain.held_out.values) == len(plain.reference.values) == 40


@pytest.mark.parametrize(
    ("total", "count"), [(8, 4), (80, 7), (80, 40), (41, 20), (50_000, 20_000)]
)
def test_parts_of_the_data_do_not_overlap(total, count):
    held_out, reference, training = (set(part.tolist()) for part in split_indices(total, count))
    assert len(held_out) == len(reference) == count
    assert not held_out & reference
    if count <= evaluator_module.SAMPLES:
        assert reference <= training and not held_out & training
    assert training == set(split_indices(total, 4)[2].tolist())


def random_labels(count):
    return np.random.default_rng(1).integers(0, 2, count)


@pytest.mark.parametrize(
    "labels", [random_labels(80), np.arange(80) // 76, np.zeros(80, int)], ids=str
)
def test_a_classifier_no_better_than_chance_is_not_used(labels, tmp_path, cpu, capsys):
    dataset = dataset_of(random_images(80), labels)
    evaluator = Evaluator(dataset, str(tmp_path), cpu)
    assert list(evaluator.report(evaluator.held_out.values)) == WITHOUT_CLASSES
    error = capsys.readouterr().err
    assert "no better than chance" in error and error.count("\n") == 1
    with pytest.raises(ValueError, match=r"accuracy on 40 .* is .*%.*chance.*check the classes"):
        Evaluator(dataset, str(tmp_path), cpu, features="classifier")


class Predicting:
    """Stands in for a classifier with these predictions, whatever the images are."""

    def __init__(self, predicted):
        self.predicted = torch.tensor(predicted)

    def __call__(self, images):
        return images

    def probabilities(self, features):
        return torch.eye(4)[self.predicted]


@pytest.mark.parametrize(
    ("labels", "predicted", "useful"),
    [
        ([0] * 18 + [1] * 2, [0] * 18 + [1] * 2, True),  # all of few images of a rare class
        ([0] * 18 + [1] * 2, [0] * 20, False),  # 90 % correct by always guessing one class
        ([0] * 95 + [3] * 5, [0] * 60 + [3] * 40, True),
        ([0, 1, 2, 3] * 50, [0] * 200, False),
        ([0, 1, 2, 3] * 50, [0, 0, 2, 2] * 50, True),
        ([0, 1] * 50, [0, 1] * 28 + [1, 0] * 22, False),  # 56 % is within two standard errors
        ([0, 1] * 50, [0, 1] * 32 + [1, 0] * 18, True),
        ([3] * 9, [3] * 9, False),  # a single class says nothing
    ],
)
def test_chance_is_a_classifiers_accuracy_averaged_over_the_classes(labels, predicted, useful):
    images = torch.zeros(len(labels), 1, 1, 1)
    problem = describe_chance(Predicting(predicted), images, torch.tensor(labels))
    assert (problem is None) == useful


def test_images_without_a_class_do_not_count_as_mistakes():
    labels = torch.tensor([0, -1, 1, -1] * 10)
    kept = [0, 1] * 10
    assert describe_chance(Predicting(kept), torch.zeros(40, 1), labels) is None
    assert "none of" in describe_chance(Predicting(kept), torch.zeros(4, 1), labels[[1, 3, 1, 3]])


def test_images_without_a_class_are_compared_and_not_learned_from(tmp_path, cpu):
    labels = np.arange(80) % 2
    strays = [3, 50, 79]
    dataset = two_classes(80, labels)
    dataset.labels[strays] = -1
    evaluator = Evaluator(dataset, str(tmp_path), cpu)
    report = evaluator.report(evaluator.held_out.values)
    assert report["classes"] == 2 and len(evaluator.labels) == 77
    assert evaluator.features.classifier.scores.out_features == 2


def test_images_without_labels_are_compared_in_random_features(tmp_path, cpu):
    evaluator = Evaluator(dataset_of(random_images(40)), str(tmp_path), cpu)
    assert evaluator.features.name.startswith("random-")
    assert list(evaluator.report(evaluator.held_out.values)) == WITHOUT_CLASSES
    assert not list(tmp_path.iterdir())


def test_test_images_are_the_reference_and_the_floor_is_held_out(tmp_path, cpu):
    test = dataset_of(255 - random_images(20), np.arange(20) % 2)
    evaluator = Evaluator(two_classes(80), str(tmp_path), cpu, test=test)
    assert evaluator.count == 20
    assert torch.equal(evaluator.reference.values, test.read(torch.arange(20)))
    held_out, *_ = split_indices(80, 20)
    assert torch.equal(evaluator.held_out.values, two_classes(80).read(held_out))


def test_samples_with_labels_are_compared_within_their_classes(tmp_path, cpu):
    evaluator = Evaluator(two_classes(80), str(tmp_path), cpu)
    real = evaluator.held_out
    right = evaluator.compare(real)
    swapped = evaluator.compare(Samples(real.values, 1 - real.labels))
    assert right["generated"] == right["real"]
    assert right["generated"]["class_agreement"] > 0.9
    assert swapped["generated"]["class_agreement"] < 0.1
    within = [result["generated"]["within_class_frechet"] for result in (right, swapped)]
    assert within[1] > 3 * within[0]
    plain = evaluator.compare(Samples(real.values))
    assert "class_agreement" not in plain["real"] and "within_class_frechet" not in plain["real"]


def test_a_class_with_too_few_samples_has_no_distance_within_classes(tmp_path, cpu, capsys):
    evaluator = Evaluator(two_classes(80), str(tmp_path), cpu)
    report = evaluator.report(evaluator.held_out.values, torch.zeros(40, dtype=torch.int64))
    assert "within_class_frechet" not in report and "class_agreement" in report
    assert "class number 1 has 0 samples" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [None, np.arange(40) % 2])
def test_the_nearest_neighbour_of_a_real_image_is_itself(labels, tmp_path, cpu):
    evaluator = Evaluator(dataset_of(random_images(40), labels), str(tmp_path), cpu)
    images = evaluator.reference.values[:3]
    grid = np.asarray(evaluator.neighbours(images))[28:]  # below the heading
    samples, nearest = grid[::8, : 8 * 12 : 8], grid[::8, 8 * 12 + 14 :: 8]  # enlarged by 8
    assert samples.shape == (3 * 10 + 2, 12) and nearest.shape == (3 * 10 + 2, 7 * 10 + 2)
    for row, image in enumerate(images[:, 0].numpy()):
        top = 2 + 10 * row
        assert np.array_equal(samples[top : top + 8, 2:10], image)
        assert np.array_equal(nearest[top : top + 8, 2:10], image)


def test_the_nearest_neighbour_of_a_noisy_copy_is_its_original(tmp_path, cpu):
    evaluator = Evaluator(dataset_of(random_images(40) // 2), str(tmp_path), cpu)
    originals = evaluator.reference.values[:3]
    grid = np.asarray(evaluator.neighbours(originals + 40 * (originals % 2)))
    nearest = grid[28::8, 8 * 12 + 14 :: 8]  # below the heading, enlarged by 8
    for row, image in enumerate(originals[:, 0].numpy()):
        assert np.array_equal(nearest[2 + 10 * row : 10 + 10 * row, 2:10], image)


def test_too_few_images_are_refused(tmp_path, cpu):
    samples = np.zeros((7, 1, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="at least 8 images, but the data set has 7"):
        Evaluator(dataset_of(samples, np.arange(7) % 2), str(tmp_path), cpu)
