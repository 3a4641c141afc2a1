"""Every data set as one array, in memory or in a mapped file, and endless shuffled batches of it.

Images are `(N, C, H, W)` uint8 and stay bytes until a batch is on the device; points are
`(N, 2)` float32. `DATASETS` names the sets; anything else is a folder of pictures. A
further set is one function and one entry.
"""

import mmap
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wgan.data.folder import Pictures, prepare, prepared_folder
from wgan.data.glyphs import draw_glyphs
from wgan.data.images import (
    FolderSource,
    LsunSource,
    PictureSource,
    Size,
    empty_bytes,
    resize_then_crop,
)


@dataclass(frozen=True)
class Dataset:
    """Samples, `(N, C, H, W)` uint8 or `(N, 2)` float32, and their classes `(N,)` or None."""

    samples: np.ndarray
    labels: np.ndarray | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.samples.shape[1:]

    def take(self, indices: np.ndarray) -> Tensor:
        """A copy of the samples of those numbers."""
        return Rows(self.samples).read(torch.from_numpy(indices))

    @property
    def are_points(self) -> bool:
        return self.samples.ndim == 2


def load_dataset(
    name: str, root: str | Path = "datasets", image_size: str = "", grey: bool = False
) -> Dataset:
    """The data set called `name`, or the folder of pictures at that path.

    `image_size` is "64" or "64x96" (height x width), empty for the set's own; the shorter
    side is resized and the centre cropped. ValueError, saying what to do, where there is
    no such set, it cannot be had, or it holds nothing.
    """
    size = parse_image_size(image_size)
    if name in DATASETS:
        return DATASETS[name].load(Path(root), size, grey)
    folder = Path(name)
    if folder.is_dir():
        return load_folder(folder, size or (64, 64), grey, Path(root))
    close = get_close_matches(name, DATASETS, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    what = "it is a file, not a folder" if folder.exists() else "there is no such folder"
    raise ValueError(
        f"unknown dataset {name!r}{hint}: {what}; give one of {', '.join(DATASETS)}, or a folder "
        "of pictures"
    )


def parse_image_size(text: str) -> Size | None:
    """ "64" to (64, 64), "64x96" to (64, 96), "" to None; ValueError for anything else."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise ValueError(f"image size {text!r} is neither a side (64) nor height x width (64x96)")
    return height, width


# ---------------------------------------------------------------- batches


class Batches:
    """An endless shuffled stream of batches, of which the k-th can be had at any time.

    Every sample comes once an epoch; a batch may end one epoch and begin the next. The
    order follows from (seed, epoch) alone, so resuming needs the batch's number and no
    state. `batches(k, n)` are n batches from the k-th on, `(n * B, ...)` as they are stored,
    on `device`; where several ranks train, of each batch the `share` that is this one's.
    Samples lie there from the start where they fit beside the networks; where they do not, or
    a CPU would read them into memory, a thread gathers and copies the next batches while the
    device computes.
    """

    def __init__(
        self,
        samples: np.ndarray,
        batch_size: int,
        seed: int,
        device: torch.device,
        share: slice = slice(None),
        resident: bool | None = None,
    ):
        check_batches(batch_size, samples)
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.share = share
        self.rows = Rows(samples)
        if resident is None:
            in_file = self.rows.file is not None and device.type == "cpu"
            resident = fits(samples.nbytes, device) and not in_file
        self.resident = resident
        if self.resident:
            self.samples = self.rows.copy_to(device)
        else:
            self.thread = ThreadPoolExecutor(1, "batches")
        self.coming: dict[tuple[int, int], Future] = {}
        self.orders: dict[int, Tensor] = {}

    def __call__(self, number: int, count: int = 1) -> Tensor:
        if self.resident:
            return self.samples.index_select(0, self.indices(number, count))
        asked, after = (number, count), (number + count, count)
        gathered = self.coming.get(asked) or self.thread.submit(self.gather, *asked)
        self.coming = {after: self.thread.submit(self.gather, *after)}
        return gathered.result().to(self.device, non_blocking=True)

    def gather(self, number: int, count: int) -> Tensor:
        """The batches in page-locked memory, from which CUDA copies without waiting."""
        return self.rows.read(self.indices(number, count), pinned=self.device.type == "cuda")

    def settle(self) -> None:
        """Wait for the thread, which must not disturb a step that is being recorded."""
        for batches in self.coming.values():
            batches.result()

    def take(self, indices: Tensor) -> Tensor:
        """The samples of those numbers, on the device."""
        samples = self.samples[indices] if self.resident else self.rows.read(indices)
        return samples.to(self.device)

    def indices(self, number: int, count: int = 1) -> Tensor:
        """Which samples make up the batches from that number on, or this rank's share."""
        first, wanted = number * self.batch_size, count * self.batch_size
        parts = []
        while wanted:
            epoch, start = divmod(first, len(self.rows))
            parts.append(self.order(epoch)[start : start + wanted])
            first, wanted = first + len(parts[-1]), wanted - len(parts[-1])
        return torch.cat(parts).view(count, self.batch_size)[:, self.share].flatten()

    def order(self, epoch: int) -> Tensor:
        """The epoch's permutation of all samples; only the latest two are kept."""
        if epoch not in self.orders:
            generator = seeded_generator("cpu", self.seed, "order", epoch)
            order = torch.randperm(len(self.rows), generator=generator)
            self.orders = {e: o for e, o in self.orders.items() if e == epoch - 1}
            where = self.device if self.resident else "cpu"
            self.orders[epoch] = order.to(where, non_blocking=True)
        return self.orders[epoch]


class Rows:
    """Samples by their numbers, from memory or from a mapped file.

    The file is read and its map not touched: pages that a map has touched count as the process's
    memory, and Linux may add half a megabyte for one row.
    """

    def __init__(self, samples: np.ndarray):
        self.samples = samples
        with warnings.catch_warnings(action="ignore"):  # that a map must not be written to
            self.tensor = torch.from_numpy(samples)
        self.file = None
        if isinstance(samples.base, mmap.mmap) and hasattr(os, "preadv"):
            with suppress(FileNotFoundError):  # replaced meanwhile, but still mapped
                self.file = open(samples.filename, "rb", buffering=0)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: Tensor, pinned: bool = False) -> Tensor:
        """A copy of the samples `(len(indices), ...)`, if asked in page-locked memory."""
        shape = (len(indices), *self.samples.shape[1:])
        copy = torch.empty(shape, dtype=self.tensor.dtype, pin_memory=pinned)
        if self.file is None:
            return torch.index_select(self.tensor, 0, indices, out=copy)
        for row, index in zip(copy.numpy(), indices.tolist(), strict=True):
            start = self.samples.offset + index * row.nbytes
            if os.preadv(self.file.fileno(), [row], start) < row.nbytes:
                raise OSError(f"{self.samples.filename} has become shorter")
        return copy

    def copy_to(self, device: torch.device) -> Tensor:
        """All samples on the device, without ever all of a file in memory."""
        if self.file is None:
            return self.tensor.to(device)
        copy = torch.empty(self.samples.shape, dtype=self.tensor.dtype, device=device)
        for numbers in torch.arange(len(self)).split(1000):
            copy[numbers[0] : numbers[-1] + 1] = self.read(numbers)
        return copy


def fits(size: int, device: torch.device) -> bool:
    """Whether that many bytes leave the device half of its free memory; a CPU has them already."""
    return device.type != "cuda" or 2 * size <= torch.cuda.mem_get_info(device)[0]


def check_batches(batch_size: int, samples: np.ndarray, flip: bool = False) -> None:
    """ValueError where such batches cannot be made of these samples."""
    if batch_size > len(samples):
        raise ValueError(
            f"a batch of {batch_size} is larger than the data set of {len(samples)} samples: "
            f"use --batch-size {len(samples)} or less"
        )
    if flip and samples.ndim == 2:
        raise ValueError("--flip mirrors pictures, and these samples are points")


def seeded_generator(device: torch.device | str, seed: int, *purpose: int | str) -> torch.Generator:
    """A random generator that depends on the seed and its purpose, and on nothing before it."""
    words = [seed]
    for word in purpose:
        words.append(word if isinstance(word, int) else int.from_bytes(word.encode(), "little"))
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state))


def bytes_to_floats(samples: Tensor) -> Tensor:
    """Bytes to [-1, 1]; points, which are floats already, stay as they are."""
    return samples.float() / 127.5 - 1 if samples.dtype == torch.uint8 else samples


def flip_some(images: Tensor, mirrored: Tensor) -> Tensor:
    """Images `(B, C, H, W)`, left and right exchanged where `mirrored` `(B,)` is true."""
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def floats_to_bytes(images: Tensor) -> Tensor:
    """[-1, 1] to bytes with one fixed scale: the inverse of `bytes_to_floats`."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------- points

POINT_COUNT = 100_000
POINT_SEED = 2017


def load_ring(root: Path, size: Size | None, grey: bool) -> Dataset:
    """8 Gaussians on a circle, at the scale of the WGAN-GP authors' code."""
    angles = np.arange(8) * np.pi / 4
    return gaussians(np.stack([np.cos(angles), np.sin(angles)], 1) * 2**0.5, 0.02 / 2**0.5)


def load_grid(root: Path, size: Size | None, grey: bool) -> Dataset:
    """25 Gaussians on a square grid, at the scale of the WGAN-GP authors' code."""
    side = np.arange(-2, 3) / 2**0.5
    return gaussians(np.stack(np.meshgrid(side, side), -1).reshape(25, 2), 0.05 / 8**0.5)


def gaussians(centres: np.ndarray, deviation: float) -> Dataset:
    random = np.random.default_rng(POINT_SEED)
    labels = random.integers(len(centres), size=POINT_COUNT)
    points = centres[labels] + deviation * random.standard_normal((POINT_COUNT, 2))
    return Dataset(points.astype(np.float32), labels)


def load_swissroll(root: Path, size: Size | None, grey: bool) -> Dataset:
    """A rolled-up line with noise, at the scale of the WGAN-GP authors' code."""
    random = np.random.default_rng(POINT_SEED)
    angle = 1.5 * np.pi * (1 + 2 * random.random(POINT_COUNT))
    points = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    points += 0.25 * random.standard_normal((POINT_COUNT, 2))
    return Dataset((points / 7.5).astype(np.float32))


# ---------------------------------------------------------------- glyphs, the built-in images

GLYPH_COUNT = 50_000
GLYPH_SEED = 1
GLYPH_VERSION = 1  # count it up when the pictures change, and old caches are made anew


def load_glyphs(root: Path, size: Size | None, grey: bool) -> Dataset:
    """Digits drawn from matplotlib's fonts: 50,000 of 28x28, made once and kept in `root`."""
    cache = root / "glyphs.npz"
    dataset = read_cache(cache, GLYPH_VERSION)
    if dataset is None:
        dataset = Dataset(*draw_glyphs(GLYPH_COUNT, GLYPH_SEED))
        write_cache(cache, GLYPH_VERSION, dataset)
    return Dataset(fit_images(dataset.samples, size, grey), dataset.labels)


def read_cache(path: Path, version: int) -> Dataset | None:
    """What `write_cache` wrote; None where that is absent, damaged or of another version."""
    try:
        with np.load(path) as arrays:  # a zip file: damage shows in its checksums
            if arrays["version"] != version:
                return None
            return Dataset(arrays["samples"], arrays["labels"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        print(f"{path} is damaged or cannot be read, and will be made again", file=sys.stderr)
        return None


def write_cache(path: Path, version: int, dataset: Dataset) -> None:
    """Written whole or not at all; a folder that cannot be written costs only the next start."""
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                np.savez(file, version=version, samples=dataset.samples, labels=dataset.labels)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        print(f"cannot keep {path} for the next start: {error}", file=sys.stderr)


# ---------------------------------------------------------------- torchvision's sets


def load_mnist(root: Path, size: Size | None, grey: bool) -> Dataset:
    return load_torchvision("MNIST", root, size, grey, IDX_FILES, root / "MNIST" / "raw")


def load_fashion_mnist(root: Path, size: Size | None, grey: bool) -> Dataset:
    folder = root / "FashionMNIST" / "raw"
    return load_torchvision("FashionMNIST", root, size, grey, IDX_FILES, folder)


def load_cifar10(root: Path, size: Size | None, grey: bool) -> Dataset:
    return load_torchvision("CIFAR10", root, size, grey, ["cifar-10-python.tar.gz"], root)


IDX_FILES = [
    f"{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]


def load_torchvision(
    name: str, root: Path, size: Size | None, grey: bool, files: list[str], folder: Path
) -> Dataset:
    """A training set of torchvision's that it holds as one array."""
    source = fetch(name, files, folder, root=str(root), train=True)
    images = np.asarray(source.data)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return Dataset(fit_images(images, size, grey), np.asarray(source.targets))


def fetch(name: str, files: list[str], folder: Path, **arguments):
    """torchvision's data set `name`: from files that are there, else by a download.

    ValueError, saying what to fetch by hand and where to put it, where neither works.
    """
    import torchvision

    make = getattr(torchvision.datasets, name)
    by_hand = f"Fetch by hand: {', '.join(files)}, and put them into {folder}"
    try:
        return make(download=False, **arguments)
    except RuntimeError:  # torchvision's word for files that are not there
        print(f"{name} is not in {folder} yet; downloading it", file=sys.stderr)
    except Exception as error:
        raise ValueError(
            f"the files of {name} in {folder} cannot be read ({type(error).__name__}: {error}): "
            f"remove them. {by_hand}"
        ) from error
    try:
        return make(download=True, **arguments)
    except Exception as error:  # whatever a network, an archive or a missing package raises
        raise ValueError(
            f"{name} could not be downloaded ({type(error).__name__}: {error}). {by_hand}"
        ) from error


CELEBA_COUNT = 202_599


def load_celeba(root: Path, size: Size | None, grey: bool) -> Dataset:
    """CelebA's 202,599 aligned faces, without their attributes."""
    folder = root / "celeba" / "img_align_celeba"
    if not folder.is_dir():
        files = ["img_align_celeba.zip (unpacked, so that img_align_celeba/ lies there)"]
        fetch("CelebA", files, root / "celeba", root=str(root), split="all")
    samples = load_folder(folder, size or (64, 64), grey, root).samples
    if len(samples) != CELEBA_COUNT:
        print(f"{folder} holds {len(samples):,} faces of {CELEBA_COUNT:,}", file=sys.stderr)
    return Dataset(samples)


def load_lsun(root: Path, size: Size | None, grey: bool) -> Dataset:
    """LSUN's bedrooms; reading its data base needs the package lmdb."""
    folder = root / "lsun"
    by_hand = f"Fetch by hand: bedroom_train_lmdb.zip, and unpack it into {folder}"
    if not (folder / "bedroom_train_lmdb").is_dir():
        raise ValueError(f"LSUN cannot be downloaded from here. {by_hand}")
    source = LsunSource(folder / "bedroom_train_lmdb")
    return Dataset(load_pictures(source, size or (64, 64), grey, root).samples)


def fit_images(images: np.ndarray, size: Size | None, grey: bool) -> np.ndarray:
    """Bytes `(N, C, H, W)` with the shorter side resized, the centre cropped, and greyed."""
    if grey and images.shape[1] == 3:
        images = (images * LUMA[:, None, None]).sum(1, keepdims=True).round().astype(np.uint8)
    if size is None or size == images.shape[2:]:
        return np.ascontiguousarray(images)
    inner, (top, left) = resize_then_crop(images.shape[2:], size)
    fitted = empty_bytes((*images.shape[:2], *size))
    for start in range(0, len(images), 1000):
        part = slice(start, start + 1000)
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(images[part]).float(), inner, mode="bilinear", antialias=True
        )
        crop = resized[:, :, top : top + size[0], left : left + size[1]]
        fitted[part] = crop.round().clamp(0, 255).byte().numpy()
    return fitted


LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"


# ---------------------------------------------------------------- a folder of pictures


def load_folder(folder: Path, size: Size, grey: bool, root: Path) -> Dataset:
    """All pictures below a folder, their first subfolder's name as class where all have one.

    Files that are no picture are skipped, counted and the first few named. ValueError if
    none is left.
    """
    source = FolderSource(folder, leave_out=prepared_folder(root))
    pictures = load_pictures(source, size, grey, root)
    parents = [name.split("/")[0] for name in pictures.names if "/" in name]
    if len(parents) < len(pictures.names) or len(set(parents)) < 2:
        return Dataset(pictures.samples)
    return Dataset(pictures.samples, np.unique(parents, return_inverse=True)[1])


def load_pictures(source: PictureSource, size: Size, grey: bool, root: Path) -> Pictures:
    """All pictures of a source, those that cannot be read named; ValueError if none is left."""
    pictures = prepare(source, size, grey, root)
    skipped = pictures.unreadable
    count = len(pictures.names) + len(skipped)
    if not count:
        raise ValueError(f"the folder {source.path} holds no files: put pictures there")
    if skipped:
        names = "; ".join(f"{name!r}: {why}" for name, why in list(skipped.items())[:3])
        more = "; ..." if len(skipped) > 3 else ""
        print(
            f"{source.path}: {len(skipped)} of {count} files are no readable pictures and were "
            f"skipped ({names}{more})",
            file=sys.stderr,
        )
    if not pictures.names:
        raise ValueError(f"the folder {source.path} holds {count} files, none a readable picture")
    return pictures


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Source:
    """How a data set is had, and the option values that suit it with the model they name,
    or with the default one: `settings` for every method, `recipes` for their key's method.
    """

    load: Callable[[Path, Size | None, bool], Dataset]
    help: str
    settings: dict = field(default_factory=dict)
    recipes: dict[str, dict] = field(default_factory=dict)


# Gulrajani et al. 2017, the authors' toy code.
POINTS = {
    "settings": {"model": "dense", "noise_dim": 2, "batch_size": 256},
    "recipes": {"wgan-gp": {"betas": (0.5, 0.9), "gp_weight": 0.1}},
}

# No paper trained on glyphs. These reach legible digits in minutes on two CPU cores, where the
# papers' settings still show blots.
GLYPHS = {
    "settings": {
        "width": 32, "upsampling": "nearest", "batch_size": 32, "steps": 2800, "lr_decay": True,
        "categories": 20,
    },
    "recipes": {
        "wgan-gp": {"n_critic": 2, "lr": 2e-3, "gp_weight": 1.0, "critic_norm": "layer"},
    },
}  # fmt: skip

DATASETS = {
    "glyphs": Source(load_glyphs, "digits in many fonts, 28x28, built in", **GLYPHS),
    "ring": Source(load_ring, "points: 8 Gaussians", **POINTS),
    "grid": Source(load_grid, "points: 25 Gaussians", **POINTS),
    "swissroll": Source(load_swissroll, "points: a spiral", **POINTS),
    "mnist": Source(load_mnist, "handwritten digits, 28x28"),
    "fashion-mnist": Source(load_fashion_mnist, "clothes, 28x28"),
    "cifar10": Source(load_cifar10, "small colour photographs, 32x32"),
    "celeba": Source(load_celeba, "faces, 64x64 unless asked otherwise", {"flip": True}),
    "lsun": Source(load_lsun, "bedrooms, 64x64 unless asked otherwise", {"flip": True}),
}
