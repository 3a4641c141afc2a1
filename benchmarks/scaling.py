"""How speed grows with the number of ranks: the part of `benchmark.py --scaling`.

Each count of ranks is started by torchrun as training would be, on this machine; a rank has a
batch of its own, of `--batch-size`, so that perfect scaling keeps the time of a step. On a CPU
every rank computes with one thread.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from train import build_state, train_step
from wgan import distributed
from wgan.config import Config
from wgan.data.decoding import usable_cores
from wgan_gp import choose_device

TURNS = 3  # starts of each count of ranks; figures are medians


def rank_counts(device: torch.device) -> list[int]:
    """1, 2, 4, ... up to the devices, or on a CPU up to the cores, that there are."""
    most = torch.cuda.device_count() if device.type == "cuda" else usable_cores()
    return [2**power for power in range(most.bit_length())]


def scaling(config: Config, shape: tuple[int, ...], given: list[str]) -> dict:
    """Seconds a step, images a second and efficiency for each count, and what is averaged."""
    device = choose_device(config.device)
    counts = rank_counts(device)
    measured: dict[int, list[dict]] = {count: [] for count in counts}
    for _ in range(TURNS):
        for count in counts:
            measured[count].append(measure(count, given))
    rows = []
    for count, turns in measured.items():
        row = {"ranks": count}
        for name in ("seconds_a_step", "collective_seconds_a_step"):
            row[name] = statistics.median(turn[name] for turn in turns)
        row["images_per_second"] = (
            count * config.batch_size * config.n_critic / row["seconds_a_step"]
        )
        row["efficiency"] = rows[0]["seconds_a_step"] / row["seconds_a_step"] if rows else 1.0
        rows.append(row)
    state = build_state(config, shape, torch.device("cpu"))
    sizes = {name: weight_bytes(getattr(state, name)) for name in ("critic", "generator")}
    return {"ranks": rows, "bytes": sizes, "batch_size": config.batch_size}


def weight_bytes(network: torch.nn.Module) -> int:
    return sum(4 * parameter.numel() for parameter in network.parameters())


def measure(count: int, given: list[str]) -> dict:
    """Start that many ranks, and what their first one measures."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        f"--nproc-per-node={count}",
        "-m",
        "--",
        "benchmarks.speed",
        *given,
        "--alone",
        "rank",
    ]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "measured.json")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--json", str(target)], env=environment, check=True)
        return json.loads(target.read_text())


def run_as_rank(
    config: Config, shape: tuple[int, ...], seconds: float, prepare: Callable, samples: int
) -> dict:
    """One rank's part: train for that long; seconds a step, and those of its collectives."""
    with distributed.joined():
        device = distributed.own_device(choose_device(config.device))
        config = replace(config, batch_size=config.batch_size * distributed.ranks())
        data = np.random.default_rng(0).integers(0, 256, (samples, *shape), np.uint8)
        state, batches = prepare(config, device, shape, data)

        def step() -> None:
            train_step(state, config, batches)
            distributed.agree(0, 0, 0, 0)  # as the training loop does

        def collectives() -> None:
            for _ in range(config.n_critic):
                distributed.average(state.critic)
            distributed.average(state.generator)
            distributed.agree(0, 0, 0, 0)

        return {
            "seconds_a_step": seconds_of(step, seconds, device),
            "collective_seconds_a_step": seconds_of(collectives, seconds / 4, device),
        }


def seconds_of(run: Callable[[], None], seconds: float, device: torch.device) -> float:
    """Seconds a call, of as many calls on all ranks as take about so long."""

    def timed(calls: int) -> float:
        distributed.agree(0)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / calls

    timed(3)
    (longest,) = distributed.agree(timed(2))
    return timed(max(3, round(seconds / longest)))


def show_scaling(result: dict) -> None:
    print(f"\n{result['machine']}; each rank a batch of {result['batch_size']}\n")
    print("| ranks | ms a step | of which collectives, alone | images/s | efficiency |")
    print("|---|---|---|---|---|")
    for row in result["ranks"]:
        print(
            f"| {row['ranks']} | {1e3 * row['seconds_a_step']:.1f} "
            f"| {1e3 * row['collective_seconds_a_step']:.2f} "
            f"| {row['images_per_second']:.0f} | {row['efficiency']:.0%} |"
        )
    sizes = " and ".join(f"{size / 1e6:.1f} MB ({name})" for name, size in result["bytes"].items())
    print(f"\naveraged by an update: {sizes}")
