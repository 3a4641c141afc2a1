"""The mathematics against closed forms."""

import re

import pytest
import torch
from conftest import ROOT, LinearCritic
from helpers import small_config
from torch import nn

from utils import (
    METHODS,
    clip_weights,
    divergence_penalty,
    generator_loss,
    gradient_norms,
    gradient_penalty,
    input_gradients,
    interpolate,
    wasserstein_estimate,
)
from wgan.state import build_method
from wgan_gp import DCGANCritic, DenseCritic, LeakyReLU

WEIGHTS = torch.tensor([3.0, 0.0, -4.0])  # of length 5


def test_estimate_is_high_where_the_critic_prefers_real():
    assert wasserstein_estimate(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 0.0])) == 3.5


def test_generator_wants_high_scores():
    assert generator_loss(torch.tensor([1.0, 3.0])) == -2


def test_mixes_lie_between_pairs_one_number_a_sample():
    real, fake = torch.rand(3, 2, 4, 4) + 10, torch.rand(3, 2, 4, 4)
    mixed = interpolate(real, fake, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(mixed[0], fake[0])
    assert torch.equal(mixed[1], real[1])
    torch.testing.assert_close(mixed[2], 0.25 * real[2] + 0.75 * fake[2])


def test_gradient_norm_is_per_sample_over_all_pixels():
    # f(x) = sum of x^2 / 2 has the gradient x, whose norm is the image's own.
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    norms = gradient_norms(lambda x: x.square().flatten(1).sum(1) / 2, images)
    expected = [image.flatten().double().norm().item() for image in images]
    assert norms.tolist() == pytest.approx(expected, rel=1e-6)


def test_gradient_penalty_of_a_linear_critic_and_its_gradient():
    critic = LinearCritic(WEIGHTS)
    penalty = gradient_penalty(critic, torch.randn(7, 3))
    assert penalty.item() == pytest.approx((5 - 1) ** 2)
    penalty.backward()
    torch.testing.assert_close(critic.weights.grad, 2 * (5 - 1) * WEIGHTS / 5)


def test_gradient_penalty_averages_over_samples():
    # Norms 1 and 3 at x = 1 and 3: penalties 0 and 4.
    quadratic = lambda x: x.square().sum(1) / 2  # noqa: E731
    assert gradient_penalty(quadratic, torch.tensor([[1.0], [3.0]])).item() == pytest.approx(2)


@pytest.mark.parametrize(("k", "p"), [(2.0, 6.0), (1.0, 2.0), (0.5, 3.0)])
def test_divergence_penalty_of_a_linear_critic_and_its_gradient(k, p):
    critic = LinearCritic(WEIGHTS)
    penalty = divergence_penalty(critic, torch.randn(7, 3), k, p)
    assert penalty.item() == pytest.approx(k * 5**p, rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(critic.weights.grad, k * p * 5 ** (p - 2) * WEIGHTS)


def test_divergence_power_is_taken_per_sample_not_over_the_batch():
    quadratic = lambda x: x.square().sum(1) / 2  # noqa: E731
    penalty = divergence_penalty(quadratic, torch.tensor([[1.0], [2.0]]), k=2, p=6)
    assert penalty.item() == pytest.approx(2 * (1 + 2**6) / 2)


@pytest.mark.parametrize("penalty", [gradient_penalty, lambda f, x: divergence_penalty(f, x, 2, 6)])
def test_a_zero_gradient_is_no_nan(penalty):
    critic = LinearCritic(torch.zeros(3))
    penalty(critic, torch.randn(4, 3)).backward()
    assert torch.equal(critic.weights.grad, torch.zeros(3))


def test_powers_of_half_precision_gradients_do_not_overflow():
    # 100^6 is far beyond float16's 65504.
    critic = LinearCritic([100.0]).half()
    penalty = divergence_penalty(critic, torch.ones(2, 1, dtype=torch.float16), k=1, p=6)
    assert penalty.item() == pytest.approx(1e12)


@pytest.mark.parametrize("norm", ["none", "layer", "instance"])
def test_penalised_critics_score_samples_one_by_one(norm):
    critic = DCGANCritic((1, 16, 16), width=4, critic_norm=norm)
    images = torch.randn(4, 1, 16, 16)
    alone = torch.cat([input_gradients(critic, image[None]) for image in images])
    torch.testing.assert_close(input_gradients(critic, images), alone)


def test_batch_normalisation_couples_samples_which_is_why_it_is_refused():
    critic = DCGANCritic((1, 16, 16), width=4, critic_norm="batch")
    images = torch.randn(4, 1, 16, 16)
    others_changed = torch.cat([images[:1], 3 * images[1:]])
    assert not torch.allclose(critic(images)[0], critic(others_changed)[0])


PENALTIES = [gradient_norms, gradient_penalty, lambda f, x: divergence_penalty(f, x, 2, 6)]


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
    [
        (DCGANCritic, "none"),
        (DCGANCritic, "layer"),
        (DCGANCritic, "instance"),
        (DenseCritic, "none"),
    ],
)
def test_the_penaltys_gradient_matches_finite_differences(network, norm):
    critic = network((1, 16, 16), 8, norm).double()
    for index, layer in enumerate(critic.layers):
        if isinstance(layer, LeakyReLU):  # at whose kinks a difference would jump
            critic.layers[index] = nn.Softplus()
    images = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    weights = next(parameter for parameter in critic.parameters() if parameter.dim() > 1)
    gradient_penalty(critic, images).backward()
    direction = torch.randn_like(weights)

    def penalty_at(distance):
        with torch.no_grad():
            weights.add_(direction, alpha=distance)
        value = (input_gradients_double(critic, images).norm(dim=1) - 1).square().mean()
        with torch.no_grad():
            weights.sub_(direction, alpha=distance)
        return value.item()

    expected = (penalty_at(1e-5) - penalty_at(-1e-5)) / 2e-5
    assert (weights.grad * direction).sum().item() == pytest.approx(expected, rel=1e-3)


def input_gradients_double(critic, samples):
    """`input_gradients` in the simplest form, and in double precision."""
    samples = samples.clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(critic(samples).sum(), samples)[0].flatten(1)


def test_clipping_reaches_every_parameter():
    critic = DCGANCritic((1, 16, 16), width=4)
    clip_weights(critic, 0.01)
    largest = [parameter.abs().max().item() for parameter in critic.parameters()]
    assert max(largest) == pytest.approx(0.01)
    assert all(value <= 0.01 + 1e-9 for value in largest)


def losses_of(name):
    """A method's losses for a linear critic of slope 5, and the estimate that is expected."""
    real, fake, mix = torch.randn(8, 3) + 1, torch.randn(8, 3), torch.rand(8)
    method = build_method(small_config(method=name, dataset="mnist"))  # the paper's options
    expected = (real.mean(0) - fake.mean(0)) @ WEIGHTS
    return method.critic_loss(LinearCritic(WEIGHTS), real, fake, mix), expected


@pytest.mark.parametrize("name", METHODS)
def test_every_method_maximises_the_estimate_minus_its_penalty(name):
    losses, expected = losses_of(name)
    torch.testing.assert_close(losses.wasserstein, expected)
    torch.testing.assert_close(losses.loss, losses.penalty - losses.wasserstein)
    assert losses.penalty >= 0


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_generator_loss_falls_as_scores_rise(name):
    method = build_method(small_config(method=name))
    critic, fake = LinearCritic(WEIGHTS), torch.randn(8, 3)
    better = fake + WEIGHTS  # scores 25 more
    assert method.generator_loss(critic, better) < method.generator_loss(critic, fake)


@pytest.mark.parametrize(
    ("name", "penalty"), [("wgan", 0.0), ("wgan-gp", 10 * 4.0**2), ("wgan-div", 2 * 5.0**6)]
)
def test_penalties_of_a_linear_critic_with_the_papers_weights(name, penalty):
    assert losses_of(name)[0].penalty.item() == pytest.approx(penalty, rel=1e-5)


@pytest.mark.parametrize("points", ["mixed", "real", "fake"])
def test_divergence_is_taken_at_the_points_asked_for(points):
    method = METHODS["wgan-div"](div_k=1, div_p=2, div_points=points)
    quadratic = lambda x: x.square().sum(1) / 2  # noqa: E731
    real, fake = torch.full((2, 1), 3.0), torch.full((2, 1), 1.0)
    penalty = method.critic_loss(quadratic, real, fake, torch.full((2,), 0.5)).penalty
    assert penalty.item() == pytest.approx({"mixed": 2, "real": 3, "fake": 1}[points] ** 2)


def test_the_loop_in_the_readme_moves_samples_towards_the_data():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## A loop of your own.*?```python\n(.*?)```", text, re.S)[1]
    assert code.count("range(500)") == 1
    loop = {}
    exec(code.replace("range(500)", "range(30)"), loop)
    fake = loop["generator"](torch.randn(64, 8))
    assert fake.mean(0)[0] > 0.3  # from about 0 to 3
    assert loop["losses"].wasserstein > 0
