"""What a run shows while it trains: a bar on a terminal, otherwise a line every few seconds."""

import math

from tqdm import tqdm

from wgan import distributed
from wgan.budget import Budget, StepStatus
from wgan.state import TrainState

SECONDS_BETWEEN_LINES = 5  # if the output is not a terminal
ESTIMATE_SECONDS = 5  # of training, before its duration is estimated
LONG_RUN = 3600  # seconds, above which flags are named that shorten the run
TIMED_BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"  # tqdm's default, without a count
SHOWN = {"wasserstein": "W", "penalty": "penalty", "frechet_distance": "Fréchet"}


class Display:
    """Shows one run. The bar counts steps, or the run's progress if the time is limited."""

    def __init__(self, state: TrainState, budget: Budget, samples_per_step: int):
        self.budget, self.samples_per_step = budget, samples_per_step
        self.first_step, self.first_seconds = state.step, state.seconds
        self.timed = budget.max_seconds > 0
        disable = None if distributed.is_first() else True  # None: unless on a terminal
        if self.timed:
            options = {"initial": state.progress, "total": 1.0, "bar_format": TIMED_BAR}
        else:
            options = {"initial": state.step, "total": budget.steps, "unit": "step"}
        self.bar = tqdm(disable=disable, **options)
        self.last_line = -math.inf
        self.estimated = False

    def close(self) -> None:
        self.bar.close()

    def advance(self, status: StepStatus) -> None:
        """Move the bar to a step, and print once how long the run takes."""
        if self.timed:
            self.bar.set_description_str(f"step {status.step:,}", refresh=False)
        self.bar.update((status.progress if self.timed else status.step) - self.bar.n)
        elapsed = status.seconds - self.first_seconds
        if not self.estimated and not status.ended and elapsed >= ESTIMATE_SECONDS:
            self.estimated = True
            self.estimate(status, (status.step - self.first_step) / elapsed)

    def estimate(self, status: StepStatus, steps_per_second: float) -> None:
        """Print how long the run takes, and how to shorten it if that is hours."""
        left = self.budget.seconds_left(status.step, steps_per_second)
        text = f"about {describe_seconds(left)} left, at {1 / steps_per_second:.2g} s per step"
        if left > LONG_RUN:
            text += (
                "; to shorten the run: --max-seconds 600 (with --lr-decay, the rates then decay in "
                "this time), a smaller --width or a smaller --image-size"
            )
        self.write(text)

    def write(self, text: str) -> None:
        if distributed.is_first():
            self.bar.write(text)

    def show(self, status: StepStatus, row: dict[str, float]) -> None:
        """Show a row of the log."""
        values = {name: f"{row[column]:.3g}" for column, name in SHOWN.items() if column in row}
        values["samples/s"] = f"{row['images_per_second']:,.0f}"
        self.bar.set_postfix(values, refresh=False)
        due = status.finished or status.seconds - self.last_line > SECONDS_BETWEEN_LINES
        if self.bar.disable and due:
            self.last_line = status.seconds
            rate = row["images_per_second"] / self.samples_per_step
            left = describe_seconds(self.budget.seconds_left(status.step, rate))
            done = self.budget.describe(status.step).replace(" of ", "/")
            percent = f"{status.progress:4.0%}  " if self.timed else ""
            text = "  ".join(f"{name} {value}" for name, value in values.items())
            print(f"{percent}{done}  {text}  {left} left", flush=True)


def describe_seconds(seconds: float) -> str:
    """A rounded duration, such as "40 s", "12 min" or "14 h"."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
