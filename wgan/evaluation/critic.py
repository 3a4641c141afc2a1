"""What the critic of a run says about the distance of its samples from the data."""

import torch
from torch import Tensor

from utils import corrected_estimate, wasserstein_estimate
from wgan.config import Config
from wgan.data import to_float_images
from wgan.evaluation.metrics import c_transform_bound
from wgan.state import build_networks, load_weights

SCORED = 2000  # samples; the lower bound compares all pairs


@torch.no_grad()
def report_critic(checkpoint: dict, config: Config, real: Tensor, fake: Tensor) -> dict[str, float]:
    """The critic's estimate of the distance of up to `SCORED` real and fake points `(N, D)` or
    images `(N, C, H, W)` uint8, and a lower bound that needs no Lipschitz critic. Of images also
    per pixel, over sqrt(C H W), for values in [-1, 1]. Empty for a checkpoint without critic."""
    if "critic" not in checkpoint:
        return {}
    real, fake = (to_float_images(part[:SCORED]) for part in (real, fake))
    _, critic = build_networks(config, tuple(real.shape[1:]))
    load_weights(critic, checkpoint["critic"])
    scores = [torch.cat(list(map(critic, part.split(500)))) for part in (real, fake)]
    estimate = wasserstein_estimate(*scores).item()
    values = {"critic_estimate": estimate}
    if weight := config.applicable().get("gp_weight"):
        values["corrected_estimate"] = corrected_estimate(estimate, weight)
    bound = c_transform_bound(scores[0], real.flatten(1), fake.flatten(1))
    values["critic_lower_bound"] = bound
    if real.dim() == 4:
        side = real[0].numel() ** 0.5
        values |= {f"{name}_per_pixel": value / side for name, value in values.items()}
    return values
