"""Saving checkpoints during training, and ending it if that must not or cannot be done."""

import math
from contextlib import suppress
from typing import BinaryIO

from wgan import distributed
from wgan.checkpoints import write_checkpoint
from wgan.config import Config
from wgan.files import try_to_write
from wgan.run_folder import NullRunFolder, RunFolder
from wgan.state import TrainState

MAX_FAILED_SAVES = 3  # in a row


class Saver:
    """Saves the state. Training ends if a weight is not finite, if the ranks' networks differ, or
    if no checkpoint could be written three times in a row."""

    def __init__(self, config: Config, state: TrainState, folder: RunFolder | NullRunFolder):
        self.config, self.state, self.folder = config, state, folder
        self.failures = 0
        self.saved_step = state.step  # on disk already, or nothing at step 0

    def save(self, keep: bool = False) -> None:
        """Save the state; with `keep`, also under the name of its step."""
        self.check()
        self.write(keep)

    def save_last(self) -> None:
        """Save the final state unless that is done, trying again at once after a failure."""
        self.check()
        while self.saved_step != self.state.step:
            self.write(keep=False)

    def save_best(self) -> bool:
        """Whether the state could be saved as best.pt."""
        return try_to_write("best checkpoint", self.folder.save_best, self.write_state)

    def save_after_error(self) -> None:
        """Save the state, if its last step is complete; the other ranks may be gone."""
        # If the device is lost, too, this fails, and the error itself says more.
        with suppress(Exception), distributed.single_rank():
            state = self.state
            if state.step > self.saved_step and state.is_between_steps(self.config.n_critic):
                self.save()

    def write_state(self, file: BinaryIO) -> None:
        write_checkpoint(self.state.to_checkpoint(), self.config, file)

    def check(self) -> None:
        networks = (self.state.critic, self.state.generator)
        finite = all(weight.isfinite().all() for net in networks for weight in net.parameters())
        check_finite({"a weight": 0.0 if finite else math.nan}, self.state.step)
        if not distributed.all_equal(self.state.weights()):
            distributed.fail(
                f"the ranks' networks differ at step {self.state.step}, which should be "
                "impossible: check that all ranks use the same code and hardware. The last "
                "checkpoint is untouched."
            )

    def write(self, keep: bool) -> None:
        step = self.state.step
        if keep:  # first: a kill repeats the step
            try_to_write("checkpoint to keep", self.folder.keep, step, self.write_state)
        written = try_to_write("checkpoint", self.folder.save, self.write_state)
        (failed,) = distributed.all_max(not written)  # only the first rank writes
        if not failed:
            self.failures, self.saved_step = 0, step
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


def check_finite(values: dict[str, float], step: int) -> None:
    """End training if a value is infinite or NaN."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        distributed.fail(
            f"{' and '.join(bad)} became infinite or NaN by step {step}. Lower --lr, or bound the "
            "updates with --grad-clip, and start again with --fresh. The last checkpoint is "
            "untouched."
        )
