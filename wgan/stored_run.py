"""What a run's folder contains, read once, and whether it is the run that is asked for."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from wgan.checkpoints import (
    CorruptCheckpoint,
    class_names_of,
    config_of,
    describe_other_data,
    find_checkpoints,
    read_newest,
)
from wgan.config import FIELDS, LENGTHS, PATHS, Config
from wgan.data import DATASETS
from wgan.data.classes import describe_other_classes
from wgan.state import TrainState


class StoredRun(NamedTuple):
    """The newest intact checkpoint of a run, the options it was trained with, and the corrupt
    checkpoints that are newer."""

    checkpoint: dict
    config: Config
    corrupt: list[Path]


def read_run(folder: Path) -> StoredRun | None:
    """The run in a folder; None if there is no checkpoint, ValueError if none can be used."""
    checkpoints = find_checkpoints(folder)
    if not checkpoints:
        return None
    try:
        checkpoint, corrupt = read_newest(checkpoints)
    except CorruptCheckpoint as error:
        raise ValueError(
            f"no checkpoint of {folder} can be read ({error}): move the run aside and start again "
            "with --fresh"
        ) from error
    return StoredRun(checkpoint, config_of(checkpoint), corrupt)


def compare(config: Config, state: TrainState, stored: StoredRun) -> list[str]:
    """What makes the resumed training differ from an uninterrupted one, to be reported.

    ValueError if the run is another one than `config` and `state` describe.
    """
    old, checkpoint = stored.config, stored.checkpoint
    names = class_names_of(checkpoint)
    if names != state.class_names and old.conditional == config.conditional:
        differences = describe_other_classes(names, state.class_names)
        raise ValueError(f"{differences}: use the data as they were, or --fresh")
    trained_on = checkpoint.get("data")
    other_data = describe_other_data(trained_on, state.data)
    if other_data is None and isinstance(trained_on, dict) and "digest" in trained_on:
        config = replace(config, dataset=old.dataset)  # the same data, which may have moved
    if changed := changes(old, config):
        raise ValueError(describe_changes(config, changed))
    reported = [other_data] if other_data else []
    for name, value in state.environment().items():
        if checkpoint.get(name) != value:
            reported.append(f"{name} was {checkpoint.get(name)} and is {value}")
    for name in ("compile", "accumulate"):
        before, after = getattr(old, name), getattr(config, name)
        if before != after and after != "auto":
            reported.append(f"--{name} was {before} and is {after}")
    lines = [f"{difference}: results will not be byte-identical" for difference in reported]
    if config.lr_decay and (lengths := changed_lengths(old, config)):
        lines.append(
            f"{'; '.join(lengths)}: the learning rates now decay over the new length, and the "
            "result will not be that of an uninterrupted run"
        )
    return lines


def changed_lengths(old: Config, new: Config) -> list[str]:
    values = {name: (getattr(old, name), getattr(new, name)) for name in LENGTHS}
    return [f"{name} was {a} and is {b}" for name, (a, b) in values.items() if a != b]


def changes(old: Config, new: Config) -> list[str]:
    """The differences between two configurations that change the result of a resumed run."""
    changed = []
    for name, after in new.applicable().items():
        before = getattr(old, name)
        same = before == after or (name in PATHS and is_same_path(before, after))
        if not FIELDS[name].metadata["resumable"] and not same:
            changed.append(f"{name} was {before!r} and is {after!r}")
    return changed


def describe_changes(config: Config, changed: list[str]) -> str:
    """An error that names the changes and says what to do."""
    return (
        f"{config.run} contains another run ({'; '.join(changed)}): choose another folder with "
        "--run, move this one aside with --fresh, or resume it with its own options, --config "
        f"{Path(config.run) / 'config.toml'} --run {config.run}"
    )


def is_same_path(one: str, other: str) -> bool:
    """Whether two paths lead to the same file or folder; false for names of data sets."""
    if {one, other} & {"", *DATASETS}:
        return False
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one is gone, or no path
        return os.path.abspath(one) == os.path.abspath(other)


def set_corrupt_aside(stored: StoredRun) -> None:
    """Move corrupt checkpoints, so that the next one does not replace the intact one by them."""
    for path in stored.corrupt:
        target = path.with_suffix(".broken.pt")
        os.replace(path, target)
        print(f"{path} is corrupt and is now {target.name}: resuming from an older checkpoint")
