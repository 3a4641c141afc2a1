"""Generate samples from a trained generator: `python generate.py images/RUN --count 64`.

The suffix of --out determines the format: `.png`, `.jpg` or `.webp` is one grid; `.npz` and `.npy`
are one array (images `(N, H, W, C)` uint8, points `(N, 2)` float32, vectors `(N, D)` float64 in the
data's units), with the classes in `.npz`; a name without suffix is a folder of numbered images,
from 000000.png, in a subfolder per class. With --interpolate, `.gif` is an animation that walks
from sample to sample and back to the first. In Python:

    from wgan import load_generator, generate
    samples = generate(load_generator("images/RUN"), count=64, seed=0)
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from wgan.output import run_script

from wgan.errors import Parser, refuse_unused
from wgan.sample_files import check_size, check_target, write_animation, write_samples
from wgan.sampling import (
    draw_labels,
    find_class,
    generate,
    interpolation_frames,
    load_generator,
    noise_of,
)

IMAGES, POINTS, WALKS = 64, 1000, 16  # the defaults of --count
WALK_DEFAULTS = {"stops": 5, "frames": 16, "fps": 12.5}


def make_parser() -> Parser:
    parser = Parser(
        prog="generate.py",
        usage="%(prog)s RUN [options]",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="RUN", type=os.path.expanduser, help="folder of a run, or a checkpoint")
    out_help = "file or folder (default: generated.png or interpolation.gif, in the run's folder)"
    add("--out", metavar="PATH", type=os.path.expanduser, help=out_help)
    count_help = (
        f"number of samples (default: {IMAGES}; points: {POINTS}), or with --interpolate of walks "
        f"side by side (default: {WALKS})"
    )
    add("--count", metavar="N", type=int, help=count_help)
    add("--seed", metavar="N", type=int, default=0, help="random seed of the noise (default: 0)")
    weights_help = "weights of the moving average, or of the last step (default: ema)"
    add("--from", dest="weights", choices=("ema", "raw"), default="ema", help=weights_help)
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add = parser.add_argument_group("classes, after training with --conditional").add_argument
    class_help = "names or numbers of classes (default: all, as frequent as in the data)"
    add("--class", dest="classes", metavar="NAME,...", help=class_help)
    add("--per-class", metavar="N", type=int, help="samples per class, a row each in a grid")
    add = parser.add_argument_group("interpolation").add_argument
    add("--interpolate", action="store_true", help="interpolate between samples, as a GIF")
    through_help = "walk through the samples with these numbers (000003.png in a folder: 3)"
    add("--through", metavar="N", type=int, nargs="+", help=through_help)
    for name, kind, text in (
        ("stops", int, "samples of each walk, without --through"),
        ("frames", int, "frames from one sample to the next"),
        ("fps", float, "frames per second; a GIF rounds to 1/100 s per frame"),
    ):
        text = f"{text} (default: {WALK_DEFAULTS[name]})"
        add(f"--{name}", metavar="N", type=kind, help=text)
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, without a default of --count; ValueError for a bad one or one without effect."""
    options = make_parser().parse_args(argv)
    given = {name for name, value in vars(options).items() if value is not None}
    least_values = {"count": 1, "per_class": 1, "seed": 0, "stops": 2, "frames": 1}
    for name, least in least_values.items():
        if name in given and getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {getattr(options, name)}: must be at least {least}")
    if "fps" in given and not 1 <= options.fps <= 50:
        raise ValueError(f"--fps {options.fps:g}: must be 1 to 50, which browsers show")
    if options.through and (len(options.through) < 2 or min(options.through) < 0):
        numbers = " ".join(map(str, options.through))
        raise ValueError(f"--through {numbers}: give at least two numbers, from 0")
    for names, without in (
        (("through", *WALK_DEFAULTS), "" if options.interpolate else "without --interpolate"),
        (("stops", "count"), "with --through" if options.through else ""),
        (("count",), "with --per-class" if options.per_class else ""),
        (("per_class",), "with --interpolate" if options.interpolate else ""),
    ):
        if without:
            refuse_unused(options, names, without)
    missing = {name: WALK_DEFAULTS[name] for name in WALK_DEFAULTS.keys() - given}
    return argparse.Namespace(**vars(options) | missing)


def choose_labels(generator: nn.Module, options: argparse.Namespace, count: int) -> Tensor:
    """The classes of the samples, `(N,)`: `--per-class` of each, otherwise `count` in all, in turn
    from `--class`, or as frequent as in the data; zeros without classes."""
    if not generator.class_names:
        if options.classes is not None or options.per_class:
            raise ValueError(
                f"{options.source} generates no classes: train with --conditional, or remove "
                "--class and --per-class"
            )
        return torch.zeros(count, dtype=torch.int64)
    if options.classes is None and not options.per_class:
        return draw_labels(generator, count, options.seed)
    wanted = range(len(generator.class_names))
    if options.classes is not None:
        wanted = [find_class(generator, name) for name in split_names(generator, options.classes)]
    wanted = torch.tensor(wanted)
    if options.per_class:
        return wanted.repeat_interleave(options.per_class)
    return wanted[torch.arange(count) % len(wanted)]


def split_names(generator: nn.Module, text: str) -> list[str]:
    """The names in a list; a class whose own name contains a comma can be named alone."""
    return [text] if text in generator.class_names else [name.strip() for name in text.split(",")]


def interpolate(generator: nn.Module, options: argparse.Namespace, target: Path) -> None:
    """Write walks through the samples of `--through`, or through `--count` others at each stop, so
    that the first frame shows the same samples as a grid of that count. A walk keeps the class of
    its first sample."""
    walks = 1 if options.through else options.count or WALKS
    numbers = options.through or range(options.stops * walks)
    frames = options.frames * len(numbers) // walks
    check_size(target, walks, generator.sample_shape, frames)
    labels = choose_labels(generator, options, max(numbers) + 1)[list(numbers[:walks])]
    stops = noise_of(generator, numbers, options.seed).unflatten(0, (-1, walks))
    frames = interpolation_frames(generator, stops, labels, options.frames)
    write_animation(frames, options.fps, target)


def run(argv: list[str] | None) -> None:
    options = parse(argv)
    generator = load_generator(options.source, options.weights, options.device)
    source, is_points = Path(options.source), len(generator.sample_shape) == 1
    name = "interpolation.gif" if options.interpolate else "generated.png"
    default = (source if source.is_dir() else source.parent) / name
    target = check_target(options.out or str(default), options.interpolate, is_points)
    if options.interpolate:
        interpolate(generator, options, target)
        what = "an animation"
    else:
        count = options.count or (POINTS if is_points else IMAGES)
        if not options.per_class:
            check_size(target, count, generator.sample_shape)
        labels = choose_labels(generator, options, count)
        check_size(target, len(labels), generator.sample_shape)  # of all classes
        what = f"{len(labels):,} samples"
        samples = generate(generator, len(labels), options.seed, labels)
        write_samples(samples, labels, generator.class_names, options.per_class or 0, target)
    print(f"wrote {what} to {target}")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
