"""Distances between two sets of samples, and coverage of classes and modes.

Images are `(N, C, H, W)` uint8, features `(N, D)` float32, points `(N, 2)` float32, all on the
CPU. Distances depend on the number of samples: compare only values for the same number.

Sources
    Heusel et al. 2017       Fréchet distance, arXiv:1706.08500
    Binkowski et al. 2018    kernel distance, arXiv:1801.01401
    Kynkäänniemi et al. 2019 precision and recall, arXiv:1904.06991
    Karras et al. 2018       sliced Wasserstein distance, arXiv:1710.10196, section 5
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
    found = kid_features_to_metric(features, reference, kid_subset_size=size, verbose=False)
    return found[KEY_METRIC_KID_MEAN]


def precision_and_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Fraction of the samples within the manifold of the reference, and the reverse (Kynkäänniemi
    et al. 2019). A manifold is the union of balls that reach each point's third neighbour."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(features, reference, save_cpu_ram=True, verbose=False)
    return float(found["precision"]), float(found["recall"])


def nearest_neighbours(features: Tensor, reference: Tensor, count: int) -> Tensor:
    """Indices of the `count` nearest reference features of each feature: `(N, count)`."""
    return torch.cdist(features, reference).topk(count, largest=False).indices


# ---------------------------------------------------------------- classes


def class_coverage(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Compare the classes that a classifier predicts for samples with the labels of the data.

    `probabilities` `(N, K)` of the samples, `labels` `(M,)` int64 of the data. Returns

    - `classes`: number of classes that occur,
    - `smallest_class`: the rarest class's fraction of the samples,
    - `class_divergence`: Kullback-Leibler divergence, in nats, of the histogram of the samples
      from that of the data, with one sample added to each class,
    - `confident`: fraction of the samples with a probability of at least 95 % for one class.
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


# ---------------------------------------------------------------- images without labels

PATCH_SIZE, PATCHES_PER_IMAGE = 7, 32
DIRECTIONS = 512
SMALLEST_LEVEL = 14  # side of the coarsest level of a pyramid, at least


def sliced_wasserstein(images: Tensor, reference: Tensor, seed: int = 0) -> dict[str, float]:
    """Distance between 7x7 patches on each level of a Laplacian pyramid, times 1000.

    For equally many images `(N, C, H, W)` of one shape. Follows Karras et al. 2018, section 5, with
    a quarter of the patches: 32 per image, each channel normalised, 512 random directions. Coarse
    levels measure shapes, the finest level edges and noise. The keys are the sizes of the levels, such as "28x28".
    """
    rng = torch.Generator().manual_seed(seed)
    found = {}
    levels = zip(laplacian_pyramid(images), laplacian_pyramid(reference), strict=True)
    for level, reference_level in levels:
        patches, reference_patches = (
            random_patches(part, rng) for part in (level, reference_level)
        )
        directions = torch.randn(DIRECTIONS, patches.shape[1], generator=rng)
        directions /= directions.norm(dim=1, keepdim=True)
        distances = [  # several directions at once, as each product reads all patches
            wasserstein_1d((some @ patches.T).numpy(), (some @ reference_patches.T).numpy())
            for some in directions.split(16)
        ]
        size = "x".join(map(str, level.shape[2:]))
        found[size] = 1000 * float(np.mean(distances))
    return found


def wasserstein_1d(values: np.ndarray, others: np.ndarray) -> float:
    """Wasserstein-1 distance of equally many numbers, the mean over the rows of `(K, N)`: pairing
    them in order costs least."""
    return np.abs(np.sort(values) - np.sort(others)).mean()


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Bands of detail, the finest first, and the remaining coarse image.

    Each level has half the size of the one before, as long as the sides are even and the halves at
    least 14 pixels.
    """
    levels, current = [], to_float_images(images)
    while min(current.shape[2:]) >= 2 * SMALLEST_LEVEL and not any(
        side % 2 for side in current.shape[2:]
    ):
        half = F.avg_pool2d(current, 2)
        levels.append(current - F.interpolate(half, scale_factor=2, mode="bilinear"))
        current = half
    return [*levels, current]


def random_patches(level: Tensor, rng: torch.Generator) -> Tensor:
    """Patches at random positions of each image, with each channel normalised over all patches:
    `(N, C, H, W)` to `(N * 32, 7 * 7 * C)`."""
    count, _, height, width = level.shape
    side = min(PATCH_SIZE, height, width)
    position = (count, PATCHES_PER_IMAGE, 1, 1)
    rows = torch.randint(height - side + 1, position, generator=rng)
    columns = torch.randint(width - side + 1, position, generator=rng)
    rows = rows + torch.arange(side).view(-1, 1)
    columns = columns + torch.arange(side)
    images = torch.arange(count).view(-1, 1, 1, 1)
    patches = level.permute(0, 2, 3, 1)[images, rows, columns].flatten(0, 1)  # (N * 32, 7, 7, C)
    mean, deviation = patches.mean((0, 1, 2)), patches.std((0, 1, 2)).clamp(min=1e-8)
    return ((patches - mean) / deviation).flatten(1)


# ---------------------------------------------------------------- points


def mode_coverage(points: Tensor, data: Tensor, labels: Tensor) -> dict[str, float]:
    """Coverage of a mixture of Gaussians, whose components are the classes of the data.

    `points` `(N, 2)`, `data` `(M, 2)`, `labels` `(M,)` int64. Returns

    - `modes`: number of modes with a point within three standard deviations,
    - `modes_in_all`: number of modes of the data,
    - `good_samples`: fraction of the points within three standard deviations of a mode.
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
    }


def wasserstein_distance(points: Tensor, others: Tensor) -> float:
    """Exact Wasserstein-1 distance between equally many points: the mean Euclidean distance of the
    cheapest pairing. Its cost grows with the cube of the number of points."""
    from scipy.optimize import linear_sum_assignment

    costs = torch.cdist(points.double(), others.double()).numpy()
    return float(np.mean(costs[linear_sum_assignment(costs)]))
