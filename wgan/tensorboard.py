"""--tensorboard: a run's scalars, sample grids and options as events for TensorBoard."""

from collections.abc import Callable

import numpy as np
from PIL.Image import Image

from wgan import distributed
from wgan.files import try_to_write
from wgan.setup import Run

NOT_SHOWN = ("step", "epoch", "images", "seconds")  # columns of the log


class Events:
    """Writes events into the run's folder if the run asks for them, until a write fails."""

    def __init__(self, run: Run):
        self.active, self.run = run.config.tensorboard and distributed.is_first(), run
        self.write(self.open)

    def open(self) -> None:
        """Start a file, which replaces the events of later steps than the run's."""
        from torch.utils.tensorboard import SummaryWriter

        step, folder = self.run.state.step, self.run.folder.path / "tensorboard"
        self.writer = SummaryWriter(folder, purge_step=step + 1 if step else 0)
        options = self.run.config.to_toml().replace("\n", "\n    ")  # indented: Markdown's code
        self.writer.add_text("options", f"    {options}", step)

    def log(self, row: dict[str, float]) -> None:
        scalars = {name: value for name, value in row.items() if name not in NOT_SHOWN}
        self.write(lambda: [self.writer.add_scalar(*s, row["step"]) for s in scalars.items()])

    def save_sample(self, step: int, image: Image) -> None:
        pixels = np.asarray(image.convert("RGB"))
        self.write(lambda: self.writer.add_image("samples", pixels, step, dataformats="HWC"))

    def write(self, add: Callable[[], object]) -> None:
        # Flushed at once, so that a killed run has all events up to its checkpoint.
        if self.active:
            self.active = try_to_write("events", lambda: (add(), self.writer.flush()))
