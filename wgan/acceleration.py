"""How a training step runs fast: compiled losses, and the whole step as a CUDA graph."""

import os
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from wgan import distributed
from wgan.budget import Budget
from wgan.config import Config
from wgan.state import TrainState

MIN_UPDATES_TO_COMPILE = 2000  # critic updates that save more time than compiling costs
MIN_SECONDS_TO_COMPILE = 120  # the same for runs that are limited in time

Step = Callable[[TrainState, Config, NamedTuple], dict[str, Tensor]]


def prepare_device(device: torch.device, deterministic: bool) -> None:
    """Make a CUDA device the current one, on which steps are captured, and let its float32 matrix
    products use TF32. With `deterministic`, CUDA computes the same bytes each time, as a CPU does
    anyway."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(deterministic)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")


def accelerate(
    state: TrainState, config: Config, budget: Budget, inputs: NamedTuple, step: Step
) -> None:
    """Compile the losses and capture the step, as far as requested, possible and worthwhile.

    `step(state, config, inputs)` performs the updates of one step. Called before the first step,
    because compiling takes a while. If something fails, a line says so and training is slower.
    """

    # What ranks exchange inside the generator cannot be compiled, and a trial must not exchange
    # anything, because it may fail on one rank alone.
    exchanges = config.sync_batch_norm and distributed.world_size() > 1

    def trial_step() -> None:
        state.generator.train(not exchanges)  # in evaluation mode, it exchanges nothing
        try:
            state.run_and_roll_back(lambda: step(state, config, inputs))
        finally:
            state.generator.train()

    if should_compile(config, budget):
        compile_losses(state, trial_step, critic_only=exchanges)
    one_rank = distributed.world_size() == 1  # a graph would have to contain the collectives
    if config.compile != "off" and state.device.type == "cuda" and one_rank:
        capture_step(state, config, inputs, step)


def should_compile(config: Config, budget: Budget) -> bool:
    """Whether the losses should be compiled; "auto" means if the run is long enough."""
    long_enough = budget.steps * config.n_critic >= MIN_UPDATES_TO_COMPILE and (
        not config.max_seconds or config.max_seconds >= MIN_SECONDS_TO_COMPILE
    )
    return config.compile == "on" or (config.compile == "auto" and long_enough)


def can_compile(device: torch.device) -> bool:
    """Whether the requirements of `torch.compile` exist: Triton, or a C++ compiler for a CPU."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    compilers = [os.environ.get("CXX", "g++"), "clang++", "cl"]
    return device.type == "cpu" and any(map(shutil.which, compilers))


def compile_losses(
    state: TrainState, trial_step: Callable[[], None], critic_only: bool = False
) -> None:
    if not can_compile(state.device):
        missing = {"cuda": "Triton", "cpu": "a C++ compiler"}.get(state.device.type, "support")
        print(f"not compiled because {missing} is missing; training continues, more slowly")
        return
    print("compiling the losses, once ...", end=" ", flush=True)
    start, eager = time.perf_counter(), state.losses
    state.losses = eager.compiled(critic_only=critic_only)
    try:
        trial_step()
        print(f"took {time.perf_counter() - start:.0f} s", flush=True)
    except Exception as error:  # compilers fail in many ways, and training works without
        state.losses = eager
        print(f"failed ({first_line(error)}); training continues, more slowly", flush=True)


def capture_step(state: TrainState, config: Config, inputs: NamedTuple, step: Step) -> None:
    make_inputs = type(inputs)
    try:
        state.graph = CapturedStep(
            lambda *tensors: step(state, config, make_inputs(*tensors)),
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
