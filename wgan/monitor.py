"""What is due between steps: log lines, sample grids, evaluations, checkpoints.

The training loop calls the monitor; the monitor never calls the loop. A failed write is reported
and training continues, except for the third checkpoint in a row that cannot be written.
"""

import sys
import time

import numpy as np
import torch
from torch import Tensor

from utils import interpolate_gradient_norm
from wgan import distributed
from wgan.augmentation import Augmentation
from wgan.budget import StepStatus
from wgan.data import seeded_generator
from wgan.display import Display
from wgan.errors import TrainingFailed
from wgan.evaluation.evaluator import Evaluator, choose_features
from wgan.files import try_to_write
from wgan.losses import critic_of_classes
from wgan.reading import too_few_steps
from wgan.report import refresh
from wgan.sample_grid import SampleGrid
from wgan.sampling import TrainedGenerator, generate
from wgan.saver import Saver, check_finite
from wgan.setup import Run
from wgan.tensorboard import Events
from wgan_gp import halve

# If steps are slow, something is shown and saved between the steps at which it is due.
MAX_SECONDS_WITHOUT_LINE = 10
MAX_SECONDS_UNSAVED = 60, 600  # at first, and in a long run
REFRESH_SECONDS, REFRESH_SHARE = 60, 0.01  # between drawings, and of the time, at most
WARNING_SECONDS = 20  # of training, before a warning that the run is too short


class Monitor:
    """Watches one run. Use it as a context manager around the loop."""

    def __init__(self, run: Run):
        self.config, self.state, self.folder = run.config, run.state, run.folder
        self.dataset, self.budget = run.dataset, run.budget
        self.samples_per_step = self.config.n_critic * self.config.batch_size
        self.grid = SampleGrid(run)
        self.saver = Saver(run.config, run.state, run.folder)
        self.events = Events(run)
        self.evaluation = None
        if self.config.eval_every and distributed.is_first():
            try:
                self.evaluation = Evaluation(run, self.saver)
            except ValueError as error:  # training is worth as much without an evaluation
                print(f"--eval-every is ignored: {error}", file=sys.stderr)
        self.display: Display | None = None
        self.lap_step, self.lap_seconds = self.state.step, self.state.seconds
        # Seconds of training, which are the same on all ranks: they must exchange losses and
        # weights at the same steps.
        self.last_line = self.last_save = self.start_seconds = self.state.seconds
        self.next_refresh = self.start_seconds + REFRESH_SECONDS
        self.long_enough = self.state.progress > 0.5  # a resumed run is not warned near its end

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        if self.display:
            self.display.close()
        if isinstance(error, Exception) and not isinstance(error, TrainingFailed):
            self.saver.save_after_error()

    def start(self) -> None:
        """Save the real samples and the first grid, before any update."""
        if self.state.step == 0 and distributed.is_first():
            real = self.grid.draw_real()
            try_to_write("grid of real samples", self.folder.save_real, real)
            self.save_samples()
        self.display = Display(self.state, self.budget, self.samples_per_step)

    def after_step(self, status: StepStatus, losses: dict[str, Tensor]) -> None:
        """Do what is due after a step, by its number or by the time; `losses` are still on the
        device. The log and the numbered grids depend on the step alone, so that they are the same
        after a resume."""
        self.display.advance(status)
        self.warn_if_too_short(status)
        config, step, last = self.config, status.step, status.finished
        evaluate = is_due(config.eval_every, step) or (
            config.eval_every > 0 and step == self.budget.steps
        )
        if is_due(config.log_every, step) or evaluate or last:
            self.log(status, losses, evaluate)
            self.last_line = status.seconds
        elif status.seconds - self.last_line > MAX_SECONDS_WITHOUT_LINE:
            self.display.show(status, self.measure(losses))
            self.last_line = status.seconds
        draw = is_due(config.sample_every, step) or last
        if draw and distributed.is_first():
            self.save_samples()
        unsaved = status.seconds - self.last_save
        overdue = unsaved > max_seconds_unsaved(status.seconds - self.start_seconds)
        keep = is_due(config.keep_every, step)
        if is_due(config.checkpoint_every, step) or keep or overdue or status.save_requested:
            self.saver.save(keep)
            self.last_save = status.seconds
        if overdue and not draw:
            self.save_latest()
        self.refresh_if_due(status)

    def finish(self, status: StepStatus) -> None:
        """Save the last checkpoint and the plots, and print how training ended."""
        self.display.close()
        self.saver.save_last()
        if not (status.finished or is_due(self.config.sample_every, status.step)):
            self.save_latest()
        advice = refresh(self.folder, self.state.progress)
        end = self.budget.describe(self.state.step)
        if status.stop_signal:
            print(f"stopped at {end}; run the same command to resume")
        else:
            print(f"finished at {end}; see report.html and samples/ in {self.folder.path}")
        for sentence in advice:
            print(sentence)

    def warn_if_too_short(self, status: StepStatus) -> None:
        """Say once, in the first minute, if the time is too short for the recipe."""
        elapsed = status.seconds - self.start_seconds
        if not self.long_enough and elapsed >= min(WARNING_SECONDS, self.config.max_seconds / 5):
            self.long_enough = True
            for sentence in too_few_steps(self.config, status.step / max(status.progress, 1e-9)):
                self.display.write(sentence)

    def refresh_if_due(self, status: StepStatus) -> None:
        """Draw the curves, the timelapse and the report so far, in about 1% of the time."""
        if status.seconds >= self.next_refresh and not status.ended:
            start = time.perf_counter()
            refresh(self.folder, status.progress)
            cost = time.perf_counter() - start
            self.next_refresh = status.seconds + max(REFRESH_SECONDS, cost / REFRESH_SHARE)

    def log(self, status: StepStatus, losses: dict[str, Tensor], evaluate: bool) -> None:
        """Write a line of the log, with the evaluation if requested, and display it."""
        row = self.measure(losses | {"gradient_norm": self.gradient_norm()})
        if evaluate and self.evaluation:
            row["frechet_distance"] = self.evaluation.measure()
        try_to_write("log line", self.folder.log, row)
        for name, value in row.items():
            self.events.add("scalar", name, value, status.step)
        self.display.show(status, row)

    def measure(self, scalars: dict[str, Tensor]) -> dict[str, float]:
        """A row of the log from values on the device; ends training if one is not finite."""
        means = distributed.all_mean(scalars)
        values = {name: value.item() for name, value in means.items()}
        step, seconds = self.state.step, self.state.seconds
        check_finite(values, step)
        images = step * self.samples_per_step
        speed = (step - self.lap_step) * self.samples_per_step / (seconds - self.lap_seconds)
        self.lap_step, self.lap_seconds = step, seconds
        row = {"step": step, "epoch": images / len(self.dataset), "images": images}
        return row | {"seconds": seconds, "images_per_second": speed} | values

    def gradient_norm(self) -> Tensor:
        """The norm of the critic's gradients at interpolates of the grid's real samples and of new
        fake ones of the same classes, for every method. Both are augmented as in training."""
        real, labels, device = self.grid.real, self.grid.labels, self.state.device
        rng = seeded_generator(device, self.config.seed, "norm", self.state.step)
        noise = torch.randn(len(real), self.config.noise_dim, generator=rng, device=device)
        mix = torch.rand(len(real), generator=rng, device=device)
        augment = Augmentation(self.config.augment)
        uniforms = torch.rand(2, len(real), augment.numbers, generator=rng, device=device)
        with torch.no_grad():
            fake = self.state.ema(noise, labels)
            if self.state.generator.coarse:
                real, fake = halve(real), halve(fake)
            real, fake = augment(real, uniforms[1]), augment(fake, uniforms[0])
        critic = critic_of_classes(self.state.critic, labels)
        return interpolate_gradient_norm(critic, real, fake, mix)

    def save_samples(self) -> None:
        image = self.grid.draw(self.state)
        try_to_write("sample grid", self.folder.save_sample, self.state.step, image)
        if self.events.writer:
            pixels = np.asarray(image.convert("RGB"))
            self.events.add("image", "samples", pixels, self.state.step, None, "HWC")

    def save_latest(self) -> None:
        if distributed.is_first():
            try_to_write("latest grid", self.folder.save_latest, self.grid.draw(self.state))


def is_due(every: int, step: int) -> bool:
    """Whether something that happens every N steps happens after this one; 0: never."""
    return every > 0 and step % every == 0


def max_seconds_unsaved(elapsed: float) -> float:
    """Seconds after which a checkpoint is overdue, when a command has trained for `elapsed`."""
    first, later = MAX_SECONDS_UNSAVED
    return min(later, max(first, elapsed / 10))


class Evaluation:
    """Measures the samples of the moving average, and keeps the best checkpoint as best.pt."""

    def __init__(self, run: Run, saver: Saver):
        state, data_root = run.state, run.config.data_root
        choice = "random" if run.dataset.labels is None else "classifier"
        features = choose_features(choice, run.dataset, data_root, state.device)
        self.evaluator = Evaluator(run.dataset, features)
        self.generator = TrainedGenerator(state.ema, state.class_names, state.class_counts)
        self.saver, self.best = saver, run.folder.best_distance()

    def measure(self) -> float:
        """The Fréchet distance now."""
        samples = generate(self.generator, self.evaluator.count)
        distance = self.evaluator.frechet_distance(samples)
        if distance < self.best and self.saver.save_best():
            self.best = distance
        return distance
