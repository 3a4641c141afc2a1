"""Every metric against a closed form, and that it distinguishes bad samples from good ones."""

import math
from itertools import permutations

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


def test_density_and_coverage_of_the_same_distribution_and_of_a_collapse():
    """1, and 1 - (N - 1) ... (N - k) / ((M + N - 1) ... (M + N - k)) (Naeem et al. 2020)."""
    real, same = torch.randn(2, 1500, 8)
    density, coverage = metrics.density_and_coverage(same, real)
    expected = 1 - math.prod((1500 - i) / (3000 - i) for i in range(1, 6))
    assert density == pytest.approx(1, abs=0.1) and coverage == pytest.approx(expected, abs=0.02)
    density, coverage = metrics.density_and_coverage(real[:1].expand(100, -1) + 1e-3, real)
    radii = torch.cdist(real, real).topk(6, largest=False).values[:, 5]
    inside = radii > (real - real[0]).norm(dim=1)
    assert density == pytest.approx(inside.sum().item() / 5, rel=0.05)
    assert coverage == pytest.approx(inside.float().mean().item(), rel=0.05)
    strange = torch.cat([same[:750], torch.full((750, 8), 50.0)])
    assert metrics.density_and_coverage(strange, real)[0] == pytest.approx(0.5, abs=0.1)


def test_nearest_neighbours_are_nearest():
    reference = torch.tensor([[0.0], [10.0], [11.0], [30.0]])
    assert metrics.nearest_neighbours(torch.tensor([[12.0]]), reference, 2).tolist() == [[2, 1]]


def test_the_nearest_distance_is_that_of_pixels_at_32x32():
    reference = torch.tensor([0, 200], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 64, 48)
    images = torch.tensor([10, 220, 230], dtype=torch.uint8).view(3, 1, 1, 1).repeat(1, 3, 64, 48)
    distance = metrics.nearest_distance(images, reference)
    assert distance == pytest.approx(20 / 127.5, rel=1e-4)
    images[..., ::2, :] += 5  # their mean with the next row is 2.5 more
    assert metrics.nearest_distance(images, reference) == pytest.approx(22.5 / 127.5, rel=1e-4)


# ---------------------------------------------------------------- classes


def sure_of(*classes, count=4):
    return torch.eye(count)[torch.tensor(classes)]


def test_class_coverage_of_even_classes():
    values = metrics.class_coverage(sure_of(0, 1, 2, 3), torch.tensor([0, 1, 2, 3]))
    assert values["classes"] == 4
    assert values["smallest_class"] == 0.25
    assert values["class_divergence"] == pytest.approx(0, abs=1e-6)
    assert values["confident"] == 1


def test_class_coverage_of_a_collapse():
    labels = torch.arange(4).repeat(250)
    values = metrics.class_coverage(sure_of(*[2] * 1000), labels)
    assert (values["classes"], values["smallest_class"]) == (1, 0)
    # All samples in one of four equally likely classes: log 4, less what smoothing takes.
    assert values["class_divergence"] == pytest.approx(math.log(4), rel=0.03)


def test_confidence_counts_samples_of_a_sure_class():
    unsure = torch.tensor([[0.94, 0.06], [0.95, 0.05], [0.5, 0.5], [0.01, 0.99]])
    assert metrics.class_coverage(unsure, torch.tensor([0, 1]))["confident"] == 0.5


def test_inception_score_is_the_number_of_classes_if_sure_and_one_if_not():
    assert metrics.inception_score(sure_of(0, 1, 2, 3).repeat(10, 1)) == pytest.approx(4)
    assert metrics.inception_score(torch.full((20, 4), 0.25)) == pytest.approx(1)


def test_agreement_is_the_fraction_of_requested_classes():
    labels = torch.tensor([0, 1, 2, 0, -1])  # the last one has no class
    assert metrics.class_agreement(sure_of(0, 1, 2, 2, 3), labels) == 0.75


def test_within_class_distance_sees_swapped_classes_and_the_overall_one_does_not():
    one, other = gaussian(5000, [0.0, 0.0]), gaussian(5000, [6.0, 8.0], seed=1)
    features = torch.cat([one, other])
    labels = torch.arange(2).repeat_interleave(5000)
    assert metrics.within_class_frechet(features, labels, features, labels) < 1e-6
    swapped = metrics.within_class_frechet(features, 1 - labels, features, labels)
    assert swapped == pytest.approx(100, rel=0.03)  # the squared distance of the means
    assert metrics.frechet_distance(features, features) < 1e-6
    # Images without a class do not count, and a class needs two samples.
    unlabelled = torch.cat([labels[:-1], torch.tensor([-1])])
    assert metrics.within_class_frechet(features, unlabelled, features, unlabelled) < 1e-6
    assert math.isnan(metrics.within_class_frechet(one, labels[:5000], features, labels))


# ---------------------------------------------------------------- points


def test_mode_coverage_counts_modes_and_good_samples():
    labels = torch.arange(4).repeat_interleave(1000)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    data = centres[labels] + gaussian(4000, [0.0, 0.0], 0.1)
    points = torch.cat([centres[:3], torch.tensor([[5.0, 5.0]]), centres[0:1] + 0.2])
    values = metrics.mode_coverage(points, data, labels)
    assert values["modes"] == 3
    assert values["modes_in_all"] == 4
    assert values["good_samples"] == pytest.approx(4 / 5)
    for count, expected in ((4, 0), (2, math.log(2)), (1, math.log(4))):  # modes hit equally
        values = metrics.mode_coverage(centres[:count], data, labels)
        assert values["mode_divergence"] == pytest.approx(expected, abs=1e-6)
    assert metrics.mode_coverage(centres + 0.4, data, labels)["modes"] == 0


def test_divergence_of_histograms_is_its_closed_form_and_small_for_samples_of_the_same_law():
    counts, uniform = torch.tensor([3, 1, 0, 0]), torch.ones(4)
    expected = 0.75 * math.log(0.75 * 4)  # and 0.25 log 1
    assert metrics.divergence(counts, uniform) == pytest.approx(expected)
    assert metrics.divergence(torch.tensor([3, 1]), torch.tensor([6, 2])) == pytest.approx(0)
    samples = torch.randint(1000, (26_000,)).bincount(minlength=1000)
    assert metrics.divergence(samples, torch.ones(1000)) == pytest.approx(999 / 52_000, rel=0.2)


def test_the_exact_distance_is_that_of_a_line_and_of_a_shift():
    random = np.random.default_rng(0)
    one, other = random.standard_normal((2, 200))
    on_axis = [torch.from_numpy(np.stack([part, np.zeros(200)], 1)) for part in (one, other)]
    expected = scipys_distance(one, other)
    assert metrics.wasserstein_distance(*on_axis) == pytest.approx(expected)
    points = gaussian(300, [0.0, 0.0])
    shifted = points + torch.tensor([3.0, 4.0])
    assert metrics.wasserstein_distance(points, shifted) == pytest.approx(5, rel=1e-5)


@pytest.mark.parametrize("slope", [0.1, 1.0, 7.0])
def test_the_c_transforms_bound_holds_for_any_critic(slope):
    real, fake = gaussian(200, [2.0, 0.0]), gaussian(200, [0.0, 0.0], seed=1)
    exact = metrics.wasserstein_distance(real, fake)
    scores = (slope * real[:, 0], slope * real.norm(dim=1).sin(), torch.zeros(200))
    for bound in (metrics.c_transform_bound(score, real, fake) for score in scores):
        assert bound <= exact + 1e-9


def test_the_c_transforms_bound_is_the_distance_for_the_optimal_critic():
    """Of a translation: f(x) = x m / |m|, whatever its level."""
    fake, shift = gaussian(300, [0.0, 0.0]), torch.tensor([3.0, 4.0])
    real = fake + shift
    bound = metrics.c_transform_bound(100 + real @ shift / 5, real, fake)
    assert bound == pytest.approx(5, rel=1e-5)


def test_the_energy_distance_of_a_shifted_gaussian_is_its_closed_form():
    """In one dimension, x - y is N(m, 2), and E|N(m, s^2)| = s sqrt(2 / pi) exp(-m^2 / 2 s^2) +
    m erf(m / s sqrt 2)."""
    one = torch.special.ndtri((torch.arange(1500) + 0.5) / 1500)[:, None]  # N(0, 1), evenly
    for shift in (0.0, 1.0, 3.0):
        other = one[::2] + shift
        between = 2 / math.pi**0.5 * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
        expected = 2 * between - 2 * 2 / math.pi**0.5
        assert metrics.energy_distance(one, other) == pytest.approx(expected, abs=0.01)


def test_the_energy_distance_of_few_points_is_its_definition_and_unbiased():
    one, other = gaussian(6, [0.0] * 5), gaussian(4, [2.0] * 5, seed=1)
    between = np.mean([(x - y).norm() for x in one for y in other])
    within = [np.mean([(x - y).norm() for x, y in permutations(a, 2)]) for a in (one, other)]
    value = metrics.energy_distance(one, other)
    assert value == pytest.approx(2 * between - sum(within), rel=1e-5)
    pairs = torch.randn(400, 2, 4, 8)  # of one distribution
    values = [metrics.energy_distance(*pair) for pair in pairs]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20 and min(values) < 0
