"""Endless shuffled batches of samples, on the device."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from wgan.data.randomness import seeded_generator
from wgan.data.rows import RowReader


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
        if resident is None and device.type == "cuda":
            resident = 2 * samples.nbytes <= torch.cuda.mem_get_info(device)[0]
        elif resident is None:
            resident = samples.in_memory
        self.resident = resident
        if resident:
            self.on_device = samples.to_device(device)
        else:
            self.thread = ThreadPoolExecutor(1, "batches")
        labels = np.zeros(len(samples), np.int64) if labels is None else labels
        self.all_labels = torch.from_numpy(labels).to(device)
        self.prefetched: dict[tuple[int, int], Future] = {}  # by number and count
        self.orders: dict[int, Tensor] = {}  # by epoch

    def __call__(self, number: int, count: int = 1) -> Tensor:
        """The `count` batches from `number` on, `(count * B, ...)`."""
        if self.resident:
            return self.on_device.index_select(0, self.indices(number, count))
        current, following = (number, count), (number + count, count)
        batches = self.prefetched.get(current) or self.thread.submit(self.gather, *current)
        self.prefetched = {following: self.thread.submit(self.gather, *following)}
        return batches.result().to(self.device, non_blocking=True)

    def labels(self, number: int, count: int = 1) -> Tensor:
        """The classes of the samples of these batches, `(count * B,)` int64."""
        return self.all_labels[self.indices(number, count).to(self.device)]

    def gather(self, number: int, count: int) -> Tensor:
        """Batches on the host. CUDA copies from page-locked memory without blocking."""
        return self.samples.read(self.indices(number, count), self.device.type == "cuda")

    def wait(self) -> None:
        """Wait until no batches are being read, as reading would disturb a CUDA graph capture."""
        for batches in self.prefetched.values():
            batches.result()

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
        orders = self.orders  # never changed but replaced, as two threads ask for orders
        if epoch in orders:
            return orders[epoch]
        generator = seeded_generator("cpu", self.seed, "order", epoch)
        order = torch.randperm(len(self.samples), generator=generator)
        order = order.to(self.device if self.resident else "cpu", non_blocking=True)
        self.orders = {e: o for e, o in orders.items() if e == epoch - 1} | {epoch: order}
        return order


def check_batch_size(batch_size: int, samples: RowReader) -> None:
    """ValueError if a batch is larger than the data set."""
    if batch_size > len(samples):
        raise ValueError(
            f"a batch of {batch_size} is larger than the data set of {len(samples)} samples: "
            f"use --batch-size {len(samples)} or less"
        )
