"""What several test modules share: small runs, and comparing what they leave behind."""

import csv

import torch

import train
from wgan.checkpoints import read_checkpoint, save_with_digest
from wgan.cli import make_parser, parse_command_line
from wgan.losses import CriticBatch, GeneratorBatch
from wgan.recipes import resolve

SMALL = ["--width", "8", "--noise-dim", "4", "--batch-size", "8", "--n-critic", "2"]
SMALL += ["--categories", "0"]  # a recipe's may be more than these noise dimensions
SMALL += ["--clusters", "0"]  # which exclude classes
SMALL += ["--compile", "off", "--no-lr-decay", "--lr-warmup", "0"]
OFTEN = ["--log-every", "2", "--sample-every", "2", "--checkpoint-every", "2"]


def small_config(**options):
    """A small configuration for the default data set."""
    options = {
        "width": 8,
        "noise_dim": 4,
        "categories": 0,
        "clusters": 0,
        "batch_size": 8,
        "n_critic": 3,
        "lr_warmup": 0,
    } | options
    return resolve(options).config


def critic_batch(real, fake, mix, labels=None, augmentation=None):
    """A batch, without classes and augmentation unless they are given."""
    labels = torch.zeros(len(real), dtype=torch.int64) if labels is None else labels
    augmentation = torch.zeros(len(real), 2, 0) if augmentation is None else augmentation
    return CriticBatch(real, fake, labels, mix, augmentation)


def generator_batch(noise, labels=None, augmentation=None, real=None, real_augmentation=None):
    nothing = torch.zeros(len(noise), 0)
    labels = torch.zeros(len(noise), dtype=torch.int64) if labels is None else labels
    others = (nothing if value is None else value for value in (augmentation, real_augmentation))
    return GeneratorBatch(nothing if real is None else real, noise, labels, *others)


def parse(*arguments):
    """The configuration of a command line."""
    return parse_command_line(make_parser(), [str(argument) for argument in arguments])[0].config


def arguments_for(folder, run, *more):
    """The command line of a small run on a folder of images."""
    arguments = ["--dataset", folder, "--image-size", "16", *SMALL, *OFTEN, "--device", "cpu"]
    # Longer runs begin alike: nothing depends on the progress, unless a test asks for it.
    arguments += ["--coarse", "0"]
    return [str(part) for part in (*arguments, "--run", run, *more)]


def run_main(folder, run, *more):
    """Train in this process; the exit code."""
    return train.main(arguments_for(folder, run, *more))


def write_with_digest(path, content):
    """Write a checkpoint of any content, with the right checksum."""
    with open(path, "w+b") as file:
        save_with_digest(content, file)


def contents(run):
    """All that a run computed: the log without its times, the checkpoint, the sample grids."""
    rows = list(csv.DictReader((run / "log.csv").read_text().splitlines()))
    log = [{k: v for k, v in row.items() if "second" not in k} for row in rows]
    grids = {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
    return log, read_checkpoint(run / "checkpoint.pt"), grids


def assert_same_run(one, other):
    (log, state, grids), (log2, state2, grids2) = contents(one), contents(other)
    assert log == log2
    assert grids == grids2
    assert_same_state(state, state2)


def assert_same_state(one, other):
    for name in ("seconds", "config"):  # the duration and the folder may differ
        one.pop(name), other.pop(name)
    assert_equal_trees(one, other)


def assert_equal_trees(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_trees(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal_trees(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other
