"""How good are samples after how long?

    python -m benchmarks.quality                       loops on Fashion-MNIST: scripts and recipes
    python -m benchmarks.quality --methods wgan wgan-gp r3gan --dataset glyphs --seeds 0 1 2
    python -m benchmarks.quality --record fashion-mnist-cpu

Measures Fréchet distances after some seconds of wall-clock time, by the clock of `--max-seconds`,
which includes loading the data. The loops are the dense script of common tutorials ("plain",
benchmarks/textbook.py) and recipes in configs/. With `--methods`, each trains the networks of the
data set's first recipe. `--record` verifies a record of docs/records.md.
"""

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
from scipy.stats import ttest_1samp
from torch import Tensor, nn

from benchmarks.common import (
    ROOT,
    check_writable,
    make_parser,
    median_and_range,
    write_json,
)
from benchmarks.textbook import (
    PLAIN_DENSE,
    PlainDenseCritic,
    PlainDenseGenerator,
    Textbook,
    from_loader,
)
from utils import METHODS
from wgan.acceleration import describe_machine
from wgan.budget import seconds_since_start
from wgan.command import refuse_unused, run_script
from wgan.data import Dataset, find_dataset, load_dataset, to_byte_images
from wgan.evaluation.evaluator import Evaluator, choose_features
from wgan.files import write_whole
from wgan.plots import new_figure, png, to_image
from wgan.recipes import RECIPES, resolve
from wgan.sampling import generate, load_generator
from wgan_gp import choose_device

DATASET = "fashion-mnist"  # of the loops and the records
PLAIN = "plain"
LOOPS = [PLAIN, "fashion-mnist-r3gan", "fashion-mnist-dcgan"]
MARKS = [60, 120, 300]


@dataclass(frozen=True)
class Record:
    """The mean Fréchet distance of a recipe after these seconds is below the target."""

    target: float
    recipe: str
    seconds: int
    device: str


RECORDS = {  # the newest of each track of docs/records.md, or a candidate
    "fashion-mnist-cpu": Record(5.0, "fashion-mnist-r3gan", 600, "cpu"),
    "fashion-mnist-gpu": Record(3.0, "fashion-mnist-dcgan", 60, "cuda"),
}
RECORD_SEEDS, SIGNIFICANCE = [0, 1, 2, 3, 4], 0.01

Distances = Iterator[tuple[int, float | None]]  # of each mark; None if the run failed
Loop = Callable[[int], Distances]  # of a seed

# ---------------------------------------------------------------- measuring


def measure(options: argparse.Namespace, loops: dict[str, Loop]) -> dict:
    """Distances by loop, seed and mark.

    The result is also written to `options.json` after each mark.
    """
    result: dict = {"machine": describe_machine(choose_device(options.device))}
    result |= {"dataset": options.dataset or DATASET, "marks": options.marks}
    result["loops"] = {loop: {} for loop in loops}
    for seed in options.seeds:
        for loop, measure_loop in loops.items():
            distances = result["loops"][loop][seed] = {}
            for mark, distance in measure_loop(seed):
                distances[mark] = distance
                write_json(options.json, result)
    return result


def build_evaluator(dataset: Dataset, options: argparse.Namespace) -> Evaluator:
    device, choice = choose_device(options.device), "classifier"
    if dataset.labels is None:
        choice = "random"
    return Evaluator(dataset, choose_features(choice, dataset, options.data_root, device))


def measure_recipe(
    recipe: str, options: argparse.Namespace, evaluator: Evaluator, seed: int, flags=()
) -> Distances:
    """Train a recipe once for each mark, because its learning rates end there."""
    for mark in options.marks:
        yield mark, train_and_measure(recipe, mark, options, evaluator, seed, flags)[0]


def train_and_measure(
    recipe: str,
    seconds: int,
    options: argparse.Namespace,
    evaluator: Evaluator,
    seed: int,
    flags: Sequence[str] = (),
) -> tuple[float | None, float]:
    """The Fréchet distance of one run with a time limit, None if it failed, and its seconds from
    the start to the end of its process."""
    with tempfile.TemporaryDirectory() as folder:
        run, start = Path(folder, "run"), time.perf_counter()
        process = subprocess.run([*train_command(recipe, seconds, seed, run, options), *flags])
        passed = time.perf_counter() - start
        if process.returncode:  # it has printed the reason
            loop = " ".join([recipe, *flags])
            print(f"{loop}, {seconds} s, seed {seed}: exit code {process.returncode}")
            return None, passed
        samples = generate(load_generator(run), evaluator.count)
        return evaluator.frechet_distance(samples), passed


def train_command(
    recipe: str, seconds: int, seed: int, run: Path, options: argparse.Namespace
) -> list[str]:
    """A training command that takes this many seconds, start and end included."""
    command = [sys.executable, ROOT / "train.py", "--config", recipe, "--run", run]
    command += ["--max-seconds", seconds, "--seed", seed]
    command += ["--device", options.device, "--data-root", options.data_root]
    return list(map(str, command))


def measure_plain_script(options: argparse.Namespace, seed: int) -> Distances:
    """Run the dense script in a new process, and measure it at all marks."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        yield from pool.submit(start_plain_script, options, seed).result()


def start_plain_script(options: argparse.Namespace, seed: int) -> list[tuple[int, float]]:
    """What the new process does."""
    dataset = load_dataset(DATASET, options.data_root)
    return train_plain_script(options, seed, dataset, seconds_since_start)


def train_plain_script(
    options: argparse.Namespace, seed: int, dataset: Dataset, clock: Callable[[], float]
) -> list[tuple[int, float]]:
    """Train the dense script by a clock in seconds, which does not count the time of measuring."""
    device = choose_device(options.device)
    config = resolve(PLAIN_DENSE | {"dataset": DATASET}).config
    torch.manual_seed(seed)
    networks = PlainDenseGenerator(dataset.sample_shape), PlainDenseCritic(dataset.sample_shape)
    images = dataset.read(torch.arange(len(dataset))).numpy()
    feed = from_loader(images, config.batch_size, options.workers)
    script = Textbook(config, *(network.to(device) for network in networks), feed)
    evaluator, not_counted, distances = None, 0.0, []
    for mark in options.marks:
        while clock() - not_counted < mark:
            script.step()
        begin = clock()
        evaluator = evaluator or build_evaluator(dataset, options)
        samples = sample_plain_script(script.generator, evaluator.count, device)
        distances.append((mark, evaluator.frechet_distance(samples)))
        not_counted += clock() - begin
    return distances


@torch.no_grad()
def sample_plain_script(generator: nn.Module, count: int, device: torch.device) -> Tensor:
    generator.eval()
    noise = torch.randn(count, generator.noise_dim, device=device)
    samples = torch.cat([to_byte_images(generator(part)).cpu() for part in noise.split(500)])
    generator.train()
    return samples


# ---------------------------------------------------------------- records


def verify(record: Record, options: argparse.Namespace) -> int:
    """Train a record's recipe with several seeds, and test whether the mean distance of such runs
    is below the target (one-sided t-test); the exit code, 1 if not."""
    evaluator = build_evaluator(load_dataset(DATASET, options.data_root), options)
    result = {"machine": describe_machine(choose_device(options.device)), "runs": []}
    print(f"{result['machine']}; {record.recipe}, {record.seconds} s", flush=True)
    for seed in options.seeds:
        distance, seconds = train_and_measure(
            record.recipe, record.seconds, options, evaluator, seed
        )
        if distance is None:
            return 1
        result["runs"].append({"seed": seed, "distance": distance, "seconds": seconds})
        write_json(options.json, result)
    for run in result["runs"]:
        print("seed {seed}: Fréchet distance {distance:.2f} after {seconds:.1f} s".format(**run))
    distances = [run["distance"] for run in result["runs"]]
    chance = chance_of_mean(distances, record.target)
    longest, holds = max(run["seconds"] for run in result["runs"]), chance < SIGNIFICANCE
    print(
        f"mean {mean(distances):.2f}, target {record.target}, p = {chance:.2g}, longest run "
        f"{longest:.1f} s: {'the target is met' if holds else 'the target is not met'}"
    )
    return 0 if holds else 1


def chance_of_mean(distances: list[float], target: float) -> float:
    """The p-value of distances if their expected value were the target: the probability that the
    mean is as far below it (Student 1908)."""
    return float(ttest_1samp(distances, target, alternative="less").pvalue)


# ---------------------------------------------------------------- results


def values_by_mark(result: dict, loop: str) -> dict[int, list[float]]:
    """Distances of one loop at each mark, over the seeds, without failed runs."""
    values: dict[int, list[float]] = {mark: [] for mark in result["marks"]}
    for distances in result["loops"][loop].values():
        for mark, distance in distances.items():
            if distance is not None:
                values[mark].append(distance)
    return values


def show(result: dict) -> None:
    """Print a table of medians over the seeds, with the minimum and maximum."""
    marks = result["marks"]
    print(f"\n{result['machine']}; Fréchet distance on {result['dataset']}")
    print("median over the seeds, and range\n")
    print("| after | " + " | ".join(f"{mark} s" for mark in marks) + " |")
    print("|---|" + "---|" * len(marks))
    for loop in result["loops"]:
        cells = map(median_and_range, values_by_mark(result, loop).values())
        print(f"| {loop} | " + " | ".join(cells) + " |")


def plot(result: dict, target: Path) -> None:
    """Plot medians against time, with bands from the minimum to the maximum."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for loop in result["loops"]:
        points = {mark: values for mark, values in values_by_mark(result, loop).items() if values}
        marks, values = list(points), list(points.values())
        axes.plot(marks, list(map(median, values)), marker="o", label=loop)
        axes.fill_between(marks, list(map(min, values)), list(map(max, values)), alpha=0.2)
    axes.set(xlabel="seconds since the start", ylabel="Fréchet distance", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    write_whole(target, png(to_image(figure)))


# ---------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run_benchmark(argv))


def run_benchmark(argv: list[str] | None) -> int:
    options = parse_options(argv)
    check_writable(options.json)
    check_writable(options.plot)
    if options.record:
        return verify(RECORDS[options.record], options)
    loops = build_methods(options) if options.methods else build_loops(options)
    show(result := measure(options, loops))
    if options.plot:
        plot(result, Path(options.plot))
    return 0


def build_loops(options: argparse.Namespace) -> dict[str, Loop]:
    evaluator = build_evaluator(load_dataset(DATASET, options.data_root), options)
    loops = {name: partial(measure_recipe, name, options, evaluator) for name in options.loops}
    if PLAIN in loops:
        loops[PLAIN] = partial(measure_plain_script, options)
    return loops


def build_methods(options: argparse.Namespace) -> dict[str, Loop]:
    """Loops that differ in the method alone; ValueError for points."""
    name = options.dataset or DATASET
    entry = find_dataset(name)
    if entry.is_points:
        raise ValueError(f"{name} are points: use images, or python -m benchmarks.modes")
    recipe = entry.recipes[0]
    image_options = resolve({"dataset": name}, recipe).config.image_options()
    evaluator = build_evaluator(load_dataset(name, options.data_root, image_options), options)
    measure_method = partial(measure_recipe, recipe, options, evaluator)
    flags = {method: ("--dataset", name, "--method", method) for method in options.methods}
    return {method: partial(measure_method, flags=own) for method, own in flags.items()}


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The options; ValueError for an invalid one or one without effect."""
    parser = make_parser("quality", __doc__)
    add, names = parser.add_argument, {"nargs": "+", "metavar": "NAME"}
    one_of = parser.add_mutually_exclusive_group().add_argument
    loops = [PLAIN, *sorted(path.stem for path in RECIPES.glob(f"{DATASET}-*.toml"))]
    loops_help = f"{PLAIN}, and recipes (default: {' '.join(LOOPS)})"
    one_of("--loops", choices=loops, default=LOOPS, help=loops_help, **names)
    one_of("--methods", choices=METHODS, help=f"of {', '.join(METHODS)}", **names)
    one_of("--record", choices=RECORDS, help=", ".join(RECORDS))
    add("--dataset", metavar="NAME", help=f"data for --methods (default: {DATASET})")
    marks_help = f"measure after these seconds (default: {' '.join(map(str, MARKS))})"
    add("--marks", type=int, nargs="+", metavar="SECONDS", help=marks_help)
    seeds_help = "default: 0; with --record: 0 1 2 3 4"
    add("--seeds", type=int, nargs="+", metavar="SEED", help=seeds_help)
    add("--plot", metavar="PNG", help="plot the distances")
    root = str(ROOT / "datasets")
    add("--data-root", default=root, help="folder of downloaded data (default: datasets)")
    options = parser.parse_args(argv)
    if not options.methods:
        refuse_unused({"--dataset": options.dataset}, "without --methods")
    if options.record:
        refuse_unused({"--marks": options.marks, "--plot": options.plot}, "with --record")
        if options.device == "auto":
            options.device = RECORDS[options.record].device
        options.seeds = options.seeds or RECORD_SEEDS
        if len(options.seeds) < 2:
            raise ValueError("--seeds: a record needs two or more, better five")
    options.marks, options.seeds = sorted({*(options.marks or MARKS)}), options.seeds or [0]
    return options


if __name__ == "__main__":
    sys.exit(main())
