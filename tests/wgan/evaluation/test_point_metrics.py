"""The report of points."""

import math

import pytest
import torch

from wgan.evaluation.metrics import column_metrics, within_class_wasserstein
from wgan.evaluation.points import report_points, split_points
from wgan.evaluation.report import format_report


def test_points_are_reported_with_modes_only_if_there_are_labels():
    reference = torch.tensor([[0.0, 0.0], [4.0, 0.0]]).repeat(50, 1)
    reference += 0.1 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(2).repeat(50)
    values = report_points(reference, reference, labels)
    assert values["modes"] == values["modes_in_all"] == 2
    assert values["wasserstein_distance"] == pytest.approx(0, abs=1e-6)
    moved = report_points(reference + torch.tensor([0.0, 3.0]), reference, None)
    expected = ["wasserstein_distance", "energy_distance", "precision", "recall", "density"]
    assert list(moved)[:6] == [*expected, "coverage"]
    assert math.isclose(moved["wasserstein_distance"], 3, rel_tol=1e-5)
    assert moved["recall"] == 0


@pytest.mark.parametrize("deviation", [0.0, 0.3])
def test_samples_that_vary_too_little_are_worse_than_real_ones(deviation):
    """The exception is the Wasserstein distance, about which the report prints a warning."""
    samples, real, reference = torch.randn(3, 300, 64)
    values, floor = (report_points(part, reference, None) for part in (deviation * samples, real))
    assert values["wasserstein_distance"] < floor["wasserstein_distance"]
    assert values["energy_distance"] > 1 > 0.1 > abs(floor["energy_distance"])
    assert values["recall"] < 0.1 < 0.4 < floor["recall"]
    result = {"source": "run", "samples": 500, "generated": values, "real": floor}
    assert format_report(result).count("below the floor is not better") == 1
    assert "below the floor" not in format_report(result | {"generated": floor})


def test_the_distance_within_classes_is_that_of_each_class():
    """Of equal sets whose classes are exchanged, it is the distance of the classes."""
    reference = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [100.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1, -1])
    for points, expected in ((reference, 0.0), (reference[[2, 3, 0, 1, 4]], 5.0)):
        values = within_class_wasserstein(points, labels, reference, labels, maximum=10)
        assert values == pytest.approx(expected)
    moved = reference + torch.tensor([1.0, 0.0])  # of two points each class, one is paired
    assert within_class_wasserstein(moved, labels, reference, labels, maximum=1) == pytest.approx(1)


def test_columns_are_compared_one_by_one_and_in_pairs():
    points = torch.tensor([[0.0, 0.0, 7.0], [1.0, 1.0, 7.0], [2.0, 2.0, 7.0]])
    others = torch.tensor([[5.0, 0.0, 7.0], [4.0, 1.0, 7.0], [3.0, 2.0, 7.0]])  # x is 5 - x
    assert column_metrics(points, others) == pytest.approx(
        {"marginal_distance": 1.0, "worst_marginal_distance": 3.0, "correlation_difference": 2 / 3}
    )  # of three pairs of columns, the correlation of one changes from 1 to -1
    assert len(column_metrics(points[:, :1], others[:, :1])) == 2


def test_sorted_points_are_split_at_random():
    held_out, reference = split_points(30_000, 5000)
    assert len(held_out) == 5000 and len(reference) == 10_000
    assert not set(held_out) & set(reference)
    for part in (held_out, reference, held_out[:2000], reference[:2000]):
        assert abs(part.mean() / 15_000 - 1) < 0.05
    held_out, reference = split_points(20, 10)
    assert sorted([*held_out, *reference]) == list(range(20))
