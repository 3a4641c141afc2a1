"""The table of data sets. Any other name is a folder of images.

A further data set is one function and one entry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from wgan.data.batches import Dataset
from wgan.data.downloads import load_cifar10, load_fashion_mnist, load_mnist
from wgan.data.folder import AUTOMATIC, load_celeba, load_folder, load_lsun
from wgan.data.glyphs import load_glyphs
from wgan.data.images import Range, Size, parse_image_size
from wgan.data.points import load_grid, load_ring, load_swissroll


@dataclass(frozen=True)
class DatasetEntry:
    """How to load a data set, and what is known of it before it is loaded.

    `load` takes the data root, the image size (None: the data set's own) and whether to convert
    to grey; `shape` is the shape of a sample, `(C, H, W)` or `(D,)`, if neither is given.
    `recipes` are names of files in `configs/`, without `.toml`: of these, the first that fits
    the method and the model applies.
    """

    load: Callable[[Path, Size | None, bool], Dataset]
    help: str
    shape: tuple[int, ...]
    recipes: tuple[str, ...] = ()


POINT_RECIPES = ("points-wgan-gp", "points-wgan", "points-wgan-div")

DATASETS = {
    "glyphs": DatasetEntry(
        load_glyphs, "digits in many fonts, 28x28, built in", (1, 28, 28), ("glyphs",)
    ),
    "ring": DatasetEntry(load_ring, "points: 8 Gaussians", (2,), POINT_RECIPES),
    "grid": DatasetEntry(load_grid, "points: 25 Gaussians", (2,), POINT_RECIPES),
    "swissroll": DatasetEntry(load_swissroll, "points: a spiral", (2,), POINT_RECIPES),
    "mnist": DatasetEntry(load_mnist, "handwritten digits, 28x28", (1, 28, 28)),
    "fashion-mnist": DatasetEntry(load_fashion_mnist, "clothes, 28x28", (1, 28, 28)),
    "cifar10": DatasetEntry(load_cifar10, "small colour photographs, 32x32", (3, 32, 32)),
    "celeba": DatasetEntry(load_celeba, "faces, 64x64 by default", (3, 64, 64), ("flip",)),
    "lsun": DatasetEntry(load_lsun, "bedrooms, 64x64 by default", (3, 64, 64), ("flip",)),
}


def load_dataset(
    name: str,
    root: str | Path = "datasets",
    image_size: str = "",
    grey: bool = False,
    given_range: Range = AUTOMATIC,
) -> Dataset:
    """Load the data set called `name`, or the folder of images at that path.

    `image_size` is "64" or "64x96" (height x width), or empty for the data set's own size. The
    shorter side is resized and the centre cropped. Points ignore `image_size` and `grey`.
    `given_range` are the values that become black and white in a folder's images of more than 8
    bits; (0, 0): the smallest and largest of all.
    Raises ValueError if the data set is unknown, unavailable or empty.
    """
    return find_dataset(name, given_range).load(Path(root), parse_image_size(image_size), grey)


TEST_SETS = {"mnist": load_mnist, "fashion-mnist": load_fashion_mnist, "cifar10": load_cifar10}


def load_test_set(
    name: str, root: str | Path = "datasets", image_size: str = "", grey: bool = False
) -> Dataset:
    """The test images of a data set, as `load_dataset` loads its training images.

    Raises ValueError if the data set has none, or if they are unavailable.
    """
    if name not in TEST_SETS:
        raise ValueError(f"{name} has no test images: use one of {', '.join(TEST_SETS)}")
    return TEST_SETS[name](Path(root), parse_image_size(image_size), grey, train=False)


def sample_shape(name: str, image_size: str = "", grey: bool = False) -> tuple[int, ...]:
    """Shape of the samples of a data set or folder, `(C, H, W)` or `(D,)`, without loading it.

    Raises ValueError if the data set is unknown.
    """
    shape, size = find_dataset(name).shape, parse_image_size(image_size)
    if len(shape) == 1:
        return shape
    return (1 if grey else shape[0], *(size or shape[1:]))


def find_dataset(name: str, given_range: Range = AUTOMATIC) -> DatasetEntry:
    """The table's entry, or one for the folder at that path; ValueError if there is neither."""
    if name in DATASETS:
        return DATASETS[name]
    folder = Path(name)
    if name and folder.is_dir():
        load = partial(load_folder, folder, given_range=given_range)
        return DatasetEntry(load, "a folder of images", (3, 64, 64))
    close = get_close_matches(name, DATASETS, 1, cutoff=0.7)
    hint = f" (did you mean {close[0]}?)" if close else ""
    reason = "it is a file, not a folder" if folder.exists() else "there is no such folder"
    raise ValueError(
        f"unknown dataset {name!r}{hint}: {reason}; use one of {', '.join(DATASETS)}, or a "
        "folder of images"
    )
