"""Which modes of the data does a generator miss?

    python -m benchmarks.modes                    all rows and four methods, in about half an hour
    python -m benchmarks.modes --rows stacked --images fashion-mnist --steps 100000 --device cuda

Trains generators with one recipe for all methods, and counts modes among 2,500 points or 26,000
images, as Lin et al. 2018 (arXiv:1712.04086) do. Rows:
    ring    8 Gaussians on a circle; noise of 2 dimensions, without and with a choice of categories
    grid    25 Gaussians, likewise
    stacked three images of ten classes each, as the channels of one: a thousand modes, counted by
            a classifier of a single channel (Kumar et al. 2019, arXiv:1901.08508). Good samples
            are those of whose three classes it is sure, as noise has modes, too
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import ROOT, check_writable, write_json
from benchmarks.common import median_and_range as cell
from train import all_updates, train_step
from utils import METHODS
from wgan.acceleration import accelerate, describe_machine, prepare_device
from wgan.budget import Budget
from wgan.command import Parser, integer, run_script
from wgan.config import Config
from wgan.data import Batches, Dataset, RowReader, load_dataset
from wgan.evaluation.evaluator import choose_features
from wgan.evaluation.features import Features
from wgan.evaluation.metrics import divergence, mode_coverage, wasserstein_distance
from wgan.evaluation.samples import shuffled
from wgan.inputs import sample_inputs
from wgan.recipes import resolve
from wgan.sampling import TrainedGenerator, generate
from wgan.state import build_state, follow_schedule
from wgan_gp import choose_device

POINTS, PAIRED = 2500, 2000  # points that are counted, and those whose exact distance is computed
IMAGES, STACKS = 26_000, 128_000  # stacked images that are counted, and those of the training set
SURE = 0.95  # the classifier is, of each channel of a good sample
DEFAULT_METHODS = ["wgan", "wgan-gp", "wgan-div", "r3gan"]
LABELLED = ("glyphs", "mnist", "fashion-mnist")  # grey images of ten classes


# A recipe, and the options of each kind of noise
MIXTURE = (
    "grid-best",
    {"2 dimensions": {"noise_dim": 2, "categories": 0}, "and 100 categories": {}},
)
STACKED = {"coarse": 0.0, "clusters": 0, "batch_size": 64, "lr_critic": 1e-3, "lr_generator": 4e-3}
ROWS = {
    "ring": MIXTURE,
    "grid": MIXTURE,
    "stacked": ("images", {"128 dimensions": STACKED}),
}


@dataclass(frozen=True)
class Task:
    """Training data, real samples to compare with, and the metrics."""

    dataset: Dataset
    real: Tensor
    judge: Callable[[Tensor], dict[str, float]]


def mixture(dataset: Dataset) -> Task:
    """Points of a mixture of Gaussians. The exact distance is that to other real points."""
    order, modes = shuffled(len(dataset)), torch.from_numpy(dataset.modes).long()
    data, others = dataset.read(torch.arange(len(dataset))), dataset.read(order[POINTS:][:PAIRED])

    def judge(points: Tensor) -> dict[str, float]:
        distance = wasserstein_distance(points[:PAIRED], others)
        return mode_coverage(points, data, modes) | {"wasserstein_distance": distance}

    return Task(dataset, dataset.read(order[:POINTS]), judge)


def stacks(dataset: Dataset, features: Features) -> Task:
    """Random images of K classes, three as the channels of one: K^3 modes. `features` are those of
    a classifier of single images."""
    random, classes = np.random.default_rng(0), int(dataset.labels.max()) + 1

    def draw(count: int) -> Tensor:
        columns = random.integers(len(dataset), size=(3, count))
        return torch.cat([dataset.read(column) for column in columns], 1)

    def judge(images: Tensor) -> dict[str, float]:
        sure, own = features.probabilities(features(images.flatten(0, 1)[:, None])).max(1)
        modes = own.view(-1, 3) @ torch.tensor([classes**2, classes, 1])
        counts = modes.bincount(minlength=classes**3)
        good = (sure.view(-1, 3) >= SURE).all(1).float().mean().item()
        values = {"modes": int((counts > 0).sum()), "modes_in_all": len(counts)}
        uniform = torch.ones(len(counts))
        return values | {"good_samples": good, "mode_divergence": divergence(counts, uniform)}

    return Task(Dataset(RowReader.from_array(draw(STACKS).numpy())), draw(IMAGES), judge)


def build_task(row: str, options: argparse.Namespace) -> Task:
    if row != "stacked":
        return mixture(load_dataset(row, options.data_root))
    dataset, device = load_dataset(options.images, options.data_root), choose_device(options.device)
    return stacks(dataset, choose_features("classifier", dataset, options.data_root, device))


def train_generator(config: Config, dataset: Dataset, bar: tqdm) -> TrainedGenerator:
    """Train as train.py does, but without a folder; the moving average of the generator."""
    device = choose_device(config.device)
    prepare_device(device, config.deterministic)
    state = build_state(config, dataset.sample_shape, device)
    batches = Batches(dataset.samples, config.batch_size, config.seed, device)
    budget = Budget(config.steps, config.max_seconds, 0.0)
    config = accelerate(state, config, budget, sample_inputs(0, config, batches), all_updates)
    for step in range(config.steps):
        follow_schedule(state, config, step / config.steps)
        train_step(state, config, batches)
        bar.update()
    return TrainedGenerator(state.ema.eval().requires_grad_(False))


def run_row(name: str, task: Task, options: argparse.Namespace, bar: tqdm, add: Callable) -> None:
    """Judge real samples, then those of each method, kind of noise and seed."""
    real = {"row": name, "method": "real", "noise": "", "seed": 0, "seconds": 0.0}
    add(real | task.judge(task.real))
    recipe, noises = ROWS[name]
    for method, noise, seed in product(options.methods, noises, options.seeds):
        flags = {"dataset": name, "method": method, "seed": seed, "device": options.device}
        config = resolve(flags | {"steps": options.steps} | noises[noise], recipe).config
        start = time.perf_counter()
        generator = train_generator(config, task.dataset, bar)
        seconds = time.perf_counter() - start
        case = {"row": name, "method": method, "noise": noise, "seed": seed, "seconds": seconds}
        add(case | task.judge(generate(generator, len(task.real))))


def show(result: dict) -> None:
    """Print a table of each row: medians over the seeds, and ranges if there are several."""
    columns = ("modes", "good_samples", "mode_divergence", "wasserstein_distance", "seconds")
    print(f"\n{result['machine']}; {result['steps']} steps, seeds {result['seeds']}")
    for row in dict.fromkeys(run["row"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["row"] == row]
        names = [name for name in columns if name in runs[0]]
        titles = ["method", "noise", *(name.replace("_", " ") for name in names)]
        print(f"\n{row}: {runs[0]['modes_in_all']} modes\n\n| {' | '.join(titles)} |")
        print("|---" * len(titles) + "|")
        for case in dict.fromkeys((run["method"], run["noise"]) for run in runs):
            own = [run for run in runs if (run["method"], run["noise"]) == case]
            cells = [cell([run[name] for run in own], ".3g") for name in names]
            print(f"| {' | '.join([*case, *cells])} |")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run(argv))


def run(argv: list[str] | None) -> None:
    parser = Parser(prog="python -m benchmarks.modes", description=__doc__)
    add, rows = parser.add_argument, list(ROWS)
    names = {"nargs": "+", "metavar": "NAME"}
    add("--rows", choices=ROWS, default=rows, help=f"{', '.join(rows)} (default: all)", **names)
    methods_help = f"of {', '.join(METHODS)} (default: {' '.join(DEFAULT_METHODS)})"
    add("--methods", choices=METHODS, default=DEFAULT_METHODS, help=methods_help, **names)
    add("--seeds", type=integer(0), nargs="+", default=[0], metavar="N", help="default: 0")
    add("--steps", type=integer(1), default=2000, metavar="N", help="updates (default: 2000)")
    add("--images", choices=LABELLED, default="glyphs", help="images to stack (default: glyphs)")
    add("--data-root", default=str(ROOT / "datasets"), help="folder of downloaded data")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add("--json", metavar="FILE", help="also write the results to this file")
    options = parser.parse_args(argv)
    check_writable(options.json)
    result = {"machine": describe_machine(choose_device(options.device)), "seeds": options.seeds}
    result |= {"steps": options.steps, "runs": []}

    def keep(run: dict) -> None:
        result["runs"].append(run)
        write_json(options.json, result)

    runs = sum(len(ROWS[row][1]) for row in options.rows) * len(options.methods)
    with tqdm(total=runs * len(options.seeds) * options.steps, unit="step", disable=None) as bar:
        for row in options.rows:
            run_row(row, build_task(row, options), options, bar, keep)
    show(result)


if __name__ == "__main__":
    sys.exit(main())
