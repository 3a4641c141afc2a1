"""Data sets that torchvision downloads."""

import sys
from pathlib import Path

import numpy as np

from wgan.data.batches import Dataset, RowReader
from wgan.data.images import Size, fit_images

IDX_FILES = [
    f"{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]


def load_mnist(root: Path, size: Size | None, grey: bool) -> Dataset:
    return load_array("MNIST", root, size, grey, IDX_FILES, root / "MNIST" / "raw")


def load_fashion_mnist(root: Path, size: Size | None, grey: bool) -> Dataset:
    folder = root / "FashionMNIST" / "raw"
    return load_array("FashionMNIST", root, size, grey, IDX_FILES, folder)


def load_cifar10(root: Path, size: Size | None, grey: bool) -> Dataset:
    return load_array("CIFAR10", root, size, grey, ["cifar-10-python.tar.gz"], root)


def load_array(
    name: str, root: Path, size: Size | None, grey: bool, files: list[str], folder: Path
) -> Dataset:
    """A training set that torchvision holds as one array."""
    source = fetch(name, files, folder, root=str(root), train=True)
    images = np.asarray(source.data)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return Dataset(RowReader.from_array(fit_images(images, size, grey)), np.asarray(source.targets))


def fetch(name: str, files: list[str], folder: Path, **arguments):
    """torchvision's data set `name`, from existing files or by a download.

    Raises ValueError, with the `files` to download by hand into `folder`, if neither works.
    """
    import torchvision

    make = getattr(torchvision.datasets, name)
    by_hand = f"Download {', '.join(files)} by hand into {folder}"
    try:
        return make(download=False, **arguments)
    except RuntimeError:  # torchvision's error for missing files
        print(f"{name} is not in {folder}; downloading it", file=sys.stderr)
    except Exception as error:
        raise ValueError(
            f"the files of {name} in {folder} cannot be read ({type(error).__name__}: {error}): "
            f"remove them. {by_hand}"
        ) from error
    try:
        return make(download=True, **arguments)
    except Exception as error:  # networks, archives and missing packages raise all kinds
        raise ValueError(
            f"{name} could not be downloaded ({type(error).__name__}: {error}). {by_hand}"
        ) from error


def fetch_celeba(root: Path) -> Path:
    """The folder of CelebA's aligned faces, downloaded if it is missing."""
    folder = root / "celeba" / "img_align_celeba"
    if not folder.is_dir():
        files = ["img_align_celeba.zip (unpacked to img_align_celeba/)"]
        fetch("CelebA", files, root / "celeba", root=str(root), split="all")
    return folder


def find_lsun(root: Path) -> Path:
    """The folder of LSUN's bedrooms, which must be downloaded by hand; ValueError if missing."""
    folder = root / "lsun" / "bedroom_train_lmdb"
    if not folder.is_dir():
        raise ValueError(
            "LSUN cannot be downloaded automatically. Download bedroom_train_lmdb.zip by hand, "
            f"and unpack it into {folder.parent}"
        )
    return folder
