"""Samples by index, from memory or from files."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

COPIED_BYTES = 2**25  # at a time, from files to the device
open_raw = partial(open, mode="rb", buffering=0)
SEEKING = Lock()  # between moving a file's position and reading there: two threads may read


class RowReader:
    """N samples of one shape, read by index, from memory or from files."""

    def __init__(self, sample_shape: tuple[int, ...], dtype: torch.dtype, count: int):
        self.sample_shape, self.dtype, self.count = sample_shape, dtype, count
        self.row_bytes = math.prod(sample_shape) * dtype.itemsize
        self.tensor: Tensor | None = None
        self.files: Sequence[BinaryIO | Path] = []  # paths are opened whenever they are read
        self.ends = np.zeros(0, np.int64)  # of each file, the index after its last sample
        self.start = 0  # of the first sample in each file, in bytes

    @classmethod
    def from_array(cls, array: np.ndarray) -> "RowReader":
        """Samples `(N, ...)` in memory, uint8 or float32."""
        tensor = torch.from_numpy(array)
        reader = cls(array.shape[1:], tensor.dtype, len(array))
        reader.tensor = tensor
        return reader

    @classmethod
    def from_files(
        cls,
        files: Sequence[Path],
        counts: Sequence[int],
        sample_shape: tuple[int, ...],
        start: int = 0,
    ) -> "RowReader":
        """Samples in files, `counts[i]` of them in `files[i]`, as raw uint8, from byte `start` on.

        If the system's limit allows it, the files are kept open, so that they can be read even
        after they were replaced. They are not mapped, because a map counts as the process's memory.
        """
        reader = cls(tuple(sample_shape), torch.uint8, sum(counts))
        reader.files = [open_raw(file) for file in files] if allow_open_files(len(files)) else files
        reader.ends = np.cumsum(counts, dtype=np.int64)
        reader.start = start
        return reader

    def __len__(self) -> int:
        return self.count

    @property
    def nbytes(self) -> int:
        return self.count * self.row_bytes

    @property
    def in_memory(self) -> bool:
        return self.tensor is not None

    def read(self, indices: Tensor | np.ndarray, pin_memory: bool = False) -> Tensor:
        """Copy samples to a new tensor `(len(indices), ...)`, page-locked if `pin_memory`.

        Raises IndexError for an index outside the samples, OSError if a file cannot be read or
        has become shorter.
        """
        indices = torch.as_tensor(indices)
        shape = (len(indices), *self.sample_shape)
        copy = torch.empty(shape, dtype=self.dtype, pin_memory=pin_memory)
        if self.tensor is not None:
            return torch.index_select(self.tensor, 0, indices, out=copy)
        numbers = indices.numpy()
        if ((numbers < 0) | (numbers >= self.count)).any():
            raise IndexError(f"an index is outside the {self.count} samples")
        places = np.searchsorted(self.ends, numbers, side="right")
        offsets = (numbers - np.append(0, self.ends)[places]) * self.row_bytes + self.start
        content = copy.numpy().reshape(-1)
        # Consecutive rows of one file are read at once.
        is_next = (np.diff(numbers, prepend=-2) == 1) & (np.diff(places, prepend=-1) == 0)
        runs = np.append(np.flatnonzero(~is_next), len(numbers)).tolist()
        for first, end in pairwise(runs):
            buffer = content[first * self.row_bytes : end * self.row_bytes]
            read_into(buffer, self.files[places[first]], int(offsets[first]))
        return copy

    def to_device(self, device: torch.device) -> Tensor:
        """All samples on the device. Samples in files are copied there part by part."""
        if self.tensor is not None:
            return self.tensor.to(device)
        copy = torch.empty((self.count, *self.sample_shape), dtype=self.dtype, device=device)
        for part in torch.arange(self.count).split(max(1, COPIED_BYTES // self.row_bytes)):
            copy[part[0] : part[-1] + 1] = self.read(part)
        return copy


class ConvertedReader(RowReader):
    """Samples that a function computes whenever they are read, `at_once` of them at a time.

    `compute` maps indices `(K,)` to samples `(K, *sample_shape)` of type `dtype`.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        sample_shape: tuple[int, ...],
        dtype: torch.dtype,
        count: int,
        at_once: int,
    ):
        super().__init__(sample_shape, dtype, count)
        self.compute, self.at_once = compute, at_once

    def read(self, indices: Tensor | np.ndarray, pin_memory: bool = False) -> Tensor:
        indices = torch.as_tensor(indices)
        shape = (len(indices), *self.sample_shape)
        copy = torch.empty(shape, dtype=self.dtype, pin_memory=pin_memory)
        for part, rows in zip(indices.split(self.at_once), copy.split(self.at_once), strict=True):
            rows.copy_(self.compute(part))
        return copy


def read_into(buffer: np.ndarray, file: BinaryIO | Path, start: int) -> None:
    """Fill a buffer with the bytes of a file from `start` on."""
    with SEEKING, open_raw(file) if isinstance(file, Path) else nullcontext(file) as opened:
        opened.seek(start)
        while len(buffer):  # a system call reads less than 2 GiB
            if not (count := opened.readinto(buffer)):
                raise OSError(f"{opened.name} became shorter while in use: run the command again")
            buffer = buffer[count:]


def allow_open_files(count: int) -> bool:
    """Whether this process may keep that many files open, if necessary with a higher limit: 1,024
    files are usual on Linux, 256 on macOS, and a folder of images alone has up to 1,024 buckets."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return True
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * count + 256  # data sets may be loaded more than once
    try:
        if 0 <= soft < needed:  # -1 is no limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return True
    except (ValueError, OSError):
        return False
