"""The random network, the classifier and its cache, and the choice of features."""

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
    allow_nondeterminism,
    cached_classifier,
    choose_features,
    train_classifier,
)


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """An empty folder of downloaded weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub"


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
    first, again = (
        ClassifierFeatures(train_classifier(images, labels, 2, cpu), "name") for _ in range(2)
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


class ElsewhereLinear(nn.Linear):
    """A layer that refuses to be moved, as a stand-in for one on another device."""

    def _apply(self, function, recurse=True):
        raise AssertionError("the layer was moved")


def test_probabilities_leave_the_network_on_its_device():
    classifier = Classifier(1, 3).eval()
    classifier.scores = ElsewhereLinear(128, 3)
    before = dict(classifier.named_parameters())
    extract = ClassifierFeatures(classifier, "name")
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    extract.probabilities(extract(images))
    after = dict(classifier.named_parameters())
    assert all(after[name] is value for name, value in before.items())
    with torch.no_grad():
        classifier(images.float())  # still works as one network


# ---------------------------------------------------------------- its cache


@pytest.mark.parametrize("damage", [b"corrupt", b"x" * 66, b"PK", None], ids=repr)
def test_the_classifier_is_trained_once_and_again_if_corrupt(
    damage, tmp_path, cpu, monkeypatch, capsys
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
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # of a weight, which torch.load does not notice
    file.write_bytes(damage or content)
    third = cached_classifier(dataset, training, str(tmp_path), cpu)
    assert (train.call_count, third.name) == (2, first.name)
    assert "will be replaced" in capsys.readouterr().err
    cached_classifier(dataset, training, str(tmp_path), cpu)
    assert train.call_count == 2


def test_other_data_have_another_classifier(tmp_path, cpu):
    labels, training = np.arange(40) % 2, np.arange(40)
    names = {
        cached_classifier(random_dataset(labels=given), indices, str(tmp_path), cpu).name
        for given, indices in ((labels, training), (1 - labels, training), (labels, training[1:]))
    }
    assert len(names) == 3
    assert len(list(tmp_path.glob("classifier-*.pt"))) == 3


def test_a_classifier_that_cannot_be_saved_is_still_used(tmp_path, cpu, capsys):
    (tmp_path / "file").touch()
    dataset = random_dataset(labels=np.arange(40) % 2)
    extract = cached_classifier(dataset, np.arange(40), str(tmp_path / "file" / "no"), cpu)
    assert extract(dataset.read(torch.arange(3))).shape == (3, 128)
    assert "was not saved" in capsys.readouterr().err


def test_training_may_be_nondeterministic_only_inside_the_block():
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(KeyError), allow_nondeterminism():
            assert not torch.are_deterministic_algorithms_enabled()
            raise KeyError
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


# ---------------------------------------------------------------- the choice


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


def test_features_are_chosen_by_what_exists(tmp_path, cpu, hub, fake_inception):
    labelled, training = random_dataset(labels=np.arange(40) % 2), np.arange(40)

    def chosen(choice, dataset):
        return type(choose_features(choice, dataset, training, str(tmp_path), cpu))

    assert chosen("auto", labelled) is ClassifierFeatures
    assert chosen("auto", random_dataset()) is RandomFeatures
    assert chosen("random", labelled) is RandomFeatures
    assert chosen("inception", random_dataset()) is InceptionFeatures
    with pytest.raises(ValueError, match="needs a data set with labels"):
        chosen("classifier", random_dataset())
    (hub / "checkpoints").mkdir(parents=True)
    (hub / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth").touch()
    assert chosen("auto", labelled) is InceptionFeatures
    assert chosen("classifier", labelled) is ClassifierFeatures


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", b"junk"])
def test_corrupt_inception_weights_are_named(content, tmp_path, cpu, hub):
    file = hub / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    for choice in ("auto", "inception"):
        with pytest.raises(ValueError, match=r"are corrupt: remove .*weights-inception.*pth to"):
            choose_features(choice, random_dataset(), np.arange(40), str(tmp_path), cpu)


def test_a_failed_download_of_inception_names_the_alternative(cpu, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3

    def offline(*arguments):
        raise OSError("no network")

    monkeypatch.setattr(feature_extractor_inceptionv3, "FeatureExtractorInceptionV3", offline)
    with pytest.raises(OSError, match=r"no network.*--features random"):
        InceptionFeatures(cpu)


def test_inception_sees_grey_images_as_three_equal_channels(cpu, fake_inception):
    images = torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)
    extract = InceptionFeatures(cpu)
    assert extract(images).tolist() == [[7, 7, 7]] * 2
    scores = 7 * extract.network.fc.weight.sum(1)  # without the bias
    torch.testing.assert_close(extract.probabilities(extract(images))[0], scores.softmax(0))
