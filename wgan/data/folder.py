"""A source of pictures as one memory-mapped array, made once and kept up to date.

In `<data root>/prepared/<folder>-<shape>-<hash>/`:

manifest.npz            which pictures the finished array holds; writing it finishes the array
rows-2                  the finished array: bytes (N, C, H, W) and nothing else
part.npz                while preparing: which pictures the next array is to hold
rows-3                  that array, so far
journal-3               what of it is safely on the disk: a line of JSON after each sync
lock                    held by the process that prepares

The array is in the order of the names, with the last rows moved into the places of pictures
that cannot be read: it does not show in which steps it came about.
"""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from wgan.data.decoding import Failure, decode
from wgan.data.images import Listing, PictureSource, Size, empty_bytes
from wgan.files import wait_for_lock, write_whole

VERSION = 1  # count it up when the pictures' bytes change, and old arrays are made anew
SECONDS_BETWEEN_SYNCS = 2.0  # as much work is lost by a kill
COPIED_BYTES = 2**23  # at a time
NO_SPACE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True)
class Pictures:
    """Bytes `(N, C, H, W)`, the name of each, and by name why others could not be read."""

    samples: np.ndarray
    names: list[str]
    unreadable: dict[str, str]


def prepare(source: PictureSource, size: Size, grey: bool, root: Path) -> Pictures:
    """All pictures of a source, as a map of the array below `root`, which is made or brought up
    to date first. Where nothing can be written there, they are decoded into memory.

    ValueError, saying what to do, where the disk is too small, or the memory.
    """
    return Preparation(source, size, grey, root).pictures()


def prepared_folder(root: Path) -> Path:
    return root / "prepared"


# ---------------------------------------------------------------- the files


class Unusable(Exception):
    """A file is damaged, or not what it should be."""


@dataclass
class Array:
    """An array's file, finished or not, and which pictures are in it."""

    file: Path
    listing: Listing
    rows: np.ndarray  # (N,) the row of each picture that is listed, or -1
    failures: dict[int, Failure]  # by place in the listing

    def note(self, done: list[int], failures: dict[int, Failure]) -> None:
        """While it is made, each picture's row is its place in the listing."""
        self.rows[done] = done
        self.failures |= failures
        for place in self.failures.keys() & set(done):  # it could be read at last
            del self.failures[place]


def arrange(count: int, unreadable: Iterable[int]) -> np.ndarray:
    """Which of `count` pictures lies in each row of a finished array."""
    readable = np.ones(count, bool)
    readable[list(unreadable)] = False
    kept = readable.sum()
    order = np.arange(kept)
    order[~readable[:kept]] = kept + np.flatnonzero(readable[kept:])
    return order


def pack_listing(array: Array, shape: tuple[int, ...], failures: dict[int, Failure]) -> bytes:
    """The content of `manifest.npz` and `part.npz`."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        version=VERSION,
        shape=shape,
        rows=array.file.name,
        # A file's name may hold line ends, and bytes that are no UTF-8, but no zero.
        names=np.frombuffer(os.fsencode("\0".join(array.listing.names)), np.uint8),
        stamps=array.listing.stamps,
        failures=np.frombuffer(json.dumps(failures).encode(), np.uint8),
    )
    return buffer.getvalue()


def unpack_listing(
    path: Path, shape: tuple[int, ...]
) -> tuple[Path, Listing, dict[int, Failure]] | None:
    """The array's file, listing and failures; None without such a file, Unusable if damaged."""
    try:
        with np.load(path) as arrays:  # a zip file: damage shows in its checksums
            fits = arrays["version"] == VERSION and tuple(arrays["shape"]) == shape
            file = path.with_name(str(arrays["rows"]))
            text, stamps = os.fsdecode(arrays["names"].tobytes()), arrays["stamps"]
            listing = Listing(text.split("\0") if text else [], stamps)
            failures = json.loads(arrays["failures"].tobytes())
            failures = {int(place): Failure(*why) for place, why in failures.items()}
    except FileNotFoundError:
        return None
    except Exception as error:  # what is no such file may be anything
        raise Unusable(f"{path} is damaged or cannot be read ({error})") from error
    if not fits or stamps.shape != (len(listing.names), 2):
        raise Unusable(f"{path} is of another version")
    return file, listing, failures


class Writer:
    """Writes an array that is not finished. What is on the disk is noted at each sync.

    Not through a map of the file, by which a full disk would be a signal and no error.
    """

    def __init__(self, array: Array, journal: Path, row: int):
        self.array, self.row = array, row
        self.file = open(array.file, "r+b", buffering=0)
        self.journal = open(journal, "ab")
        self.journal.write(b"\n")  # after a line that was cut off
        self.synced = time.monotonic()
        self.done: list[int] = []  # since then, like the failures
        self.failures: dict[int, Failure] = {}

    def put(self, places: np.ndarray, rows: np.ndarray) -> None:
        for run in runs(places):
            write_at(self.file, places[run[0]] * self.row, rows[run[0] : run[-1] + 1])
        self.done += places.tolist()
        if time.monotonic() - self.synced > SECONDS_BETWEEN_SYNCS:
            self.sync()

    def fail(self, failures: dict[int, Failure]) -> None:
        self.failures |= failures

    def copy(self, places: np.ndarray, other: Array, rows: np.ndarray) -> Iterator[int]:
        """Copy those rows of another array to these places; yields how many at a time."""
        most = max(1, COPIED_BYTES // self.row)
        with open(other.file, "rb", buffering=0) as file:
            for run in runs(places, rows):
                for part in np.split(run, range(most, len(run), most)):
                    content = read_at(file, rows[part[0]] * self.row, len(part) * self.row)
                    write_at(self.file, places[part[0]] * self.row, content)
                    yield len(part)
        self.done += places.tolist()

    def sync(self) -> None:
        """Note what was written; never before it is on the disk."""
        os.fsync(self.file.fileno())
        self.array.note(self.done, self.failures)
        line = json.dumps({"done": self.done, "failures": self.failures})
        self.journal.write(line.encode() + b"\n")
        self.journal.flush()
        self.done, self.failures, self.synced = [], {}, time.monotonic()

    def close(self) -> None:
        self.file.close()
        self.journal.close()


def read_journal(path: Path, array: Array) -> None:
    """Enter into the array what a `Writer` noted."""
    count = len(array.listing.names)
    for line in path.read_bytes().splitlines():
        try:
            noted = json.loads(line)
            done = np.array(noted["done"], np.int64)
            failures = {int(place): Failure(*why) for place, why in noted["failures"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):  # cut off
            continue
        places = np.append(done, np.fromiter(failures, np.int64))
        if ((places >= 0) & (places < count)).all():
            array.note(done.tolist(), failures)


def runs(*places: np.ndarray) -> list[np.ndarray]:
    """The indices of `places`, split where one of them does not go on by 1."""
    if not len(places[0]):
        return []
    breaks = np.any([np.diff(part) != 1 for part in places], axis=0)
    return np.split(np.arange(len(places[0])), np.flatnonzero(breaks) + 1)


def write_at(file: BinaryIO, offset: int, content) -> None:
    left = memoryview(np.ascontiguousarray(content)).cast("B")
    file.seek(offset)
    while left:
        left = left[file.write(left) :]  # a disk that is almost full takes a part


def read_at(file: BinaryIO, offset: int, count: int) -> np.ndarray:
    content = np.empty(count, np.uint8)
    left = memoryview(content)
    file.seek(offset)
    while left:
        taken = file.readinto(left)
        if not taken:
            raise OSError(f"{file.name} has become shorter")
        left = left[taken:]
    return content


# ---------------------------------------------------------------- the work


class Preparation:
    """The folder that keeps a source's pictures in one size, and the work on it."""

    def __init__(self, source: PictureSource, size: Size, grey: bool, root: Path):
        self.source, self.size, self.grey = source, size, grey
        self.shape = (1 if grey else 3, *size)
        self.row = math.prod(self.shape)  # bytes
        path = source.path.resolve()
        shape = "x".join(map(str, self.shape))
        digest = hashlib.sha256(os.fsencode(f"{path}\0{shape}")).hexdigest()
        self.folder = prepared_folder(root) / f"{path.name[:40]}-{shape}-{digest[:12]}"
        self.manifest, self.part = self.folder / "manifest.npz", self.folder / "part.npz"

    def pictures(self) -> Pictures:
        listing = self.source.list()
        if not listing.names:
            return Pictures(np.empty((0, *self.shape), np.uint8), [], {})
        try:  # without the lock, for which a folder must be writable
            array = self.finished()
            if self.is_current(array, listing):
                return self.mapped(array)
        except (Unusable, OSError):  # said and mended below
            pass
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            message = f"another process prepares {self.source.path}: waiting for it"
            lock = wait_for_lock(self.folder, message)
        except OSError as error:
            print(
                f"cannot keep the pictures of {self.source.path} for the next start, and decodes "
                f"them into memory: {error}",
                file=sys.stderr,
            )
            return self.decode_into_memory(listing)
        with lock:
            try:
                return self.mapped(self.bring_up_to_date())
            except KeyboardInterrupt:
                print("stopped preparing; the same command goes on from there", file=sys.stderr)
                raise
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                raise ValueError(
                    f"the disk became full while {self.source.path} was prepared in {self.folder} "
                    f"({error.strerror}): {self.remedies()}. The same command goes on from there"
                ) from error

    def bring_up_to_date(self) -> Array:
        """The finished array, which may have been made while this process waited."""
        listing = self.source.list()
        finished, part = self.said(self.finished), self.said(self.unfinished)
        if finished and part and part.file == finished.file:  # it was finished, and not tidied up
            part = None
        if self.is_current(finished, listing):
            return finished
        self.remove_all_but(finished, part)
        if part and part.listing == listing:
            left = (part.rows < 0).sum()
            self.check_disk(listing, left, left)
        else:
            part = self.begin(listing, [array for array in (finished, part) if array])
        self.decode_rest(part)
        self.finish(part)
        return self.finished()

    def said(self, read) -> Array | None:
        """An array that can be used. If it cannot, that is said."""
        try:
            return read()
        except Unusable as error:
            print(f"{error}; the pictures are prepared anew", file=sys.stderr)
            return None

    # ------------------------------------------------------------ what is there

    def journal_of(self, array: Array) -> Path:
        return self.folder / array.file.name.replace("rows", "journal")

    def finished(self) -> Array | None:
        """The finished array; None if there is none, Unusable where it is damaged."""
        found = unpack_listing(self.manifest, self.shape)
        if found is None:
            return None
        file, listing, failures = found
        order = arrange(len(listing.names), failures)
        rows = np.full(len(listing.names), -1)
        rows[order] = np.arange(len(order))
        if not file.is_file() or file.stat().st_size < len(order) * self.row:
            raise Unusable(f"{file} is missing or cut short")
        return Array(file, listing, rows, failures)

    def unfinished(self) -> Array | None:
        """The array that an interrupted preparation has begun; None if there is none."""
        found = unpack_listing(self.part, self.shape)
        if found is None:
            return None
        file, listing, failures = found
        array = Array(file, listing, np.full(len(listing.names), -1), failures)
        try:
            read_journal(self.journal_of(array), array)
            if array.file.stat().st_size < (array.rows.max() + 1) * self.row:
                raise Unusable(f"{array.file} is cut short")
        except FileNotFoundError as error:
            raise Unusable(f"{error.filename} is missing") from error
        return array

    def is_current(self, array: Array | None, listing: Listing) -> bool:
        """Whether the array holds just these pictures, and none more could be read by now."""
        if array is None or array.listing != listing:
            return False
        again = [listing.names[place] for place, why in array.failures.items() if why.may_pass]
        with closing(decode(self.source, again, self.size, self.grey)) as chunks:
            return all(
                not len(decoded.rows) and all(why.may_pass for why in decoded.failures.values())
                for _, decoded in chunks
            )

    def mapped(self, array: Array) -> Pictures:
        count = (array.rows >= 0).sum()
        shape = (count, *self.shape)
        if count:
            samples = np.memmap(array.file, np.uint8, "r", shape=shape)
        else:  # which cannot be mapped
            samples = np.empty(shape, np.uint8)
        return in_order(samples, array.listing, array.failures)

    # ------------------------------------------------------------ making the next array

    def begin(self, listing: Listing, others: list[Array]) -> Array:
        """The next array, with what other arrays hold of the same pictures."""
        before = [same_pictures(listing, other.listing) for other in others]
        known = np.any([places >= 0 for places in before], axis=0) if others else np.zeros(1, bool)
        self.check_disk(listing, len(listing.names), len(listing.names) - known.sum())
        numbers = (int(path.name.split("-")[1]) for path in self.folder.glob("rows-*"))
        file = self.folder / f"rows-{max(numbers, default=0) + 1}"
        array = Array(file, listing, np.full(len(listing.names), -1), {})
        file.touch()
        with (
            closing(Writer(array, self.journal_of(array), self.row)) as writer,
            progress("copying known pictures", known.sum()) as bar,
        ):
            for other, places in zip(others, before, strict=True):
                here = np.flatnonzero((places >= 0) & (array.rows < 0) & (other.rows[places] >= 0))
                for count in writer.copy(here, other, other.rows[places[here]]):
                    bar.update(count)
                for place in np.flatnonzero(places >= 0).tolist():
                    why = other.failures.get(int(places[place]))
                    if why and not why.may_pass:
                        writer.fail({place: why})
                writer.sync()
        write_whole(self.part, pack_listing(array, self.shape, {}))
        return array

    def decode_rest(self, array: Array) -> None:
        waiting = array.rows < 0
        waiting[[place for place, why in array.failures.items() if not why.may_pass]] = False
        with (
            closing(Writer(array, self.journal_of(array), self.row)) as writer,
            closing(self.decoded(array.listing, np.flatnonzero(waiting))) as parts,
        ):
            try:
                for places, rows, failures in parts:
                    writer.put(places, rows)
                    writer.fail(failures)
            finally:
                writer.sync()

    def decoded(
        self, listing: Listing, places: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, Failure]]]:
        """Decode the pictures at those places of the listing, part by part: which could be read,
        their bytes, and why others could not."""
        names = [listing.names[place] for place in places]
        with (
            progress("preparing pictures", len(listing.names), len(names)) as bar,
            closing(decode(self.source, names, self.size, self.grey)) as chunks,
        ):
            for chunk, (rows, failures) in chunks:
                here = places[chunk.start : chunk.stop]
                by_place = {int(here[index]): why for index, why in failures.items()}
                yield np.delete(here, list(failures)), rows, by_place
                bar.update(len(here))

    def finish(self, array: Array) -> None:
        order = arrange(len(array.rows), array.failures)
        with open(array.file, "r+b", buffering=0) as file:
            for row in np.flatnonzero(order != np.arange(len(order))):
                write_at(file, row * self.row, read_at(file, order[row] * self.row, self.row))
            os.fsync(file.fileno())
        write_whole(self.manifest, pack_listing(array, self.shape, array.failures))
        os.truncate(array.file, len(order) * self.row)
        self.remove_all_but(array, None)

    def remove_all_but(self, finished: Array | None, part: Array | None) -> None:
        keep = set()
        if finished:
            keep |= {self.manifest, finished.file}
        if part:
            keep |= {self.part, part.file, self.journal_of(part)}
        for kind in ("manifest", "part", "rows", "journal"):
            for path in set(self.folder.glob(f"{kind}*")) - keep:
                with suppress(OSError):  # Windows keeps a file that another process has mapped
                    path.unlink()

    def check_disk(self, listing: Listing, rows: int, unknown: int) -> None:
        """Say what will be written; ValueError where the disk is too small for it."""
        needed, free = int(rows) * self.row, shutil.disk_usage(self.folder).free
        count, shape = len(listing.names), "x".join(map(str, self.shape))
        some = f" ({unknown:,} of them to be read)" if unknown < count else ""
        print(
            f"preparing {count:,} pictures of {self.source.path} as {shape}{some}: "
            f"{in_words(needed)} in {self.folder}, where {in_words(free)} are free",
            file=sys.stderr,
        )
        if needed > free:
            raise ValueError(
                f"{in_words(needed)} of disk are needed in {self.folder}, and {in_words(free)} are "
                f"free: {self.remedies()}"
            )

    def remedies(self) -> str:
        older = any(self.folder.glob("rows-*"))
        also = " (what was prepared before may be deleted there)" if older else ""
        return f"free some space{also}, or give another --data-root or a smaller --image-size"

    def decode_into_memory(self, listing: Listing) -> Pictures:
        count = len(listing.names)
        samples, failures = empty_bytes((count, *self.shape)), {}
        with closing(self.decoded(listing, np.arange(count))) as parts:
            for places, rows, failed in parts:
                samples[places] = rows
                failures |= failed
        order = arrange(count, failures)
        moved = np.flatnonzero(order != np.arange(len(order)))
        samples[moved] = samples[order[moved]]
        return in_order(samples[: len(order)], listing, failures)


def in_order(samples: np.ndarray, listing: Listing, failures: dict[int, Failure]) -> Pictures:
    """Arranged bytes with the names that belong to them."""
    names = [listing.names[place] for place in arrange(len(listing.names), failures)]
    unreadable = {listing.names[place]: failures[place].reason for place in sorted(failures)}
    return Pictures(samples, names, unreadable)


def same_pictures(listing: Listing, other: Listing) -> np.ndarray:
    """At which place of the other listing the same picture is, unchanged, or -1: `(N,)`."""
    places = {name: place for place, name in enumerate(other.names)}
    same = np.array([places.get(name, -1) for name in listing.names], np.int64)
    if len(other.names):
        same[(other.stamps[same] != listing.stamps).any(1)] = -1
    return same


def progress(text: str, total: int, left: int | None = None) -> tqdm:
    done = 0 if left is None else total - left
    options = {"delay": 2, "leave": False, "disable": None}
    return tqdm(desc=text, total=total, initial=done, unit="picture", **options)


def in_words(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
