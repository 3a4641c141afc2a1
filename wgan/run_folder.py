"""The folder of one run, and everything that is written to it or restored from it.

config.toml             the options; `--config` with this file and another `--run` repeats the run
log.csv                 one line every `--log-every` steps
real.png                real samples, arranged like the generated ones
samples/000100.png      samples from fixed noise, every `--sample-every` steps
latest.png              the same between these steps, if they take more than a minute, and when the
                        run is stopped
curves.png              plots of the log
timelapse.gif           the samples, animated
checkpoint.pt           everything needed to resume; checkpoint.previous.pt is the one before
checkpoint-000500.pt    with `--keep-every`: the checkpoint of that step
best.pt                 with `--eval-every`: the checkpoint with the best evaluation
"""

import csv
import errno
import io
import math
import os
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from filelock import Timeout
from PIL.Image import Image

from wgan import plots
from wgan.checkpoints import (
    CHECKPOINT,
    PREVIOUS,
    describe_other_data,
    find_checkpoints,
    pack_checkpoint,
    read_checkpoint,
)
from wgan.config import OVERRIDES, Config, changes, read_toml, stored_config
from wgan.errors import TrainingFailed
from wgan.files import acquire_lock, write_temporary, write_whole

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
CURVE_COLOURS = 64  # a file is a third as large as with all colours
LOCK = "lock"
FILES = ("config.toml", "log.csv", CHECKPOINT, "best.pt", "real.png", "latest.png")
FILES += ("curves.png", "timelapse.gif", "samples/*", "checkpoint-*.pt")


class RunFolder:
    """The folder of one run, for one process at a time. Opening it creates the folder, or checks
    that it contains this run.

    `data` is the `Dataset.identity` of the data now: a checkpoint that was trained on the same data
    under another path belongs to this run.

    ValueError if it contains another run or other files, or another process trains there; OSError
    if it cannot be written. Closing it releases the lock.
    """

    def __init__(self, config: Config, data: dict | None = None):
        self.config, self.data = config, data
        self.path = Path(config.run)
        self.checkpoint, self.previous = self.path / CHECKPOINT, self.path / PREVIOUS
        self.log_file = self.path / "log.csv"
        self.unwritten: list[dict] = []  # rows of the log
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: choose another folder with --run")
        if not is_run(self.path) and not is_empty_run(self.path):
            raise ValueError(
                f"the folder {self.path} is not empty and contains no run: choose another with "
                "--run"
            )
        (self.path / "samples").mkdir(parents=True, exist_ok=True)
        self.lock = lock_run(self.path)
        self.locked = file_identity(self.path / LOCK)
        try:
            for name in FILES:
                for leftover in self.path.glob(f"{name}.*.tmp"):  # of a process that was killed
                    leftover.unlink(missing_ok=True)
            old = read_options(self.path)
            if old:
                self.check_unchanged(old)
                if config.compile == "auto":  # what was decided when the run began
                    self.config = replace(config, compile=old.compile)
            if not old or not (self.path / "config.toml").exists():
                self.store_config(self.config)
        except (ValueError, OSError):
            self.close()
            raise

    def close(self) -> None:
        self.lock.close()

    def store_config(self, config: Config) -> None:
        self.config = config
        self.write("config.toml", config.to_toml().encode())

    def write(self, name: str, content: bytes) -> None:
        self.check_folder()
        write_whole(self.path / name, content)

    def check_folder(self) -> None:
        """Recreate the folder if it was deleted during training; TrainingFailed if another process
        uses its place by now."""
        deleted = not self.path.is_dir()
        (self.path / "samples").mkdir(parents=True, exist_ok=True)
        if file_identity(self.path / LOCK) == self.locked:
            return
        if deleted:
            print(f"{self.path} was deleted; recreating it", file=sys.stderr)
        self.close()  # the lock was on the deleted file
        try:
            self.lock = lock_run(self.path)
            stored = self.path / "config.toml"
            if stored.exists() and stored.read_text(encoding="utf-8") != self.config.to_toml():
                raise ValueError("it contains another run by now")
        except ValueError as error:
            raise TrainingFailed(f"{self.path} was deleted during training: {error}") from error
        self.locked = file_identity(self.path / LOCK)
        self.store_config(self.config)

    def check_unchanged(self, old: Config) -> None:
        changed = changes(old, self.config)
        if changed and self.is_trained_on(self.data):  # which may have moved
            changed = changes(old, replace(self.config, dataset=old.dataset))
        if changed and all(line.split()[0] in OVERRIDES for line in changed):
            raise ValueError(
                f"the learning rates of {self.path} decay to zero at the end (lr_decay), so its "
                f"length is fixed ({'; '.join(changed)}): use the old value, start again with "
                f"--fresh, or train further in a new run with --init-from {self.path} and another "
                "--run"
            )
        if changed:
            raise ValueError(
                f"{self.path} contains another run ({'; '.join(changed)}): choose another folder "
                f"with --run, or move this one aside with --fresh{self.own_options()}"
            )

    def own_options(self) -> str:
        """The end of an error that says how to resume with the run's own options."""
        file = self.path / "config.toml"
        return f", or resume it with its own options, --config {file}" if file.exists() else ""

    # -------------------------------------------------------- checkpoints

    def is_trained_on(self, data: dict | None) -> bool:
        """Whether the newest intact checkpoint says that it was trained on these data."""
        for path in find_checkpoints(self.path):
            with suppress(ValueError):
                trained = read_checkpoint(path).get("data")
                known = data is not None and isinstance(trained, dict) and "digest" in trained
                return known and describe_other_data(trained, data) is None
        return False

    def save(self, state: dict) -> None:
        """Write a checkpoint, whole or not at all, and keep the previous one."""
        self.check_folder()
        temporary = write_temporary(self.checkpoint, pack_checkpoint(state, self.config))
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.previous)
        os.replace(temporary, self.checkpoint)

    def save_best(self, state: dict) -> None:
        self.write("best.pt", pack_checkpoint(state, self.config))

    def keep(self, state: dict) -> None:
        """Write a checkpoint under the name of its step, which later ones do not replace."""
        self.write(f"checkpoint-{state['step']:06d}.pt", pack_checkpoint(state, self.config))

    def restore(self) -> dict | None:
        """The newest intact checkpoint; None in a new run, ValueError if all are corrupt."""
        corrupt = []
        for path in find_checkpoints(self.path):
            try:
                state = read_checkpoint(path)
            except ValueError as error:
                print(error)
                corrupt.append(path.name)
                continue
            self.check_unchanged(stored_config(state["config"]))
            if corrupt:  # moved, so that the next checkpoint does not replace the intact one by it
                os.replace(self.checkpoint, self.path / "checkpoint.broken.pt")
                print(f"resuming from {path}; the corrupt one is now checkpoint.broken.pt")
            return state
        if corrupt:
            raise ValueError(
                f"no checkpoint of {self.path} can be read ({', '.join(corrupt)}): move the run "
                "aside and start again with --fresh"
            )
        return None

    # -------------------------------------------------------- the log and images

    def start_log(self, step: int) -> None:
        """Start the log, or cut it back to the step from which training resumes.

        ValueError if the file is not a log of this project.
        """
        try:
            rows = [row for row in self.read_log() if int(row["step"]) <= step] if step else []
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

    def log(self, row: dict[str, float]) -> None:
        """Append a line, after those that could not be written before.

        OSError if it cannot be written: it is kept for the next call, and no part of it remains in
        the file.
        """
        row = {n: f"{v:.3f}" if n in TIME_COLUMNS else v for n, v in row.items()}
        self.unwritten.append(row)
        self.check_folder()
        if not self.log_file.exists():
            self.start_log(0)
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
        """The complete lines of the log; a last line cut off during writing is dropped."""
        if not self.log_file.exists():
            return []
        text = self.log_file.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        rows = csv.DictReader(io.StringIO(complete))
        return [row for row in rows if None not in row.values()]

    def best_distance(self) -> float:
        """The smallest Fréchet distance in the log, or infinity."""
        measured = [row.get("frechet_distance") for row in self.read_log()]
        return min((float(value) for value in measured if value), default=math.inf)

    def save_real(self, image: Image) -> None:
        self.write("real.png", plots.png(image))

    def save_sample(self, step: int, image: Image) -> None:
        self.write(f"samples/{step:06d}.png", plots.png(image))
        (self.path / "latest.png").unlink(missing_ok=True)  # it is older

    def save_latest(self, image: Image) -> None:
        self.write("latest.png", plots.png(image))

    def save_missing_plots(self) -> None:
        """Draw what a process killed at the very end did not draw."""
        drawn = [self.path / "curves.png", self.path / "timelapse.gif"]
        newest = max((path.stat().st_mtime_ns for path in find_checkpoints(self.path)), default=0)
        if not all(path.exists() and path.stat().st_mtime_ns >= newest for path in drawn):
            self.save_plots()

    def save_plots(self) -> None:
        """Draw the curves and the timelapse from the files of the folder."""
        rows = self.read_log()
        if rows:
            log = {
                name: np.array([float(row[name] or "nan") for row in rows]) for name in LOG_COLUMNS
            }
            self.write("curves.png", plots.png(plots.curves(log).quantize(CURVE_COLOURS)))
        frames = [path for path in (self.path / "samples").glob("*.png") if path.stem.isdigit()]
        frames.sort(key=lambda path: int(path.stem))
        if frames:
            animation = io.BytesIO()
            plots.timelapse(frames, animation)
            self.write("timelapse.gif", animation.getvalue())


def check_rows(rows: list[dict[str, str]]) -> None:
    """An exception if rows do not have the log's columns, or other values than numbers."""
    for row in rows:
        if set(row) != set(LOG_COLUMNS):
            raise ValueError("a row has other columns")
        for value in row.values():
            float(value or "nan")


def file_identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None if there is none."""
    with suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


class NullRunFolder:
    """The run's folder on all ranks but the first: nothing is written."""

    def __init__(self, config: Config):
        self.config, self.path = config, Path(config.run)

    def ignore(self, *content) -> None:
        pass

    close = store_config = save = save_best = keep = log = save_real = save_sample = ignore
    save_latest = ignore
    save_plots = save_missing_plots = ignore


def is_run(folder: Path) -> bool:
    """Whether the folder contains a run, or at least an intact checkpoint of one."""
    return (folder / "config.toml").is_file() or read_options(folder) is not None


def read_options(folder: Path) -> Config | None:
    """The options of a run: config.toml, or those in the newest intact checkpoint if there is no
    such file. None without a checkpoint, as nothing can be lost then."""
    checkpoints, file = find_checkpoints(folder), folder / "config.toml"
    if checkpoints and file.is_file():
        try:
            return stored_config(read_toml(file))
        except ValueError as error:
            raise ValueError(
                f"the options in {file} are invalid ({error}): remove this file, and the same "
                "command takes them from the checkpoint"
            ) from error
    for path in checkpoints:
        with suppress(ValueError):  # corrupt: reported when it is restored
            return stored_config(read_checkpoint(path)["config"])
    return None


def is_empty_run(folder: Path) -> bool:
    """Whether the folder contains no more than a run that was killed at its very start."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return all(name in ("samples", LOCK) or name.startswith("config.toml.") for name in names)


def move_aside(path: Path) -> Path | None:
    """Rename a run's folder to the first free of `<name>.old-1`, `.old-2`, ..., and return it.

    None if there is no run, ValueError if another process trains in it or it is the current folder.
    """
    if not is_run(path):
        return None
    if path.resolve() == Path.cwd():
        raise ValueError(f"--fresh cannot move the current folder, {path}: change to another one")
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
