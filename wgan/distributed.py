"""What torchrun needs: the process group, each rank's share of the work, averaged gradients.

`torchrun --nproc-per-node=2 train.py ...` starts several processes, the ranks. Each holds a
copy of the networks and computes its share of every batch; gradients are averaged after each
backward pass, so that all copies take the same step and stay equal, byte for byte. Started
without torchrun there is one rank, and nothing here does anything.
"""

import hashlib
import io
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # all_reduce with a gradient
from torch import Tensor, nn

# The first rank may download data for hours while others wait. A process that dies is noticed at
# once, as its connections close; a machine that loses its power only by torchrun on the others.
PATIENCE = timedelta(days=1)
STARTS_WITHIN = 600  # seconds from the first rank's start to the last one's


class PeerFailed(RuntimeError):
    """Another rank has failed, and says itself why."""


# ---------------------------------------------------------------- the group


def rank() -> int:
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def ranks() -> int:
    """How many processes train together; 1 outside of `joined`, and while `alone`."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def is_first() -> bool:
    """Whether this is the rank that writes files and speaks."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the ranks that torchrun started: NCCL on CUDA, Gloo for all that lies on the CPU."""
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    own_store = {}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        count = int(os.environ["WORLD_SIZE"])
        own_store = {"store": store_of_this_start(), "rank": rank(), "world_size": count}
    dist.init_process_group(backend, timeout=PATIENCE, **own_store)
    with ExitStack() as stack:
        if not is_first():  # one rank speaks for all
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
        yield
    dist.destroy_process_group()  # after an error the others may wait: see `leave`


def store_of_this_start() -> dist.Store:
    """Where ranks find each other, served by the first one anew at each start.

    torchrun's own store outlives restarts, and in it a rank may find the address of one that
    was killed (pytorch/pytorch#135712). So it serves only to pass the new one's port, of
    which an old value shows by nobody's answering there.
    """
    host = os.environ["MASTER_ADDR"]
    torchruns = dist.TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False)
    if is_first():
        global _starts
        _starts = torchruns.add("starts", 1)
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        torchruns.set("port", str(store.port))
        return store
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        port = int(torchruns.get("port"))
        try:
            socket.create_connection((host, port), timeout=2).close()
            return dist.TCPStore(host, port, is_master=False)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def leave(code: int) -> NoReturn:
    """End this process; where an error has left the group open, at once, with its connections:
    a farewell would wait for ranks that are gone, or for those that wait for this one."""
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


_starts = 0  # of all ranks by one torchrun, as the first rank counts them


def restarted() -> bool:
    """Whether torchrun has started the same command again after a failure (--max-restarts)."""
    return max(_starts - 1, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))) > 0


def own_device(device: torch.device) -> torch.device:
    """This rank's device: of several CUDA devices on a machine, each of its ranks has one.

    ValueError where there are more ranks than devices.
    """
    if device.type != "cuda" or ranks() == 1:
        return device
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ValueError(
            f"{local + 1} or more ranks on a machine with {count} CUDA devices: lower torchrun's "
            "--nproc-per-node"
        )
    return torch.device("cuda", local)


_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Meanwhile this rank computes without the others, who need not do the same."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


# ---------------------------------------------------------------- shares


def own_share(batch_size: int) -> slice:
    """Which part of every batch is this rank's; ValueError where it does not divide."""
    share, rest = divmod(batch_size, ranks())
    if rest:
        least = ranks() * max(1, share)
        raise ValueError(
            f"a batch of {batch_size} does not divide among {ranks()} ranks: use {least} or "
            f"{least + ranks()}"
        )
    first = rank() * share if ranks() > 1 else 0
    return slice(first, first + share)


# ---------------------------------------------------------------- collectives


@contextmanager
def together() -> Iterator[None]:
    """A collective; what it raises when a rank is gone becomes a PeerFailed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise PeerFailed(f"rank {rank()} ends, as another rank has failed ({reason})") from error


@torch.no_grad()
def average(network: nn.Module) -> None:
    """Replace the network's gradients by their means over the ranks, in one collective.

    So are running statistics, which are linear in the batches' own: batch normalisation thus
    keeps the mean of the ranks' means and of their variances.
    """
    if ranks() == 1:
        return
    tensors = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    tensors += [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with together():
        dist.all_reduce(flat)
    flat /= ranks()
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def mean(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ranks' means of scalars."""
    if ranks() == 1:
        return values
    stacked = torch.stack(list(values.values()))
    with together():
        dist.all_reduce(stacked)
    return dict(zip(values, stacked / ranks(), strict=True))


def agree(*values: float) -> tuple[float, ...]:
    """The largest of all ranks' values, each by itself."""
    if ranks() == 1:
        return values
    largest = torch.tensor(values, dtype=torch.float64)
    with together():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return tuple(largest.tolist())


def from_first(make: Callable[[], dict]) -> dict:
    """What the function returns on the first rank, on all: tensors, which come to the CPU, and
    plain data."""
    if ranks() == 1:
        return make()
    buffer = io.BytesIO()
    if is_first():
        torch.save(make(), buffer)
    content = [buffer.getvalue()]
    with together():
        dist.broadcast_object_list(content, device=torch.device("cpu"))
    return torch.load(io.BytesIO(content[0]), map_location="cpu", weights_only=True)


@contextmanager
def in_turn() -> Iterator[None]:
    """The first rank does it, then one on each other machine, then the rest: who comes later
    finds the files of who came first. A turn that fails ends the others' wait."""
    if ranks() == 1:
        yield
        return
    turn = 0 if is_first() else 1 if os.environ["LOCAL_RANK"] == "0" else 2
    for _ in range(turn):
        agree(0)
    yield
    for _ in range(turn, 2):
        agree(0)


@contextmanager
def said_once() -> Iterator[None]:
    """Warnings of one rank on each machine; all ranks have the same to say."""
    with ExitStack() as stack:
        if ranks() > 1 and os.environ["LOCAL_RANK"] != "0":
            stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        yield


def all_equal(tensors: Iterable[Tensor]) -> bool:
    """Whether all ranks hold the same bytes in these tensors."""
    if ranks() == 1:
        return True
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    number = int.from_bytes(digest.digest()[:6], "little")  # a float64 holds 53 bits
    largest, least_negated = agree(number, -number)
    return largest == -least_negated


# ---------------------------------------------------------------- batch normalisation


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the statistics of all ranks' samples together.

    `(B, C)` or `(B, C, H, W)`; as torch's own, which has no form for a CPU, and with the same
    parameters and buffers as `nn.BatchNorm2d`. Every rank must have as many samples.
    """

    def _check_input_dim(self, values: Tensor) -> None:
        pass  # any number of dimensions

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or ranks() == 1:
            return super().forward(values)
        others = [0, *range(2, values.dim())]
        count = ranks() * values.numel() / values.shape[1]
        shape = (-1, *[1] * (values.dim() - 2))
        whole = values.float()
        with together():
            mean = dist.nn.functional.all_reduce(whole.sum(others)) / count
            centred = whole - mean.view(shape)
            variance = dist.nn.functional.all_reduce(centred.square().sum(others)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(values.dtype)


def synchronise_batch_norms(network: nn.Module) -> None:
    """Let every batch normalisation in the network use all ranks' samples."""
    for name, module in network.named_children():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            new = SyncBatchNorm(module.num_features, module.eps, module.momentum)
            new.load_state_dict(module.state_dict())
            setattr(network, name, new.to(module.weight.device))
        else:
            synchronise_batch_norms(module)
