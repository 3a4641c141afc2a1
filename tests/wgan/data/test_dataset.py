"""What recognises a data set at another time or place."""

import numpy as np

from wgan.data import Dataset, RowReader


def identity(samples, digest=""):
    return Dataset(RowReader.from_array(samples), None, digest).identity()


def test_every_byte_counts(random):
    samples = random.integers(0, 256, (30, 1, 4, 4)).astype(np.uint8)
    first = identity(samples)
    assert first["samples"] == 30 and first == identity(samples.copy())
    for index in range(30):
        changed = samples.copy()
        changed[index, 0, 3, 3] ^= 1
        assert identity(changed) != first
    assert identity(samples[::-1].copy()) != first
    assert identity(samples.reshape(30, 1, 2, 8)) != first


def test_a_digest_that_is_known_replaces_reading(random):
    samples = random.integers(0, 256, (30, 1, 4, 4)).astype(np.uint8)
    first = identity(samples, "digest")
    assert first == identity(samples + 1, "digest") != identity(samples, "other")
    assert first != identity(samples[1:], "digest")
