"""Several processes under torchrun: process group, slices of a batch, averaged gradients.

`torchrun --nproc-per-node=2 train.py ...` starts several processes, the ranks. Each holds a copy
of the networks and computes its slice of every batch. Gradients are averaged once per
update, so that all copies take the same step and remain identical, byte for byte. Without torchrun
there is one rank, and nothing here has any effect.
"""

import hashlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wgan.errors import BadInput, PeerFailed, TrainingFailed, one_line

# The first rank may download data for hours while the others wait. A process that dies is noticed
# at once, because its connections close; a machine that loses power, only by torchrun elsewhere.
COLLECTIVE_TIMEOUT = timedelta(days=1)


# ---------------------------------------------------------------- the group


def rank() -> int:
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def world_size() -> int:
    """Number of ranks; 1 outside of `process_group`, and inside `single_rank`."""
    return dist.get_world_size() if dist.is_initialized() and not _single_rank else 1


def launched_ranks() -> int:
    """Number of ranks that torchrun started, also inside `single_rank`."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def is_first() -> bool:
    """Whether this is the rank that writes files and prints."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the ranks that torchrun started: NCCL on CUDA, Gloo for tensors on the CPU.

    BadInput if torchrun would restart them with the same store.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    shared_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared_store and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        # A rank may read the address of a killed one from it (pytorch/pytorch#135712).
        fail(
            "with --max-restarts, torchrun needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its "
            "environment: otherwise a restart may wait forever",
            BadInput,
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    # One rank prints for all.
    with open(os.devnull, "w") as devnull, redirect_stdout(sys.stdout if is_first() else devnull):
        yield
    dist.destroy_process_group()  # not after an error: the others may wait, see `exit_process`


def exit_process(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code; 1, with a traceback, on an exception.

    A rank ends at once, together with its connections. An orderly exit could wait for ranks that no
    longer run or that wait for this one, and PyTorch's threads sometimes abort it.
    """
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    if dist.is_torchelastic_launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def fail(message: str, kind: type[Exception] = TrainingFailed) -> NoReturn:
    """End training on all ranks; call it on every rank. The first one reports why."""
    if is_first():
        raise kind(message)
    raise PeerFailed(f"rank {rank()} ends with the first rank")


def rank_device(device: torch.device) -> torch.device:
    """This rank's device: each rank of a machine uses a CUDA device of its own.

    BadInput if there are more ranks than devices.
    """
    if device.type != "cuda" or world_size() == 1:
        return device
    local_rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local_rank >= count:
        raise BadInput(
            f"{local_rank + 1} or more ranks on a machine with {count} CUDA devices: lower "
            "torchrun's --nproc-per-node"
        )
    return torch.device("cuda", local_rank)


_single_rank = False


@contextmanager
def single_rank() -> Iterator[None]:
    """Skip all collectives inside the block, which the other ranks may not run."""
    global _single_rank
    before, _single_rank = _single_rank, True
    try:
        yield
    finally:
        _single_rank = before


def rank_slice(batch_size: int) -> slice:
    """This rank's part of a batch, whose size must be divisible by the number of ranks."""
    size = batch_size // world_size()
    first = rank() * size if world_size() > 1 else 0
    return slice(first, first + size)


# ---------------------------------------------------------------- collectives


@contextmanager
def collective() -> Iterator[None]:
    """Run a collective; the error raised when another rank is gone becomes a PeerFailed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = one_line(error)
        raise PeerFailed(f"rank {rank()} ends because another rank failed ({reason})") from error


@torch.no_grad()
def average_gradients(network: nn.Module) -> None:
    """Replace the network's gradients by their means over the ranks, in one collective.

    Running statistics of batch normalisation are averaged too: means of the ranks' means and of
    their variances.
    """
    if world_size() == 1:
        return
    tensors = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    tensors += [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with collective():
        dist.all_reduce(flat)
    flat /= world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def all_mean(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The means of scalars over the ranks."""
    if world_size() == 1:
        return values
    stacked = torch.stack(list(values.values()))
    with collective():
        dist.all_reduce(stacked)
    return dict(zip(values, stacked / world_size(), strict=True))


def all_max(*values: float) -> tuple[float, ...]:
    """The maximum of each value over the ranks."""
    if world_size() == 1:
        return values
    largest = torch.tensor(values, dtype=torch.float64)
    with collective():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return tuple(largest.tolist())


def all_equal(tensors: Iterable[Tensor]) -> bool:
    """Whether all ranks hold the same bytes in these tensors."""
    if world_size() == 1:
        return True
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    number = int.from_bytes(digest.digest()[:6], "little")  # a float64 holds 53 bits
    largest, negated_smallest = all_max(number, -number)
    return largest == -negated_smallest


def broadcast_from_first(make: Callable[[], dict]) -> dict:
    """The first rank's result of a function, on all ranks: tensors, on the CPU, and plain data."""
    if world_size() == 1:
        return make()
    buffer = io.BytesIO()
    if is_first():
        torch.save(make(), buffer)
    content = [buffer.getvalue()]
    with collective():
        dist.broadcast_object_list(content, device=torch.device("cpu"))
    return torch.load(io.BytesIO(content[0]), map_location="cpu", weights_only=True)


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run the block on the first rank, then on one rank of each other machine, then on the others,
    so that later ranks find the files of earlier ones. A rank that fails ends the others' wait.

    The last ranks print no warnings, because the first rank of their machine has the same ones.
    """
    if world_size() == 1:
        yield
        return
    turn = 0 if is_first() else 1 if os.environ["LOCAL_RANK"] == "0" else 2
    for _ in range(turn):
        all_max(0)
    with open(os.devnull, "w") as devnull, redirect_stderr(devnull if turn == 2 else sys.stderr):
        yield
    for _ in range(turn, 2):
        all_max(0)


def restarted() -> bool:
    """Whether torchrun started the same command again after a failure (--max-restarts); call it on
    every rank, because only the machine of the failed rank counts the restart."""
    (restarts,) = all_max(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))
    return restarts > 0
