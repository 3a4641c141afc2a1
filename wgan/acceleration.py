"""How a training step is computed: in which precision, compiled or not.

The numbers are those of plain float32, within rounding; only the time differs.
"""

import os
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils import generator_loss
from wgan import distributed

PRECISIONS = ("auto", "fp32", "bf16")
COMPILE_REPAID = 2000  # critic updates that save more time than compiling costs
COMPILE_REPAID_SECONDS = 120  # the same for runs that are limited in time


def choose_precision(name: str, device: torch.device, sample_shape: tuple[int, ...]) -> torch.dtype:
    """The type that networks compute in; `auto` is bfloat16 where the hardware is fast at it.

    That is CUDA from compute capability 8.0 on, and CPUs with AMX or AVX512-BF16; but points
    stay float32, as 8 bits would blur their coordinates. Weights and optimizers are float32
    in any case.
    """
    if name == "auto":
        name = "bf16" if len(sample_shape) == 3 and fast_at_bfloat16(device) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def fast_at_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    try:
        features = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        return False
    return bool(features & {"amx_bf16", "avx512_bf16"})


def prepare_device(device: torch.device) -> None:
    """Make a CUDA device the current one, on which steps are recorded; where float32 is asked
    for, it computes in TF32."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")


def can_compile(device: torch.device) -> bool:
    """Whether what `torch.compile` needs is there: Triton for CUDA, a C++ compiler for a CPU."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    compilers = [os.environ.get("CXX", "g++"), "clang++", "cl"]
    return device.type == "cpu" and any(map(shutil.which, compilers))


class StepInputs(NamedTuple):
    """What one training step takes, drawn before it begins: `n` critic updates of `B` samples."""

    real: Tensor  # (n, B, ...) as stored: bytes, or points
    noise: Tensor  # (n, B, noise_dim)
    generator_noise: Tensor  # (G, noise_dim), for the generator's update
    mix: Tensor  # (n, B) in [0, 1]
    mirrored: Tensor  # (n, B) bool
    average_weight: Tensor  # scalar: how far the moving average moves


class Compute:
    """The three computations of a training step, in one precision, compiled or not; and the
    whole step, where it was recorded.

    Loss functions are compiled, never modules: state-dict keys stay clean, and the penalty's
    inner gradient is traced with the rest (`fullgraph=True`).
    """

    def __init__(self, method, precision: torch.dtype = torch.float32):
        self.method, self.precision = method, precision
        self.samples: Callable = self.in_precision(samples)
        self.critic_loss: Callable = self.in_precision(method.critic_loss)
        self.generator_loss: Callable = self.in_precision(loss_of_generator)
        self.recorded: Recorded | None = None

    def in_precision(self, function: Callable) -> Callable:
        low = self.precision != torch.float32

        def computed(network: nn.Module, *arguments):
            device = arguments[-1].device.type
            with torch.autocast(device, self.precision if low else None, enabled=low):
                return function(network, *arguments)

        return computed

    def compile(self, backend: str = "inductor", critic_only: bool = False) -> None:
        others = () if critic_only else ("samples", "generator_loss")
        for name in ("critic_loss", *others):
            function = torch.compile(getattr(self, name), fullgraph=True, backend=backend)
            setattr(self, name, function)


def speed_up(state, config, steps: float, inputs: StepInputs, step: Callable) -> None:
    """Compile the losses of a `TrainState`, and record its steps for CUDA, as far as asked for,
    possible and worth it. Done before the first step and said, so that it is not taken for a
    hang. What fails is said too, and left out.

    `step(state, config, inputs)` is a training step.
    """

    def rehearsal() -> None:
        rehearse(state, lambda: step(state, config, inputs))

    device = inputs.noise.device
    worth_it = steps * config.n_critic >= COMPILE_REPAID and (
        not config.max_seconds or config.max_seconds >= COMPILE_REPAID_SECONDS
    )
    if config.compile == "on" or (config.compile == "auto" and worth_it):
        # What ranks exchange within the generator cannot be compiled.
        exchanging = config.sync_batch_norm and distributed.ranks() > 1
        compile_losses(state, device, rehearsal, critic_only=exchanging)
    one_rank = distributed.ranks() == 1  # a graph would have to hold the collectives too
    if config.compile != "off" and device.type == "cuda" and one_rank:
        record_step(state, inputs, lambda *values: step(state, config, StepInputs(*values)))


def compile_losses(
    state, device: torch.device, rehearsal: Callable, critic_only: bool = False
) -> None:
    if not can_compile(device):
        needed = {"cuda": "Triton", "cpu": "a C++ compiler"}.get(device.type, "support for it")
        print(f"not compiled, as {needed} is missing: training goes on, slower")
        return
    print("compiling the losses, once ...", end=" ", flush=True)
    start, eager = time.perf_counter(), state.compute
    state.compute = Compute(eager.method, eager.precision)
    state.compute.compile(critic_only=critic_only)
    try:
        rehearsal()
        print(f"took {time.perf_counter() - start:.0f} s", flush=True)
    except Exception as error:  # compilers fail in many ways, and training can do without
        state.compute = eager
        print(f"failed ({first_line(error)}): training goes on, slower", flush=True)


def record_step(state, inputs: StepInputs, step: Callable) -> None:
    try:
        state.compute.recorded = Recorded(step, inputs, lambda run: rehearse(state, run))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # some operation that cannot be recorded; training can do without
        print(f"the step cannot be recorded ({first_line(error)}): training goes on, slower")


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def rehearse(state, run: Callable[[], object]) -> None:
    """Run something that trains, and put back everything that it changed, in place."""
    networks = (state.generator, state.critic, state.average)
    optimizers = (state.generator_optimizer, state.critic_optimizer)

    def changing() -> list[Tensor]:
        tensors = [tensor for network in networks for tensor in network.state_dict().values()]
        for optimizer in optimizers:
            for entries in optimizer.state.values():
                tensors += [value for value in entries.values() if isinstance(value, Tensor)]
        return tensors

    before = [(tensor, tensor.clone()) for tensor in changing()]
    try:
        with distributed.alone():  # on another rank it may fail
            run()
    finally:
        for tensor in changing():
            tensor.detach().zero_()  # the averages of an optimizer that was new
        for tensor, value in before:
            tensor.detach().copy_(value)
        for network in networks:
            network.zero_grad()


class Recorded:
    """A function of tensors, recorded once as a CUDA graph and then replayed: the kernels of a
    whole training step are launched at once, without Python between them.

    `rehearse(run)` runs a function and undoes what it changed. The outputs of a call are
    overwritten by the next.
    """

    def __init__(self, function: Callable, inputs: tuple[Tensor, ...], rehearse: Callable):
        self.inputs = [value.clone() for value in inputs]
        self.replay, self.outputs = record(lambda: function(*self.inputs), rehearse)

    def __call__(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        for place, value in zip(self.inputs, inputs, strict=True):
            place.copy_(value)
        self.replay()
        return dict(self.outputs)


def record(run: Callable, rehearse: Callable) -> tuple[Callable[[], None], dict[str, Tensor]]:
    """A CUDA graph of `run`, as its replay and the outputs that a replay fills."""

    def warm_up() -> None:  # what is set up once must not be part of the graph
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)

    rehearse(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs


def samples(generator: nn.Module, noise: Tensor) -> Tensor:
    return generator(noise).float()


def loss_of_generator(critic: nn.Module, generator: nn.Module, noise: Tensor) -> Tensor:
    return generator_loss(critic(generator(noise)))
