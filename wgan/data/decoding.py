"""Many pictures decoded at once, by threads: Pillow releases the interpreter lock."""

import math
import os
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import UnidentifiedImageError

from wgan.data.images import PictureSource, Size, picture_to_bytes

CHUNK_PICTURES, CHUNK_BYTES = 64, 2**21  # at a time: at most as many, and about as much
CHUNKS_AHEAD = 8  # for each core, so that none waits while rows are written


class Failure(NamedTuple):
    """Why a picture could not be read, and whether that may pass without its changing."""

    reason: str
    may_pass: bool


class Decoded(NamedTuple):
    """Bytes `(K, C, H, W)` of those pictures that could be read, in the order of their names,
    and why the others could not, by their place among the names."""

    rows: np.ndarray
    failures: dict[int, Failure]


def decode(
    source: PictureSource, names: list[str], size: Size, grey: bool
) -> Iterator[tuple[range, Decoded]]:
    """Decode pictures on all cores, chunk by chunk: which of the names, and what became of them.

    Close it to stop early.
    """
    cores = usable_cores()
    count = min(CHUNK_PICTURES, CHUNK_BYTES // (math.prod(size) * 3), len(names) // (4 * cores))
    starts = range(0, len(names), max(1, count))
    chunks = (range(start, min(start + starts.step, len(names))) for start in starts)
    with ExitStack() as stack:
        # Pillow warns of much that it then reads well; what it cannot read is reported by name.
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        pool = ThreadPoolExecutor(cores, "decoding")
        stack.callback(pool.shutdown, cancel_futures=True)
        function = partial(decode_here, source, size, grey)
        coming: deque = deque()
        for chunk in chunks:
            coming.append((chunk, pool.submit(function, names[chunk.start : chunk.stop])))
            if len(coming) == CHUNKS_AHEAD * cores:
                chunk, decoded = coming.popleft()
                yield chunk, decoded.result()
        for chunk, decoded in coming:
            yield chunk, decoded.result()


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # fewer than there are, where a process is confined
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decode_here(source: PictureSource, size: Size, grey: bool, names: list[str]) -> Decoded:
    rows = np.empty((len(names), 1 if grey else 3, *size), np.uint8)
    failures: dict[int, Failure] = {}
    for place, name in enumerate(names):
        try:
            with source.open(name) as picture:
                rows[place - len(failures)] = picture_to_bytes(picture, size, grey)
        except UnidentifiedImageError:
            failures[place] = Failure("no picture", may_pass=False)
        except Exception as error:  # decoders meet broken files with every kind of exception
            # Decoders raise OSError, too, but only the system numbers its errors.
            may_pass = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
            failures[place] = Failure(f"{type(error).__name__}: {error}", may_pass)
    return Decoded(rows[: len(names) - len(failures)], failures)
