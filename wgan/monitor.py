"""What happens between steps: log lines, sample grids, evaluations, checkpoints.

The training loop calls the monitor; the monitor never calls the loop. A failed write is reported
and training continues, except for the third checkpoint in a row that cannot be written.
"""

import math
import sys
import time
from collections.abc import Callable

import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from utils import input_gradients, interpolate
from wgan import distributed
from wgan.budget import Budget, StepStatus, seconds_since_start
from wgan.config import Config
from wgan.data import seeded_generator
from wgan.evaluation.evaluator import Evaluator, choose_features
from wgan.losses import critic_of_classes
from wgan.run_folder import NullRunFolder, RunFolder
from wgan.sample_grid import SampleGrid
from wgan.sampling import generate
from wgan.setup import Run
from wgan.state import TrainState

MAX_FAILED_SAVES = 3  # checkpoints in a row that cannot be written end training
DIVERGED = 1e6  # absolute Wasserstein estimate
SECONDS_BETWEEN_LINES = 5  # if the output is not a terminal
# If steps are slow, something is shown and saved between the steps at which it is due.
MAX_SECONDS_WITHOUT_LINE = 10
MAX_SECONDS_UNSAVED = 60, 600  # at first, and in a long run
ESTIMATE_SECONDS = 5  # of training, before its duration is estimated
LONG_RUN = 3600  # seconds, above which flags are named that shorten the run
TIMED_BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"  # tqdm's default, without a count


class Monitor:
    """Watches one run. Use it as a context manager around the loop."""

    def __init__(self, run: Run):
        self.config, self.state, self.folder = run.config, run.state, run.folder
        self.dataset, self.budget = run.dataset, run.budget
        self.samples_per_step = self.config.n_critic * self.config.batch_size
        self.grid = SampleGrid(run)
        self.evaluation = None
        if self.config.eval_every and distributed.is_first():
            try:
                self.evaluation = Evaluation(run)
            except ValueError as error:  # training is worth as much without figures
                print(f"--eval-every is ignored: {error}", file=sys.stderr)
        self.checkpoints = Checkpoints(self.state, self.folder)
        self.display: Display | None = None
        self.last_line = self.last_save = 0.0  # by the first rank's clock
        self.last_estimate = 0.0  # in the log

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *error) -> None:
        if self.display:
            self.display.close()

    def start(self) -> None:
        """Save the real samples and the first grid, before any update."""
        if self.state.step == 0 and distributed.is_first():
            real = self.grid.draw_real()
            try_to_write("grid of real samples", self.folder.save_real, real)
            self.save_samples()
        self.display = Display(self.state, self.budget, self.samples_per_step)

    def start_clock(self, status: StepStatus) -> None:
        """Count the seconds without a line and a checkpoint from now on, by the first rank's clock,
        because all ranks must exchange losses and weights at the same steps."""
        self.last_line = self.last_save = self.start_seconds = status.seconds

    def after_step(self, status: StepStatus, losses: dict[str, Tensor]) -> None:
        """Do what is due after a step, by its number or by the time; `losses` are still on the
        device. The log and the numbered grids depend on the step alone, so that they are the same
        after a resume."""
        self.display.advance(status)
        self.display.estimate(status)
        config, step, last = self.config, status.step, status.finished
        evaluate = is_due(config.eval_every, step) or (
            config.eval_every > 0 and step == self.budget.steps
        )
        if is_due(config.log_every, step) or evaluate or last:
            self.log(losses, evaluate)
            self.last_line = status.seconds
        elif status.seconds - self.last_line > MAX_SECONDS_WITHOUT_LINE:
            self.display.show(self.measure(losses))
            self.last_line = status.seconds
        draw = is_due(config.sample_every, step) or last
        if draw and distributed.is_first():
            self.save_samples()
        overdue = status.seconds - self.last_save > self.max_seconds_unsaved(status)
        due = is_due(config.checkpoint_every, step) or is_due(config.keep_every, step)
        if due or overdue or status.save_requested:
            self.checkpoints.save(self.display.seconds())
            self.last_save = status.seconds
        if overdue and not draw:
            self.save_latest()

    def max_seconds_unsaved(self, status: StepStatus) -> float:
        first, later = MAX_SECONDS_UNSAVED
        return min(later, max(first, (status.seconds - self.start_seconds) / 10))

    def finish(self, status: StepStatus) -> None:
        """Save the last checkpoint and the plots, and print how training ended."""
        self.display.close()
        self.checkpoints.save_last(self.display.seconds())
        if not (status.finished or is_due(self.config.sample_every, status.step)):
            self.save_latest()
        try_to_write("curves and timelapse", self.folder.save_plots)
        if abs(self.last_estimate) > DIVERGED:
            print(
                f"the Wasserstein estimate is {self.last_estimate:.2g}: training has diverged; "
                "lower --lr or set --grad-clip, and start again with --fresh"
            )
        end = self.budget.describe(self.state.step)
        if status.stop_signal:
            print(f"stopped at {end}; run the same command to resume")
        else:
            print(
                f"finished at {end}; see timelapse.gif, curves.png and samples/ in "
                f"{self.folder.path}"
            )

    def log(self, losses: dict[str, Tensor], evaluate: bool) -> None:
        """Write a line of the log, with the evaluation if requested, and display it."""
        norm = interpolate_gradient_norm(self.state, self.config, self.grid)
        row = self.measure(losses | {"gradient_norm": norm})
        self.last_estimate = row["wasserstein"]
        if evaluate and self.evaluation:
            row["frechet_distance"] = self.evaluation.measure()
        try_to_write("log line", self.folder.log, row)
        self.display.show(row)

    def measure(self, scalars: dict[str, Tensor]) -> dict[str, float]:
        """A row of the log from values on the device; ends training if one is not finite."""
        means = distributed.all_mean(scalars)
        values = {name: value.item() for name, value in means.items()}
        check_finite(values, self.state)
        images = self.state.step * self.samples_per_step
        row = {"step": self.state.step, "epoch": images / len(self.dataset), "images": images}
        return row | self.display.lap(self.state.step) | values

    def save_samples(self) -> None:
        try_to_write("sample grid", self.folder.save_sample, self.state.step, self.draw())

    def save_latest(self) -> None:
        if distributed.is_first():
            try_to_write("latest grid", self.folder.save_latest, self.draw())

    def draw(self) -> Image:
        return self.grid.draw(self.state)


def is_due(every: int, step: int) -> bool:
    """Whether something that happens every N steps happens after this one; 0: never."""
    return every > 0 and step % every == 0


def try_to_write(what: str, write: Callable, *arguments) -> bool:
    """Whether it could be written; if not, the reason is printed and training continues."""
    try:
        write(*arguments)
        return True
    except OSError as error:
        print(f"could not write the {what}: {error}", file=sys.stderr)
        return False


def check_finite(values: dict[str, float], state: TrainState) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        distributed.fail(
            f"{' and '.join(bad)} became infinite or NaN by step {state.step}. Likely causes: too "
            "high a learning rate, or too large a penalty. Lower --lr or --gp-weight, or bound the "
            "updates with --grad-clip, and start again with --fresh. The last checkpoint is "
            "untouched."
        )


# ---------------------------------------------------------------- checkpoints


class Checkpoints:
    """Saves the state; ends training if it must not be resumed from or cannot be written."""

    def __init__(self, state: TrainState, folder: RunFolder | NullRunFolder):
        self.state, self.folder, self.failures = state, folder, 0
        self.saved_step = state.step  # on disk already, or nothing at step 0

    def save(self, seconds: float) -> None:
        self.check()
        self.write(seconds)

    def save_last(self, seconds: float) -> None:
        """Save the final state unless that is done, trying again at once after a failure."""
        self.check()
        while self.saved_step != self.state.step:
            self.write(seconds)

    def check(self) -> None:
        networks = (self.state.critic, self.state.generator)
        finite = all(weight.isfinite().all() for net in networks for weight in net.parameters())
        check_finite({"a weight": 0.0 if finite else math.nan}, self.state)
        if not distributed.all_equal(self.state.weights()):
            distributed.fail(
                f"the ranks' networks differ at step {self.state.step}, which should be "
                "impossible: check that all ranks use the same code and hardware. The last "
                "checkpoint is untouched."
            )

    def write(self, seconds: float) -> None:
        self.state.seconds = seconds
        content = self.state.to_checkpoint()
        if is_due(self.folder.config.keep_every, self.state.step):  # first: a kill repeats the step
            try_to_write("checkpoint to keep", self.folder.keep, content)
        written = try_to_write("checkpoint", self.folder.save, content)
        (failed,) = distributed.all_max(not written)  # only the first rank writes
        if not failed:
            self.failures, self.saved_step = 0, self.state.step
            return
        self.failures += 1
        if self.failures >= MAX_FAILED_SAVES:
            last = (
                f"the last one, of step {self.saved_step}, is still in {self.folder.path}, and the "
                "same command resumes from it"
            )
            distributed.fail(
                f"no checkpoint could be written {self.failures} times in a row; "
                + (last if self.saved_step else "there is none in this run")
            )


class Evaluation:
    """Measures the samples of the moving average, and keeps the best checkpoint as best.pt."""

    def __init__(self, run: Run):
        data_root, device = run.config.data_root, run.state.device
        features = choose_features("classifier", run.dataset, data_root, device)
        self.evaluator = Evaluator(run.dataset, features)
        self.state, self.folder = run.state, run.folder
        self.best = run.folder.best_distance()

    def measure(self) -> float:
        """The Fréchet distance now."""
        samples = generate(self.state.ema, self.evaluator.count)
        distance = self.evaluator.frechet_distance(samples)
        if distance < self.best and try_to_write(
            "best checkpoint", self.folder.save_best, self.state.to_checkpoint()
        ):
            self.best = distance
        return distance


# ---------------------------------------------------------------- display


class Display:
    """Measures and shows the speed: a bar on a terminal, otherwise a line every few seconds.

    The bar counts steps; if the time is limited, it counts the part of the time of this process
    that is over, or of the steps, whichever ends first.
    """

    def __init__(self, state: TrainState, budget: Budget, samples_per_step: int):
        self.samples_per_step = samples_per_step
        self.budget = Budget(budget.steps, budget.max_seconds)  # its progress is this process's
        disable = None if distributed.is_first() else True  # None: unless on a terminal
        self.timed = budget.max_seconds > 0
        if self.timed:
            self.bar = tqdm(total=1.0, bar_format=TIMED_BAR, disable=disable)
        else:
            self.bar = tqdm(initial=state.step, total=budget.steps, unit="step", disable=disable)
        self.start = time.perf_counter() - state.seconds
        self.lap_step, self.lap_seconds = state.step, state.seconds
        self.last_line = -math.inf
        self.first_step, self.first_seconds = state.step, seconds_since_start()
        self.estimated = False

    def close(self) -> None:
        self.bar.close()

    def seconds(self) -> float:
        """Seconds of training, including those before an interruption."""
        return time.perf_counter() - self.start

    def lap(self, step: int) -> dict[str, float]:
        """Columns of the log: total seconds, and images per second since the last call."""
        now = self.seconds()
        speed = (step - self.lap_step) * self.samples_per_step / (now - self.lap_seconds)
        self.lap_step, self.lap_seconds = step, now
        return {"seconds": now, "images_per_second": speed}

    def advance(self, status: StepStatus) -> None:
        """Move the bar to a step."""
        if self.timed:
            self.bar.set_description_str(f"step {status.step:,}", refresh=False)
            self.bar.update(self.budget.progress(status.step) - self.bar.n)
        else:
            self.bar.update(status.step - self.bar.n)

    def estimate(self, status: StepStatus) -> None:
        """Print once how long the run takes, and how to shorten it if that is hours."""
        elapsed = status.seconds - self.first_seconds
        if self.estimated or status.ended or elapsed < ESTIMATE_SECONDS:
            return
        self.estimated = True
        rate = (status.step - self.first_step) / elapsed
        left = self.budget.seconds_left(status.step, rate)
        text = f"about {describe_seconds(left)} left, at {1 / rate:.2g} s per step"
        if left > LONG_RUN:
            text += (
                "; to shorten the run: --max-seconds 600 (with --lr-decay, the rates then decay in "
                "this time), a smaller --width or a smaller --image-size"
            )
        if distributed.is_first():
            self.bar.write(text)

    def show(self, row: dict[str, float]) -> None:
        names = {"wasserstein": "W", "penalty": "penalty", "frechet_distance": "Fréchet"}
        values = {name: f"{row[column]:.3g}" for column, name in names.items() if column in row}
        values["samples/s"] = f"{row['images_per_second']:,.0f}"
        self.bar.set_postfix(values, refresh=False)
        now, step = time.perf_counter(), row["step"]
        due = self.budget.is_over(step) or now - self.last_line > SECONDS_BETWEEN_LINES
        if self.bar.disable and due:
            self.last_line = now
            left = self.budget.seconds_left(step, row["images_per_second"] / self.samples_per_step)
            done = self.budget.describe(step).replace(" of ", "/")
            percent = f"{self.budget.progress(step):4.0%}  " if self.timed else ""
            text = "  ".join(f"{name} {value}" for name, value in values.items())
            print(f"{percent}{done}  {text}  {describe_seconds(left)} left", flush=True)


def describe_seconds(seconds: float) -> str:
    """A rounded duration, such as "40 s", "12 min" or "14 h"."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def interpolate_gradient_norm(state: TrainState, config: Config, grid: SampleGrid) -> Tensor:
    """Mean norm of the critic's gradients at interpolates of the grid's real samples and of new
    fake ones of the same classes, for every method."""
    real, labels = grid.real, grid.labels
    rng = seeded_generator(real.device, config.seed, "norm", state.step)
    noise = torch.randn(len(real), config.noise_dim, generator=rng, device=real.device)
    mix = torch.rand(len(real), generator=rng, device=real.device)
    with torch.no_grad():
        fake = state.ema(noise, labels)
    critic = critic_of_classes(state.critic, labels)
    # Not `gradient_norms`, which refuses the batch normalisation of weight clipping's critic.
    gradients = input_gradients(critic, interpolate(real, fake, mix))  # (B, D)
    return torch.linalg.vector_norm(gradients, dim=1).detach().mean()
