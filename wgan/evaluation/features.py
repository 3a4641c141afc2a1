"""Features in which images are compared: of Inception, a random network or a small classifier."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from wgan.checkpoints import has_digest, save_with_digest
from wgan.data import Dataset, opaque, to_float_images
from wgan.errors import one_line
from wgan.evaluation.metrics import inception_score
from wgan.evaluation.samples import Samples
from wgan.files import replacing, try_to_write

CLASSIFIER_VERSION = 2  # increase it if the classifier or its training changes
INCEPTION_FILES = "checkpoints/weights-inception-2015-12-05*.pth"
CHUNK = 500  # images computed at a time
FAINT = 0.01  # magnitude of a response, in [-1, 1], below which a random feature is insensitive


class Features:
    """Maps images `(N, C, H, W)` uint8 to features `(N, D)` float32 on the CPU.

    Values computed from features of the same name are comparable.
    """

    name: str
    learned = False  # from the data set, of which few samples are then unseen
    similar_images_are_near = True

    def __call__(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def probabilities(self, features: Tensor) -> Tensor | None:
        """Probabilities `(N, K)` of the data set's K classes; None if the features have none."""
        return None

    def metrics(self, features: Tensor) -> dict[str, float]:
        """Metrics that exist for these features alone."""
        return {}


@torch.no_grad()
def in_chunks(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    parts = tqdm(images.split(CHUNK), "features", delay=2, leave=False, disable=None)
    return torch.cat([function(part).float().cpu() for part in parts])


# ---------------------------------------------------------------- Inception


class InceptionFeatures(Features):
    """The 2048 pooled features of the Inception network that defines FID (Heusel et al. 2017).

    The weights (91 MB) are downloaded once. ValueError if that fails or if they are corrupt.
    """

    name = "Inception"

    def __init__(self, device: torch.device):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except Exception as error:  # a corrupt file may contain anything
            raise ValueError(
                f"Inception's weights cannot be read in or downloaded to {torch.hub.get_dir()} "
                f"({one_line(error)}): remove {INCEPTION_FILES} there if it is corrupt, or use "
                "--features random"
            ) from error
        self.network, self.device = network.to(device).eval(), device

    def __call__(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` uint8 to `(N, 2048)`; grey images become three equal channels, and
        transparent ones have a white background."""

        def compute(part: Tensor) -> Tensor:
            colours = torch.from_numpy(opaque(part.numpy())).expand(-1, 3, -1, -1)
            return self.network(colours.to(self.device))[0]

        return in_chunks(compute, images)

    def metrics(self, features: Tensor) -> dict[str, float]:
        """The inception score, from probabilities `(N, 1008)` of ImageNet's classes, without the
        bias, as in the original."""
        probabilities = F.linear(features, self.network.fc.weight.cpu()).softmax(1)
        return {"inception_score": inception_score(probabilities)}


# ---------------------------------------------------------------- a random network


class RandomNetwork(nn.Module):
    """Random filters at four scales, after scattering networks (Bruna and Mallat 2013,
    arXiv:1203.1513).

    Each scale filters the one before, takes the magnitude and halves the image. Filters have a mean
    of zero, so they respond to edges and texture alone. The features are, in logarithms, the mean
    and the standard deviation of each response over the image: blurring shifts them alike for
    strong and for faint edges. To these are added each colour's mean and standard deviation.
    """

    def __init__(self, channels: int, width: int = 16, scales: int = 4):
        super().__init__()
        inputs = [channels] + [width] * (scales - 1)
        self.layers = nn.ModuleList(
            nn.Conv2d(i, width, 3, padding=1, padding_mode="replicate", bias=False) for i in inputs
        )
        for layer in self.layers:
            layer.weight.data -= layer.weight.data.mean((2, 3), keepdim=True)
            layer.weight.data /= layer.weight.data.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` in [-1, 1] to `(N, 2 * C + 2 * scales * width)`."""
        features, values = list(moments(images)), images
        for layer in self.layers:
            values = layer(values).abs()
            features += [(moment + FAINT).log() for moment in moments(values)]
            values = F.avg_pool2d(values, 2, ceil_mode=True)
        return torch.cat(features, 1)


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over each image and channel: twice `(N, C)`."""
    return values.mean((2, 3)), values.std((2, 3), correction=0)


class RandomFeatures(Features):
    """Features of a network with fixed random weights: they need no labels and no training, and
    do not depend on the data. They change much with little noise."""

    similar_images_are_near = False

    def __init__(self, channels: int, device: torch.device, seed: int = 0):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            network = RandomNetwork(channels)
        self.name = f"random-{hash_of_weights(network)}"
        self.network, self.device = network.to(device).requires_grad_(False), device

    def __call__(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` uint8 to `(N, 128 + 2 * C)`."""
        return in_chunks(lambda part: self.network(to_float_images(part.to(self.device))), images)


# ---------------------------------------------------------------- a classifier


class Classifier(nn.Module):
    """A small convolutional network: images in [-1, 1] to 128 features, and to class scores."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU()),
        )
        self.scores = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(self.features(images))


class ClassifierFeatures(Features):
    """The features of a trained classifier, on the device of its weights."""

    learned = True

    def __init__(self, classifier: Classifier, name: str):
        self.classifier, self.name = classifier, name

    def __call__(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` uint8 to `(N, 128)`."""
        device = self.classifier.scores.weight.device
        return in_chunks(
            lambda part: self.classifier.features(to_float_images(part.to(device))), images
        )

    def probabilities(self, features: Tensor) -> Tensor:
        """Class probabilities `(N, K)` from features `(N, 128)`, on the CPU."""
        scores = self.classifier.scores
        return F.linear(features, scores.weight.cpu(), scores.bias.cpu()).softmax(1)


def train_classifier(
    dataset: Dataset, indices: np.ndarray, device: torch.device, epochs: int = 3, seed: int = 0
) -> Classifier:
    """Train a classifier on the images of a data set with these indices, all of which have a class.

    Returns it in evaluation mode, on `device`. The result is the same each time on a CPU.
    """
    indices, labels = torch.from_numpy(indices), torch.from_numpy(dataset.labels[indices]).long()
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        classifier = Classifier(dataset.sample_shape[0], int(dataset.labels.max()) + 1)
    classifier.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(classifier.parameters())
    orders = [torch.randperm(len(indices), generator=rng) for _ in range(epochs)]
    batches = [batch for order in orders for batch in order.split(128) if len(batch) > 1]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=len(batches))
    for batch in tqdm(batches, "training the classifier", delay=2, leave=False, disable=None):
        images = dataset.read(indices[batch])
        scores = classifier(to_float_images(images.to(device)))
        loss = F.cross_entropy(scores, labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval().requires_grad_(False)


def describe_chance(features: Features, held_out: Samples) -> str | None:
    """The accuracy of a classifier on images that it has not seen, if it is not better than chance
    by two standard errors; None if it is.

    Images without a class, whose label is negative, do not count. The accuracy is the mean over the
    classes, as the largest class alone could give a high one.
    """
    has_class = held_out.labels >= 0
    images, labels = held_out.values[has_class], held_out.labels[has_class]
    if not len(labels):
        return "none of the held-out real images has a class"
    correct = features.probabilities(features(images)).argmax(1) == labels
    counts = labels.bincount()  # (K,)
    hits, counts = labels.bincount(correct.float())[counts > 0], counts[counts > 0]
    accuracy, chance = (hits / counts).mean().item(), 1 / len(counts)
    error = (chance * (1 - chance) / counts).sum().sqrt().item() / len(counts)
    if accuracy > chance + 2 * error:
        return None
    return (
        f"the classifier's accuracy on {len(labels):,} held-out real images is {accuracy:.1%}, "
        f"averaged over the classes, which is no better than chance ({chance:.1%})"
    )


# ---------------------------------------------------------------- its cache


def cached_classifier(
    dataset: Dataset, indices: np.ndarray, data_root: str, device: torch.device
) -> ClassifierFeatures:
    """A classifier of the samples with a class and these indices, trained once and kept in
    `data_root`.

    Its name contains a hash of the data and one of the weights, so features with the same name
    are comparable.
    """
    indices = indices[dataset.labels[indices] >= 0]
    stem = f"classifier-{hash_of_data(dataset, indices)}"
    file = Path(data_root) / f"{stem}.pt"
    classifier = load_classifier(file, dataset)
    if classifier is None:
        print(
            f"training a classifier on {len(indices):,} images, once per data set", file=sys.stderr
        )
        # On CUDA, the backward pass of the pooling has no deterministic algorithm.
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
        try:
            classifier = train_classifier(dataset, indices, device)
        finally:
            torch.use_deterministic_algorithms(deterministic)
        try_to_write("classifier, which must be trained again", save_classifier, file, classifier)
    # One layout, trained just now or not: another one rounds differently.
    classifier.to(device, memory_format=torch.channels_last)
    return ClassifierFeatures(classifier, f"{stem}-{hash_of_weights(classifier)}")


def load_classifier(file: Path, dataset: Dataset) -> Classifier | None:
    """The classifier in a file; None if the file is missing or cannot be read."""
    classifier = Classifier(dataset.sample_shape[0], int(dataset.labels.max()) + 1)
    try:
        if not has_digest(file):  # of weights, torch.load notices no changed bit
            raise ValueError("its checksum is missing or wrong")
        state = torch.load(file, map_location="cpu", weights_only=True)
        classifier.load_state_dict(state)
    except FileNotFoundError:
        return None
    except Exception as error:  # a corrupt file may contain anything
        print(f"{file} cannot be read and will be replaced ({one_line(error)})", file=sys.stderr)
        return None
    return classifier.eval().requires_grad_(False)


def save_classifier(file: Path, classifier: Classifier) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        save_with_digest(classifier.state_dict(), stream)


def hash_of_data(dataset: Dataset, indices: np.ndarray) -> str:
    shape = (len(indices), *dataset.sample_shape)
    digest = hashlib.sha256(f"{CLASSIFIER_VERSION} {shape}".encode())
    for start in range(0, len(indices), 1000):
        digest.update(dataset.read(indices[start : start + 1000]).numpy())
    digest.update(np.ascontiguousarray(dataset.labels[indices].astype(np.int64)))
    return digest.hexdigest()[:12]


def hash_of_weights(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(np.ascontiguousarray(value.cpu()))
    return digest.hexdigest()[:8]
