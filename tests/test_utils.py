"""The mathematics against closed forms."""

import math
from functools import partial

import pytest
import torch
from conftest import LinearCritic
from helpers import small_config
from torch import nn

from utils import (
    METHODS,
    CriticLoss,
    clip_weights,
    corrected_estimate,
    divergence_penalty,
    estimate_in_one_pass,
    generator_loss,
    gradient_norms,
    gradient_penalty,
    input_gradients,
    interpolate,
    interpolate_gradient_norm,
    one_sided_penalty,
    scores_and_r1_r2,
    wasserstein_estimate,
)
from wgan.state import build_method
from wgan_gp import NORMS, DCGANCritic, DenseCritic, LeakyReLU

WEIGHTS = torch.tensor([3.0, 0.0, -4.0])  # of length 5


def quadratic(samples):
    """f(x) = |x|^2 / 2, whose gradient is x."""
    return samples.square().flatten(1).sum(1) / 2


def test_the_estimate_is_high_where_the_critic_prefers_real_and_the_generator_wants_high_scores():
    assert wasserstein_estimate(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 0.0])) == 3.5
    assert generator_loss(torch.tensor([1.0, 3.0])) == -2


def test_the_correction_is_exact_for_a_constant_slope_and_too_large_for_another():
    """In one dimension, |f'| = 1 + D / (2 lambda r) for distribution functions that are D apart and
    a density r of the penalised points. W is the integral of D, and the estimate that of D |f'|."""
    for distance, weight in ((0.3, 0.1), (2.0, 1.0), (5.0, 10.0)):
        constant = distance * (1 + distance / (2 * weight))  # D = W and r = 1 on [0, 1]
        assert corrected_estimate(constant, weight) == pytest.approx(distance)
        varying = distance * (1 + 2 * distance / (2 * weight))  # D = 2 W on half of it
        assert corrected_estimate(varying, weight) > 1.1 * distance
    assert corrected_estimate(-1.0, 10.0) == 0


def test_mixes_lie_between_pairs_one_number_a_sample():
    real, fake = torch.rand(3, 2, 4, 4) + 10, torch.rand(3, 2, 4, 4)
    mixed = interpolate(real, fake, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(mixed[0], fake[0])
    assert torch.equal(mixed[1], real[1])
    torch.testing.assert_close(mixed[2], 0.25 * real[2] + 0.75 * fake[2])


def test_gradient_norm_is_per_sample_over_all_pixels():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    norms = gradient_norms(quadratic, images)
    expected = [image.flatten().double().norm().item() for image in images]
    assert norms.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("penalty", "value", "factor"),  # of a linear critic of slope w, |w| = 5; gradient = factor * w
    [
        (gradient_penalty, (5 - 1) ** 2, 2 * (5 - 1) / 5),
        (partial(divergence_penalty, k=2.0, p=6.0), 2 * 5**6, 2 * 6 * 5**4),
        (partial(divergence_penalty, k=1.0, p=2.0), 5**2, 2),
        (partial(divergence_penalty, k=0.5, p=3.0), 0.5 * 5**3, 0.5 * 3 * 5),
        (one_sided_penalty, (5 - 1) ** 2, 2 * (5 - 1) / 5),
        (lambda critic, x: scores_and_r1_r2(critic, x, x)[2], 2 * 5**2, 4),
    ],
)
def test_penalties_of_a_linear_critic_and_their_gradients(penalty, value, factor):
    critic = LinearCritic(WEIGHTS)
    result = penalty(critic, torch.randn(7, 3))
    assert result.item() == pytest.approx(value, rel=1e-5)
    result.backward()
    torch.testing.assert_close(critic.weights.grad, factor * WEIGHTS)


def test_penalties_are_averaged_over_samples():
    samples = torch.tensor([[1.0], [3.0]])  # and so are their gradients
    assert gradient_penalty(quadratic, samples).item() == pytest.approx((0 + 4) / 2)
    assert one_sided_penalty(quadratic, samples / 2).item() == pytest.approx((0 + 0.5**2) / 2)
    power = divergence_penalty(quadratic, samples, k=2, p=6).item()
    assert power == pytest.approx(2 * (1 + 3**6) / 2)


def test_the_gradient_norm_at_interpolates_of_critics_with_and_without_batch_normalisation():
    real, fake, mix = torch.tensor([[4.0], [8.0]]), torch.zeros(2, 1), torch.tensor([0.5, 0.25])
    assert interpolate_gradient_norm(quadratic, real, fake, mix).item() == 2  # at 2 and 2
    critic = LinearCritic(WEIGHTS)
    norm = interpolate_gradient_norm(critic, torch.randn(7, 3), torch.randn(7, 3), torch.rand(7))
    assert norm.item() == pytest.approx(5) and not norm.requires_grad
    # The sum of a normalised batch is 0 wherever its samples are.
    normalised = nn.Sequential(nn.BatchNorm1d(1, track_running_stats=False), nn.Flatten(0))
    assert interpolate_gradient_norm(normalised, real, fake, mix).item() < 1e-6


@pytest.mark.parametrize(
    "penalty",
    [
        gradient_penalty,
        one_sided_penalty,
        lambda critic, x: scores_and_r1_r2(critic, x, x)[2],
        *(partial(divergence_penalty, k=2, p=p) for p in (1.5, 6)),
    ],
)
def test_a_zero_gradient_is_no_nan(penalty):
    critic = LinearCritic(torch.zeros(3))
    penalty(critic, torch.randn(4, 3)).backward()
    assert torch.equal(critic.weights.grad, torch.zeros(3))


def test_powers_of_half_precision_gradients_do_not_overflow():
    # 100^6 is far beyond float16's 65504.
    critic = LinearCritic([100.0]).half()
    penalty = divergence_penalty(critic, torch.ones(2, 1, dtype=torch.float16), k=1, p=6)
    assert penalty.item() == pytest.approx(1e12)


@pytest.mark.parametrize("norm", NORMS)
def test_critics_score_samples_one_by_one_except_with_batch_normalisation(norm):
    critic = DCGANCritic((1, 16, 16), width=4, critic_norm=norm)
    images = torch.randn(4, 1, 16, 16)
    together = input_gradients(critic, images)
    alone = torch.cat([input_gradients(critic, image[None]) for image in images])
    difference = (together - alone).abs().max() / together.abs().max()
    assert difference > 0.1 if norm == "batch" else difference < 1e-4


PENALTIES = [gradient_norms, gradient_penalty, lambda f, x: divergence_penalty(f, x, 2, 6)]
PENALTIES += [lambda f, x: scores_and_r1_r2(f, x, x)[2]]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("track", [True, False])
def test_a_penalty_refuses_batch_normalisation_and_names_it(penalty, track):
    norm = nn.BatchNorm1d(4, track_running_stats=track)
    critic = nn.Sequential(nn.Linear(3, 4), nn.Sequential(norm), nn.Linear(4, 1))
    message = r"module '1.0' \(BatchNorm1d\) mixes the samples.*use layer or instance normalisation"
    with pytest.raises(ValueError, match=message):
        penalty(critic, torch.randn(5, 3))
    critic.eval()
    if track:  # the running statistics do not depend on the batch
        assert penalty(critic, torch.randn(5, 3)).isfinite().all()
    else:
        with pytest.raises(ValueError, match=message):
            penalty(critic, torch.randn(5, 3))


def test_the_check_for_batch_normalisation_can_be_compiled():
    critic = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    samples = torch.randn(5, 3)
    compiled = torch.compile(gradient_penalty, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(critic, samples), gradient_penalty(critic, samples))
    critic[1] = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(RuntimeError, match="mixes the samples"):
        compiled(critic, samples)


@pytest.mark.parametrize(
    ("network", "norm"),
    [*((DCGANCritic, norm) for norm in ("none", "layer", "instance")), (DenseCritic, "none")],
)
def test_the_penaltys_gradient_matches_finite_differences(network, norm):
    critic = network((1, 16, 16), 8, norm).double()
    for index, layer in enumerate(critic.layers):
        if isinstance(layer, LeakyReLU):  # at whose kinks a difference would jump
            critic.layers[index] = nn.Softplus()
    images = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    name, weights = next((n, p) for n, p in critic.named_parameters() if p.dim() > 1)
    gradient_penalty(critic, images).backward()
    direction = torch.randn_like(weights)

    def penalty_at(distance):
        """The penalty in its simplest form, and in double precision."""
        samples = images.clone().requires_grad_()
        moved = {name: weights.detach() + distance * direction}
        scores = torch.func.functional_call(critic, moved, samples)
        (gradients,) = torch.autograd.grad(scores.sum(), samples)
        return (gradients.flatten(1).norm(dim=1) - 1).square().mean().item()

    expected = (penalty_at(1e-5) - penalty_at(-1e-5)) / 2e-5
    assert (weights.grad * direction).sum().item() == pytest.approx(expected, rel=1e-3)


def test_clipping_reaches_every_parameter():
    critic = DCGANCritic((1, 16, 16), width=4)
    clip_weights(critic, 0.01)
    largest = [parameter.abs().max().item() for parameter in critic.parameters()]
    assert max(largest) == pytest.approx(0.01)
    assert all(value <= 0.01 + 1e-9 for value in largest)


@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        ("wgan", 0.0),
        ("wgan-gp", 10 * 4.0**2),
        ("wgan-lp", 10 * 4.0**2),
        ("wgan-div", 2 * 5.0**6),
        ("wgan-r1r2", 5.0**2),
    ],
)
def test_the_losses_of_a_linear_critic_with_the_papers_weights(name, penalty):
    method = build_method(small_config(method=name, dataset="mnist"))  # the paper's options
    real, fake, mix = torch.randn(8, 3) + 1, torch.randn(8, 3), torch.rand(8)
    critic = LinearCritic(WEIGHTS)
    losses = method.critic_loss(critic, real, fake, mix)
    torch.testing.assert_close(losses.wasserstein, (real.mean(0) - fake.mean(0)) @ WEIGHTS)
    torch.testing.assert_close(losses.loss, losses.penalty - losses.wasserstein)
    assert losses.penalty.item() == pytest.approx(penalty, rel=1e-5)
    better = fake + WEIGHTS  # scores 25 more
    difference = method.generator_loss(critic, real, fake) - method.generator_loss(
        critic, real, better
    )
    assert difference.item() == pytest.approx(25, rel=1e-5)


def test_r3gan_compares_real_and_fake_samples_in_pairs():
    """softplus(t) = log(1 + e^t) of the difference of each pair's scores."""
    method, critic = METHODS["r3gan"](gamma=0.5), LinearCritic([2.0])
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.5], [4.0]])  # scores 1 and -2 apart
    losses = method.critic_loss(critic, real, fake, torch.zeros(2))
    pairs = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert losses.penalty.item() == pytest.approx(0.5 / 2 * 2 * 2.0**2)
    assert losses.loss.item() == pytest.approx(pairs + losses.penalty.item())
    assert losses.wasserstein.item() == pytest.approx((1 - 2) / 2)
    expected = (math.log(1 + math.exp(1)) + math.log(1 + math.exp(-2))) / 2
    assert method.generator_loss(critic, real, fake).item() == pytest.approx(expected)


def test_the_losses_of_parts_are_averaged():
    parts = [CriticLoss(*torch.tensor(values)) for values in ([1.0, 2.0, 3.0], [3.0, 8.0, 11.0])]
    assert CriticLoss.mean(parts) == CriticLoss(2, 5, 7)
    assert CriticLoss.mean(parts[:1]) == parts[0]


@pytest.mark.parametrize("points", ["mixed", "real", "fake"])
def test_divergence_is_taken_at_the_points_asked_for(points):
    method = METHODS["wgan-div"](div_k=1, div_p=2, div_points=points)
    real, fake = torch.full((2, 1), 3.0), torch.full((2, 1), 1.0)
    penalty = method.critic_loss(quadratic, real, fake, torch.full((2,), 0.5)).penalty
    assert penalty.item() == pytest.approx({"mixed": 2, "real": 3, "fake": 1}[points] ** 2)


@pytest.mark.parametrize(("real", "fake"), [(64, 32), (32, 64), (5, 1), (3, 3)])
def test_batches_of_unequal_size_are_cut_where_they_were_joined(real, fake):
    estimate = estimate_in_one_pass(quadratic, torch.full((real, 1), 2.0), torch.zeros(fake, 1))
    assert estimate.item() == 2
