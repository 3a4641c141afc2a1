"""Many pictures decoded at once: a few by threads, many by processes.

Run as a program, this file is such a process. It loads neither PyTorch nor the program that
started it, and ends when its input does: with its parent, however that one ends.
"""

import math
import os
import pickle
import signal
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from PIL import UnidentifiedImageError

from pictures import PictureSource, Size, picture_to_bytes

ENOUGH_FOR_PROCESSES = 1000  # fewer pictures are decoded before processes would have started
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

    Close it to stop early. OSError where no process can be started.
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
        if len(names) < ENOUGH_FOR_PROCESSES:
            function = partial(decode_here, source, size, grey)
        else:
            function = stack.enter_context(Processes(cores, source, size, grey)).decode
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


# ---------------------------------------------------------------- processes


class Died(Exception):
    """A process ended before its work."""

    def __init__(self, exit_code: int):
        self.exit_code = exit_code


class Processes:
    """Processes that decode, one for each of as many threads; they end with the context."""

    def __init__(self, count: int, source: PictureSource, size: Size, grey: bool):
        self.arguments = (source, size, grey)
        self.idle: SimpleQueue[subprocess.Popen | None] = SimpleQueue()
        for _ in range(count):
            self.idle.put(None)  # started when it is needed, and again after it died
        self.alive: set[subprocess.Popen] = set()
        self.closed = False

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error) -> None:
        self.closed = True
        for process in list(self.alive):
            process.kill()  # by which the thread that waits for it goes on
            process.wait()

    def decode(self, names: list[str]) -> Decoded:
        try:
            return self.attempt(names)
        except Died:  # of one of them: which?
            single = [self.attempt_one(name) for name in names]
            failures = {place: one.failures[0] for place, one in enumerate(single) if one.failures}
            return Decoded(np.concatenate([one.rows for one in single]), failures)

    def attempt_one(self, name: str) -> Decoded:
        try:
            return self.attempt([name])
        except Died as death:
            _, size, grey = self.arguments
            killed = death.exit_code == -signal.SIGKILL  # by a person, or for its memory
            failure = Failure("the decoder was killed" if killed else "the decoder crashed", killed)
            return Decoded(np.empty((0, 1 if grey else 3, *size), np.uint8), {0: failure})

    def attempt(self, names: list[str]) -> Decoded:
        """What a process makes of the pictures, or Died."""
        process = self.idle.get()
        try:
            process = process or self.start()
            try:
                send(process, names)
                return pickle.load(process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError):
                died, process = process, None
                raise Died(self.end(died)) from None
        finally:
            self.idle.put(process)

    def start(self) -> subprocess.Popen:
        if self.closed:
            raise CancelledError
        process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C reaches the parent alone
        )
        self.alive.add(process)
        if self.closed:
            process.kill()
        try:
            send(process, self.arguments)
            pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            self.end(process)
            if self.closed:
                raise CancelledError from None
            raise OSError("the process that decodes pictures does not start") from None
        return process

    def end(self, process: subprocess.Popen) -> int:
        """The exit code that it had, or has now."""
        process.kill()
        with suppress(OSError):  # what it did not read any more
            process.stdin.close()
        process.stdout.close()
        self.alive.discard(process)
        return process.wait()


def send(process: subprocess.Popen, content) -> None:
    pickle.dump(content, process.stdin)
    process.stdin.flush()


def work() -> None:
    """Decode the pictures whose names come by standard input; results go to standard output."""
    tasks, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write among the results
    warnings.simplefilter("ignore")
    source, size, grey = pickle.load(tasks)
    answer: Decoded | str = "ready"
    while True:
        pickle.dump(answer, results, protocol=5)
        results.flush()
        answer = decode_here(source, size, grey, pickle.load(tasks))


if __name__ == "__main__":
    import decoding  # under the name by which the parent knows what is sent to it

    try:
        decoding.work()
    except (EOFError, BrokenPipeError):  # the parent has all it wanted, or is dead
        os._exit(0)
