"""When training ends: a number of steps, a wall-clock limit, or a signal."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from wgan import distributed

RESERVED_SECONDS = 4  # of a time limit, for the last checkpoint and images
_start = time.perf_counter()  # of the time that is limited: this module's import, or a call


def start_clock() -> None:
    """Count the seconds of a limit from now on, instead of from the import of this module."""
    global _start
    _start = time.perf_counter()


def seconds_since_start() -> float:
    return time.perf_counter() - _start


def signals_named(*names: str) -> tuple[signal.Signals, ...]:
    """Those of the signals that exist on this system."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


STOP_SIGNALS = signals_named("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SAVE_SIGNALS = signals_named("SIGUSR1")
HANGUP = getattr(signal, "SIGHUP", None)
ACKNOWLEDGEMENT = b"\nfinishing this step, then saving; Ctrl-C again stops at once\n"


class Signals:
    """Ctrl-C (SIGINT), SIGTERM, a closed terminal (SIGHUP) and Ctrl-Break on Windows end training
    after the current step; SIGUSR1 saves a checkpoint after it. Before the loop there is nothing to
    save: with `SAVE_SIGNALS` only, the signal is received and has no effect.

    A second SIGINT raises KeyboardInterrupt at once. A SIGHUP that is ignored, as under nohup,
    remains ignored. Outside the main thread, Python allows no handlers, and nothing changes.
    """

    def __init__(self, kinds: Iterable[signal.Signals] = (*STOP_SIGNALS, *SAVE_SIGNALS)):
        self.kinds = kinds
        self.stop_signal = 0  # the signal that asked to stop, or 0
        self.save_requested = False
        self.handlers: dict = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for kind in self.kinds:
                if kind != HANGUP or signal.getsignal(kind) != signal.SIG_IGN:
                    self.handlers[kind] = signal.signal(kind, self.receive)
        return self

    def receive(self, number: int, frame) -> None:
        if number in SAVE_SIGNALS:
            self.save_requested = True
        elif self.stop_signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            if not self.stop_signal and distributed.is_first():
                with suppress(OSError):  # not by `print`, which a signal handler must not call
                    os.write(2, ACKNOWLEDGEMENT)
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
    seconds: float  # of training by the first rank's clock, interruptions not counted

    @property
    def ended(self) -> bool:
        return self.finished or self.stop_signal != 0


class Budget:
    """How long to train: up to a step (may be infinite), for `max_seconds` in all (0: no limit),
    or whichever comes first. What this process needs to start counts, too."""

    def __init__(self, steps: float, max_seconds: float, seconds_before: float = 0.0):
        """`seconds_before` are those of the run that is being resumed."""
        self.steps, self.max_seconds, self.seconds_before = steps, max_seconds, seconds_before
        self.end = max_seconds - RESERVED_SECONDS - seconds_before if max_seconds else math.inf
        self.begin = seconds_since_start()

    def start(self, step: int, signals: Signals) -> StepStatus:
        """Measure time from now on; ends the command if nothing was left of the limit to train."""
        self.begin = seconds_since_start()
        status = self.status(step, signals)
        if status.finished and not self.seconds_before:
            distributed.fail(
                f"starting took {self.begin:.0f} s and leaves no time of --max-seconds: increase it"
            )
        return status

    def is_over(self, step: int) -> bool:
        return step >= self.steps or seconds_since_start() >= self.end

    def progress(self, step: int) -> float:
        """From 0 to 1, for a learning rate that decays to the end."""
        if self.is_over(step):
            return 1.0
        if not self.max_seconds:
            return step / self.steps
        elapsed = self.seconds_before + seconds_since_start() - self.begin
        total = self.seconds_before + self.end - self.begin
        return min(1.0, max(step / self.steps, elapsed / max(total, 1e-9)))

    def status(self, step: int, signals: Signals) -> StepStatus:
        seconds = self.seconds_before + seconds_since_start() - self.begin
        clock = (self.is_over(step), self.progress(step), seconds)
        if not distributed.is_first():
            clock = (0, 0, 0)
        finished, progress, seconds, stop_signal, save = distributed.all_max(
            *clock, signals.stop_signal, signals.take_save_request()
        )
        return StepStatus(step, bool(finished), int(stop_signal), bool(save), progress, seconds)

    def seconds_left(self, step: int, steps_per_second: float) -> float:
        for_steps = (self.steps - step) / steps_per_second
        return max(0.0, min(for_steps, self.end - seconds_since_start()))

    def describe(self, step: int) -> str:
        return f"step {step} of {self.steps}" if step <= self.steps < math.inf else f"step {step}"
