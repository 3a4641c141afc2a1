"""How good are samples after how long?

Measures Fréchet distances on Fashion-MNIST after some seconds of wall-clock time, counted from
the end of a process's imports and including everything else: for the dense script of common
tutorials ("plain", benchmarks/textbook.py) and for recipes in configs/.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.common import (
    ROOT,
    check_writable,
    describe_machine,
    make_parser,
    run_command,
    run_python,
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
from wgan.config import RECIPES, read_toml
from wgan.data import load_dataset, to_byte_images
from wgan.evaluation.evaluator import Evaluator, choose_features
from wgan.files import write_whole
from wgan.layers import Layer, resolve
from wgan.plots import new_figure, png, to_image
from wgan.sampling import generate, load_generator
from wgan_gp import choose_device

DATASET = "fashion-mnist"
PLAIN = "plain"
LOOPS = f"{PLAIN},fashion-mnist-best,fashion-mnist-dcgan"
MARKS = "60,120,300"

# ---------------------------------------------------------------- measuring


def measure(options: argparse.Namespace) -> dict:
    """Distances by loop, seed and mark; None if a run failed.

    A recipe is run once for each mark, because its learning rates end there. The plain script is
    measured at all marks of one run. The result is written to `options.json` after each run.
    """
    marks, loops = parse_marks(options.marks), parse_loops(options.loops)
    check_recipes([loop for loop in loops if loop != PLAIN], marks)
    evaluator = build_evaluator(options)
    result: dict = {"machine": describe_machine(choose_device(options.device))}
    result |= {"marks": marks, "seeds": options.seeds, "loops": {loop: {} for loop in loops}}
    for seed in range(options.seed, options.seed + options.seeds):
        for loop in loops:
            distances = result["loops"][loop][seed] = {}
            if loop == PLAIN:
                distances |= measure_plain_script(options, seed)
                write_json(options.json, result)
                continue
            for mark in marks:
                distances[mark] = measure_recipe(loop, mark, seed, evaluator, options)
                write_json(options.json, result)
    return result


def build_evaluator(options: argparse.Namespace) -> Evaluator:
    dataset = load_dataset(DATASET, options.data_root)
    device = choose_device(options.device)
    return Evaluator(dataset, choose_features("classifier", dataset, options.data_root, device))


def measure_recipe(
    recipe: str, mark: int, seed: int, evaluator: Evaluator, options: argparse.Namespace
) -> float | None:
    try:
        samples = samples_of_recipe(recipe, mark, seed, evaluator.count, options)
    except subprocess.CalledProcessError as error:  # it has printed the reason
        print(f"{recipe}, {mark} s, seed {seed}: exit code {error.returncode}")
        return None
    return evaluator.frechet_distance(samples)


def samples_of_recipe(
    recipe: str, mark: int, seed: int, count: int, options: argparse.Namespace
) -> Tensor:
    """Samples of a recipe whose training command took `mark` seconds, start and end included."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [ROOT / "train.py", "--config", recipe_file(recipe), "--run", run]
        command += ["--max-seconds", mark, "--seed", seed, "--device", options.device]
        run_python(*command, "--data-root", options.data_root)
        return generate(load_generator(run), count)


def measure_plain_script(options: argparse.Namespace, seed: int) -> dict[int, float]:
    """Distances by mark; in a process of its own, whose clock starts after the imports."""
    command = ["-m", "benchmarks.quality", "--plain-script", "--marks", options.marks]
    command += ["--seed", seed, "--device", options.device, "--workers", options.workers]
    output = run_python(*command, "--data-root", options.data_root, output=True)
    return {int(mark): value for mark, value in json.loads(output.splitlines()[-1]).items()}


def run_plain_script(options: argparse.Namespace) -> None:
    """Train the dense script and print its distances as JSON; the time of measuring is not
    counted. This is the process that `measure_plain_script` starts."""
    device = choose_device(options.device)
    dataset = load_dataset(DATASET, options.data_root)
    config = resolve(PLAIN_DENSE | {"dataset": DATASET}).config
    torch.manual_seed(options.seed)
    networks = PlainDenseGenerator(dataset.sample_shape), PlainDenseCritic(dataset.sample_shape)
    images = dataset.read(torch.arange(len(dataset))).numpy()
    feed = from_loader(images, config.batch_size, options.workers)
    script = Textbook(config, *(network.to(device) for network in networks), feed)
    evaluator, not_counted, distances = None, 0.0, {}
    for mark in parse_marks(options.marks):
        while seconds_since_start() - not_counted < mark:
            script.step()
        begin = seconds_since_start()
        evaluator = evaluator or build_evaluator(options)
        samples = sample_plain_script(script.generator, evaluator.count, device)
        distances[mark] = evaluator.frechet_distance(samples)
        not_counted += seconds_since_start() - begin
    print(json.dumps(distances))


@torch.no_grad()
def sample_plain_script(generator: nn.Module, count: int, device: torch.device) -> Tensor:
    generator.eval()
    noise = torch.randn(count, generator.noise_dim, device=device)
    samples = torch.cat([to_byte_images(generator(part)).cpu() for part in noise.split(500)])
    generator.train()
    return samples


# ---------------------------------------------------------------- options


def parse_marks(text: str) -> list[int]:
    """ "60,300" as numbers in ascending order; ValueError if it is no such list."""
    marks = {int(part) if part.strip().isdecimal() else 0 for part in text.split(",")}
    if min(marks) < 1:
        raise ValueError(f"--marks must be seconds such as {MARKS}, not {text!r}")
    return sorted(marks)


def parse_loops(text: str) -> list[str]:
    """Names as a list; ValueError for a name that is not a recipe for Fashion-MNIST."""
    loops = list(dict.fromkeys(part.strip() for part in text.split(",")))
    known = [PLAIN, *sorted(path.stem for path in RECIPES.glob(f"{DATASET}-*.toml"))]
    for loop in loops:
        if loop not in known:
            raise ValueError(f"--loops: unknown name {loop!r}; use {', '.join(known)}")
    return loops


def check_recipes(recipes: list[str], marks: list[int]) -> None:
    """ValueError if a recipe cannot be trained for this long; better now than after minutes."""
    for recipe in recipes:
        layer = Layer(str(recipe_file(recipe)), read_toml(recipe_file(recipe)))
        for mark in marks:
            resolve({"max_seconds": mark}, layer)


def recipe_file(name: str) -> Path:
    return RECIPES / f"{name}.toml"


# ---------------------------------------------------------------- results


def values_by_mark(result: dict, loop: str) -> dict[int, list[float]]:
    """Distances of one loop at each mark, over the seeds, without failed runs."""
    seeds = result["loops"][loop].values()
    found = {mark: [distances.get(mark) for distances in seeds] for mark in result["marks"]}
    return {mark: [d for d in distances if d is not None] for mark, distances in found.items()}


def show(result: dict) -> None:
    """Print a table of medians over the seeds, with the minimum and maximum."""
    marks = result["marks"]
    print(f"\n{result['machine']}; Fréchet distance on Fashion-MNIST")
    print(f"median over {result['seeds']} seed(s), and range\n")
    print("| after | " + " | ".join(f"{mark} s" for mark in marks) + " |")
    print("|---|" + "---|" * len(marks))
    for loop in result["loops"]:
        cells = map(median_and_range, values_by_mark(result, loop).values())
        print(f"| {title(loop)} | " + " | ".join(cells) + " |")


def median_and_range(values: list[float]) -> str:
    if not values:
        return "failed"
    middle = f"{median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


def title(loop: str) -> str:
    return "plain dense script" if loop == PLAIN else loop


def plot(result: dict, target: Path) -> None:
    """Plot medians against time, with bands from the minimum to the maximum."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for loop in result["loops"]:
        found = {mark: values for mark, values in values_by_mark(result, loop).items() if values}
        marks, values = list(found), list(found.values())
        axes.plot(marks, list(map(median, values)), marker="o", label=title(loop))
        axes.fill_between(marks, list(map(min, values)), list(map(max, values)), alpha=0.2)
    axes.set(xlabel="seconds since the start of the process", ylabel="Fréchet distance", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    write_whole(target, png(to_image(figure)))


# ---------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input."""
    return run_command(lambda: run_benchmark(argv))


def run_benchmark(argv: list[str] | None) -> None:
    options = parse_options(argv)
    if options.plain_script:
        run_plain_script(options)
        return
    check_writable(options.json)
    check_writable(options.plot)
    show(result := measure(options))
    if options.plot:
        plot(result, Path(options.plot))


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser("quality", __doc__)
    add = parser.add_argument
    add("--marks", default=MARKS, help=f"seconds after which to measure (default: {MARKS})")
    add("--loops", default=LOOPS, help=f"{PLAIN}, and recipes (default: {LOOPS})")
    add("--seeds", type=int, default=1, help="number of runs of each loop (default: 1)")
    add("--seed", type=int, default=0, help="random seed of the first run (default: 0)")
    add("--plot", metavar="PNG", help="plot the distances")
    add("--workers", type=int, default=0, help="processes of the script's DataLoader (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    root = str(ROOT / "datasets")
    add("--data-root", default=root, help="folder of downloaded data (default: datasets)")
    add("--plain-script", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.seed < 0:
        raise ValueError("--seeds must be at least 1, and --seed at least 0")
    return options


if __name__ == "__main__":
    sys.exit(main())
