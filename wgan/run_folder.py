"""One run's folder, and everything that is written to it or restored from it.

config.toml             every option; `--config` on it, with another `--run`, repeats it
log.csv                 one line every `--log-every` steps
real.png                real samples, arranged as the generated ones
samples/000100.png      samples of the same noise, every `--sample-every` steps
curves.png              the log, drawn
timelapse.gif           the samples, animated
checkpoint.pt           the state to go on from, and checkpoint.previous.pt before it
best.pt                 the state whose samples measured best, with `--eval-every`
"""

import csv
import errno
import hashlib
import io
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from wgan import plots
from wgan.config import Config, changes, read_toml, restore
from wgan.files import lock_folder, write_temporary, write_whole

LOG_COLUMNS = (
    "step",
    "epoch",
    "images",
    "seconds",
    "images_per_second",
    "wasserstein",
    "penalty",
    "generator_loss",
    "gradient_norm",
    "frechet_distance",
)
TIME_COLUMNS = ("seconds", "images_per_second")
CHECKPOINT_FORMAT = 1
UNBORN = {"samples", "lock", "config.toml.tmp"}  # all that a run killed at its very start leaves
DIGEST_LENGTH = 64  # hexadecimal digits of a SHA-256
DIGEST_SIZE = DIGEST_LENGTH.to_bytes(2, "little")


class RunDir:
    """The folder of one run, for one process at a time. Opening it creates it, or checks that
    it holds this very run.

    ValueError where it holds another run or other files, or another process trains there;
    OSError where it cannot be written. Closing it lets the next process in.
    """

    def __init__(self, config: Config):
        self.config = config
        self.path = Path(config.run)
        self.checkpoint = self.path / "checkpoint.pt"
        self.previous = self.path / "checkpoint.previous.pt"
        self.log_file = self.path / "log.csv"
        self.unwritten: list[dict] = []  # rows of the log
        stored = self.path / "config.toml"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: name another folder with --run")
        if not stored.is_file() and not names_in(self.path) <= UNBORN:
            raise ValueError(
                f"the folder {self.path} is not empty and holds no run: name another with --run"
            )
        (self.path / "samples").mkdir(parents=True, exist_ok=True)
        self.lock = lock_run(self.path)
        try:
            if stored.is_file() and has_checkpoint(config.run):  # else there is nothing to spoil
                self.check_unchanged(vars(restore(read_toml(str(stored)))))
            write_whole(stored, config.to_toml().encode())
        except (ValueError, OSError):
            self.lock.close()
            raise

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *error) -> None:
        self.lock.close()

    def check_unchanged(self, old: dict) -> None:
        if changed := changes(old, self.config):
            raise ValueError(
                f"{self.path} holds another run ({'; '.join(changed)}): name another folder "
                "with --run, move this one aside with --fresh, or give the old options again"
            )

    # -------------------------------------------------------- checkpoints

    def save(self, state: dict) -> None:
        """Keep the state, as it is or not at all, and the checkpoint before it beside it."""
        temporary = write_temporary(self.checkpoint, self.packed(state))
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.previous)
        os.replace(temporary, self.checkpoint)

    def save_best(self, state: dict) -> None:
        """Keep the state as the best so far."""
        write_whole(self.path / "best.pt", self.packed(state))

    def packed(self, state: dict) -> bytes:
        buffer = io.BytesIO()
        torch.save({"format": CHECKPOINT_FORMAT, "config": vars(self.config), **state}, buffer)
        return with_digest(buffer.getvalue())

    def restore(self) -> dict | None:
        """The newest checkpoint that is whole; None in a new run, ValueError if all are broken."""
        problems = []
        for path in (self.checkpoint, self.previous):
            if not path.exists():
                continue
            try:
                state = read_checkpoint(path)
            except ValueError as error:
                print(error)
                problems.append(path.name)
                continue
            self.check_unchanged(state["config"])
            if problems:  # kept, but not where the next checkpoint would push out the good one
                os.replace(self.checkpoint, self.path / "checkpoint.broken.pt")
                print(f"going on from {path}; the broken one is now checkpoint.broken.pt")
            return state
        if problems:
            raise ValueError(
                f"no checkpoint of {self.path} can be read ({', '.join(problems)}); move the run "
                "aside and start over with --fresh"
            )
        return None

    # -------------------------------------------------------- the log and pictures

    def start_log(self, step: int) -> None:
        """Begin the log, or cut it back to the step that training goes on from.

        ValueError where the file is no log of ours any more.
        """
        try:
            rows = [row for row in self.read_log() if int(row["step"]) <= step] if step else []
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{self.log_file} is no log that this project wrote: move it away, and training "
                "goes on with a new one"
            ) from error
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, LOG_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.log_file, text.getvalue().encode())

    def log(self, row: dict[str, float]) -> None:
        """Append a line; those that could not be written before come first.

        OSError where it cannot be written: the line is kept for the next time, and no part
        of it stays in the file.
        """
        row = {n: f"{v:.3f}" if n in TIME_COLUMNS else v for n, v in row.items()}
        self.unwritten.append(row)
        text = io.StringIO(newline="")
        csv.DictWriter(text, LOG_COLUMNS).writerows(self.unwritten)
        length = self.log_file.stat().st_size
        try:
            with open(self.log_file, "ab", buffering=0) as file:
                if file.write(text.getvalue().encode()) < len(text.getvalue()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.truncate(self.log_file, length)
            raise
        self.unwritten.clear()

    def read_log(self) -> list[dict[str, str]]:
        """The log's whole lines, without a last one that was cut off while being written."""
        if not self.log_file.exists():
            return []
        text = self.log_file.read_text(encoding="utf-8")
        whole_lines = text[: text.rfind("\n") + 1]
        rows = csv.DictReader(io.StringIO(whole_lines))
        return [row for row in rows if None not in row.values()]

    def best_distance(self) -> float:
        """The least Fréchet distance in the log, or infinity."""
        measured = [row.get("frechet_distance") for row in self.read_log()]
        return min((float(value) for value in measured if value), default=math.inf)

    def save_real(self, picture: Image.Image) -> None:
        write_whole(self.path / "real.png", png(picture))

    def save_sample(self, step: int, picture: Image.Image) -> None:
        write_whole(self.path / "samples" / f"{step:06d}.png", png(picture))

    def finish(self) -> None:
        """Draw the curves and the timelapse from what the folder holds."""
        rows = self.read_log()
        if rows:
            log = {
                name: np.array([float(row[name] or "nan") for row in rows]) for name in LOG_COLUMNS
            }
            write_whole(self.path / "curves.png", png(plots.curves(log)))
        frames = [path for path in (self.path / "samples").glob("*.png") if path.stem.isdigit()]
        frames.sort(key=lambda path: int(path.stem))
        if frames:
            animation = io.BytesIO()
            plots.timelapse(frames, animation)
            write_whole(self.path / "timelapse.gif", animation.getvalue())


class NoRunDir:
    """A run's folder as all ranks but the first see it: they write nothing."""

    def __init__(self, config: Config):
        self.path = Path(config.run)

    def __enter__(self) -> "NoRunDir":
        return self

    def __exit__(self, *error) -> None:
        pass

    def write_nothing(self, *content) -> None:
        pass

    save = save_best = log = save_real = save_sample = finish = write_nothing


def move_aside(path: Path) -> Path | None:
    """Rename a run's folder to the first free of `<name>.old-1`, `.old-2`, ...; its new path.

    None where there is no run, ValueError where another process trains in it.
    """
    if not (path / "config.toml").is_file():
        return None
    lock_run(path).close()
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return path.rename(aside)


def lock_run(path: Path) -> BinaryIO:
    """The lock of a run's folder; ValueError where another process holds it."""
    try:
        return lock_folder(path)
    except BlockingIOError:
        raise ValueError(
            f"another process trains in {path}: wait for it, or name another folder with --run"
        ) from None


def names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def has_checkpoint(run: str) -> bool:
    return any((Path(run) / name).exists() for name in ("checkpoint.pt", "checkpoint.previous.pt"))


def read_any_checkpoint(path: str) -> dict:
    """The checkpoint in that file, or the newest of the run in that folder."""
    given = Path(path)
    if given.is_dir():
        present = [given / name for name in ("checkpoint.pt", "checkpoint.previous.pt")]
        given = next(filter(Path.exists, present), given)
        if given.is_dir():
            raise ValueError(f"the folder {path} holds no checkpoint")
    if not given.exists():
        raise ValueError(f"there is no checkpoint or run {path}")
    return read_checkpoint(given)


def read_checkpoint(path: Path) -> dict:
    """A checkpoint's content, loaded as data and never as code; ValueError where it is broken."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error
    if with_digest(content[: -len(DIGEST_SIZE) - DIGEST_LENGTH] + DIGEST_SIZE) != content:
        raise ValueError(f"the checkpoint {path} is damaged, or none of this project's")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a well-formed file of somebody else's may hold anything
        raise ValueError(f"the checkpoint {path} holds more than data: it is not loaded") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise ValueError(
            f"the checkpoint {path} has format {found}; this version reads {CHECKPOINT_FORMAT}"
        )
    if not isinstance(state.get("config"), dict):
        raise ValueError(f"the checkpoint {path} is none of this project's: it has no config")
    return state


def with_digest(archive: bytes) -> bytes:
    """The zip archive that `torch.save` wrote with its SHA-256 as the archive's comment.

    A zip file ends in the comment's length (two bytes) and the comment, so that the file
    stays one that `torch.load` reads.
    """
    body = archive[: -len(DIGEST_SIZE)]
    return body + DIGEST_SIZE + hashlib.sha256(body).hexdigest().encode()


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
