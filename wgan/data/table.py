"""The table of data sets. Any other name is a folder of images, or arrays.

A further data set is one function and one entry.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from wgan.data.arrays import is_arrays, load_arrays, open_arrays
from wgan.data.batches import Dataset
from wgan.data.downloads import load_cifar10, load_fashion_mnist, load_mnist
from wgan.data.folder import load_celeba, load_folder, load_lsun
from wgan.data.glyphs import load_glyphs
from wgan.data.images import AUTOMATIC, Range, Size, parse_image_size
from wgan.data.points import load_grid, load_ring, load_swissroll
from wgan.errors import suggestion


@dataclass(frozen=True)
class DatasetEntry:
    """How to load a data set, and what is known of it before it is loaded.

    `load` takes the data root, the image size (None: the data set's own) and whether to convert
    to grey; `shape` is the shape of a sample, `(C, H, W)` or `(D,)`, if neither is given.
    `options` are the `DATA_OPTIONS` that have an effect.
    `recipes` are names of files in `configs/`, without `.toml`: of these, the first that fits
    the method and the model applies. `settings` are values of options that suit these data.
    """

    load: Callable[[Path, Size | None, bool], Dataset]
    help: str
    shape: tuple[int, ...]
    recipes: tuple[str, ...] = ()
    options: tuple[str, ...] = ("image_size", "grey", "flip")
    settings: dict = field(default_factory=dict)

    @property
    def is_points(self) -> bool:
        return len(self.shape) == 1


DATA_OPTIONS = ("image_size", "grey", "alpha", "range", "flip")
IMAGE_RECIPES = ("images",)
FASHION_RECIPES = (
    "fashion-mnist-best",
    "fashion-mnist-dcgan",
    "fashion-mnist-residual",
    "fashion-mnist-best-wgan-div",
    "fashion-mnist-best-wgan",
)
POINT_RECIPES = ("points-wgan-gp", "points-wgan", "points-wgan-div")

MIRRORED = {"flip": True}  # looks natural

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
        load_celeba, "faces, 64x64 by default", (3, 64, 64), IMAGE_RECIPES, settings=MIRRORED
    ),
    "lsun": DatasetEntry(
        load_lsun, "bedrooms, 64x64 by default", (3, 64, 64), IMAGE_RECIPES, settings=MIRRORED
    ),
}


def load_dataset(
    name: str,
    root: str | Path = "datasets",
    image_size: str = "",
    grey: bool = False,
    given_range: Range = AUTOMATIC,
    alpha: bool = False,
) -> Dataset:
    """Load the data set called `name`, or the folder of images or the arrays at that path.

    `image_size` is "64" or "64x96" (height x width), or empty for the data set's own size. The
    shorter side is resized and the centre cropped. Points ignore `image_size` and `grey`.
    `given_range` are the values that become black and white in images of more than 8 bits, of a
    folder or in arrays; (0, 0): the smallest and largest of all. With `alpha`, these images have a
    fourth channel.
    Raises ValueError if the data set is unknown, unavailable or empty.
    """
    entry = find_dataset(name, given_range, alpha)
    return entry.load(Path(root), parse_image_size(image_size), grey)


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


def sample_shape(
    name: str, image_size: str = "", grey: bool = False, alpha: bool = False
) -> tuple[int, ...]:
    """Shape of the samples of a data set, folder or array, `(C, H, W)` or `(D,)`, not loading it.

    Raises ValueError if the data set is unknown.
    """
    shape, size = find_dataset(name).shape, parse_image_size(image_size)
    if len(shape) == 1:
        return shape
    return (4 if alpha else 1 if grey else shape[0], *(size or shape[1:]))


def find_entry(name: str) -> DatasetEntry | None:
    """The data set, folder or arrays of this name; None if there is none."""
    with suppress(ValueError, OSError):
        return find_dataset(name)
    return None


def is_points(name: str) -> bool:
    """Whether the samples are points or vectors; false for what is no data set."""
    entry = find_entry(name)
    return entry is not None and len(entry.shape) == 1


def unused_options(entry: DatasetEntry) -> set[str]:
    """The options without effect on a data set."""
    unused = set(DATA_OPTIONS) - set(entry.options)
    return unused | {"augment"} if entry.is_points else unused


def find_dataset(name: str, given_range: Range = AUTOMATIC, alpha: bool = False) -> DatasetEntry:
    """The table's entry, or one for the folder or the arrays at that path; ValueError if there is
    none, or for arrays that are no samples."""
    if name in DATASETS:
        return DATASETS[name]
    path, chosen = Path(name), {"given_range": given_range, "alpha": alpha}
    if name and is_arrays(path):
        arrays = open_arrays(path)
        load = partial(load_arrays, path, **chosen)
        recipes = () if arrays.is_vectors else IMAGE_RECIPES
        return DatasetEntry(load, "arrays", arrays.sample_shape, recipes, arrays.options)
    if name and path.is_dir():
        load = partial(load_folder, path, **chosen)
        return DatasetEntry(load, "a folder of images", (3, 64, 64), IMAGE_RECIPES, DATA_OPTIONS)
    reason = "there is no such folder or file"
    if name and path.exists():
        reason = "it is a file, but not a .npz or .npy file"
    raise ValueError(
        f"unknown dataset {name!r}: {reason}; use one of {', '.join(DATASETS)}, a folder of "
        f"images, or a .npz or .npy file{suggestion(name, DATASETS)}"
    )
