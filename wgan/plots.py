"""Arrays and logs to images: grids, curves, the timelapse, a critic's surface."""

import io
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wgan.data import opaque
from wgan.files import MARK

TIMELAPSE_FRAMES = 60
TIMELAPSE_SIDE = 820  # pixels; together with the number of frames it bounds the file size
LINES = 30  # vectors in a plot
GRID_WIDTH = 600  # pixels, so that small images can be seen in a browser


def image_grid(
    images: np.ndarray, columns: int = 8, gap: int = 2, least_width: int = GRID_WIDTH
) -> Image.Image:
    """Images `(N, C, H, W)` uint8 side by side, up to `columns` in a row, on black.

    The grid is enlarged by a whole factor, so that `columns` images along their longer side have
    at least `least_width` pixels. Transparent images have a white background. torchvision's
    `make_grid` does not enlarge, and importing torchvision takes two seconds.
    """
    images = opaque(images)
    count, channels, height, width = images.shape
    factor = max(1, ceil(least_width / (columns * (max(height, width) + gap) + gap)))
    columns = min(columns, count)
    rows = ceil(count / columns)
    canvas = np.zeros(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels), np.uint8
    )
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return Image.fromarray(canvas.repeat(factor, 0).repeat(factor, 1).squeeze())


def scatter(
    real: np.ndarray | None = None,
    fake: np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> Image.Image:
    """Real points `(N, 2)`, generated ones, or both, over the critic's scores `(S, S)` if given.

    The scores belong to a square lattice over [-extent, extent], with rows along y. Contour lines
    are at equal steps of the score, so their density shows the norm of the critic's gradient.
    Vectors `(N, D)` of another dimension are drawn as lines.
    """
    if (fake if real is None else real).shape[1] != 2:
        return lines(real, fake)
    reach = extent(fake if real is None else real)
    figure = new_figure(5, 5)
    axes = figure.add_axes((0, 0, 1, 1))
    if scores is not None:
        axis = np.linspace(-reach, reach, len(scores))
        axes.contourf(axis, axis, scores, levels=24, cmap="viridis", alpha=0.75)
        axes.contour(axis, axis, scores, levels=24, colors="black", linewidths=0.3)
    if real is not None:
        axes.scatter(*real.T, s=5, c="white", edgecolors="black", linewidths=0.3, label="real")
    if fake is not None:
        axes.scatter(*fake.T, s=5, c="crimson", linewidths=0, label="generated")
        axes.legend(loc="lower center", ncols=2, fontsize=9, framealpha=0.9)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    axes.set_axis_off()
    return to_image(figure)


def lines(real: np.ndarray | None = None, fake: np.ndarray | None = None) -> Image.Image:
    """Real vectors `(N, D)` in grey, generated ones in red, or both: the first `LINES` of each as
    lines over their columns. For single numbers, D = 1, all of them, in ascending order."""
    figure = new_figure(8, 5)
    axes = figure.add_axes((0.08, 0.1, 0.9, 0.86))
    for vectors, colour, label in ((real, "dimgrey", "real"), (fake, "crimson", "generated")):
        if vectors is None:
            continue
        single = vectors.shape[1] == 1
        drawn = np.sort(vectors, axis=0) if single else vectors[:LINES].T
        style = {"linewidth": 1.5 if single else 0.7, "alpha": 1 if single else 0.5}
        axes.plot(drawn, color=colour, **style)
        axes.plot([], color=colour, label=label)
        axes.set(xlabel="rank" if single else "column", ylabel="value")
    axes.legend(loc="upper right", ncols=2, fontsize=9)
    return to_image(figure)


def extent(real: np.ndarray) -> float:
    """Half the side of the square that a scatter plot shows: the data and a margin."""
    return 1.25 * float(np.abs(real).max())


PANELS = {
    "wasserstein": "Wasserstein estimate",
    "penalty": "penalty",
    "gradient_norm": "gradient norm at interpolates",
    "frechet_distance": "Fréchet distance",
}


def curves(log: dict[str, np.ndarray]) -> Image.Image:
    """Plot the log's columns over the steps: raw in grey, the running mean in blue. A value that
    was not measured is NaN; a column without values has no panel."""
    panels = {name: title for name, title in PANELS.items() if np.isfinite(log[name]).any()}
    figure = new_figure(4 * len(panels), 3.6)
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        measured = np.isfinite(log[name])
        steps, values = log["step"][measured], log[name][measured]
        axes.plot(steps, values, color="silver", linewidth=0.8)
        axes.plot(steps, running_mean(values), color="tab:blue")
        axes.set(title=title, xlabel="generator steps")
        axes.grid(alpha=0.3)
        if name == "gradient_norm":
            axes.axhline(1, color="black", linewidth=0.6, linestyle="--")
        if name == "frechet_distance":
            axes.set_ylim(bottom=0)
    figure.tight_layout()
    return to_image(figure)


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours, over a twentieth of the series."""
    reach = len(values) // 40
    sums = np.concatenate([[0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def timelapse(frames: list[Path], target: BinaryIO) -> None:
    """Write an animated GIF of image files, at most `TIMELAPSE_FRAMES` of them, evenly spaced."""
    if len(frames) > TIMELAPSE_FRAMES:
        chosen = np.linspace(0, len(frames) - 1, TIMELAPSE_FRAMES).round().astype(int)
        frames = [frames[index] for index in chosen]
    images = []
    for frame in frames:
        try:
            with Image.open(frame) as image:
                image = image.convert("L" if image.mode == "L" else "RGB")
        except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's, for a broken PNG
            raise OSError(f"{frame} is damaged ({error}): remove it") from error
        # By a whole factor, as grids are enlarged by one.
        images.append(image.reduce(ceil(max(image.size) / TIMELAPSE_SIDE)))
    durations = [100] * (len(images) - 1) + [2000]  # milliseconds; longer for the last frame
    save_gif(images, durations, target)


def save_gif(frames: Iterable[Image.Image], durations: int | list[int], target: BinaryIO) -> None:
    """Write an endless animation of frames, which last that many milliseconds."""
    first, *others = frames
    options = {"save_all": True, "duration": durations, "loop": 0, "comment": MARK}
    first.save(target, "GIF", append_images=others, **options)


def new_figure(width: float, height: float):
    """A figure, in inches, that needs no display. matplotlib is imported only if one is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def to_image(figure) -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    mark = PngInfo()
    mark.add_text("Software", MARK)
    image.save(buffer, "PNG", pnginfo=mark)
    return buffer.getvalue()
