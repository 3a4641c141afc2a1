"""An update of one network: gradients averaged over the parts of a batch and over the ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wgan import distributed


def update(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    loss: Callable[..., Tensor | tuple[Tensor, ...]],
    batch: tuple[Tensor | None, ...],
    grad_clip: float = 0.0,
    accumulate: int = 1,
) -> list[Tensor]:
    """Minimise the loss, or the first of several, of a batch of tensors `(B, ...)`.

    The loss is a mean over samples. It is computed for `accumulate` equal parts of the batch, one
    after the other, so that only one part's activations are in memory. Returns the means of all
    losses over the parts.
    """
    optimizer.zero_grad(set_to_none=True)
    chunks = [[None] * accumulate if t is None else t.chunk(accumulate) for t in batch]
    values = []
    for part in zip(*chunks, strict=True):
        losses = loss(*part)
        losses = (losses,) if isinstance(losses, Tensor) else losses
        # This network's gradients only; they are added to those of the previous parts.
        (losses[0] / accumulate).backward(inputs=list(network.parameters()))
        values.append([value.detach() for value in losses])
    distributed.average_gradients(network)
    if grad_clip:
        nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    optimizer.step()
    return [torch.stack(of_parts).mean() for of_parts in zip(*values, strict=True)]


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Compute no gradients of this network's weights inside the block."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
