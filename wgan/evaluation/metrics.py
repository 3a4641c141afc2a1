"""Distances between two sets of samples, and coverage of classes and modes.

Images are `(N, C, H, W)` uint8, features `(N, D)` float32, points `(N, 2)` float32, all on the
CPU. Distances depend on the number of samples: compare only values for the same number.

Sources
    Heusel et al. 2017       Fréchet distance, arXiv:1706.08500
    Binkowski et al. 2018    kernel distance, arXiv:1801.01401
    Kynkäänniemi et al. 2019 precision and recall, arXiv:1904.06991
    Naeem et al. 2020        density and coverage, arXiv:2002.09797
    Salimans et al. 2016     inception score, arXiv:1606.03498
    Székely and Rizzo 2013   energy distance, doi:10.1016/j.jspi.2013.03.018
    Mallasto et al. 2019     estimates by the c-transform, arXiv:1910.03875
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wgan.data import to_float_images

# ---------------------------------------------------------------- distances between features


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Distance between Gaussians with the mean and covariance of each set (Heusel et al. 2017,
    equation 6)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(part.double()) for part in (features, reference)]
    return max(0.0, *fid_statistics_to_metric(*statistics, verbose=False).values())


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Squared maximum mean discrepancy of a cubic kernel, the mean over 100 subsets of up to 1,000
    features (Binkowski et al. 2018). The estimate is unbiased, so it may be slightly negative."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(1000, len(features), len(reference))
    values = kid_features_to_metric(features, reference, kid_subset_size=size, verbose=False)
    return values[KEY_METRIC_KID_MEAN]


def precision_and_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Fraction of the samples within the manifold of the reference, and the reverse (Kynkäänniemi
    et al. 2019). A manifold is the union of balls that reach each point's third neighbour."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    values = prc_features_to_metric(features, reference, save_cpu_ram=True, verbose=False)
    return float(values["precision"]), float(values["recall"])


def density_and_coverage(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Density: the mean number of balls around reference points that contain a sample, over 5.
    Coverage: the fraction of these balls that contain a sample (Naeem et al. 2020, equation 2).

    A ball reaches the fifth neighbour of its centre in the reference. For samples of the same
    distribution the expected values are 1 and about 0.97; density can exceed 1.
    """
    count = min(5, len(reference) - 1)
    inside, covered = 0, 0
    for centres in reference.split(1000):
        nearest = torch.cdist(centres, reference).topk(count + 1, largest=False).values
        contains = torch.cdist(centres, features) < nearest[:, -1:]  # the first is the centre
        inside, covered = inside + contains.sum().item(), covered + contains.any(1).sum().item()
    return inside / (count * len(features)), covered / len(reference)


def inception_score(probabilities: Tensor) -> float:
    """Exponential of the mean divergence of each image's class probabilities `(N, K)` from their
    mean: the mean over 10 parts of the samples (Salimans et al. 2016, section 4)."""
    scores = []
    for part in probabilities.double().chunk(10):
        mean = part.mean(0)
        scores.append((torch.xlogy(part, part) - torch.xlogy(part, mean)).sum(1).mean().exp())
    return torch.stack(scores).mean().item()


def nearest_neighbours(features: Tensor, reference: Tensor, count: int) -> Tensor:
    """Indices of the `count` nearest reference features of each feature: `(N, count)`."""
    return torch.cdist(features, reference).topk(count, largest=False).indices


def nearest_distance(images: Tensor, reference: Tensor) -> float:
    """The mean distance of up to 2,000 images from the nearest reference image: the root mean
    square of pixels in [-1, 1], of images reduced to at most 32x32."""
    size = [min(32, side) for side in images.shape[2:]]
    pixels = [
        F.adaptive_avg_pool2d(to_float_images(part), size).flatten(1)
        for part in (images[:2000], reference)
    ]
    return torch.cdist(*pixels).min(1).values.mean().item() / pixels[0].shape[1] ** 0.5


# ---------------------------------------------------------------- classes


def class_coverage(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Compare the classes that a classifier predicts for samples with the labels of the data.

    `probabilities` `(N, K)` of the samples, `labels` `(M,)` int64 of the data. Returns

    - `classes`: number of classes that occur,
    - `smallest_class`: the rarest class's fraction of the samples,
    - `class_divergence`: Kullback-Leibler divergence, in nats, of the histogram of the samples
      from that of the data, with one sample added to each class,
    - `confident`: fraction of the samples with a probability of at least 95% for one class.
    """
    classes = probabilities.shape[1]
    counts = probabilities.argmax(1).bincount(minlength=classes)
    samples, data = (
        (histogram + 1.0) / (histogram + 1.0).sum()
        for histogram in (counts, labels.bincount(minlength=classes))
    )
    return {
        "classes": int((counts > 0).sum()),
        "smallest_class": (counts.min() / counts.sum()).item(),
        "class_divergence": (samples * (samples / data).log()).sum().item(),
        "confident": (probabilities.max(1).values >= 0.95).float().mean().item(),
    }


def class_agreement(probabilities: Tensor, labels: Tensor) -> float:
    """Fraction of the samples whose most probable class is the one they were generated for.

    Probabilities `(N, K)` and labels `(N,)` int64; samples with a negative label do not count.
    """
    return (probabilities.argmax(1) == labels)[labels >= 0].float().mean().item()


def within_class_frechet(
    features: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor
) -> float:
    """Fréchet distance within a class, the mean over the classes of the reference.

    Features `(N, D)` and labels `(N,)` int64; a negative label is no class. NaN if a class has
    fewer than two samples in either set, as those have no covariance.
    """
    distances = []
    for label in reference_labels[reference_labels >= 0].unique():
        parts = features[labels == label], reference[reference_labels == label]
        if min(map(len, parts)) < 2:
            return float("nan")
        distances.append(frechet_distance(*parts))
    return float(np.mean(distances))


# ---------------------------------------------------------------- points


def mode_coverage(points: Tensor, data: Tensor, labels: Tensor) -> dict[str, float]:
    """Coverage of a mixture of Gaussians, whose components are the classes of the data.

    `points` `(N, 2)`, `data` `(M, 2)`, `labels` `(M,)` int64. Returns

    - `modes`: number of modes with a point within three standard deviations,
    - `modes_in_all`: number of modes of the data,
    - `good_samples`: fraction of the points within three standard deviations of a mode,
    - `mode_divergence`: `divergence` of the points nearest to each mode from the data.
    """
    classes = int(labels.max()) + 1
    centres = torch.stack([data[labels == label].mean(0) for label in range(classes)])
    deviation = (data - centres[labels]).square().mean().sqrt()
    distances, modes = torch.cdist(points, centres).min(1)
    good = distances <= 3 * deviation
    return {
        "modes": len(modes[good].unique()),
        "modes_in_all": classes,
        "good_samples": good.float().mean().item(),
        "mode_divergence": divergence(modes.bincount(minlength=classes), labels.bincount()),
    }


def divergence(counts: Tensor, reference: Tensor) -> float:
    """Kullback-Leibler divergence, in nats, of the histogram `counts` `(K,)` of samples from
    `reference` `(K,)`, where each bin is positive. Of N samples of the same law it is about
    (K - 1) / 2N."""
    samples, data = (part.double() / part.sum() for part in (counts, reference))
    return torch.xlogy(samples, samples / data).sum().item()


def within_class_wasserstein(
    points: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, maximum: int
) -> float:
    """Exact Wasserstein-1 distance within a class, the mean over the classes that both have.

    Points `(N, D)` and labels `(N,)` int64; a negative label is no class. Up to `maximum` points of
    each class are paired. NaN if no class is in both.
    """
    distances = []
    for label in reference_labels[reference_labels >= 0].unique():
        parts = points[labels == label], reference[reference_labels == label]
        if count := min(maximum, *map(len, parts)):
            distances.append(wasserstein_distance(*(part[:count] for part in parts)))
    return float(np.mean(distances)) if distances else float("nan")


def column_metrics(points: Tensor, others: Tensor) -> dict[str, float]:
    """The Wasserstein-1 distance within a column of equally many points `(N, D)`, as the mean over
    the columns and the maximum, and the mean difference between correlations of two columns."""
    distances = (points.sort(0).values - others.sort(0).values).abs().mean(0)
    values = {"marginal_distance": distances.mean(), "worst_marginal_distance": distances.max()}
    if (columns := points.shape[1]) > 1:
        correlations = [part.T.corrcoef().nan_to_num() for part in (points, others)]  # constants
        differences = (correlations[0] - correlations[1]).abs().sum()
        values["correlation_difference"] = differences / (columns * (columns - 1))
    return {name: value.item() for name, value in values.items()}


def wasserstein_distance(points: Tensor, others: Tensor) -> float:
    """Exact Wasserstein-1 distance between equally many points: the mean Euclidean distance of the
    cheapest pairing. Its cost grows with the cube of the number of points."""
    from scipy.optimize import linear_sum_assignment

    costs = torch.cdist(points.double(), others.double()).numpy()
    return float(np.mean(costs[linear_sum_assignment(costs)]))


def c_transform_bound(real_scores: Tensor, real: Tensor, fake: Tensor) -> float:
    """Lower bound of the Wasserstein-1 distance of two sets, by any critic f at all, Lipschitz or
    not: mean of f(x) + mean over y of min over x of (|x - y| - f(x)) (Mallasto et al. 2019).

    `real_scores` `(N,)` are f(x); `real` x `(N, D)`; `fake` y `(M, D)`. The sum of the potentials
    f(x) and min(...) never exceeds |x - y|, which is the dual of optimal transport.
    """
    scores = real_scores.double()
    costs = torch.cdist(fake.double(), real.double())
    return (scores.mean() + (costs - scores).min(1).values.mean()).item()


def energy_distance(points: Tensor, others: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| for points x and others y (Székely and Rizzo 2013); 0 only
    for equal distributions. The estimate is unbiased, so it may be slightly negative."""
    points, others = points.double(), others.double()
    within = torch.pdist(points).mean() + torch.pdist(others).mean()
    return (2 * torch.cdist(points, others).mean() - within).item()
