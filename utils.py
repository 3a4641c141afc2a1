"""The mathematics of Wasserstein GANs, and the methods that keep a critic Lipschitz.

Everything here is deterministic: random numbers are drawn by the caller and passed in.
Networks may compute in bfloat16; means, norms and powers are computed in float32.
Shapes: samples `(B, ...)`, scores `(B,)`, input gradients `(B, D)`, `mix` `(B,)`.

The critic f maximises E f(real) - E f(fake); the generator minimises -E f(fake).

Sources
    Arjovsky et al. 2017   "Wasserstein GAN", arXiv:1701.07875
    Gulrajani et al. 2017  "Improved Training of Wasserstein GANs", arXiv:1704.00028
    Wu et al. 2018         "Wasserstein Divergence for GANs", arXiv:1712.01026
    Petzka et al. 2018     "On the regularization of Wasserstein GANs", arXiv:1709.08894
    Huang et al. 2024      "The GAN is dead; long live the GAN!", arXiv:2501.05441
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Critic = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------- functions


def wasserstein_estimate(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """E f(real) - E f(fake): the critic's estimate of the Wasserstein-1 distance, a scalar.

    It estimates the distance only if f is 1-Lipschitz (Arjovsky et al. 2017, equation 2).
    """
    return real_scores.float().mean() - fake_scores.float().mean()


def corrected_estimate(estimate: float, gp_weight: float) -> float:
    """The distance W, from the estimate of a converged WGAN-GP critic of constant slope.

    The penalty allows a slope s > 1. If it is the same everywhere between the distributions, as for
    a translation, s W - lambda (s - 1)^2 is maximal at s = 1 + W / (2 lambda), and the estimate is
    s W = W + W^2 / (2 lambda), which is solved for W. Otherwise the result exceeds W: for N(0, 1)
    and N(0, 4) by 44% if lambda = 0.1. Before the critic has converged, it may be too small.
    """
    return math.sqrt(gp_weight**2 + 2 * gp_weight * max(0.0, estimate)) - gp_weight


def generator_loss(fake_scores: Tensor) -> Tensor:
    """-E f(G(z)), a scalar (Arjovsky et al. 2017, algorithm 1, line 10; Gulrajani et al. 2017,
    algorithm 1, line 12)."""
    return -fake_scores.float().mean()


def interpolate(real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Points on the lines between pairs: mix * real + (1 - mix) * fake, `mix` `(B,)` in [0, 1].

    There is one mixing weight per sample, not per pixel (Gulrajani et al. 2017, algorithm 1,
    line 6).
    """
    return torch.lerp(fake, real, mix.view(-1, *[1] * (real.dim() - 1)))


def input_gradients(critic: Critic, samples: Tensor) -> Tensor:
    """Gradient of each sample's score with respect to that sample: `(B, ...)` to `(B, D)`, float32.

    Row i is correct only if no other score depends on sample i: see `check_per_sample`. The result
    can be differentiated again with respect to the critic's parameters.
    """
    return scores_and_gradients(critic, samples)[1]


def scores_and_gradients(critic: Critic, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Scores `(B,)` and `input_gradients` `(B, D)` of samples `(B, ...)`, from one pass."""
    scores, pull_back = torch.func.vjp(critic, samples)
    (gradients,) = pull_back(torch.ones_like(scores))
    return scores, gradients.flatten(1).float()


def check_per_sample(critic: Critic) -> None:
    """ValueError, naming the module, if batch normalisation makes scores depend on other samples.

    In evaluation mode it uses its running statistics, if it has any, and scores are independent. A
    critic that is not a module cannot be checked.
    """
    modules = critic.named_modules() if isinstance(critic, nn.Module) else ()
    for name, module in modules:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            raise ValueError(
                f"the critic's module {name!r} ({type(module).__name__}) mixes the samples of a "
                "batch, but the penalty uses the gradient of each sample: use layer or instance "
                "normalisation"
            )


def gradient_norms(critic: Critic, samples: Tensor) -> Tensor:
    """Euclidean norm of each sample's input gradient, over all its values: `(B,)`.

    The gradient of `vector_norm` at 0 is 0; that of a square root would be infinite. ValueError if
    the critic uses batch normalisation, as in `check_per_sample`.
    """
    check_per_sample(critic)
    return torch.linalg.vector_norm(input_gradients(critic, samples), dim=1)


def interpolate_gradient_norm(critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Mean norm of the critic's gradients at `interpolate(real, fake, mix)`, a detached scalar.

    A 1-Lipschitz critic has at most 1. Unlike `gradient_norms`, this also measures critics with
    batch normalisation, in which a gradient includes the effect of a sample on the other scores.
    """
    gradients = input_gradients(critic, interpolate(real, fake, mix))  # (B, D)
    return torch.linalg.vector_norm(gradients, dim=1).detach().mean()


def gradient_penalty(critic: Critic, samples: Tensor) -> Tensor:
    """E (|grad f(x)| - 1)^2 over the given points x, a scalar.

    The points are interpolates of real and fake samples (Gulrajani et al. 2017, equation 3). The
    caller multiplies by the weight lambda. ValueError if the critic uses batch normalisation, as
    in `check_per_sample`.
    """
    return (gradient_norms(critic, samples) - 1).square().mean()


def one_sided_penalty(critic: Critic, samples: Tensor) -> Tensor:
    """E max(0, |grad f(x)| - 1)^2 over the given points x, a scalar (Petzka et al. 2018, equation
    8). Otherwise as `gradient_penalty`."""
    return (gradient_norms(critic, samples) - 1).clamp(min=0).square().mean()


def divergence_penalty(critic: Critic, samples: Tensor, k: float, p: float) -> Tensor:
    """k E |grad f(x)|^p over the given points x, a scalar (Wu et al. 2018, equation 7).

    Its gradient is finite for every p > 1, also where the norm is 0. ValueError as in
    `gradient_norms`.
    """
    return k * gradient_norms(critic, samples).pow(p).mean()


def scores_and_r1_r2(critic: Critic, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f(real) `(B,)`, f(fake) `(B,)`, and E |grad f(real)|^2 + E |grad f(fake)|^2, a scalar, for
    equally many samples `(B, ...)`: R1 and R2 of Mescheder et al. 2018 (arXiv:1801.04406, equation
    9), without the weight gamma / 2. ValueError as in `gradient_norms`."""
    check_per_sample(critic)
    scores, gradients = scores_and_gradients(critic, torch.cat([real, fake]))
    return *scores.chunk(2), 2 * gradients.square().sum(1).mean()


@torch.no_grad()
def clip_weights(critic: nn.Module, bound: float) -> None:
    """Clamp every parameter to [-bound, bound] (Arjovsky et al. 2017, algorithm 1, line 7).

    Call it after the optimizer's step.
    """
    for parameter in critic.parameters():
        parameter.clamp_(-bound, bound)


# ---------------------------------------------------------------- methods


class CriticLoss(NamedTuple):
    """What a critic update minimises; E f(real) - E f(fake) and the penalty, for the log; scalars.

    With the Wasserstein loss, `loss = penalty - wasserstein`. The penalty includes its weight.
    """

    loss: Tensor
    wasserstein: Tensor
    penalty: Tensor

    def detach(self) -> "CriticLoss":
        return CriticLoss(*(value.detach() for value in self))

    @staticmethod
    def mean(losses: "Sequence[CriticLoss]") -> "CriticLoss":
        """Average of several losses: of equal parts of a batch, or of several updates."""
        return CriticLoss(*(torch.stack(values).mean() for values in zip(*losses, strict=True)))


@dataclass(frozen=True)
class Method:
    """How a critic is kept Lipschitz, with both networks' losses.

    A method is a subclass and an entry in `METHODS`. Its fields are its options, declared in
    wgan/config.py under the same names; `settings` are the values of options that its paper uses.
    `per_sample`: the loss uses the input gradient of each sample by itself, which excludes batch
    normalisation in the critic. `relativistic`: the generator's loss compares fake samples with
    real ones (Jolicoeur-Martineau 2018), so each step draws one more batch. `norms`: the range of
    gradient norms at interpolates that the constraint asks for.
    """

    norms: ClassVar[tuple[float, float]] = (0.0, math.inf)
    per_sample: ClassVar[bool] = False
    relativistic: ClassVar[bool] = False
    settings: ClassVar[dict] = {}

    def critic_loss(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> CriticLoss:
        """Means over equally many real and fake samples `(B, ...)`; `mix` `(B,)` as in
        `interpolate`."""
        raise NotImplementedError

    def generator_loss(self, critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
        """Mean over fake samples `(B, ...)`, a scalar. Only a relativistic method uses the real
        samples `(B, ...)`."""
        return generator_loss(critic(fake))

    def after_critic_step(self, critic: nn.Module) -> None:
        """Called after each update of the critic."""


@dataclass(frozen=True)
class WeightClipping(Method):
    """WGAN: bounded weights make the critic K-Lipschitz for some K.

    Arjovsky et al. 2017, algorithm 1, lines 5 to 7. The paper's networks use batch normalisation,
    so real and fake samples are scored in two passes, each with its own batch statistics. A `clip`
    of 0 is for critics that are bounded by construction.
    """

    clip: float

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
        if self.clip:
            clip_weights(critic, self.clip)


@dataclass(frozen=True)
class GradientPenalty(Method):
    """WGAN-GP: gradient norm 1 between real and fake samples.

    Gulrajani et al. 2017, algorithm 1, lines 6 and 7.
    """

    gp_weight: float

    penalty: ClassVar[Callable[[Critic, Tensor], Tensor]] = staticmethod(gradient_penalty)
    norms: ClassVar[tuple[float, float]] = (1.0, 1.0)
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
        penalty = self.gp_weight * self.penalty(critic, interpolate(real, fake, mix))
        return CriticLoss(penalty - distance, distance, penalty)


@dataclass(frozen=True)
class WassersteinDivergence(Method):
    """WGAN-div: the Wasserstein divergence, without a Lipschitz bound.

    Wu et al. 2018. The paper's f is low on real data. Ours is its negative, so that all methods
    agree in sign. k and p are the paper's, the rates and n_critic those of its authors' code;
    configs/README.md lists where the two differ.
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


@dataclass(frozen=True)
class LipschitzPenalty(GradientPenalty):
    """WGAN-LP: gradient norm at most 1 between real and fake samples.

    Petzka et al. 2018, equation 8, with the rates of WGAN-GP. Unlike WGAN-GP, it allows smaller
    norms, as the optimal f has between points that its transport plan does not pair.
    """

    penalty: ClassVar[Callable[[Critic, Tensor], Tensor]] = staticmethod(one_sided_penalty)
    norms: ClassVar[tuple[float, float]] = (0.0, 1.0)


@dataclass(frozen=True)
class ZeroCentredPenalties(Method):
    """WGAN-R1R2: the Wasserstein loss with R1 and R2; not a distance.

    gamma / 2 (E |grad f(real)|^2 + E |grad f(fake)|^2), in which R1 and R2 are those of Mescheder
    et al. 2018, who use them with the GAN loss. At the optimum, the estimate is twice the penalty
    and proportional to 1 / gamma. The rates are those of R3GAN.
    """

    gamma: float

    per_sample: ClassVar[bool] = True
    settings: ClassVar[dict] = {
        "optimizer": "adam",
        "lr": 2e-4,
        "betas": (0.0, 0.9),
        "n_critic": 1,
        "gamma": 1.0,
        "critic_norm": "none",
    }

    def critic_loss(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> CriticLoss:
        real_scores, fake_scores, r1_r2 = scores_and_r1_r2(critic, real, fake)
        distance = wasserstein_estimate(real_scores, fake_scores)
        penalty = self.gamma / 2 * r1_r2
        return CriticLoss(penalty - distance, distance, penalty)


@dataclass(frozen=True)
class R3GAN(Method):
    """R3GAN: compares real and fake samples in pairs, with R1 and R2.

    Not a Wasserstein distance. Huang et al. 2024, section 2: the critic minimises
    E softplus(f(fake) - f(real)) + gamma / 2 (R1 + R2), the generator
    E softplus(f(real) - f(fake)). Rates, betas and gamma are constant; in the authors' code they
    change, and gamma starts at 0.05 for CIFAR-10 and at 150 for faces of 256x256. The penalties are
    taken after augmentation, theirs before it.
    """

    gamma: float

    per_sample: ClassVar[bool] = True
    relativistic: ClassVar[bool] = True
    settings: ClassVar[dict] = ZeroCentredPenalties.settings

    def critic_loss(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> CriticLoss:
        real_scores, fake_scores, r1_r2 = scores_and_r1_r2(critic, real, fake)
        loss = F.softplus((fake_scores - real_scores).float()).mean()
        penalty = self.gamma / 2 * r1_r2
        margin = wasserstein_estimate(real_scores, fake_scores)
        return CriticLoss(loss + penalty, margin, penalty)

    def generator_loss(self, critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus((critic(real) - critic(fake)).float()).mean()


def estimate_in_one_pass(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    """`wasserstein_estimate` from one pass over both batches, which is faster than two."""
    return wasserstein_estimate(*critic(torch.cat([real, fake])).split([len(real), len(fake)]))


DIVERGENCE_POINTS = {
    "mixed": interpolate,
    "real": lambda real, fake, mix: real,
    "fake": lambda real, fake, mix: fake,
}

METHODS: dict[str, type[Method]] = {
    "wgan": WeightClipping,
    "wgan-gp": GradientPenalty,
    "wgan-lp": LipschitzPenalty,
    "wgan-div": WassersteinDivergence,
    "wgan-r1r2": ZeroCentredPenalties,
    "r3gan": R3GAN,
}
