"""Folders of images, and the cache of their images in one size.

The cache of a folder is `<data root>/prepared/<folder>-<shape>-<hash>/`. A hash of an image's name
assigns it to one of up to 1,024 buckets, and each bucket is one file:

    rows      the bytes (C, H, W) of the readable images, in the order of their names
    manifest  JSON: which images these are, and why others could not be read
    footer    the length of the manifest and its SHA-256

If images are added, changed or removed, their buckets are written again; rows of other images are
copied from the outdated files. The order of the samples is bucket by bucket, so that it depends
only on the files in the folder, and not on when they were added. A file is written under a
temporary name and never changes: its name contains the manifest's hash, so that a process that
still reads an outdated file finds the same images in it.
"""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import stat
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import Timeout
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from wgan.data.batches import Dataset, RowReader
from wgan.data.downloads import fetch_celeba, find_lsun
from wgan.data.images import Size, empty_bytes, image_to_bytes, open_image
from wgan.files import acquire_lock

VERSION = 2  # increase it if the images' bytes change, so that existing caches are made again
IMAGES_PER_BUCKET, MAX_BUCKETS = 16, 1024
FOOTER = struct.Struct("<Q32s")
NO_SPACE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
ADVICE = "Free some space, or use another --data-root or a smaller --image-size"
DEFAULT_SIZE = (64, 64)
CELEBA_COUNT = 202_599


# ---------------------------------------------------------------- data sets


def load_folder(folder: Path, root: Path, size: Size | None, grey: bool) -> Dataset:
    """Load all images below a folder; the classes are its subfolders if every image is in one.

    Files that are not images are skipped with a warning. Raises ValueError if no image is left.
    """
    source = FolderSource(folder, leave_out=root / "prepared")
    images = load_images(source, root, size, grey)
    classes = [name.split("/")[0] for name in images.names if "/" in name]
    if len(classes) < len(images.names) or len(set(classes)) < 2:
        return Dataset(images.samples)
    return Dataset(images.samples, np.unique(classes, return_inverse=True)[1])


def load_celeba(root: Path, size: Size | None, grey: bool) -> Dataset:
    """CelebA's 202,599 aligned faces, without their attributes."""
    folder = fetch_celeba(root)
    samples = load_folder(folder, root, size, grey).samples
    if len(samples) != CELEBA_COUNT:
        print(f"{folder} contains {len(samples):,} of {CELEBA_COUNT:,} faces", file=sys.stderr)
    return Dataset(samples)


def load_lsun(root: Path, size: Size | None, grey: bool) -> Dataset:
    """LSUN's bedrooms. Reading its database needs the package lmdb."""
    return Dataset(load_images(LsunSource(find_lsun(root)), root, size, grey).samples)


def load_images(
    source: "FolderSource | LsunSource", root: Path, size: Size | None, grey: bool
) -> "Images":
    """Load all images of a source, with a warning about unreadable ones; ValueError if none is."""
    images = FolderCache(source, root, size or DEFAULT_SIZE, grey).load()
    skipped = images.unreadable
    count = len(images.names) + len(skipped)
    if not count:
        raise ValueError(f"the folder {source.path} contains no files: put images there")
    if skipped:
        names = "; ".join(f"{name!r}: {reason}" for name, reason in list(skipped.items())[:3])
        more = "; ..." if len(skipped) > 3 else ""
        print(
            f"{source.path}: skipped {len(skipped)} of {count} files that are not readable images "
            f"({names}{more})",
            file=sys.stderr,
        )
    if not images.names:
        raise ValueError(f"none of the {count} files in {source.path} is a readable image")
    return images


# ---------------------------------------------------------------- sources


class ImageFile(NamedTuple):
    """An image's name, and the size and time of change that tell whether its file has changed."""

    name: str
    size: int  # bytes
    mtime: int  # nanoseconds


@dataclass(frozen=True)
class FolderSource:
    """All files below a folder except hidden ones and those below `leave_out`."""

    path: Path
    leave_out: Path | None = None

    def list(self) -> list[ImageFile]:
        """The files sorted by name, which is the path relative to the folder, with "/"."""
        found: list[ImageFile] = []
        # Links are followed, and each folder is entered once, so that a loop of links ends.
        entered = {os.path.realpath(self.leave_out)} if self.leave_out else set()
        for path, folders, names in os.walk(self.path, onerror=self.report, followlinks=True):
            if (real := os.path.realpath(path)) in entered:
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            relative = os.path.relpath(path, self.path)
            prefix = "" if relative == "." else relative.replace(os.sep, "/") + "/"
            for name in names:
                with suppress(OSError):  # removed since it was listed
                    status = os.stat(f"{path}/{name}")
                    if stat.S_ISREG(status.st_mode) and not name.startswith("."):
                        found.append(ImageFile(prefix + name, status.st_size, status.st_mtime_ns))
        return sorted(found, key=attrgetter("name"))

    def report(self, error: OSError) -> None:
        if error.filename == str(self.path):
            raise error
        print(f"{error.filename} is left out: {error}", file=sys.stderr)

    def open(self, name: str) -> Image.Image:
        return open_image(self.path / name)


@dataclass(frozen=True)
class LsunSource:
    """The images in one of LSUN's databases; if the database has changed, all of them have.

    Raises ValueError if the package lmdb is missing or the database cannot be read.
    """

    path: Path

    @cached_property
    def database(self):
        try:
            import lmdb
        except ImportError as error:
            raise ValueError("lsun needs the package lmdb: pip install lmdb") from error
        try:
            return lmdb.open(str(self.path), readonly=True, lock=False)
        except lmdb.Error as error:
            raise ValueError(
                f"the database {self.path} cannot be read ({error}): remove it, and unpack "
                "bedroom_train_lmdb.zip again"
            ) from error

    def list(self) -> list[ImageFile]:
        status = (self.path / "data.mdb").stat()
        with self.database.begin() as transaction:
            keys = list(transaction.cursor().iternext(values=False))
        names = (key.decode("utf-8", "surrogateescape") for key in keys)
        return [ImageFile(name, status.st_size, status.st_mtime_ns) for name in names]

    def open(self, name: str) -> Image.Image:
        with self.database.begin() as transaction:
            return open_image(io.BytesIO(transaction.get(name.encode("utf-8", "surrogateescape"))))


# ---------------------------------------------------------------- the cache


@dataclass(frozen=True)
class Images:
    """The bytes of the readable images, their names, and by name why others are unreadable."""

    samples: RowReader
    names: list[str]
    unreadable: dict[str, str]


class Failure(NamedTuple):
    """Why an image could not be read, and whether a later attempt may succeed."""

    reason: str
    transient: bool


@dataclass(frozen=True)
class Bucket:
    """The images of a bucket, by name the failures among them, and the bucket's file, if any."""

    images: list[ImageFile]
    failures: dict[str, Failure]
    path: Path | None = None

    @property
    def names(self) -> list[str]:
        """The names of the readable images, in the order of the rows."""
        return [image.name for image in self.images if image.name not in self.failures]


class FolderCache:
    """The images of a source in one size, kept in files below a data root."""

    def __init__(self, source: FolderSource | LsunSource, root: Path, size: Size, grey: bool):
        self.source, self.size, self.grey = source, size, grey
        self.shape = (1 if grey else 3, *size)
        self.row_bytes = math.prod(self.shape)
        path, self.shape_text = source.path.resolve(), "x".join(map(str, self.shape))
        digest = hashlib.sha256(encode(f"{path}\0{self.shape_text}")).hexdigest()
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
        missing = {number: buckets[number] for number in buckets if number not in found}
        if missing:
            self.known = known_images(outdated)
            self.check_disk(missing, count_images(buckets))
            found |= self.in_threads(self.write_bucket, missing, count_images(buckets))
            needed = {bucket.path for bucket in found.values()} | {self.folder / "lock"}
            for path in set(self.folder.iterdir()) - needed:
                with suppress(OSError):  # Windows does not remove a file that is being read
                    path.unlink()
        return found

    def find(self, buckets: dict[int, list[ImageFile]]) -> tuple[dict[int, Bucket], list[Bucket]]:
        """The buckets whose files are up to date, by number, and the intact but outdated ones."""
        found, outdated = {}, []
        for path in self.folder.glob("*.rows"):
            with suppress(
                ValueError, OSError, OverflowError, LookupError, TypeError, AttributeError
            ):
                number, bucket = self.read_bucket(path)
                if buckets.get(number) == bucket.images and not self.can_read_more(bucket):
                    found[number] = bucket
                else:
                    outdated.append(bucket)
        return found, outdated

    def can_read_more(self, bucket: Bucket) -> bool:
        """Whether an image that could not be read for a transient reason can be read now."""
        names = (name for name, failure in bucket.failures.items() if failure.transient)
        results = map(self.decode, names)
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
                content = {"bucket": number, "images": images, "failures": failures}
                content |= {"version": VERSION, "shape": self.shape}
                manifest = json.dumps(content).encode()
                digest = hashlib.sha256(manifest)
                file.write(manifest + FOOTER.pack(len(manifest), digest.digest()))
                file.flush()
                os.fsync(file.fileno())
            path = self.folder / f"{number:04}-{digest.hexdigest()[:12]}.rows"
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return Bucket(images, failures, path)

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
        bucket = Bucket(images, failures, path)
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
        count = count_images(buckets)
        samples = empty_bytes((count, *self.shape))
        ends = np.cumsum([len(images) for images in buckets.values()])
        rows = dict(zip(buckets, np.split(samples, ends[:-1]), strict=True))  # views

        def decode_bucket(number: int, images: list[ImageFile]) -> Bucket:
            free = iter(rows[number])
            return Bucket(images, self.decode_all(images, lambda row: np.copyto(next(free), row)))

        decoded = self.in_threads(decode_bucket, buckets, count)
        end = 0
        for number, bucket in decoded.items():  # close the gaps that unreadable images left
            start, end = end, end + len(bucket.names)
            samples[start:end] = rows[number][: end - start]
        return to_images(RowReader.from_array(samples[:end]), decoded.values())

    def in_threads(
        self,
        function: Callable[[int, list[ImageFile]], Bucket],
        buckets: dict[int, list[ImageFile]],
        count: int,
    ) -> dict[int, Bucket]:
        """Call `function(number, images)` for each bucket, with a progress bar of `count` images.

        Threads suffice, because Pillow releases the interpreter lock.
        """
        options = {"unit": "image", "delay": 2, "leave": False, "disable": None}
        done = count - count_images(buckets)
        results = {}
        self.stopped.clear()
        with (
            tqdm(desc="preparing images", total=count, initial=done, **options) as bar,
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
        """Decode images in order, and write those that can be read; returns the failures."""
        failures: dict[str, Failure] = {}
        for image in images:
            if self.stopped.is_set():
                raise CancelledError
            result = self.copy(image)
            if result is None:
                result = self.decode(image.name)
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

    def decode(self, name: str) -> np.ndarray | Failure:
        """The bytes of an image, or why it cannot be read."""
        try:
            with self.source.open(name) as image:
                return image_to_bytes(image, self.size, self.grey)
        except UnidentifiedImageError:
            return Failure("not an image", transient=False)
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


def known_images(outdated: list[Bucket]) -> dict[ImageFile, tuple[Path, int] | Failure]:
    """Where the rows of images are in outdated buckets, and why others cannot be read."""
    known: dict[ImageFile, tuple[Path, int] | Failure] = {}
    for bucket in outdated:
        row = 0
        for image in bucket.images:
            failure = bucket.failures.get(image.name)
            if failure is None:
                known[image] = (bucket.path, row)
                row += 1
            elif not failure.transient:
                known[image] = failure
    return known


def count_images(buckets: dict[int, list[ImageFile]]) -> int:
    return sum(len(images) for images in buckets.values())


def to_images(samples: RowReader, buckets: Iterable[Bucket]) -> Images:
    names = [name for bucket in buckets for name in bucket.names]
    failures = sorted(failure for bucket in buckets for failure in bucket.failures.items())
    return Images(samples, names, {name: failure.reason for name, failure in failures})


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


def format_size(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
