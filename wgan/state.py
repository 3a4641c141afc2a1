"""The state of training: networks, their moving average, optimizers, losses, how far it got."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from utils import METHODS, Method, check_per_sample
from wgan import distributed
from wgan.config import Config, keyword_parameters, options_of_method
from wgan.losses import Losses, build_losses, choose_precision
from wgan_gp import MODELS, CoarseToFineCritic, half_shape

NETWORKS = ("generator", "critic", "ema")
OPTIMIZERS = ("generator_optimizer", "critic_optimizer")
UNUSED = 1e4  # each coordinate of a centre without samples


@dataclass
class TrainState:
    """The state of training, and the losses that advance it."""

    generator: nn.Module
    critic: nn.Module
    ema: nn.Module  # moving average of the generator, always in evaluation mode
    generator_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer
    method: Method
    losses: Losses
    sample_shape: tuple[int, ...]
    class_names: tuple[str, ...] = ()  # with --conditional
    class_counts: tuple[int, ...] = ()  # the number of real samples of each class or cluster
    precision: torch.dtype = torch.float32  # that the networks compute in
    step: int = 0
    seconds: float = 0.0  # of training so far, interruptions not counted
    progress: float = 0.0  # 0 to 1, of the steps or the time of the run
    data: dict = field(default_factory=dict)  # the `Dataset.identity` of what it is trained on
    graph: Callable | None = None  # replays a whole step, if captured as a CUDA graph

    @property
    def device(self) -> torch.device:
        return next(self.critic.parameters()).device

    @property
    def generator_mixes_batch(self) -> bool:
        """Whether a sample depends on the other samples of its batch."""
        kind = nn.modules.batchnorm._BatchNorm
        return any(isinstance(module, kind) for module in self.generator.modules())

    def set_centres(self, centres: Tensor) -> None:
        """Give the generator the centres of its clusters, `(K, D)`. Those without samples are far
        away from all samples."""
        for network in (self.generator, self.ema):
            network.centres.fill_(UNUSED)
            network.centres[: len(centres)] = centres

    def weights(self) -> Iterator[Tensor]:
        """All tensors of the three networks."""
        for name in NETWORKS:
            yield from getattr(self, name).state_dict().values()

    def tensors(self) -> list[Tensor]:
        """All tensors that a step changes: the networks' and the optimizers'."""
        optimizer_states = [
            value
            for name in OPTIMIZERS
            for entries in getattr(self, name).state.values()
            for value in entries.values()
            if isinstance(value, Tensor)
        ]
        return [*self.weights(), *optimizer_states]

    def is_between_steps(self, n_critic: int) -> bool:
        """Whether the last step is complete and the next has not begun, by the optimizers' numbers
        of updates and batch normalisation's number of batches."""
        coarse_to_fine = isinstance(self.critic, CoarseToFineCritic)
        critics = self.critic.children() if coarse_to_fine else [self.critic]
        complete = count_updates(self.generator_optimizer, self.generator) == self.step
        complete &= count_updates(self.critic_optimizer, *critics) == self.step * n_critic
        buffers = zip(self.ema.buffers(), self.generator.buffers(), strict=True)
        batches = [pair for pair in buffers if not pair[0].is_floating_point()]
        return complete and all(torch.equal(*pair) for pair in batches)

    # -------------------------------------------------------- checkpoints

    def to_checkpoint(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in (*NETWORKS, *OPTIMIZERS)}
        return parts | {
            "step": self.step,
            "seconds": self.seconds,
            "progress": self.progress,
            "data": self.data,
            "sample_shape": tuple(self.sample_shape),
            "class_names": tuple(self.class_names),
            "class_counts": tuple(self.class_counts),
            **self.environment(),
        }

    def environment(self) -> dict[str, object]:
        """What the results of training depend on besides the options."""
        on_cpu = self.device.type == "cpu"
        return {
            "ranks": distributed.launched_ranks(),
            "device": f"cpu ({torch.get_num_threads()} threads)" if on_cpu else self.device.type,
            "precision": str(self.precision).removeprefix("torch."),
            "torch": torch.__version__.split("+")[0],
        }

    def restore(self, checkpoint: dict) -> None:
        """Continue from the result of `to_checkpoint`; ValueError if it does not fit."""
        self.load(checkpoint, (*NETWORKS, *OPTIMIZERS))
        counts = [checkpoint.get(name) for name in ("step", "seconds", "progress")]
        if [type(count) for count in counts] != [int, float, float]:
            raise ValueError("the checkpoint does not contain step, seconds and progress")
        self.step, self.seconds, self.progress = counts

    def load(self, checkpoint: dict, parts: tuple[str, ...]) -> None:
        """Load parts of a checkpoint; ValueError if one is missing or has other shapes."""
        for name in parts:
            part = getattr(self, name)
            try:
                content = checkpoint[name]
                if isinstance(part, torch.optim.Optimizer):
                    load_optimizer(part, content)
                else:
                    load_weights(part, content)
            except Exception as error:  # a foreign checkpoint may contain anything
                raise ValueError(
                    f"the {name} in the checkpoint does not fit: {type(error).__name__}: {error}"
                ) from error

    def run_and_roll_back(self, run: Callable[[], object]) -> None:
        """Run a function that trains, on this rank alone, and undo its changes in place."""
        before = [(tensor, tensor.clone()) for tensor in self.tensors()]
        try:
            with distributed.single_rank():  # it may fail on another rank
                run()
        finally:
            for tensor in self.tensors():
                tensor.detach().zero_()  # the moments of an optimizer without a step so far
            for tensor, value in before:
                tensor.detach().copy_(value)
            for network in (self.generator, self.critic):
                network.zero_grad()


def count_updates(optimizer: torch.optim.Optimizer, *networks: nn.Module) -> int:
    """The number of updates of these networks together."""
    weights = [next(network.parameters()) for network in networks]
    return sum(int(optimizer.state[w]["step"]) for w in weights if w in optimizer.state)


def load_weights(network: nn.Module, weights: dict) -> None:
    """Load saved weights; ValueError, with the first difference, if they do not fit."""
    try:
        network.load_state_dict(weights)
    except Exception as error:  # a foreign checkpoint may contain anything
        raise ValueError(str(error).splitlines()[:2][-1].strip()) from error


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load saved moments, but keep this optimizer's learning rate and implementation, which depend
    on the device."""
    groups = zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    groups = [own | {"params": old["params"]} for own, old in groups]
    optimizer.load_state_dict(saved | {"param_groups": groups})
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    # With `--coarse`, the weights of a critic that was not trained yet have no entry.
    names = [optimizer.state[weight].keys() for weight in parameters if weight in optimizer.state]
    if any(other != names[0] for other in names):
        raise ValueError("a moment is missing")
    for parameter, entries in optimizer.state.items():
        if not all(value.shape in ((), parameter.shape) for value in entries.values()):
            raise ValueError("a moment has another shape than its weights")


# ---------------------------------------------------------------- building


def build_state(
    config: Config,
    sample_shape: tuple[int, ...],
    device: torch.device,
    class_names: tuple[str, ...] = (),
) -> TrainState:
    """Untrained networks, their moving average and optimizers; with class names, the networks are
    conditional. ValueError as in `build_networks`."""
    torch.manual_seed(config.seed)
    # Convolutions are faster with channels last; dense layers are not affected.
    layout = {"device": device, "memory_format": torch.channels_last}
    networks = build_networks(config, sample_shape, len(class_names))
    generator, critic = (network.to(**layout) for network in networks)
    method = build_method(config)
    precision = choose_precision(config.precision, device, sample_shape)
    return TrainState(
        generator=generator,
        critic=critic,
        ema=deepcopy(generator).eval().requires_grad_(False),
        generator_optimizer=build_optimizer(config, generator, config.lr_generator),
        critic_optimizer=build_optimizer(config, critic, config.lr_critic),
        method=method,
        losses=build_losses(method, precision, device, config.augment),
        sample_shape=sample_shape,
        class_names=class_names,
        precision=precision,
    )


def build_networks(
    config: Config, sample_shape: tuple[int, ...], num_classes: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Generator and critic; ValueError if they cannot be built for samples of this shape, or if
    the method's penalty excludes a critic with batch normalisation."""
    model = MODELS[config.model]
    generator = build_network(model.generator, config, sample_shape, num_classes)
    critic = build_network(model.critic, config, sample_shape, num_classes)
    if config.coarse:
        coarse = build_network(model.critic, config, half_shape(sample_shape), num_classes)
        critic = CoarseToFineCritic(coarse, critic, height=sample_shape[1])
    if METHODS[config.method].per_sample:
        check_per_sample(critic)
    return generator, critic


def build_network(
    network: type[nn.Module], config: Config, sample_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """A network whose options are the keyword parameters of its constructor. Clusters are classes
    without names."""
    options = config.options_of(keyword_parameters(network))
    return network(tuple(sample_shape), num_classes=num_classes or config.clusters, **options)


def build_method(config: Config) -> Method:
    """The method; its options are its fields."""
    return METHODS[config.method](**config.options_of(options_of_method(config.method)))


def check_networks(config: Config, sample_shape: tuple[int, ...]) -> None:
    """ValueError if the networks cannot be built for samples of this shape."""
    with torch.device("meta"):  # shapes without memory
        build_networks(config, sample_shape)


def build_optimizer(config: Config, network: nn.Module, rate: float) -> torch.optim.Optimizer:
    """The optimizer of one network. On CUDA the learning rate is a tensor on the device, so that a
    captured step can follow it."""
    parameters = list(network.parameters())
    device = parameters[0].device
    on_cuda = device.type == "cuda"
    options = {"lr": torch.tensor(rate, device=device) if on_cuda else rate, "capturable": on_cuda}
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, **options)
    fused = device.type in ("cuda", "cpu")  # one pass over all weights
    return torch.optim.Adam(parameters, betas=config.betas, fused=fused, **options)


# ---------------------------------------------------------------- in and between the updates


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Compute no gradients of this network's weights inside the block."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def follow_schedule(state: TrainState, config: Config, progress: float) -> None:
    """Set both learning rates, and whether the generator is coarse, for the next step. The rates
    increase linearly over the first `lr_warmup` steps, and with `lr_decay` they decrease linearly
    to zero."""
    state.generator.coarse = progress < config.coarse
    factor = 1 - progress if config.lr_decay else 1.0
    if config.lr_warmup:
        factor *= min(1.0, (state.step + 1) / config.lr_warmup)
    for optimizer, rate in (
        (state.critic_optimizer, config.lr_critic),
        (state.generator_optimizer, config.lr_generator),
    ):
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # read by a captured step
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor


@torch.no_grad()
def update_ema(ema: nn.Module, generator: nn.Module, weight: Tensor) -> None:
    """ema += weight * (generator - ema), for parameters and running statistics."""
    for average, value in zip(ema.parameters(), generator.parameters(), strict=True):
        average.lerp_(value, weight)
    for average, value in zip(ema.buffers(), generator.buffers(), strict=True):
        average.copy_(average.lerp(value, weight) if value.is_floating_point() else value)
