"""Points in the plane, at the scales of the WGAN-GP authors' code."""

from pathlib import Path

import numpy as np

from wgan.data.dataset import Dataset
from wgan.data.image_options import ImageOptions
from wgan.data.rows import RowReader

POINT_COUNT = 100_000
POINT_SEED = 2017


def load_ring(root: Path, options: ImageOptions) -> Dataset:
    """8 Gaussians on a circle."""
    angles = np.arange(8) * np.pi / 4
    return gaussians(np.stack([np.cos(angles), np.sin(angles)], 1) * 2**0.5, 0.02 / 2**0.5)


def load_grid(root: Path, options: ImageOptions) -> Dataset:
    """25 Gaussians on a square grid."""
    side = np.arange(-2, 3) / 2**0.5
    return gaussians(np.stack(np.meshgrid(side, side), -1).reshape(25, 2), 0.05 / 8**0.5)


def gaussians(centres: np.ndarray, deviation: float) -> Dataset:
    """An equal mixture of Gaussians around `centres` `(K, 2)`."""
    random = np.random.default_rng(POINT_SEED)
    modes = random.integers(len(centres), size=POINT_COUNT)
    points = centres[modes] + deviation * random.standard_normal((POINT_COUNT, 2))
    return Dataset(RowReader.from_array(points.astype(np.float32)), modes=modes)


def load_swissroll(root: Path, options: ImageOptions) -> Dataset:
    """A spiral with noise."""
    random = np.random.default_rng(POINT_SEED)
    angle = 1.5 * np.pi * (1 + 2 * random.random(POINT_COUNT))
    points = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    points += 0.25 * random.standard_normal((POINT_COUNT, 2))
    return Dataset(RowReader.from_array((points / 7.5).astype(np.float32)))
