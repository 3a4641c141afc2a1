"""From options to a `Run`: device, data, state, folder, acceleration, in this order."""

import math
import os
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from wgan import distributed
from wgan.acceleration import Step, accelerate, describe_machine, prepare_device
from wgan.budget import Budget
from wgan.checkpoints import class_names_of, find_checkpoints, read_any_checkpoint
from wgan.config import Config
from wgan.data import (
    Batches,
    Dataset,
    check_batch_size,
    classes_to_generate,
    find_centres,
    find_clusters,
    load_dataset,
    sample_shape,
)
from wgan.data.classes import describe_other_classes
from wgan.data.pixels import check_transparency
from wgan.errors import BadInput
from wgan.files import remove_leftovers
from wgan.inputs import sample_inputs
from wgan.run_folder import NullRunFolder, RunFolder, has_lost_its_checkpoint, move_aside
from wgan.state import NETWORKS, TrainState, build_state, check_networks
from wgan.stored_run import changed_lengths, compare, read_run, set_corrupt_aside
from wgan_gp import choose_device


@dataclass
class Run:
    """Everything that training needs. As a context manager, it releases the run's folder."""

    config: Config
    dataset: Dataset
    state: TrainState
    folder: RunFolder | NullRunFolder
    batches: Batches
    budget: Budget

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error) -> None:
        self.folder.close()

    def is_finished(self) -> bool:
        time_is_over = self.config.max_seconds and self.state.progress == 1
        return self.state.step >= self.budget.steps or time_is_over

    def describe_finished(self) -> str:
        limit = f"--steps above {self.state.step}"
        if self.state.step < self.budget.steps:
            limit = f"--max-seconds above {self.config.max_seconds}"
        return (
            f"{self.folder.path} is finished at {self.budget.describe(self.state.step)}; to train "
            f"further, raise {limit}; --fresh starts again"
        )

    def describe(self) -> str:
        config, state = self.config, self.state
        shape = "x".join(map(str, self.dataset.sample_shape))
        precision = str(state.precision).removeprefix("torch.")
        limits = [f"step {self.budget.steps}"] if self.budget.steps < math.inf else []
        limits += [f"{config.max_seconds} s"] if config.max_seconds else []
        start = f"resumed at step {state.step}," if state.step else "from step 0"
        networks = state.generator, state.critic
        sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
        clusters = np.count_nonzero(state.class_counts) if config.clusters else 0
        return (
            f"{config.method} on {config.dataset} ({len(self.dataset):,} samples of {shape}"
            f"{f' in {clusters} clusters' if clusters else ''}), "
            f"{config.model} ({sizes[0]:,} + {sizes[1]:,} weights), {state.device}, {precision}, "
            f"{start} to {' or '.join(limits)}, into {self.folder.path}"
        )


def set_up(config: Config, fresh: bool, step: Step, command: str = "") -> Run:
    """Prepare a run, new or resumed, and print what it is; BadInput if the user has to correct
    something.

    `step(state, config, inputs)` performs the updates of one step, which are accelerated. The
    command is kept with the options.
    """
    try:
        device = distributed.rank_device(choose_device(config.device))
        prepare_device(device, config.deterministic)
        with distributed.first_rank_first():
            check_before_loading(config)
            dataset = load_data(config)
            state, labels = build_state_for(config, dataset, device)
        check_same_data(dataset, config)
        fresh = fresh and not distributed.restarted()  # a restart resumes
        folder, config, differences = open_folder(config, state, fresh)
        # A resumed run keeps its centres: on changed data, k-means would renumber the clusters.
        if config.clusters and distributed.is_first() and not state.generator.centres.any():
            state.set_centres(find_centres(dataset.samples, config.clusters, config.seed))
        config = same_on_all_ranks(config, state)
        if config.clusters:
            labels = find_clusters(dataset.samples, state.generator.centres.cpu())
    except BadInput:
        raise
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    if labels is not None:
        counts = np.bincount(labels, minlength=len(state.class_names) or config.clusters)
        state.class_counts = tuple(counts.tolist())
    rank_slice = distributed.rank_slice(config.batch_size)
    batches = Batches(
        dataset.samples, config.batch_size, config.seed, device, rank_slice, labels=labels
    )
    budget = Budget(count_steps(config, len(dataset)), config.max_seconds, state.seconds)
    run = Run(config, dataset, state, folder, batches, budget)
    if not run.is_finished():
        print(*differences, run.describe(), sep="\n", flush=True)
        inputs = sample_inputs(state.step, config, batches)
        batches.wait()  # nothing is copied in the background while a step is captured
        run.config = accelerate(state, config, budget, inputs, step)
        folder.store_config(run.config, [command, describe_machine(state.device)])
    return run


def check_before_loading(config: Config) -> None:
    """ValueError for what can be refused before the data is prepared, which may take long."""
    shape = sample_shape(config.dataset, config.image_options())
    check_networks(config, shape)
    if config.eval_every and len(shape) == 1:
        raise ValueError("--eval-every needs images, and these samples are points")
    if config.tensorboard and not find_spec("tensorboard"):
        raise ValueError("--tensorboard needs a package: pip install tensorboard")
    mixes_batch = "batch" in (config.critic_norm, config.generator_norm)
    ranks = distributed.world_size()
    parts = ranks * config.accumulate
    for name in ("batch_size", "generator_batch"):
        size = getattr(config, name)
        count, remainder = divmod(size, parts)
        if remainder:
            lower = parts * max(1, count)
            raise ValueError(
                f"{name} ({size}) is not divisible by {ranks} rank(s) x accumulate "
                f"({config.accumulate}): use {lower} or {lower + parts}"
            )
        if count == 1 and mixes_batch:
            raise ValueError(
                f"batch normalisation needs two samples per rank and part of a batch: use a {name} "
                f"of {2 * parts} or more, or another normalisation"
            )


def load_data(config: Config) -> Dataset:
    # Another process may be writing there.
    remove_leftovers(Path(config.data_root), "*", seconds=3600)
    dataset = load_dataset(config.dataset, config.data_root, config.image_options())
    check_batch_size(config.batch_size, dataset.samples)
    if config.alpha:
        check_transparency(dataset.samples, config.dataset)
    return dataset


def build_state_for(
    config: Config, dataset: Dataset, device: torch.device
) -> tuple[TrainState, np.ndarray | None]:
    """The untrained state, and with `--conditional` the class of each sample, `(N,)`."""
    labels, class_names = None, ()
    if config.conditional:
        labels, class_names = classes_to_generate(dataset)
    state = build_state(config, dataset.sample_shape, device, class_names)
    state.data = dataset.identity(config.conditional)
    return state, labels


def check_same_data(dataset: Dataset, config: Config) -> None:
    """BadInput if the number of samples, or some of them or their labels, differ between ranks."""
    indices = np.linspace(0, len(dataset) - 1, 100).astype(int)
    labels = np.zeros(1, np.int64) if dataset.labels is None else dataset.labels[indices]
    parts = [torch.tensor(len(dataset)), dataset.read(indices), torch.from_numpy(labels)]
    if not distributed.all_equal(parts):
        distributed.fail(
            f"the ranks find different data in {config.dataset}: check that the copies of the "
            "folder are identical and that no process changes them",
            BadInput,
        )


def open_folder(
    config: Config, state: TrainState, fresh: bool
) -> tuple[RunFolder | NullRunFolder, Config, list[str]]:
    """The run's folder. If it contains a checkpoint, the state is restored from it, `compile` is
    what was decided when the run began, and the differences from an uninterrupted run are returned.
    """
    path = Path(config.run)
    if not distributed.is_first():
        return NullRunFolder(path), config, []
    if config.init_from and (fresh or not find_checkpoints(path)):
        load_initial_weights(config, state, fresh)
    if (fresh or has_lost_its_checkpoint(path)) and (target := move_aside(path)):
        print(f"moved the old run to {target}")
    folder, differences = RunFolder(path), []
    try:
        if stored := read_run(path):
            differences = compare(config, state, stored)
            set_corrupt_aside(stored)
            state.restore(stored.checkpoint)
            if changed_lengths(stored.config, config):
                state.progress = 0.0  # of the new length, which may not be over
            if config.compile == "auto":
                config = replace(config, compile=stored.config.compile)
        else:
            folder.store_config(config)  # first, so that the folder is a run from now on
        folder.start_log(state.step)
    except BaseException:
        folder.close()
        raise
    return folder, config, differences


def same_on_all_ranks(config: Config, state: TrainState) -> Config:
    """Give all ranks the first one's state and its decision whether to compile."""
    if distributed.world_size() == 1:
        return config
    first = distributed.broadcast_from_first(
        lambda: {"state": state.to_checkpoint(), "compile": config.compile}
    )
    state.restore(first["state"])
    return replace(config, compile=first["compile"])


def load_initial_weights(config: Config, state: TrainState, fresh: bool) -> None:
    """Load the networks of `--init-from`; ValueError if they do not fit."""
    source, run = (os.path.realpath(path) for path in (config.init_from, config.run))
    if fresh and (source == run or os.path.dirname(source) == run):
        raise ValueError(
            f"--fresh moves {config.run} aside, but --init-from {config.init_from} is in it: use "
            "another --run"
        )
    checkpoint, networks = read_any_checkpoint(config.init_from), NETWORKS
    if "critic" not in checkpoint:
        print(f"{config.init_from} has no critic, which starts untrained", file=sys.stderr)
        checkpoint, networks = checkpoint | {"generator": checkpoint["ema"]}, ("generator", "ema")
    try:
        state.load(checkpoint, networks)
    except ValueError as error:
        raise ValueError(
            f"the weights of {config.init_from} do not fit these networks ({error}): use the "
            "options of the networks, the image size and the classes that its config.toml has"
        ) from error
    if (names := class_names_of(checkpoint)) != state.class_names:
        differences = describe_other_classes(names, state.class_names)
        print(f"{differences}; class k takes the weights of class k", file=sys.stderr)


def count_steps(config: Config, samples: int) -> float:
    """Generator updates to train for: as given, or until the critic has seen the epochs;
    infinity if only the time is limited."""
    epochs = math.ceil(config.epochs * samples / (config.n_critic * config.batch_size))
    return config.steps or epochs or math.inf
