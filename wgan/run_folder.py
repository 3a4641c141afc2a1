"""The folder of one run, and everything that is written to it: the table in docs/resume.md."""

import csv
import errno
import io
import math
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import Timeout
from PIL.Image import Image

from wgan import plots
from wgan.checkpoints import BEST, CHECKPOINT, PREVIOUS, find_checkpoints, has_digest
from wgan.config import Config
from wgan.errors import one_line
from wgan.files import acquire_lock, remove_leftovers, replacing, sync

LOG_COLUMNS = (
    "step", "epoch", "images", "seconds", "images_per_second", "wasserstein", "penalty",
    "generator_loss", "gradient_norm", "frechet_distance",
)  # fmt: skip
TIME_COLUMNS = ("seconds", "images_per_second")
CURVE_COLOURS = 64  # a file is a third as large as with all colours
LOCK, OPTIONS = "lock", "config.toml"
OPTIONS_MARK = b"# The options of a run of train.py\n"  # not of another program
FILES = (OPTIONS, "log.csv", CHECKPOINT, BEST, "real.png", "latest.png")
FILES += ("curves.png", "timelapse.gif", "report.html", "samples/*", "checkpoint-*.pt")
Write = Callable[[BinaryIO], object]  # writes the content of a file


class RunFolder:
    """The folder of one run, for one process at a time. Opening it creates and locks it.

    ValueError if it contains other files than a run, or if another process trains there; OSError
    if it cannot be written. Closing it releases the lock.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoint, self.previous = path / CHECKPOINT, path / PREVIOUS
        self.log_file = path / "log.csv"
        self.unwritten: list[dict] = []  # rows of the log
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file: choose another folder with --run")
        if not is_run(path) and not is_empty_run(path):
            raise ValueError(
                f"the folder {path} is not empty and contains no run: choose another with --run"
            )
        (path / "samples").mkdir(parents=True, exist_ok=True)
        self.lock = lock_run(path)
        self.locked = file_identity(path / LOCK)
        for name in FILES:
            remove_leftovers(path, name, seconds=0)

    def close(self) -> None:
        self.lock.close()

    def check_lock(self) -> None:
        """OSError if the folder was deleted, as another process may use its place by now."""
        if file_identity(self.path / LOCK) != self.locked:
            raise OSError(f"{self.path} was deleted or replaced during training")

    def write(self, name: str, content: bytes | Write, previous: Path | None = None) -> None:
        self.check_lock()
        with replacing(self.path / name, previous) as file:
            content(file) if callable(content) else file.write(content)

    def store_config(self, config: Config, origin: Iterable[str] = ()) -> None:
        """Write the options, below comments about the origin of the run."""
        comments = "".join(f"# {one_line(text)}\n" for text in origin)
        self.write(OPTIONS, OPTIONS_MARK + (comments + config.to_toml()).encode())

    # -------------------------------------------------------- checkpoints

    def save(self, write: Write) -> None:
        """Write a checkpoint, whole or not at all, and keep the previous one. The log must be on
        the disk before, up to its step."""
        if self.log_file.exists():
            sync(self.log_file)
        self.write(CHECKPOINT, write, self.previous)

    def save_best(self, write: Write) -> None:
        self.write(BEST, write)

    def keep(self, step: int, write: Write) -> None:
        """Write a checkpoint under the name of its step, which later ones do not replace."""
        name = f"checkpoint-{step:06d}.pt"
        if (self.path / name).exists():  # a resumed run repeats steps
            print(f"{name} exists and is not replaced")
        else:
            self.write(name, write)

    # -------------------------------------------------------- the log and images

    def start_log(self, step: int) -> None:
        """Start the log, or cut it and the samples back to the step from which training resumes.

        ValueError if the file is not a log of this project.
        """
        try:
            rows = [row for row in read_log(self.path) if int(row["step"]) <= step] if step else []
            check_rows(rows)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"{self.log_file} was not written by this project: move it away, and training "
                "continues with a new log"
            ) from error
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, LOG_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        self.write("log.csv", text.getvalue().encode())
        for path in sample_grids(self.path):
            if int(path.stem) > step:
                path.unlink()

    def log(self, row: dict[str, float]) -> None:
        """Append a line, after those that could not be written before.

        OSError if it cannot be written: it is kept for the next call, and no part of it remains in
        the file.
        """
        row = {n: f"{v:.3f}" if n in TIME_COLUMNS else v for n, v in row.items()}
        self.unwritten.append(row)
        self.check_lock()
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

    def best_distance(self) -> float:
        """The smallest Fréchet distance in the log, or infinity."""
        measured = [row.get("frechet_distance") for row in read_log(self.path)]
        return min((float(value) for value in measured if value), default=math.inf)

    def save_real(self, image: Image) -> None:
        self.write("real.png", plots.png(image))

    def save_sample(self, step: int, image: Image) -> None:
        self.write(f"samples/{step:06d}.png", plots.png(image))
        (self.path / "latest.png").unlink(missing_ok=True)  # it is older

    def save_latest(self, image: Image) -> None:
        self.write("latest.png", plots.png(image))

    def save_plots(self) -> None:
        """Draw the curves and the timelapse from the files of the folder."""
        log = read_columns(self.path)
        if len(log["step"]):
            self.write("curves.png", plots.png(plots.curves(log).quantize(CURVE_COLOURS)))
        if frames := sample_grids(self.path):
            animation = io.BytesIO()
            plots.timelapse(frames, animation)
            self.write("timelapse.gif", animation.getvalue())


class NullRunFolder:
    """The run's folder on all ranks but the first: nothing is written."""

    def __init__(self, path: Path):
        self.path = path

    def ignore(self, *content) -> None:
        pass

    close = store_config = save = save_best = keep = start_log = log = ignore
    save_real = save_sample = save_latest = save_plots = ignore


def read_log(run: Path) -> list[dict[str, str]]:
    """The complete lines of the log; a last line cut off during writing is dropped."""
    path = run / "log.csv"
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8").partition("\0")[0]  # after a power loss
    complete = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(complete))
    return [row for row in rows if None not in row.values()]


def read_columns(run: Path) -> dict[str, np.ndarray]:
    """The columns of the log, NaN where nothing was measured."""
    rows = read_log(run)
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in LOG_COLUMNS}


def check_rows(rows: list[dict[str, str]]) -> None:
    """An exception if rows do not have the log's columns, or other values than numbers."""
    for row in rows:
        if set(row) != set(LOG_COLUMNS):
            raise ValueError("a row has other columns")
        for value in row.values():
            float(value or "nan")


def file_identity(path: Path) -> tuple[int, int] | None:
    """What distinguishes files that have the same path at different times; None without a file."""
    with suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


def sample_grids(run: Path) -> list[Path]:
    """The numbered sample grids of a run, in the order of their steps."""
    paths = [path for path in (run / "samples").glob("*.png") if path.stem.isdecimal()]
    return sorted(paths, key=lambda path: int(path.stem))


def is_run(folder: Path) -> bool:
    """Whether the folder contains the options of a run, or at least an intact checkpoint."""
    options = folder / OPTIONS
    return (options.is_file() and options.read_bytes().startswith(OPTIONS_MARK)) or any(
        map(has_digest, find_checkpoints(folder))
    )


def has_lost_its_checkpoint(folder: Path) -> bool:
    """Whether a run has samples of later steps than 0 and no checkpoint, from which it resumes."""
    return not find_checkpoints(folder) and any(int(p.stem) for p in sample_grids(folder))


def is_empty_run(folder: Path) -> bool:
    """Whether the folder contains no more than a run that was killed at its very start."""
    paths = {*folder.glob("*"), *folder.glob("samples/*")} - {folder / "samples", folder / LOCK}
    return all(path.name.startswith(f"{OPTIONS}.") for path in paths)


def move_aside(path: Path) -> Path | None:
    """Rename a run's folder to the first free of `<name>.old-1`, `.old-2`, ..., and return it.

    None if there is no run, ValueError if another process trains in it or it is the current folder.
    """
    if not is_run(path):
        return None
    if path.resolve() == Path.cwd():
        raise ValueError(f"the current folder, {path}, cannot be moved: change to another one")
    lock_run(path).close()
    number = 1
    while (target := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return path.rename(target)


def lock_run(path: Path) -> ExitStack:
    """Lock a run's folder until the stack is closed; ValueError if another process holds it."""
    try:
        return acquire_lock(path / LOCK, timeout=0)
    except Timeout:
        raise ValueError(
            f"another process trains in {path}: wait for it, or choose another folder with --run"
        ) from None
