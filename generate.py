"""Generate samples from a trained generator: `python generate.py images/RUN --count 64`.

The suffix of --out determines the format: `.png` is one grid; `.npz` and `.npy` are one array
(images `(N, H, W, C)` uint8, points `(N, 2)` float32, vectors `(N, D)` float64 in the data's
units), with the classes in `.npz`, and as `range` the values of black and white if images were
scaled; `.csv` is a table of vectors; a name without suffix is a folder of numbered images, from
000000.png, in a subfolder per class. With --interpolate, `.gif` is an animation that walks from
the noise of a sample to that of the next, and back to the first. In Python:

    from wgan import load_generator, generate
    samples = generate(load_generator("images/RUN"), count=64, seed=0)
"""

import argparse
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wgan.command import Parser, add_sampling_options, integer, refuse_unused, run_script
from wgan.export import export
from wgan.sample_files import check_size, check_target, write_animation, write_samples
from wgan.sampling import (
    TrainedGenerator,
    check_noise,
    draw_labels,
    find_class,
    generate,
    interpolation_frames,
    load_generator,
    noise_of,
)

IMAGES, POINTS, WALKS = 64, 1000, 16  # the defaults of --count
MAXIMUM = 10_000_000  # samples, which must fit into memory
STOPS, FRAMES = 5, 16


def make_parser() -> Parser:
    parser = Parser(prog="generate.py", usage="%(prog)s RUN [options]", description=__doc__)
    add = parser.add_argument
    source_help = "folder of a run, a checkpoint, or an exported .safetensors file"
    add("source", metavar="RUN", type=os.path.expanduser, help=source_help)
    out_help = "file or folder (default: generated.png or interpolation.gif, in the run's folder)"
    add("--out", metavar="PATH", type=os.path.expanduser, help=out_help)
    count_help = (
        f"number of samples (default: {IMAGES}; points: {POINTS}), or with --interpolate of walks "
        f"side by side (default: {WALKS})"
    )
    add("--count", metavar="N", type=integer(1, MAXIMUM), help=count_help)
    add_sampling_options(parser)
    parser.set_defaults(weights="ema")
    noise_group = parser.add_argument_group("noise")
    add = noise_group.add_mutually_exclusive_group().add_argument
    noise_help = "array of noise vectors (N, noise_dim), one sample each"
    add("--noise", metavar="FILE.npy", type=os.path.expanduser, help=noise_help)
    seeds_help = "the first sample of each of these seeds, with --class in each class"
    add("--seeds", metavar="N,...", type=integers, help=seeds_help)
    truncation_help = "factor of the noise; below 1: more typical, less varied (default: 1)"
    add = noise_group.add_argument
    add("--truncation", metavar="T", type=float, default=1.0, help=truncation_help)
    add = parser.add_argument_group("classes, after training with --conditional").add_argument
    class_help = "names or numbers of classes (default: all, as frequent as in the data)"
    add("--class", dest="classes", metavar="NAME,...", help=class_help)
    per_class_help = "samples per class, a row each in a grid"
    add("--per-class", metavar="N", type=integer(1, MAXIMUM), help=per_class_help)
    add = parser.add_argument_group("interpolation").add_argument
    add("--interpolate", action="store_true", help="interpolate between samples, as a GIF")
    through_help = (
        "walk through the noise of the samples with these numbers (000003.png in a folder: 3), in "
        "the class or cluster of the first; without it, each "
        f"walk has {STOPS} samples"
    )
    add("--through", metavar="N", type=integer(0, MAXIMUM), nargs="+", help=through_help)
    frames_help = f"frames from one sample to the next (default: {FRAMES})"
    add("--frames", metavar="N", type=integer(1, MAXIMUM), help=frames_help)
    export_help = "write the generator, FILE.onnx or FILE.safetensors, and a model card, FILE.md"
    parser.add_argument("--export", metavar="FILE", type=os.path.expanduser, help=export_help)
    return parser


def integers(text: str) -> list[int]:
    return [integer(0)(part) for part in text.split(",")]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; ValueError for an invalid one or one without effect."""
    parser = make_parser()
    options = parser.parse_args(argv)
    actions = {a.option_strings[0]: a for a in parser._actions[1:] if a.option_strings}
    values = {flag: getattr(options, action.dest) for flag, action in actions.items()}
    given = {flag: value for flag, value in values.items() if value != actions[flag].default}
    noise = options.noise or options.seeds
    for applies, case, flags in (
        (options.export, "with --export", sorted(given.keys() - {"--export"})),
        (options.interpolate, "with --interpolate", ["--per-class"]),
        (not options.interpolate, "without --interpolate", ["--through", "--frames"]),
        (noise, "with --noise or --seeds", ["--seed", "--count", "--per-class", "--through"]),
        (options.through, "with --through", ["--count"]),
        (options.per_class, "with --per-class", ["--count"]),
    ):
        refuse_unused({flag: given.get(flag) for flag in flags if applies}, case)
    if not 0 < options.truncation < math.inf:
        raise ValueError(f"--truncation {options.truncation}: must be a number above 0")
    options.seed = options.seed or 0
    return options


def choose_classes(generator: TrainedGenerator, options: argparse.Namespace) -> list[int]:
    """The numbers of the classes of `--class`, or of all; ValueError if there are none."""
    names, text = generator.class_names, options.classes
    if not names and (text is not None or options.per_class):
        raise ValueError(f"{options.source} generates no classes: train with --conditional")
    if text is None:
        return list(range(len(names)))
    return [find_class(generator, name.strip()) for name in text.split(",")]


def choose_labels(generator: TrainedGenerator, options: argparse.Namespace, count: int) -> Tensor:
    """The classes of `count` samples, `(count,)` int64: with `--per-class` one after the other,
    with `--class` in turn, otherwise as frequent as in the data; zeros without classes."""
    classes = torch.tensor(choose_classes(generator, options))
    if options.per_class:
        return classes.repeat_interleave(options.per_class)
    if options.classes is not None:
        return classes[torch.arange(count) % len(classes)]
    return draw_labels(generator, count, options.seed)


def read_array(path: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # `check_noise` refuses what became infinite
            return np.load(path, allow_pickle=False).astype(np.float32, casting="same_kind")
    except OSError:
        raise
    except Exception as error:  # a file from elsewhere may contain anything
        raise ValueError(f"{path} is no .npy file of real numbers: {error}") from error


def choose_noise(generator: TrainedGenerator, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The S noise vectors of `--noise` or `--seeds`, `(S, noise_dim)`, and their classes, `(K, S)`:
    K = 1, or with `--class` one row per class."""
    if options.seeds:
        noise = torch.cat([noise_of(generator, [0], seed) for seed in options.seeds])
        labels = torch.cat([draw_labels(generator, 1, seed) for seed in options.seeds])
    else:
        noise = check_noise(generator, read_array(options.noise))
        labels = draw_labels(generator, len(noise))
    if options.classes is not None:
        labels = torch.tensor(choose_classes(generator, options)).repeat_interleave(len(noise))
    return noise, labels.view(-1, len(noise))


def interpolate(generator: TrainedGenerator, options: argparse.Namespace, target: Path) -> None:
    """Write walks through the samples of `--through`, or through `--count` others at each stop, so
    that the first frame shows the same samples as a grid of that count. A walk keeps the class of
    its first sample. Noise vectors of `--noise` or `--seeds` are the stops of a walk per class."""
    if options.noise or options.seeds:
        noise, labels = choose_noise(generator, options)
        stops, labels = noise[:, None].expand(-1, len(labels), -1), labels[:, 0]
    else:
        walks = 1 if options.through else options.count or WALKS
        numbers = options.through or range(STOPS * walks)
        labels = choose_labels(generator, options, max(numbers) + 1)[list(numbers[:walks])]
        stops = noise_of(generator, numbers, options.seed).unflatten(0, (-1, walks))
    if len(stops) < 2:
        raise ValueError("an interpolation needs two noise vectors or more, and there is one")
    stops, frames = options.truncation * stops, options.frames or FRAMES
    write_animation(interpolation_frames(generator, stops, labels, frames), target)


def run(argv: list[str] | None) -> None:
    options = parse(argv)
    if options.export:
        print("wrote", *export(options.source, options.export))
        return
    generator = load_generator(options.source, options.weights, options.device)
    source, is_points = Path(options.source), len(generator.sample_shape) == 1
    name = "interpolation.gif" if options.interpolate else "generated.png"
    default = (source if source.is_dir() else source.parent) / name
    target = check_target(
        options.out or str(default), options.interpolate, is_points, generator.class_names
    )
    if options.interpolate:
        interpolate(generator, options, target)
        print(f"wrote an animation to {target}")
        return
    count, columns, noise = options.count or (POINTS if is_points else IMAGES), 0, None
    if options.noise or options.seeds:
        noise, labels = choose_noise(generator, options)
        count, columns = labels.numel(), len(noise) if options.classes else 0
        noise, labels = noise.repeat(len(labels), 1), labels.flatten()
    elif options.per_class:
        columns = options.per_class
        count = columns * len(choose_classes(generator, options))
    if target.suffix.lower() == ".png" and not is_points:
        check_size(count, generator.sample_shape)
    if noise is None:
        labels = choose_labels(generator, options, count)
    samples = generate(generator, None, options.seed, labels, noise, options.truncation)
    write_samples(samples, labels, generator, columns, target)
    print(f"wrote {count:,} samples to {target}")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
