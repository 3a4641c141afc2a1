"""A data set: its samples, their classes, and how it is recognised."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wgan.data.rows import RowReader
from wgan.data.standardisation import Standardisation

DIGESTED_BYTES = 2**24  # of samples, to recognise a data set in a fraction of a second


@dataclass(frozen=True)
class Dataset:
    """Samples, and the class of each as an integer, `(N,)`, if there are classes; -1 is no class.

    `class_names[k]` is the name of class k. `modes` `(N,)` is the component of each sample of a
    mixture of Gaussians, whose coverage `evaluate.py` then reports.
    `files_digest` covers the names and sizes of the files that the samples come from, if any.
    `standardisation` is how vectors were standardised, if they were.
    """

    samples: RowReader
    labels: np.ndarray | None = None
    files_digest: str = ""
    class_names: tuple[str, ...] = ()
    modes: np.ndarray | None = None
    standardisation: Standardisation | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.samples.sample_shape

    @property
    def is_points(self) -> bool:
        return len(self.sample_shape) == 1

    def read(self, indices: Tensor | np.ndarray) -> Tensor:
        """Copy samples to a new tensor `(len(indices), ...)`."""
        return self.samples.read(indices)

    def identity(self, conditional: bool = False) -> dict[str, object]:
        """The number of samples, and a digest that recognises them at another time or place. It
        covers all bytes; if there are many, those of evenly spaced samples and `files_digest`.
        With `conditional`, there is a digest of the labels, too. If there is a standardisation, it
        is included, so that checkpoints contain it."""
        count = min(len(self), max(100, DIGESTED_BYTES // self.samples.row_bytes))
        files = self.files_digest if count < len(self) else ""
        digest = hashlib.sha256(f"{len(self)} {self.sample_shape} {files}".encode())
        for part in (torch.arange(count) * len(self) // count).split(1000):
            digest.update(self.read(part).numpy())
        identity = {"samples": len(self), "digest": digest.hexdigest()}
        if conditional and self.labels is not None:
            identity["labels"] = hashlib.sha256(self.labels.astype(np.int64).tobytes()).hexdigest()
        if self.standardisation:
            identity["standardisation"] = self.standardisation.to_checkpoint()
        return identity
