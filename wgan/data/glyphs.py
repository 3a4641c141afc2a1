"""The built-in images: digits drawn from the scalable fonts that matplotlib ships."""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from wgan.data.dataset import Dataset
from wgan.data.image_options import ImageOptions
from wgan.data.pixels import fit_images
from wgan.data.rows import RowReader
from wgan.files import try_to_write, write_whole

GLYPH_COUNT = 50_000
GLYPH_SEED = 1
GLYPH_VERSION = 1  # increase it if the images change, so that existing caches are drawn again
DIGIT_HEIGHT, CANVAS = 56, 96  # of the drawn digits, in pixels, before they are shrunk
# File names without the extension
THIN = (
    "DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSerif",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
BOLD = (
    "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "STIXGeneralBol",
    "STIXGeneralBolIta", "cmb10",
)  # fmt: skip
STROKES = dict.fromkeys(THIN, range(4)) | dict.fromkeys(BOLD, range(1))  # pixels to thicken by


def load_glyphs(root: Path, options: ImageOptions) -> Dataset:
    """50,000 digits of 28x28, drawn once and cached in `<root>/glyphs.npz`."""
    cache = root / "glyphs.npz"
    cached = read_cache(cache)
    if cached is None:
        cached = draw_glyphs(GLYPH_COUNT, GLYPH_SEED)
        try_to_write(f"cache {cache}", write_cache, cache, *cached)
    images, labels = cached
    samples = RowReader.from_array(fit_images(images, options))
    return Dataset(samples, labels, class_names=tuple("0123456789"))


def read_cache(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Images and labels from the cache; None if it is missing, corrupt or of another version."""
    try:
        with np.load(path) as arrays:  # a zip file, whose checksums reveal corruption
            if arrays["version"] == GLYPH_VERSION:
                return arrays["samples"], arrays["labels"]
    except FileNotFoundError:
        pass
    except Exception:  # a corrupt file may contain anything
        print(f"{path} is corrupt or cannot be read; drawing it again", file=sys.stderr)
    return None


def write_cache(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, version=GLYPH_VERSION, samples=images, labels=labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def draw_glyphs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` digits with random font, size, slant, rotation, thickness and position.

    Each digit is drawn once per font and thickness, large; an image is a random affine view of
    such a drawing. Returns images `(count, 1, 28, 28)` uint8, and the digits `(count,)`.
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
        # Sampled at twice the size and averaged, so that edges are smooth.
        shape = (len(source), 1, 56, 56)
        lattice = torch.nn.functional.affine_grid(views[part], shape, align_corners=False)
        view = torch.nn.functional.grid_sample(source, lattice, align_corners=False)
        images[part] = torch.nn.functional.avg_pool2d(view, 2).round().byte().numpy()
    return images, labels


def random_views(random: np.random.Generator, count: int) -> np.ndarray:
    """Random affine maps `(count, 2, 3)` from an image's coordinates to a drawing's, [-1, 1]."""
    height = random.uniform(16, 21, count)  # of the digit, in the image's pixels
    stretch = random.uniform(0.85, 1.15, count)
    slant = random.uniform(-0.25, 0.25, count)
    angle = random.uniform(-0.2, 0.2, count)
    shift = random.uniform(-1.5, 1.5, (count, 2)) / 14
    zoom = 28 / height * DIGIT_HEIGHT / CANVAS
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    shear = np.zeros((count, 2, 2))
    shear[:, 0, 0], shear[:, 0, 1], shear[:, 1, 1] = 1 / stretch, slant, 1
    linear = zoom[:, None, None] * (shear @ turn)
    offset = -(linear @ shift[:, :, None])
    return np.concatenate([linear, offset], 2).astype(np.float32)


def digit_drawings() -> tuple[Tensor, np.ndarray]:
    """Every digit in every font and thickness, `(M, 1, 96, 96)` uint8, and the digits `(M,)`."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawings, digits = [], []
    for name, strokes in STROKES.items():
        path = str(folder / f"{name}.ttf")
        left, top, right, bottom = ImageFont.truetype(path, 100).getbbox("0")
        font = ImageFont.truetype(path, 100 * DIGIT_HEIGHT / (bottom - top))
        for digit in range(10):
            left, top, right, bottom = font.getbbox(str(digit))
            middle = (CANVAS - left - right) / 2, (CANVAS - top - bottom) / 2
            for stroke in strokes:
                canvas = Image.new("L", (CANVAS, CANVAS))
                draw = ImageDraw.Draw(canvas)
                draw.text(middle, str(digit), 255, font, stroke_width=stroke)
                drawings.append(np.asarray(canvas))
                digits.append(digit)
    return torch.from_numpy(np.stack(drawings)[:, None]), np.array(digits)
