"""Evaluate the samples of a run, or compare images with other images.

    python evaluate.py images/RUN                            a run with its data set
    python evaluate.py samples.npz --dataset fashion-mnist   an array or a folder with a data set
    python evaluate.py generated/ photos/                    two folders or arrays

Images with labels are compared in the features of a small classifier, trained once on the data
set; other images in those of random filters; points exactly. With --features
inception, or if Inception's weights (91 MB) exist on this machine, images are compared as for FID.
Every metric but the critic's estimate is reported next to its floor, the score of held-out real
samples.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from wgan.output import run_script

from wgan.checkpoints import describe_other_data, read_any_checkpoint
from wgan.config import Config, stored_config
from wgan.data import Dataset, load_dataset, load_test_set
from wgan.data.sources import RUN_FILES
from wgan.errors import Parser, refuse_unused
from wgan.evaluation.evaluator import Evaluator, split_indices
from wgan.evaluation.features import CHOICES
from wgan.evaluation.points import evaluate_points
from wgan.evaluation.report import format_report
from wgan.evaluation.samples import (
    MIN_SAMPLES,
    SAMPLES,
    is_array,
    labelled_samples,
    read_pair,
    sample_run,
)
from wgan.files import check_output, write_whole
from wgan.sampling import generator_of
from wgan_gp import choose_device


def evaluate(options: argparse.Namespace) -> dict:
    """Metrics of samples ("generated") and of held-out real samples ("real").

    ValueError or OSError for bad input.
    """
    if is_run(options.source):
        return evaluate_run(options)
    return compare(options)


def is_run(source: str) -> bool:
    """Whether a source is a run or a checkpoint, rather than an array or a folder of images."""
    path = Path(source)
    if path.is_dir():
        return any((path / name).exists() for name in RUN_FILES)
    return not is_array(source)


def evaluate_run(options: argparse.Namespace) -> dict:
    if options.other:
        raise ValueError(
            f"{options.source} is not an array or a folder of images: give the data "
            "to compare a run with by --dataset"
        )
    checkpoint = read_any_checkpoint(options.source)
    weights, seed = getattr(options, "from") or "ema", options.seed or 0
    generator = generator_of(checkpoint, options.source, weights, options.device)
    named = {"dataset": options.dataset, "data_root": options.data_root}
    named = {name: place for name, place in named.items() if place is not None}
    config = replace(stored_config(checkpoint["config"]), **named)
    dataset = load_data(config, moved=bool(named))
    if dataset.sample_shape != generator.sample_shape:
        raise ValueError(
            f"the run's samples have shape {generator.sample_shape}, but the data set now has "
            f"{dataset.sample_shape}: they cannot be compared"
        )
    identity = dataset.identity(bool(generator.class_names))
    if other := describe_other_data(checkpoint.get("data"), identity):
        print(other, file=sys.stderr)
    result = {"source": options.source, "step": checkpoint.get("step"), "seed": seed}
    test = None
    if options.reference == "test":
        test = load_test_set(config.dataset, config.data_root, config.image_size, config.grey)
    if dataset.is_points:
        refuse_unused(options, ["features", "neighbours"], "on points")
        count = options.samples
        return result | evaluate_points(checkpoint, config, generator, dataset, count, seed)
    device, features = choose_device(options.device), options.features or "auto"
    evaluator = Evaluator(dataset, config.data_root, device, options.samples, features, test)
    samples = sample_run(generator, dataset, evaluator.count, seed)
    target = options.neighbours or run_folder(options.source) / "neighbours.png"
    return result | evaluator.compare(samples, target)


def compare(options: argparse.Namespace) -> dict:
    """Compare an array or a folder of images with another one, or with a data set."""
    if bool(options.other) == bool(options.dataset):
        raise ValueError(
            f"{options.source} is not a run: compare it with one other array, folder or data set, "
            "either as in evaluate.py A B or with --dataset"
        )
    refuse_unused(options, ["seed", "from"], "without a run")
    root, reference = options.data_root or "datasets", options.other or options.dataset
    source, dataset = read_pair(options.source, reference, root)
    size = "x".join(map(str, source.sample_shape[1:]))
    test = load_test_set(reference, root, size) if options.reference == "test" else None
    count = min(options.samples, len(source))
    device, features = choose_device(options.device), options.features or "auto"
    evaluator = Evaluator(dataset, root, device, count, features, test)
    indices, *_ = split_indices(len(source), evaluator.count)
    result = {"source": options.source, "reference": reference}
    return result | evaluator.compare(labelled_samples(source, indices), options.neighbours)


def load_data(config: Config, moved: bool) -> Dataset:
    """The data of a run; if that fails and the user has not said where they moved, the error says
    how to."""
    try:
        return load_dataset(*config.data_arguments())
    except (ValueError, OSError) as error:
        if moved:
            raise
        raise ValueError(
            f"the run's data cannot be loaded: {error}. If the data has moved, give its new "
            "location with --dataset, or that of downloaded data with --data-root"
        ) from error


def run_folder(source: str) -> Path:
    path = Path(source)
    return path if path.is_dir() else path.parent


# ---------------------------------------------------------------- the command


def make_parser() -> Parser:
    parser = Parser(
        prog="evaluate.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    source_help = "folder of a run, a checkpoint, a folder of images, or a .npz or .npy file"
    add("source", metavar="SOURCE", type=os.path.expanduser, help=source_help)
    other_help = "folder, file or data set to compare images with, unless they are a run's"
    add("other", metavar="OTHER", nargs="?", type=os.path.expanduser, help=other_help)
    samples_help = (
        f"number of samples, at most half of the data, and at most {SAMPLES} with a classifier "
        f"(default: {SAMPLES})"
    )
    add("--samples", "--count", metavar="N", type=int, default=SAMPLES, help=samples_help)
    features_help = (
        "auto: inception if its weights exist on this machine, otherwise classifier if there are "
        "labels, otherwise random (default: auto)"
    )
    dataset_help = "data set or folder to compare with, or the run's if it has moved"
    add("--dataset", metavar="S", type=os.path.expanduser, help=dataset_help)
    reference_help = "compare with training images, or with the test images of the data set"
    add("--reference", choices=("train", "test"), default="train", help=reference_help)
    add("--data-root", metavar="S", help="folder of downloaded and prepared data, if it moved")
    add("--features", choices=CHOICES, help=features_help)
    add("--seed", metavar="N", type=int, help="random seed of the noise (default: 0)")
    weights_help = "weights of the moving average, or of the last step (default: ema)"
    add("--from", choices=("ema", "raw"), help=weights_help)
    neighbours_help = (
        "image of samples next to the most similar real images (default: neighbours.png in the "
        "run's folder, none without a run)"
    )
    add("--neighbours", type=os.path.expanduser, metavar="PNG", help=neighbours_help)
    json_help = "also write the metrics to this file"
    add("--json", type=os.path.expanduser, metavar="FILE", help=json_help)
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    return parser


def run(argv: list[str] | None) -> None:
    options = make_parser().parse_args(argv)
    if options.samples < MIN_SAMPLES or (options.seed or 0) < 0:
        raise ValueError(f"--samples must be at least {MIN_SAMPLES}, and --seed at least 0")
    for name in ("json", "neighbours"):  # before the work, not after it
        if text := getattr(options, name):
            setattr(options, name, check_output(f"--{name}", text))
    result = evaluate(options)
    print(format_report(result))
    if options.json:
        write_whole(options.json, (json.dumps(result, indent=2) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
