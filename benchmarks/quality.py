"""How good are samples after how long?

Measures Fréchet distances on Fashion-MNIST after some seconds of wall-clock time, by the clock of
`--max-seconds`, which includes loading the data: for the dense script of common tutorials ("plain",
benchmarks/textbook.py) and for recipes in configs/.
"""

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.common import (
    ROOT,
    check_writable,
    describe_machine,
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
from wgan.budget import seconds_since_start
from wgan.command import run_script
from wgan.data import Dataset, load_dataset, to_byte_images
from wgan.evaluation.evaluator import Evaluator, choose_features
from wgan.files import write_whole
from wgan.plots import new_figure, png, to_image
from wgan.recipes import RECIPES, resolve
from wgan.sampling import generate, load_generator
from wgan_gp import choose_device

DATASET = "fashion-mnist"
PLAIN = "plain"
LOOPS = [PLAIN, "fashion-mnist-best", "fashion-mnist-dcgan"]
MARKS = [60, 120, 300]

Distances = Iterator[tuple[int, float | None]]  # of each mark; None if the run failed

# ---------------------------------------------------------------- measuring


def measure(options: argparse.Namespace, loops: dict[str, Callable[[int], Distances]]) -> dict:
    """Distances by loop, seed and mark. `loops` maps a name to a function of the seed.

    The result is also written to `options.json` after each mark.
    """
    result: dict = {"machine": describe_machine(choose_device(options.device))}
    result |= {"marks": options.marks, "loops": {loop: {} for loop in loops}}
    for seed in options.seeds:
        for loop, measure_loop in loops.items():
            distances = result["loops"][loop][seed] = {}
            for mark, distance in measure_loop(seed):
                distances[mark] = distance
                write_json(options.json, result)
    return result


def build_evaluator(dataset: Dataset, options: argparse.Namespace) -> Evaluator:
    device = choose_device(options.device)
    return Evaluator(dataset, choose_features("classifier", dataset, options.data_root, device))


def measure_recipe(
    recipe: str, options: argparse.Namespace, evaluator: Evaluator, seed: int
) -> Distances:
    """Train a recipe once for each mark, because its learning rates end there."""
    for mark in options.marks:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            process = subprocess.run(train_command(recipe, mark, seed, run, options))
            if process.returncode:  # it has printed the reason
                print(f"{recipe}, {mark} s, seed {seed}: exit code {process.returncode}")
                yield mark, None
            else:
                samples = generate(load_generator(run), evaluator.count)
                yield mark, evaluator.frechet_distance(samples)


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
    print(f"\n{result['machine']}; Fréchet distance on Fashion-MNIST")
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
    axes.set(xlabel="seconds since the start", ylabel="Fréchet distance", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    write_whole(target, png(to_image(figure)))


# ---------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run_benchmark(argv))


def run_benchmark(argv: list[str] | None) -> None:
    options = parse_options(argv)
    check_writable(options.json)
    check_writable(options.plot)
    evaluator = build_evaluator(load_dataset(DATASET, options.data_root), options)
    loops = {loop: partial(measure_recipe, loop, options, evaluator) for loop in options.loops}
    if PLAIN in loops:
        loops[PLAIN] = partial(measure_plain_script, options)
    show(result := measure(options, loops))
    if options.plot:
        plot(result, Path(options.plot))


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser("quality", __doc__)
    add = parser.add_argument
    loops = [PLAIN, *sorted(path.stem for path in RECIPES.glob(f"{DATASET}-*.toml"))]
    marks_help = "measure after these seconds, ascending (default: 60 120 300)"
    add("--marks", type=int, nargs="+", default=MARKS, metavar="SECONDS", help=marks_help)
    loops_help = f"{PLAIN}, and recipes (default: {' '.join(LOOPS)})"
    add("--loops", nargs="+", choices=loops, default=LOOPS, metavar="NAME", help=loops_help)
    add("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="default: 0")
    add("--plot", metavar="PNG", help="plot the distances")
    root = str(ROOT / "datasets")
    add("--data-root", default=root, help="folder of downloaded data (default: datasets)")
    options = parser.parse_args(argv)
    options.marks = sorted(set(options.marks))
    return options


if __name__ == "__main__":
    sys.exit(main())
