"""How good are a run's samples? `python evaluate.py images/RUN`, without a download.

Images with classes are compared in the features of a small classifier, trained once on the
data set's own labels and kept; other images by patches. Points are compared exactly. Every
figure stands beside its floor: what real samples score that were held out.
"""

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from generate import generate, load_generator
from utils import unbiased_estimate
from wgan import plots
from wgan.config import Config, Parser, restore
from wgan.data.table import Dataset, Rows, load_dataset
from wgan.evaluation import metrics
from wgan.evaluation.metrics import Classifier
from wgan.files import write_whole
from wgan.run_folder import png, read_any_checkpoint
from wgan_gp import MODELS, choose_device

SAMPLES = 10_000
LEAST_SAMPLES = 4  # the third neighbour of one is the fourth sample
FEATURES = ("auto", "classifier", "inception")
CLASSIFIER_VERSION = 1  # count it up when the classifier or its training changes
NEIGHBOURS, NEIGHBOUR_ROWS = 7, 8  # real pictures beside a sample, and how many samples
PAIRED_POINTS = 2000  # for the exact distance, whose cost grows with the cube
SLICED_IMAGES = 2048


# ---------------------------------------------------------------- images


class Evaluator:
    """Compares images with a data set's: `reference` ones, and as the floor `held_out` ones.

    Both are drawn by a fixed seed, `samples` each or half of the data; the classifier never
    saw the held-out ones. `features` is "classifier", which needs labels, "inception", or
    "auto": Inception where its weights are on the disk, else the classifier, else none, and
    then only `sliced_wasserstein` is known. ValueError where that cannot be.
    """

    def __init__(
        self,
        dataset: Dataset,
        root: str,
        device: torch.device,
        samples: int = SAMPLES,
        features: str = "auto",
    ):
        self.device = device
        order = np.random.default_rng(0).permutation(len(dataset.samples))
        self.count = min(samples, len(order) // 2)
        if self.count < LEAST_SAMPLES:
            raise ValueError(
                f"measuring takes at least {2 * LEAST_SAMPLES} images, and the data set has "
                f"{len(order)}"
            )
        held_out, rest = np.sort(order[: self.count]), order[self.count :]
        self.held_out = dataset.take(held_out)
        self.reference = dataset.take(np.sort(rest[: self.count]))
        self.labels = None if dataset.labels is None else torch.from_numpy(dataset.labels).long()
        self.kind = choose_features(features, self.labels is not None)
        if self.kind == "classifier":
            self.classifier, self.name = kept_classifier(dataset, np.sort(rest), root, device)
        elif self.kind == "inception":
            self.name = "Inception"
        self.reference_features = self.features_of(self.reference) if self.kind else None

    def features_of(self, images: Tensor) -> Tensor:
        if self.kind == "classifier":
            return metrics.classify(self.classifier, images)[0]
        return metrics.inception_features(images, self.device)

    def frechet_distance(self, images: Tensor) -> float:
        return metrics.frechet_distance(self.features_of(images), self.reference_features)

    def report(self, images: Tensor) -> dict[str, float]:
        """Every figure that can be had of images `(N, C, H, W)`."""
        found: dict[str, float] = {}
        if self.kind:
            features = self.features_of(images)
            against = self.reference_features
            found["frechet_distance"] = metrics.frechet_distance(features, against)
            found["kernel_distance"] = metrics.kernel_distance(features, against)
            precision, recall = metrics.precision_and_recall(features, against)
            found |= {"precision": precision, "recall": recall}
        if self.kind == "classifier":
            probabilities = metrics.classify(self.classifier, images)[1]
            found |= metrics.class_coverage(probabilities, self.labels)
        sliced = metrics.sliced_wasserstein(images[:SLICED_IMAGES], self.reference[:SLICED_IMAGES])
        return found | {f"sliced_wasserstein_{size}": value for size, value in sliced.items()}

    def neighbours(self, images: Tensor):
        """Samples, each followed by the real images nearest to it: by features, else by pixels."""
        images = images[:NEIGHBOUR_ROWS]
        if self.kind:
            one, other = self.features_of(images), self.reference_features
        else:
            one, other = images.flatten(1).float(), self.reference.flatten(1).float()
        nearest = metrics.nearest_neighbours(one, other, min(NEIGHBOURS, len(other)))
        rows = [
            torch.cat([image[None], self.reference[row]])
            for image, row in zip(images, nearest, strict=True)
        ]
        return plots.image_grid(torch.cat(rows).numpy(), columns=len(rows[0]))


def choose_features(name: str, labelled: bool) -> str:
    """ "classifier", "inception" or "" for none."""
    if name == "classifier" and not labelled:
        raise ValueError("a classifier needs a data set with classes: use --features inception")
    if name != "auto":
        return name
    weights = Path(torch.hub.get_dir(), "checkpoints").glob("weights-inception-2015-12-05*.pth")
    if any(weights):
        return "inception"
    return "classifier" if labelled else ""


class Part:
    """Some of a data set's images, read when they are asked for: a file may not fit in memory."""

    def __init__(self, dataset: Dataset, numbers: np.ndarray):
        self.rows, self.numbers = Rows(dataset.samples), torch.from_numpy(numbers)
        self.shape = (len(numbers), *dataset.sample_shape)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, places: Tensor) -> Tensor:
        return self.rows.read(self.numbers[places])


def kept_classifier(
    dataset: Dataset, training: np.ndarray, root: str, device: torch.device
) -> tuple[Classifier, str]:
    """The classifier of those samples and its name, which carries a hash of what it was trained
    on and one of its weights: figures with the same name compare. Trained if it is not in
    `root` yet."""
    images, labels = Part(dataset, training), dataset.labels[training]
    classes = int(dataset.labels.max()) + 1
    digest = hashlib.sha256(f"{CLASSIFIER_VERSION} {images.shape}".encode())
    for numbers in torch.arange(len(images)).split(1000):
        digest.update(images[numbers].numpy())
    digest.update(np.ascontiguousarray(labels.astype(np.int64)))
    name = f"classifier-{digest.hexdigest()[:12]}"
    file = Path(root) / f"{name}.pt"
    try:
        classifier = Classifier(images.shape[1], classes)
        classifier.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        classifier.to(device).eval().requires_grad_(False)
        return classifier, f"{name}-{hash_of_weights(classifier)}"
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged file, whatever is in it
        print(f"{file} cannot be read ({error}), and is made again", file=sys.stderr)
    labels = torch.from_numpy(labels).long()
    with any_algorithms():
        classifier = metrics.train_classifier(images, labels, classes, device)
    buffer = io.BytesIO()
    torch.save(classifier.state_dict(), buffer)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, buffer.getvalue())
    except OSError as error:
        print(f"cannot keep {file} for the next time: {error}", file=sys.stderr)
    return classifier, f"{name}-{hash_of_weights(classifier)}"


def hash_of_weights(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(np.ascontiguousarray(value.cpu()))
    return digest.hexdigest()[:8]


@contextmanager
def any_algorithms() -> Iterator[None]:
    """Nothing of a run's result depends on the classifier, and CUDA has no deterministic
    backward pass for its pooling."""
    wanted = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(wanted)


# ---------------------------------------------------------------- points


def report_points(
    reference: np.ndarray, labels: np.ndarray | None, points: Tensor, seed: int = 0
) -> dict[str, float]:
    """Every figure that can be had of points `(N, 2)`, compared with `reference` ones."""
    data = torch.from_numpy(reference)
    found: dict[str, float] = {}
    if labels is not None:
        found |= metrics.mode_coverage(points, data, torch.from_numpy(labels))
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    count = min(PAIRED_POINTS, len(points), len(data) // 2)
    found["wasserstein_distance"] = metrics.wasserstein_distance(points[:count], data[some[:count]])
    return found


def critic_estimate(checkpoint: dict, config: Config, real: Tensor, fake: Tensor) -> float:
    """What the run's own critic takes for the distance."""
    network = MODELS[config.model].critic
    critic = network(tuple(real.shape[1:]), **config.arguments_for(network))
    critic.load_state_dict(checkpoint["critic"])
    with torch.no_grad():
        return (critic(real).mean() - critic(fake).mean()).item()


# ---------------------------------------------------------------- the command


def evaluate(arguments) -> dict:
    """Figures of a run's samples, and of held-out real ones as the floor."""
    device = choose_device(arguments.device)
    generator = load_generator(arguments.source, arguments.weights, arguments.device)
    checkpoint = read_any_checkpoint(arguments.source)
    config = restore(checkpoint["config"])
    dataset = load_dataset(config.dataset, config.data_root, config.image_size, config.grey)
    if dataset.sample_shape != generator.sample_shape:
        raise ValueError(
            f"the run's samples are {generator.sample_shape} and the data set's now "
            f"{dataset.sample_shape}: they cannot be compared"
        )
    result = {"source": arguments.source, "step": checkpoint["step"], "seed": arguments.seed}
    if dataset.are_points:
        count = min(arguments.samples, len(dataset.samples) // 2)
        points = generate(generator, count, arguments.seed)
        real = torch.from_numpy(dataset.samples[-count:])
        labels = None if dataset.labels is None else dataset.labels[:-count]
        against = (dataset.samples[:-count], labels)
        result |= {"samples": count, "generated": report_points(*against, points)}
        result["real"] = report_points(*against, real)
        estimate = critic_estimate(checkpoint, config, real, points)
        result["generated"]["critic_estimate"] = estimate
        if config.method == "wgan-gp" and config.gp_weight:
            unbiased = unbiased_estimate(estimate, config.gp_weight)
            result["generated"]["critic_estimate_unbiased"] = unbiased
        return result
    evaluator = Evaluator(dataset, config.data_root, device, arguments.samples, arguments.features)
    images = generate(generator, evaluator.count, arguments.seed)
    result |= {"samples": evaluator.count, "features": evaluator.name if evaluator.kind else ""}
    with tqdm(total=2, desc="comparing", delay=2, leave=False, disable=None) as bar:
        for name, pictures in (("generated", images), ("real", evaluator.held_out)):
            result[name] = evaluator.report(pictures)
            bar.update()
    target = arguments.neighbours or neighbours_beside(arguments.source)
    write_whole(target, png(evaluator.neighbours(images)))
    result["neighbours"] = str(target)
    return result


def neighbours_beside(source: str) -> Path:
    path = Path(source)
    return (path if path.is_dir() else path.parent) / "neighbours.png"


def show(result: dict) -> None:
    features = f", features: {result['features']}" if result.get("features") else ""
    print(f"{result['source']}, step {result['step']}, {result['samples']} samples{features}\n")
    print(f"{'':<28}{'generated':>12}{'real, held out':>16}")
    for name, value in result["generated"].items():
        floor = result["real"].get(name)
        shown = f"{floor:>16.4g}" if floor is not None else ""
        print(f"{name.replace('_', ' '):<28}{value:>12.4g}{shown}")
    if "neighbours" in result:
        print(f"\nsamples and the real images nearest to each: {result['neighbours']}")


def main(argv: list[str] | None = None) -> int:
    """`python evaluate.py`; 0, or 2 for bad input."""
    parser = Parser(
        prog="evaluate.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", help="a run's folder, or a checkpoint")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES,
        help=f"how many, at most half of the data (default: {SAMPLES})",
    )  # fmt: skip
    parser.add_argument(
        "--features", choices=FEATURES, default="auto",
        help="auto: inception if its weights are on the disk, else classifier",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument(
        "--from", dest="weights", choices=("average", "raw"), default="average",
        help="the moving average's weights, or those of the last step (default: average)",
    )  # fmt: skip
    parser.add_argument("--neighbours", type=Path, metavar="PNG", help="default: in the run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    try:
        arguments = parser.parse_args(argv)
        if arguments.samples < LEAST_SAMPLES or arguments.seed < 0:
            raise ValueError(f"--samples must be at least {LEAST_SAMPLES}, and --seed at least 0")
        result = evaluate(arguments)
        show(result)
        if arguments.json:
            write_whole(arguments.json, (json.dumps(result, indent=2) + "\n").encode())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
