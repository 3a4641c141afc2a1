"""--tensorboard: a run's scalars, sample grids and options as events for TensorBoard."""

from wgan import distributed
from wgan.files import try_to_write
from wgan.setup import Run


class Events:
    """Writes events into the run's folder if the run asks for them, until a write fails."""

    def __init__(self, run: Run):
        self.writer = None
        if run.config.tensorboard and distributed.is_first():
            try_to_write("events", self.open, run)

    def open(self, run: Run) -> None:
        """Start a file, which replaces the events of later steps than the run's."""
        from torch.utils.tensorboard import SummaryWriter

        step, options = run.state.step, run.config.to_toml().replace("\n", "\n    ")
        folder = run.folder.path / "tensorboard"
        self.writer = SummaryWriter(folder, purge_step=step + 1 if step else 0)
        self.add("text", "options", f"    {options}", step)  # indented: Markdown's code

    def add(self, kind: str, *values) -> None:
        """Write the arguments of an `add_...` method, at once: a killed run has all events up to
        its checkpoint."""

        def write() -> None:
            getattr(self.writer, f"add_{kind}")(*values)
            self.writer.flush()

        if self.writer and not try_to_write("events", write):
            self.writer = None
