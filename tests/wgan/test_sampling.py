"""Generators from checkpoints, their samples, and interpolation."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import write_with_digest
from torch import nn

from wgan import generate, load_generator
from wgan.checkpoints import CHECKPOINT_FORMAT, read_checkpoint
from wgan.data import to_byte_images
from wgan.sampling import TrainedGenerator, find_class, interpolation_frames, noise_of, slerp


def test_a_generator_has_the_requested_weights(trained_run):
    checkpoint = read_checkpoint(trained_run / "checkpoint.pt")
    for weights, key in (("ema", "ema"), ("raw", "generator")):
        generator = load_generator(trained_run, weights, device="cpu")
        assert not generator.network.training
        assert generator.noise_dim == 4
        for name, value in generator.network.state_dict().items():
            assert torch.equal(value, checkpoint[key][name])


def test_a_checkpoint_without_a_generator_is_refused(tmp_path):
    write_with_digest(tmp_path / "c.pt", {"format": CHECKPOINT_FORMAT, "config": {}})
    with pytest.raises(ValueError, match="contains no generator of this project"):
        load_generator(tmp_path / "c.pt", device="cpu")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value, trained_run, tmp_path):
    checkpoint = read_checkpoint(trained_run / "checkpoint.pt")
    next(iter(checkpoint["ema"].values())).view(-1)[3] = value
    write_with_digest(tmp_path / "c.pt", checkpoint)
    with pytest.raises(ValueError, match=r"c.pt: the generator's weights are infinite or NaN"):
        load_generator(tmp_path / "c.pt", device="cpu")
    load_generator(tmp_path / "c.pt", "raw", device="cpu")


def test_samples_depend_on_the_seed_and_begin_alike_for_every_count(trained_run):
    generator = load_generator(trained_run / "checkpoint.pt", device="cpu")
    many = generate(generator, 130, seed=1)
    assert many.shape == (130, 3, 16, 16) and many.dtype == torch.uint8
    assert torch.equal(generate(generator, 7, seed=1), many[:7])
    assert not torch.equal(generate(generator, 7, seed=2), many[:7])
    assert len(torch.unique(many.flatten(1), dim=0)) == 130


def test_each_sample_needs_its_label(trained_run):
    generator = load_generator(trained_run, device="cpu")
    with pytest.raises(ValueError, match="there are 10 labels for 64 samples"):
        generate(generator, 64, labels=torch.zeros(10, dtype=torch.int64))


class ClassAsImage(nn.Module):
    """A grey image of one pixel, whose level is the class."""

    noise_dim, sample_shape = 4, (1, 1, 1)

    def __init__(self):
        super().__init__()
        self.step = nn.Parameter(torch.tensor(2 / 255))

    def forward(self, noise, labels):
        return (self.step * labels - 1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, 2],
        (2, 0, 2),
        np.array([2, 0, 2], np.uint8),
        torch.tensor([2, 0, 2]),
        ["cat", "eel", "cat"],
        np.array(["cat", "eel", "cat"]),
        ["cat", 0, np.int64(2)],
    ],
    ids=repr,
)
def test_labels_are_positions_or_names_and_determine_the_count(labels):
    generator = TrainedGenerator(ClassAsImage(), ("eel", "ant", "cat"), (1, 1, 1))
    assert generate(generator, labels=labels).flatten().tolist() == [2, 0, 2]
    assert len(generate(generator, 3, labels=labels)) == 3
    with pytest.raises(ValueError, match="there are 3 labels for 4 samples"):
        generate(generator, 4, labels=labels)


def test_clusters_are_as_frequent_as_in_the_data():
    generator = TrainedGenerator(ClassAsImage(), class_counts=(6, 0, 2))
    samples = generate(generator, 1000).flatten()
    assert set(samples.tolist()) == {0, 2}
    assert (samples == 0).float().mean().item() == pytest.approx(0.75, abs=0.04)
    assert generate(generator, labels=[2, 0]).flatten().tolist() == [2, 0]
    for number in (1, 3):  # a cluster without samples, and none
        with pytest.raises(ValueError, match=f"there is no class at position {number}"):
            generate(generator, labels=[number])


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (("ant", "cat"), [0, 2], "no class at position 2; the classes: 0 ant, 1 cat"),
        (("ant", "cat"), np.array([-1]), "no class at position -1; the classes: 0 ant"),
        (("ant", "cat"), [0.5], "no class at position 0.5; the classes: 0 ant"),
        (("ant", "cat"), ["ant", "cats"], "no class 'cats'; did you mean 'cat'"),
        (
            ("5", "7"),
            torch.tensor([5]),
            "no class at position 5; did you mean '5'",
        ),
        ((), [2, 2], "no class at position 2; the classes: none"),
        (("ant", "cat"), [], "the count is 0: give one of 1 or more"),
        (("ant", "cat"), None, "the count is None: give one of 1 or more"),
    ],
)
def test_labels_that_do_not_exist_are_refused_with_those_that_do(names, labels, message):
    generator = TrainedGenerator(ClassAsImage(), names, (1,) * len(names))
    with pytest.raises(ValueError, match=message):
        generate(generator, labels=labels)


def test_a_class_is_found_by_the_name_and_number_that_the_data_have():
    named = SimpleNamespace(class_names=("cat", "dog", "no class"), class_counts=(1, 1, 1))
    assert [find_class(named, text) for text in ("dog", "1", "no class")] == [1, 1, 2]
    numbered = SimpleNamespace(class_names=("1", "2", "30"), class_counts=(1, 1, 1))
    assert [find_class(numbered, text) for text in ("1", "30")] == [0, 2]
    for text in ("0", "3"):
        with pytest.raises(ValueError, match="the classes: 1, 2, 30"):
            find_class(numbered, text)


class NoiseAsImage(nn.Module):
    """The noise vector itself, scaled down, as a grey image of one column."""

    noise_dim, sample_shape = 500, (1, 500, 1)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.2))

    def forward(self, noise, labels=None):
        return (self.scale * noise).view(-1, *self.sample_shape)


def test_interpolation_is_a_walk_that_closes():
    """All steps are about equally long, also the one from the last frame back to the first."""
    generator, labels = TrainedGenerator(NoiseAsImage()), torch.zeros(4)
    walk = interpolation_frames(generator, torch.randn(5, 4, 500), labels, frames=16)
    frames = [np.asarray(frame, float) for frame in walk]
    assert len(frames) == 5 * 16
    distances = [np.linalg.norm(b - a) for a, b in pairwise(frames)]
    closing = np.linalg.norm(frames[0] - frames[-1])
    assert min(distances) > 0
    assert closing <= 1.05 * max(distances)
    assert max(distances) < 1.2 * min(distances)
    across = np.linalg.norm(frames[0] - frames[len(frames) // 2])
    assert across > 5 * closing  # it goes somewhere


def test_the_noise_of_a_sample_is_known_by_its_number():
    generator = TrainedGenerator(NoiseAsImage())
    samples = generate(generator, 250, seed=3, labels=torch.zeros(250, dtype=torch.int64))
    noise = noise_of(generator, [249, 0, 100], seed=3)
    assert torch.equal(to_byte_images(generator(noise)), samples[[249, 0, 100]])


def test_slerp_interpolates_lengths_and_meets_both_ends():
    start, end = torch.randn(6, 100), torch.randn(6, 100)
    half = torch.tensor(0.5)
    torch.testing.assert_close(slerp(start, end, torch.tensor(0.0)), start)
    torch.testing.assert_close(slerp(start, end, torch.tensor(1.0)), end)
    expected = (start.norm(dim=1) + end.norm(dim=1)) / 2
    torch.testing.assert_close(slerp(start, end, half).norm(dim=1), expected)
    torch.testing.assert_close(slerp(start, 3 * start, half), 2 * start)


def test_slerp_from_zero_is_a_straight_line():
    end = torch.randn(3, 10)
    torch.testing.assert_close(slerp(0 * end, end, torch.tensor(1.0)), end)
    assert slerp(0 * end, end, torch.tensor(0.3)).isfinite().all()


def test_as_many_noise_vectors_as_samples_are_needed():
    generator = TrainedGenerator(ClassAsImage(), ("ant", "cat"), (1, 1))
    assert generate(generator, noise=torch.zeros(2, 4), labels=["cat", "ant"]).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match="there are 3 noise vectors for 2 samples"):
        generate(generator, 2, noise=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="there are 1 labels for 3 samples"):
        generate(generator, noise=torch.zeros(3, 4), labels=["cat"])


def test_slerp_of_a_right_angle_is_a_circle():
    start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    third = slerp(start, end, torch.tensor(1 / 3))
    torch.testing.assert_close(third, torch.tensor([[3**0.5 / 2, 0.5]]))
