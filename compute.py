"""How a training step is computed: in which precision, compiled or not.

The numbers are those of plain float32, within rounding; only the time differs.
"""

import os
import shutil
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import generator_loss

PRECISIONS = ("auto", "fp32", "bf16")
COMPILE_REPAID = 2000  # critic updates that save more time than compiling costs


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


def can_compile(device: torch.device) -> bool:
    """Whether what `torch.compile` needs is there: Triton for CUDA, a C++ compiler for a CPU."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    compilers = [os.environ.get("CXX", "g++"), "clang++", "cl"]
    return device.type == "cpu" and any(map(shutil.which, compilers))


class Compute:
    """The three computations of a training step, in one precision, compiled or not.

    Loss functions are compiled, never modules: state-dict keys stay clean, and the penalty's
    inner gradient is traced with the rest (`fullgraph=True`).
    """

    def __init__(self, method, precision: torch.dtype = torch.float32):
        self.method, self.precision = method, precision
        self.samples: Callable = self.in_precision(samples)
        self.critic_loss: Callable = self.in_precision(method.critic_loss)
        self.generator_loss: Callable = self.in_precision(loss_of_generator)

    def in_precision(self, function: Callable) -> Callable:
        low = self.precision != torch.float32

        def computed(network: nn.Module, *arguments):
            device = arguments[-1].device.type
            with torch.autocast(device, self.precision if low else None, enabled=low):
                return function(network, *arguments)

        return computed

    def compile(self, backend: str = "inductor") -> None:
        for name in ("samples", "critic_loss", "generator_loss"):
            function = torch.compile(getattr(self, name), fullgraph=True, backend=backend)
            setattr(self, name, function)


def compile_if_worth_it(config, state, batches, steps: int) -> None:
    """Compile the losses of a `TrainState` now, so that it is not taken for a hang; without a
    compiler, say so and leave them as they are."""
    device = batches.samples.device
    updates = steps * config.n_critic
    if config.compile == "off" or (config.compile == "auto" and updates < COMPILE_REPAID):
        return
    if not can_compile(device):
        needed = {"cuda": "Triton", "cpu": "a C++ compiler"}.get(device.type, "support for it")
        print(f"not compiled, as {needed} is missing: training goes on, slower")
        return
    print("compiling the losses, once ...", end=" ", flush=True)
    start, eager = time.perf_counter(), state.compute
    state.compute = Compute(eager.method, eager.precision)
    state.compute.compile()
    try:
        compute_once(config, state, batches)
        print(f"took {time.perf_counter() - start:.0f} s", flush=True)
    except Exception as error:  # compilers fail in many ways, and training can do without
        state.compute = eager
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"failed ({reason[0]}): training goes on, slower", flush=True)


def compute_once(config, state, batches) -> None:
    """Run the losses forward and backward as a step does, and leave the state as it was."""
    before = deepcopy(state.generator.state_dict())  # batch normalisation's running statistics
    device, size = batches.samples.device, config.batch_size
    noise, mix = (
        torch.zeros(size, config.noise_dim, device=device),
        torch.zeros(size, device=device),
    )
    try:
        with torch.no_grad():
            fake = state.compute.samples(state.generator, noise)
        losses = state.compute.critic_loss(state.critic, batches(0), fake, mix)
        losses.loss.backward(inputs=list(state.critic.parameters()))
        loss = state.compute.generator_loss(state.critic, state.generator, noise)
        loss.backward(inputs=list(state.generator.parameters()))
    finally:
        state.critic.zero_grad()
        state.generator.zero_grad()
        state.generator.load_state_dict(before)


def samples(generator: nn.Module, noise: Tensor) -> Tensor:
    return generator(noise).float()


def loss_of_generator(critic: nn.Module, generator: nn.Module, noise: Tensor) -> Tensor:
    return generator_loss(critic(generator(noise)))
