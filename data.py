"""Every data set as one array in memory, and endless shuffled batches of it.

Images are `(N, C, H, W)` uint8 and stay bytes until a batch is on the device; points are
`(N, 2)` float32. `DATASETS` names the sets; anything else is a folder of pictures. A
further set is one function and one entry.
"""

import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Dataset:
    """Samples, `(N, C, H, W)` uint8 or `(N, 2)` float32, and their classes `(N,)` or None."""

    samples: np.ndarray
    labels: np.ndarray | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.samples.shape[1:]

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
        return load_folder(folder, size or (64, 64), grey)
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
    state. `batches(k)` is `(B, ...)` float32 on `device`; bytes are scaled to [-1, 1].
    """

    def __init__(
        self,
        samples: np.ndarray,
        batch_size: int,
        seed: int,
        device: torch.device,
        flip: bool = False,
    ):
        check_batch_size(batch_size, len(samples))
        self.samples = torch.from_numpy(samples).to(device)
        self.batch_size, self.seed, self.flip = batch_size, seed, flip
        self.orders: dict[int, Tensor] = {}

    def __call__(self, number: int) -> Tensor:
        batch = bytes_to_floats(self.samples[self.indices(number)])
        if self.flip:
            coins = torch.rand(
                self.batch_size, generator=seeded_generator("cpu", self.seed, "flip", number)
            )
            mirrored = (coins < 0.5).to(batch.device).view(-1, 1, 1, 1)
            batch = torch.where(mirrored, batch.flip(3), batch)
        return batch

    def indices(self, number: int) -> Tensor:
        """Which samples make up the batch of that number: `(B,)`."""
        epoch, start = divmod(number * self.batch_size, len(self.samples))
        this = self.order(epoch)[start : start + self.batch_size]
        if len(this) == self.batch_size:
            return this
        return torch.cat([this, self.order(epoch + 1)[: self.batch_size - len(this)]])

    def order(self, epoch: int) -> Tensor:
        """The epoch's permutation of all samples; only the latest two are kept."""
        if epoch not in self.orders:
            generator = seeded_generator("cpu", self.seed, "order", epoch)
            order = torch.randperm(len(self.samples), generator=generator)
            self.orders = {e: o for e, o in self.orders.items() if e == epoch - 1}
            self.orders[epoch] = order.to(self.samples.device)
        return self.orders[epoch]


def check_batch_size(batch_size: int, count: int) -> None:
    if batch_size > count:
        raise ValueError(
            f"a batch of {batch_size} is larger than the data set of {count} samples: "
            f"use --batch-size {count} or less"
        )


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
GLYPH_HEIGHT, GLYPH_CANVAS = 56, 96  # of the drawn digits, in pixels, before they are shrunk
DEJAVU = [f"DejaVu{family}" for family in ("Sans", "SansMono", "Serif")]
GLYPH_FONTS = {  # file name without its ending: the widest stroke to thicken it by
    **{font: 3 for font in DEJAVU},
    **{f"{font}-Bold": 0 for font in DEJAVU},
    **{f"{font}-{s}": 3 for font, s in zip(DEJAVU, ("Oblique", "Oblique", "Italic"), strict=True)},
    **{
        f"{font}-Bold{s}": 0
        for font, s in zip(DEJAVU, ("Oblique", "Oblique", "Italic"), strict=True)
    },
    "STIXGeneral": 3,
    "STIXGeneralItalic": 3,
    "STIXGeneralBol": 0,
    "STIXGeneralBolIta": 0,
    "cmr10": 3,
    "cmss10": 3,
    "cmtt10": 3,
    "cmb10": 1,
}


def load_glyphs(root: Path, size: Size | None, grey: bool) -> Dataset:
    """Digits drawn from matplotlib's fonts: 50,000 of 28x28, made once and kept in `root`."""
    cache = root / "glyphs.npz"
    dataset = read_cache(cache, GLYPH_VERSION)
    if dataset is None:
        dataset = draw_glyphs(GLYPH_COUNT, GLYPH_SEED)
        write_cache(cache, GLYPH_VERSION, dataset)
    return Dataset(fit_images(dataset.samples, size, grey), dataset.labels)


def draw_glyphs(count: int, seed: int) -> Dataset:
    """`count` digits with random font, size, slant, rotation, thickness and position.

    Each digit is drawn once per font and thickness, large; an image is one random affine
    view of such a drawing. `(count, 1, 28, 28)` uint8, and the digits as labels.
    """
    drawings, digits = digit_drawings()
    random = np.random.default_rng(seed)
    labels = random.integers(10, size=count)
    which = np.empty(count, np.int64)
    for digit in range(10):
        at = labels == digit
        which[at] = random.choice(np.flatnonzero(digits == digit), at.sum())
    views = torch.from_numpy(random_views(random, count))
    images = np.empty((count, 1, 28, 28), np.uint8)
    chunks = range(0, count, 1000)
    for start in tqdm(chunks, "drawing digits", delay=1, leave=False, disable=None):
        part = slice(start, start + 1000)
        source = drawings[which[part]].float()
        # Drawn at twice the size and averaged down, so that edges stay smooth.
        shape = (len(source), 1, 56, 56)
        lattice = torch.nn.functional.affine_grid(views[part], shape, align_corners=False)
        view = torch.nn.functional.grid_sample(source, lattice, align_corners=False)
        images[part] = torch.nn.functional.avg_pool2d(view, 2).round().byte().numpy()
    return Dataset(images, labels)


def random_views(random: np.random.Generator, count: int) -> np.ndarray:
    """Random affine maps `(count, 2, 3)` from an image's coordinates to a drawing's, [-1, 1]."""
    height = random.uniform(16, 21, count)  # of the digit, in the image's pixels
    stretch = random.uniform(0.85, 1.15, count)
    slant = random.uniform(-0.25, 0.25, count)
    angle = random.uniform(-0.2, 0.2, count)
    shift = random.uniform(-1.5, 1.5, (count, 2)) / 14
    zoom = 28 / height * GLYPH_HEIGHT / GLYPH_CANVAS
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    shear = np.zeros((count, 2, 2))
    shear[:, 0, 0], shear[:, 0, 1], shear[:, 1, 1] = 1 / stretch, slant, 1
    linear = zoom[:, None, None] * (shear @ turn)
    offset = -(linear @ shift[:, :, None])
    return np.concatenate([linear, offset], 2).astype(np.float32)


def digit_drawings() -> tuple[Tensor, np.ndarray]:
    """Every digit in every font and thickness, `(M, 1, 96, 96)` uint8, and which digit it is."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawings, digits = [], []
    for name, widest in GLYPH_FONTS.items():
        path = str(folder / f"{name}.ttf")
        left, top, right, bottom = ImageFont.truetype(path, 100).getbbox("0")
        font = ImageFont.truetype(path, 100 * GLYPH_HEIGHT / (bottom - top))
        for digit in range(10):
            left, top, right, bottom = font.getbbox(str(digit))
            middle = (GLYPH_CANVAS - left - right) / 2, (GLYPH_CANVAS - top - bottom) / 2
            for stroke in range(widest + 1):
                canvas = Image.new("L", (GLYPH_CANVAS, GLYPH_CANVAS))
                draw = ImageDraw.Draw(canvas)
                draw.text(middle, str(digit), 255, font, stroke_width=stroke)
                drawings.append(np.asarray(canvas))
                digits.append(digit)
    return torch.from_numpy(np.stack(drawings)[:, None]), np.array(digits)


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
        print(f"{path} is damaged and will be made again", file=sys.stderr)
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
    try:
        try:
            return make(download=False, **arguments)
        except RuntimeError:
            print(f"{name} is not in {folder} yet; downloading it", file=sys.stderr)
            return make(download=True, **arguments)
    except Exception as error:  # whatever a network, an archive or a missing package raises
        raise ValueError(
            f"{name} could not be downloaded ({type(error).__name__}: {error}). Fetch by hand: "
            f"{', '.join(files)}, and put them into {folder}"
        ) from error


def load_celeba(root: Path, size: Size | None, grey: bool) -> Dataset:
    """CelebA's 202,599 aligned faces, without their attributes."""
    folder = root / "celeba" / "img_align_celeba"
    if not folder.is_dir():
        files = ["img_align_celeba.zip (unpacked, so that img_align_celeba/ lies there)"]
        fetch("CelebA", files, root / "celeba", root=str(root), split="all")
    return Dataset(load_folder(folder, size or (64, 64), grey).samples)


def load_lsun(root: Path, size: Size | None, grey: bool) -> Dataset:
    """LSUN's bedrooms; reading its data base needs the package lmdb."""
    folder = root / "lsun"
    by_hand = f"Fetch by hand: bedroom_train_lmdb.zip, and unpack it into {folder}"
    if not (folder / "bedroom_train_lmdb").is_dir():
        raise ValueError(f"LSUN cannot be downloaded from here. {by_hand}")
    try:
        import lmdb  # noqa: F401
        from torchvision.datasets import LSUN
    except ImportError as error:
        raise ValueError("lsun needs one more package: pip install lmdb") from error
    source = LSUN(str(folder), classes=["bedroom_train"])
    readers = ((f"picture {i}", lambda i=i: source[i][0]) for i in range(len(source)))
    samples, _ = read_pictures(readers, len(source), size or (64, 64), grey)
    return Dataset(samples)


def fit_images(images: np.ndarray, size: Size | None, grey: bool) -> np.ndarray:
    """Bytes `(N, C, H, W)` with the shorter side resized, the centre cropped, and greyed."""
    if grey and images.shape[1] == 3:
        images = (images * LUMA[:, None, None]).sum(1, keepdims=True).round().astype(np.uint8)
    if size is None or size == images.shape[2:]:
        return np.ascontiguousarray(images)
    inner, (top, left) = resize_then_crop(images.shape[2:], size)
    fitted = np.empty((*images.shape[:2], *size), np.uint8)
    for start in range(0, len(images), 1000):
        part = slice(start, start + 1000)
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(images[part]).float(), inner, mode="bilinear", antialias=True
        )
        crop = resized[:, :, top : top + size[0], left : left + size[1]]
        fitted[part] = crop.round().clamp(0, 255).byte().numpy()
    return fitted


LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"


def resize_then_crop(source: Size, target: Size) -> tuple[Size, tuple[int, int]]:
    """The size to resize to so that `target` is just covered, and the crop's top and left."""
    scale = max(target[0] / source[0], target[1] / source[1])
    inner = tuple(max(t, round(s * scale)) for s, t in zip(source, target, strict=True))
    return inner, ((inner[0] - target[0]) // 2, (inner[1] - target[1]) // 2)


# ---------------------------------------------------------------- a folder of pictures


def load_folder(folder: Path, size: Size, grey: bool) -> Dataset:
    """All pictures below a folder, their first subfolder's name as class where all have one.

    Files that are no picture are skipped, counted and the first few named. ValueError if
    none is left.
    """
    files = list_files(folder)
    if not files:
        raise ValueError(f"the folder {folder} holds no files: put pictures there")
    readers = ((file, lambda file=file: open_picture(folder / file)) for file in files)
    samples, skipped = read_pictures(readers, len(files), size, grey)
    if skipped:
        names = "; ".join(f"{name!r}: {why}" for name, why in list(skipped.items())[:3])
        more = "; ..." if len(skipped) > 3 else ""
        print(
            f"{folder}: {len(skipped)} of {len(files)} files are no readable pictures and were "
            f"skipped ({names}{more})",
            file=sys.stderr,
        )
    if not len(samples):
        raise ValueError(f"the folder {folder} holds {len(files)} files, none a readable picture")
    parents = [Path(file).parts[0] for file in files if file not in skipped and "/" in file]
    if len(parents) < len(samples) or len(set(parents)) < 2:
        return Dataset(samples)
    return Dataset(samples, np.unique(parents, return_inverse=True)[1])


def list_files(folder: Path) -> list[str]:
    """Paths, relative and with "/", of all files but hidden ones, sorted.

    Linked folders are entered once, so that a loop of links ends.
    """
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        found += [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return sorted(found)


def read_pictures(
    readers: Iterator[tuple[str, Callable]], count: int, size: Size, grey: bool
) -> tuple[np.ndarray, dict[str, str]]:
    """Decode `count` pictures on all cores into bytes `(N, C, *size)`.

    Each reader is a name and a function that opens the picture. Also returns, by name, why
    a picture could not be read.
    """
    samples = np.empty((count, 1 if grey else 3, *size), np.uint8)
    kept = np.zeros(count, bool)
    skipped: dict[str, str] = {}

    def read(item: tuple[int, tuple[str, Callable]]) -> None:
        index, (name, opener) = item
        try:
            with warnings.catch_warnings(action="ignore"), opener() as picture:
                samples[index] = picture_to_bytes(picture, size, grey)
            kept[index] = True
        except Exception as error:  # decoders meet broken files with every kind of exception
            skipped[name] = f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = pool.map(read, enumerate(readers))
        for _ in tqdm(work, "reading pictures", count, delay=2, leave=False, disable=None):
            pass
    return samples[kept], dict(sorted(skipped.items()))


def open_picture(path: Path):
    """Open without decoding; not formats that Pillow hands to another program to draw."""
    from PIL import Image

    Image.init()
    return Image.open(path, formats=[name for name in Image.OPEN if name not in ("EPS", "WMF")])


def picture_to_bytes(picture, size: Size, grey: bool) -> np.ndarray:
    """One Pillow image, the first frame of an animation, upright, as bytes `(C, H, W)`."""
    from PIL import Image, ImageOps

    # JPEG files are decoded at the smallest eighth that still covers the size, many times faster.
    picture.draft(None, (2 * max(size), 2 * max(size)))
    picture = flatten_modes(ImageOps.exif_transpose(picture)).convert("L" if grey else "RGB")
    (height, width), (top, left) = resize_then_crop((picture.height, picture.width), size)
    scale_x, scale_y = picture.width / width, picture.height / height
    box = (
        left * scale_x,
        top * scale_y,
        (left + size[1]) * scale_x,
        (top + size[0]) * scale_y,
    )
    picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)


def flatten_modes(picture):
    """Transparent pictures over white; 16 bits, 32 bits and floats to 8 bits."""
    from PIL import Image

    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.float64)
        if picture.mode == "F":  # no fixed range: the picture's own
            low, high = values.min(), values.max()
            values = (values - low) * (255 / (high - low) if high > low else 0)
        else:
            values = values / 256
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture)
    return picture


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Source:
    """How a data set is had, and the option values that suit it.

    `settings` hold for every method, `recipes` for the method that is their key.
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
    "settings": {"width": 32, "batch_size": 32, "steps": 2500, "lr_decay": True},
    "recipes": {"wgan-gp": {"n_critic": 3, "lr": 2e-3, "gp_weight": 1.0}},
}

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
