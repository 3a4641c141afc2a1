"""When training ends: a number of steps, a wall-clock limit, or a signal."""

import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from wgan import distributed

RESERVED_SECONDS = 4  # of a time limit, for the last checkpoint and images
IMPORTED = time.perf_counter()


def seconds_since_start() -> float:
    """Seconds since this process started; other than on Linux, since this module was imported."""
    try:
        # proc(5): field 22, which is the 20th after the name in parentheses.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - IMPORTED


class Signals:
    """SIGINT and SIGTERM end training after the current step; SIGUSR1 saves a checkpoint after it.

    A second SIGINT raises KeyboardInterrupt at once.
    """

    def __init__(self):
        self.stop_signal = 0  # the signal that asked to stop, or 0
        self.save_requested = False

    def __enter__(self) -> "Signals":
        kinds = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            kinds.append(signal.SIGUSR1)
        self.handlers = {kind: signal.signal(kind, self.receive) for kind in kinds}
        return self

    def receive(self, number: int, frame) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            self.save_requested = True
        elif self.stop_signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.stop_signal = number

    def take_save_request(self) -> bool:
        requested, self.save_requested = self.save_requested, False
        return requested

    def __exit__(self, *error) -> None:
        for kind, handler in self.handlers.items():
            signal.signal(kind, handler)


@dataclass(frozen=True)
class StepStatus:
    """What all ranks agreed on after a step: by the first rank's clock, and by the signals that
    any rank received."""

    step: int
    finished: bool
    stop_signal: int  # 0: none
    save_requested: bool
    progress: float  # 0 to 1, of the whole budget

    @property
    def ended(self) -> bool:
        return self.finished or self.stop_signal != 0


class Budget:
    """How long to train: up to a step (may be infinite), up to `max_seconds` after the process
    started (0: no limit), or whichever comes first."""

    def __init__(self, steps: float, max_seconds: float, progress_before: float = 0.0):
        """`progress_before`: the progress of the run that is being resumed."""
        self.steps, self.max_seconds = steps, max_seconds
        self.progress_before = progress_before
        self.end = max_seconds - RESERVED_SECONDS if max_seconds else math.inf
        self.start()

    def start(self) -> None:
        """Measure progress in time from now on."""
        self.begin = seconds_since_start()

    def is_over(self, step: int) -> bool:
        return step >= self.steps or seconds_since_start() >= self.end

    def progress(self, step: int) -> float:
        """From 0 to 1, for a learning rate that decays to the end. A resumed run of limited time
        spreads what remained of its progress over its new time."""
        if self.is_over(step):
            return 1.0
        if not self.max_seconds:
            return step / self.steps
        elapsed = (seconds_since_start() - self.begin) / max(self.end - self.begin, 1e-9)
        elapsed = self.progress_before + (1 - self.progress_before) * elapsed
        return min(1.0, max(step / self.steps, elapsed))

    def status(self, step: int, signals: Signals) -> StepStatus:
        clock = (self.is_over(step), self.progress(step)) if distributed.is_first() else (0, 0)
        finished, progress, stop_signal, save = distributed.all_max(
            *clock, signals.stop_signal, signals.take_save_request()
        )
        return StepStatus(step, bool(finished), int(stop_signal), bool(save), progress)

    def seconds_left(self, step: int, steps_per_second: float) -> float:
        for_steps = (self.steps - step) / steps_per_second
        return max(0.0, min(for_steps, self.end - seconds_since_start()))

    def describe(self, step: int) -> str:
        return f"step {step} of {self.steps}" if step <= self.steps < math.inf else f"step {step}"
