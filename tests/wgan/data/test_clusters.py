"""Clusters of samples by k-means."""

import numpy as np
import pytest
import torch

from wgan.data import RowReader
from wgan.data.clusters import find_centres, find_clusters, k_means, nearest


def grouped_images(groups: int, each: int) -> tuple[RowReader, np.ndarray]:
    """Images of one pattern per group with noise, in random order, and the group of each."""
    random = np.random.default_rng(0)
    patterns = random.integers(40, 216, (groups, 3, 20, 24))
    labels = random.permutation(np.repeat(np.arange(groups), each))
    noise = random.integers(-30, 30, (len(labels), 3, 20, 24))
    return RowReader.from_array((patterns[labels] + noise).astype(np.uint8)), labels


def test_clusters_are_the_groups_of_images():
    samples, labels = grouped_images(5, 30)
    found = find_clusters(samples, find_centres(samples, 5, seed=0))
    assert found.dtype == np.int64
    pairs = set(zip(found, labels, strict=True))
    assert len(pairs) == 5  # each cluster is one group, and each group is one cluster
    again = find_clusters(samples, find_centres(samples, 5, seed=0))
    assert np.array_equal(found, again)


def test_clusters_of_many_samples_are_those_of_some(monkeypatch):
    samples, labels = grouped_images(4, 400)
    monkeypatch.setattr("wgan.data.clusters.DECISIVE", 100)
    monkeypatch.setattr("wgan.data.clusters.CHUNK", 64)
    found = find_clusters(samples, find_centres(samples, 4, seed=1))
    assert len(set(zip(found, labels, strict=True))) == 4


@pytest.mark.parametrize(("samples", "clusters"), [(49, 9), (5, 1), (3, 1)])
def test_a_cluster_has_five_samples_on_average(samples, clusters):
    points = np.random.default_rng(0).normal(size=(samples, 2)).astype(np.float32)
    reader = RowReader.from_array(points)
    centres = find_centres(reader, 200, seed=0)
    assert centres.shape == (clusters, 2)
    assert len(np.unique(find_clusters(reader, centres))) == clusters


def test_equal_samples_are_one_cluster():
    reader = RowReader.from_array(np.full((50, 1, 8, 8), 7, np.uint8))
    assert len(np.unique(find_clusters(reader, find_centres(reader, 5, seed=0)))) == 1


def test_centres_are_the_means_of_their_clusters():
    rng = torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.0, 0.0], [0.0, 90.0], [90.0, 0.0], [90.0, 90.0]])
    points = torch.randn(300, 2, generator=rng) + corners.repeat(75, 1)
    centres = k_means(points, 4, rng)
    means = torch.stack([points[k::4].mean(0) for k in nearest(centres, corners)])
    torch.testing.assert_close(centres, means)
