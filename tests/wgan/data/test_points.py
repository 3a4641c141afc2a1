"""Points, at the scales of the WGAN-GP authors' code."""

import numpy as np
import pytest

from wgan.data import ImageOptions
from wgan.data.points import load_grid, load_ring, load_swissroll


def points(dataset) -> np.ndarray:
    assert dataset.is_points and len(dataset) == 100_000
    return dataset.read(np.arange(len(dataset))).numpy()


@pytest.mark.parametrize(
    ("load", "modes", "deviation"), [(load_ring, 8, 0.0141), (load_grid, 25, 0.0177)]
)
def test_gaussians_are_where_the_paper_has_them(load, modes, deviation, tmp_path):
    dataset = load(tmp_path, ImageOptions())
    samples = points(dataset)
    assert samples.dtype == np.float32
    centres = np.stack([samples[dataset.modes == m].mean(0) for m in range(modes)])
    spread = np.stack([samples[dataset.modes == m].std(0) for m in range(modes)])
    assert spread.mean() == pytest.approx(deviation, rel=0.02)
    if load is load_ring:
        assert np.hypot(*centres.T) == pytest.approx(2**0.5, abs=0.002)
    else:
        assert np.unique(centres.round(2)) == pytest.approx([-1.41, -0.71, 0, 0.71, 1.41])


def test_the_swiss_roll_winds_one_and_a_half_times(tmp_path):
    samples = points(load_swissroll(tmp_path, ImageOptions()))
    radius = np.hypot(*samples.T) * 7.5
    # Its radius is its angle, from 1.5 pi to 4.5 pi, except for noise of deviation 0.25.
    assert radius.min() == pytest.approx(1.5 * np.pi, abs=1.2)
    assert radius.max() == pytest.approx(4.5 * np.pi, abs=1.2)
    angle = np.arctan2(samples[:, 1], samples[:, 0])
    off = (radius - angle + np.pi) % (2 * np.pi) - np.pi
    assert off.std() == pytest.approx(0.25, rel=0.05)
