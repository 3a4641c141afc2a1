"""Arrays and logs to images: grids, curves, the timelapse, a critic's surface."""

import io
from collections.abc import Iterable, Iterator
from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from wgan.data import Standardisation, opaque
from wgan.files import MARK

PNG_LEVEL = 3  # of compression, 1 to 9: a third of the time of 6, and a tenth more bytes
TIMELAPSE_FRAMES = 60
TIMELAPSE_SIDE = 820  # pixels; together with the number of frames it bounds the file size
GAP = 2  # pixels between the images of a grid, before it is enlarged
LABEL_SIZE = 14  # pixels; the height of letters
LABEL_LENGTH = 16  # letters of a row's label
LEVELS = 20  # of a critic's surface, about
HISTOGRAMS, BINS = 34, 25  # in a picture of vectors
MARKED = 40  # values of a line, up to which each has a marker: a single value is no line
GRID_WIDTH = 600  # pixels, so that small images can be seen in a browser


def image_grid(
    images: np.ndarray, columns: int = 8, row_labels: list[str] | None = None
) -> Image.Image:
    """Images `(N, C, H, W)` uint8 side by side, up to `columns` in a row, on black.

    The grid is enlarged by a whole factor, so that `columns` images along their longer side have
    `GRID_WIDTH` pixels or more. Transparent images have a white background. torchvision's
    `make_grid` does not enlarge, and importing torchvision takes two seconds. `row_labels`, one per
    row, are written in a margin on the left.
    """
    grid = tile(images, columns, enlargement(images.shape, columns))
    return label_rows(grid, row_labels) if row_labels else grid


def enlargement(shape: tuple[int, ...], columns: int) -> int:
    """The factor by which `columns` images of a shape `(N, C, H, W)` fill `GRID_WIDTH`."""
    return ceil(GRID_WIDTH / (columns * (max(shape[2:]) + GAP) + GAP))


def tile(images: np.ndarray, columns: int, factor: int) -> Image.Image:
    """Images `(N, C, H, W)` uint8 side by side, enlarged by a whole factor."""
    images = opaque(images)
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows, pitch = ceil(count / columns), (height + GAP, width + GAP)
    canvas = np.zeros((rows * pitch[0] + GAP, columns * pitch[1] + GAP, channels), np.uint8)
    for index, image in enumerate(images):
        top, left = GAP + index // columns * pitch[0], GAP + index % columns * pitch[1]
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return Image.fromarray(canvas.repeat(factor, 0).repeat(factor, 1).squeeze())


def label_rows(grid: Image.Image, labels: list[str]) -> Image.Image:
    """A grid with the label of each row in a margin on its left."""
    pitch = grid.height / len(labels)
    font = label_font(max(1, min(LABEL_SIZE, int(pitch))))
    labels = [text if len(text) <= LABEL_LENGTH else f"{text[:LABEL_LENGTH]}…" for text in labels]
    margin = ceil(max(font.getlength(label) for label in labels)) + LABEL_SIZE
    labelled = Image.new(grid.mode, (margin + grid.width, grid.height))
    labelled.paste(grid, (margin, 0))
    draw = ImageDraw.Draw(labelled)
    for row, label in enumerate(labels):
        place = (margin - LABEL_SIZE // 2, (row + 0.5) * pitch)
        draw.text(place, label, "white", font, anchor="rm")  # right, middle
    return labelled


def neighbour_grid(samples: np.ndarray, neighbours: np.ndarray) -> Image.Image:
    """Samples `(N, C, H, W)` uint8 in a column, and right of a line, in the same row, the real
    images nearest to each, `(N, K, C, H, W)`."""
    rows = np.concatenate([samples[:, None], neighbours], 1)
    columns = rows.shape[1]
    grid = image_grid(rows.reshape(-1, *samples.shape[1:]), columns)
    factor = enlargement(samples.shape, columns)
    middle = factor * (samples.shape[3] + GAP + GAP // 2)  # of the gap after the first column
    ImageDraw.Draw(grid).line((middle, 0, middle, grid.height), "white", factor)
    return grid


def label_font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's font, which has Greek and Cyrillic letters; that of Pillow has not."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def scatter(
    real: np.ndarray | None = None,
    fake: np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> Image.Image:
    """Real points `(N, 2)`, generated ones, or both, over the critic's scores `(S, S)` if given.

    The scores belong to a square lattice over [-extent, extent], with rows along y. Contour lines
    are at equal steps of the score, so their density shows the norm of the critic's gradient. The
    axes have a fixed place, so that all frames of a timelapse match.
    """
    points = fake if real is None else real
    reach = extent(points)
    width, height, side = 5.05 if scores is None else 6.0, 5.2, 4.45  # inches
    figure = new_figure(width, height)
    axes = figure.add_axes((0.5 / width, 0.35 / height, side / width, side / height))
    if scores is not None:
        axis = np.linspace(-reach, reach, len(scores))
        # Without antialiasing, neighbouring levels do not mix, and the file is a third smaller.
        surface = axes.contourf(axis, axis, scores, levels=LEVELS, antialiased=False)
        style = {"colors": "black", "linestyles": "solid", "linewidths": 0.3}
        axes.contour(axis, axis, scores, levels=LEVELS, **style)
        bar = figure.add_axes((5.05 / width, 0.35 / height, 0.15 / width, side / height))
        figure.colorbar(surface, cax=bar, format="%.3g")
        bar.set_title("critic's score", loc="left", fontsize="medium")
    if real is not None:
        axes.scatter(*real.T, s=5, c="white", edgecolors="black", linewidths=0.3, label="real")
    if fake is not None:
        axes.scatter(*fake.T, s=5, c="crimson", linewidths=0, label="generated")
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2, "borderaxespad": 0.1}
    axes.legend(frameon=False, markerscale=2, columnspacing=1, handletextpad=0.2, **above)
    return to_image(figure)


def vectors(
    real: Tensor | None, fake: Tensor | None, scale: Standardisation | None = None
) -> Image.Image:
    """Real vectors `(N, D)` in grey, generated ones in red, or both, in the units before `scale`: a
    histogram of each column, or of `HISTOGRAMS` ones, and the correlations of all columns."""
    named = ((real, "dimgrey", "real"), (fake, "crimson", "generated"))
    undo, names = (scale.undo, scale.columns) if scale else (Tensor.double, ())
    parts = [part for part in named if part[0] is not None]
    sets = [
        (np.nan_to_num(undo(v.cpu()).numpy(), posinf=0, neginf=0), *style) for v, *style in parts
    ]
    dimension = sets[0][0].shape[1]
    shown = np.linspace(0, dimension - 1, min(dimension, HISTOGRAMS)).round().astype(int)
    columns = ceil((len(shown) + len(sets)) ** 0.5)
    rows = ceil((len(shown) + len(sets)) / columns)
    figure = new_figure(2.2 * columns, 1.7 * rows)
    figure.subplots_adjust(0.02, 0.2 / rows, 0.98, 1 - 0.2 / rows, hspace=0.5, wspace=0.15)
    for place, column in enumerate(shown, 1):
        panel = figure.add_subplot(rows, columns, place, yticks=[])
        both = np.concatenate([values[:, column] for values, *_ in sets])
        edges = np.linspace(both.min(), max(both.max(), both.min() + 1e-6), BINS + 1)
        for values, colour, label in sets:
            heights = np.histogram(values[:, column], edges)[0] / len(values)
            panel.stairs(heights, edges, fill=True, color=colour, alpha=0.5, label=label)
        panel.set_title(names[column] if names else f"column {column + 1}", fontsize=8)
        panel.tick_params(labelsize=6)
    figure.axes[0].legend(fontsize=6)
    for place, (values, _, label) in enumerate(sets, len(shown) + 1):
        panel = figure.add_subplot(rows, columns, place, xticks=[], yticks=[])
        with np.errstate(invalid="ignore"):  # of a constant column
            panel.imshow(np.atleast_2d(np.corrcoef(values.T)), "RdBu_r", vmin=-1, vmax=1)
        panel.set_title(f"correlations, {label}", fontsize=8)
    return to_image(figure)


def extent(points: np.ndarray) -> float:
    """Half the side of the square that a scatter plot shows: the data and a margin."""
    return 1.25 * float(np.abs(points).max())


PANELS = {  # title and unit of a column of the log; the critic's score has no unit
    "wasserstein": ("Wasserstein estimate", "E f(real) - E f(fake)"),
    "penalty": ("penalty", "weighted, as in the critic's loss"),
    "gradient_norm": ("gradient norm at interpolates", "score per unit of distance"),
    "frechet_distance": ("Fréchet distance", "squared distance of features"),
}


def curves(log: dict[str, np.ndarray]) -> Image.Image:
    """Plot the log's columns over the steps: raw in grey, the running mean in blue.

    A value that was not measured is NaN. A column without values has no panel, nor has one of
    zeros, as the penalty of a method that has none.
    """
    panels = [name for name in PANELS if np.nan_to_num(log[name]).any()]
    width, left, bottom = 4, 0.85, 0.27  # of a panel in inches; the margins of its axes
    figure = new_figure(width * len(panels), 3.8)
    for index, name in enumerate(panels):
        # Placed by hand, as matplotlib's layout engines take half of the time.
        start = (index + left / width) / len(panels)
        share = (width - left - 0.2) / width / len(panels)
        axes = figure.add_axes((start, bottom, share, 0.91 - bottom))
        measured = np.isfinite(log[name])
        draw_panel(axes, name, log["step"][measured], log[name][measured])
    legend = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    figure.legend(legend.values(), legend.keys(), loc="lower center", ncols=3)
    return to_image(figure)


def draw_panel(axes, name: str, steps: np.ndarray, values: np.ndarray) -> None:
    marker = "." if len(values) <= MARKED else ""
    axes.plot(steps, values, color="silver", linewidth=0.8, label="logged value")
    mean = {"color": "tab:blue", "marker": marker, "label": "running mean over 5% of the values"}
    axes.plot(steps, running_mean(values), **mean)
    title, unit = PANELS[name]
    axes.set(title=title, xlabel="generator updates", ylabel=unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if name == "gradient_norm":
        bound = {"color": "black", "linewidth": 0.8, "linestyle": "--"}
        axes.axhline(1, **bound, label="norm 1, as of a 1-Lipschitz critic")
        if 0 < np.median(values) < 0.1:  # weight clipping: far below the bound
            axes.set_yscale("log", nonpositive="mask")
    if name == "frechet_distance":
        axes.set_ylim(bottom=0)


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours, over a twentieth of the series."""
    reach = len(values) // 40
    sums = np.concatenate([[0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def timelapse(grids: list[Path], target: BinaryIO) -> None:
    """Write an animated GIF of the frames of numbered image files, each under its step."""
    images = [with_step(image, step) for step, image in frames_of(grids)]
    durations = [100] * (len(images) - 1) + [2000]  # milliseconds; longer for the last frame
    save_gif(images, durations, target)


def frames_of(grids: list[Path]) -> Iterator[tuple[int, Image.Image]]:
    """The steps and images of up to `TIMELAPSE_FRAMES` grids, evenly spaced."""
    count = min(len(grids), TIMELAPSE_FRAMES)
    for index in np.linspace(0, len(grids) - 1, count).round().astype(int):
        try:
            with Image.open(grids[index]) as image:
                image = image.convert("L" if image.mode == "L" else "RGB")
        except SyntaxError as error:  # Pillow's, for a broken PNG
            raise OSError(f"{grids[index]} is corrupt ({error}): remove it") from error
        # By a whole factor, as grids are enlarged by one.
        yield int(grids[index].stem), image.reduce(ceil(max(image.size) / TIMELAPSE_SIDE))


def with_step(image: Image.Image, step: int) -> Image.Image:
    """The image below a strip with the step."""
    labelled = ImageOps.expand(image, (0, LABEL_SIZE + 2 * GAP, 0, 0))
    font = label_font(LABEL_SIZE)
    ImageDraw.Draw(labelled).text((2 * GAP, 0), f"step {step:,}", "white", font)
    return labelled


def save_gif(frames: Iterable[Image.Image], durations: int | list[int], target: BinaryIO) -> None:
    """Write an endless animation of frames, which last that many milliseconds."""
    # Colours as a palette, by the one of Pillow's methods that takes milliseconds per frame.
    first, *others = (
        frame if frame.mode == "L" else frame.quantize(256, Image.Quantize.FASTOCTREE)
        for frame in frames
    )
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
    image.save(buffer, "PNG", pnginfo=mark, compress_level=PNG_LEVEL)
    return buffer.getvalue()
