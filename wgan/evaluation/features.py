"""Features in which images are compared: of a small classifier, a random network, or Inception.

A `Features` object maps images `(N, C, H, W)` uint8 to features `(N, D)` float32 on the CPU.
"""

import hashlib
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from wgan.checkpoints import add_digest, has_digest
from wgan.data import Dataset, opaque, to_float_images
from wgan.errors import one_line
from wgan.files import write_whole

CHOICES = ("auto", "classifier", "random", "inception")
CLASSIFIER_VERSION = 1  # increase it if the classifier or its training changes
INCEPTION_FILES = "weights-inception-2015-12-05*.pth"
CHUNK = 500  # images computed at a time
FAINT = 0.01  # magnitude of a response, in [-1, 1], below which a random feature is insensitive


class Features(Protocol):
    """Features of images; values computed from features of the same name are comparable."""

    name: str

    def __call__(self, images: Tensor) -> Tensor: ...


def choose_features(
    choice: str, dataset: Dataset, training: np.ndarray, data_root: str, device: torch.device
) -> Features:
    """The features that `choice` names.

    "auto" is Inception if its weights exist on this machine, otherwise a classifier if the data
    set has labels, otherwise "random", which needs neither. `training` are the indices of the
    samples that a classifier may learn from. Raises ValueError if a classifier is requested and
    there are no labels or if Inception's weights are corrupt, OSError if these cannot be read or
    downloaded.
    """
    if choice == "classifier" and dataset.labels is None:
        raise ValueError("a classifier needs a data set with labels: use --features random")
    if choice == "inception" or (choice == "auto" and inception_files()):
        return InceptionFeatures(device)
    if choice == "random" or dataset.labels is None:
        return RandomFeatures(dataset.sample_shape[0], device)
    return cached_classifier(dataset, training, data_root, device)


@torch.no_grad()
def in_chunks(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    parts = tqdm(images.split(CHUNK), "features", delay=2, leave=False, disable=None)
    return torch.cat([function(part).float().cpu() for part in parts])


# ---------------------------------------------------------------- Inception


class InceptionFeatures:
    """The 2048 pooled features of the Inception network that defines FID (Heusel et al. 2017).

    The weights (91 MB) are downloaded once. OSError if that fails, ValueError if they are corrupt.
    """

    name = "Inception"

    def __init__(self, device: torch.device):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except OSError as error:
            raise OSError(
                f"Inception's weights cannot be read in or downloaded to {inception_folder()} "
                f"({error}): try again, or use --features random"
            ) from error
        except Exception as error:  # a corrupt file may contain anything
            names = ", ".join(map(str, inception_files())) or "them"
            raise ValueError(
                f"Inception's weights are corrupt: remove {names} to download them again, or use "
                f"--features random ({type(error).__name__}: {error})"
            ) from error
        self.network, self.device = network.to(device).eval(), device

    def __call__(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` uint8 to `(N, 2048)`; grey images become three equal channels, and
        transparent ones have a white background."""

        def compute(part: Tensor) -> Tensor:
            colours = torch.from_numpy(opaque(part.numpy())).expand(-1, 3, -1, -1)
            return self.network(colours.to(self.device))[0]

        return in_chunks(compute, images)

    def probabilities(self, features: Tensor) -> Tensor:
        """Probabilities `(N, 1008)` of ImageNet's classes from features `(N, 2048)`, without the
        bias, as in the original inception score."""
        return F.linear(features, self.network.fc.weight.cpu()).softmax(1)


def inception_folder() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")


def inception_files() -> list[Path]:
    return list(inception_folder().glob(INCEPTION_FILES))


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


class RandomFeatures:
    """Features of a network with fixed random weights: they need no labels and no training, and
    do not depend on the data."""

    def __init__(self, channels: int, device: torch.device, seed: int = 0):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            network = RandomNetwork(channels)
        self.name = f"random-{hash_of_weights(network)}"
        self.network, self.device = network.to(device).requires_grad_(False), device

    def __call__(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` uint8 to `(N, 128 + 2 * C)`."""
        return in_chunks(lambda part: self.network(to_float_images(part.to(self.device))), images)


# ---------------------------------------------------------------- the classifier


class Classifier(nn.Module):
    """A small convolutional network: images in [-1, 1] to 128 features, and to class scores."""

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


class ClassifierFeatures:
    """The features of a trained classifier, on the device of its weights."""

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
    images: "Tensor | Subset",
    labels: Tensor,
    classes: int,
    device: torch.device,
    epochs: int = 4,
    seed: int = 0,
) -> Classifier:
    """Train a classifier on images `(N, C, H, W)` uint8 and labels `(N,)` int64.

    Returns it in evaluation mode, on `device`. The result is the same each time on a CPU.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        classifier = Classifier(images.shape[1], classes)
    classifier.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(classifier.parameters())
    orders = [torch.randperm(len(images), generator=rng) for _ in range(epochs)]
    batches = [batch for order in orders for batch in order.split(128) if len(batch) > 1]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=len(batches))
    for batch in tqdm(batches, "training the classifier", delay=2, leave=False, disable=None):
        scores = classifier(to_float_images(images[batch].to(device)))
        loss = F.cross_entropy(scores, labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval().requires_grad_(False)


# ---------------------------------------------------------------- its cache


class Subset:
    """Some samples of a data set, read on access because they may not fit in memory."""

    def __init__(self, dataset: Dataset, indices: np.ndarray):
        self.dataset, self.indices = dataset, torch.from_numpy(indices)
        self.shape = (len(indices), *dataset.sample_shape)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, positions: Tensor) -> Tensor:
        return self.dataset.read(self.indices[positions])


def cached_classifier(
    dataset: Dataset, training: np.ndarray, data_root: str, device: torch.device
) -> ClassifierFeatures:
    """A classifier of the samples with a class and the indices `training`, trained once and kept in
    `data_root`.

    Its name contains a hash of the data and one of the weights, so features with the same name
    are comparable.
    """
    training = training[dataset.labels[training] >= 0]
    images, labels = Subset(dataset, training), dataset.labels[training]
    classes = int(dataset.labels.max()) + 1
    stem = f"classifier-{hash_of_data(images, labels)}"
    file = Path(data_root) / f"{stem}.pt"
    classifier = load_classifier(file, images.shape[1], classes)
    if classifier is None:
        with allow_nondeterminism():
            classifier = train_classifier(images, torch.from_numpy(labels).long(), classes, device)
        save_classifier(file, classifier)
    # One layout, trained just now or not: another one rounds differently.
    classifier.to(device, memory_format=torch.channels_last)
    return ClassifierFeatures(classifier, f"{stem}-{hash_of_weights(classifier)}")


def load_classifier(file: Path, channels: int, classes: int) -> Classifier | None:
    """The classifier in a file; None if the file is missing or cannot be read."""
    classifier = Classifier(channels, classes)
    try:
        content = file.read_bytes()
        if not has_digest(content):  # of weights, torch.load notices no changed bit
            raise ValueError("its checksum is missing or wrong")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        classifier.load_state_dict(state)
    except FileNotFoundError:
        return None
    except Exception as error:  # a corrupt file may contain anything
        print(f"{file} cannot be read and will be replaced ({one_line(error)})", file=sys.stderr)
        return None
    return classifier.eval().requires_grad_(False)


def save_classifier(file: Path, classifier: Classifier) -> None:
    buffer = io.BytesIO()
    torch.save(classifier.state_dict(), buffer)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, add_digest(buffer.getvalue()))
    except OSError as error:
        print(f"the classifier was not saved and must be trained again: {error}", file=sys.stderr)


def hash_of_data(images: Subset, labels: np.ndarray) -> str:
    digest = hashlib.sha256(f"{CLASSIFIER_VERSION} {images.shape}".encode())
    for positions in torch.arange(len(images)).split(1000):
        digest.update(images[positions].numpy())
    digest.update(np.ascontiguousarray(labels.astype(np.int64)))
    return digest.hexdigest()[:12]


def hash_of_weights(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(np.ascontiguousarray(value.cpu()))
    return digest.hexdigest()[:8]


@contextmanager
def allow_nondeterminism() -> Iterator[None]:
    """Allow nondeterministic algorithms inside the block: on CUDA, the backward pass of the
    classifier's pooling has no other. The results of a run do not depend on the classifier."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
