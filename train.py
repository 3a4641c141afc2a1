"""Train a Wasserstein GAN: `python train.py`, and `python train.py --help` for the options.

Algorithm 1 of Gulrajani et al. 2017 (arXiv:1704.00028). With weight clipping instead of the
penalty, and RMSProp (`--config arjovsky-2017`), it is algorithm 1 of Arjovsky et al. 2017
(arXiv:1701.07875).

    repeat for every training step:                                               train_step
        sample data x, noise z, mixing weights e ~ U[0, 1]                        sample_inputs
        repeat n_critic times, with other samples:                                all_updates
            generate fake samples G(z)                                            sample_fakes
            update the critic f to minimise                                       critic_step
                E f(G(z)) - E f(x) + penalty of f at e x + (1 - e) G(z)
        update the generator G to minimise  -E f(G(z)), with other noise          generator_step

Losses and penalties are in utils.py, networks in wgan_gp.py. Everything else (options, data,
random numbers, checkpoints, logging, several GPUs) is in the package wgan/.
"""

import torch
from torch import Tensor, nn

from utils import CriticLoss
from wgan import cli, distributed
from wgan.budget import Signals
from wgan.config import Config
from wgan.data import Batches
from wgan.inputs import StepInputs, sample_inputs
from wgan.losses import CriticBatch, GeneratorBatch, split
from wgan.monitor import Monitor
from wgan.setup import Run
from wgan.state import TrainState, follow_schedule, frozen, update_ema
from wgan_gp import power_iteration


def critic_step(state: TrainState, batch: CriticBatch, config: Config) -> CriticLoss:
    """One critic update (Gulrajani et al. 2017, algorithm 1, lines 6 to 9).

    The batch holds the real samples and mixing weights of line 4 and the fake samples of line 5.
    """
    state.critic_optimizer.zero_grad(set_to_none=True)
    losses = []
    for part in split(batch, config.accumulate):  # one part, unless memory is short
        loss = state.losses.critic(state.critic, part)
        (loss.loss / config.accumulate).backward()
        losses.append(loss.detach())
    average_clip_and_step(state.critic_optimizer, state.critic, config.grad_clip)
    state.method.after_critic_step(state.critic)  # WGAN: clip the weights
    power_iteration(state.critic)  # --critic-norm spectral
    return CriticLoss.mean(losses)


def generator_step(state: TrainState, batch: GeneratorBatch, config: Config) -> Tensor:
    """One generator update (Gulrajani et al. 2017, algorithm 1, line 12); the loss, a scalar.

    The batch holds the noise of line 11, and real samples if the method is relativistic.
    """
    state.generator_optimizer.zero_grad(set_to_none=True)
    losses = []
    with frozen(state.critic):
        for part in split(batch, config.accumulate):
            loss = state.losses.generator(state.generator, state.critic, part)
            (loss / config.accumulate).backward()
            losses.append(loss.detach())
    average_clip_and_step(state.generator_optimizer, state.generator, config.grad_clip)
    return torch.stack(losses).mean()


def average_clip_and_step(
    optimizer: torch.optim.Optimizer, network: nn.Module, grad_clip: float
) -> None:
    """Update a network by its gradients, averaged over the ranks; a grad_clip of 0 is no limit."""
    distributed.average_gradients(network)
    if grad_clip:
        nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    optimizer.step()


def train(run: Run) -> int:
    """Train until the budget is spent or a signal asks to stop; return the exit code."""
    config, state, budget = run.config, run.state, run.budget
    with Monitor(run) as monitor, Signals() as signals:
        monitor.start()  # the first sample grid, before any update
        status = budget.start(state.step, signals)
        while not status.ended:
            follow_schedule(state, config, status.progress)
            losses = train_step(state, config, run.batches)
            status = budget.status(state.step, signals)  # the same on all ranks
            state.seconds, state.progress = status.seconds, status.progress
            monitor.after_step(status, losses)  # log line, sample grid, checkpoint, if due
        monitor.finish(status)
    return 128 + status.stop_signal if status.stop_signal else 0


def train_step(state: TrainState, config: Config, batches: Batches) -> dict[str, Tensor]:
    """`n_critic` critic updates and one generator update; losses to log, still on the device."""
    inputs = sample_inputs(state.step, config, batches)
    losses = state.graph(inputs) if state.graph else all_updates(state, config, inputs)
    state.step += 1
    return losses


def all_updates(state: TrainState, config: Config, inputs: StepInputs) -> dict[str, Tensor]:
    """The updates of one step. No random number is drawn and nothing is read back from the device,
    so that the whole function can be captured as a CUDA graph."""
    fakes = sample_fakes(state, inputs.noise, inputs.labels, config.accumulate)
    critic_losses = [
        critic_step(state, inputs.critic_batch(update, fake), config)
        for update, fake in enumerate(fakes)
    ]
    generator_loss = generator_step(state, inputs.generator_batch(), config)
    update_ema(state.ema, state.generator, inputs.ema_weight)
    _, wasserstein, penalty = CriticLoss.mean(critic_losses)
    return {"wasserstein": wasserstein, "penalty": penalty, "generator_loss": generator_loss}


@torch.no_grad()
def sample_fakes(state: TrainState, noise: Tensor, labels: Tensor, accumulate: int) -> Tensor:
    """Fake samples `(n, B, ...)` for each critic update of a step (algorithm 1, line 5), from noise
    `(n, B, noise_dim)`, of the classes labels `(n, B)`.

    The generator does not change between these updates, so all are sampled at once, in `accumulate`
    parts; or for each update, if batch normalisation lets a sample depend on the rest of its batch.
    """
    parts = accumulate * (len(noise) if state.generator_mixes_batch else 1)
    pairs = zip(noise.flatten(0, 1).chunk(parts), labels.flatten().chunk(parts), strict=True)
    fakes = [state.losses.sample(state.generator, *pair) for pair in pairs]
    return torch.cat(fakes).unflatten(0, noise.shape[:2])


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 training failed, 2 bad input, 128 + signal if stopped."""
    return cli.run_training(argv, all_updates, train)


if __name__ == "__main__":
    distributed.exit_process(main)
