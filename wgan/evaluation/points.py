"""Metrics of points against a data set."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wgan import plots
from wgan.config import Config
from wgan.data import Dataset
from wgan.data.classes import list_names
from wgan.evaluation import metrics
from wgan.evaluation.critic import report_critic
from wgan.evaluation.samples import (
    MIN_SAMPLES,
    SAMPLES,
    check_enough,
    labelled_samples,
    random_indices,
    sample_run,
    shuffled,
)
from wgan.files import write_whole
from wgan.sampling import TrainedGenerator

PAIRED_POINTS = 2000  # for the exact distance, whose cost grows with the cube


def evaluate_points(
    checkpoint: dict,
    config: Config,
    generator: TrainedGenerator,
    dataset: Dataset,
    count: int,
    seed: int,
    picture: Path,
) -> dict:
    """Metrics of up to `count` of a run's points ("generated") and of the same number of held-out
    real points ("real"), and `picture`. ValueError if there are too few."""
    check_enough(dataset)
    count = min(count, len(dataset) // 2)
    drawn = sample_run(generator, dataset, count, seed)
    parts = split_points(len(dataset), count)
    held_out, reference = (labelled_samples(dataset, indices) for indices in parts)
    modes = None if dataset.modes is None else torch.from_numpy(dataset.modes[parts[1]]).long()
    generated, real = (
        report_points(part.values, reference.values, modes) for part in (drawn, held_out)
    )
    if not generator.class_counts:
        generated |= report_critic(checkpoint, config, held_out.values, drawn.values)
    elif drawn.labels is not None and (drawn.labels >= 0).any():
        # Not the estimate, as that of a critic of classes is not that of all points together.
        for report, part in ((generated, drawn), (real, held_out)):
            report["within_class_wasserstein"] = metrics.within_class_wasserstein(
                part.values, part.labels, reference.values, reference.labels, maximum=PAIRED_POINTS
            )
    result = {"samples": count, "generated": generated, "real": real}
    return result | draw_columns(reference.values, drawn.values, dataset, picture)


def compare_points(source: Dataset, dataset: Dataset, count: int, picture: str | None) -> dict:
    """As `evaluate_points`, for the points of two files. ValueError if their columns differ."""
    scale, other = dataset.standardisation, source.standardisation
    names = [part.columns if part else () for part in (other, scale)]
    if source.sample_shape != dataset.sample_shape or (all(names) and names[0] != names[1]):
        listed = " and ".join(list_names(part) or "without names" for part in names)
        raise ValueError(f"different columns cannot be compared: {listed}")
    check_enough(source, MIN_SAMPLES)
    check_enough(dataset)
    count = min(count, len(source), len(dataset) // 2)
    drawn = source.read(random_indices(len(source), count))
    drawn = other.undo(drawn) if other else drawn
    drawn = scale.apply(drawn) if scale else drawn.float()
    held_out, reference = (dataset.read(part) for part in split_points(len(dataset), count))
    generated, real = (report_points(part, reference, None) for part in (drawn, held_out))
    result = {"samples": count, "generated": generated, "real": real}
    return result | draw_columns(reference, drawn, dataset, picture)


def draw_columns(real: Tensor, fake: Tensor, dataset: Dataset, picture: Path | str | None) -> dict:
    """Write a picture of the columns, in the data's units, if there is a path for it."""
    if not picture:
        return {}
    write_whole(Path(picture), plots.png(plots.vectors(real, fake, dataset.standardisation)))
    return {"columns": str(picture)}


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
    values["density"], values["coverage"] = metrics.density_and_coverage(*pair)
    return values | metrics.column_metrics(*pair)
