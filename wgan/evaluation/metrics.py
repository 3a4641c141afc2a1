"""How good samples are, without a download.

Images are bytes `(N, C, H, W)`, features float32 `(N, D)`, points float32 `(N, 2)`. Distances
are between two sets of samples and depend on how many there are: compare figures of the same
count only. The kernel distance is unbiased, and may be a little below 0.

Sources
    Heusel et al. 2017       Fréchet distance, arXiv:1706.08500
    Binkowski et al. 2018    kernel distance, arXiv:1801.01401
    Kynkäänniemi et al. 2019 precision and recall, arXiv:1904.06991
    Karras et al. 2018       sliced Wasserstein distance, arXiv:1710.10196, section 5
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

CHUNK = 500  # images at a time

# ---------------------------------------------------------------- features


class Classifier(nn.Module):
    """A small convolutional network: images in [-1, 1] to class scores, by way of 128 features."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU()),
        )
        self.scores = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(self.features(images))


def train_classifier(
    images: Tensor,
    labels: Tensor,
    classes: int,
    device: torch.device,
    epochs: int = 4,
    seed: int = 0,
) -> Classifier:
    """A classifier of those bytes `(N, C, H, W)` and classes `(N,)`, in evaluation mode."""
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        classifier = Classifier(images.shape[1], classes)
    classifier.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(classifier.parameters())
    orders = [torch.randperm(len(images), generator=random) for _ in range(epochs)]
    batches = [batch for order in orders for batch in order.split(128) if len(batch) > 1]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=len(batches))
    for batch in tqdm(batches, "training the classifier", delay=2, leave=False, disable=None):
        scores = classifier(to_floats(images[batch], device))
        loss = F.cross_entropy(scores, labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval().requires_grad_(False)


def classify(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(N, 128)` and probabilities of classes `(N, K)`, on the CPU."""
    device = next(classifier.parameters()).device
    features = in_chunks(lambda part: classifier.features(to_floats(part, device)), images)
    return features, classifier.scores.cpu()(features).softmax(1)


def inception_features(images: Tensor, device: torch.device) -> Tensor:
    """Inception's 2048 pool features, with the weights that FID is defined by (91 MB, fetched
    once); grey images become three equal channels. OSError where the weights cannot be had."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device).eval()
    coloured = images.expand(-1, 3, -1, -1)
    return in_chunks(lambda part: network(part.to(device))[0], coloured)


def to_floats(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).float() / 127.5 - 1


@torch.no_grad()
def in_chunks(function, images: Tensor) -> Tensor:
    parts = tqdm(images.split(CHUNK), "features", delay=2, leave=False, disable=None)
    return torch.cat([function(part).float().cpu() for part in parts])


# ---------------------------------------------------------------- distances between features


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Between the Gaussians of equal mean and covariance (Heusel et al. 2017, equation 6)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(part.double()) for part in (features, reference)]
    return max(0.0, *fid_statistics_to_metric(*statistics, verbose=False).values())


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """The squared maximum mean discrepancy of a cubic kernel, over 100 subsets of up to 1000."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(1000, len(features), len(reference))
    found = kid_features_to_metric(features, reference, kid_subset_size=size, verbose=False)
    return found[KEY_METRIC_KID_MEAN]


def precision_and_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """The share of samples among the real ones, and of real ones among the samples, in balls
    that reach each point's third neighbour."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(features, reference, save_cpu_ram=True, verbose=False)
    return float(found["precision"]), float(found["recall"])


def nearest_neighbours(features: Tensor, reference: Tensor, count: int) -> Tensor:
    """The numbers of the nearest `count` of `reference` for each of `features`: `(N, count)`."""
    return torch.cdist(features, reference).topk(count, largest=False).indices


# ---------------------------------------------------------------- classes


def class_coverage(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """How the classes that a classifier sees in samples compare with the data's labels.

    `classes`: how many appear; `smallest_class`: the rarest one's share of the samples;
    `class_divergence`: Kullback-Leibler divergence of their histogram from the data's, in
    nats, with one sample added to each class; `confident`: the share of samples of whose
    class the classifier is at least 95 % sure.
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


def sliced_wasserstein(images: Tensor, reference: Tensor, seed: int = 0) -> dict[str, float]:
    """Between 7x7 patches on each level of a Laplacian pyramid, times 1000.

    Karras et al. 2018, section 5: 128 patches an image, each channel normalised, 512 random
    directions. A coarse level tells about shapes, the finest about edges and noise. Keys
    are the levels' sizes, "28x28".
    """
    random = torch.Generator().manual_seed(seed)
    found = {}
    for one, other in zip(laplacian_pyramid(images), laplacian_pyramid(reference), strict=True):
        patches = [descriptors(level, random) for level in (one, other)]
        directions = torch.randn(512, patches[0].shape[1], generator=random)
        directions /= directions.norm(dim=1, keepdim=True)
        distances = [
            distance_on_a_line(*((part @ direction).numpy() for part in patches))
            for direction in directions
        ]
        size = "x".join(map(str, one.shape[2:]))
        found[size] = 1000 * float(np.mean(distances))
    return found


def distance_on_a_line(one: np.ndarray, other: np.ndarray) -> float:
    """Wasserstein-1 of equally many numbers: pairing them in order costs least."""
    return np.abs(np.sort(one) - np.sort(other)).mean()


PATCH, PATCHES = 7, 128  # side, and how many of each image
SMALLEST_LEVEL = 14


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Bands of detail, finest first, and what is left at last; each half the size of the one
    before, as long as sides are even and at least 14 when halved."""
    levels, current = [], images.float() / 127.5 - 1
    while min(current.shape[2:]) >= 2 * SMALLEST_LEVEL and not any(
        n % 2 for n in current.shape[2:]
    ):
        half = F.avg_pool2d(current, 2)
        levels.append(current - F.interpolate(half, scale_factor=2, mode="bilinear"))
        current = half
    return [*levels, current]


def descriptors(level: Tensor, random: torch.Generator) -> Tensor:
    """Patches at random places of every image, each channel normalised over all: `(N * P, D)`."""
    count, _, height, width = level.shape
    side = min(PATCH, height, width)
    rows = torch.randint(height - side + 1, (count, PATCHES, 1, 1), generator=random)
    columns = torch.randint(width - side + 1, (count, PATCHES, 1, 1), generator=random)
    rows = rows + torch.arange(side).view(-1, 1)
    columns = columns + torch.arange(side)
    which = torch.arange(count).view(-1, 1, 1, 1)
    patches = level.permute(0, 2, 3, 1)[which, rows, columns].flatten(0, 1)  # (N * P, s, s, C)
    mean, deviation = patches.mean((0, 1, 2)), patches.std((0, 1, 2)).clamp(min=1e-8)
    return ((patches - mean) / deviation).flatten(1)


# ---------------------------------------------------------------- points


def mode_coverage(points: Tensor, data: Tensor, labels: Tensor) -> dict[str, float]:
    """For a mixture of Gaussians, whose modes are the labels' classes.

    `modes`: how many have a sample within three standard deviations, of `modes_in_all`;
    `good_samples`: the share of samples that are so near to a mode.
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
    """Exact, between two sets of equally many points: the cheapest way to pair them, by
    Euclidean distance (Wasserstein-1)."""
    from scipy.optimize import linear_sum_assignment

    costs = torch.cdist(points.double(), others.double()).numpy()
    return float(np.mean(costs[linear_sum_assignment(costs)]))
