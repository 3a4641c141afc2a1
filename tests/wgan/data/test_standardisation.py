"""Standardised vectors, and the way back."""

import numpy as np
import torch

from wgan.data.standardisation import Moments, Standardisation


def standardise(vectors, parts=3):
    moments = Moments(vectors.shape[1])
    for part in np.array_split(vectors, parts):
        moments.add(part)
    return moments.standardisation()


def test_columns_have_mean_0_and_deviation_1_whatever_their_scale(random):
    scales, means = np.array([1e-9, 1, 1e12]), np.array([5, -3, 1.7e15])
    vectors = random.standard_normal((1000, 3)) * scales + means
    standardised = standardise(vectors).apply(vectors)
    assert standardised.dtype == torch.float32
    torch.testing.assert_close(standardised.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(standardised.std(0), torch.ones(3), atol=2e-3, rtol=0)


def test_undo_is_the_inverse_and_keeps_constants(random):
    vectors = random.standard_normal((100, 3)) + 1.7e9  # seconds: too many digits for float32
    vectors[:, 1] = 0.1
    standardisation = standardise(vectors)
    assert standardisation.deviation[1] == 0
    back = standardisation.undo(standardisation.apply(vectors)).numpy()
    assert np.abs(back - vectors).max() < 1e-5
    noise = standardisation.undo(torch.randn(5, 3))
    assert (noise[:, 1] == 0.1).all()


def test_the_parts_and_their_rounding_do_not_matter(random):
    vectors = random.exponential(3, (1000, 4)) + 100
    one, other = standardise(vectors, 1), standardise(vectors, 7)
    assert one.to_checkpoint() == other.to_checkpoint()


def test_a_checkpoint_contains_it_or_not():
    stored = Standardisation(np.array([1.0, 2.0]), np.array([3.0, 0.0])).to_checkpoint()
    restored = Standardisation.from_checkpoint({"data": {"samples": 5, "standardisation": stored}})
    assert (restored.mean.tolist(), restored.deviation.tolist()) == ([1, 2], [3, 0])
    for checkpoint in ({}, {"data": None}, {"data": {"samples": 5}}):
        assert Standardisation.from_checkpoint(checkpoint) is None
    assert standardise(np.ones((1, 2)), 1).undo(torch.zeros(1, 2)).tolist() == [[1, 1]]
