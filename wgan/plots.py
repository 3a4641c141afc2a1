"""Arrays and logs to pictures: grids, curves, the timelapse, a critic's surface."""

from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

TIMELAPSE_FRAMES = 60
TIMELAPSE_SIDE = 480  # pixels; with the number of frames, it bounds the file


def image_grid(images: np.ndarray, columns: int = 8, gap: int = 2) -> Image.Image:
    """Bytes `(N, C, H, W)` side by side, `columns` in a row, on black.

    (torchvision's `make_grid` does the same, at the price of a two-second import.)
    """
    count, channels, height, width = images.shape
    rows = ceil(count / columns)
    canvas = np.zeros(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels), np.uint8
    )
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return Image.fromarray(canvas.squeeze())


def scatter(
    real: np.ndarray, fake: np.ndarray | None = None, scores: np.ndarray | None = None
) -> Image.Image:
    """Real and generated points `(N, 2)`, over the critic's scores `(S, S)` where given.

    The scores lie on a square lattice over [-extent, extent], rows along y. Contour lines
    are drawn at equal steps of the score, so that they are equally dense wherever the
    critic's gradient has one norm.
    """
    reach = extent(real)
    figure = new_figure(5, 5)
    axes = figure.add_axes((0, 0, 1, 1))
    if scores is not None:
        axis = np.linspace(-reach, reach, len(scores))
        axes.contourf(axis, axis, scores, levels=24, cmap="viridis", alpha=0.75)
        axes.contour(axis, axis, scores, levels=24, colors="black", linewidths=0.3)
    axes.scatter(*real.T, s=5, c="white", edgecolors="black", linewidths=0.3, label="real")
    if fake is not None:
        axes.scatter(*fake.T, s=5, c="crimson", linewidths=0, label="generated")
        axes.legend(loc="lower center", ncols=2, fontsize=9, framealpha=0.9)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    axes.set_axis_off()
    return to_image(figure)


def extent(real: np.ndarray) -> float:
    """Half the side of the square that a scatter shows: the data, and a margin."""
    return 1.25 * float(np.abs(real).max())


PANELS = {
    "wasserstein": "Wasserstein estimate",
    "penalty": "penalty",
    "gradient_norm": "gradient norm at mixed points",
    "frechet_distance": "Fréchet distance",
}


def curves(log: dict[str, np.ndarray]) -> Image.Image:
    """The log's columns over its steps: raw in grey, and a running mean. What was not measured
    at a step is not a number there; a panel without any number is left out."""
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
    """The mean of each value and its neighbours, a twentieth of the series in all."""
    reach = len(values) // 40
    sums = np.concatenate([[0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def timelapse(frames: list[Path], target: BinaryIO) -> None:
    """An animation of picture files, evenly chosen where they are many; a GIF of bounded size."""
    if len(frames) > TIMELAPSE_FRAMES:
        chosen = np.linspace(0, len(frames) - 1, TIMELAPSE_FRAMES).round().astype(int)
        frames = [frames[index] for index in chosen]
    pictures = []
    for frame in frames:
        with Image.open(frame) as picture:
            picture = picture.convert("L" if picture.mode == "L" else "RGB")
            picture.thumbnail((TIMELAPSE_SIDE, TIMELAPSE_SIDE))
            pictures.append(picture)
    durations = [100] * (len(pictures) - 1) + [2000]  # milliseconds; rest on the last
    pictures[0].save(
        target, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
    )


def new_figure(width: float, height: float):
    """A figure in inches that needs no display; matplotlib is imported only when one is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def to_image(figure) -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
