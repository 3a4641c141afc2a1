"""The mathematics of Wasserstein GANs, and the three methods that keep a critic Lipschitz.

Everything here is deterministic: random numbers are drawn by the caller and passed in.
Networks may compute in bfloat16; means, norms and powers are taken in float32.
Shapes: samples are `(B, ...)`, scores `(B,)`, input gradients `(B, D)`, `mix` `(B,)`.

The critic f maximises E f(real) - E f(fake); the generator minimises -E f(fake).

Sources
    Arjovsky et al. 2017   "Wasserstein GAN", arXiv:1701.07875
    Gulrajani et al. 2017  "Improved Training of Wasserstein GANs", arXiv:1704.00028
    Wu et al. 2018         "Wasserstein Divergence for GANs", arXiv:1712.01026
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Critic = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------- functions


def wasserstein_estimate(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """E f(real) - E f(fake): the critic's estimate of the Wasserstein-1 distance, a scalar.

    It is a distance only as far as f is 1-Lipschitz (Arjovsky et al. 2017, equation 2).
    """
    return real_scores.float().mean() - fake_scores.float().mean()


def unbiased_estimate(estimate: float, gp_weight: float) -> float:
    """The distance W that a converged WGAN-GP critic's estimate stands for.

    The penalty lets the slope of f exceed 1: where it is s everywhere between the two
    distributions, s W - lambda (s - 1)^2 is greatest at s = 1 + W / (2 lambda), and the
    estimate is s W = W + W^2 / (2 lambda). This is that equation, solved for W.
    """
    return math.sqrt(gp_weight**2 + 2 * gp_weight * max(0.0, estimate)) - gp_weight


def generator_loss(fake_scores: Tensor) -> Tensor:
    """-E f(G(z)), a scalar (Arjovsky et al. 2017, algorithm 1, line 10)."""
    return -fake_scores.float().mean()


def interpolate(real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Points on the lines between pairs: mix * real + (1 - mix) * fake, `mix` `(B,)` in [0, 1].

    One number a sample, not one a pixel (Gulrajani et al. 2017, algorithm 1, line 6).
    """
    return torch.lerp(fake, real, mix.view(-1, *[1] * (real.dim() - 1)))


def input_gradients(critic: Critic, samples: Tensor) -> Tensor:
    """The gradient of each sample's score by that sample: `(B, ...)` to `(B, D)`, float32.

    Row i is right only if score i depends on sample i alone, hence no batch normalisation.
    The result can be differentiated again by the critic's parameters.
    """
    scores, pull_back = torch.func.vjp(critic, samples)
    (gradients,) = pull_back(torch.ones_like(scores))
    return gradients.flatten(1).float()


def gradient_norms(critic: Critic, samples: Tensor) -> Tensor:
    """The Euclidean norm of each sample's input gradient, over all its values: `(B,)`.

    `vector_norm` has the gradient 0 at 0, where a square root's would be infinite.
    """
    return torch.linalg.vector_norm(input_gradients(critic, samples), dim=1)


def gradient_penalty(critic: Critic, samples: Tensor) -> Tensor:
    """E (|grad f(x)| - 1)^2 over the given points x, a scalar.

    The points are mixes of real and fake (Gulrajani et al. 2017, equation 3; the weight
    lambda is left to the caller).
    """
    return (gradient_norms(critic, samples) - 1).square().mean()


def divergence_penalty(critic: Critic, samples: Tensor, k: float, p: float) -> Tensor:
    """k E |grad f(x)|^p over the given points x, a scalar (Wu et al. 2018, equation 7).

    |g|^p is computed as (sum of squares)^(p/2): no root, so no infinite gradient at 0.
    """
    squares = input_gradients(critic, samples).square().sum(dim=1)
    return k * squares.pow(p / 2).mean()


@torch.no_grad()
def clip_weights(critic: nn.Module, bound: float) -> None:
    """Clamp every parameter to [-bound, bound] (Arjovsky et al. 2017, algorithm 1, line 7).

    It comes after the optimizer's step.
    """
    for parameter in critic.parameters():
        parameter.clamp_(-bound, bound)


# ---------------------------------------------------------------- methods


class CriticLoss(NamedTuple):
    """What a critic update minimises, and the two parts to log; all scalars.

    `loss = penalty - wasserstein`, the penalty with its weight.
    """

    loss: Tensor
    wasserstein: Tensor
    penalty: Tensor


@dataclass(frozen=True)
class WeightClipping:
    """WGAN: a compact set of weights makes the critic K-Lipschitz for some K.

    Arjovsky et al. 2017, algorithm 1. Its networks carry batch normalisation, which is why
    real and fake are scored in two passes here, each with statistics of its own.
    """

    clip: float

    per_sample: ClassVar[bool] = False
    settings: ClassVar[dict] = {
        "optimizer": "rmsprop",
        "lr": 5e-5,
        "n_critic": 5,
        "clip": 0.01,
        "critic_norm": "batch",
    }

    def critic_loss(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> CriticLoss:
        distance = wasserstein_estimate(critic(real), critic(fake))
        return CriticLoss(-distance, distance, torch.zeros_like(distance))

    def after_critic_step(self, critic: nn.Module) -> None:
        clip_weights(critic, self.clip)


@dataclass(frozen=True)
class GradientPenalty:
    """WGAN-GP: gradients of norm 1 where real and fake are mixed (Gulrajani et al. 2017)."""

    gp_weight: float

    per_sample: ClassVar[bool] = True
    settings: ClassVar[dict] = {
        "optimizer": "adam",
        "lr": 1e-4,
        "betas": (0.0, 0.9),
        "n_critic": 5,
        "gp_weight": 10.0,
        "critic_norm": "none",
    }

    def critic_loss(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> CriticLoss:
        distance = estimate_in_one_pass(critic, real, fake)
        penalty = self.gp_weight * gradient_penalty(critic, interpolate(real, fake, mix))
        return CriticLoss(penalty - distance, distance, penalty)

    def after_critic_step(self, critic: nn.Module) -> None:
        pass


@dataclass(frozen=True)
class WassersteinDivergence:
    """WGAN-div: the divergence itself, without any Lipschitz constraint (Wu et al. 2018).

    The paper's f is low on real data; ours is its negative, so that all three methods agree.
    k, p, the rates and n_critic: the paper's and its authors' code's, see configs/README.md.
    """

    div_k: float
    div_p: float
    div_points: str

    per_sample: ClassVar[bool] = True
    settings: ClassVar[dict] = {
        "optimizer": "adam",
        "lr": 2e-4,
        "betas": (0.0, 0.9),
        "n_critic": 4,
        "div_k": 2.0,
        "div_p": 6.0,
        "div_points": "mixed",
        "critic_norm": "none",
    }

    def critic_loss(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> CriticLoss:
        distance = estimate_in_one_pass(critic, real, fake)
        points = DIVERGENCE_POINTS[self.div_points](real, fake, mix)
        penalty = divergence_penalty(critic, points, self.div_k, self.div_p)
        return CriticLoss(penalty - distance, distance, penalty)

    def after_critic_step(self, critic: nn.Module) -> None:
        pass


def estimate_in_one_pass(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    """`wasserstein_estimate` from one pass over both batches, which is faster than two."""
    return wasserstein_estimate(*critic(torch.cat([real, fake])).chunk(2))


DIVERGENCE_POINTS = {
    "mixed": interpolate,
    "real": lambda real, fake, mix: real,
    "fake": lambda real, fake, mix: fake,
}

METHODS = {
    "wgan": WeightClipping,
    "wgan-gp": GradientPenalty,
    "wgan-div": WassersteinDivergence,
}
