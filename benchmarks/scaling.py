"""How does the speed grow with the number of ranks?

Times training with 1, 2, 4, ... ranks on this machine, up to the number of CUDA devices or CPU
cores. Each rank has a batch of --batch-size, so a step takes equally long if scaling is perfect.
On a CPU each rank computes with one thread.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import (
    Shape,
    add_case_options,
    build_training,
    case_of,
    check_writable,
    describe_machine,
    make_parser,
    random_images,
    run_command,
    run_python,
    seconds_per_call,
    write_json,
)
from train import train_step
from wgan import distributed
from wgan.config import Config
from wgan.data import RowReader
from wgan.state import build_networks
from wgan_gp import choose_device

STARTS = 3  # of each number of ranks; the results are medians
STATUS = (0, 0, 0, 0)  # stands for what the training loop exchanges after each step


def measure(options: argparse.Namespace, argv: list[str]) -> dict:
    """Seconds per step, images per second and efficiency for each number of ranks."""
    config, shape = case_of(options)
    device = choose_device(config.device)
    counts = rank_counts(device)
    starts: dict[int, list[dict]] = {count: [] for count in counts}
    for _ in range(STARTS):
        for count in counts:
            starts[count].append(start_ranks(count, argv))
    with torch.device("meta"):
        generator, critic = build_networks(config, shape)
    return {
        "machine": describe_machine(device),
        "batch_size": config.batch_size,
        "ranks": summarise(starts, config.n_critic * config.batch_size),
        "gradient_bytes": {"critic": size_of(critic), "generator": size_of(generator)},
    }


def rank_counts(device: torch.device) -> list[int]:
    """1, 2, 4, ... up to the number of CUDA devices, or of CPU cores."""
    most = torch.cuda.device_count() if device.type == "cuda" else usable_cores()
    return [2**power for power in range(most.bit_length())]


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def size_of(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in network.parameters())


def summarise(starts: dict[int, list[dict]], samples_per_rank: int) -> list[dict]:
    """One row for each number of ranks: medians over the starts. The efficiency is the time of a
    step of one rank, divided by that of all."""
    rows: list[dict] = []
    for count, measured in starts.items():
        row: dict = {"ranks": count}
        for name in ("seconds_per_step", "collective_seconds_per_step"):
            row[name] = statistics.median(one[name] for one in measured)
        row["images_per_second"] = count * samples_per_rank / row["seconds_per_step"]
        row["efficiency"] = (rows or [row])[0]["seconds_per_step"] / row["seconds_per_step"]
        rows.append(row)
    return rows


def start_ranks(count: int, argv: list[str]) -> dict:
    """Start ranks with torchrun; what the first one measures."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "measured.json")
        command = [*torchrun, "-m", "--", "benchmarks.scaling", *argv, "--rank-result", target]
        run_python(*command, OMP_NUM_THREADS="1")
        return json.loads(target.read_text())


def measure_rank(config: Config, shape: Shape, seconds: float) -> dict:
    """Time this rank's steps, and their collectives alone, for `seconds` each or less."""
    device = distributed.rank_device(choose_device(config.device))
    config = replace(config, batch_size=config.batch_size * distributed.world_size())
    images = RowReader.from_array(random_images(shape))
    state, batches = build_training(config, shape, device, images)

    def step() -> None:
        train_step(state, config, batches)
        distributed.all_max(*STATUS)

    def collectives() -> None:
        for _ in range(config.n_critic):
            distributed.average_gradients(state.critic)
        distributed.average_gradients(state.generator)
        distributed.all_max(*STATUS)

    return {
        "seconds_per_step": time_on_all_ranks(step, seconds, device),
        "collective_seconds_per_step": time_on_all_ranks(collectives, seconds / 4, device),
    }


def time_on_all_ranks(run: Callable[[], None], seconds: float, device: torch.device) -> float:
    """Seconds per call; all ranks make equally many calls, for about `seconds`."""
    seconds_per_call(run, 3, device)
    (longest,) = distributed.all_max(seconds_per_call(run, 2, device))
    return seconds_per_call(run, max(3, round(seconds / longest)), device)


def show(result: dict) -> None:
    print(f"\n{result['machine']}; a batch of {result['batch_size']} per rank\n")
    print("| ranks | ms/step | collectives alone, ms/step | images/s | efficiency |")
    print("|---|---|---|---|---|")
    for row in result["ranks"]:
        print(
            f"| {row['ranks']} | {1e3 * row['seconds_per_step']:.1f} "
            f"| {1e3 * row['collective_seconds_per_step']:.2f} "
            f"| {row['images_per_second']:.0f} | {row['efficiency']:.0%} |"
        )
    sizes = result["gradient_bytes"].items()
    texts = [f"{size / 1e6:.1f} MB ({name})" for name, size in sizes]
    print(f"\ngradients averaged in an update: {' and '.join(texts)}")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input."""
    argv = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run_benchmark(argv))


def run_benchmark(argv: list[str]) -> None:
    parser = make_parser("scaling", __doc__)
    add_case_options(parser)
    parser.add_argument("--rank-result", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    config, shape = case_of(options)
    if options.rank_result:  # one of the processes that `start_ranks` starts
        with distributed.process_group():
            measured = measure_rank(config, shape, options.seconds)
        if distributed.is_first():
            write_json(options.rank_result, measured)
        return
    check_writable(options.json)
    show(result := measure(options, argv))
    write_json(options.json, result)


if __name__ == "__main__":
    distributed.exit_process(main)
