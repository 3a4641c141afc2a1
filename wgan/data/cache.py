"""The prepared cache of a folder: the bytes of its images in one size.

The cache of a folder is `<data root>/prepared/<folder>-<shape>-<hash>/`. A hash of an image's name
assigns it to one of up to 1,024 buckets, and each bucket is one file:

    rows      the bytes (C, H, W) of the readable images, in the order of their names
    manifest  JSON: which images these are, why others could not be read, the ranges of deep images
    footer    the length of the manifest and its SHA-256

If images are added, changed or removed, their buckets are written again; rows of other images are
copied from the outdated files. The order of the samples is bucket by bucket, so that it depends
only on the files in the folder, and not on when they were added. A file is written under a
temporary name and never changes: its name contains the manifest's hash, so that a process that
still reads an outdated file finds the same images in it.

Deep images, of more than 8 bits, need a scale, and all of them have the same: from the smallest to
the largest of their values. The first deep image stops the decoding until all values are known.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import Timeout
from PIL import UnidentifiedImageError
from tqdm import tqdm

from wgan.data.batches import RowReader
from wgan.data.images import (
    AUTOMATIC,
    INSTALL_HEIF,
    Range,
    Size,
    empty_bytes,
    image_to_bytes,
    is_deep,
    is_drawn_here,
    value_range,
)
from wgan.data.sources import FolderSource, ImageFile, LsunSource
from wgan.files import acquire_lock, format_size

VERSION = 4  # increase it if the images' bytes change, so that existing caches are made again
IMAGES_PER_BUCKET, MAX_BUCKETS = 16, 1024
FOOTER = struct.Struct("<Q32s")
NO_SPACE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
ADVICE = "Free some space, or use another --data-root or a smaller --image-size"


@dataclass(frozen=True)
class Images:
    """The bytes of the readable images, their names, by name why others are unreadable, a digest of
    the names and sizes of their files, and the scale of deep images, if there are any."""

    samples: RowReader
    names: list[str]
    unreadable: dict[str, str]
    digest: str
    scale: Range | None = None


class Failure(NamedTuple):
    """Why an image could not be read, and whether a later attempt may succeed."""

    reason: str
    transient: bool


class UnknownRange(Exception):
    """A deep image was found whose values are not part of the scale."""


@dataclass(frozen=True)
class Bucket:
    """The images of a bucket, by name the failures among them and the ranges of deep ones (None: no
    values), the scale of deep ones, and the bucket's file, if any."""

    images: list[ImageFile]
    failures: dict[str, Failure]
    ranges: dict[str, Range | None]
    scale: Range | None
    path: Path | None = None

    @property
    def names(self) -> list[str]:
        """The names of the readable images, in the order of the rows."""
        return [image.name for image in self.images if image.name not in self.failures]


class FolderCache:
    """The images of a source in one size, kept in files below a data root.

    The scale of deep images is `given_range`, or found from all of them.
    """

    def __init__(
        self,
        source: FolderSource | LsunSource,
        root: Path,
        size: Size,
        grey: bool,
        given_range: Range = AUTOMATIC,
        alpha: bool = False,
    ):
        self.source, self.size, self.grey, self.alpha = source, size, grey, alpha
        self.given_range = None if given_range == AUTOMATIC else tuple(given_range)
        self.scale = self.given_range
        self.ranges: dict[ImageFile, Range | None] = {}  # of deep images
        self.shape = (4 if alpha else 1 if grey else 3, *size)
        self.row_bytes = math.prod(self.shape)
        path, self.shape_text = source.path.resolve(), "x".join(map(str, self.shape))
        key = f"{path}\0{self.shape_text}\0{self.given_range}\0{source.is_output}"
        digest = hashlib.sha256(encode(key)).hexdigest()
        self.folder = root / "prepared" / f"{path.name[:40]}-{self.shape_text}-{digest[:12]}"
        self.stopped = threading.Event()
        self.known: dict[ImageFile, tuple[Path, int] | Failure] = {}  # in outdated buckets

    def load(self) -> Images:
        """Prepare new and changed images, and return all of them.

        If the cache cannot be written, the images are decoded into memory. Raises ValueError,
        with what to do, if the disk or the memory is too small.
        """
        buckets = group(self.source.list())
        found, _ = self.find(buckets)
        if len(found) == len(buckets):  # neither the lock nor write access is needed
            return self.in_files(found)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            message = f"waiting for another process to prepare {self.source.path}"
            with wait_for_lock(self.folder / "lock", message):
                return self.in_files(self.update())
        except KeyboardInterrupt:
            message = "stopped preparing images; run the same command to continue"
            print(message, file=sys.stderr)
            raise
        except OSError as error:
            if error.errno in NO_SPACE:
                raise ValueError(
                    f"the disk is full: preparing {self.source.path} in {self.folder} stopped "
                    f"({error}). {ADVICE}, and run the same command to continue"
                ) from error
            print(
                f"cannot cache the images of {self.source.path} for the next start, decoding them "
                f"into memory: {error}",
                file=sys.stderr,
            )
            return self.in_memory(buckets)

    def update(self) -> dict[int, Bucket]:
        """Prepare missing and outdated buckets, and remove the files that are not needed."""
        buckets = group(self.source.list())  # again, as waiting for the lock may take long
        found, outdated = self.find(buckets)
        changed = len(found) < len(buckets)
        while missing := {n: buckets[n] for n in buckets if n not in found}:
            self.known = self.known_images(outdated)
            self.check_disk(missing, count_images(buckets))
            try:
                found |= self.in_threads(self.write_bucket, missing, count_images(buckets))
            except UnknownRange:
                self.measure(missing)
                found, outdated = self.find(buckets)
        if changed:
            needed = {bucket.path for bucket in found.values()} | {self.folder / "lock"}
            for path in set(self.folder.iterdir()) - needed:
                with suppress(OSError):  # Windows does not remove a file that is being read
                    path.unlink()
        return found

    def find(self, buckets: dict[int, list[ImageFile]]) -> tuple[dict[int, Bucket], list[Bucket]]:
        """The buckets whose files are up to date, by number, and the intact but outdated ones. This
        decides the scale of deep images."""
        intact = self.read_buckets()
        self.ranges |= {
            image: bucket.ranges[image.name]
            for _, bucket in intact
            if bucket.ranges
            for image in bucket.images
            if image.name in bucket.ranges
        }
        self.set_scale(buckets)
        found, outdated = {}, []
        for number, bucket in intact:
            current = buckets.get(number) == bucket.images and self.has_scale(bucket)
            if current and not self.can_read_more(bucket):
                found[number] = bucket
            else:
                outdated.append(bucket)
        return found, outdated

    def read_buckets(self) -> list[tuple[int, Bucket]]:
        """The numbers and contents of all intact files."""
        intact = []
        for path in self.folder.glob("*.rows"):
            with suppress(
                ValueError, OSError, OverflowError, LookupError, TypeError, AttributeError
            ):
                intact.append(self.read_bucket(path))
        return intact

    def has_scale(self, bucket: Bucket) -> bool:
        """Whether deep images of the bucket, if there are any, have today's scale."""
        return not bucket.ranges or bucket.scale == self.scale

    def set_scale(self, buckets: dict[int, list[ImageFile]]) -> None:
        """Decide the scale of deep images from the ranges that are known so far."""
        if self.given_range is None:
            files = (image for images in buckets.values() for image in images)
            known = list(filter(None, map(self.ranges.get, files))) if self.ranges else []
            lows, highs = zip(*known, strict=True) if known else ([0.0], [0.0])
            self.scale = (min(lows), max(highs))

    def measure(self, buckets: dict[int, list[ImageFile]]) -> None:
        """Find the ranges of deep images, except of those in outdated buckets."""
        message = "found images of more than 8 bits: measuring their values, then starting again"
        print(message, file=sys.stderr)

        def measure_bucket(number: int, images: list[ImageFile]) -> None:
            for image in images:
                if self.stopped.is_set():
                    raise CancelledError
                if image not in self.known and image not in self.ranges:
                    with suppress(Exception), self.source.open(image.name) as opened:
                        if is_deep(opened):
                            self.ranges[image] = value_range(opened)

        self.in_threads(measure_bucket, buckets, count_images(buckets), "measuring images")

    def known_images(self, outdated: list[Bucket]) -> dict[ImageFile, tuple[Path, int] | Failure]:
        """Where the rows of images are in outdated buckets, and why others cannot be read."""
        known: dict[ImageFile, tuple[Path, int] | Failure] = {}
        for bucket in outdated:
            row = 0
            for image in bucket.images:
                failure = bucket.failures.get(image.name)
                if failure is None:
                    if image.name not in bucket.ranges or bucket.scale == self.scale:
                        known[image] = (bucket.path, row)
                    row += 1
                elif not failure.transient:
                    known[image] = failure
        return known

    def can_read_more(self, bucket: Bucket) -> bool:
        """Whether an image that could not be read for a transient reason can be read now."""
        failed = {name for name, failure in bucket.failures.items() if failure.transient}
        results = map(self.decode, (image for image in bucket.images if image.name in failed))
        return not all(isinstance(result, Failure) and result.transient for result in results)

    def check_disk(self, missing: dict[int, list[ImageFile]], count: int) -> None:
        """Print how much will be written; ValueError if the disk is too small for it."""
        needed = count_images(missing) * self.row_bytes
        free = shutil.disk_usage(self.folder).free
        new = sum(image not in self.known for images in missing.values() for image in images)
        some = f"{new:,} new of " if new < count else ""
        print(
            f"preparing {some}{count:,} images of {self.source.path} as {self.shape_text}: "
            f"{format_size(needed)} in {self.folder}, {format_size(free)} free",
            file=sys.stderr,
        )
        if needed > free:
            raise ValueError(
                f"the images need {format_size(needed)} of disk in {self.folder}, and only "
                f"{format_size(free)} are free. {ADVICE}"
            )

    def write_bucket(self, number: int, images: list[ImageFile]) -> Bucket:
        """Decode a bucket's images into its file, row by row."""
        temporary = self.folder / f"{number:04}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as file:
                failures = self.decode_all(images, file.write)
                ranges = self.ranges_of(images)
                content = {"bucket": number, "images": images, "failures": failures}
                content |= {"version": VERSION, "shape": self.shape}
                content |= {"ranges": ranges, "scale": self.scale if ranges else None}
                manifest = json.dumps(content).encode()
                digest = hashlib.sha256(manifest)
                file.write(manifest + FOOTER.pack(len(manifest), digest.digest()))
                file.flush()
                os.fsync(file.fileno())
            path = self.folder / f"{number:04}-{digest.hexdigest()[:12]}.rows"
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return Bucket(images, failures, ranges, self.scale, path)

    def ranges_of(self, images: list[ImageFile]) -> dict[str, Range | None]:
        return {image.name: self.ranges[image] for image in images if image in self.ranges}

    def read_bucket(self, path: Path) -> tuple[int, Bucket]:
        """A bucket's number and content; ValueError if the file is corrupt or of another version.

        Only the end of the file is read: bytes of a row that have changed are not noticed.
        """
        with open(path, "rb") as file:
            end = file.seek(-FOOTER.size, os.SEEK_END)
            length, digest = FOOTER.unpack(file.read())
            start = file.seek(end - length)
            manifest = file.read(length)
        if hashlib.sha256(manifest).digest() != digest:
            raise ValueError(f"{path} is corrupt")
        content = json.loads(manifest)
        if (content["version"], tuple(content["shape"])) != (VERSION, self.shape):
            raise ValueError(f"{path} is of another version")
        images = [ImageFile(*image) for image in content["images"]]
        failures = {name: Failure(*failure) for name, failure in content["failures"].items()}
        ranges = {name: found and tuple(found) for name, found in content["ranges"].items()}
        scale = content["scale"] and tuple(content["scale"])
        bucket = Bucket(images, failures, ranges, scale, path)
        if start != len(bucket.names) * self.row_bytes:
            raise ValueError(f"{path} is corrupt")
        return content["bucket"], bucket

    def in_files(self, buckets: dict[int, Bucket]) -> Images:
        ordered = [buckets[number] for number in sorted(buckets)]
        counts = [len(bucket.names) for bucket in ordered]
        files = [bucket.path for bucket in ordered]
        return to_images(RowReader.from_files(files, counts, self.shape), ordered)

    def in_memory(self, buckets: dict[int, list[ImageFile]]) -> Images:
        """Decode all images without a cache, in the same order."""
        try:
            return self.decode_into_memory(buckets)
        except UnknownRange:
            self.measure(buckets)
            self.set_scale(buckets)
            self.known = {}  # they may have another scale
            return self.decode_into_memory(buckets)

    def decode_into_memory(self, buckets: dict[int, list[ImageFile]]) -> Images:
        count = count_images(buckets)
        samples = empty_bytes((count, *self.shape))
        ends = np.cumsum([len(images) for images in buckets.values()])
        rows = dict(zip(buckets, np.split(samples, ends[:-1]), strict=True))  # views

        def decode_bucket(number: int, images: list[ImageFile]) -> Bucket:
            free = iter(rows[number])
            failures = self.decode_all(images, lambda row: np.copyto(next(free), row))
            return Bucket(images, failures, self.ranges_of(images), self.scale)

        decoded = self.in_threads(decode_bucket, buckets, count)
        end = 0
        for number, bucket in decoded.items():  # close the gaps that unreadable images left
            start, end = end, end + len(bucket.names)
            samples[start:end] = rows[number][: end - start]
        return to_images(RowReader.from_array(samples[:end]), decoded.values())

    def in_threads(
        self,
        function: Callable[[int, list[ImageFile]], Bucket | None],
        buckets: dict[int, list[ImageFile]],
        count: int,
        title: str = "preparing images",
    ) -> dict:
        """Call `function(number, images)` for each bucket, with a progress bar of `count` images.

        Threads suffice, because Pillow releases the interpreter lock.
        """
        options = {"unit": "image", "delay": 2, "leave": False, "disable": None}
        done = count - count_images(buckets)
        results = {}
        self.stopped.clear()
        with (
            tqdm(desc=title, total=count, initial=done, **options) as bar,
            # Pillow warns of much that it then reads well; failures are reported by name.
            warnings.catch_warnings(action="ignore"),
            ThreadPoolExecutor(thread_count(), "images") as pool,
        ):
            futures = {n: pool.submit(function, n, images) for n, images in buckets.items()}
            try:
                for number, future in futures.items():
                    results[number] = future.result()
                    bar.update(len(buckets[number]))
            finally:
                self.stopped.set()
                pool.shutdown(cancel_futures=True)
        return results

    def decode_all(
        self, images: list[ImageFile], write: Callable[[np.ndarray], object]
    ) -> dict[str, Failure]:
        """Decode images in order, and write those that can be read; returns the failures.

        Raises UnknownRange for a deep image whose range is unknown.
        """
        failures: dict[str, Failure] = {}
        for image in images:
            if self.stopped.is_set():
                raise CancelledError
            result = self.copy(image)
            if result is None:
                result = self.decode(image)
            if result is None:
                raise UnknownRange
            if isinstance(result, Failure):
                failures[image.name] = result
            else:
                write(result)
        return failures

    def copy(self, image: ImageFile) -> "np.ndarray | Failure | None":
        """The bytes of an image in an outdated bucket, or why it is unreadable; None if unknown."""
        known = self.known.get(image)
        if known is None or isinstance(known, Failure):
            return known
        path, row = known
        try:
            offset = row * self.row_bytes
            return np.fromfile(path, np.uint8, self.row_bytes, offset=offset).reshape(self.shape)
        except (OSError, ValueError):  # removed or cut short since it was found
            return None

    def decode(self, file: ImageFile) -> np.ndarray | Failure | None:
        """The bytes of an image, or why it cannot be read; None if it is deep and its range is
        unknown."""
        try:
            with self.source.open(file.name) as image:
                if is_drawn_here(image) and not self.source.is_output:
                    return Failure("drawn by this project", transient=False)
                if is_deep(image) and file not in self.ranges:
                    if self.given_range is None:
                        return None
                    self.ranges[file] = None
                return image_to_bytes(image, self.size, self.grey, self.scale, self.alpha)
        except UnidentifiedImageError as error:
            return Failure(str(error), transient=str(error) == INSTALL_HEIF)
        except Exception as error:  # decoders raise all kinds of exceptions for broken files
            # Decoders also raise OSError, but only the operating system's have a number.
            transient = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
            return Failure(f"{type(error).__name__}: {error}", transient)


def group(images: list[ImageFile]) -> dict[int, list[ImageFile]]:
    """The images of each bucket that is not empty, by its number and in order.

    The number of buckets is a power of two, so that it rarely changes with the number of images.
    """
    exponent = round(math.log2(max(1, len(images)) / IMAGES_PER_BUCKET))
    count = min(2 ** max(0, exponent), MAX_BUCKETS)
    buckets: dict[int, list[ImageFile]] = {}
    for image in images:
        buckets.setdefault(zlib.crc32(encode(image.name)) % count, []).append(image)
    return dict(sorted(buckets.items()))


def count_images(buckets: dict[int, list[ImageFile]]) -> int:
    return sum(len(images) for images in buckets.values())


def to_images(samples: RowReader, buckets: Collection[Bucket]) -> Images:
    names = [name for bucket in buckets for name in bucket.names]
    digest = hashlib.sha256()
    for bucket in buckets:
        readable = [image[:2] for image in bucket.images if image.name not in bucket.failures]
        digest.update(json.dumps(readable).encode())
    failures = sorted(failure for bucket in buckets for failure in bucket.failures.items())
    unreadable = {name: failure.reason for name, failure in failures}
    scale = next((bucket.scale for bucket in buckets if bucket.ranges), None)
    return Images(samples, names, unreadable, digest.hexdigest(), scale)


def thread_count() -> int:
    """Two more than the cores that this process may use, as some threads wait for the disk."""
    confined = hasattr(os, "sched_getaffinity")
    return 2 + (len(os.sched_getaffinity(0)) if confined else os.cpu_count() or 1)


def wait_for_lock(path: Path, message: str) -> ExitStack:
    """`acquire_lock`, printing the message before waiting for another process."""
    try:
        return acquire_lock(path, timeout=0)
    except Timeout:
        print(message, file=sys.stderr, flush=True)
        return acquire_lock(path)


def encode(name: str) -> bytes:
    """A file's name as bytes, the same on every system; it may contain lone surrogates."""
    return name.encode("utf-8", "surrogatepass")
