"""What the benchmarks share: their flags, the machine's name, JSON files, cells of tables."""

import json
import os
from pathlib import Path
from statistics import median

from wgan.command import Parser

ROOT = Path(__file__).parent.parent


def make_parser(name: str, description: str) -> Parser:
    """A parser with `--device`, `--workers` and `--json`."""
    parser = Parser(prog=f"python -m benchmarks.{name}", description=description)
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add("--workers", type=int, default=0, help="processes of the DataLoader (default: 0)")
    add("--json", metavar="FILE", help="also write the results to this file")
    return parser


def check_writable(path: str | None) -> None:
    """ValueError if a file that will be written after minutes of work cannot be written."""
    if path:
        target = Path(path)
        if target.is_dir() or not os.access(target if target.exists() else target.parent, os.W_OK):
            raise ValueError(f"cannot write {path}: name a file in an existing, writable folder")


def write_json(path: str | None, result: dict) -> None:
    """Write a result to a file, if one is named."""
    if path:  # in place, because it may be a pipe
        Path(path).write_text(json.dumps(result, indent=2) + "\n")


def median_and_range(values: list[float], spec: str = ".1f") -> str:
    """The median over the seeds, and the minimum and maximum if there are several."""
    if not values:
        return "failed"
    middle, low, high = (f"{value:{spec}}" for value in (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"
