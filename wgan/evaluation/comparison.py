"""What evaluate.py compares: a run with its data set, or images with other images."""

import argparse
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from wgan.checkpoints import config_of, describe_other_data, find_checkpoints, read_any_checkpoint
from wgan.command import refuse_unused
from wgan.config import Config
from wgan.data import Dataset, ImageOptions, find_entry, load_dataset, load_test_set, sample_shape
from wgan.data.arrays import ARRAY_SUFFIXES
from wgan.data.classes import match_classes
from wgan.data.folder import is_images, load_folder, open_source
from wgan.data.image_options import Range
from wgan.evaluation.critic import report_critic
from wgan.evaluation.evaluator import Evaluator, choose_features
from wgan.evaluation.points import compare_points, evaluate_points
from wgan.evaluation.samples import (
    MIN_SAMPLES,
    check_enough,
    labelled_samples,
    random_indices,
    sample_run,
)
from wgan.sampling import generator_of
from wgan_gp import choose_device


def names_run(source: str) -> bool:
    """Whether a source names a run or a checkpoint, rather than samples."""
    path = Path(source)
    is_file = path.suffix.lower() in (*ARRAY_SUFFIXES, ".csv", ".zip")
    return bool(find_checkpoints(path)) if path.is_dir() else not is_file


def is_array(source: str) -> bool:
    return Path(source).suffix.lower() in ARRAY_SUFFIXES


# ---------------------------------------------------------------- a run


def evaluate_run(options: argparse.Namespace) -> dict:
    """Metrics of the samples of the run or checkpoint `options.source`; the other options are those
    of evaluate.py. ValueError or OSError for bad input."""
    if options.other:
        raise ValueError(
            f"{options.source} is not an array or a folder of images: give the data "
            "to compare a run with by --dataset"
        )
    source, seed = Path(options.source), options.seed or 0
    checkpoint = read_any_checkpoint(source)
    generator = generator_of(checkpoint, str(source), options.weights or "ema", options.device)
    config, dataset = load_data(checkpoint, generator.scale, options.dataset, options.data_root)
    if dataset.sample_shape != generator.sample_shape:
        raise ValueError(
            f"the run's samples have shape {generator.sample_shape}, but the data set now has "
            f"{dataset.sample_shape}: they cannot be compared"
        )
    identity = dataset.identity(bool(generator.class_names))
    if difference := describe_other_data(checkpoint.get("data"), identity):
        print(difference, file=sys.stderr)
    result = {"source": options.source, "step": checkpoint.get("step"), "seed": seed}
    result["training_data"] = difference is None
    folder = source if source.is_dir() else source.parent
    test = None
    if options.reference == "test":
        test = load_test_set(config.dataset, config.data_root, config.image_options())
    if dataset.is_points:
        refuse_unused({"--features": options.features}, "on points")
        picture = options.neighbours or folder / "columns.png"
        return result | evaluate_points(
            checkpoint, config, generator, dataset, options.samples, seed, picture
        )
    device = choose_device(options.device)
    features = choose_features(options.features or "auto", dataset, config.data_root, device)
    evaluator = Evaluator(dataset, features, options.samples, test)
    samples = sample_run(generator, dataset, evaluator.count, seed)
    result |= evaluator.compare(samples, options.neighbours or folder / "neighbours.png")
    if not generator.class_counts:  # a critic of classes has no estimate of all samples together
        real = evaluator.held_out.values
        result["generated"] |= report_critic(checkpoint, config, real, samples.values)
    return result


def load_data(
    checkpoint: dict, scale: Range | None, dataset: str | None, data_root: str | None
) -> tuple[Config, Dataset]:
    """The configuration and the data of a run, in the scale of its samples; `dataset` and
    `data_root` say where the data is now, if it has moved. If it cannot be loaded, the error says
    how to give its location."""
    moved = {"dataset": dataset, "data_root": data_root}
    moved = {name: place for name, place in moved.items() if place is not None}
    config = replace(config_of(checkpoint), **moved)
    try:
        data = load_dataset(config.dataset, config.data_root, config.image_options())
        if scale and scale != data.scale:  # the data has changed
            config = replace(config, range=scale)
            data = load_dataset(config.dataset, config.data_root, config.image_options())
        return config, data
    except (ValueError, OSError) as error:
        if moved:
            raise
        raise ValueError(
            f"the run's data cannot be loaded: {error}. If the data has moved, give its new "
            "location with --dataset, or that of downloaded data with --data-root"
        ) from error


# ---------------------------------------------------------------- two sets of samples


def compare(options: argparse.Namespace) -> dict:
    """Metrics of the samples in `options.source` against another set; the other options are those
    of evaluate.py. ValueError or OSError for bad input."""
    if bool(options.other) == bool(options.dataset):
        raise ValueError(
            f"{options.source} is not a run: compare it with one other array, folder or data set, "
            "either as in evaluate.py A B or with --dataset"
        )
    refuse_unused({"--seed": options.seed, "--from": options.weights}, "without a run")
    root, reference = options.data_root or "datasets", options.other or options.dataset
    result = {"source": options.source, "reference": reference}
    names = options.source, reference
    if all(entry and entry.is_points for entry in map(find_entry, names)):
        refuse_unused({"--features": options.features}, "on points")
        pair = (load_dataset(name, root) for name in names)
        return result | compare_points(*pair, options.samples, options.neighbours)
    source, dataset = read_pair(options.source, reference, root)
    test = None
    if options.reference == "test":
        test = load_test_set(reference, root, ImageOptions(source.sample_shape[1:]))
    device = choose_device(options.device)
    features = choose_features(options.features or "auto", dataset, root, device)
    evaluator = Evaluator(dataset, features, min(options.samples, len(source)), test)
    samples = labelled_samples(source, random_indices(len(source), evaluator.count))
    return result | evaluator.compare(samples, options.neighbours)


def read_pair(source: str, reference: str, data_root: str) -> tuple[Dataset, Dataset]:
    """Two sets of images of one shape, each an array file, a folder or a data set in the table.

    Folders and data sets in the table are loaded with the size of the other set, and the values of
    the first are scaled as those of the second. The labels of the first are those of the second,
    for classes of the same name. Raises ValueError if one cannot be read, the shapes differ, or
    only the second contains bytes.
    """
    shape = None
    if is_array(reference) and is_images(Path(source)):
        shape = read_dataset(reference, data_root).sample_shape
    first = read_dataset(source, data_root, shape)
    second = read_dataset(reference, data_root, first.sample_shape)
    if first.sample_shape != second.sample_shape:
        raise ValueError(
            f"the images in {source} have shape {first.sample_shape}, but those in {reference} "
            f"have {second.sample_shape}: they cannot be compared"
        )
    if first.scale and not second.scale:
        raise ValueError(
            f"the images in {reference} have 8 bits, but those in {source} have not: convert the "
            "latter to uint8, with 0 as black and 255 as white"
        )
    if first.scale and first.scale != second.scale:
        first = read_dataset(source, data_root, first.sample_shape, second.scale)
    check_enough(first, MIN_SAMPLES)
    if first.labels is None or second.labels is None:
        return first, second
    positions = match_classes(first.class_names, second.class_names)
    return replace(first, labels=positions[first.labels], class_names=second.class_names), second


def read_dataset(
    source: str,
    data_root: str,
    shape: tuple[int, ...] | None = None,
    scale: Range | None = None,
) -> Dataset:
    """Images of an array file, a folder, a zip archive, or a data set in the table.

    All but arrays are loaded with the size of `shape` `(C, H, W)`, folders also in grey if C is 1,
    and with alpha if C is 4. Without `shape`, a folder's first image determines size and grey.
    `scale` fixes black and white. Raises ValueError if the source cannot be read or contains
    no images.
    """
    if is_array(source):
        alpha = sample_shape(source)[0] == 4
        dataset = load_dataset(source, data_root, ImageOptions(alpha=alpha, range=scale))
        if dataset.is_points:
            raise ValueError(f"{source} contains vectors: compare them with vectors")
        return dataset
    if not is_images(Path(source)):
        return load_dataset(source, data_root, ImageOptions(shape[1:] if shape else None))
    channels, *size = shape or first_shape(Path(source), Path(data_root))
    options = ImageOptions(tuple(size), channels == 1, channels == 4, scale)
    return load_folder(Path(source), Path(data_root), options)


def first_shape(path: Path, root: Path) -> tuple[int, int, int]:
    """The shape `(C, H, W)` of the first image of a folder or archive that can be read."""
    source = open_source(path, root)
    for file in source.list():
        with suppress(OSError, ValueError), source.open(file.name) as image:
            return (1 if image.mode == "L" else 3, image.height, image.width)
    raise ValueError(f"there is no image in {path}")
