"""What the benchmarks share: cases, timing, processes of their own, JSON files."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from train import all_updates, sample_inputs
from utils import METHODS
from wgan import distributed
from wgan.acceleration import accelerate, prepare_device
from wgan.budget import Budget
from wgan.command import Parser, run_script
from wgan.config import Config
from wgan.data import Batches, RowReader, parse_image_size
from wgan.layers import resolve
from wgan.state import TrainState, build_state, set_class_shares
from wgan_gp import MODELS

ROOT = Path(__file__).parent.parent
SAMPLES = 10_000  # in a data set of random bytes
CASE_OPTIONS = (
    "method", "model", "width", "batch_size", "n_critic", "precision", "compile", "device",
)  # fmt: skip

Shape = tuple[int, ...]


# ---------------------------------------------------------------- cases


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of one case: which networks are trained, how, and on what samples."""
    add = parser.add_argument
    add("--method", default="wgan-gp", help=f"{', '.join(METHODS)} (default: wgan-gp)")
    add("--model", default="dcgan", help=f"{', '.join(MODELS)} (default: dcgan)")
    add("--image-size", default="28", help="64, or 64x96 (default: 28)")
    add("--channels", type=int, choices=(1, 3), default=1, help="of the images (default: 1)")
    add("--width", type=int, help="of the networks (default: the model's)")
    add("--batch-size", type=int, default=64, help="samples per update (default: 64)")
    add("--n-critic", type=int, default=5, help="critic updates per step (default: 5)")
    add("--precision", default="auto", help="auto, fp32, bf16 (default: auto)")
    add("--compile", default="auto", help="auto: as a long run, on, off (default: auto)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add("--seconds", type=float, default=20, help="of timing per loop (default: 20)")


def case_of(options: argparse.Namespace) -> tuple[Config, Shape]:
    """The configuration of a case and the shape `(C, H, W)` of its samples.

    ValueError for an invalid option.
    """
    size = parse_image_size(options.image_size)
    if size is None:
        raise ValueError("--image-size must be a size such as 64")
    if not 0 < options.seconds <= 3600:
        raise ValueError("--seconds must be between 0 and 3600")
    given = {name: getattr(options, name) for name in CASE_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    return resolve(given | {"dataset": "random bytes"}).config, (options.channels, *size)


def random_images(shape: Shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SAMPLES, *shape), np.uint8)


def build_training(
    config: Config, shape: Shape, device: torch.device, samples: RowReader, classes: int = 0
) -> tuple[TrainState, Batches]:
    """The state and the batches of our training, accelerated as in a long run.

    With `classes`, it is conditional, and sample k is of class k modulo `classes`.
    """
    prepare_device(device, config.deterministic)
    state = build_state(config, shape, device, tuple(map(str, range(classes))))
    labels = np.arange(len(samples)) % classes if classes else None
    if labels is not None:
        set_class_shares(state, labels)
    rank_slice = distributed.rank_slice(config.batch_size)
    batches = Batches(samples, config.batch_size, config.seed, device, rank_slice, labels=labels)
    inputs = sample_inputs(state, config, batches)
    batches.wait()
    accelerate(state, config, Budget(steps=10**6, max_seconds=0), inputs, all_updates)
    return state, batches


# ---------------------------------------------------------------- timing


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_per_call(run: Callable[[], object], calls: int, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronise(device)
    return (time.perf_counter() - start) / calls


def describe_machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    name = platform.processor()
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name
    except OSError:  # not Linux
        pass
    return f"{name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


# ---------------------------------------------------------------- processes and files


def run_python(*arguments: object, output: bool = False, **variables: str) -> str:
    """Run `python ARGUMENTS` so that it finds this project's modules from any working directory.

    `variables` are added to the environment. Returns what it prints if `output` is true, otherwise
    shows it. Raises subprocess.CalledProcessError if it fails.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=True,
        text=True,
        stdout=subprocess.PIPE if output else None,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables,
    )
    return process.stdout or ""


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


def run_command(run: Callable[[], None]) -> int:
    """Run a benchmark; the exit code: 0 done, 2 bad input, 130 Ctrl-C."""

    def run_processes() -> None:
        try:
            run()
        except subprocess.CalledProcessError as error:
            raise ValueError(str(error)) from error

    return run_script(run_processes)


def make_parser(name: str, description: str) -> Parser:
    """A parser with `--json`."""
    parser = Parser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    return parser
