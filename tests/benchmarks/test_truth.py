"""The known distances, potentials and gradients against other ways to compute them."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks import truth
from benchmarks.truth import (
    CONTENDERS,
    GRID,
    PAIRS,
    Funnels,
    densities,
    finite_sets,
    image_funnels,
    mix_to_one,
    one_dimension,
    optimal_slope,
    scaling,
    stanczuk,
)
from wgan.evaluation.metrics import wasserstein_distance

OFFLINE = [row for row in PAIRS if row not in "CF"]


def test_densities_integrate_to_one():
    for density in densities()[:3]:
        assert torch.trapezoid(density, GRID).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("name", "power"), [("wgan-gp", 2), ("wgan-div", 6), ("wgan-r1r2", 2)])
def test_no_other_slope_is_better_than_the_optimal_one(name, power):
    """In its own objective, the integral of D f' minus the penalty."""
    p, q, r, difference = densities()

    def objective(slope):
        penalty = {
            "wgan-gp": 10 * r * (slope.abs() - 1) ** 2,
            "wgan-div": 2 * r * slope.abs() ** 6,
            "wgan-r1r2": 0.5 * (p + q) * slope**2,
        }[name]
        return torch.trapezoid(difference * slope - penalty, GRID).item()

    optimum = optimal_slope(name)
    best = objective(optimum)
    for changed in (0.9 * optimum, 1.1 * optimum, optimum + 0.1 * GRID.cos(), 1.0 * optimum.sign()):
        assert objective(changed) < best


def test_the_optimal_slopes_of_the_bounded_critics_give_the_distance():
    difference, pair = densities()[3], one_dimension()
    estimate = torch.trapezoid(difference * optimal_slope("wgan-orthonormal"), GRID).item()
    assert estimate == pytest.approx(pair.distance)
    real, fake = pair.draw(torch.Generator().manual_seed(0), 20_000)
    one, other = (np.sort(part.numpy(), 0) for part in (real, fake))
    assert np.abs(one - other).mean() == pytest.approx(pair.distance, rel=0.03)


@pytest.mark.parametrize(
    "build",
    [lambda: scaling(1), lambda: scaling(2), lambda: mix_to_one(2, 4), lambda: finite_sets(3)],
)
def test_distances_are_those_of_many_samples(build):
    pair = build()
    real, fake = pair.sets or pair.draw(torch.Generator().manual_seed(0), 700)
    assert wasserstein_distance(real, fake) == pytest.approx(pair.distance, rel=0.15)


def test_points_stay_in_their_funnel_at_which_the_potential_has_the_rays_slope():
    rng = torch.Generator().manual_seed(0)
    centres, points = (5 * torch.rand(n, 3, generator=rng).double() - 2.5 for n in (6, 500))
    funnels = Funnels(centres, 0.1 * torch.randn(6, generator=rng).double())
    points[:100, 1] = centres[0, 1]  # a ray may be parallel to a wall
    moved = funnels.pull(points, 2.5)
    far = (moved - points).norm(dim=1) < funnels.rays(points)[2][:, 0] - 0.01  # from the centre
    points, moved = points[far], moved[far].requires_grad_()
    owner, direction, distance = funnels.rays(points)
    assert torch.equal(funnels.rays(moved)[0], owner)
    potential = (torch.cdist(moved, funnels.centres) + funnels.heights).amin(1)
    (gradient,) = torch.autograd.grad(potential.sum(), moved)
    torch.testing.assert_close(gradient, direction, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(funnels.rays(moved.detach())[1], direction, rtol=1e-3, atol=1e-3)
    assert (funnels.rays(moved.detach())[2] <= distance + 1e-9).all()


def test_the_potential_of_moved_images_differs_by_their_distance():
    images = torch.rand(300, 20, generator=torch.Generator().manual_seed(0))
    pair, funnels = image_funnels(images), Funnels(images[:16], torch.zeros(16))
    real, fake = pair.draw(torch.Generator().manual_seed(0), 20_000)
    difference = funnels.rays(real)[2].mean() - funnels.rays(fake)[2].mean()
    assert difference.item() == pytest.approx(pair.distance, rel=0.03)
    assert pair.gradient(fake).norm(dim=1).tolist() == pytest.approx([1] * 20_000, rel=1e-5)


def test_centres_are_nearer_to_real_samples_than_other_real_samples_are():
    distances = stanczuk(torch.randn(600, 30), count=60)
    assert distances["k-means centres"] < distances["others"]


@pytest.mark.nightly
def test_the_command_writes_its_results_and_figures(tmp_path, capsys, monkeypatch):
    target, figure = tmp_path / "t.json", tmp_path / "t.png"
    monkeypatch.setattr(truth, "FRESH", 100)
    arguments = ["--rows", *OFFLINE, "--updates", "2", "--json", str(target)]
    assert truth.main([*arguments, "--plot", str(figure)]) == 0
    lines = json.loads(target.read_text())["critics"]
    assert len(lines) == len(CONTENDERS) * sum(len(PAIRS[row]) for row in OFFLINE)
    for line in lines:
        assert math.isfinite(line["estimate"]) and line["updates"] == 2
        assert line.get("bound", 0) <= 1 + 1e-6
        if line["method"] == "wgan-orthonormal":
            assert line["slope"] <= 1 + 1e-5
    assert figure.exists() and (tmp_path / "t-slopes.png").exists()
    assert "| wgan-gp | 2 |" in capsys.readouterr().out
    assert truth.main(["--methods", "gan"]) == 2
