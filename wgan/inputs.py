"""What one training step needs besides the networks, and how its randomness is drawn."""

from typing import NamedTuple

import torch
from torch import Tensor

from utils import METHODS
from wgan import distributed
from wgan.augmentation import Augmentation
from wgan.config import Config
from wgan.data import Batches, draw_rows, flip_where, to_float_images
from wgan.losses import CriticBatch, GeneratorBatch

EMA_IMAGES = 64  # the number of generated images in which the average decays by `ema`


class StepInputs(NamedTuple):
    """The inputs of n critic updates with B samples each, and of one generator update with G.

    There are m = n batches of real samples, or m = n + 1 with a relativistic method: the last one
    is the generator's, whose samples are of the same classes.
    """

    real: Tensor  # (m, B, ...) as stored: uint8 images, or float32 points
    labels: Tensor  # (m, B) int64, the classes of real and fake; zeros without classes
    noise: Tensor  # (n, B, noise_dim)
    mix: Tensor  # (m, B), uniform in [0, 1]
    flip: Tensor  # (m, B) bool, the images to mirror; (0, B) if none are
    augmentation: Tensor  # (m, B, 2, K), uniform in [0, 1), of real and fake
    generator_noise: Tensor  # (G, noise_dim)
    generator_labels: Tensor  # (G,) int64
    generator_augmentation: Tensor  # (G, K)
    ema_weight: Tensor  # scalar

    def real_batch(self, number: int) -> Tensor:
        """Batch `number` of real samples, `(B, ...)`, images in [-1, 1]."""
        real = self.real[number]
        if len(self.flip):
            real = flip_where(real, self.flip[number])
        return to_float_images(real)

    def critic_batch(self, update: int, fake: Tensor) -> CriticBatch:
        """The batch of one critic update, with its fake samples `(B, ...)`."""
        return CriticBatch(
            real=self.real_batch(update),
            fake=fake,
            labels=self.labels[update],
            mix=self.mix[update],
            augmentation=self.augmentation[update],
        )

    def generator_batch(self) -> GeneratorBatch:
        real = real_augmentation = self.generator_noise[:, :0]
        if len(self.real) > (updates := len(self.noise)):
            real, real_augmentation = self.real_batch(updates), self.augmentation[updates, :, 0]
        return GeneratorBatch(
            real=real,
            noise=self.generator_noise,
            labels=self.generator_labels,
            augmentation=self.generator_augmentation,
            real_augmentation=real_augmentation,
        )


def ema_weight(decay: float, step: int, batch_size: int = EMA_IMAGES) -> float:
    """Weight of the generator in the moving average's next update, after an update by `batch_size`
    samples; larger in the first steps, so that the initial weights are forgotten."""
    decay = decay ** (batch_size / EMA_IMAGES)
    return 1 - min(decay, (1 + step) / (10 + step)) if decay else 1.0


def sample_inputs(step: int, config: Config, batches: Batches) -> StepInputs:
    """Draw a step's randomness. It depends on the seed and the step only, so that a resumed run
    draws the same numbers. With several ranks, each draws its part of the same global numbers."""
    n, device, noise_dim = config.n_critic, batches.device, config.noise_dim
    m = n + METHODS[config.method].relativistic  # batches of real samples
    numbers = Augmentation(config.augment).numbers

    def draw_critic(rng: torch.Generator, count: int) -> tuple[Tensor, ...]:
        options = {"generator": rng, "device": device}
        noise = torch.randn(count, n, noise_dim, **options)
        mix, flip = torch.rand(count, m, **options), torch.rand(count, m, **options) < 0.5
        return noise, mix, flip, torch.rand(count, m, 2, numbers, **options)

    def draw_generator(rng: torch.Generator, count: int) -> tuple[Tensor, ...]:
        options = {"generator": rng, "device": device}
        noise = torch.randn(count, noise_dim, **options)
        uniforms = torch.rand(count, numbers, **options)
        # The class of a random real sample, so that classes are as frequent as in the data.
        index = torch.randint(len(batches.all_labels), (count,), **options)
        return noise, batches.all_labels[index], uniforms

    def draw(function, size: int, purpose: str) -> list[Tensor]:
        rows = distributed.rank_slice(size)
        return draw_rows(function, rows, size, device, config.seed, purpose, step)

    noise, mix, flip, augmentation = (
        rows.transpose(0, 1) for rows in draw(draw_critic, config.batch_size, "critic")
    )
    generator_size = config.generator_batch * (m == n) or config.batch_size
    generator_noise, generator_labels, generator_augmentation = draw(
        draw_generator, generator_size, "generator"
    )
    labels = batches.labels(step * m, m).unflatten(0, (m, -1))
    return StepInputs(
        real=batches(step * m, m).unflatten(0, (m, -1)),
        labels=labels[:n],
        noise=noise,
        mix=mix,
        flip=flip if config.flip else flip[:0],
        augmentation=augmentation,
        generator_noise=generator_noise,
        generator_labels=generator_labels if m == n else labels[n],
        generator_augmentation=generator_augmentation,
        ema_weight=torch.full((), ema_weight(config.ema, step, generator_size), device=device),
    )
