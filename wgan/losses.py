"""The three computations of a training step, in one precision, compiled or not; their batches.

The values are those of plain float32 to within rounding; only the speed differs.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from utils import CriticLoss, Method
from wgan.augmentation import Augmentation
from wgan_gp import halve


class CriticBatch(NamedTuple):
    """What one critic update needs besides the critic, for B samples."""

    real: Tensor  # (B, ...), images in [-1, 1], or points
    fake: Tensor  # (B, ...), images in [-1, 1], or points
    labels: Tensor  # (B,) int64, the classes of both real and fake; zeros without classes
    mix: Tensor  # (B,), uniform in [0, 1]
    augmentation: Tensor  # (B, 2, K), uniform in [0, 1), of real and fake; K = 0: none


class GeneratorBatch(NamedTuple):
    """What one generator update needs besides the networks, for B samples."""

    real: Tensor  # (B, ...) of the same classes; (B, 0) if the method is not relativistic
    noise: Tensor  # (B, noise_dim)
    labels: Tensor  # (B,) int64, zeros without classes
    augmentation: Tensor  # (B, K), uniform in [0, 1); K = 0: none
    real_augmentation: Tensor  # (B, K), or (B, 0) if the method is not relativistic


Batch = TypeVar("Batch", CriticBatch, GeneratorBatch)


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Equal parts of a batch, for an update that has the memory for one part at a time."""
    if (size := len(batch.labels)) % parts:
        raise ValueError(f"a batch of {size} samples cannot be cut into {parts} equal parts")
    for tensors in zip(*(tensor.chunk(parts) for tensor in batch), strict=True):
        yield type(batch)(*tensors)


class Losses(NamedTuple):
    """What a step computes.

    Loss functions are compiled, never modules: the keys of state dicts stay unchanged, and the
    penalty's inner gradient is traced together with the rest.
    """

    sample: Callable[[nn.Module, Tensor, Tensor], Tensor]  # generator, noise, labels -> samples
    critic: Callable[[nn.Module, CriticBatch], CriticLoss]
    generator: Callable[[nn.Module, nn.Module, GeneratorBatch], Tensor]  # generator, critic, batch

    def compiled(self, backend: str = "inductor") -> "Losses":
        """The same losses compiled whole; errors of the compiler come at the first call."""
        return Losses(*(torch.compile(f, fullgraph=True, backend=backend) for f in self))


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

    def sample(generator: nn.Module, noise: Tensor, labels: Tensor) -> Tensor:
        with autocast():
            return generator(noise, labels).float()

    def critic_loss(critic: nn.Module, batch: CriticBatch) -> CriticLoss:
        real, fake = as_large_as(batch.fake, batch.real), batch.fake
        if augmentation.numbers:
            both = augmentation(torch.cat([real, fake]), torch.cat(batch.augmentation.unbind(1)))
            real, fake = both.chunk(2)
        with autocast():
            scores = critic_of_classes(critic, batch.labels)
            return method.critic_loss(scores, real, fake, batch.mix)

    def generator_loss(generator: nn.Module, critic: nn.Module, batch: GeneratorBatch) -> Tensor:
        with autocast():
            real, fake = batch.real, generator(batch.noise, batch.labels)
            if method.relativistic:
                real = as_large_as(fake, real)
            if augmentation.numbers:
                fake = augmentation(fake.float(), batch.augmentation)
                if method.relativistic:
                    real = augmentation(real, batch.real_augmentation)
            return method.generator_loss(critic_of_classes(critic, batch.labels), real, fake)

    return Losses(sample, critic_loss, generator_loss)


def as_large_as(fake: Tensor, real: Tensor) -> Tensor:
    """The real samples, or their halves if the generator is `coarse`."""
    return halve(real) if real.shape[1:] != fake.shape[1:] else real


def critic_of_classes(critic: nn.Module, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The critic f(x, y) as a function of samples x whose classes y are `labels` `(B,)`.

    Batches of these classes that are joined into one, as real and fake samples, may be scored in
    one pass.
    """
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
