"""The format of checkpoint files: what `torch.save` writes, plus a SHA-256 that covers all of it.

The digest is the comment of the zip archive. A zip file ends in the comment's length (two bytes)
and the comment, so the file remains one that `torch.load` reads.
"""

import hashlib
import io
import sys
from pathlib import Path

import torch

from wgan.config import FIELDS, LENGTHS, Config, validated

CHECKPOINT_FORMAT = 5  # increase it if the content or its meaning changes
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
DIGEST_LENGTH = 64  # hexadecimal digits of a SHA-256
COMMENT_LENGTH = DIGEST_LENGTH.to_bytes(2, "little")


def pack_checkpoint(state: dict, config: Config) -> bytes:
    """The content of a checkpoint file, from the result of `TrainState.to_checkpoint`."""
    buffer = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, "config": vars(config), **state}, buffer)
    return add_digest(buffer.getvalue())


def add_digest(archive: bytes) -> bytes:
    """The zip archive with its SHA-256 as comment, in place of no comment."""
    body = archive[: -len(COMMENT_LENGTH)]
    return body + COMMENT_LENGTH + hashlib.sha256(body).hexdigest().encode()


def has_digest(content: bytes) -> bool:
    """Whether the content is what `add_digest` returned, unchanged."""
    return add_digest(content[: -len(COMMENT_LENGTH) - DIGEST_LENGTH] + COMMENT_LENGTH) == content


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint file, loaded as data and never as code.

    ValueError if the file is corrupt, contains code, or has another format; OSError if it cannot
    be read.
    """
    content = path.read_bytes()
    if not has_digest(content):
        raise ValueError(f"the checkpoint {path} is corrupt or was not written by this project")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a well-formed file from elsewhere may contain anything
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


def config_of(checkpoint: dict) -> Config:
    """The options of the run that wrote a checkpoint. Options added since have their defaults,
    whatever the data set's recipe sets by now. ValueError for invalid ones."""
    defaults = {name: entry.default for name, entry in FIELDS.items() if name not in LENGTHS}
    zeros = {name: type(FIELDS[name].default)(0) for name in LENGTHS}
    return Config(**defaults | zeros | validated(checkpoint["config"]))


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
    changed = {name for name, value in now.items() if trained.get(name, value) != value}
    if not changed:
        return None
    if changed == {"labels"}:
        return "the checkpoint was trained on other labels of the same samples"
    samples_now = f"{count:,}" if before != count else "the same number of different ones"
    return (
        f"the checkpoint was trained on {before:,} samples, and the data set now has {samples_now}"
    )


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run that exist, the newest first."""
    return [path for name in (CHECKPOINT, PREVIOUS) if (path := folder / name).exists()]


def read_newest(paths: list[Path]) -> tuple[dict, list[Path]]:
    """The first intact checkpoint and the corrupt ones before it; ValueError without one."""
    corrupt: list[Path] = []
    for path in paths:
        try:
            return read_checkpoint(path), corrupt
        except ValueError as error:
            corrupt.append(path)
            last_error = error
    raise last_error


def read_any_checkpoint(path: str | Path) -> dict:
    """The checkpoint in a file, or the newest intact one of the run in a folder.

    ValueError if there is none.
    """
    source = Path(path)
    if not source.exists():
        raise ValueError(f"there is no checkpoint or run {path}")
    paths = find_checkpoints(source) if source.is_dir() else [source]
    if not paths:
        raise ValueError(f"the folder {path} contains no checkpoint")
    checkpoint, corrupt = read_newest(paths)
    for file in corrupt:
        print(f"the checkpoint {file} is corrupt: reading an older one instead", file=sys.stderr)
    return checkpoint
