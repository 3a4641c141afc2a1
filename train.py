"""Train a Wasserstein GAN: `python train.py`, and `python train.py --help` for the options.

The loop is algorithm 1 of Arjovsky et al. 2017 and of Gulrajani et al. 2017: `n_critic`
updates of the critic, each with fresh noise, then one of the generator.
"""

import argparse
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from generate import generate
from utils import METHODS, CriticLoss, gradient_norms, interpolate
from wgan import distributed, plots
from wgan.acceleration import Compute, StepInputs, choose_precision, prepare_device, speed_up
from wgan.budget import Budget, Progress, Signals, Situation
from wgan.config import Config, Parser, add_options, choices_help, parse_command_line
from wgan.data.table import (
    Batches,
    Dataset,
    bytes_to_floats,
    check_batches,
    flip_some,
    floats_to_bytes,
    load_dataset,
    seeded_generator,
)
from wgan.run_folder import NoRunDir, RunDir, has_checkpoint, move_aside, read_any_checkpoint
from wgan_gp import MODELS, choose_device, device_memory

GRID_IMAGES = 64
SCATTER_POINTS = 1000
SURFACE_SIDE = 100  # lattice points along each axis of a critic's surface
FAILED_SAVES = 3  # checkpoints in a row that cannot be written end training

# ---------------------------------------------------------------- state


NETWORKS = ("generator", "critic", "average")


@dataclass
class TrainState:
    """All that training changes, and the objects that change it."""

    generator: nn.Module
    critic: nn.Module
    average: nn.Module  # moving average of the generator, always in evaluation mode
    generator_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer
    compute: Compute
    sample_shape: tuple[int, ...]
    step: int = 0
    seconds: float = 0.0
    share_done: float = 0.0  # of the steps or the time that were asked for

    PARTS = (*NETWORKS, "generator_optimizer", "critic_optimizer")

    def tensors(self) -> Iterator[Tensor]:
        for name in NETWORKS:
            yield from getattr(self, name).state_dict().values()

    def to_checkpoint(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        shape = tuple(self.sample_shape)
        counts = {"step": self.step, "seconds": self.seconds, "share_done": self.share_done}
        return {**parts, **counts, "sample_shape": shape, "ranks": distributed.ranks()}

    def restore(self, checkpoint: dict) -> None:
        """Go on from what `to_checkpoint` gave; ValueError where it is of other networks."""
        self.load(checkpoint, self.PARTS)
        step, seconds = checkpoint.get("step"), checkpoint.get("seconds")
        if type(step) is not int or type(seconds) is not float:
            raise ValueError("the checkpoint does not say at which step it was taken")
        self.step, self.seconds = step, seconds
        share_done = checkpoint.get("share_done")
        self.share_done = share_done if type(share_done) is float and 0 <= share_done <= 1 else 0.0

    def load(self, checkpoint: dict, parts: tuple[str, ...]) -> None:
        """Take over parts of a checkpoint; ValueError where one is missing or of other shapes."""
        for name in parts:
            part = getattr(self, name)
            try:
                content = checkpoint[name]
                if isinstance(part, torch.optim.Optimizer):
                    load_optimizer(part, content)
                else:
                    part.load_state_dict(content)
            except Exception as error:  # another's checkpoint may hold anything in its place
                raise ValueError(
                    f"the {name} in the checkpoint does not fit: {type(error).__name__}: {error}"
                ) from error


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """The saved averages, with this optimizer's own rates and form, which the device decides."""
    groups = zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    groups = [own | {"params": old["params"]} for own, old in groups]
    optimizer.load_state_dict(saved | {"param_groups": groups})
    for parameter, entries in optimizer.state.items():
        if not all(value.shape in ((), parameter.shape) for value in entries.values()):
            raise ValueError("an average has another shape than its weights")


def build_state(config: Config, sample_shape: tuple[int, ...], device: torch.device) -> TrainState:
    """Networks, moving average and optimizers; ValueError for what does not fit together."""
    model = MODELS[config.model]

    def build(network: type[nn.Module]) -> nn.Module:
        return network(sample_shape, **config.arguments_for(network))

    with torch.device("meta"):  # shapes without memory
        check_memory(device, build(model.generator), build(model.critic))
    torch.manual_seed(config.seed)
    # Convolutions are faster with the channels last in memory; dense layers do not mind.
    layout = {"device": device, "memory_format": torch.channels_last}
    generator, critic = build(model.generator).to(**layout), build(model.critic).to(**layout)
    if config.sync_batch_norm:
        distributed.synchronise_batch_norms(generator)
    method = METHODS[config.method]
    return TrainState(
        generator=generator,
        critic=critic,
        average=deepcopy(generator).eval().requires_grad_(False),
        generator_optimizer=build_optimizer(config, generator, config.lr_generator),
        critic_optimizer=build_optimizer(config, critic, config.lr_critic),
        compute=Compute(
            method(**config.arguments_for(method)),
            choose_precision(config.precision, device, sample_shape),
        ),
        sample_shape=sample_shape,
    )


def check_memory(device: torch.device, *networks: nn.Module) -> None:
    memory = device_memory(device)
    # Four bytes each for a weight, its gradient, Adam's two averages and the moving average.
    needed = 20 * sum(parameter.numel() for net in networks for parameter in net.parameters())
    if memory and needed > memory:
        raise ValueError(
            f"these networks and their optimizers need {needed / 2**30:,.0f} GiB, and {device} has "
            f"{memory / 2**30:,.0f}: use a smaller --width or --image-size, or --model dcgan"
        )


def build_optimizer(config: Config, network: nn.Module, rate: float) -> torch.optim.Optimizer:
    """On CUDA with a rate that lies on the device, so that a recorded step can follow it."""
    parameters = list(network.parameters())
    device = parameters[0].device
    on_cuda = device.type == "cuda"
    options = {"lr": torch.tensor(rate, device=device) if on_cuda else rate, "capturable": on_cuda}
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, **options)
    fused = device.type in ("cuda", "cpu")  # one pass over all weights
    return torch.optim.Adam(parameters, betas=config.betas, fused=fused, **options)


# ---------------------------------------------------------------- one step


def critic_step(
    state: TrainState, real: Tensor, noise: Tensor, mix: Tensor, grad_clip: float = 0
) -> CriticLoss:
    """One update of the critic (Gulrajani et al. 2017, algorithm 1, lines 3 to 9).

    `real` (B, ...), `noise` (B, noise_dim), `mix` (B,) uniform in [0, 1]; a `CriticLoss`.
    """
    with torch.no_grad():  # the critic's update needs no graph through the generator
        fake = state.compute.samples(state.generator, noise)
    losses = state.compute.critic_loss(state.critic, real, fake, mix)
    update(state.critic_optimizer, losses.loss, state.critic, grad_clip)
    state.compute.method.after_critic_step(state.critic)
    return CriticLoss(*(value.detach() for value in losses))


def generator_step(state: TrainState, noise: Tensor, grad_clip: float = 0) -> Tensor:
    """One update of the generator (Gulrajani et al. 2017, algorithm 1, lines 11 and 12)."""
    with frozen(state.critic):
        loss = state.compute.generator_loss(state.critic, state.generator, noise)
    update(state.generator_optimizer, loss, state.generator, grad_clip)
    return loss.detach()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No gradients of its weights meanwhile, which compiled code would compute unasked."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def update(
    optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module, grad_clip: float
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=list(network.parameters()))  # and no other network's gradients
    distributed.average(network)
    if grad_clip:
        nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    optimizer.step()


@torch.no_grad()
def update_average(average: nn.Module, generator: nn.Module, weight: Tensor) -> None:
    """Move the average toward the generator by that share of the way."""
    for slow, fast in zip(average.parameters(), generator.parameters(), strict=True):
        slow.lerp_(fast, weight)
    for slow, fast in zip(average.buffers(), generator.buffers(), strict=True):
        slow.copy_(slow.lerp(fast, weight) if fast.is_floating_point() else fast)


def average_weight(decay: float, step: int) -> float:
    """How far a step moves the average; farther in the first steps, to forget their start."""
    return 1 - min(decay, (1 + step) / (10 + step)) if decay else 1.0


def train_step(state: TrainState, config: Config, batches: Batches) -> dict[str, Tensor]:
    """`n_critic` critic updates and one generator update; what to log, left on the device."""
    inputs = draw_inputs(state, config, batches)
    if state.compute.recorded:
        statistics = state.compute.recorded(inputs)
    else:
        statistics = update_networks(state, config, inputs)
    state.step += 1
    return statistics


def draw_inputs(state: TrainState, config: Config, batches: Batches) -> StepInputs:
    """What a step needs besides the networks; it follows from the seed and the step alone.

    Of several ranks, each draws what a single one would, and takes its share.
    """
    device = batches.device
    random = seeded_generator(device, config.seed, "step", state.step)
    n, size = config.n_critic, config.batch_size
    generator_size = config.generator_batch or size
    noise = torch.randn(n, size, config.noise_dim, generator=random, device=device)
    generator_noise = torch.randn(
        generator_size, config.noise_dim, generator=random, device=device
    )[distributed.own_share(generator_size)]
    mix = torch.rand(n, size, generator=random, device=device)
    mirrored = torch.rand(n, size, generator=random, device=device) < 0.5
    noise, mix, mirrored = (drawn[:, batches.share] for drawn in (noise, mix, mirrored))
    real = batches(state.step * n, n).unflatten(0, (n, -1))
    weight = torch.full((), average_weight(config.ema, state.step), device=device)
    return StepInputs(real, noise, generator_noise, mix, mirrored, weight)


def update_networks(state: TrainState, config: Config, inputs: StepInputs) -> dict[str, Tensor]:
    """The step itself: nothing is drawn, decided or read from the device here."""
    losses = []
    for i in range(config.n_critic):
        real = flip_some(inputs.real[i], inputs.mirrored[i]) if config.flip else inputs.real[i]
        real = bytes_to_floats(real)
        losses.append(critic_step(state, real, inputs.noise[i], inputs.mix[i], config.grad_clip))
    loss = generator_step(state, inputs.generator_noise, config.grad_clip)
    update_average(state.average, state.generator, inputs.average_weight)
    return {
        "wasserstein": torch.stack([part.wasserstein for part in losses]).mean(),
        "penalty": torch.stack([part.penalty for part in losses]).mean(),
        "generator_loss": loss,
    }


# ---------------------------------------------------------------- the run


class BadInput(ValueError):
    """What was asked for cannot be done, and the user can mend it."""


class TrainingFailed(RuntimeError):
    """Training cannot go on; the last good checkpoint is left as it was."""


def fail(message: str, kind: type[Exception] = TrainingFailed) -> NoReturn:
    """End training on all ranks, each of which has found the same; the first says why."""
    if distributed.is_first():
        raise kind(message)
    raise distributed.PeerFailed(f"rank {distributed.rank()} ends with the first one")


def train(
    config: Config, dataset: Dataset, run: RunDir | NoRunDir, state: TrainState, steps: float
) -> int:
    """Train up to that step or for the time there is, leaving the run's files behind; the
    process's exit code."""
    device = next(state.critic.parameters()).device
    share = distributed.own_share(config.batch_size)
    batches = Batches(dataset.samples, config.batch_size, config.seed, device, share)
    images_per_step = config.n_critic * config.batch_size
    measured = config.eval_every and distributed.is_first()
    quality = Quality(config, dataset, run, state) if measured else None

    count = SCATTER_POINTS if dataset.are_points else GRID_IMAGES
    grid_random = seeded_generator("cpu", config.seed, "grid")  # the same on every device
    grid_noise = torch.randn(count, config.noise_dim, generator=grid_random).to(device)
    shown = bytes_to_floats(batches.take(batches.order(0)[:count]))
    if state.step == 0:
        tell_failure("picture of real samples", run.save_real, draw_real(shown))
        tell_failure("sample", run.save_sample, 0, draw_samples(state, grid_noise, shown))

    inputs = draw_inputs(state, config, batches)
    batches.settle()
    speed_up(state, config, steps, inputs, update_networks)
    with Signals() as signals:  # from here on there is something to save
        saver, budget = Saver(run, state), Budget(steps, config.max_seconds, state.share_done)
        with Progress(state.step, state.seconds, budget, images_per_step) as progress:
            now = Situation.of_all_ranks(budget, signals, state.step)
            if now.over:
                fail("the time was over before the first step: more --max-seconds")
            while not now.over and not now.stop:
                set_rates(state, config, now.share_done)
                statistics = train_step(state, config, batches)
                progress.bar.update()
                now = Situation.of_all_ranks(budget, signals, state.step)
                state.share_done = now.share_done
                evaluate = is_due(config.eval_every, state.step) or (
                    config.eval_every and state.step == steps
                )
                if is_due(config.log_every, state.step) or evaluate or now.over:
                    statistics["gradient_norm"] = mixed_gradient_norm(state, config, shown)
                    statistics = distributed.mean(statistics)
                    values = {name: value.item() for name, value in statistics.items()}
                    check_finite(values, state)
                    images = state.step * images_per_step
                    row = {"step": state.step, "epoch": images / len(dataset.samples)}
                    row |= {"images": images} | progress.lap(state.step) | values
                    if evaluate and quality:
                        row["frechet_distance"] = quality.measure()
                    tell_failure("log line", run.log, row)
                    progress.show(row)
                if is_due(config.sample_every, state.step) or now.over:
                    picture = draw_samples(state, grid_noise, shown)
                    tell_failure("sample", run.save_sample, state.step, picture)
                if is_due(config.checkpoint_every, state.step) or now.save:
                    saver.save(progress.seconds())
        saver.save_at_last(progress.seconds())
        tell_failure("curves and timelapse", run.finish)
    if now.stop:
        print(f"stopped at {budget.progress(state.step)}; the same command goes on from there")
        return 128 + now.stop
    print(
        f"finished at {budget.progress(state.step)}; look at {run.path}/timelapse.gif, curves.png "
        "and samples/"
    )
    return 0


def is_due(every: int, step: int) -> bool:
    """Whether something is done after that step that is done every so many; 0: never."""
    return every > 0 and step % every == 0


def set_rates(state: TrainState, config: Config, share_done: float) -> None:
    """The learning rates of this step, lowered linearly to zero if asked (lr_decay)."""
    factor = 1 - share_done if config.lr_decay else 1.0
    for optimizer, rate in (
        (state.critic_optimizer, config.lr_critic),
        (state.generator_optimizer, config.lr_generator),
    ):
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # where a recorded step reads it
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor


class Quality:
    """Measures the moving average's samples, and keeps the best checkpoint as `best.pt`."""

    def __init__(self, config: Config, dataset: Dataset, run: RunDir, state: TrainState):
        from evaluate import Evaluator  # whose libraries take seconds to load

        device = next(state.critic.parameters()).device
        self.evaluator = Evaluator(dataset, config.data_root, device, features="classifier")
        self.run, self.state, self.best = run, state, run.best_distance()

    def measure(self) -> float:
        samples = generate(self.state.average, self.evaluator.count)
        distance = self.evaluator.frechet_distance(samples)
        if distance < self.best and tell_failure(
            "best checkpoint", self.run.save_best, self.state.to_checkpoint()
        ):
            self.best = distance
        return distance


def check_finite(values: dict[str, float], state: TrainState) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        fail(
            f"{' and '.join(bad)} became infinite or not a number by step {state.step}. Likely "
            "causes: too high a learning rate, or too strong a penalty. Lower --lr or --gp-weight, "
            "or bound the updates with --grad-clip, and start over with --fresh. The last "
            "checkpoint is untouched."
        )


class Saver:
    """Keeps checkpoints; a full disk ends training only when it fails three times in a row."""

    def __init__(self, run: RunDir | NoRunDir, state: TrainState):
        self.run, self.state, self.failures = run, state, 0
        self.saved_step = state.step  # what is on disk already, or nothing at step 0

    def save(self, seconds: float) -> None:
        self.check()
        self.write(seconds)

    def save_at_last(self, seconds: float) -> None:
        """Save the end unless that is done; there is no next interval to wait for."""
        self.check()
        while self.saved_step != self.state.step:
            self.write(seconds)

    def check(self) -> None:
        """End training where the state is none to go on from."""
        networks = (self.state.critic, self.state.generator)
        finite = all(weight.isfinite().all() for net in networks for weight in net.parameters())
        check_finite({"a weight": 0.0 if finite else math.nan}, self.state)
        if not distributed.all_equal(self.state.tensors()):
            fail(
                f"the ranks' networks are no longer the same at step {self.state.step}, which "
                "should not be possible: is the same code and hardware under each? The last "
                "checkpoint is untouched."
            )

    def write(self, seconds: float) -> None:
        self.state.seconds = seconds
        written = tell_failure("checkpoint", self.run.save, self.state.to_checkpoint())
        (failed,) = distributed.agree(not written)  # the first rank's, which others wait for
        if not failed:
            self.failures, self.saved_step = 0, self.state.step
            return
        self.failures += 1
        if self.failures >= FAILED_SAVES:
            fail(
                f"no checkpoint could be written {self.failures} times in a row; the last one that "
                f"could, of step {self.saved_step}, is still in {self.run.path}, and the same "
                "command goes on from it"
            )


def tell_failure(what: str, write: Callable, *arguments) -> bool:
    """Whether it could be written; if not, that is said, and training goes on."""
    try:
        write(*arguments)
        return True
    except OSError as error:
        print(f"the {what} could not be written: {error}", file=sys.stderr)
        return False


# ---------------------------------------------------------------- looking at it


@torch.no_grad()
def draw_samples(state: TrainState, noise: Tensor, real: Tensor) -> Image:
    """The moving average's samples of that noise: a grid, or points over the critic's surface."""
    samples = state.average(noise)
    if real.dim() == 4:
        return plots.image_grid(floats_to_bytes(samples).cpu().numpy())
    extent = plots.extent(real.cpu().numpy())
    axis = torch.linspace(-extent, extent, SURFACE_SIDE, device=real.device)
    lattice = torch.cartesian_prod(axis, axis).flip(1)  # (S * S, 2), rows along y
    scores = state.critic(lattice).view(SURFACE_SIDE, SURFACE_SIDE)
    return plots.scatter(real.cpu().numpy(), samples.cpu().numpy(), scores.cpu().numpy())


def draw_real(real: Tensor) -> Image:
    if real.dim() == 4:
        return plots.image_grid(floats_to_bytes(real).cpu().numpy())
    return plots.scatter(real.cpu().numpy())


def mixed_gradient_norm(state: TrainState, config: Config, real: Tensor) -> Tensor:
    """The mean norm of the critic's gradients at mixes of real and fake, for every method."""
    random = seeded_generator(real.device, config.seed, "norm", state.step)
    noise = torch.randn(len(real), config.noise_dim, generator=random, device=real.device)
    mix = torch.rand(len(real), generator=random, device=real.device)
    with torch.no_grad():
        fake = state.average(noise)
    return gradient_norms(state.critic, interpolate(real, fake, mix)).detach().mean()


# ---------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> int:
    """`python train.py`: 0, 2 for bad input, 1 for failed training, 128 + signal if stopped."""
    parser = Parser(
        prog="train.py",
        description=__doc__.split("\n")[0],
        epilog=f"methods, models and data sets:\n{choices_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    parser.add_argument("--fresh", action="store_true", help="move the folder's old run aside")
    try:
        config, arguments = parse_command_line(parser, argv)
    except ValueError as error:
        if distributed.is_first():  # all ranks were given the same
            print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with distributed.joined(), saying_what_to_lower(config):
            dataset, state, run = set_up(config, arguments.fresh)
            with run:
                return start_or_go_on(config, dataset, run, state)
    except (BadInput, TrainingFailed) as error:
        where = "" if distributed.is_first() else f" on rank {distributed.rank()}"
        print(f"error{where}: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    except distributed.PeerFailed as error:
        print(error, file=sys.stderr)
        return 1


def set_up(config: Config, fresh: bool) -> tuple[Dataset, TrainState, RunDir | NoRunDir]:
    """Everything that training needs; BadInput for what the user can mend."""
    try:
        with distributed.in_turn():
            dataset, state = build_all(config)
        check_same_data(dataset, config)
        run = open_run(config, state, fresh) if distributed.is_first() else NoRunDir(config)
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    if distributed.ranks() > 1:
        state.restore(distributed.from_first(state.to_checkpoint))
    return dataset, state, run


def build_all(config: Config) -> tuple[Dataset, TrainState]:
    """The data, and networks that have not been trained; this rank's own."""
    device = distributed.own_device(choose_device(config.device))
    make_deterministic(config.deterministic)
    prepare_device(device)
    with distributed.said_once():
        dataset = load_dataset(config.dataset, config.data_root, config.image_size, config.grey)
    check_batches(config.batch_size, dataset.samples, config.flip)
    check_shares(config)
    if config.eval_every:
        check_measurable(dataset)
    return dataset, build_state(config, dataset.sample_shape, device)


def check_same_data(dataset: Dataset, config: Config) -> None:
    """BadInput where some of the samples differ between ranks, or their number."""
    some = np.linspace(0, len(dataset.samples) - 1, 100).astype(int)
    number = torch.tensor(len(dataset.samples))
    if not distributed.all_equal([number, dataset.take(some)]):
        message = f"the ranks do not find the same pictures in {config.dataset}: are their copies "
        fail(message + "of the folder the same, and left alone meanwhile?", BadInput)


def check_shares(config: Config) -> None:
    """ValueError where batches do not divide among the ranks, or leave too little to each."""
    for size in (config.batch_size, config.generator_batch or config.batch_size):
        share = distributed.own_share(size)
        own_statistics = config.critic_norm == "batch" or (
            config.generator_norm == "batch" and not config.sync_batch_norm
        )
        if share.stop - share.start == 1 and own_statistics:
            raise ValueError(
                f"a batch of {size} leaves each rank one sample, and batch normalisation needs "
                "two: use a larger --batch-size, or for the generator's --sync-batch-norm"
            )


def open_run(config: Config, state: TrainState, fresh: bool) -> RunDir:
    """The run's folder, from which the state is restored if it holds a checkpoint."""
    fresh = fresh and not distributed.restarted()  # a restart goes on
    if config.init_from and (fresh or not has_checkpoint(config.run)):
        state.load(read_any_checkpoint(config.init_from), NETWORKS)
    if fresh and (aside := move_aside(Path(config.run))):
        print(f"moved the old run to {aside}")
    with ExitStack() as until_failure:
        run = until_failure.enter_context(RunDir(config))
        if checkpoint := run.restore():
            state.restore(checkpoint)
            before = checkpoint.get("ranks", 1)
            if before != distributed.ranks():
                print(
                    f"the checkpoint is of {before} ranks, and {distributed.ranks()} go on: not "
                    "byte for byte the same training"
                )
        run.start_log(state.step)
        until_failure.pop_all()
    return run


def start_or_go_on(
    config: Config, dataset: Dataset, run: RunDir | NoRunDir, state: TrainState
) -> int:
    steps = count_steps(config, len(dataset.samples))
    decayed_in_time = state.share_done == 1 and config.max_seconds and config.lr_decay
    if state.step >= steps or decayed_in_time:
        more = "a longer run needs another --run" if config.lr_decay else "more --steps train on"
        of = f" of {steps}" if steps < math.inf else ""
        print(f"{run.path} is finished: {state.step}{of} steps; {more}, --fresh starts over")
        return 0
    announce(config, dataset, state, steps)
    return train(config, dataset, run, state, steps)


def check_measurable(dataset: Dataset) -> None:
    if dataset.labels is None or dataset.are_points or len(dataset.samples) < 8:
        raise ValueError("--eval-every needs a data set of at least 8 images with classes")


@contextmanager
def saying_what_to_lower(config: Config) -> Iterator[None]:
    """Out of memory becomes a TrainingFailed that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingFailed(
            f"out of memory with --batch-size {config.batch_size} and --width {config.width}: "
            "lower them or --image-size; a run that has a checkpoint needs --fresh for that "
            f"({str(error).splitlines()[0]})"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """CUDA raises a class of its own, Apple's MPS and a CPU's allocator a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory")
    )


def make_deterministic(wanted: bool) -> None:
    """Whether CUDA must compute the same bytes each time; a CPU does so anyway."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(wanted)


def count_steps(config: Config, samples: int) -> float:
    """The generator updates to train for: as given, or until the critic has seen the epochs;
    infinitely many where only time is limited."""
    per_step = config.n_critic * config.batch_size
    epochs = math.ceil(config.epochs * samples / per_step)
    return config.steps or epochs or math.inf


def announce(config: Config, dataset: Dataset, state: TrainState, steps: float) -> None:
    device = next(state.critic.parameters()).device
    precision = str(state.compute.precision).removeprefix("torch.")
    shape = "x".join(map(str, dataset.sample_shape))
    until = " or ".join(
        ([f"{steps}"] if steps < math.inf else [])
        + ([f"{config.max_seconds} s"] if config.max_seconds else [])
    )
    sizes = [sum(p.numel() for p in net.parameters()) for net in (state.generator, state.critic)]
    print(
        f"{config.method} on {config.dataset} ({len(dataset.samples):,} of {shape}), "
        f"{config.model} ({sizes[0]:,} + {sizes[1]:,} weights), {device}, {precision}, "
        f"steps {state.step} to {until}, into {config.run}",
        flush=True,
    )


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:  # before training, or the second during it
        code = 128 + signal.SIGINT
    except Exception:
        traceback.print_exc()
        code = 1
    distributed.leave(code)
