"""How a training step runs fast: compiled losses, and the whole step as a CUDA graph."""

import logging
import math
import os
import platform
import re
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from wgan import distributed
from wgan.budget import Budget
from wgan.config import Config
from wgan.inputs import StepInputs
from wgan.state import TrainState

# What compiling costs and saves, for `--compile auto`: conservative values of the measurements in
# docs/performance.md.
COMPILE_SECONDS = 60.0  # if nothing is cached
COMPILE_GAIN = {  # the share of a step's time that is saved
    ("cuda", torch.bfloat16): 0.25,
    ("cuda", torch.float32): 0.25,
    ("cpu", torch.bfloat16): 0.1,
}
PROBE_STEPS, PROBE_SECONDS = 3, 1.0  # at most, to measure the time of a step

Step = Callable[[TrainState, Config, StepInputs], dict[str, Tensor]]


def prepare_device(device: torch.device, deterministic: bool) -> None:
    """Make a CUDA device the current one, on which steps are captured, let its float32 matrix
    products use TF32, and let cuDNN try out which algorithm is fastest for each convolution.
    With `deterministic`, CUDA computes the same bytes each time, as a CPU does anyway."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(deterministic)
    respect_cpu_quota()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # The first backward pass runs in a thread of its own, and PyTorch sets the device for it.
        warnings.filterwarnings("ignore", "Attempting to run cuBLAS, but there was no current")
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not deterministic


def describe_machine(device: torch.device) -> str:
    """The name of the GPU or CPU, and PyTorch's version."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    name = platform.processor()
    with suppress(OSError):  # not Linux
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = model[1] if model else name
    return f"{name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def respect_cpu_quota(group: Path = Path("/sys/fs/cgroup")) -> None:
    """Use no more threads than a container has CPUs (`docker --cpus`). PyTorch starts one per core
    of the machine. `group` is the container's control group. OMP_NUM_THREADS takes precedence."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # cgroup v2, v1
        with suppress(OSError, ValueError):  # no such file; the quota is "max"
            texts = [(group / name).read_text() for name in names]
            quota, period = map(int, " ".join(texts).split())  # microseconds; -1: no quota
            threads = math.ceil(quota / period)
            if 0 < threads < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(threads)
                print(f"{threads} threads, because this container may use {quota / period:g} CPUs")


def accelerate(
    state: TrainState, config: Config, budget: Budget, inputs: StepInputs, step: Step
) -> Config:
    """Compile the losses and capture the step, as far as requested, possible and worthwhile.

    `step(state, config, inputs)` performs the updates of one step. Called before the first step,
    because compiling takes a while. A failure is reported, and training is slower.
    Returns the configuration in which `compile` is decided: "on" or "off", no longer "auto".
    """

    def trial_step() -> None:
        step(state, config, inputs)

    def capture() -> None:
        if can_capture(config, state.device):
            capture_step(state, config, inputs, step)

    if config.compile == "auto":
        capture()  # takes a second, compiling up to a minute
        run_step = (lambda: state.graph(inputs)) if state.graph else trial_step
        decision = "on" if compiling_pays(state, budget, run_step) else "off"
        config = replace(config, compile=decision)
    if config.compile == "on":
        state.graph = None  # of the uncompiled step
        compiled = compile_losses(state, trial_step)
        config = replace(config, compile="on" if compiled else "off")
    if not state.graph:
        capture()
    return config


def can_capture(config: Config, device: torch.device) -> bool:
    """Only on CUDA, with steps of one kind, and with one rank: a graph would have to contain the
    collectives."""
    on_cuda = config.cuda_graph and device.type == "cuda"
    return on_cuda and not config.coarse and distributed.world_size() == 1


def compiling_pays(state: TrainState, budget: Budget, run_step: Callable[[], object]) -> bool:
    """Whether compiling saves more time than it takes in the time or the steps that are left, by a
    conservative estimate. All ranks decide the same."""
    steps_per_second = 1.0  # does not matter if only the time is limited
    if budget.steps < math.inf:
        steps_per_second = 1 / seconds_per_step(state, run_step)
    seconds = budget.seconds_left(state.step, steps_per_second)
    gain = COMPILE_GAIN.get((state.device.type, state.precision), 0.0)
    pays = can_compile(state.device) and gain * seconds > COMPILE_SECONDS
    (pays_for_one,) = distributed.all_max(pays)
    return bool(pays_for_one)


def seconds_per_step(state: TrainState, run_step: Callable[[], object]) -> float:
    """The time of a step, measured on a few that are rolled back."""
    times: list[float] = []

    def probe() -> None:
        while len(times) < PROBE_STEPS and sum(times) < PROBE_SECONDS:
            start = time.perf_counter()
            run_step()
            if state.device.type == "cuda":
                torch.cuda.synchronize(state.device)
            times.append(time.perf_counter() - start)

    state.run_and_roll_back(probe)
    return min(times)


def can_compile(device: torch.device) -> bool:
    """Whether the requirements of `torch.compile` exist: Triton, or a C++ compiler for a CPU."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    compilers = [os.environ.get("CXX", "g++"), "clang++", "cl"]
    return device.type == "cpu" and any(map(shutil.which, compilers))


def compile_losses(state: TrainState, trial_step: Callable[[], None]) -> bool:
    """Whether the losses could be compiled."""
    if not can_compile(state.device):
        missing = {"cuda": "Triton", "cpu": "a C++ compiler"}.get(state.device.type, "support")
        print(f"not compiled because {missing} is missing; training continues, more slowly")
        return False
    print("compiling the losses, once ...", end=" ", flush=True)
    # It warns that CUDA_HOME is set on a machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    start, eager = time.perf_counter(), state.losses
    state.losses = eager.compiled()
    try:
        state.run_and_roll_back(trial_step)
        print(f"took {time.perf_counter() - start:.0f} s", flush=True)
        return True
    except Exception as error:  # compilers fail in many ways, and training works without
        state.losses = eager
        print(f"failed ({first_line(error)}); training continues, more slowly", flush=True)
        return False


def capture_step(state: TrainState, config: Config, inputs: StepInputs, step: Step) -> None:
    try:
        state.graph = CapturedStep(
            lambda *tensors: step(state, config, StepInputs(*tensors)),
            inputs,
            state.run_and_roll_back,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # some operation cannot be captured; training works without
        print(f"step not captured ({first_line(error)}); training continues, more slowly")


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class CapturedStep:
    """A function of tensors, captured once as a CUDA graph and then replayed: the kernels of a
    whole training step are launched at once, without Python between them.

    `run_and_roll_back(run)` runs a function and undoes its changes. The outputs of a call are
    overwritten by the next call.
    """

    def __init__(self, function: Callable, inputs: tuple[Tensor, ...], run_and_roll_back: Callable):
        self.inputs = [value.clone() for value in inputs]
        self.replay, self.outputs = capture(lambda: function(*self.inputs), run_and_roll_back)

    def __call__(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        for own, value in zip(self.inputs, inputs, strict=True):
            own.copy_(value)
        self.replay()
        return dict(self.outputs)


def capture(
    run: Callable, run_and_roll_back: Callable
) -> tuple[Callable[[], None], dict[str, Tensor]]:
    """A CUDA graph of `run`: the function that replays it, and the outputs that this fills."""

    def warm_up() -> None:  # what is set up once must not be part of the graph
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)

    run_and_roll_back(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs
