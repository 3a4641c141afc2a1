"""Metrics of points against a data set."""

import torch
from torch import Tensor, nn

from utils import unbiased_estimate, wasserstein_estimate
from wgan.config import Config
from wgan.data import Dataset
from wgan.evaluation import metrics
from wgan.evaluation.samples import sample_run
from wgan.state import build_networks

PAIRED_POINTS = 2000  # for the exact distance, whose cost grows with the cube


def evaluate_points(
    checkpoint: dict,
    config: Config,
    generator: nn.Module,
    dataset: Dataset,
    samples: int,
    seed: int,
) -> dict:
    """Metrics of a run's points ("generated") and of held-out real points ("real")."""
    count = min(samples, len(dataset) // 2)
    drawn = sample_run(generator, dataset, count, seed)
    points = drawn.values
    data = dataset.read(torch.arange(len(dataset)))
    reference, held_out = data[:-count], data[-count:]
    labels = None if dataset.labels is None else torch.from_numpy(dataset.labels).long()
    # Labels without names are the components of a mixture.
    modes = None if labels is None or dataset.class_names else labels[:-count]
    generated, real = (report_points(part, reference, modes) for part in (points, held_out))
    if drawn.labels is None:
        estimate = critic_estimate(checkpoint, config, held_out, points)
        generated["critic_estimate"] = estimate
        if weight := config.applicable().get("gp_weight"):
            generated["critic_estimate_unbiased"] = unbiased_estimate(estimate, weight)
    else:  # the estimate of a critic of classes is not that of all samples together
        pairs = (generated, points, drawn.labels), (real, held_out, labels[-count:])
        for report, part, classes in pairs:
            report["within_class_wasserstein"] = metrics.within_class_wasserstein(
                part, classes, reference, labels[:-count], most=PAIRED_POINTS
            )
    return {"samples": count, "generated": generated, "real": real}


def report_points(
    points: Tensor, reference: Tensor, modes: Tensor | None, seed: int = 0
) -> dict[str, float]:
    """All available metrics of points `(N, 2)` against reference points `(M, 2)`.

    `modes` `(M,)` int64 are those of the reference, if it is a mixture of Gaussians. The
    exact distance uses up to 2,000 of the points, and of the reference drawn with `seed`.
    """
    found: dict[str, float] = {}
    if modes is not None:
        found |= metrics.mode_coverage(points, reference, modes)
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))
    count = min(PAIRED_POINTS, len(points), len(reference))
    found["wasserstein_distance"] = metrics.wasserstein_distance(
        points[:count], reference[order[:count]]
    )
    return found


def critic_estimate(checkpoint: dict, config: Config, real: Tensor, fake: Tensor) -> float:
    """E f(real) - E f(fake): the estimate by the critic f of a checkpoint, for samples
    `(N, ...)`."""
    _, critic = build_networks(config, tuple(real.shape[1:]))
    try:
        critic.load_state_dict(checkpoint["critic"])
    except Exception as error:  # a foreign checkpoint may contain anything
        raise ValueError(f"the critic in the checkpoint does not fit: {error}") from error
    with torch.no_grad():
        return wasserstein_estimate(critic(real), critic(fake)).item()
