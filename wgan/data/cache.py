"""The prepared cache of a folder or a zip archive: the bytes of its images in one size.

The cache of a folder is `<data root>/prepared/<folder>-<shape>-<hash>/`. A hash of an image's name
assigns it to one of up to 1,024 buckets, and each bucket is one file:

    rows      the bytes (C, H, W) of the readable images, in the order of their names
    manifest  JSON: the rows' SHA-256, the images, why some are unreadable, the values of deep ones
    footer    the length of the manifest and its SHA-256

If images are added, changed or removed, their buckets are written again; rows of other images are
copied from the outdated files. The order of the samples is bucket by bucket, so that it depends
only on the files in the folder, and not on when they were added. A file is written under a
temporary name and never changes: its name contains the manifest's hash, so that a process that
still reads an outdated file finds the same images in it.

Deep images, of more than 8 bits, need a scale, and all of them have the same: from the minimum to
the maximum of their values. New files are therefore opened once before they are decoded.
`options.range` replaces that scale. If there are no deep images, it is the scale of the others.
"""

import hashlib
import json
import math
import os
import shutil
import struct
import sys
import threading
import unicodedata
import warnings
import zlib
from collections import ChainMap
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import Timeout
from PIL import UnidentifiedImageError
from tqdm import tqdm

from wgan.data.image_options import ImageOptions, Range
from wgan.data.images import (
    INSTALL_HEIF,
    image_to_bytes,
    is_deep,
    is_drawn_here,
    reads_heic,
    value_range,
)
from wgan.data.rows import RowReader
from wgan.data.sources import ImageFile, Source, common_folder
from wgan.files import acquire_lock, format_size, sync, temporary_path

VERSION = 8  # increase it if the images' bytes change, so that existing caches are made again
IMAGES_PER_BUCKET, MAX_BUCKETS = 16, 1024
FOOTER = struct.Struct("<Q32s")
ADVICE = "Use another --data-root, free some space, or use a smaller --image-size"

Buckets = dict[int, list[ImageFile]]  # by number, the images of each bucket


@dataclass(frozen=True)
class Images:
    """The bytes of the readable images, their names, by name why others are unreadable, a digest of
    the bytes, and the values that became black and white, if the images were scaled."""

    samples: RowReader
    names: list[str]
    unreadable: dict[str, str]
    digest: str
    scale: Range | None = None


@dataclass(frozen=True)
class StoredBucket:
    """A bucket's file: its images, by name why some of them could not be read, the values of deep
    ones, the scale of all deep images when it was written, and the rows' SHA-256."""

    path: Path
    number: int
    images: list[ImageFile]
    failures: dict[str, str]
    deep: dict[str, Range | None]  # None: no values
    scale: Range | None
    digest: str

    @property
    def readable(self) -> list[ImageFile]:
        """The readable images, in the order of the rows."""
        return [image for image in self.images if image.name not in self.failures]


class FolderCache:
    """The images of a source in one size, `options.size`, kept in files below a data root."""

    def __init__(self, source: Source, root: Path, options: ImageOptions):
        self.source, self.options = source, options
        self.shape = options.shape((3,))
        self.row_bytes = math.prod(self.shape)
        path, self.shape_text = source.path.resolve(), "x".join(map(str, self.shape))
        key = f"{path}\0{self.shape_text}\0{options.range}\0{source.is_output}"
        digest = hashlib.sha256(encode(key)).hexdigest()
        self.folder = root / "prepared" / f"{path.name[:40]}-{self.shape_text}-{digest[:12]}"
        self.stopped = threading.Event()
        self.pages: list[int] = []  # the number of pages of each new file that has several
        self.stored: list[StoredBucket] = []
        self.ranges: dict[ImageFile, Range | None] = {}  # of deep images; None: no values
        self.scale: Range | None = None  # of deep images, if there are any
        self.rows: dict[ImageFile, int] = {}  # of images in `outdated`
        self.outdated = RowReader.from_files([], [], self.shape)

    def load(self) -> Images:
        """Prepare new and changed images, and return all of them.

        Raises ValueError, with what to do, if the disk is too small or cannot be written.
        """
        buckets = group(self.source.list())
        self.read_stored(buckets)
        current = self.find_current(buckets)
        if len(current) == len(buckets):  # neither the lock nor write access is needed
            return self.to_images(current)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.lock():
                return self.to_images(self.update(buckets))
        except KeyboardInterrupt:
            print("stopped preparing images; run the command again to continue", file=sys.stderr)
            raise
        except OSError as error:
            raise ValueError(
                f"the images of {self.source.path} cannot be prepared in {self.folder} ({error}). "
                f"{ADVICE}, and run the same command to continue"
            ) from error

    def update(self, buckets: Buckets) -> dict[int, StoredBucket]:
        """Write missing and outdated buckets, and remove the files that are not needed."""
        self.read_stored(buckets)  # again, as another process may have prepared images
        self.measure(buckets)
        current = self.find_current(buckets)
        self.find_rows(current)
        if missing := {n: buckets[n] for n in buckets if n not in current}:
            self.check_disk(missing, count_images(buckets))
            current |= self.in_threads(self.write_bucket, missing, "preparing images")
        if self.pages:
            print(
                f"{self.source.path}: only the first page or frame of {len(self.pages):,} files is "
                f"used, of {sum(self.pages):,} in all",
                file=sys.stderr,
            )
        needed = {bucket.path for bucket in current.values()}
        for path in set(self.folder.iterdir()) - needed - {self.folder / "lock"}:
            with suppress(OSError):  # Windows does not remove a file that is being read
                path.unlink()
        return current

    def lock(self) -> ExitStack:
        """`acquire_lock`, printing a message before waiting for another process."""
        try:
            return acquire_lock(self.folder / "lock", timeout=0)
        except Timeout:
            print(f"waiting for another process to prepare {self.source.path}", file=sys.stderr)
            return acquire_lock(self.folder / "lock")

    # ------------------------------------------------------------ what is stored

    def read_stored(self, buckets: Buckets) -> None:
        """Read the intact buckets, and the values of those deep images that have not changed."""
        self.stored = []
        for path in self.folder.glob("*.rows"):
            with suppress(ValueError, OSError, OverflowError):  # it is corrupt
                self.stored.append(self.read_bucket(path))
        images = set().union(*buckets.values())
        self.ranges = {
            image: bucket.deep[image.name]
            for bucket in self.stored
            for image in images.intersection(bucket.images)
            if image.name in bucket.deep
        }

    def find_current(self, buckets: Buckets) -> dict[int, StoredBucket]:
        """Decide the scale; returns the stored buckets that are up to date, by number."""
        ranges = [*filter(None, self.ranges.values())] or [(0.0, 0.0)]
        scale = min(low for low, _ in ranges), max(high for _, high in ranges)
        self.scale = scale if self.ranges else None
        return {
            bucket.number: bucket
            for bucket in self.stored
            if buckets.get(bucket.number) == bucket.images
            and (bucket.scale == self.scale or not (bucket.deep or self.options.range))
            and not (INSTALL_HEIF in bucket.failures.values() and reads_heic())
        }

    def read_bucket(self, path: Path) -> StoredBucket:
        """A bucket's content; ValueError if the file is corrupt or of another version.

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
        if content.pop("version") != VERSION:
            raise ValueError(f"{path} is of another version")
        content["images"] = [ImageFile(*image) for image in content["images"]]
        content["scale"] = content["scale"] and tuple(content["scale"])
        bucket = StoredBucket(path, **content)
        if start != len(bucket.readable) * self.row_bytes:
            raise ValueError(f"{path} is corrupt")
        return bucket

    def find_rows(self, current: dict[int, StoredBucket]) -> None:
        """Find the rows in outdated buckets that can be copied."""
        outdated = [bucket for bucket in self.stored if current.get(bucket.number) is not bucket]
        pairs = [(bucket, image) for bucket in outdated for image in bucket.readable]
        self.rows = {
            image: row
            for row, (bucket, image) in enumerate(pairs)
            if bucket.scale == self.scale or not (image.name in bucket.deep or self.options.range)
        }
        paths, counts = [b.path for b in outdated], [len(b.readable) for b in outdated]
        self.outdated = RowReader.from_files(paths, counts, self.shape)

    # ------------------------------------------------------------ preparing images

    def measure(self, buckets: Buckets) -> None:
        """Find the values of new deep images; other files are only opened."""
        measured = {image for bucket in self.stored for image in bucket.images}
        new = {n: [image for image in buckets[n] if image not in measured] for n in buckets}

        def measure_bucket(number: int, images: list[ImageFile]) -> dict[ImageFile, Range | None]:
            ranges = {}
            for image in images:
                if self.stopped.is_set():
                    raise CancelledError
                with suppress(Exception), self.source.open(image.name) as opened:
                    if is_deep(opened):
                        ranges[image] = self.options.range or value_range(opened)
            return ranges

        ranges = self.in_threads(measure_bucket, new, "measuring images")
        self.ranges |= ChainMap(*ranges.values())

    def check_disk(self, missing: Buckets, count: int) -> None:
        """Print how much will be written; ValueError if the disk is too small for it."""
        needed = count_images(missing) * self.row_bytes
        free = shutil.disk_usage(self.folder).free
        new = sum(image not in self.rows for images in missing.values() for image in images)
        print(
            f"preparing {f'{new:,} new of ' if new < count else ''}{count:,} images of "
            f"{self.source.path} as {self.shape_text}: {format_size(needed)} in {self.folder}, "
            f"{format_size(free)} free",
            file=sys.stderr,
        )
        if needed > free:
            raise ValueError(
                f"the images need {format_size(needed)} of disk in {self.folder}, and only "
                f"{format_size(free)} are free. {ADVICE}"
            )

    def write_bucket(self, number: int, images: list[ImageFile]) -> StoredBucket:
        """Write a bucket's file, row by row."""
        temporary = temporary_path(self.folder / f"{number:04}")
        try:
            with open(temporary, "wb+") as file:
                failures = self.write_rows(images, file.write)
                file.seek(0)
                rows = hashlib.file_digest(file, "sha256")
                deep = {image.name: self.ranges[image] for image in images if image in self.ranges}
                content = {"number": number, "images": images, "failures": failures, "deep": deep}
                content |= {"scale": self.scale, "digest": rows.hexdigest(), "version": VERSION}
                manifest = json.dumps(content).encode()
                digest = hashlib.sha256(manifest)
                file.write(manifest + FOOTER.pack(len(manifest), digest.digest()))
            sync(temporary)
            path = self.folder / f"{number:04}-{digest.hexdigest()[:12]}.rows"
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return self.read_bucket(path)

    def write_rows(
        self, images: list[ImageFile], write: Callable[[np.ndarray], object]
    ) -> dict[str, str]:
        """Copy or decode images in order, and write those that can be read; returns by name why
        others cannot."""
        failures = {}
        for image in images:
            if self.stopped.is_set():
                raise CancelledError
            if image in self.rows:
                write(self.outdated.read([self.rows[image]]).numpy())
                continue
            try:
                row = self.decode(image)
            except Exception as error:  # decoders raise all kinds of exceptions for broken files
                unidentified = isinstance(error, UnidentifiedImageError)
                prefix = "" if unidentified else f"{type(error).__name__}: "
                failures[image.name] = f"{prefix}{error}"
            else:
                write(row)
        return failures

    def decode(self, file: ImageFile) -> np.ndarray:
        """The bytes of an image; an error if it cannot be read."""
        with self.source.open(file.name) as image:
            if is_drawn_here(image) and not self.source.is_output:
                raise UnidentifiedImageError("drawn by this project")
            if is_deep(image) and file not in self.ranges:
                image.load()  # an error if it is corrupt
                raise UnidentifiedImageError("changed while it was read")
            row = image_to_bytes(image, self.options, self.scale)
            with suppress(Exception):  # most formats have no pages, and those unused may be corrupt
                if image.n_frames > 1 and image.format not in ("MPO", "PSD"):  # previews, layers
                    self.pages.append(image.n_frames)
            return row

    def in_threads(
        self, function: Callable[[int, list[ImageFile]], object], buckets: Buckets, title: str
    ) -> dict:
        """The results of `function(number, images)` for each bucket, by number.

        Threads suffice, because Pillow releases the interpreter lock.
        """
        options = {"unit": "image", "delay": 2, "leave": False, "disable": None}
        results = {}
        self.stopped.clear()
        with (
            tqdm(desc=title, total=count_images(buckets), **options) as bar,
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

    def to_images(self, buckets: dict[int, StoredBucket]) -> Images:
        ordered = [buckets[number] for number in sorted(buckets)]
        paths, counts = [b.path for b in ordered], [len(b.readable) for b in ordered]
        digest = hashlib.sha256()
        for bucket in ordered:
            digest.update(bucket.digest.encode())
        return Images(
            RowReader.from_files(paths, counts, self.shape),
            [image.name for bucket in ordered for image in bucket.readable],
            dict(sorted(failure for b in ordered for failure in b.failures.items())),
            digest.hexdigest(),
            self.scale or self.options.range,
        )


def group(images: list[ImageFile]) -> Buckets:
    """The images of each bucket that is not empty, by its number and in order.

    The number of buckets is a power of two, so that it rarely changes with the number of images.
    A folder around all images does not count, as archives often have one that the folder lacks.
    """
    exponent = round(math.log2(max(1, len(images)) / IMAGES_PER_BUCKET))
    count = min(2 ** max(0, exponent), MAX_BUCKETS)
    start = len(common_folder(image.name for image in images))
    buckets: Buckets = {}
    for image in images:
        buckets.setdefault(zlib.crc32(encode(image.name[start:])) % count, []).append(image)
    return dict(sorted(buckets.items()))


def count_images(buckets: Buckets) -> int:
    return sum(map(len, buckets.values()))


def thread_count() -> int:
    """Two more than the cores that this process may use, as some threads wait for the disk."""
    confined = hasattr(os, "sched_getaffinity")
    return 2 + (len(os.sched_getaffinity(0)) if confined else os.cpu_count() or 1)


def encode(name: str) -> bytes:
    """A file's name as bytes, the same on every system; it may contain lone surrogates."""
    return unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")
