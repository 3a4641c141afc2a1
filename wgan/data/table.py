"""The table of data sets. Any other name is a folder or zip archive of images, or of arrays.

A further data set is one function and one entry.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from wgan.data.arrays import ARRAY_SUFFIXES, load_arrays, open_arrays
from wgan.data.csv_file import load_csv, read_lines
from wgan.data.dataset import Dataset
from wgan.data.downloads import load_cifar10, load_fashion_mnist, load_mnist
from wgan.data.folder import is_images, load_celeba, load_folder, load_lsun
from wgan.data.glyphs import load_glyphs
from wgan.data.image_options import ImageOptions
from wgan.data.points import load_grid, load_ring, load_swissroll
from wgan.errors import suggestion


@dataclass(frozen=True)
class DatasetEntry:
    """How to load a data set, and what is known of it before it is loaded.

    `load` takes the data root and how images become bytes; `shape` is a sample's own shape,
    `(C, H, W)` or `(D,)`. `options` are the `DATA_OPTIONS` that have an effect.
    `recipes` are names of files in `configs/`, without `.toml`: of these, the first that fits
    the method and the model applies. `settings` are values of options that suit this data.
    """

    load: Callable[[Path, ImageOptions], Dataset]
    help: str
    shape: tuple[int, ...]
    recipes: tuple[str, ...] = ()
    options: tuple[str, ...] = ("image_size", "grey", "flip")
    settings: dict = field(default_factory=dict)

    @property
    def is_points(self) -> bool:
        return len(self.shape) == 1


DATA_OPTIONS = ("image_size", "grey", "alpha", "range", "flip", "label_column")
IMAGE_RECIPES, VECTOR_RECIPES = ("images", "images-dcgan"), ("vectors",)
FASHION_RECIPES = (
    "fashion-mnist-best",
    "fashion-mnist-dcgan",
    "fashion-mnist-residual",
    "fashion-mnist-best-wgan",
    "fashion-mnist-r3gan",
)
POINT_RECIPES = ("points-wgan-gp", "points-wgan", "points-wgan-div")

DEFAULT = ImageOptions()

DATASETS = {
    "glyphs": DatasetEntry(
        load_glyphs, "digits in many fonts, 28x28, built in", (1, 28, 28), ("glyphs",)
    ),
    "ring": DatasetEntry(load_ring, "points: 8 Gaussians", (2,), POINT_RECIPES, ()),
    "grid": DatasetEntry(load_grid, "points: 25 Gaussians", (2,), POINT_RECIPES, ()),
    "swissroll": DatasetEntry(load_swissroll, "points: a spiral", (2,), POINT_RECIPES, ()),
    "mnist": DatasetEntry(load_mnist, "handwritten digits, 28x28", (1, 28, 28), IMAGE_RECIPES),
    "fashion-mnist": DatasetEntry(
        load_fashion_mnist, "clothes, 28x28", (1, 28, 28), FASHION_RECIPES
    ),
    "cifar10": DatasetEntry(
        load_cifar10, "small colour photographs, 32x32", (3, 32, 32), IMAGE_RECIPES
    ),
    "celeba": DatasetEntry(
        load_celeba, "faces, 64x64 by default", (3, 64, 64), IMAGE_RECIPES, settings={"flip": True}
    ),
    "lsun": DatasetEntry(
        load_lsun, "bedrooms, 64x64 by default", (3, 64, 64), IMAGE_RECIPES, settings={"flip": True}
    ),
}


def load_dataset(
    name: str, root: str | Path = "datasets", options: ImageOptions = DEFAULT
) -> Dataset:
    """Load the data set called `name`, or the folder of images or the file of arrays at that path.

    Options without effect are ignored. Raises ValueError if the data set is unknown, unavailable or
    empty.
    """
    return find_dataset(name).load(Path(root), options)


TEST_SETS = {"mnist": load_mnist, "fashion-mnist": load_fashion_mnist, "cifar10": load_cifar10}


def load_test_set(
    name: str, root: str | Path = "datasets", options: ImageOptions = DEFAULT
) -> Dataset:
    """The test images of a data set, as `load_dataset` loads its training images.

    Raises ValueError if the data set has none, or if they are unavailable.
    """
    if name not in TEST_SETS:
        raise ValueError(f"{name} has no test images: use one of {', '.join(TEST_SETS)}")
    return TEST_SETS[name](Path(root), options, train=False)


def sample_shape(name: str, options: ImageOptions = DEFAULT) -> tuple[int, ...]:
    """Shape of the samples of a data set, folder or array, `(C, H, W)` or `(D,)`, not loading it.

    Raises ValueError if the data set is unknown.
    """
    shape = find_dataset(name).shape
    return shape if len(shape) == 1 else options.shape(shape)


def find_entry(name: str) -> DatasetEntry | None:
    """The data set, folder or file of this name; None if there is none."""
    with suppress(ValueError, OSError):
        return find_dataset(name)
    return None


def unused_options(entry: DatasetEntry) -> set[str]:
    """The options without effect on a data set."""
    unused = set(DATA_OPTIONS) - set(entry.options)
    return unused | {"augment", "coarse"} if entry.is_points else unused


def find_dataset(name: str) -> DatasetEntry:
    """The table's entry, or one for the folder or file at that path; ValueError if there is none,
    or for arrays that are no samples."""
    if name in DATASETS:
        return DATASETS[name]
    path = Path(name)
    if path.suffix.lower() in ARRAY_SUFFIXES and path.is_file():
        arrays = open_arrays(path)
        recipes = VECTOR_RECIPES if arrays.is_vectors else IMAGE_RECIPES
        load = partial(load_arrays, path)
        return DatasetEntry(load, "arrays", arrays.sample_shape, recipes, arrays.options)
    if path.suffix.lower() == ".csv" and path.is_file():
        shape, load = (len(read_lines(path, 1)[0]),), partial(load_csv, path)
        return DatasetEntry(load, "a table", shape, VECTOR_RECIPES, ())
    if name and is_images(path):
        load = partial(load_folder, path)
        return DatasetEntry(load, "a folder of images", (3, 64, 64), IMAGE_RECIPES, DATA_OPTIONS)
    reason = "there is no such folder or file"
    if name and path.exists():
        reason = "it is a file, but not a .zip, .csv, .npz or .npy file"
    raise ValueError(
        f"unknown dataset {name!r}: {reason}; use one of {', '.join(DATASETS)}, a folder of "
        f"images, or a .zip, .csv, .npz or .npy file{suggestion(name, DATASETS)}"
    )
