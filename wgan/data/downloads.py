"""Data sets that torchvision downloads."""

from functools import partial
from pathlib import Path

import numpy as np

from wgan.data.dataset import Dataset
from wgan.data.image_options import ImageOptions
from wgan.data.pixels import fit_images
from wgan.data.rows import RowReader

DIGITS = tuple("0123456789")
CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


def load_idx(
    name: str, class_names: tuple[str, ...], root: Path, options: ImageOptions, train: bool = True
) -> Dataset:
    """A training or test set of torchvision's in `<root>/<name>/raw`."""
    folder = root / name / "raw"
    files = [
        f"{part}-{kind}-ubyte.gz"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    source = download(name, files, folder, root=str(root), train=train)
    samples = RowReader.from_array(fit_images(source.data[:, None].numpy(), options))
    return Dataset(samples, source.targets.numpy(), class_names=class_names)


load_mnist = partial(load_idx, "MNIST", DIGITS)
load_fashion_mnist = partial(load_idx, "FashionMNIST", CLOTHES)


def load_cifar10(root: Path, options: ImageOptions, train: bool = True) -> Dataset:
    source = download("CIFAR10", ["cifar-10-python.tar.gz"], root, root=str(root), train=train)
    samples = RowReader.from_array(fit_images(source.data.transpose(0, 3, 1, 2), options))
    class_names = tuple(name.lower() for name in source.classes)
    return Dataset(samples, np.asarray(source.targets), class_names=class_names)


def download(name: str, files: list[str], folder: Path, **arguments):
    """torchvision's data set `name`, downloaded unless its files are there.

    Raises ValueError, with the `files` to put into `folder` by hand, if that fails or if files are
    corrupt.
    """
    import torchvision

    try:
        return getattr(torchvision.datasets, name)(download=True, **arguments)
    except Exception as error:  # networks, archives and missing packages raise all kinds
        raise ValueError(
            f"{name} could not be downloaded or read ({type(error).__name__}: {error}). Remove "
            f"files that may be corrupt from {folder}. Download {', '.join(files)} by hand into "
            "it, or give another --data-root"
        ) from error
