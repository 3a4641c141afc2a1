"""What passes between a person and a training run: progress, and signals."""

import math
import signal
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5  # where output is not a terminal


class Progress:
    """Measures speed and shows it: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, step: int, seconds: float, steps: int, images_per_step: int):
        self.images_per_step = images_per_step
        self.bar = tqdm(initial=step, total=steps, unit="step", disable=None)
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
        values = {name: f"{row[column]:.4g}" for column, name in names.items()}
        self.bar.set_postfix(values, refresh=False)
        last = row["step"] == self.bar.total
        if self.bar.disable and (last or time.perf_counter() - self.shown > SECONDS_BETWEEN_LINES):
            self.shown = time.perf_counter()
            steps_left = self.bar.total - row["step"]
            left = steps_left * self.images_per_step / row["images_per_second"]
            text = "  ".join(f"{name} {value}" for name, value in values.items())
            print(f"step {row['step']}/{self.bar.total}  {text}  {left:.0f} s left", flush=True)


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
