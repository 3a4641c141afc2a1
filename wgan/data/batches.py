"""Samples by index, and endless shuffled batches of them.

Images are `(N, C, H, W)` uint8 and stay bytes until a batch is on the device; points are `(N, D)`
float32.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from wgan.data.standardisation import Standardisation

COPIED_BYTES = 2**25  # at a time, from files to the device
DIGESTED_BYTES = 2**24  # of samples, to recognise a data set in a fraction of a second


class RowReader:
    """N samples of one shape, read by index, from memory or from files."""

    def __init__(self, sample_shape: tuple[int, ...], dtype: torch.dtype, count: int):
        self.sample_shape, self.dtype, self.count = sample_shape, dtype, count
        self.row_bytes = math.prod(sample_shape) * dtype.itemsize
        self.tensor: Tensor | None = None
        self.files: list[BinaryIO] = []
        self.ends = np.zeros(0, np.int64)  # of each file, the index after its last sample
        self.starts: Sequence[int] = []  # of each file, where its first sample is, in bytes

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
        starts: Sequence[int] | None = None,
    ) -> "RowReader":
        """Samples in files, `counts[i]` of them in `files[i]`, as raw uint8, from byte `starts[i]`
        on (default: 0).

        The files are kept open, so that they can be read even after they were replaced. They are
        not mapped, because pages of a map count as the process's memory.
        """
        reader = cls(tuple(sample_shape), torch.uint8, sum(counts))
        allow_open_files(len(files))
        reader.files = [open(file, "rb", buffering=0) for file in files]
        reader.ends = np.cumsum(counts, dtype=np.int64)
        reader.starts = starts or [0] * len(files)
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
        starts = np.append(0, self.ends)[places]
        offsets = (numbers - starts) * self.row_bytes
        for row, place, offset in zip(copy.numpy(), places, offsets.tolist(), strict=True):
            read_at(self.files[place], self.starts[place] + offset, row)
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


def read_at(file: BinaryIO, offset: int, row: np.ndarray) -> None:
    """Fill `row` with the bytes at that offset of a file; several threads may read at once."""
    if hasattr(os, "preadv"):
        count = os.preadv(file.fileno(), [row], offset)
    else:  # Windows
        with SEEKING:
            file.seek(offset)
            count = file.readinto(row)
    if count < row.nbytes:
        raise OSError(f"{file.name} became shorter while it was in use: run the command again")


SEEKING = Lock()  # between moving a file's position and reading there


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, which is 256 on macOS, if it is too low."""
    with suppress(ImportError, ValueError, OSError):  # not on Windows, or not permitted
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * count + 256  # data sets may be loaded more than once
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
        found = {"samples": len(self), "digest": digest.hexdigest()}
        if conditional and self.labels is not None:
            found["labels"] = hashlib.sha256(self.labels.astype(np.int64).tobytes()).hexdigest()
        if self.standardisation:
            found["standardisation"] = self.standardisation.to_checkpoint()
        return found


class Batches:
    """Endless shuffled batches, with random access to batch k.

    An epoch contains every sample once; a batch may span two epochs. The order depends only on
    the seed and the epoch, so resuming needs the batch's number and no state.
    `batches(k, n)` are the n batches from number k on, `(n * B, ...)` in the samples' dtype, on
    `device`; `batches.labels(k, n)` are their classes, or zeros if no `labels` are given. If
    several ranks train, `rank_slice` selects this rank's part of each batch.

    Samples are kept on the device if they fit into half of its free memory. If they do not, or
    if they are in files and the device is the CPU, a thread reads and copies the next batches
    while the device computes. `resident` overrides this choice.

    Raises ValueError if a batch is larger than the data set.
    """

    def __init__(
        self,
        samples: RowReader,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank_slice: slice = slice(None),
        resident: bool | None = None,
        labels: np.ndarray | None = None,
    ):
        check_batch_size(batch_size, samples)
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.device, self.rank_slice = device, rank_slice
        if resident is None:
            resident = fits(samples.nbytes, device) and (samples.in_memory or device.type == "cuda")
        self.resident = resident
        if resident:
            self.on_device = samples.to_device(device)
        else:
            self.thread = ThreadPoolExecutor(1, "batches")
        self.all_labels = torch.zeros(len(samples), dtype=torch.int64)
        if labels is not None:
            self.all_labels = torch.from_numpy(labels)
        if resident:
            self.all_labels = self.all_labels.to(device)
        self.prefetched: dict[tuple[int, int], Future] = {}  # by number and count
        self.orders: dict[int, Tensor] = {}  # by epoch

    def __call__(self, number: int, count: int = 1) -> Tensor:
        """The `count` batches from `number` on, `(count * B, ...)`."""
        if self.resident:
            return self.on_device.index_select(0, self.indices(number, count))
        wanted, following = (number, count), (number + count, count)
        batches = self.prefetched.get(wanted) or self.thread.submit(self.gather, *wanted)
        self.prefetched = {following: self.thread.submit(self.gather, *following)}
        return batches.result().to(self.device, non_blocking=True)

    def labels(self, number: int, count: int = 1) -> Tensor:
        """The classes of the samples of these batches, `(count * B,)` int64."""
        return self.all_labels[self.indices(number, count)].to(self.device)

    def gather(self, number: int, count: int) -> Tensor:
        """Batches on the host. CUDA copies from page-locked memory without blocking."""
        return self.samples.read(self.indices(number, count), self.device.type == "cuda")

    def wait(self) -> None:
        """Wait until no batches are being read, as reading would disturb a CUDA graph capture."""
        for batches in self.prefetched.values():
            batches.result()

    def take(self, indices: Tensor) -> Tensor:
        """The samples of these indices `(K,)`, on the device: `(K, ...)`."""
        samples = self.on_device[indices] if self.resident else self.samples.read(indices)
        return samples.to(self.device)

    def indices(self, number: int, count: int = 1) -> Tensor:
        """Indices of the samples in the batches from `number` on, or in this rank's part."""
        first, left = number * self.batch_size, count * self.batch_size
        parts = []
        while left:
            epoch, start = divmod(first, len(self.samples))
            parts.append(self.order(epoch)[start : start + left])
            first, left = first + len(parts[-1]), left - len(parts[-1])
        return torch.cat(parts).view(count, self.batch_size)[:, self.rank_slice].flatten()

    def order(self, epoch: int) -> Tensor:
        """The epoch's permutation of all samples, `(N,)`. Only the latest two are kept."""
        if epoch not in self.orders:
            generator = seeded_generator("cpu", self.seed, "order", epoch)
            order = torch.randperm(len(self.samples), generator=generator)
            self.orders = {e: o for e, o in self.orders.items() if e == epoch - 1}
            device = self.device if self.resident else "cpu"
            self.orders[epoch] = order.to(device, non_blocking=True)
        return self.orders[epoch]


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes leave half of the device's free memory; always true without CUDA, where
    samples in memory are there already."""
    return device.type != "cuda" or 2 * size <= torch.cuda.mem_get_info(device)[0]


def check_batch_size(batch_size: int, samples: RowReader) -> None:
    """ValueError if a batch is larger than the data set."""
    if batch_size > len(samples):
        single = "add samples, or use --batch-size 1 with --generator-norm layer"
        raise ValueError(
            f"a batch of {batch_size} is larger than the data set of {len(samples)} samples: "
            + (f"use --batch-size {len(samples)} or less" if len(samples) > 1 else single)
        )


def seeded_generator(device: torch.device | str, seed: int, *purpose: int | str) -> torch.Generator:
    """A random generator that depends only on the seed and its purpose."""
    words = [seed]
    for word in purpose:
        words.append(word if isinstance(word, int) else int.from_bytes(word.encode(), "little"))
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state))


DRAWN_ROWS = 64  # by one random generator


def draw_rows(
    draw: Callable[[torch.Generator, int], Sequence[Tensor]],
    rows: slice,
    total: int,
    device: torch.device,
    seed: int,
    *purpose: int | str,
) -> list[Tensor]:
    """Rows of `total` random rows, of which each rank draws only its own, whatever their number.

    `draw(rng, count)` returns tensors `(count, ...)`, drawn with the random generator `rng` on the
    device. Each block of `DRAWN_ROWS` rows has a random generator of its own.
    """
    parts = []
    for start in range(rows.start - rows.start % DRAWN_ROWS, rows.stop, DRAWN_ROWS):
        rng = seeded_generator(device, seed, *purpose, start)
        block = draw(rng, min(DRAWN_ROWS, total - start))
        parts.append([drawn[max(0, rows.start - start) : rows.stop - start] for drawn in block])
    return [torch.cat(drawn) for drawn in zip(*parts, strict=True)]


def to_float_images(samples: Tensor) -> Tensor:
    """Convert bytes to floats in [-1, 1]. Points, which are floats already, stay as they are."""
    return samples.float() / 127.5 - 1 if samples.dtype == torch.uint8 else samples


def to_byte_images(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to bytes: the inverse of `to_float_images`."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def flip_where(images: Tensor, where: Tensor) -> Tensor:
    """Mirror the images `(B, C, H, W)` for which `where` `(B,)` is true, left to right."""
    return torch.where(where.view(-1, 1, 1, 1), images.flip(3), images)
