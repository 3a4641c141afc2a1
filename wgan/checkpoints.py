"""The format of checkpoint files: what `torch.save` writes, plus a SHA-256 that covers all of it.

The digest is the comment of the zip archive. A zip file ends in the comment's length (two bytes)
and the comment, so the file remains one that `torch.load` reads.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import BinaryIO

import torch

from wgan.config import FIELDS, LENGTHS, Config, validated
from wgan.errors import TrainingFailed, is_out_of_memory
from wgan.safetensors import read_safetensors

REMOVED = {"pyramid": 1}  # options that are no more, with the value that had no effect
CHECKPOINT_FORMAT = 11  # increase it if the content or its meaning changes
CHECKPOINT, PREVIOUS, BEST = "checkpoint.pt", "checkpoint.previous.pt", "best.pt"
DIGEST_LENGTH = 64  # hexadecimal digits of a SHA-256
COMMENT_LENGTH = DIGEST_LENGTH.to_bytes(2, "little")
EXPORTED = ("config", "sample_shape", "class_names", "class_counts", "data", "step")
CHUNK = 2**20  # bytes that are hashed at a time


class CorruptCheckpoint(ValueError):
    """A checkpoint whose checksum is missing or wrong."""


def write_checkpoint(state: dict, config: Config, file: BinaryIO) -> None:
    """Write a checkpoint from the result of `TrainState.to_checkpoint`."""
    save_with_digest({"format": CHECKPOINT_FORMAT, "config": vars(config), **state}, file)


def save_with_digest(content: dict, file: BinaryIO) -> None:
    """`torch.save` with the SHA-256 as the archive's comment, in place of no comment."""
    try:
        torch.save(content, file)
    except RuntimeError as error:  # of PyTorch's archive writer, once the disk is full
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    length = file.tell() - len(COMMENT_LENGTH)
    comment = hash_start(file, length)
    file.seek(length)
    file.write(comment)


def hash_start(file: BinaryIO, length: int) -> bytes:
    """The length of the comment and the comment: the SHA-256 of the first `length` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    for start in range(0, length, CHUNK):
        digest.update(file.read(min(CHUNK, length - start)))
    return COMMENT_LENGTH + digest.hexdigest().encode()


def has_digest(path: Path) -> bool:
    """Whether a file is what `save_with_digest` wrote, unchanged."""
    with open(path, "rb") as file:
        length = file.seek(0, os.SEEK_END) - len(COMMENT_LENGTH) - DIGEST_LENGTH
        return hash_start(file, length) == file.read()


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint file, loaded as data and never as code.

    CorruptCheckpoint if the file is corrupt, another ValueError if it contains code or has another
    format, TrainingFailed if the memory is too small for it, OSError if it cannot be read.
    """
    if not has_digest(path):
        raise CorruptCheckpoint(
            f"the checkpoint {path} is corrupt or was not written by this project"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a well-formed file from elsewhere may contain anything
        if is_out_of_memory(error):
            raise TrainingFailed(f"out of memory while loading {path}: free some") from error
        raise ValueError(
            f"the checkpoint {path} contains pickled code and was not loaded"
        ) from error
    version = state.get("format") if isinstance(state, dict) else None
    if version != CHECKPOINT_FORMAT:
        raise ValueError(
            f"the checkpoint {path} has format {version}, but this version reads format "
            f"{CHECKPOINT_FORMAT}: use the version that wrote it, or train again with --fresh"
        )
    if not isinstance(state.get("config"), dict):
        raise ValueError(f"the checkpoint {path} has no config: this project did not write it")
    return state


def read_export(path: Path) -> dict:
    """The generator in a `.safetensors` file of `wgan.export`, as a checkpoint without the other
    networks; ValueError if it is corrupt or another file."""
    weights, metadata = read_safetensors(path)
    try:
        content = {name: json.loads(metadata[name]) for name in EXPORTED}
        for part in (content, content["data"]):  # JSON has no tuples
            part |= {name: tuple(value) for name, value in part.items() if type(value) is list}
    except Exception as error:  # a file from elsewhere may contain anything
        raise ValueError(f"{path} was not exported by this project: {error}") from error
    return content | {"ema": weights}


def config_of(checkpoint: dict) -> Config:
    """The options of the run that wrote a checkpoint. Options added since have their defaults,
    whatever the data set's recipe sets by now. ValueError for invalid ones."""
    stored = {n: v for n, v in checkpoint["config"].items() if (n, v) not in REMOVED.items()}
    defaults = {name: entry.default for name, entry in FIELDS.items() if name not in LENGTHS}
    return Config(**defaults | LENGTHS | validated(stored))


def class_names_of(checkpoint: dict) -> tuple[str, ...]:
    """The classes that a checkpoint was trained on; ValueError if they are no names."""
    names = checkpoint.get("class_names", ())
    if type(names) is not tuple or not all(type(name) is str for name in names):
        raise ValueError("the checkpoint does not contain the classes' names")
    return names


def describe_other_data(trained: object, now: dict) -> str | None:
    """How the data differs from that of a checkpoint, both as `Dataset.identity`; None if it does
    not. What the checkpoint lacks is not compared."""
    before, count = trained.get("samples") if isinstance(trained, dict) else None, now["samples"]
    if type(before) is not int:
        return None
    # as text, since a foreign checkpoint may contain tensors, which have no single truth value
    changed = {name for name in now if repr(trained.get(name, now[name])) != repr(now[name])}
    if not changed:
        return None
    if changed == {"labels"}:
        return "the checkpoint was trained on other labels of the same samples"
    samples_now = f"{count:,}" if before != count else "the same number of different ones"
    return (
        f"the checkpoint was trained on {before:,} samples, and the data set now has {samples_now}"
    )


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run that exist, the newest first; last, the best one."""
    kept = sorted(folder.glob("checkpoint-*[0-9].pt"), key=lambda path: (len(path.name), path))
    paths = (folder / CHECKPOINT, folder / PREVIOUS, *reversed(kept), folder / BEST)
    return [path for path in paths if path.exists()]


def read_newest(paths: list[Path]) -> tuple[dict, list[Path]]:
    """The first intact checkpoint and the corrupt ones before it; ValueError without one, or if the
    first one whose checksum is right cannot be used."""
    corrupt: list[Path] = []
    for path in paths:
        try:
            return read_checkpoint(path), corrupt
        except CorruptCheckpoint as error:
            corrupt.append(path)
            last_error = error
    raise last_error


def read_any_checkpoint(path: str | Path) -> dict:
    """The checkpoint or the export in a file, or the newest intact checkpoint of a run's folder.

    ValueError if there is none.
    """
    source = Path(path)
    if not source.exists():
        raise ValueError(f"there is no checkpoint or run {path}")
    if source.suffix == ".safetensors":
        return read_export(source)
    paths = find_checkpoints(source) if source.is_dir() else [source]
    if not paths:
        raise ValueError(f"the folder {path} contains no checkpoint")
    checkpoint, corrupt = read_newest(paths)
    for file in corrupt:
        print(f"the checkpoint {file} is corrupt: reading an older one instead", file=sys.stderr)
    return checkpoint
