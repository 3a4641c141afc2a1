"""Images, pixel by pixel if possible."""

import io
from math import ceil

import numpy as np
import pytest
import torch
from PIL import Image

from wgan.data import Standardisation
from wgan.plots import (
    GRID_WIDTH,
    TIMELAPSE_FRAMES,
    TIMELAPSE_SIDE,
    curves,
    image_grid,
    neighbour_grid,
    running_mean,
    scatter,
    timelapse,
    vectors,
)
from wgan.run_folder import LOG_COLUMNS


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("count", "side", "factor"), [(64, 28, 3), (10, 32, 3), (9, 64, 2), (3, 128, 1), (1, 32, 3)]
)
def test_a_grid_shows_every_image_in_reading_order_enlarged(count, side, factor, channels, random):
    images = random.integers(1, 256, (count, channels, side, side - 4), np.uint8)
    grid = np.asarray(image_grid(images, columns=8))
    assert factor * (8 * (side + 2) + 2) >= GRID_WIDTH
    plain = grid[::factor, ::factor]
    assert (grid == plain.repeat(factor, 0).repeat(factor, 1)).all()
    assert plain.shape[:2] == (ceil(count / 8) * (side + 2) + 2, min(count, 8) * (side - 2) + 2)
    expected = np.zeros((*plain.shape[:2], channels), np.uint8)
    for index, image in enumerate(images):
        top, left = 2 + index // 8 * (side + 2), 2 + index % 8 * (side - 2)
        expected[top : top + side, left : left + side - 4] = image.transpose(1, 2, 0)
    assert (plain == expected.squeeze()).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_row_labels_are_left_of_unchanged_images(channels, random):
    images = random.integers(0, 256, (6, channels, 64, 64), np.uint8)
    plain = np.asarray(image_grid(images, columns=2))
    labelled = np.asarray(image_grid(images, columns=2, row_labels=["shoe", "", "W" * 100]))
    margin = labelled.shape[1] - plain.shape[1]
    assert 0 < margin <= 300  # the long one is shortened
    assert np.array_equal(labelled[:, margin:], plain)
    inks = [bool(part.any()) for part in np.array_split(labelled[:, :margin], 3)]
    assert inks == [True, False, True]  # each label in its own row
    assert not labelled[:, :1].any()  # the long one is not cut off


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (3, 64, 32)])
def test_neighbours_are_right_of_their_sample_and_apart_from_it(shape):
    samples = np.full((3, *shape), 90, np.uint8)
    neighbours = np.full((3, 4, *shape), 180, np.uint8)
    grid = np.asarray(neighbour_grid(samples, neighbours))
    grid = grid.reshape(*grid.shape[:2], -1)[..., 0].astype(int)
    rows, line = grid[-10], grid[:, :].min(0).argmax()  # the white line
    assert grid[:, line].min() == 255
    values = rows[np.flatnonzero(np.diff(rows, prepend=0))]
    assert [value for value in values if value] == [90, 255, 180, 180, 180, 180]
    assert rows.tolist().index(90) < line < rows.tolist().index(180)


def test_a_running_mean_keeps_lines_and_smooths_noise():
    line = np.arange(100.0)
    inside = slice(5, -5)
    assert running_mean(line)[inside] == pytest.approx(line[inside])
    assert running_mean(np.tile([0.0, 1.0], 500)).std() < 0.05
    assert running_mean(np.array([3.0])).tolist() == [3.0]


def test_a_scatter_has_y_upward_and_the_data_inside():
    real = np.array([[1.0, 1.0], [-1.0, -1.0]])
    scores = np.linspace(0, 1, 50)[:, None].repeat(50, 1)  # grows with y: viridis ends in yellow
    image = np.asarray(scatter(real, real[:1], scores)).astype(int)
    above, below = image[80:120, 80:240].mean((0, 1)), image[400:440, 300:460].mean((0, 1))
    assert above[0] > below[0] + 50  # yellow has red in it, the violet below has not


def test_frames_of_a_surface_match_whatever_the_scores():
    real = np.array([[1.0, 1.0], [-1.0, -1.0]])
    slope = np.linspace(-1, 1, 20)[:, None].repeat(20, 1)
    frames = [scatter(real, real, scale * slope) for scale in (0, 1e-5, 1, 1e5)]
    assert len({frame.size for frame in frames}) == 1
    spines = [np.asarray(frame.convert("L"))[:, 200] for frame in frames]
    top = [np.flatnonzero(column < 50)[0] for column in spines]  # of the axes
    assert len(set(top)) == 1


def coloured(image, red):
    """The columns of pixels of a histogram in which it is grey or red."""
    pixels = np.asarray(image.crop((235, 40, 425, 142))).astype(int)  # the second, without a legend
    excess = pixels[..., 0] - pixels[..., 1]
    drawn = excess > 60 if red else (excess == 0) & (pixels[..., 0] < 200) & (pixels[..., 0] > 100)
    return np.flatnonzero(drawn.sum(0) > 20)


def test_histograms_show_where_real_and_generated_values_lie():
    values = torch.linspace(0, 1, 200)[:, None].expand(200, 3)
    image = vectors(values, values + 3)
    grey, red = coloured(image, False), coloured(image, True)
    assert len(grey) > 20 < len(red) and grey.max() < red.min()  # below, and above


def test_columns_of_any_values_and_number_can_be_drawn():
    """Constants too large for another bin, what diverged, one column, and more than are drawn."""
    scale = Standardisation(np.full(3, 1e17), np.array([0.0, 1e-3, 1.0]), ("a", "b", "c"))
    samples = torch.randn(20, 3)
    samples[0, 2] = float("nan")
    samples[1, 1] = float("inf")
    assert vectors(samples, samples, scale).size == (660, 340)
    assert vectors(samples[:, :1], None).size == (440, 170)
    assert vectors(None, torch.randn(20, 100)).size == (1320, 1020)


def rows_of(image, colour, panel=0):
    """The rows of a panel, without the legend, in which pixels of a colour lie."""
    pixels = np.asarray(image.crop((400 * panel, 0, 400 * panel + 400, 320))).astype(int)
    return np.flatnonzero((np.abs(pixels - colour).max(2) < 20).any(1))


BLUE, SILVER = (31, 119, 180), (192, 192, 192)
UNMEASURED = np.full(50, np.nan)
LOG = {name: np.arange(50) + 1.0 for name in LOG_COLUMNS}


@pytest.mark.parametrize(
    ("columns", "panels"),
    [
        ({}, 4),
        ({"frechet_distance": np.where(np.arange(50) == 0, 3.0, np.nan)}, 4),
        ({"frechet_distance": UNMEASURED}, 3),
        ({"frechet_distance": UNMEASURED, "penalty": np.zeros(50)}, 2),  # a method without one
        ({name: np.array([3.0]) for name in LOG_COLUMNS}, 4),  # a single value can be seen
    ],
)
def test_curves_have_a_panel_with_a_line_for_each_column_that_was_measured(columns, panels):
    image = curves(LOG | columns)
    assert image.size == (400 * panels, 380)
    assert all(len(rows_of(image, BLUE, panel)) for panel in range(panels))


def test_norms_far_below_1_fill_their_panel():
    """Weight clipping: the line at 1 must not press them onto the axis."""
    rows = rows_of(curves(LOG | {"gradient_norm": np.linspace(0.001, 0.01, 50)}), BLUE, panel=2)
    assert rows.max() - rows.min() > 50


def test_curves_show_raw_values_and_their_running_mean():
    noise = {name: np.tile([0.0, 1.0], 100) for name in LOG_COLUMNS}
    image = curves(noise | {"step": np.arange(200.0)})
    mean, raw = rows_of(image, BLUE), rows_of(image, SILVER)
    assert np.ptp(mean) < 0.5 * np.ptp(raw)  # the mean is smoother


def test_a_timelapse_is_bounded_in_frames_and_size_and_keeps_first_and_last(tmp_path):
    frames = []
    for index in range(3 * TIMELAPSE_FRAMES):
        frames.append(tmp_path / f"{index}.png")
        value = 255 * index // (3 * TIMELAPSE_FRAMES - 1)
        Image.new("L", (1000, 500), value).save(frames[-1])
    target = io.BytesIO()
    timelapse(frames, target)
    animation = Image.open(target)
    assert animation.n_frames == TIMELAPSE_FRAMES
    assert animation.size == (500, 250 + 18)  # reduced by a whole factor, below the step
    assert max(animation.size) <= TIMELAPSE_SIDE
    assert animation.convert("L").getpixel((5, 260)) == 0
    strip = np.asarray(animation.convert("L"))[:18]
    animation.seek(TIMELAPSE_FRAMES - 1)
    assert animation.convert("L").getpixel((5, 260)) == 255
    assert (np.asarray(animation.convert("L"))[:18] != strip).any()  # another step
