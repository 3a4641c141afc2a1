"""The report of points."""

import math

import pytest
import torch

from wgan.evaluation.points import report_points


def test_points_are_reported_with_modes_only_if_there_are_labels():
    reference = torch.tensor([[0.0, 0.0], [4.0, 0.0]]).repeat(50, 1)
    reference += 0.1 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(2).repeat(50)
    found = report_points(reference, reference, labels)
    assert found["modes"] == found["modes_in_all"] == 2
    assert found["wasserstein_distance"] == pytest.approx(0, abs=1e-6)
    moved = report_points(reference + torch.tensor([0.0, 3.0]), reference, None)
    assert list(moved) == ["wasserstein_distance"]
    assert math.isclose(moved["wasserstein_distance"], 3, rel_tol=1e-5)
