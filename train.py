"""Train a Wasserstein GAN: `python train.py`, and `python train.py --help` for the options.

Algorithm 1 of Gulrajani et al. 2017 (arXiv:1704.00028). With weight clipping instead of the
penalty it is algorithm 1 of Arjovsky et al. 2017 (arXiv:1701.07875).

    repeat for every training step:
        repeat n_critic times:                                                    critic_step
            sample data x, noise z, mixing weights e ~ U[0, 1]
            update the critic f to minimise
                E f(G(z)) - E f(x) + penalty of f at e x + (1 - e) G(z)
        sample noise z                                                            generator_step
        update the generator G to minimise  -E f(G(z))

Losses and penalties are in utils.py, networks in wgan_gp.py. Everything that is not the
algorithm (options, data, checkpoints, logging, several GPUs) is in the package wgan/.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from utils import CriticLoss
from wgan import cli, distributed
from wgan.acceleration import accelerate
from wgan.augmentation import Augmentation
from wgan.budget import Signals
from wgan.config import Config
from wgan.data import Batches, draw_rows, flip_where, to_float_images
from wgan.monitor import Monitor
from wgan.setup import Run
from wgan.state import TrainState, ema_weight, set_learning_rates, update_ema
from wgan.updates import frozen, update


def critic_step(
    state: TrainState,
    real: Tensor,
    fake: Tensor,
    mix: Tensor,
    labels: Tensor | None = None,
    uniforms: Tensor | None = None,
    **options,  # of `update`
) -> CriticLoss:
    """One critic update (Gulrajani et al. 2017, algorithm 1, lines 3 to 9).

    real (B, ...) and fake (B, ...), images in [-1, 1]; mix (B,), uniform in [0, 1]; labels (B,),
    the classes of both real and fake; uniforms (B, 2, K), of the augmentation.
    """
    batch = real, fake, mix, labels, uniforms
    loss = partial(state.losses.critic, state.critic)
    losses = update(state.critic_optimizer, state.critic, loss, batch, **options)
    state.method.after_critic_step(state.critic)  # WGAN: clip the weights
    return CriticLoss(*losses)


def generator_step(
    state: TrainState,
    noise: Tensor,
    labels: Tensor | None = None,
    uniforms: Tensor | None = None,
    **options,
) -> Tensor:
    """One generator update (Gulrajani et al. 2017, algorithm 1, lines 11 and 12)."""
    batch = noise, labels, uniforms
    loss = partial(state.losses.generator, state.generator, state.critic)
    with frozen(state.critic):
        (mean,) = update(state.generator_optimizer, state.generator, loss, batch, **options)
    return mean


def train(run: Run) -> int:
    """Train until the budget is spent or a signal asks to stop; return the exit code."""
    config, state, budget = run.config, run.state, run.budget
    inputs = sample_inputs(state, config, run.batches)
    run.batches.wait()  # nothing is copied in the background while a step is captured
    config = accelerate(state, config, budget, inputs, all_updates)
    run.folder.store_config(config)
    with Monitor(run) as monitor, Signals() as signals:
        monitor.start()  # the first sample grid, before any update
        budget.start()
        status = budget.status(state.step, signals)
        monitor.start_clock(status)
        if status.finished:
            distributed.fail(
                f"starting took {status.seconds:.0f} s, longer than --max-seconds: increase it"
            )
        while not status.ended:
            set_learning_rates(state, config, status.progress)
            losses = train_step(state, config, run.batches)
            status = budget.status(state.step, signals)  # the same on all ranks
            state.progress = status.progress
            monitor.after_step(status, losses)  # log line, sample grid, checkpoint, if due
        monitor.finish(status)
    return 128 + status.stop_signal if status.stop_signal else 0


class StepInputs(NamedTuple):
    """What one step needs besides the networks: n critic updates of B samples, drawn in advance."""

    real: Tensor  # (n, B, ...) as stored: uint8 images, or float32 points
    labels: Tensor  # (n, B) int64, the classes of real and fake; zeros if not conditional
    noise: Tensor  # (n, B, noise_dim)
    mix: Tensor  # (n, B), uniform in [0, 1]
    flip: Tensor  # (n, B), bool
    uniforms: Tensor  # (n, B, 2, K) in [0, 1), for the augmentation of real and fake
    generator_noise: Tensor  # (G, noise_dim)
    generator_labels: Tensor  # (G,) int64
    generator_uniforms: Tensor  # (G, K)
    ema_weight: Tensor  # scalar


def train_step(state: TrainState, config: Config, batches: Batches) -> dict[str, Tensor]:
    """`n_critic` critic updates and one generator update; losses to log, still on the device."""
    inputs = sample_inputs(state, config, batches)
    losses = state.graph(inputs) if state.graph else all_updates(state, config, inputs)
    state.step += 1
    return losses


def sample_inputs(state: TrainState, config: Config, batches: Batches) -> StepInputs:
    """Draw a step's randomness. It depends on the seed and the step only, so that a resumed run
    draws the same numbers. With several ranks, each draws its part of the same global numbers."""
    n, device, noise_dim = config.n_critic, batches.device, config.noise_dim
    numbers = Augmentation(config.augment).numbers

    def draw_critic(rng: torch.Generator, count: int) -> tuple[Tensor, ...]:
        options = {"generator": rng, "device": device}
        noise = torch.randn(count, n, noise_dim, **options)
        mix, flip = torch.rand(count, n, **options), torch.rand(count, n, **options) < 0.5
        return noise, mix, flip, torch.rand(count, n, 2, numbers, **options)

    def draw_generator(rng: torch.Generator, count: int) -> tuple[Tensor, ...]:
        options = {"generator": rng, "device": device}
        noise = torch.randn(count, noise_dim, **options)
        labels = state.generator.draw_labels(count, rng)
        return noise, labels, torch.rand(count, numbers, **options)

    def draw(function: Callable, size: int, purpose: str) -> list[Tensor]:
        rows = distributed.rank_slice(size)
        return draw_rows(function, rows, size, device, config.seed, purpose, state.step)

    generator_size = config.generator_batch or config.batch_size
    weight = ema_weight(config.ema, state.step, generator_size)
    return StepInputs(
        batches(state.step * n, n).unflatten(0, (n, -1)),
        batches.labels(state.step * n, n).unflatten(0, (n, -1)),
        *(drawn.transpose(0, 1) for drawn in draw(draw_critic, config.batch_size, "critic")),
        *draw(draw_generator, generator_size, "generator"),
        ema_weight=torch.full((), weight, device=device),
    )


def all_updates(state: TrainState, config: Config, inputs: StepInputs) -> dict[str, Tensor]:
    """The updates of one step. Nothing is sampled or read back from the device here, so that the
    whole function can be captured as a CUDA graph."""
    options = {"grad_clip": config.grad_clip, "accumulate": config.accumulate}
    reals, labels, noises, mixes, flips, uniforms, *of_generator, weight = inputs
    fakes, critic_losses = sample_fakes(state, noises, labels, config.accumulate), []
    batches = zip(reals, fakes, mixes, labels, uniforms, flips, strict=True)
    for real, fake, *others, flip in batches:
        real = to_float_images(flip_where(real, flip) if config.flip else real)
        critic_losses.append(critic_step(state, real, fake, *others, **options))
    generator_loss = generator_step(state, *of_generator, **options)
    update_ema(state.ema, state.generator, weight)
    _, wasserstein, penalty = (
        torch.stack(values).mean() for values in zip(*critic_losses, strict=True)
    )
    return {"wasserstein": wasserstein, "penalty": penalty, "generator_loss": generator_loss}


@torch.no_grad()
def sample_fakes(state: TrainState, noise: Tensor, labels: Tensor, accumulate: int = 1) -> Tensor:
    """Fake samples for each critic update of a step, from noise (n, B, noise_dim), of the classes
    labels (n, B), in `accumulate` parts.

    The generator does not change between these updates, so all are sampled at once, unless batch
    normalisation lets a sample depend on the rest of its batch.
    """
    parts = accumulate * (len(noise) if state.generator_mixes_batch else 1)
    pairs = zip(noise.flatten(0, 1).chunk(parts), labels.flatten().chunk(parts), strict=True)
    fakes = [state.losses.sample(state.generator, *pair) for pair in pairs]
    return torch.cat(fakes).unflatten(0, noise.shape[:2])


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 training failed, 2 bad input, 128 + signal if stopped."""
    return cli.run_training(argv, train)


if __name__ == "__main__":
    distributed.exit_process(main)
