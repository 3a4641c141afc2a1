"""Evaluate the samples of a run: `python evaluate.py images/RUN`.

Images with labels are compared in the features of a small classifier, trained once on the data
set; other images by their patches; points exactly. With --features inception, or if Inception's
weights (91 MB) exist on this machine, images are compared as for FID. Every metric is reported
next to its floor, the score of held-out real samples.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from utils import unbiased_estimate
from wgan.checkpoints import describe_other_data, read_any_checkpoint
from wgan.config import Config, stored_config
from wgan.data import Dataset, load_dataset
from wgan.errors import Parser
from wgan.evaluation.evaluator import (
    MIN_SAMPLES,
    SAMPLES,
    Evaluator,
    critic_estimate,
    report_points,
)
from wgan.evaluation.features import CHOICES
from wgan.files import check_output, write_whole
from wgan.output import run_script
from wgan.plots import png
from wgan.sampling import generate, generator_of
from wgan_gp import choose_device


def evaluate(options: argparse.Namespace) -> dict:
    """Metrics of a run's samples ("generated") and of held-out real samples ("real").

    ValueError or OSError for bad input.
    """
    checkpoint = read_any_checkpoint(options.source)
    generator = generator_of(checkpoint, options.source, options.weights, options.device)
    named = {"dataset": options.dataset, "data_root": options.data_root}
    named = {name: place for name, place in named.items() if place is not None}
    config = replace(stored_config(checkpoint["config"]), **named)
    dataset = load_data(config, moved=bool(named))
    if dataset.sample_shape != generator.sample_shape:
        raise ValueError(
            f"the run's samples have shape {generator.sample_shape}, but the data set now has "
            f"{dataset.sample_shape}: they cannot be compared"
        )
    if other := describe_other_data(checkpoint.get("data"), dataset.identity()):
        print(other, file=sys.stderr)
    result = {"source": options.source, "step": checkpoint.get("step"), "seed": options.seed}
    if dataset.is_points:
        return result | evaluate_points(checkpoint, config, generator, dataset, options)
    return result | evaluate_images(config, generator, dataset, options)


def load_data(config: Config, moved: bool) -> Dataset:
    """The data of a run; if that fails and the user has not said where they moved, the error says
    how to."""
    try:
        return load_dataset(
            config.dataset,
            config.data_root,
            config.image_size,
            config.grey,
            config.range,
            config.alpha,
        )
    except (ValueError, OSError) as error:
        if moved:
            raise
        raise ValueError(
            f"the run's data cannot be loaded: {error}. If the data has moved, give its new "
            "location with --dataset, or that of downloaded data with --data-root"
        ) from error


def evaluate_images(
    config: Config, generator: nn.Module, dataset: Dataset, options: argparse.Namespace
) -> dict:
    device = choose_device(options.device)
    evaluator = Evaluator(dataset, config.data_root, device, options.samples, options.features)
    images = generate(generator, evaluator.count, options.seed)
    result: dict = {
        "samples": evaluator.count,
        "features": evaluator.features.name if evaluator.features else "",
    }
    with tqdm(total=2, desc="comparing", delay=2, leave=False, disable=None) as bar:
        for name, compared in (("generated", images), ("real", evaluator.held_out)):
            result[name] = evaluator.report(compared)
            bar.update()
    target = options.neighbours or run_folder(options.source) / "neighbours.png"
    write_whole(target, png(evaluator.neighbours(images)))
    return result | {"neighbours": str(target)}


def evaluate_points(
    checkpoint: dict,
    config: Config,
    generator: nn.Module,
    dataset: Dataset,
    options: argparse.Namespace,
) -> dict:
    count = min(options.samples, len(dataset) // 2)
    points = generate(generator, count, options.seed)
    if dataset.standardisation:  # distances are in standard deviations
        points = dataset.standardisation.apply(points)
    samples = dataset.read(torch.arange(len(dataset)))
    reference, held_out = samples[:-count], samples[-count:]
    labels = dataset.labels
    labels = None if labels is None else torch.from_numpy(labels[:-count]).long()
    generated = report_points(points, reference, labels)
    generated["critic_estimate"] = critic_estimate(checkpoint, config, held_out, points)
    if weight := config.applicable().get("gp_weight"):
        estimate = unbiased_estimate(generated["critic_estimate"], weight)
        generated["critic_estimate_unbiased"] = estimate
    real = report_points(held_out, reference, labels)
    return {"samples": count, "generated": generated, "real": real}


def run_folder(source: str) -> Path:
    path = Path(source)
    return path if path.is_dir() else path.parent


# ---------------------------------------------------------------- the command


def show(result: dict) -> None:
    features = f", features: {result['features']}" if result.get("features") else ""
    print(f"{result['source']}, step {result['step']}, {result['samples']} samples{features}\n")
    print(f"{'':<28}{'generated':>12}{'real, held out':>16}")
    for name, value in result["generated"].items():
        floor = result["real"].get(name)
        floor = f"{floor:>16.4g}" if floor is not None else ""
        print(f"{name.replace('_', ' '):<28}{value:>12.4g}{floor}")
    if "neighbours" in result:
        print(f"\nsamples next to the real images nearest to them: {result['neighbours']}")


def make_parser() -> Parser:
    parser = Parser(
        prog="evaluate.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", type=os.path.expanduser, help="folder of a run, or a checkpoint")
    samples_help = (
        f"number of samples, at most half of the data, and at most {SAMPLES} with a classifier "
        f"(default: {SAMPLES})"
    )
    add("--samples", type=int, default=SAMPLES, help=samples_help)
    features_help = "auto: inception if its weights exist on this machine, otherwise classifier"
    add("--dataset", metavar="S", help="data set or folder, if the run's has moved")
    add("--data-root", metavar="S", help="folder of downloaded and prepared data, if it moved")
    add("--features", choices=CHOICES, default="auto", help=features_help)
    add("--seed", type=int, default=0, help="random seed of the noise (default: 0)")
    weights_help = "weights of the moving average, or of the last step (default: ema)"
    add("--from", dest="weights", choices=("ema", "raw"), default="ema", help=weights_help)
    neighbours_help = (
        "image of samples next to the most similar real images (default: neighbours.png, in the "
        "run's folder)"
    )
    add("--neighbours", type=os.path.expanduser, metavar="PNG", help=neighbours_help)
    add(
        "--json",
        type=os.path.expanduser,
        metavar="FILE",
        help="also write the metrics to this file",
    )
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    return parser


def run(argv: list[str] | None) -> None:
    options = make_parser().parse_args(argv)
    if options.samples < MIN_SAMPLES or options.seed < 0:
        raise ValueError(f"--samples must be at least {MIN_SAMPLES}, and --seed at least 0")
    for name in ("json", "neighbours"):  # before the work, not after it
        if text := getattr(options, name):
            setattr(options, name, check_output(f"--{name}", text))
    result = evaluate(options)
    show(result)
    if options.json:
        write_whole(options.json, (json.dumps(result, indent=2) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
