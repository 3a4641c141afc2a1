"""Arrays as data: a `.npy` or `.npz` file.

    (N, D)                                    vectors, standardised per column
    (N, H, W), (N, H, W, C), (N, C, H, W)     images, C = 1, 3, or 4 with --alpha

What the samples are follows from the header. Values are read by index, so that a `.npy` file may
exceed the memory; they are converted once if the result is small, otherwise whenever they are read.
Nothing is ever unpickled.
"""

import hashlib
import math
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wgan.data.classes import NO_CLASS, list_names
from wgan.data.dataset import Dataset
from wgan.data.image_options import ImageOptions, Range
from wgan.data.pixels import (
    black_and_white,
    clear_transparent,
    fit_images,
    report_scale,
    to_bytes,
)
from wgan.data.rows import ConvertedReader, RowReader
from wgan.data.standardisation import Moments

SAMPLE_NAMES = ("samples", "images", "x", "data", "x_train", "train_images")
LABEL_NAMES = ("labels", "y", "y_train", "train_labels")
ARRAY_SUFFIXES = (".npy", ".npz")
CHANNELS = (1, 3, 4)
VECTORS, PLAIN, LAST, FIRST = "N x D", "N x H x W", "N x H x W x C", "N x C x H x W"
CONVERTED_ONCE = 2**28  # bytes of samples that are converted into memory
VALUES_AT_ONCE = 2**21

Rows = Callable[[Tensor], np.ndarray]  # indices `(K,)` to stored samples `(K, ...)`
Digest = type(hashlib.sha256())


class StoredArray(NamedTuple):
    """An array in a file, as its header describes it; `member` is its name in a `.npz` file."""

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    start: int  # of its values, in bytes; unknown in a `.npz` file

    def __str__(self) -> str:
        return f"{self.path} ({self.member})" if self.member else str(self.path)


@dataclass(frozen=True)
class Arrays:
    """The samples in a file, what their dimensions mean, their labels, if there are any, and the
    names of arrays that are not used."""

    path: Path
    samples: StoredArray
    layout: str
    labels: StoredArray | None = None
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.samples.shape[0]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.samples.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        return self.samples.dtype

    @property
    def is_vectors(self) -> bool:
        return self.layout == VECTORS

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """`(D,)` or `(C, H, W)`."""
        if self.layout in (VECTORS, FIRST):
            return self.stored_shape
        height, width, *channels = self.stored_shape
        return (*(channels or [1]), height, width)

    @property
    def options(self) -> tuple[str, ...]:
        """The options of data that have an effect."""
        if self.is_vectors:
            return ()
        alpha = ("alpha",) if self.sample_shape[0] == 4 else ()
        return ("image_size", "grey", "flip", "range", *alpha)

    def report(self, kind: str) -> None:
        """Print what the samples are, and what is not used."""
        unused = f"; not used: {list_names(self.unused)}" if self.unused else ""
        stored = f"({self.dtype}, {self.layout})"
        print(f"{self.path}: {len(self):,} {kind} {stored}{unused}", file=sys.stderr)

    def at_once(self) -> int:
        """Number of samples to convert at a time."""
        return max(1, VALUES_AT_ONCE // math.prod(self.stored_shape))


# ---------------------------------------------------------------- finding arrays


def open_arrays(path: Path) -> Arrays:
    """The arrays in a file, from their headers; ValueError if they are corrupt or no samples."""
    if path.suffix.lower() == ".npz":
        return open_npz(path)
    with explain_corruption(path), open(path, "rb") as file:
        array = StoredArray(path, "", *read_header(file), file.tell())
        length = array.start + math.prod(array.shape) * array.dtype.itemsize
        if not array.dtype.hasobject and path.stat().st_size < length:
            raise EOFError(f"{path.stat().st_size:,} bytes instead of {length:,}")
    return Arrays(path, array, find_layout(array))


def open_npz(path: Path) -> Arrays:
    """ValueError, with the names that it contains, if none of them is one of samples."""
    with explain_corruption(path), zipfile.ZipFile(path) as archive:
        names = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
        labels, samples = find_name(names, LABEL_NAMES), find_name(names, SAMPLE_NAMES)
        others = [name for name in names if name != labels]
        if samples is None and len(others) == 1:
            samples = others[0]
        arrays = {}
        for name in filter(None, (samples, labels)):
            with archive.open(f"{name}.npy") as file:
                arrays[name] = StoredArray(path, name, *read_header(file), 0)
    if samples is None:
        raise ValueError(
            f"{path} contains {', '.join(names) or 'no arrays'}: name the array of samples "
            "'samples', and that of their classes 'labels'"
        )
    count, stored = arrays[samples].shape[0], arrays.get(labels)
    unused = [name for name in others if name != samples]
    if stored and (stored.dtype.kind not in "biu" or stored.shape not in ((count,), (count, 1))):
        unused.append(f"{labels} ({stored.dtype}; classes are one integer per sample)")
        stored = None
    return Arrays(path, arrays[samples], find_layout(arrays[samples]), stored, tuple(unused))


def find_name(names: list[str], usual_names: tuple[str, ...]) -> str | None:
    """The first of the usual names that is among `names`, in upper or lower case."""
    return next((name for usual in usual_names for name in names if name.lower() == usual), None)


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, type and whether the values are in Fortran order; the file is then at the values."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version > (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    return shape, dtype, fortran_order


@contextmanager
def explain_corruption(path: Path) -> Iterator[None]:
    """A ValueError in place of those of `zipfile` and of NumPy's reader."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # corrupt files raise all kinds
        raise ValueError(
            f"{path} is corrupt or not an array of NumPy's ({error}): save it again with "
            "numpy.save or numpy.savez"
        ) from error


def find_layout(array: StoredArray) -> str:
    """What the dimensions of an array of samples mean; ValueError if it is none."""
    shape, count = array.shape, len(array.shape)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{array} has the type {array.dtype}: samples are real numbers (objects are not loaded)"
        )
    if count not in (2, 3, 4) or 0 in shape:
        raise ValueError(
            f"{array} has the shape {shape}: samples are vectors (N, D), or images (N, H, W), "
            "(N, H, W, C) or (N, C, H, W), and no number is 0"
        )
    if count == 3 and shape[2] in CHANNELS:
        raise ValueError(
            f"{array} has the shape {shape}, which looks like one image: put all images into one "
            "array (N, H, W, C), with numpy.stack"
        )
    if count < 4:
        return VECTORS if count == 2 else PLAIN
    if shape[3] not in CHANNELS and shape[1] not in CHANNELS:
        raise ValueError(
            f"{array} has the shape {shape}: images have 1, 3 or 4 channels, as the second or the "
            "last dimension"
        )
    return LAST if shape[3] in CHANNELS else FIRST


# ---------------------------------------------------------------- loading


def load_arrays(path: Path, root: Path, options: ImageOptions) -> Dataset:
    """Load the vectors or images in a file, and print what they are.

    Raises ValueError for values that are not finite, and for images of 4 channels without
    `options.alpha`.
    """
    arrays = open_arrays(path)
    if "alpha" in arrays.options and not options.alpha:
        raise ValueError(
            f"{path} has 4 channels: use --alpha if the fourth is opacity, otherwise save 3 or 1"
        )
    rows = read_rows(arrays)
    return load_vectors(arrays, rows) if arrays.is_vectors else load_images(arrays, rows, options)


def load_images(arrays: Arrays, rows: Rows, options: ImageOptions) -> Dataset:
    """Images as bytes `(N, C, H, W)`, and their classes if there are labels."""
    digest = hashlib.sha256()
    scale = find_scale(arrays, rows, options.range, digest)

    def convert(stored: np.ndarray) -> Tensor:
        images = stored[:, None] if arrays.layout == PLAIN else stored
        images = images.transpose(0, 3, 1, 2) if arrays.layout == LAST else images
        images = fit_images(to_bytes(images, scale) if scale else images, options)
        return torch.from_numpy(clear_transparent(images) if options.alpha else images)

    arrays.report(f"images of {'x'.join(map(str, arrays.sample_shape))}")
    shape = options.shape(arrays.sample_shape)
    dataset = to_dataset(arrays, rows, convert, shape, torch.uint8, digest.hexdigest())
    report_scale(dataset.samples, scale, arrays.path)
    return replace(dataset, scale=scale)


def load_vectors(arrays: Arrays, rows: Rows) -> Dataset:
    """Standardised vectors, and their classes if there are labels."""
    moments, digest = Moments(arrays.stored_shape[0]), hashlib.sha256()
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        for vectors in finite_rows(arrays, rows, digest):
            moments.add(vectors.astype(np.float64))
    if not np.isfinite(moments.squares).all():
        raise ValueError(f"{arrays.path} contains values too large to be squared: rescale them")
    standardisation, shape = moments.standardisation(), arrays.stored_shape
    arrays.report(f"vectors of {shape[0]:,} values, standardised per column,")
    dataset = to_dataset(
        arrays, rows, standardisation.apply, shape, torch.float32, digest.hexdigest()
    )
    return replace(dataset, standardisation=standardisation)


def read_rows(arrays: Arrays) -> Rows:
    """How stored samples are read by index: from the file, or from memory if they are compressed
    or in Fortran order."""
    samples, dtype, shape = arrays.samples, arrays.dtype, arrays.stored_shape
    if samples.member or samples.fortran_order:
        array = read_array(samples)
        return lambda indices: array[np.asarray(indices)]
    row_bytes = math.prod(shape) * dtype.itemsize
    reader = RowReader.from_files([samples.path], [len(arrays)], (row_bytes,), samples.start)
    return lambda indices: reader.read(indices).numpy().view(dtype).reshape(-1, *shape)


def read_array(array: StoredArray) -> np.ndarray:
    with explain_corruption(array.path):
        loaded = np.load(array.path, allow_pickle=False)
        if not array.member:
            return loaded
        with loaded:
            return loaded[array.member]


def read_labels(arrays: Arrays) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The class of each sample, `(N,)` int64, numbered from 0, and the classes' names, which are
    the labels in the file; negative labels are no class."""
    if arrays.labels is None:
        return None, ()
    labels = read_array(arrays.labels).reshape(-1).astype(np.int64)
    classes = np.unique(labels[labels >= 0])
    numbers = np.where(labels >= 0, np.searchsorted(classes, labels), NO_CLASS)
    return numbers, tuple(map(str, classes.tolist()))


def to_dataset(
    arrays: Arrays,
    rows: Rows,
    convert: Callable[[np.ndarray], Tensor],
    sample_shape: tuple[int, ...],
    dtype: torch.dtype,
    digest: str,
) -> Dataset:
    """Converted samples, which are in memory if they are small, and their classes."""
    samples: RowReader = ConvertedReader(
        lambda indices: convert(rows(indices)), sample_shape, dtype, len(arrays), arrays.at_once()
    )
    if samples.nbytes <= CONVERTED_ONCE:
        samples = RowReader.from_array(samples.to_device(torch.device("cpu")).numpy())
    labels, class_names = read_labels(arrays)
    return Dataset(samples, labels, digest, class_names)


# ---------------------------------------------------------------- all values


def find_scale(arrays: Arrays, rows: Rows, scale: Range | None, digest: Digest) -> Range | None:
    """The values that become black and white: `scale`, otherwise the minimum and the maximum, or
    None for bytes. All values are added to the digest. ValueError if values are not finite, or
    black and white cannot be told apart."""
    ranges = [(part.min(), part.max()) for part in finite_rows(arrays, rows, digest)]
    if scale or arrays.dtype == np.uint8:
        return scale
    minimum, maximum = float(min(low for low, _ in ranges)), float(max(high for _, high in ranges))
    black, white = black_and_white(minimum, maximum, arrays.dtype.kind != "f")
    if black == white or not np.isfinite(white - black):
        raise ValueError(
            f"the values of {arrays.path} lie between {black:g} and {white:g}: check them, or use "
            "--range LOW HIGH"
        )
    return black, white


def finite_rows(arrays: Arrays, rows: Rows, digest: Digest) -> Iterator[np.ndarray]:
    """All samples, part by part, and added to the digest; ValueError if values are not finite."""
    bar = tqdm(total=len(arrays), desc="reading arrays", delay=2, leave=False, disable=None)
    with bar:
        for indices in torch.arange(len(arrays)).split(arrays.at_once()):
            values = np.ascontiguousarray(rows(indices))
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                place = np.argwhere(~np.isfinite(values))[0]
                first = (int(place[0] + indices[0]), *place[1:].tolist())
                raise ValueError(
                    f"{arrays.path} contains values that are NaN or infinite, the first at index "
                    f"{first}: replace them, or remove their samples"
                )
            digest.update(values)
            yield values
            bar.update(len(indices))
