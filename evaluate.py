"""Evaluate the samples of a run, or compare images or vectors with others.

    python evaluate.py images/RUN                            a run with its data set
    python evaluate.py samples.npz --dataset fashion-mnist   an array or a folder with a data set
    python evaluate.py generated/ photos/                    two folders, arrays or tables

Images with labels are compared in the features of a small classifier, trained once on the data
set; other images in those of random filters; points exactly. With --features inception, or if
Inception's weights (91 MB) exist on this machine, images are compared as for FID. Every metric but
the critic's estimate is reported next to its floor, the score of held-out real samples.
"""

import json
import os
import sys
from pathlib import Path

from wgan.acceleration import respect_cpu_quota
from wgan.command import Parser, add_sampling_options, integer, run_script
from wgan.evaluation.comparison import compare, evaluate_run, names_run
from wgan.evaluation.evaluator import CHOICES
from wgan.evaluation.report import format_report
from wgan.evaluation.samples import MIN_SAMPLES, SAMPLES
from wgan.files import check_output, write_whole
from wgan.report import write_report
from wgan.run_folder import OPTIONS


def make_parser() -> Parser:
    parser = Parser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    source_help = "folder of a run, a checkpoint, a folder or .zip file of images, an array or .csv"
    add("source", metavar="SOURCE", type=os.path.expanduser, help=source_help)
    other_help = "folder, file or data set to compare with, unless the source is a run"
    add("other", metavar="OTHER", nargs="?", type=os.path.expanduser, help=other_help)
    samples_help = (
        f"number of samples, at most half of the data, and at most {SAMPLES} with a classifier "
        f"(default: {SAMPLES})"
    )
    kind = integer(MIN_SAMPLES)
    add("--samples", "--count", metavar="N", type=kind, default=SAMPLES, help=samples_help)
    dataset_help = "data set or folder to compare with, or the run's if it has moved"
    add("--dataset", metavar="S", type=os.path.expanduser, help=dataset_help)
    reference_help = "compare with training images, or with the test images of the data set"
    add("--reference", choices=("train", "test"), default="train", help=reference_help)
    add("--data-root", metavar="S", help="folder of downloaded and prepared data, if it moved")
    features_help = (
        "auto: inception if its weights exist on this machine, otherwise classifier if there are "
        "labels, otherwise random (default: auto)"
    )
    add("--features", choices=CHOICES, help=features_help)
    neighbours_help = (
        "picture of samples next to the most similar real images, or of the columns of vectors "
        "(default: neighbours.png or columns.png in the run's folder, none without a run)"
    )
    add("--neighbours", type=os.path.expanduser, metavar="PNG", help=neighbours_help)
    json_help = "also write the metrics to this file"
    add("--json", type=os.path.expanduser, metavar="FILE", help=json_help)
    add_sampling_options(parser)
    return parser


def run(argv: list[str] | None) -> None:
    options = make_parser().parse_args(argv)
    respect_cpu_quota()
    for name in ("json", "neighbours"):  # before the work, not after it
        if path := getattr(options, name):
            setattr(options, name, check_output(f"--{name}", path))
    result = evaluate_run(options) if names_run(options.source) else compare(options)
    print(format_report(result), flush=True)  # before --json /dev/stdout
    if options.json:
        write_whole(options.json, (json.dumps(result, indent=2) + "\n").encode())
    if (Path(options.source) / OPTIONS).is_file():
        for sentence in write_report(Path(options.source), result=result):
            print(f"\n{sentence}")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
