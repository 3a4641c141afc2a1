"""How fast is training, compared with the loop of common tutorials (benchmarks/textbook.py)?

Both loops train the same networks on the same device in the same process, in turn. The textbook
loop is timed twice: fed from memory, as ours is, and by a DataLoader over PIL images.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
from benchmarks.textbook import Textbook, from_loader, from_memory
from train import all_updates, sample_inputs, train_step
from wgan.augmentation import POLICIES
from wgan.config import Config
from wgan.data import RowReader
from wgan.state import build_state
from wgan_gp import choose_device

ROUNDS = 5  # turns of each loop; the results are medians
ROUNDS_IF_SLOW = 2  # if a single step takes longer than a turn should
WARM_UP = 3  # steps before any is timed; one if slow
TEXTBOOK, OURS = "textbook", "ours"
Step = Callable[[], object]

# ---------------------------------------------------------------- measuring


def time_in_turn(
    loops: dict[str, Step], seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per step of each loop in each round, about `seconds` per loop in all."""
    turn, calls, rounds = seconds / ROUNDS, {}, ROUNDS
    for name, step in loops.items():
        step_seconds = seconds_per_call(step, 1, device)
        if step_seconds < turn:
            seconds_per_call(step, WARM_UP - 1, device)
            step_seconds = seconds_per_call(step, 1, device)
        if step_seconds > turn:
            rounds = ROUNDS_IF_SLOW
        calls[name] = max(1, round(turn / step_seconds))
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, step in loops.items():
            times[name].append(seconds_per_call(step, calls[name], device))
    return times


def ratios_of(times: list[float], others: list[float]) -> dict:
    """Median and range of the ratios of times that were measured in turn."""
    ratios = [one / other for one, other in zip(times, others, strict=True)]
    return {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}


class FlopCounter(TorchDispatchMode):
    """Counts the floating-point operations of convolutions and matrix products.

    PyTorch's FlopCounterMode has the same table, but fails inside `torch.func.vjp`.
    """

    total = 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        if count := flop_registry.get(operation._overloadpacket):
            self.total += count(*arguments, **(keywords or {}), out_val=result)
        return result


def flops_of(run: Step) -> int:
    with FlopCounter() as counter:
        run()
    return counter.total


def matrix_product_flops(precision: torch.dtype, device: torch.device) -> float:
    """FLOP/s of one large matrix product: a bound for what the hardware can do."""
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device).to(precision)
    seconds_per_call(lambda: matrix @ matrix, WARM_UP, device)
    return 2 * side**3 / min(seconds_per_call(lambda: matrix @ matrix, 2, device) for _ in range(5))


def process_memory(key: str) -> int:
    """Bytes of this process's memory, or 0 if unknown. Keys of /proc/self/status: `VmHWM` is the
    maximum so far, `RssAnon` the current memory without files."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return 0
    values = dict(line.split(":", 1) for line in status.splitlines())
    return 1024 * int(values[key].split()[0]) if key in values else 0


def peak_memory(device: torch.device) -> int:
    """Maximum bytes in use so far, on the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process_memory("VmHWM")


# ---------------------------------------------------------------- one case


class Comparison:
    """The loops of one case, ready to run: `loops` maps a name to a step."""

    def __init__(self, config: Config, shape: Shape, workers: int):
        self.config, self.device = config, choose_device(config.device)
        images = random_images(shape)
        start = time.perf_counter()
        self.state, self.batches = build_training(
            config, shape, self.device, RowReader.from_array(images)
        )
        self.compile_seconds = time.perf_counter() - start
        self.eager = build_state(config, shape, self.device)
        feeds = {
            f"{TEXTBOOK}, DataLoader": from_loader(images, config.batch_size, workers),
            TEXTBOOK: from_memory(images, config.batch_size, self.device),
        }
        self.loops: dict[str, Step] = {
            name: Textbook(config, self.eager.generator, self.eager.critic, feed).step
            for name, feed in feeds.items()
        }
        self.loops[OURS] = lambda: train_step(self.state, config, self.batches)

    def measure(self, seconds: float) -> dict[str, dict]:
        """Time all loops, each for `seconds`: step times, ratios to the textbook loop, FLOP/s."""
        times = time_in_turn(self.loops, seconds, self.device)
        flops = dict.fromkeys(self.loops, flops_of(self.loops[TEXTBOOK])) | {OURS: self.flops()}
        precisions = dict.fromkeys(self.loops, torch.float32) | {OURS: self.state.precision}
        peaks = {p: matrix_product_flops(p, self.device) for p in set(precisions.values())}
        samples = self.config.n_critic * self.config.batch_size
        result: dict[str, dict] = {}
        for name, seconds_per_step in times.items():
            step = statistics.median(seconds_per_step)
            result[name] = {
                "ms_per_step": 1000 * step,
                "images_per_second": samples / step,
                **ratios_of(times[TEXTBOOK], seconds_per_step),
                "flops_per_second": flops[name] / step,
                "of_matrix_product": flops[name] / step / peaks[precisions[name]],
            }
        return result

    def flops(self) -> int:
        """Operations of our step, counted on eager losses."""
        inputs = sample_inputs(self.eager, self.config, self.batches)
        return flops_of(lambda: all_updates(self.eager, self.config, inputs))


def measure_case(options: argparse.Namespace, argv: list[str]) -> dict:
    config, shape = case_of(options)
    comparison = Comparison(config, shape, options.workers)
    state, batches, device = comparison.state, comparison.batches, comparison.device
    loops = comparison.measure(options.seconds)
    inputs_seconds = seconds_per_call(lambda: sample_inputs(state, config, batches), 20, device)
    for name in (TEXTBOOK, OURS):
        loops[name]["memory"] = measure_memory(name, argv)
    names = ("method", "model", "width", "batch_size", "n_critic")
    return {
        "machine": describe_machine(device),
        "case": {name: getattr(config, name) for name in names} | {"shape": shape},
        "precision": str(state.precision).removeprefix("torch."),
        "loops": loops,
        "inputs_share": 1000 * inputs_seconds / loops[OURS]["ms_per_step"],
        "compile_seconds": comparison.compile_seconds,
    }


def measure_memory(loop: str, argv: list[str]) -> int:
    """Peak memory, in bytes, of a process that only runs one loop."""
    command = ["-m", "benchmarks.speed", *argv, "--peak-memory-of", loop]
    output = run_python(*command, output=True)
    return int(output.splitlines()[-1])


def print_peak_memory(config: Config, shape: Shape, loop: str) -> None:
    """The process that `measure_memory` starts."""
    device, images = choose_device(config.device), random_images(shape)
    if loop == OURS:
        state, batches = build_training(config, shape, device, RowReader.from_array(images))
        step: Step = lambda: train_step(state, config, batches)  # noqa: E731
    else:
        networks = build_state(config, shape, device)
        feed = from_memory(images, config.batch_size, device)
        step = Textbook(config, networks.generator, networks.critic, feed).step
    for _ in range(WARM_UP):
        step()
    print(peak_memory(device))


def show_case(result: dict) -> None:
    case = ", ".join(f"{name} {value}" for name, value in result["case"].items())
    print(f"\n{result['machine']}; {case}")
    print(f"ours in {result['precision']}, the textbook loop in float32\n")
    head = f"{'loop':<22}{'ms/step':>10}{'images/s':>10}{'ratio (range)':>20}"
    print(head + f"{'GFLOP/s':>9}{'of matrix product':>19}{'peak MB':>9}")
    for name, loop in result["loops"].items():
        memory = f"{loop['memory'] / 2**20:.0f}" if loop.get("memory") else ""
        print(
            f"{name:<22}{loop['ms_per_step']:>10.1f}{loop['images_per_second']:>10.0f}"
            f"{ratio_text(loop):>20}{loop['flops_per_second'] / 1e9:>9.0f}"
            f"{loop['of_matrix_product']:>19.0%}{memory:>9}"
        )
    print(f"\nsampling the inputs of a step: {result['inputs_share']:.1%} of our step")
    print(f"compiling, once: {result['compile_seconds']:.0f} s")


def ratio_text(loop: dict) -> str:
    low, high = loop["ratio_range"]
    return f"{loop['ratio']:.2f} ({low:.2f}-{high:.2f})"


# ---------------------------------------------------------------- a table of cases

FIRST_CASE = {"method": "wgan-gp", "model": "dcgan", "image_size": "28", "channels": 1}
FIRST_CASE |= {"precision": "auto", "width": None, "batch_size": 64}
COLOUR = FIRST_CASE | {"image_size": "64", "channels": 3}
CASES = {
    "WGAN-GP, DCGAN, 28x28": FIRST_CASE,
    "the same in float32": FIRST_CASE | {"precision": "fp32"},
    "WGAN, DCGAN, 28x28": FIRST_CASE | {"method": "wgan"},
    "WGAN-div, DCGAN, 28x28": FIRST_CASE | {"method": "wgan-div"},
    "WGAN-GP, dense, 28x28": FIRST_CASE | {"model": "dense"},
    "WGAN-GP, DCGAN, 64x64x3": COLOUR,
    "WGAN-GP, DCGAN, 64x64x3, batch 512": COLOUR | {"batch_size": 512},
    "WGAN-GP, DCGAN, 128x128x3": COLOUR | {"image_size": "128"},
    "WGAN-GP, residual, 32x32x3, width 128": COLOUR
    | {"model": "residual", "image_size": "32", "width": 128},
}


def measure_table(options: argparse.Namespace) -> dict:
    """Measure each of `CASES`, or those whose name contains `--only`."""
    result: dict = {"machine": describe_machine(choose_device(options.device)), "cases": {}}
    for name, changed in CASES.items():
        if options.only not in name:
            continue
        print(f"{name} ...", file=sys.stderr)
        torch.compiler.reset()  # compile each case for its own shapes
        config, shape = case_of(argparse.Namespace(**vars(options) | changed))
        comparison = Comparison(config, shape, options.workers)
        result["cases"][name] = comparison.measure(options.seconds)
    return result


def show_table(result: dict, options: argparse.Namespace) -> None:
    print(
        f"\n{result['machine']}; milliseconds per step of {options.n_critic} critic updates, with "
        "batches of 64 and a width of 64 (dense: 512) unless the row says otherwise\n"
    )
    print(
        f"| case | {TEXTBOOK}, DataLoader | {TEXTBOOK} | {OURS} | {TEXTBOOK} / {OURS} (range) "
        "| share of a matrix product |"
    )
    print("|---|---|---|---|---|---|")
    for name, loops in result["cases"].items():
        times = " | ".join(f"{loop['ms_per_step']:.0f}" for loop in loops.values())
        share = f"{loops[OURS]['of_matrix_product']:.0%}"
        print(f"| {name} | {times} | {ratio_text(loops[OURS])} | {share} |")


# ---------------------------------------------------------------- cost of options


def measure_extras(options: argparse.Namespace) -> dict:
    """How much longer our step takes with ten classes, and with all policies of augmentation."""
    config, shape = case_of(options)
    device, images = choose_device(config.device), RowReader.from_array(random_images(shape))
    augmented = replace(config, augment=",".join(POLICIES))
    cases = {
        "without": (config, 0),
        "--conditional": (config, 10),
        f"--augment {augmented.augment}": (augmented, 0),
    }
    loops: dict[str, Step] = {}
    for name, (case, classes) in cases.items():
        state, batches = build_training(case, shape, device, images, classes)
        loops[name] = partial(train_step, state, case, batches)
    times = time_in_turn(loops, options.seconds, device)
    result: dict = {"machine": describe_machine(device), "options": {}}
    for name, seconds_per_step in times.items():
        result["options"][name] = {
            "ms_per_step": 1000 * statistics.median(seconds_per_step),
            **ratios_of(seconds_per_step, times["without"]),
        }
    return result


def show_extras(result: dict) -> None:
    print(f"\n{result['machine']}\n")
    print(f"{'option':<40}{'ms/step':>10}{'ratio (range)':>20}")
    for name, row in result["options"].items():
        print(f"{name:<40}{row['ms_per_step']:>10.1f}{ratio_text(row):>20}")


# ---------------------------------------------------------------- growth

IMAGE_COUNTS = (10_000, 100_000, 1_000_000)
BATCH_SIZES = (16, 32, 64, 128, 256)
SIDES = (16, 32, 64, 128)


def measure_growth(options: argparse.Namespace) -> dict:
    """How time per image, and memory, change with the data, the batch and the image size."""
    config, _ = case_of(options)
    config, device = replace(config, compile="off"), choose_device(config.device)
    result: dict = {"machine": describe_machine(device), "images": [], "batch": [], "side": []}

    def measure(case: Config, samples: RowReader) -> dict:
        before = process_memory("RssAnon")
        state, batches = build_training(case, samples.sample_shape, device, samples)
        step = lambda: train_step(state, case, batches)  # noqa: E731
        seconds = statistics.median(time_in_turn({OURS: step}, options.seconds, device)[OURS])
        microseconds = 1e6 * seconds / (case.n_critic * case.batch_size)
        return {"us_per_image": microseconds, "memory": process_memory("RssAnon") - before}

    for count in IMAGE_COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(config, images_in_file(Path(folder, "images"), count, (1, 28, 28)))
        result["images"].append({"images": count} | row)
    for size in BATCH_SIZES:
        row = measure(replace(config, batch_size=size), grey_images((1, 28, 28)))
        result["batch"].append({"batch_size": size} | row)
    for side in SIDES:
        row = measure(config, grey_images((3, side, side)))
        row["ns_per_pixel"] = 1000 * row["us_per_image"] / side**2
        result["side"].append({"side": side} | row)
    return result


def grey_images(shape: Shape, count: int = 2000) -> RowReader:
    return RowReader.from_array(np.full((count, *shape), 128, np.uint8))


def images_in_file(path: Path, count: int, shape: Shape) -> RowReader:
    row = bytes([128]) * int(np.prod(shape))
    with open(path, "wb") as file:
        for _ in range(count):
            file.write(row)
    return RowReader.from_files([path], [count], shape)


def show_growth(result: dict) -> None:
    print(f"\n{result['machine']}\n")
    print(f"{'images in a file':>22}{'us/image':>14}{'MB of memory':>14}")
    for row in result["images"]:
        print(f"{row['images']:>22,}{row['us_per_image']:>14.1f}{row['memory'] / 2**20:>14.0f}")
    print(f"\n{'batch size':>22}{'us/image':>14}")
    for row in result["batch"]:
        print(f"{row['batch_size']:>22}{row['us_per_image']:>14.1f}")
    print(f"\n{'side':>22}{'ns/pixel':>14}")
    for row in result["side"]:
        print(f"{row['side']:>22}{row['ns_per_pixel']:>14.1f}")


# ---------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input."""
    argv = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run_benchmark(argv))


def run_benchmark(argv: list[str]) -> None:
    parser = make_parser("speed", __doc__)
    add_case_options(parser)
    workers_help = "processes of the textbook loop's DataLoader (default: 0)"
    parser.add_argument("--workers", type=int, default=0, help=workers_help)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--table", action="store_true", help="the cases of docs/performance.md")
    extras_help = "time added by classes (--conditional) and by --augment"
    modes.add_argument("--extras", action="store_true", help=extras_help)
    growth_help = "time and memory against the data, the batch and the image size"
    modes.add_argument("--growth", action="store_true", help=growth_help)
    modes.add_argument("--peak-memory-of", choices=(TEXTBOOK, OURS), help=argparse.SUPPRESS)
    only_help = "of the table: only the cases whose name contains this"
    parser.add_argument("--only", default="", metavar="TEXT", help=only_help)
    options = parser.parse_args(argv)
    if options.table:
        changed = [n for n in FIRST_CASE if getattr(options, n) != parser.get_default(n)]
        if changed:
            raise ValueError(f"the cases of --table set {', '.join(changed)}: not with --table")
        if not any(options.only in name for name in CASES):
            raise ValueError(f"no case's name contains {options.only!r}: {'; '.join(CASES)}")
    elif options.only:
        raise ValueError("--only needs --table")
    config, shape = case_of(options)
    if options.peak_memory_of:
        print_peak_memory(config, shape, options.peak_memory_of)
        return
    check_writable(options.json)
    if options.table:
        show_table(result := measure_table(options), options)
    elif options.extras:
        show_extras(result := measure_extras(options))
    elif options.growth:
        show_growth(result := measure_growth(options))
    else:
        show_case(result := measure_case(options, argv))
    write_json(options.json, result)


if __name__ == "__main__":
    sys.exit(main())
