"""How good are samples after how long? The part of `benchmark.py --quality`.

Fréchet distances on Fashion-MNIST after so many seconds, everything included, from the start
of a process on: of the dense script that people copy, and of recipes.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.textbook import (
    PLAIN_DENSE,
    PlainDenseCritic,
    PlainDenseGenerator,
    Textbook,
    from_loader,
)
from wgan.budget import seconds_since_start
from wgan.config import read_toml, resolve
from wgan.data.table import floats_to_bytes, load_dataset
from wgan.files import write_whole
from wgan.plots import new_figure, to_image
from wgan.run_folder import png
from wgan_gp import choose_device

MARKS = (60, 120, 300)  # seconds since the start of a process
PLAIN = "plain"  # the dense script of `textbook.py`
LOOPS = (PLAIN, "fashion-mnist-best", "fashion-mnist-dcgan")
ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "configs"


def quality(options, keep: Callable[[dict], None]) -> dict:
    """The distances by loop, seed and mark, None where a run failed.

    A recipe is run once for every mark, as its rates end there; the plain script is measured at
    all marks on its way. `keep` is called after each of these runs.
    """
    marks, loops = parse_marks(options.marks), parse_loops(options.loops)
    for recipe in loops:
        for mark in marks if recipe != PLAIN else ():
            resolve(read_toml(str(recipe_file(recipe))), {"max_seconds": mark})  # fails early
    result: dict = {"marks": marks, "seeds": options.seeds}
    result["loops"] = {loop: {} for loop in loops}
    evaluator = fashion_evaluator(options)
    for seed in range(options.seed, options.seed + options.seeds):
        environment = ["--device", options.device, "--seed", str(seed)]
        for loop in loops:
            measured = result["loops"][loop][seed] = {}
            if loop == PLAIN:
                measured |= distances_of_plain_script(options, environment)
                keep(result)
                continue
            for mark in marks:
                measured[mark] = None
                try:
                    samples = samples_of_recipe(loop, mark, environment, evaluator.count)
                    measured[mark] = evaluator.frechet_distance(samples)
                except subprocess.CalledProcessError as error:  # it has said why
                    print(f"{loop}, {mark} s, seed {seed}: exit code {error.returncode}")
                keep(result)
    return result


def parse_marks(text: str) -> list[int]:
    """ "60,300" to numbers, the least first; ValueError where it is not such a list."""
    marks = {int(part) if part.strip().isdecimal() else 0 for part in text.split(",")}
    if min(marks) < 1:
        raise ValueError(f"--marks takes seconds such as {','.join(map(str, MARKS))}, not {text!r}")
    return sorted(marks)


def parse_loops(text: str) -> list[str]:
    """Names to a list; ValueError for a name that is no recipe for Fashion-MNIST."""
    loops = list(dict.fromkeys(part.strip() for part in text.split(",")))
    known = [PLAIN, *sorted(path.stem for path in RECIPES.glob("fashion-mnist-*.toml"))]
    for loop in loops:
        if loop not in known:
            raise ValueError(f"--loops: there is no {loop!r}; there is {', '.join(known)}")
    return loops


def recipe_file(name: str) -> Path:
    return RECIPES / f"{name}.toml"


def fashion_evaluator(options):
    from evaluate import Evaluator

    dataset = load_dataset("fashion-mnist")
    return Evaluator(dataset, "datasets", choose_device(options.device), features="classifier")


def distances_of_plain_script(options, environment: list[str]) -> dict[int, float]:
    command = [sys.executable, "-m", "benchmarks.speed", *environment, "--alone", PLAIN]
    command += ["--marks", options.marks, "--workers", str(options.workers)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured = json.loads(output.splitlines()[-1])
    return {int(mark): distance for mark, distance in measured.items()}


def samples_of_recipe(recipe: str, seconds: int, environment: list[str], count: int) -> Tensor:
    """What a recipe generates after so many seconds from the start of the command to its end."""
    from generate import generate, load_generator

    train = ROOT / "train.py"
    with tempfile.TemporaryDirectory() as folder:
        run = folder + "/run"
        command = [sys.executable, str(train), "--run", run, *environment]
        command += ["--config", str(recipe_file(recipe)), "--max-seconds", str(seconds)]
        subprocess.run(command, check=True)
        return generate(load_generator(run), count)


def run_plain_script(options) -> None:
    """The dense script that people copy; prints the distance after each mark of its own time."""
    device = choose_device(options.device)
    dataset = load_dataset("fashion-mnist")
    config = resolve(PLAIN_DENSE | {"dataset": "fashion-mnist"}, {})
    torch.manual_seed(options.seed)
    networks = PlainDenseGenerator(dataset.sample_shape), PlainDenseCritic(dataset.sample_shape)
    feed = from_loader(dataset.samples, config.batch_size, options.workers)
    script = Textbook(config, *(network.to(device) for network in networks), feed)
    evaluator, paused, measured = None, 0.0, {}
    for mark in parse_marks(options.marks):
        while seconds_since_start() - paused < mark:
            script.step()
        begin = seconds_since_start()
        evaluator = evaluator or fashion_evaluator(options)
        script.generator.eval()
        with torch.no_grad():
            noise = torch.randn(evaluator.count, config.noise_dim, device=device).split(500)
            samples = torch.cat([floats_to_bytes(script.generator(part)).cpu() for part in noise])
        script.generator.train()
        measured[mark] = evaluator.frechet_distance(samples)
        paused += seconds_since_start() - begin
    print(json.dumps(measured))


def by_mark(result: dict, loop: str) -> dict[int, list[float]]:
    """The distances of one loop, of all seeds after each mark; without the failed runs."""
    seeds = result["loops"][loop].values()
    found = {mark: [measured.get(mark) for measured in seeds] for mark in result["marks"]}
    return {mark: [d for d in distances if d is not None] for mark, distances in found.items()}


def show_quality(result: dict) -> None:
    """A table of medians over the seeds, with the least and the greatest."""
    marks = result["marks"]
    print(f"\n{result['machine']}; Fréchet distance, Fashion-MNIST; the median of "
          f"{result['seeds']} seed(s), and the range\n")  # fmt: skip
    print("| after | " + " | ".join(f"{mark} s" for mark in marks) + " |")
    print("|---|" + "---|" * len(marks))
    for loop in result["loops"]:
        cells = map(median_and_range, by_mark(result, loop).values())
        print(f"| {shown_name(loop)} | " + " | ".join(cells) + " |")


def median_and_range(values: list[float]) -> str:
    if not values:
        return "failed"
    middle = f"{median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


def shown_name(loop: str) -> str:
    return "plain dense script" if loop == PLAIN else loop


def plot_quality(result: dict, target: Path) -> None:
    """Medians over time, and bands from the least to the greatest."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for loop in result["loops"]:
        measured = {mark: values for mark, values in by_mark(result, loop).items() if values}
        marks, values = list(measured), list(measured.values())
        axes.plot(marks, list(map(median, values)), marker="o", label=shown_name(loop))
        axes.fill_between(marks, list(map(min, values)), list(map(max, values)), alpha=0.2)
    axes.set(xlabel="seconds from the start of the process", ylabel="Fréchet distance", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    write_whole(target, png(to_image(figure)))
