"""How fast is training, compared with the loop of common tutorials (benchmarks/textbook.py)?

Both loops train the same networks on the same device in the same process, in turn. The textbook
loop is timed twice: fed from memory, as ours is, and by a DataLoader over PIL images.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.common import check_writable, make_parser, write_json
from benchmarks.textbook import Textbook, from_loader, from_memory
from train import all_updates, train_step
from utils import METHODS
from wgan.acceleration import accelerate, describe_machine, prepare_device
from wgan.budget import Budget
from wgan.command import Parser, run_script
from wgan.config import Config
from wgan.data import Batches, RowReader
from wgan.inputs import sample_inputs
from wgan.recipes import resolve
from wgan.state import TrainState, build_state
from wgan_gp import MODELS, choose_device

SAMPLES = 10_000  # images of random bytes, of which both loops draw their batches
ROUNDS = 5  # turns of each loop; the results are medians
ROUNDS_IF_SLOW = 2  # if a single step takes longer than a turn should
WARM_UP = 3  # steps before any is timed; one if slow
TEXTBOOK, OURS = "textbook", "ours"
TABLE = (  # the cases of docs/performance.md, as flags
    "",
    "--precision fp32",
    "--method wgan",
    "--method wgan-div",
    "--model dense",
    "--image-size 64 --channels 3",
    "--image-size 64 --channels 3 --batch-size 512",
    "--image-size 128 --channels 3",
    "--image-size 32 --channels 3 --model residual --width 128",
)
CASE_OPTIONS = (
    "method", "model", "width", "batch_size", "n_critic", "precision", "compile", "device",
)  # fmt: skip

Shape = tuple[int, ...]
Step = Callable[[], object]

# ---------------------------------------------------------------- measuring


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_per_call(run: Step, calls: int, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronise(device)
    return (time.perf_counter() - start) / calls


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
    """Floating-point operations of a call."""
    with FlopCounter() as counter:
        run()
    return counter.total


def matrix_product_flops(precision: torch.dtype, device: torch.device) -> float:
    """FLOP/s of one large matrix product: a bound for what the hardware can do."""
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device).to(precision)
    seconds_per_call(lambda: matrix @ matrix, WARM_UP, device)
    return 2 * side**3 / min(seconds_per_call(lambda: matrix @ matrix, 2, device) for _ in range(5))


# ---------------------------------------------------------------- one case


class Comparison:
    """The loops of one case, ready to run: `loops` maps a name to a step."""

    def __init__(self, config: Config, shape: Shape, workers: int = 0):
        self.config, self.shape, self.device = config, shape, choose_device(config.device)
        self.eager = build_state(config, shape, self.device)
        images = np.random.default_rng(0).integers(0, 256, (SAMPLES, *shape), np.uint8)
        self.state, self.batches = build_training(config, images, self.device)
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
        result: dict[str, dict] = {}
        for name, seconds_per_step in times.items():
            pairs = zip(times[TEXTBOOK], seconds_per_step, strict=True)
            ratios = [textbook / own for textbook, own in pairs]
            flops_per_second = flops[name] / statistics.median(seconds_per_step)
            result[name] = {
                "ms_per_step": 1000 * statistics.median(seconds_per_step),
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "flops_per_second": flops_per_second,
                "of_matrix_product": flops_per_second / peaks[precisions[name]],
            }
        return result

    def flops(self) -> int:
        """Operations of our step, counted without compiling."""
        return flops_of(lambda: train_step(self.eager, self.config, self.batches))

    def describe(self) -> str:
        config, precision = self.config, str(self.state.precision).removeprefix("torch.")
        channels, side, _ = self.shape
        return (
            f"{config.method}, {config.model}, {side}x{side}x{channels}, width {config.width}, "
            f"batch {config.batch_size}, {config.n_critic} critic update(s), {precision}"
        )


def build_training(
    config: Config, images: np.ndarray, device: torch.device
) -> tuple[TrainState, Batches]:
    """The state and the batches of our training, accelerated as in a long run."""
    prepare_device(device, config.deterministic)
    reader = RowReader.from_array(images)
    state = build_state(config, reader.sample_shape, device)
    batches = Batches(reader, config.batch_size, config.seed, device)
    inputs = sample_inputs(state.step, config, batches)
    batches.wait()
    accelerate(state, config, Budget(steps=10**6, max_seconds=0), inputs, all_updates)
    return state, batches


def show(result: dict) -> None:
    """Print the cases as a table: milliseconds per step, and ratios."""
    print(f"\n{result['machine']}; milliseconds per step\n")
    print(
        f"| case, precision of {OURS} | {TEXTBOOK}, DataLoader | {TEXTBOOK} | {OURS} "
        f"| {TEXTBOOK} / {OURS} (range) | share of a matrix product |"
    )
    print("|---|---|---|---|---|---|")
    for row in result["cases"]:
        times = " | ".join(f"{loop['ms_per_step']:.1f}" for loop in row["loops"].values())
        ours = row["loops"][OURS]
        low, high = ours["ratio_range"]
        print(
            f"| {row['case']} | {times} | {ours['ratio']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {ours['of_matrix_product']:.0%} |"
        )


# ---------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run_benchmark(sys.argv[1:] if argv is None else argv))


def run_benchmark(argv: list[str]) -> None:
    parser = make_speed_parser()
    options = parser.parse_args(argv)
    if not 0 < options.seconds <= 3600:
        raise ValueError("--seconds must be between 0 and 3600")
    check_writable(options.json)
    rows = TABLE if options.table else ("",)
    cases = [case_of(parser.parse_args([*argv, *row.split()])) for row in rows]
    result: dict = {"machine": describe_machine(choose_device(options.device)), "cases": []}
    for config, shape in cases:
        torch.compiler.reset()  # compile each case for its own shapes
        comparison = Comparison(config, shape, options.workers)
        print(f"{comparison.describe()} ...", file=sys.stderr)
        loops = comparison.measure(options.seconds)
        result["cases"].append({"case": comparison.describe(), "loops": loops})
        write_json(options.json, result)
    show(result)


def make_speed_parser() -> Parser:
    parser = make_parser("speed", __doc__)
    add = parser.add_argument
    add("--method", default="wgan-gp", help=f"{', '.join(METHODS)} (default: wgan-gp)")
    add("--model", default="dcgan", help=f"{', '.join(MODELS)} (default: dcgan)")
    add("--image-size", type=int, default=28, help="side of the square images (default: 28)")
    add("--channels", type=int, choices=(1, 3), default=1, help="of the images (default: 1)")
    add("--width", type=int, help="of the networks (default: the model's)")
    add("--batch-size", type=int, default=64, help="samples per update (default: 64)")
    add("--n-critic", type=int, default=5, help="critic updates per step (default: 5)")
    add("--precision", default="auto", help="auto, fp32, bf16 (default: auto)")
    add("--compile", default="auto", help="auto: as a long run, on, off (default: auto)")
    add("--seconds", type=float, default=20, help="of timing per loop (default: 20)")
    add("--table", action="store_true", help="measure the cases of docs/performance.md, which "
        "take precedence over the flags above")  # fmt: skip
    return parser


def case_of(options: argparse.Namespace) -> tuple[Config, Shape]:
    """The configuration of a case and the shape `(C, H, W)` of its images.

    ValueError for an invalid option.
    """
    values = {name: getattr(options, name) for name in CASE_OPTIONS}
    values = {name: value for name, value in values.items() if value is not None}
    config = resolve({"dataset": "random bytes", **values}).config
    return config, (options.channels, options.image_size, options.image_size)


if __name__ == "__main__":
    sys.exit(main())
