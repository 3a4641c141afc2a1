"""The three computations of a training step as callables, in one precision, compiled or not.

The values are those of plain float32 to within rounding; only the speed differs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils import CriticLoss, Method
from wgan.augmentation import Augmentation

PRECISIONS = ("auto", "fp32", "bf16")


class Losses(NamedTuple):
    """What a step computes. Each callable takes the networks first, then tensors. The labels
    `(B,)`, the class of each sample, are those of both real and fake samples; networks without
    classes ignore them. `uniforms`, random numbers for the augmentation, are `(B, 2, K)` for the
    critic, real before fake, and `(B, K)` for the generator; without augmentation, K is 0.

    Loss functions are compiled, never modules: the keys of state dicts stay unchanged, and the
    penalty's inner gradient is traced together with the rest.
    """

    sample: Callable[..., Tensor]  # generator, noise, labels -> float32 samples
    critic: Callable[..., CriticLoss]  # critic, real, fake, mix, labels, uniforms
    generator: Callable[..., Tensor]  # generator, critic, noise, labels, uniforms

    def compiled(self, backend: str = "inductor", critic_only: bool = False) -> "Losses":
        """The same losses compiled whole; errors of the compiler come at the first call."""

        def compiled(function: Callable) -> Callable:
            return torch.compile(function, fullgraph=True, backend=backend)

        if critic_only:
            return self._replace(critic=compiled(self.critic))
        return Losses(*map(compiled, self))


def build_losses(
    method: Method, precision: torch.dtype, device: torch.device, augment: str = "none"
) -> Losses:
    """The losses of a method, computed in float32 or under autocast to `precision`.

    With augmentation, the critic's loss is that of augmented real and fake samples, each with
    random numbers of its own, and a penalty's points lie between augmented samples: the critic is
    Lipschitz where it is used, which is on augmented images only.
    """
    enabled, augmentation = precision != torch.float32, Augmentation(augment)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, precision if enabled else None, enabled=enabled)

    def sample(generator: nn.Module, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        with autocast():
            return generator(noise, labels).float()

    def critic_loss(
        critic: nn.Module,
        real: Tensor,
        fake: Tensor,
        mix: Tensor,
        labels: Tensor | None = None,
        uniforms: Tensor | None = None,
    ) -> CriticLoss:
        if augmentation.numbers:
            both = augmentation(torch.cat([real, fake]), torch.cat(uniforms.unbind(1)))
            real, fake = both.chunk(2)
        with autocast():
            return method.critic_loss(critic_of_classes(critic, labels), real, fake, mix)

    def generator_loss(
        generator: nn.Module,
        critic: nn.Module,
        noise: Tensor,
        labels: Tensor | None = None,
        uniforms: Tensor | None = None,
    ) -> Tensor:
        with autocast():
            fake = augmentation(generator(noise, labels), uniforms)
            return method.generator_loss(critic_of_classes(critic, labels), fake)

    return Losses(sample, critic_loss, generator_loss)


def critic_of_classes(critic: nn.Module, labels: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The critic f(x, y) as a function of samples x whose classes y are `labels` `(B,)`.

    Batches of these classes that are joined into one, as real and fake samples, may be scored in
    one pass.
    """
    if labels is None:
        return critic
    return lambda samples: critic(samples, labels.repeat(len(samples) // len(labels)))


def choose_precision(name: str, device: torch.device, sample_shape: tuple[int, ...]) -> torch.dtype:
    """The type that networks compute in; "auto" is bfloat16 if the hardware accelerates it.

    That is CUDA with compute capability 8.0 or higher, and CPUs with AMX or AVX512-BF16, but not
    for points, as 8 bits of precision would blur their coordinates. Weights and optimizers are
    float32 in any case.
    """
    if name == "auto":
        name = "bf16" if len(sample_shape) == 3 and accelerates_bfloat16(device) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def accelerates_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    try:
        features = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        return False
    return bool(features & {"amx_bf16", "avx512_bf16"})
