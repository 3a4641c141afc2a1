"""Every metric against a closed form, and that it distinguishes bad samples from good ones."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance as scipys_distance

from wgan.evaluation import metrics


def gaussian(count, mean, deviation=1.0, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, len(mean), generator=random) * deviation + torch.tensor(mean)


# ---------------------------------------------------------------- features


def test_frechet_distance_of_gaussians_is_its_closed_form():
    one, other = gaussian(20_000, [0.0, 0.0]), gaussian(20_000, [3.0, 4.0], 2.0, seed=1)
    # |m1 - m2|^2 + sum over axes of (s1 - s2)^2
    assert metrics.frechet_distance(one, other) == pytest.approx(25 + 2 * (1 - 2) ** 2, rel=0.03)
    assert metrics.frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_about_zero_for_one_distribution_and_grows_with_the_shift():
    one, same = gaussian(300, [0.0] * 4), gaussian(300, [0.0] * 4, seed=1)
    shifts = [metrics.kernel_distance(one, same + shift) for shift in (0.0, 0.5, 1.0)]
    assert abs(shifts[0]) < 0.1 < shifts[1] < shifts[2]


def test_precision_falls_with_strange_samples_and_recall_with_missing_ones():
    real = gaussian(1000, [0.0, 0.0], 0.1)
    real[500:] += 10
    strange = torch.cat([real[:500] + 0.001, gaussian(500, [50.0, 50.0], seed=2)])
    precision, recall = metrics.precision_and_recall(strange, real)
    assert precision == pytest.approx(0.5, abs=0.02)
    collapsed = real[:500] + 0.001
    precision, recall = metrics.precision_and_recall(collapsed, real)
    assert precision == pytest.approx(1, abs=0.02)
    assert recall == pytest.approx(0.5, abs=0.02)


def test_nearest_neighbours_are_nearest():
    reference = torch.tensor([[0.0], [10.0], [11.0], [30.0]])
    assert metrics.nearest_neighbours(torch.tensor([[12.0]]), reference, 2).tolist() == [[2, 1]]


# ---------------------------------------------------------------- classes


def sure_of(*classes, count=4):
    return torch.eye(count)[torch.tensor(classes)]


def test_class_coverage_of_even_classes():
    found = metrics.class_coverage(sure_of(0, 1, 2, 3), torch.tensor([0, 1, 2, 3]))
    assert found["classes"] == 4
    assert found["smallest_class"] == 0.25
    assert found["class_divergence"] == pytest.approx(0, abs=1e-6)
    assert found["confident"] == 1


def test_class_coverage_of_a_collapse():
    labels = torch.arange(4).repeat(250)
    found = metrics.class_coverage(sure_of(*[2] * 1000), labels)
    assert (found["classes"], found["smallest_class"]) == (1, 0)
    # All samples in one of four equally likely classes: log 4, less what smoothing takes.
    assert found["class_divergence"] == pytest.approx(math.log(4), rel=0.03)


def test_confidence_counts_samples_of_a_sure_class():
    unsure = torch.tensor([[0.94, 0.06], [0.95, 0.05], [0.5, 0.5], [0.01, 0.99]])
    assert metrics.class_coverage(unsure, torch.tensor([0, 1]))["confident"] == 0.5


# ---------------------------------------------------------------- patches


def test_the_finest_level_of_sliced_wasserstein_sees_a_pattern_of_pixels():
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 1, 28, 28), generator=random, dtype=torch.uint8)
    others = torch.randint(0, 256, (64, 1, 28, 28), generator=random, dtype=torch.uint8)
    # A checkerboard under noise, which only the finest level can measure.
    board = (torch.arange(28).view(-1, 1) + torch.arange(28)) % 2 * 100
    marked = (images // 2 + board).to(torch.uint8)
    same, changed = (metrics.sliced_wasserstein(part, images) for part in (others, marked))
    assert list(same) == ["28x28", "14x14"]
    assert changed["28x28"] > 5 * same["28x28"]


def test_wasserstein_1d_is_that_of_scipy():
    one, other = np.random.default_rng(0).standard_normal((2, 200))
    assert metrics.wasserstein_1d(one, other) == pytest.approx(scipys_distance(one, other))


def test_a_pyramid_adds_up_to_its_image():
    images = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    fine, middle, coarse = metrics.laplacian_pyramid(images)
    assert [level.shape[-1] for level in (fine, middle, coarse)] == [56, 28, 14]

    def doubled(level):
        return torch.nn.functional.interpolate(level, scale_factor=2, mode="bilinear")

    rebuilt = fine + doubled(middle + doubled(coarse))
    torch.testing.assert_close(rebuilt, images.float() / 127.5 - 1)


def test_sizes_that_cannot_be_halved_have_one_level():
    images = torch.randint(0, 256, (4, 1, 15, 40), dtype=torch.uint8)
    assert list(metrics.sliced_wasserstein(images, images)) == ["15x40"]


# ---------------------------------------------------------------- points


def test_mode_coverage_counts_modes_and_good_samples():
    labels = torch.arange(4).repeat_interleave(1000)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    data = centres[labels] + gaussian(4000, [0.0, 0.0], 0.1)
    points = torch.cat([centres[:3], torch.tensor([[5.0, 5.0]]), centres[0:1] + 0.2])
    found = metrics.mode_coverage(points, data, labels)
    assert found["modes"] == 3
    assert found["modes_in_all"] == 4
    assert found["good_samples"] == pytest.approx(4 / 5)
    assert metrics.mode_coverage(centres + 0.4, data, labels)["modes"] == 0


def test_the_exact_distance_is_that_of_a_line_and_of_a_shift():
    random = np.random.default_rng(0)
    one, other = random.standard_normal((2, 200))
    on_axis = [torch.from_numpy(np.stack([part, np.zeros(200)], 1)) for part in (one, other)]
    expected = scipys_distance(one, other)
    assert metrics.wasserstein_distance(*on_axis) == pytest.approx(expected)
    points = gaussian(300, [0.0, 0.0])
    shifted = points + torch.tensor([3.0, 4.0])
    assert metrics.wasserstein_distance(points, shifted) == pytest.approx(5, rel=1e-5)
