"""What recognises a data set at another time or place."""

import numpy as np

from wgan.data import Dataset, RowReader
from wgan.data import dataset as dataset_module


def identity(samples, files=""):
    return Dataset(RowReader.from_array(samples), None, files).identity()


def test_every_byte_of_a_small_data_set_counts(random):
    samples = random.integers(0, 256, (30, 1, 4, 4)).astype(np.uint8)
    first = identity(samples)
    assert first["samples"] == 30 and first == identity(samples.copy(), "renamed files")
    for index in range(30):
        changed = samples.copy()
        changed[index, 0, 3, 3] ^= 1
        assert identity(changed) != first
    assert identity(samples[::-1].copy()) != first
    assert identity(samples.reshape(30, 1, 2, 8)) != first


def test_of_a_large_data_set_samples_and_files_count(random, monkeypatch):
    monkeypatch.setattr(dataset_module, "DIGESTED_BYTES", 16 * 150)
    samples = random.integers(0, 256, (3000, 1, 4, 4)).astype(np.uint8)
    first = identity(samples, "files")
    assert identity(samples, "other files")["digest"] != first["digest"]
    changed = samples.copy()
    changed[0] ^= 1
    assert identity(changed, "files") != first
    changed = samples.copy()
    changed[1] ^= 1
    assert identity(changed, "files") == first  # not among the 150 samples
