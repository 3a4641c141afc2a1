"""What passes between a person and a training run: its budget, its progress, and signals."""

import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from wgan import distributed

SECONDS_BETWEEN_LINES = 5  # where output is not a terminal
ENDING_SECONDS = 4  # kept for the last checkpoint and pictures where time is limited
IMPORTED = time.perf_counter()


def seconds_since_start() -> float:
    """Seconds since this process was started; off Linux, since this file was imported."""
    try:
        # proc(5): the 22nd field, of those after the name in parentheses the 20th.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - IMPORTED


class Budget:
    """How long training goes on: up to a step (may be infinite), so many seconds after the
    process started (0: no limit), or whichever ends first."""

    def __init__(self, steps: float, max_seconds: float, share_before: float = 0.0):
        self.steps, self.max_seconds, self.share_before = steps, max_seconds, share_before
        self.begin = seconds_since_start()
        self.end = max_seconds - ENDING_SECONDS if max_seconds else math.inf

    def is_over(self, step: int) -> bool:
        return step >= self.steps or seconds_since_start() >= self.end

    def share_done(self, step: int) -> float:
        """From 0 to 1, for a learning rate that decays to the end. A run that was stopped at
        `share_before` of its time spreads the rest over the time it now has."""
        if not self.max_seconds:
            return step / self.steps
        time_done = (seconds_since_start() - self.begin) / max(self.end - self.begin, 1e-9)
        time_done = self.share_before + (1 - self.share_before) * time_done
        return min(1.0, max(step / self.steps, time_done))

    def seconds_left(self, step: int, steps_a_second: float) -> float:
        in_steps = (self.steps - step) / steps_a_second
        return max(0.0, min(in_steps, self.end - seconds_since_start()))

    def progress(self, step: int) -> str:
        of = f" of {self.steps}" if self.steps < math.inf else ""
        return f"step {step}{of}"


class Progress:
    """Measures speed and shows it: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, step: int, seconds: float, budget: Budget, images_per_step: int):
        self.images_per_step, self.budget = images_per_step, budget
        total = budget.steps if budget.steps < math.inf else None
        hidden = None if distributed.is_first() else True  # None: unless on a terminal
        self.bar = tqdm(initial=step, total=total, unit="step", disable=hidden)
        self.started = time.perf_counter() - seconds
        self.lap_step, self.lap_seconds = step, seconds
        self.shown = -math.inf

    def seconds(self) -> float:
        """Seconds of training in all, those before an interruption counted in."""
        return time.perf_counter() - self.started

    def lap(self, step: int) -> dict[str, float]:
        """The log's columns of time: seconds in all, and images a second since the last lap."""
        now = self.seconds()
        speed = (step - self.lap_step) * self.images_per_step / (now - self.lap_seconds)
        self.lap_step, self.lap_seconds = step, now
        return {"seconds": now, "images_per_second": speed}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def show(self, row: dict[str, float]) -> None:
        names = {"wasserstein": "W", "penalty": "penalty", "images_per_second": "images/s"}
        names |= {"frechet_distance": "Fréchet"} if "frechet_distance" in row else {}
        values = {name: f"{row[column]:.4g}" for column, name in names.items()}
        self.bar.set_postfix(values, refresh=False)
        last = self.budget.is_over(row["step"])
        if self.bar.disable and (last or time.perf_counter() - self.shown > SECONDS_BETWEEN_LINES):
            self.shown = time.perf_counter()
            speed = row["images_per_second"] / self.images_per_step
            left = self.budget.seconds_left(row["step"], speed)
            text = "  ".join(f"{name} {value}" for name, value in values.items())
            step = self.budget.progress(row["step"]).replace(" of ", "/")
            print(f"{step}  {text}  {left:.0f} s left", flush=True)


class Signals:
    """SIGINT and SIGTERM end training after the step under way, SIGUSR1 saves after it.

    A second SIGINT leaves at once.
    """

    def __init__(self):
        self.stop = 0  # the signal that asked for the end
        self.save = False

    def __enter__(self) -> "Signals":
        kinds = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGUSR1"):  # Windows has none
            kinds.append(signal.SIGUSR1)
        self.before = {kind: signal.signal(kind, self.receive) for kind in kinds}
        return self

    def receive(self, number: int, frame) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            self.save = True
        elif self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.stop = number

    def save_requested(self) -> bool:
        requested, self.save = self.save, False
        return requested

    def __exit__(self, *error) -> None:
        for kind, handler in self.before.items():
            signal.signal(kind, handler)


@dataclass(frozen=True)
class Situation:
    """Whether and how training goes on, on which all ranks must agree: by the first one's
    clock, and by the signals that any has received."""

    over: bool
    stop: int  # the signal that asked for the end, or 0
    save: bool
    share_done: float

    @classmethod
    def of_all_ranks(cls, budget: Budget, signals: Signals, step: int) -> "Situation":
        over = budget.is_over(step)
        share_done = 1.0 if over else budget.share_done(step)
        clock = (over, share_done) if distributed.is_first() else (0, 0)
        over, share_done, stop, save = distributed.agree(
            *clock, signals.stop, signals.save_requested()
        )
        return cls(bool(over), int(stop), bool(save), share_done)
