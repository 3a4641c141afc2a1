"""Random numbers that depend only on a seed and their purpose, whatever else was drawn before."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

DRAWN_ROWS = 64  # by one random generator


def seeded_generator(device: torch.device | str, seed: int, *purpose: int | str) -> torch.Generator:
    """A random generator that depends only on the seed and its purpose."""
    words = [seed]
    for word in purpose:
        words.append(word if isinstance(word, int) else int.from_bytes(word.encode(), "little"))
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state))


def draw_rows(
    draw: Callable[[torch.Generator, int], Sequence[Tensor]],
    rows: slice,
    total: int,
    device: torch.device,
    seed: int,
    *purpose: int | str,
) -> list[Tensor]:
    """Some of `total` random rows, which are the same for any number of ranks.

    `draw(rng, count)` returns tensors `(count, ...)`, drawn with the random generator `rng` on the
    device. Each block of `DRAWN_ROWS` rows has a random generator of its own, so that a rank draws
    only the blocks that contain its rows.
    """
    parts = []
    for start in range(rows.start - rows.start % DRAWN_ROWS, rows.stop, DRAWN_ROWS):
        rng = seeded_generator(device, seed, *purpose, start)
        block = draw(rng, min(DRAWN_ROWS, total - start))
        parts.append([drawn[max(0, rows.start - start) : rows.stop - start] for drawn in block])
    return [torch.cat(drawn) for drawn in zip(*parts, strict=True)]
