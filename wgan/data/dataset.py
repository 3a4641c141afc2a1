"""A data set: its samples, their classes, and how it is recognised."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wgan.data.image_options import Range
from wgan.data.rows import RowReader
from wgan.data.standardisation import Standardisation


@dataclass(frozen=True)
class Dataset:
    """Samples, and the class of each as an integer, `(N,)`, if there are classes; -1 is no class.

    `class_names[k]` is the name of class k. `modes` `(N,)` is the component of each sample of a
    mixture of Gaussians, whose coverage `evaluate.py` then reports.
    `digest` covers all samples, if it is known without reading them again. `scale` contains the
    values that became black and white, unless images were bytes, and `standardisation` is how
    vectors were standardised, if they were.
    """

    samples: RowReader
    labels: np.ndarray | None = None
    digest: str = ""
    class_names: tuple[str, ...] = ()
    modes: np.ndarray | None = None
    scale: Range | None = None
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
        """The number of samples, and a digest that recognises them at another time or place, as it
        covers all bytes. With `conditional`, there is a digest of the labels, too. If there is a
        scale or a standardisation, it is included, so that checkpoints contain it."""
        digest = hashlib.sha256(f"{len(self)} {self.sample_shape} {self.digest}".encode())
        for part in torch.arange(0 if self.digest else len(self)).split(1000):
            digest.update(self.read(part).numpy())
        identity = {"samples": len(self), "digest": digest.hexdigest()}
        if conditional and self.labels is not None:
            identity["labels"] = hashlib.sha256(self.labels.astype(np.int64).tobytes()).hexdigest()
        if self.scale:
            identity["scale"] = self.scale
        if self.standardisation:
            identity["standardisation"] = self.standardisation.to_checkpoint()
        return identity
