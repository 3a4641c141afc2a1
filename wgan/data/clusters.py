"""Clusters of samples, which serve as classes of data without classes.

Self-conditioned GANs (Liu et al. 2020, arXiv:2006.10728) cluster the critic's features, again and
again. Here, thumbnails are clustered once, before training.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wgan.data.pixels import to_float_images
from wgan.data.randomness import seeded_generator
from wgan.data.rows import RowReader
from wgan_gp import THUMBNAIL

SAMPLES_PER_CLUSTER = 5  # at least, on average
DECISIVE = 10_000  # samples that determine the centres
ITERATIONS = 10
CHUNK = 1000  # samples read at a time


def find_centres(samples: RowReader, count: int, seed: int) -> Tensor:
    """Centres of `count` clusters of thumbnails, `(count, D)`; fewer if there are fewer than 5
    samples for each."""
    rng = seeded_generator("cpu", seed, "clusters")
    count = max(1, min(count, len(samples) // SAMPLES_PER_CLUSTER))
    decisive = torch.randperm(len(samples), generator=rng)[:DECISIVE].sort().values
    parts = [thumbnails(samples.read(part)) for part in decisive.split(CHUNK)]
    return k_means(torch.cat(parts), count, rng)


def find_clusters(samples: RowReader, centres: Tensor) -> np.ndarray:
    """The cluster of each sample, whose centre is the nearest, `(N,)` int64."""
    parts = torch.arange(len(samples)).split(CHUNK)
    return torch.cat([nearest(thumbnails(samples.read(part)), centres) for part in parts]).numpy()


def thumbnails(samples: Tensor) -> Tensor:
    """Images of 16x16 pixels in [-1, 1], flat `(B, D)`, or points `(B, D)` as they are."""
    if samples.dim() == 2:
        return samples
    return F.adaptive_avg_pool2d(to_float_images(samples), THUMBNAIL).flatten(1)


def k_means(points: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Centres `(count, D)` of clusters of points `(N, D)`: Lloyd's algorithm (1982) from points
    that are far from each other (k-means++, Arthur and Vassilvitskii 2007)."""
    centres = points[torch.randint(len(points), (1,), generator=rng)]
    norms, squares = points.square().sum(1), torch.full((len(points),), torch.inf)
    while len(centres) < count:
        last = centres[-1]
        squares = squares.minimum(norms - 2 * (points @ last) + last.square().sum())
        weights = squares.clamp(min=1e-9)  # also if all points are equal
        centres = torch.cat([centres, points[torch.multinomial(weights, 1, generator=rng)]])
    for _ in range(ITERATIONS):
        labels = nearest(points, centres)
        sizes = labels.bincount(minlength=count)[:, None]
        means = torch.zeros_like(centres).index_add_(0, labels, points) / sizes.clamp(min=1)
        centres = torch.where(sizes > 0, means, centres)
    return centres


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of each point, `(N,)` int64: the minimum of |x - c|^2, without |x|^2."""
    return (centres.square().sum(1) - 2 * (points @ centres.T)).argmin(1)
