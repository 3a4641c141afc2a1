"""How good are samples after how long? The part of `benchmark.py --quality`.

Fréchet distances on Fashion-MNIST after so many seconds, everything included, from the start
of a process on: of the dense script that people copy, and of our recipes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from config import resolve
from data import floats_to_bytes, load_dataset
from files import write_whole
from plots import new_figure, to_image
from progress import seconds_since_start
from rundir import png
from textbook import PLAIN_DENSE, PlainDenseCritic, PlainDenseGenerator, Textbook, from_loader
from wgan_gp import choose_device

QUALITY_MARKS = (60, 120, 300)  # seconds since the start of a process
QUALITY_RECIPES = ("fashion-mnist-best", "fashion-mnist-dcgan")
BENCHMARK = Path(__file__).with_name("benchmark.py")


def quality(options) -> dict:
    """The distances by loop and mark; each recipe is run once for every mark, as its rates end
    there."""
    environment = ["--device", options.device, "--seed", str(options.seed)]
    result: dict = {"seed": options.seed}
    marks = [mark for mark in QUALITY_MARKS if mark <= options.up_to]
    command = [sys.executable, str(BENCHMARK), *environment, "--up-to", str(options.up_to)]
    output = subprocess.run(
        [*command, "--alone", "plain"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    result["loops"] = {"plain dense script": json.loads(output.splitlines()[-1])}
    evaluator = fashion_evaluator(options)
    for recipe in QUALITY_RECIPES:
        result["loops"][recipe] = {
            mark: evaluator.frechet_distance(
                samples_of_recipe(recipe, mark, environment, evaluator.count)
            )
            for mark in marks
        }
    return result


def fashion_evaluator(options):
    from evaluate import Evaluator

    dataset = load_dataset("fashion-mnist")
    return Evaluator(dataset, "datasets", choose_device(options.device), features="classifier")


def samples_of_recipe(recipe: str, seconds: int, environment: list[str], count: int) -> Tensor:
    """What a recipe generates after so many seconds from the start of the command to its end."""
    from generate import generate, load_generator

    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        run = folder + "/run"
        command = [sys.executable, str(here / "train.py"), "--run", run, *environment]
        command += ["--config", str(here / "configs" / f"{recipe}.toml")]
        subprocess.run([*command, "--max-seconds", str(seconds)], check=True)
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
    for mark in QUALITY_MARKS:
        if mark > options.up_to:
            break
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


def show_quality(result: dict) -> None:
    marks = list(next(iter(result["loops"].values())))
    print(f"\n{result['machine']}; seed {result['seed']}; Fréchet distance, Fashion-MNIST\n")
    print("| after | " + " | ".join(f"{mark} s" for mark in marks) + " |")
    print("|---|" + "---|" * len(marks))
    for name, measured in result["loops"].items():
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in measured.values()) + " |")


def plot_quality(result: dict, target: Path) -> None:
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for name, measured in result["loops"].items():
        seconds = [int(mark) for mark in measured]
        axes.plot(seconds, list(measured.values()), marker="o", label=name)
    axes.set(xlabel="seconds from the start of the process", ylabel="Fréchet distance", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    write_whole(target, png(to_image(figure)))
