"""Vectors with columns of mean 0 and deviation 1, and the way back to their original units."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardisation:
    """The mean and the standard deviation of each column, `(D,)` float64. A constant column has
    deviation 0: it becomes 0, and `undo` gives its constant whatever the sample. `columns` are
    the names, if there are any.

    A checkpoint contains it as `checkpoint["data"]["standardisation"]`.
    """

    mean: np.ndarray
    deviation: np.ndarray
    columns: tuple[str, ...] = ()

    def apply(self, vectors: np.ndarray | Tensor) -> Tensor:
        """Vectors `(N, D)` in original units to float32 ones with mean 0 and deviation 1."""
        divisor = np.where(self.deviation > 0, self.deviation, 1)
        values = (np.asarray(vectors, np.float64) - self.mean) / divisor
        return torch.from_numpy(values.astype(np.float32))

    def undo(self, vectors: Tensor) -> Tensor:
        """The inverse of `apply`, `(N, D)` float64, as float32 has too few digits for columns such
        as times in seconds since 1970."""
        return vectors.double() * torch.from_numpy(self.deviation) + torch.from_numpy(self.mean)

    def to_checkpoint(self) -> dict[str, list]:
        values = {"mean": self.mean.tolist(), "deviation": self.deviation.tolist()}
        return values | ({"columns": [*self.columns]} if self.columns else {})

    @classmethod
    def from_checkpoint(cls, checkpoint: dict) -> "Standardisation | None":
        """That of the data that a checkpoint was trained on, if it is standardised."""
        stored = (checkpoint.get("data") or {}).get("standardisation")
        arrays = stored and [np.array(stored[key], float) for key in ("mean", "deviation")]
        return stored and cls(*arrays, tuple(stored.get("columns", ())))


class Moments:
    """Mean and deviation of columns, of vectors that are added part by part (Chan et al. 1979)."""

    def __init__(self, columns: int):
        self.count, self.mean, self.squares = 0, np.zeros(columns), np.zeros(columns)
        self.minimum, self.maximum = np.full(columns, np.inf), np.full(columns, -np.inf)

    def add(self, vectors: np.ndarray) -> None:
        """Count vectors `(N, D)` float64."""
        count, total = len(vectors), self.count + len(vectors)
        mean = vectors.mean(0)
        difference = mean - self.mean
        self.squares += np.square(vectors - mean).sum(0)
        self.squares += difference**2 * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total
        self.minimum = np.minimum(self.minimum, vectors.min(0))
        self.maximum = np.maximum(self.maximum, vectors.max(0))

    def standardisation(self) -> Standardisation:
        """Both are rounded to a thousandth of the deviation, because sums differ in the last digits
        between machines, on which the data must be recognised as the same."""
        deviation = np.sqrt(self.squares / self.count)
        deviation = np.array([float(f"{value:.4g}") for value in deviation])
        deviation[self.minimum == self.maximum] = 0  # and not what rounding leaves
        divisor = np.where(deviation > 0, deviation, 1)
        mean = np.where(deviation > 0, np.round(self.mean / divisor, 3) * divisor, self.minimum)
        return Standardisation(mean, deviation)
