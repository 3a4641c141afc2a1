"""The random network, Inception, the classifier and its cache."""

import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from wgan.data import Dataset, RowReader
from wgan.evaluation import features, metrics
from wgan.evaluation.features import (
    Classifier,
    ClassifierFeatures,
    InceptionFeatures,
    RandomFeatures,
    RandomNetwork,
    cached_classifier,
    describe_chance,
    train_classifier,
)
from wgan.evaluation.samples import Samples

pytestmark = pytest.mark.usefixtures("hub")


def bright_halves(count, side, seed):
    """Grey images of two classes: a bright left half, or a bright right half."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=random)
    images = torch.randint(0, 60, (count, 1, side, side), generator=random, dtype=torch.uint8)
    images[labels == 0, :, :, : side // 2] += 150
    images[labels == 1, :, :, side // 2 :] += 150
    return images, labels


def random_dataset(count=40, labels=None):
    samples = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)
    return Dataset(RowReader.from_array(samples), labels)


# ---------------------------------------------------------------- the classifier


def test_the_classifier_learns_is_repeatable_and_recognises_unseen_images(cpu):
    images, labels = bright_halves(600, 12, seed=0)
    dataset = Dataset(RowReader.from_array(images.numpy()), labels.numpy())
    first, again = (
        ClassifierFeatures(train_classifier(dataset, np.arange(600), cpu), "name") for _ in range(2)
    )
    unseen, truth = bright_halves(200, 12, seed=1)
    probabilities = first.probabilities(first(unseen))
    assert first(unseen).shape == (200, 128)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(200))
    assert (probabilities.argmax(1) == truth).float().mean() > 0.97
    assert torch.equal(again.probabilities(again(unseen)), probabilities)


def test_features_and_probabilities_are_those_of_the_network(cpu):
    images, _ = bright_halves(1200, 8, seed=0)  # more than are computed at a time
    classifier = Classifier(1, 3).eval()
    extract = ClassifierFeatures(classifier, "name")
    with torch.no_grad():
        scores = classifier(images.float() / 127.5 - 1)
    probabilities = extract.probabilities(extract(images))
    torch.testing.assert_close(probabilities, scores.softmax(1), rtol=1e-4, atol=1e-6)


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
    held_out = Samples(torch.zeros(len(labels), 1), torch.tensor(labels))
    assert (describe_chance(Predicting(predicted), held_out) is None) == useful


def test_images_without_a_class_do_not_count_as_mistakes():
    labels = torch.tensor([0, -1, 1, -1] * 10)
    predicting, images = Predicting([0, 1] * 10), torch.zeros(40, 1)
    assert describe_chance(predicting, Samples(images, labels)) is None
    assert "none of" in describe_chance(predicting, Samples(images, labels.clamp(max=-1)))


# ---------------------------------------------------------------- its cache


@pytest.mark.parametrize("content", [b"corrupt", b"x" * 66, b"PK", None], ids=repr)
def test_the_classifier_is_trained_once_and_again_if_corrupt(
    content, tmp_path, cpu, monkeypatch, capsys
):
    dataset, training = random_dataset(labels=np.arange(40) % 2), np.arange(40)
    train = Mock(side_effect=features.train_classifier)
    monkeypatch.setattr(features, "train_classifier", train)
    first = cached_classifier(dataset, training, str(tmp_path), cpu)
    second = cached_classifier(dataset, training, str(tmp_path), cpu)
    assert (train.call_count, second.name) == (1, first.name)
    parameters = (part.classifier.state_dict().values() for part in (first, second))
    for one, other in zip(*parameters, strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()  # so it rounds alike
    (file,) = tmp_path.glob("classifier-*.pt")
    assert first.name.startswith(file.stem)
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1  # of a weight, which torch.load does not notice
    file.write_bytes(content or changed)
    third = cached_classifier(dataset, training, str(tmp_path), cpu)
    assert (train.call_count, third.name) == (2, first.name)
    assert "will be replaced" in capsys.readouterr().err
    cached_classifier(dataset, training, str(tmp_path), cpu)
    assert train.call_count == 2


def test_other_data_have_another_classifier(tmp_path, cpu):
    labels, training = np.arange(40) % 2, np.arange(40)
    names = {
        cached_classifier(random_dataset(labels=classes), indices, str(tmp_path), cpu).name
        for classes, indices in ((labels, training), (1 - labels, training), (labels, training[1:]))
    }
    assert len(names) == 3
    assert len(list(tmp_path.glob("classifier-*.pt"))) == 3


def test_a_classifier_that_cannot_be_saved_is_still_used(tmp_path, cpu, capsys):
    (tmp_path / "file").touch()
    dataset = random_dataset(labels=np.arange(40) % 2)
    extract = cached_classifier(dataset, np.arange(40), str(tmp_path / "file" / "no"), cpu)
    assert extract(dataset.read(torch.arange(3))).shape == (3, 128)
    assert "could not write the classifier" in capsys.readouterr().err


def test_only_the_classifier_may_be_trained_nondeterministically(tmp_path, cpu, monkeypatch):
    def fail(*arguments):
        assert not torch.are_deterministic_algorithms_enabled()
        raise KeyError

    monkeypatch.setattr(features, "train_classifier", fail)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(KeyError):
            cached_classifier(random_dataset(labels=np.arange(40)), np.arange(9), tmp_path, cpu)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


# ---------------------------------------------------------------- a random network


def test_random_features_are_moments_of_edges_at_each_scale():
    network = RandomNetwork(1, width=1, scales=2)
    for layer in network.layers:
        layer.weight.data.zero_()
        layer.weight.data[0, 0, 1, 1:] = torch.tensor([-1.0, 1.0])  # differences to the right
    image = torch.tensor([[0.0, 0.6, 0.6, 0.6], [0.0, 0.6, 0.6, 0.6]])
    # |differences|: 0.6 in one column of four; halved: 0.3 and 0; their difference: 0.3 and 0.
    deviations = 0.6 * 3**0.5 / 4, 0.15
    expected = [0.45, deviations[0]]
    expected += [math.log(value + 0.01) for value in (0.15, deviations[0], 0.15, deviations[1])]
    torch.testing.assert_close(network(image[None, None]), torch.tensor([expected]))


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 5), (3, 8, 8)])
def test_random_features_of_flat_and_small_images_are_finite(shape, cpu):
    features = RandomFeatures(shape[0], cpu)(torch.zeros(2, *shape, dtype=torch.uint8))
    assert features.shape == (2, 128 + 2 * shape[0]) and features.isfinite().all()


def stripes(count, seed):
    """Grey images of stripes in random directions, widths and positions."""
    rng = torch.Generator().manual_seed(seed)
    angle, phase, width = torch.rand(3, count, 1, 1, generator=rng)
    y, x = torch.meshgrid(torch.arange(17.0), torch.arange(16.0), indexing="ij")
    waves = ((3.14 * angle).cos() * x + (3.14 * angle).sin() * y) / (1 + width) + 6.28 * phase
    return (127 + 120 * waves.sin().sign()).to(torch.uint8)[:, None]


def test_random_features_tell_degraded_images_from_real_ones(cpu):
    real, reference = stripes(500, 1), stripes(500, 0)
    extract = RandomFeatures(1, cpu)
    assert torch.equal(RandomFeatures(1, cpu)(real), extract(real))

    def distance(images):
        return metrics.frechet_distance(extract(images.byte()), extract(reference))

    noise = 40 * torch.randn(real.shape, generator=torch.Generator().manual_seed(2))
    floor = distance(real)
    blurred = [distance(avg_pool2d(real.float(), side, 1, side // 2)) for side in (3, 5)]
    assert 5 * floor < blurred[0] < blurred[1]
    assert distance(real // 2 + real.roll(1, 0) // 2) > 5 * floor  # blends of two images
    assert distance((real + noise).clamp(0, 255)) > 5 * floor
    assert distance(real[:10].repeat(50, 1, 1, 1)) > 5 * floor  # a collapse


# ---------------------------------------------------------------- Inception


class FakeInception(nn.Module):
    """Three numbers per image instead of 2048: the mean of each channel."""

    def __init__(self, name, layers):
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, images):
        assert images.dtype == torch.uint8
        return (images.float().mean((2, 3)),)


@pytest.fixture
def fake_inception(monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3

    monkeypatch.setattr(feature_extractor_inceptionv3, "FeatureExtractorInceptionV3", FakeInception)


def test_inception_sees_grey_images_as_three_equal_channels(cpu, fake_inception):
    images = torch.full((20, 1, 4, 4), 7, dtype=torch.uint8)
    extract = InceptionFeatures(cpu)
    assert extract(images).tolist() == [[7, 7, 7]] * 20
    assert extract.metrics(extract(images))["inception_score"] == pytest.approx(1)
    assert extract.probabilities(extract(images)) is None  # of the data set's classes


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", b"junk"])
def test_corrupt_inception_weights_are_named(content, cpu, hub):
    file = hub / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"remove .*weights-inception.*pth .*--features random"):
        InceptionFeatures(cpu)
