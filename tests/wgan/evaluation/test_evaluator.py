"""Which features are chosen, what is compared with what, and the reports."""

import numpy as np
import pytest
import torch

from wgan.data import Dataset, RowReader
from wgan.evaluation import evaluator as evaluator_module
from wgan.evaluation import features
from wgan.evaluation.evaluator import Evaluator, choose_features
from wgan.evaluation.features import (
    Classifier,
    ClassifierFeatures,
    InceptionFeatures,
    RandomFeatures,
    cached_classifier,
)
from wgan.evaluation.samples import Samples, random_indices, reference_indices, training_indices

pytestmark = pytest.mark.usefixtures("hub")


def dataset_of(samples, labels=None):
    return Dataset(RowReader.from_array(samples), labels)


def two_classes(count, labels=None):
    """Dark and bright images, which a classifier tells apart."""
    labels = np.arange(count) % 2 if labels is None else labels
    bright = (128 * labels).astype(np.uint8)[:, None, None, None]
    return dataset_of(random_images(count) // 2 + bright, labels.copy())


def random_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)


@pytest.fixture
def evaluator_of(tmp_path, cpu):
    def make(dataset, choice="auto", **options):
        return Evaluator(dataset, choose_features(choice, dataset, tmp_path, cpu), **options)

    return make


# ---------------------------------------------------------------- the choice of features


def test_features_are_chosen_by_what_exists(tmp_path, cpu, hub, monkeypatch):
    monkeypatch.setattr(InceptionFeatures, "__init__", lambda self, device: None)

    def chosen(choice, dataset):
        return type(choose_features(choice, dataset, tmp_path, cpu))

    labelled, unlabelled = two_classes(80), dataset_of(random_images(40))
    assert chosen("auto", labelled) is ClassifierFeatures
    assert chosen("auto", unlabelled) is RandomFeatures
    assert chosen("random", labelled) is RandomFeatures
    assert chosen("inception", unlabelled) is InceptionFeatures
    with pytest.raises(ValueError, match="needs a data set with labels"):
        chosen("classifier", unlabelled)
    (hub / "checkpoints").mkdir(parents=True)
    (hub / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth").touch()
    assert chosen("auto", labelled) is InceptionFeatures
    assert chosen("classifier", labelled) is ClassifierFeatures


@pytest.mark.parametrize(
    "labels",
    [np.random.default_rng(1).integers(0, 2, 80), np.arange(80) // 76, np.zeros(80, int)],
    ids=str,
)
def test_a_classifier_no_better_than_chance_is_not_used(labels, tmp_path, cpu, capsys):
    dataset = dataset_of(random_images(80), labels)
    assert type(choose_features("auto", dataset, tmp_path, cpu)) is RandomFeatures
    error = capsys.readouterr().err
    assert "no better than chance" in error and error.count("\n") == 2  # and that it is trained
    with pytest.raises(ValueError, match=r"accuracy on 40 .* is .*%.*chance.*check the classes"):
        choose_features("classifier", dataset, tmp_path, cpu)


def test_too_few_images_are_refused(tmp_path, cpu):
    dataset = dataset_of(np.zeros((7, 1, 8, 8), np.uint8), np.arange(7) % 2)
    with pytest.raises(ValueError, match="at least 8 samples, but the data has 7"):
        choose_features("auto", dataset, tmp_path, cpu)


# ---------------------------------------------------------------- what is compared


def test_held_out_images_are_neither_reference_nor_training_data(
    evaluator_of, tmp_path, monkeypatch
):
    samples = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1).repeat(8, 2).repeat(8, 3)

    def values(images):
        return set(images[:, 0, 0, 0].tolist())

    def train(dataset, indices, device):
        learned.update(values(dataset.read(indices)))
        return Classifier(1, 2).eval()

    learned = set()
    monkeypatch.setattr(features, "train_classifier", train)
    monkeypatch.setattr(evaluator_module, "describe_chance", lambda *arguments: None)
    evaluator = evaluator_of(dataset_of(samples, np.arange(200) % 2), samples=50)
    held_out, reference = values(evaluator.held_out.values), values(evaluator.reference.values)
    assert (len(held_out), len(reference), len(learned)) == (50, 50, 100)
    assert not held_out & learned
    assert reference <= learned


@pytest.mark.parametrize(
    ("total", "count"), [(8, 4), (80, 7), (80, 40), (41, 20), (50_000, 20_000)]
)
def test_parts_of_the_data_do_not_overlap(total, count):
    held_out, reference = set(random_indices(total, count)), set(reference_indices(total, count))
    training = set(training_indices(total))
    assert len(held_out) == len(reference) == count
    assert not held_out & reference
    if count <= 10_000:
        assert reference <= training and not held_out & training


def test_more_samples_than_the_classifier_left_unseen_are_not_compared(evaluator_of, monkeypatch):
    monkeypatch.setattr(evaluator_module, "SAMPLES", 20)
    evaluators = [evaluator_of(two_classes(80), samples=count) for count in (40, 20)]
    assert [evaluator.count for evaluator in evaluators] == [20, 20]
    assert torch.equal(evaluators[0].held_out.values, evaluators[1].held_out.values)
    plain = evaluator_of(dataset_of(random_images(80)), samples=40)
    assert len(plain.held_out.values) == len(plain.reference.values) == 40


def test_test_images_are_the_reference_and_the_floor_is_held_out(evaluator_of):
    test = dataset_of(255 - random_images(20), np.arange(20) % 2)
    evaluator = evaluator_of(two_classes(80), test=test)
    assert evaluator.count == 20
    assert torch.equal(evaluator.reference.values, test.read(torch.arange(20)))
    assert torch.equal(evaluator.held_out.values, two_classes(80).read(random_indices(80, 20)))


# ---------------------------------------------------------------- reports


def test_a_class_that_the_classifier_never_saw_counts_in_the_data(tmp_path, cpu):
    """Class 3 has one image, and that one is held out; classes 1 and 2 do not occur."""
    labels = np.zeros(40, np.int64)
    labels[random_indices(40, 20)[0]] = 3
    dataset = dataset_of(random_images(40), labels)
    evaluator = Evaluator(dataset, cached_classifier(dataset, training_indices(40), tmp_path, cpu))
    report = evaluator.report(evaluator.held_out.values)
    assert (report["classes"], report["smallest_class"]) == (1, 0)
    # With one added to each class: 20 samples of class 0, against 39 of class 0 and one of 3.
    samples, data = np.array([21, 1, 1, 1]) / 24, np.array([40, 1, 1, 2]) / 44
    expected = float((samples * np.log(samples / data)).sum())
    assert report["class_divergence"] == pytest.approx(expected, abs=1e-6)


def test_images_without_a_class_are_compared_and_not_learned_from(evaluator_of):
    dataset = two_classes(80)
    dataset.labels[[3, 50, 79]] = -1
    evaluator = evaluator_of(dataset)
    report = evaluator.report(evaluator.held_out.values)
    assert report["classes"] == 2 and len(evaluator.labels) == 77
    assert evaluator.features.classifier.scores.out_features == 2


def test_samples_with_labels_are_compared_within_their_classes(evaluator_of):
    evaluator = evaluator_of(two_classes(80))
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


# ---------------------------------------------------------------- neighbours


@pytest.mark.parametrize("labels", [None, np.arange(40) % 2], ids=["random", "classifier"])
def test_the_nearest_neighbour_of_an_image_is_itself(labels, tmp_path, cpu):
    """In random features, which compare pixels, that of a noisy copy is its original."""
    dataset = dataset_of(random_images(40) // 2, labels)
    extract = RandomFeatures(1, cpu)
    if labels is not None:
        extract = cached_classifier(dataset, training_indices(40), tmp_path, cpu)
    evaluator = Evaluator(dataset, extract)
    images = evaluator.reference.values[:3]
    noise = 40 * (images % 2) if labels is None else 0
    grid = np.asarray(evaluator.neighbours(images + noise))[::8, ::8]  # enlarged by 8
    samples, nearest = grid[:, :10], grid[:, 10:]
    assert samples.shape == (3 * 10 + 2, 10) and nearest.shape == (3 * 10 + 2, 7 * 10 + 2)
    for row, (sample, image) in enumerate(zip(images + noise, images, strict=True)):
        top = 2 + 10 * row
        assert np.array_equal(samples[top : top + 8, 2:10], sample[0].numpy())
        assert np.array_equal(nearest[top : top + 8, 2:10], image[0].numpy())
