"""Metrics of points against a data set."""

import numpy as np
import torch
from torch import Tensor

from utils import corrected_estimate, wasserstein_estimate
from wgan.config import Config
from wgan.data import Dataset
from wgan.evaluation import metrics
from wgan.evaluation.samples import SAMPLES, check_enough, labelled_samples, sample_run, shuffled
from wgan.sampling import TrainedGenerator
from wgan.state import build_networks, load_weights

PAIRED_POINTS = 2000  # for the exact distance, whose cost grows with the cube


def evaluate_points(
    checkpoint: dict,
    config: Config,
    generator: TrainedGenerator,
    dataset: Dataset,
    count: int,
    seed: int,
) -> dict:
    """Metrics of up to `count` of a run's points ("generated") and of the same number of held-out
    real points ("real"). ValueError if there are too few."""
    check_enough(dataset)
    count = min(count, len(dataset) // 2)
    drawn = sample_run(generator, dataset, count, seed)
    parts = split_points(len(dataset), count)
    held_out, reference = (labelled_samples(dataset, indices) for indices in parts)
    modes = None if dataset.modes is None else torch.from_numpy(dataset.modes[parts[1]]).long()
    generated, real = (
        report_points(part.values, reference.values, modes) for part in (drawn, held_out)
    )
    if not generator.class_names:
        estimate = critic_estimate(checkpoint, config, held_out.values, drawn.values)
        generated["critic_estimate"] = estimate
        if weight := config.applicable().get("gp_weight"):
            generated["corrected_estimate"] = corrected_estimate(estimate, weight)
    elif drawn.labels is not None and (drawn.labels >= 0).any():
        # Not the estimate, as that of a critic of classes is not that of all points together.
        for report, part in ((generated, drawn), (real, held_out)):
            report["within_class_wasserstein"] = metrics.within_class_wasserstein(
                part.values, part.labels, reference.values, reference.labels, maximum=PAIRED_POINTS
            )
    return {"samples": count, "generated": generated, "real": real}


def split_points(total: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices of `total` points into `count` held-out ones and up to max(count, SAMPLES)
    others, the reference. The order is random with a fixed seed, because tables are often sorted
    and the metrics use the first few thousand points."""
    order = shuffled(total)
    return order[:count], order[count : count + max(count, SAMPLES)]


def report_points(points: Tensor, reference: Tensor, modes: Tensor | None) -> dict[str, float]:
    """All available metrics of points `(N, D)` against reference points `(M, D)`.

    `modes` `(M,)` int64 are those of the reference, if it is a mixture of Gaussians. All but their
    coverage use up to 2,000 of the points, and a random subset of the reference of the same size.
    """
    values = {} if modes is None else metrics.mode_coverage(points, reference, modes)
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))
    count = min(PAIRED_POINTS, len(points), len(reference))
    pair = points[:count], reference[order[:count]]
    values["wasserstein_distance"] = metrics.wasserstein_distance(*pair)
    values["energy_distance"] = metrics.energy_distance(*pair)
    values["precision"], values["recall"] = metrics.precision_and_recall(*pair)
    return values


def critic_estimate(checkpoint: dict, config: Config, real: Tensor, fake: Tensor) -> float:
    """E f(real) - E f(fake): the estimate by the critic f of a checkpoint, for samples
    `(N, ...)`."""
    _, critic = build_networks(config, tuple(real.shape[1:]))
    load_weights(critic, checkpoint["critic"])
    with torch.no_grad():
        return wasserstein_estimate(critic(real), critic(fake)).item()
