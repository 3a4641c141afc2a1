"""Data sets that torchvision downloads."""

import gzip
import math
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from wgan.data.batches import Dataset, RowReader
from wgan.data.images import Size, fit_images
from wgan.files import write_whole

IDX_FILES = ("images-idx3-ubyte", "labels-idx1-ubyte")
BYTES = 0x08  # the type of values in an idx file
DIGITS = tuple("0123456789")
CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


def load_mnist(root: Path, size: Size | None, grey: bool, train: bool = True) -> Dataset:
    return load_idx("MNIST", root, size, grey, DIGITS, train)


def load_fashion_mnist(root: Path, size: Size | None, grey: bool, train: bool = True) -> Dataset:
    return load_idx("FashionMNIST", root, size, grey, CLOTHES, train)


def load_idx(
    name: str,
    root: Path,
    size: Size | None,
    grey: bool,
    class_names: tuple[str, ...],
    train: bool,
) -> Dataset:
    """A training or test set in two idx files, unpacked or not; downloaded if one is missing.

    Raises ValueError, with the files to remove, if some are damaged.
    """
    folder = root / name / "raw"
    paths = [folder / f"{'train' if train else 't10k'}-{file}" for file in IDX_FILES]
    for path in paths:
        unpack(path)
    if missing := [f"{path.name}.gz" for path in paths if not path.exists()]:
        download(name, missing, folder, root=str(root))
    images, labels = map(read_idx, paths)
    if images is None or labels is None or len(images) != len(labels):
        damaged = [path.name for path in sorted(folder.glob("*-ubyte")) if read_idx(path) is None]
        names = ", ".join(damaged) or " and ".join(f"{path.name}*" for path in paths)  # .gz, too
        raise ValueError(
            f"{name} is damaged: remove {names} from {folder}, and the same command unpacks or "
            "downloads them again"
        )
    images = fit_images(images[:, None], size, grey)
    return Dataset(RowReader.from_array(images), labels.astype(np.int64), class_names=class_names)


def unpack(path: Path) -> None:
    """Unpack `path`.gz unless that is done. torchvision accepts only files with its checksums."""
    if not path.exists():
        with suppress(OSError, EOFError, zlib.error):  # missing or damaged: it is downloaded
            content = gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
            if parse_idx(path.name, content) is not None:
                write_whole(path, content)


def read_idx(path: Path) -> np.ndarray | None:
    return parse_idx(path.name, path.read_bytes())


def parse_idx(name: str, content: bytes) -> np.ndarray | None:
    """The values in an idx file, images `(N, H, W)` or labels `(N,)`; None if it is damaged.

    It begins with two zeros, the type of the values and the number of dimensions, followed by the
    dimensions, four bytes each (yann.lecun.com/exdb/mnist).
    """
    dimensions = 3 if "idx3" in name else 1
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, BYTES, dimensions]) or len(content) <= start:
        return None
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    values = np.frombuffer(bytearray(content), np.uint8, offset=start)  # writable
    return values.reshape(shape) if values.size == math.prod(shape) else None


def load_cifar10(root: Path, size: Size | None, grey: bool, train: bool = True) -> Dataset:
    source = download("CIFAR10", ["cifar-10-python.tar.gz"], root, root=str(root), train=train)
    images = fit_images(source.data.transpose(0, 3, 1, 2), size, grey)
    return Dataset(
        RowReader.from_array(images),
        np.asarray(source.targets),
        class_names=tuple(name.lower() for name in source.classes),
    )


def download(name: str, files: list[str], folder: Path, **arguments):
    """torchvision's data set `name`, downloaded unless its files are there and intact.

    Raises ValueError, with the `files` to put into `folder` by hand, if that fails.
    """
    import torchvision

    make = getattr(torchvision.datasets, name)
    with suppress(RuntimeError):  # torchvision's error for missing or damaged files
        return make(download=False, **arguments)
    state = "not complete in" if folder.exists() else "not in"
    print(f"{name} is {state} {folder}: downloading it", file=sys.stderr)
    try:
        return make(download=True, **arguments)
    except Exception as error:  # networks, archives and missing packages raise all kinds
        damaged = ", ".join(file for file in files if (folder / file).exists())
        remedy = f"{damaged} in {folder} is damaged or another file: remove it. " if damaged else ""
        raise ValueError(
            f"{name} could not be downloaded ({type(error).__name__}: {error}). {remedy}"
            f"Download {', '.join(files)} by hand into {folder}, or give another --data-root"
        ) from error


def fetch_celeba(root: Path) -> Path:
    """The folder of CelebA's aligned faces, downloaded if it is missing."""
    folder = root / "celeba" / "img_align_celeba"
    archive = folder.with_suffix(".zip")
    if not folder.is_dir() and archive.exists():
        raise ValueError(
            f"{archive} is not unpacked: unpack it in {archive.parent}; if that fails, it is "
            "damaged: remove it, and download it again"
        )
    if not folder.is_dir():
        files = ["img_align_celeba.zip (unpacked to img_align_celeba/)"]
        download("CelebA", files, root / "celeba", root=str(root), split="all")
    return folder


def find_lsun(root: Path) -> Path:
    """The folder of LSUN's bedrooms, which must be downloaded by hand; ValueError if missing."""
    folder = root / "lsun" / "bedroom_train_lmdb"
    if not (folder / "data.mdb").is_file():
        raise ValueError(
            "LSUN cannot be downloaded automatically. Download bedroom_train_lmdb.zip by hand, "
            f"and unpack it into {folder.parent}"
        )
    return folder
