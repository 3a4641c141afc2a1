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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils import CriticLoss
from wgan import cli, distributed
from wgan.acceleration import accelerate
from wgan.budget import Signals
from wgan.config import Config
from wgan.data import Batches, draw_rows, flip_where, to_float_images
from wgan.monitor import Monitor
from wgan.setup import Run
from wgan.state import TrainState, ema_weight, set_learning_rates, update_ema


def critic_step(
    state: TrainState,
    real: Tensor,
    fake: Tensor,
    mix: Tensor,
    labels: Tensor | None = None,
    grad_clip: float = 0.0,
) -> CriticLoss:
    """One critic update (Gulrajani et al. 2017, algorithm 1, lines 3 to 9).

    real (B, ...) and fake (B, ...), images in [-1, 1]; mix (B,), uniform in [0, 1]; labels (B,),
    the classes of both real and fake.
    """
    loss = state.losses.critic(state.critic, real, fake, mix, labels)
    apply_gradients(state.critic_optimizer, state.critic, loss.loss, grad_clip)
    state.method.after_critic_step(state.critic)  # WGAN: clip the weights
    return loss.detach()


def generator_step(
    state: TrainState, noise: Tensor, labels: Tensor | None = None, grad_clip: float = 0.0
) -> Tensor:
    """One generator update (Gulrajani et al. 2017, algorithm 1, lines 11 and 12)."""
    with frozen(state.critic):
        loss = state.losses.generator(state.generator, state.critic, noise, labels)
    apply_gradients(state.generator_optimizer, state.generator, loss, grad_clip)
    return loss.detach()


def apply_gradients(
    optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor, grad_clip: float
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=list(network.parameters()))  # this network's gradients only
    distributed.average_gradients(network)
    if grad_clip:
        nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    optimizer.step()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Compute no gradients of this network's weights inside the block."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


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
            distributed.fail("--max-seconds elapsed before the first step; increase it")
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
    generator_noise: Tensor  # (G, noise_dim)
    generator_labels: Tensor  # (G,) int64
    mix: Tensor  # (n, B), uniform in [0, 1]
    flip: Tensor  # (n, B), bool
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

    def draw_critic(rng: torch.Generator, count: int) -> tuple[Tensor, ...]:
        options = {"generator": rng, "device": device}
        noise = torch.randn(count, n, noise_dim, **options)
        return noise, torch.rand(count, n, **options), torch.rand(count, n, **options) < 0.5

    def draw_generator(rng: torch.Generator, count: int) -> tuple[Tensor, ...]:
        noise = torch.randn(count, noise_dim, generator=rng, device=device)
        return noise, state.generator.draw_labels(count, rng)

    def draw(function: Callable, size: int, purpose: str) -> list[Tensor]:
        rows = distributed.rank_slice(size)
        return draw_rows(function, rows, size, device, config.seed, purpose, state.step)

    noise, mix, flip = (t.transpose(0, 1) for t in draw(draw_critic, config.batch_size, "critic"))
    generator_size = config.generator_batch or config.batch_size
    generator_noise, generator_labels = draw(draw_generator, generator_size, "generator")
    return StepInputs(
        real=batches(state.step * n, n).unflatten(0, (n, -1)),
        labels=batches.labels(state.step * n, n).unflatten(0, (n, -1)),
        noise=noise,
        generator_noise=generator_noise,
        generator_labels=generator_labels,
        mix=mix,
        flip=flip,
        ema_weight=torch.full((), ema_weight(config.ema, state.step), device=device),
    )


def all_updates(state: TrainState, config: Config, inputs: StepInputs) -> dict[str, Tensor]:
    """The updates of one step. Nothing is sampled or read back from the device here, so that the
    whole function can be captured as a CUDA graph."""
    fakes, critic_losses = sample_fakes(state, inputs.noise, inputs.labels), []
    batches = zip(inputs.real, fakes, inputs.mix, inputs.labels, inputs.flip, strict=True)
    for real, fake, mix, labels, flip in batches:
        real = to_float_images(flip_where(real, flip) if config.flip else real)
        critic_losses.append(critic_step(state, real, fake, mix, labels, config.grad_clip))
    generator_loss = generator_step(
        state, inputs.generator_noise, inputs.generator_labels, config.grad_clip
    )
    update_ema(state.ema, state.generator, inputs.ema_weight)
    _, wasserstein, penalty = (
        torch.stack(values).mean() for values in zip(*critic_losses, strict=True)
    )
    return {"wasserstein": wasserstein, "penalty": penalty, "generator_loss": generator_loss}


@torch.no_grad()
def sample_fakes(state: TrainState, noise: Tensor, labels: Tensor) -> Sequence[Tensor]:
    """Fake samples for each critic update of a step, from noise (n, B, noise_dim), of the classes
    labels (n, B).

    The generator does not change between these updates, so all are sampled at once, unless batch
    normalisation lets a sample depend on the rest of its batch.
    """
    if state.generator_mixes_batch:
        pairs = zip(noise, labels, strict=True)
        return [state.losses.sample(state.generator, *pair) for pair in pairs]
    fakes = state.losses.sample(state.generator, noise.flatten(0, 1), labels.flatten())
    return fakes.unflatten(0, noise.shape[:2])


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 training failed, 2 bad input, 128 + signal if stopped."""
    return cli.run_training(argv, train)


if __name__ == "__main__":
    distributed.exit_process(main)
