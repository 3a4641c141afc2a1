"""How fast is training? `python benchmark.py` times our step against a textbook loop.

Both train the same networks on the same device in the same run, turn by turn. The textbook
loop (`textbook.py`) is timed fed from memory, as ours is, and by a DataLoader over PIL images.

`--table` times the cases of the README's table; `--growth` shows how time and memory grow
with the data, the batch and the picture; `--quality` how good samples are after how long;
`--scaling` how speed grows with the number of ranks.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.quality import (
    LOOPS,
    MARKS,
    PLAIN,
    plot_quality,
    quality,
    run_plain_script,
    show_quality,
)
from benchmarks.scaling import run_as_rank, scaling, show_scaling
from benchmarks.textbook import Textbook, from_loader, from_memory
from train import build_state, draw_inputs, train_step, update_networks
from utils import METHODS
from wgan import distributed
from wgan.acceleration import prepare_device, speed_up
from wgan.config import Config, Parser, resolve
from wgan.data.table import Batches, parse_image_size
from wgan.files import write_whole
from wgan_gp import MODELS, choose_device

ROOT = Path(__file__).parent.parent
ROUNDS = 5  # turns of each loop; figures are medians
SAMPLES = 10_000  # pictures in the data set, of random bytes
WARM_UP = 3  # steps before any is timed
ALONE = ("textbook", "ours")  # loops that are looked at more closely

# ---------------------------------------------------------------- timing


def prepare(config: Config, device: torch.device, shape: tuple[int, ...], samples: np.ndarray):
    """Our training state and batches, sped up as training would be."""
    prepare_device(device)
    state = build_state(config, shape, device)
    share = distributed.own_share(config.batch_size)
    batches = Batches(samples, config.batch_size, config.seed, device, share)
    speed_up(state, config, 10**6, draw_inputs(state, config, batches), update_networks)
    return state, batches


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_a_call(run: Callable[[], object], calls: int, device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait_for(device)
    return (time.perf_counter() - start) / calls


def turn_by_turn(
    loops: dict[str, Callable[[], object]], seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a step of each loop, one figure a round; a loop's turn lasts `seconds` / rounds."""
    calls = {}
    for name, run in loops.items():
        seconds_a_call(run, WARM_UP, device)
        calls[name] = max(1, round(seconds / ROUNDS / seconds_a_call(run, 1, device)))
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(ROUNDS):
        for name, run in loops.items():
            times[name].append(seconds_a_call(run, calls[name], device))
    return times


class FlopCounter(TorchDispatchMode):
    """Adds up the multiplications and additions in convolutions and matrix products."""

    total = 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        if count := flop_registry.get(operation._overloadpacket):
            self.total += count(*arguments, **(keywords or {}), out_val=result)
        return result


def flops_of(run: Callable[[], object]) -> int:
    with FlopCounter() as counter:
        run()
    return counter.total


def matrix_product_flops(precision: torch.dtype, device: torch.device) -> float:
    """FLOP/s of one large matrix product: what the hardware can do with the best of work."""
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device).to(precision)
    seconds_a_call(lambda: matrix @ matrix, WARM_UP, device)
    return 2 * side**3 / min(seconds_a_call(lambda: matrix @ matrix, 2, device) for _ in range(5))


KINDS = {  # of what a profile lists, by name; the first that fits
    "convolutions and matrix products": (
        r"conv(?!ert)|gemm|xmma|cutlass|nvjet|wgrad|dgrad|fprop|aten::(add|b|badd)?mm\b|mkldnn_linear"
    ),
    "generated code": r"triton|compiledf|graph_\d+_cpp|torch-compiled|torchdynamo",
    "optimizers": r"optimizer|adam|rmsprop|foreach|multi_tensor",
    "copies": r"copy|memcpy|clone|contiguous|aten::cat\b|memset",
}


def where_time_goes(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """The share of each kind of work in the time of a step."""
    from torch.profiler import ProfilerActivity, profile

    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    run()
    with profile(activities=activities) as profiler:
        run()
        wait_for(device)
    shares = dict.fromkeys((*KINDS, "everything else"), 0.0)
    for event in profiler.key_averages():
        spent = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        fitting = (kind for kind, names in KINDS.items() if re.search(names, event.key.lower()))
        shares[next(fitting, "everything else")] += spent
    total = sum(shares.values()) or 1.0
    return {kind: spent / total for kind, spent in shares.items()}


# ---------------------------------------------------------------- in processes of their own


def memory_alone(loop: str, arguments: list[str]) -> int:
    """Peak memory, in bytes, of a process that runs that loop and no other."""
    command = [sys.executable, "-m", "benchmarks.speed", *arguments, "--alone", loop]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    return int(output.splitlines()[-1])


def run_alone(config: Config, shape: tuple[int, ...], loop: str) -> None:
    device = choose_device(config.device)
    samples = np.random.default_rng(0).integers(0, 256, (SAMPLES, *shape), np.uint8)
    if loop == "ours":
        state, batches = prepare(config, device, shape, samples)
        step = lambda: train_step(state, config, batches)  # noqa: E731
    else:
        feed = from_memory(samples, config.batch_size, device)
        eager = build_state(config, shape, device)
        step = Textbook(config, eager.generator, eager.critic, feed).step
    for _ in range(WARM_UP):
        step()
    print(peak_memory(device))


def peak_memory(device: torch.device) -> int:
    """Bytes at most in use so far, on the device, or by this process; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process_memory("VmHWM")


def process_memory(what: str) -> int:
    """Bytes of memory of this process as Linux counts them, 0 elsewhere: `VmHWM` at most so far,
    `RssAnon` its own now, without pages of mapped files."""
    try:
        found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def startup_seconds(device: str) -> float:
    """From the start of `python train.py`, not compiled, to its first step's line in the log."""
    command = [sys.executable, str(ROOT / "train.py"), "--compile", "off"]
    command += ["--steps", "1", "--log-every", "1", "--device", device]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--run", folder + "/run"]
        for attempt in ("data prepared", "timed"):
            start = time.perf_counter()
            more = ["--fresh"] if attempt == "timed" else []
            process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True)
            assert process.stdout
            for line in process.stdout:
                if line.startswith("step 1/"):
                    seconds = time.perf_counter() - start
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, command)
    return seconds


# ---------------------------------------------------------------- the comparison


class Contest:
    """The loops of one case, ready to run: `loops` maps a name to a step."""

    def __init__(self, config: Config, shape: tuple[int, ...], workers: int):
        self.config, self.device = config, choose_device(config.device)
        samples = np.random.default_rng(0).integers(0, 256, (SAMPLES, *shape), np.uint8)
        start = time.perf_counter()
        self.state, self.batches = prepare(config, self.device, shape, samples)
        self.prepared = time.perf_counter() - start
        self.eager = build_state(config, shape, self.device)
        size = config.batch_size
        feeds = {
            "textbook, DataLoader": from_loader(samples, size, workers),
            "textbook": from_memory(samples, size, self.device),
        }
        self.loops: dict[str, Callable[[], object]] = {
            name: Textbook(config, self.eager.generator, self.eager.critic, feed).step
            for name, feed in feeds.items()
        }
        self.loops["ours"] = lambda: train_step(self.state, config, self.batches)

    def compare(self, seconds: float) -> dict:
        """Time them all, that long each; times, ratios to the textbook loop, FLOP/s."""
        times = turn_by_turn(self.loops, seconds, self.device)
        inputs = draw_inputs(self.state, self.config, self.batches)
        plain = flops_of(self.loops["textbook"])
        flops = dict.fromkeys(self.loops, plain)
        flops["ours"] = flops_of(lambda: update_networks(self.eager, self.config, inputs))
        precisions = dict.fromkeys(self.loops, torch.float32)
        precisions["ours"] = self.state.compute.precision
        peaks = {p: matrix_product_flops(p, self.device) for p in set(precisions.values())}
        images = self.config.n_critic * self.config.batch_size
        result: dict[str, dict] = {}
        for name, measured in times.items():
            step = statistics.median(measured)
            ratios = [t / o for t, o in zip(times["textbook"], measured, strict=True)]
            result[name] = {
                "ms_a_step": 1000 * step,
                "images_per_second": images / step,
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "flops_per_second": flops[name] / step,
                "of_matrix_product": flops[name] / step / peaks[precisions[name]],
            }
        return result

    def details(self, step_ms: float) -> dict:
        """Where the time goes, and what is paid before the first step."""
        run = lambda: draw_inputs(self.state, self.config, self.batches)  # noqa: E731
        goes = {name: where_time_goes(self.loops[name], self.device) for name in ALONE}
        return {
            "time_goes_to": goes,
            "feeding_share": 1000 * seconds_a_call(run, 20, self.device) / step_ms,
            "compile_seconds": self.prepared,
            "startup_seconds": startup_seconds(self.config.device),
        }


def compare(config: Config, shape: tuple[int, ...], options, given: list[str]) -> dict:
    contest = Contest(config, shape, options.workers)
    result = describe(contest, shape) | {"loops": contest.compare(options.seconds)}
    result |= contest.details(result["loops"]["ours"]["ms_a_step"])
    for name in ALONE:
        result["loops"][name]["memory"] = memory_alone(name, given)
    return result


def describe(contest: Contest, shape: tuple[int, ...]) -> dict:
    names = ("method", "model", "width", "batch_size", "n_critic")
    return {
        "machine": machine(contest.device),
        "case": {name: getattr(contest.config, name) for name in names} | {"shape": shape},
        "precision": str(contest.state.compute.precision).removeprefix("torch."),
    }


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        try:
            model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
            name = model[1] if model else platform.processor()
        except OSError:
            name = platform.processor()
        name += f", {torch.get_num_threads()} threads"
    return f"{name}, PyTorch {torch.__version__}"


def show(result: dict) -> None:
    case = result["case"]
    print(f"\n{result['machine']}; " + ", ".join(f"{k} {v}" for k, v in case.items()))
    print(f"ours in {result['precision']}; the textbook loop in float32\n")
    head = f"{'loop':<22}{'ms a step':>10}{'images/s':>10}{'ratio (range)':>20}"
    print(head + f"{'GFLOP/s':>9}{'of matrix product':>19}{'peak MB':>9}")
    for name, loop in result["loops"].items():
        low, high = loop["ratio_range"]
        ratio = f"{loop['ratio']:.2f} ({low:.2f}-{high:.2f})"
        memory = f"{loop['memory'] / 2**20:.0f}" if loop.get("memory") else ""
        print(
            f"{name:<22}{loop['ms_a_step']:>10.1f}{loop['images_per_second']:>10.0f}{ratio:>20}"
            f"{loop['flops_per_second'] / 1e9:>9.0f}{loop['of_matrix_product']:>19.0%}{memory:>9}"
        )
    print(f"\n{'where the time goes':<34}{'textbook':>10}{'ours':>10}")
    goes = result["time_goes_to"]
    for kind in goes["ours"]:
        print(f"{kind:<34}{goes['textbook'][kind]:>10.0%}{goes['ours'][kind]:>10.0%}")
    print(f"\ndrawing and feeding a step's inputs: {result['feeding_share']:.1%} of our step")
    print(f"compiling, once: {result['compile_seconds']:.0f} s")
    print(f"`python train.py` to its first step, not compiled: {result['startup_seconds']:.1f} s")


# ---------------------------------------------------------------- a table of cases

CASES = {
    "WGAN-GP, DCGAN, 64x64x3": {"image_size": "64", "channels": 3},
    "WGAN-GP, DCGAN, 28x28": {},
    "the same in float32": {"precision": "fp32"},
    "WGAN, DCGAN, 28x28": {"method": "wgan"},
    "WGAN-div, DCGAN, 28x28": {"method": "wgan-div"},
    "WGAN-GP, dense, 28x28": {"model": "dense"},
}


def table(options) -> dict:
    """Every case of the README's table; other options hold for all of them."""
    result: dict = {"cases": {}}
    for name, changed in CASES.items():
        torch.compiler.reset()  # a case is compiled for itself, not for shapes that change
        config, shape = configuration(argparse.Namespace(**vars(options) | changed))
        contest = Contest(config, shape, options.workers)
        result["cases"][name] = contest.compare(options.seconds)
        result["machine"] = machine(contest.device)
    return result


def show_table(result: dict) -> None:
    print(f"\n{result['machine']}; milliseconds a step of 5 critic updates of 64 samples\n")
    print(
        "| case | textbook, DataLoader | textbook | ours | ratio (range) |\n|---|---|---|---|---|"
    )
    for name, loops in result["cases"].items():
        low, high = loops["ours"]["ratio_range"]
        times = " | ".join(f"{loop['ms_a_step']:.0f}" for loop in loops.values())
        print(f"| {name} | {times} | {loops['ours']['ratio']:.2f} ({low:.2f}-{high:.2f}) |")


# ---------------------------------------------------------------- growth


def growth(config: Config, options) -> dict:
    """How a step's time and the process's memory grow with the data, the batch, the picture."""
    device = choose_device(config.device)
    result: dict = {"machine": machine(device), "images": [], "batch": [], "side": []}

    def timed(shape, count=2000, folder=None, **changed) -> dict:
        case = resolve(vars(config) | {"compile": "off"} | changed, {})
        if folder:
            samples = np.memmap(Path(folder) / "samples", np.uint8, "w+", shape=(count, *shape))
            samples[:] = 128
        else:
            samples = np.full((count, *shape), 128, np.uint8)
        state, batches = prepare(case, device, shape, samples)
        before = process_memory("RssAnon")
        run = lambda: train_step(state, case, batches)  # noqa: E731
        seconds = turn_by_turn({"ours": run}, options.seconds, device)["ours"]
        per_image = statistics.median(seconds) / (case.n_critic * case.batch_size)
        return {"us_an_image": 1e6 * per_image, "memory": process_memory("RssAnon") - before}

    with tempfile.TemporaryDirectory() as folder:
        for count in (10_000, 100_000, 1_000_000):
            case = timed((1, 28, 28), count, folder)
            result["images"].append({"images": count} | case)
    for size in (16, 32, 64, 128, 256):
        result["batch"].append({"batch": size} | timed((1, 28, 28), batch_size=size))
    for side in (16, 32, 64, 128):
        case = timed((3, side, side))
        result["side"].append({"side": side, "ns_a_pixel": 1000 * case["us_an_image"] / side**2})
    return result


def show_growth(result: dict) -> None:
    print(
        f"\n{result['machine']}\n\n{'images, memory-mapped':>22}{'us an image':>14}{'MB grown':>10}"
    )
    for row in result["images"]:
        print(f"{row['images']:>22,}{row['us_an_image']:>14.1f}{row['memory'] / 2**20:>10.0f}")
    print(f"\n{'batch':>22}{'us an image':>14}")
    for row in result["batch"]:
        print(f"{row['batch']:>22}{row['us_an_image']:>14.1f}")
    print(f"\n{'side':>22}{'ns a pixel':>14}")
    for row in result["side"]:
        print(f"{row['side']:>22}{row['ns_a_pixel']:>14.1f}")


# ---------------------------------------------------------------- the command


def make_parser() -> Parser:
    parser = Parser(prog="benchmark.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--method", default="wgan-gp", help=", ".join(METHODS))
    parser.add_argument("--model", default="dcgan", help=", ".join(MODELS))
    parser.add_argument("--image-size", default="28", help="64, or 64x96")
    parser.add_argument("--channels", type=int, default=1, help="1 or 3")
    parser.add_argument("--width", type=int, help="of the networks")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--n-critic", type=int, default=5, help="critic updates a step")
    parser.add_argument("--precision", default="auto", help="ours: auto, fp32, bf16")
    parser.add_argument("--compile", default="on", help="ours: on, off")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=20, help="of timing for each loop")
    parser.add_argument("--workers", type=int, default=0, help="processes of the DataLoader")
    parser.add_argument("--table", action="store_true", help="the cases of the README's table")
    parser.add_argument("--growth", action="store_true", help="how time and memory grow")
    parser.add_argument("--scaling", action="store_true", help="speed with 1, 2, 4, ... ranks")
    parser.add_argument("--quality", action="store_true", help="how good samples are, how soon")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    group = parser.add_argument_group("with --quality")
    marks, loops = ",".join(map(str, MARKS)), ",".join(LOOPS)
    group.add_argument("--marks", default=marks, help=f"after so many seconds ({marks})")
    group.add_argument("--loops", default=loops, help=f"the script, and recipes ({loops})")
    group.add_argument("--seeds", type=int, default=1, help="how many runs of each (1)")
    group.add_argument("--seed", type=int, default=0, help="the first run's (0)")
    group.add_argument("--plot", metavar="PNG", help="draw the figures")
    parser.add_argument("--alone", choices=(*ALONE, PLAIN, "rank"), help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """`python benchmark.py`: 0, or 2 for bad input."""
    given = sys.argv[1:] if argv is None else argv
    try:
        options = make_parser().parse_args(argv)
        check_targets(options)  # before the minutes of timing, not after them
        config, shape = configuration(options)
        if options.alone == PLAIN:
            run_plain_script(options)
            return 0
        if options.alone == "rank":
            result = run_as_rank(config, shape, options.seconds, prepare, SAMPLES)
            if options.json and distributed.is_first():
                Path(options.json).write_text(json.dumps(result))
            return 0
        if options.alone:
            run_alone(config, shape, options.alone)
            return 0
        if options.growth:
            show_growth(result := growth(config, options))
        elif options.scaling:
            result = {"machine": machine(choose_device(options.device))} | scaling(
                config, shape, given
            )
            show_scaling(result)
        elif options.quality:
            about = {"machine": machine(choose_device(options.device))}
            result = about | quality(options, lambda part: write_json(options, about | part))
            show_quality(result)
            if options.plot:
                plot_quality(result, Path(options.plot))
        elif options.table:
            show_table(result := table(options))
        else:
            show(result := compare(config, shape, options, given))
        write_json(options, result)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check_targets(options) -> None:
    """ValueError where the files asked for could not be written in the end."""
    if options.plot and not options.quality:
        raise ValueError("--plot draws the figures of --quality: give that, too")
    for target in map(Path, filter(None, (options.json, options.plot))):
        written = target if is_stream(target) else target.parent
        if target.is_dir() or not os.access(written, os.W_OK):
            raise ValueError(f"{target} cannot be written: name a file in a folder that can be")


def is_stream(target: Path) -> bool:
    """Whether it is a pipe or a terminal, say, which must not be replaced by a file."""
    return target.exists() and not target.is_file()


def write_json(options, result: dict) -> None:
    if not options.json:
        return
    target, text = Path(options.json), json.dumps(result, indent=2) + "\n"
    if is_stream(target):
        target.write_text(text)
    else:
        write_whole(target, text.encode())


def configuration(options) -> tuple[Config, tuple[int, ...]]:
    """The configuration of a case, and its samples' shape; ValueError for a bad option."""
    size = parse_image_size(options.image_size)
    if not size or options.channels not in (1, 3):
        raise ValueError("--image-size must be a size such as 64, and --channels 1 or 3")
    if not 0 < options.seconds <= 3600:
        raise ValueError("--seconds must lie between 0 and 3600")
    if options.seeds < 1 or options.seed < 0:
        raise ValueError("--seeds must be at least 1, and --seed must not be negative")
    names = ("method", "model", "width", "batch_size", "n_critic", "precision", "compile", "device")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return resolve(given | {"dataset": "images"}, {}), (options.channels, *size)


if __name__ == "__main__":
    sys.exit(main())
