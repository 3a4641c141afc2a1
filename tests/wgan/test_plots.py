"""Images, pixel by pixel if possible."""

import io

import numpy as np
import pytest
from PIL import Image

from wgan.plots import (
    GRID_WIDTH,
    LABEL_WIDTH,
    TIMELAPSE_FRAMES,
    TIMELAPSE_SIDE,
    curves,
    image_grid,
    label_font,
    neighbour_grid,
    running_mean,
    scatter,
    shorten,
    timelapse,
)
from wgan.run_folder import LOG_COLUMNS


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_in_reading_order(channels):
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * 20
    images = images.repeat(channels, 1).repeat(4, 2).repeat(6, 3)
    grid = np.asarray(image_grid(images, columns=4, gap=1, least_width=0))
    grid = grid.reshape(3 * 5 + 1, 4 * 7 + 1, -1)
    for index in range(10):
        top, left = 1 + index // 4 * 5, 1 + index % 4 * 7
        assert (grid[top : top + 4, left : left + 6] == index * 20).all()
    assert (grid[11:, 15:] == 0).all()


@pytest.mark.parametrize(
    ("count", "size"), [(1, (8, 6)), (3, (20, 6)), (8, (50, 6)), (9, (50, 10))]
)
def test_a_grid_is_not_wider_than_its_images(count, size):
    assert image_grid(np.zeros((count, 1, 2, 4), np.uint8), least_width=0).size == size


@pytest.mark.parametrize(("side", "factor"), [(28, 3), (32, 3), (64, 2), (128, 1)])
def test_small_images_are_enlarged_by_a_whole_factor(side, factor):
    images = np.random.default_rng(0).integers(0, 256, (64, 3, side, side), np.uint8)
    plain, enlarged = (
        np.asarray(image_grid(images, least_width=width)) for width in (0, GRID_WIDTH)
    )
    assert enlarged.shape[1] == factor * plain.shape[1] >= 600
    for first in (0, factor - 1):
        assert (enlarged[first::factor, first::factor] == plain).all()
    # One image is as large as it would be among 64.
    assert image_grid(images[:1]).size == (factor * (side + 4),) * 2


@pytest.mark.parametrize("channels", [1, 3])
def test_row_labels_are_left_of_unchanged_images(channels):
    images = np.random.default_rng(0).integers(0, 256, (6, channels, 8, 8), np.uint8)
    plain = np.asarray(image_grid(images, columns=2, least_width=100))
    labelled = np.asarray(
        image_grid(images, columns=2, least_width=100, row_labels=["shoe", "", "W" * 100])
    )
    margin = labelled.shape[1] - plain.shape[1]
    assert 0 < margin <= LABEL_WIDTH + 20
    assert np.array_equal(labelled[:, margin:], plain)
    inks = [bool(part.any()) for part in np.array_split(labelled[:, :margin], 3)]
    assert inks == [True, False, True]  # each label in its own row
    assert not labelled[:, :1].any()  # the long one is not cut off
    with pytest.raises(ValueError, match="2 labels for 3 rows"):
        image_grid(images, columns=2, row_labels=["a", "b"])


def test_a_long_label_ends_in_an_ellipsis():
    font = label_font(14)
    assert shorten("shoe", font, 100) == "shoe"
    short = shorten("ankle boot " * 9, font, 100)
    assert short.startswith("ankle") and short.endswith("…") and font.getlength(short) <= 100
    assert shorten("shoe", font, 1) == ""


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
    heading = grid[:28]
    assert (heading[:, : line - 2] > 100).any() and (heading[:, line + 3 :] > 100).any()


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
    frames = [scatter(real, real, scale * slope, "step 1") for scale in (0, 1e-5, 1, 1e5)]
    assert len({frame.size for frame in frames}) == 1
    spines = [np.asarray(frame.convert("L"))[:, 200] for frame in frames]
    top = [np.flatnonzero(column < 50)[0] for column in spines]  # of the axes
    assert len(set(top)) == 1


BLUE, SILVER = (31, 119, 180), (192, 192, 192)


def drawn(image, colour, left, right):
    """How many pixels of a colour lie between two columns."""
    pixels = np.asarray(image)[:, left:right].astype(int)
    return int((np.abs(pixels - colour).max(2) < 30).sum())


def test_curves_have_a_panel_for_each_column_that_was_measured():
    log = {name: np.arange(50) + 1.0 for name in LOG_COLUMNS}
    for measured, panels in ((slice(None), 4), (slice(0, 1), 4), (slice(0, 0), 3)):
        distances = np.full(50, np.nan)
        distances[measured] = 3.0
        image = curves(log | {"frechet_distance": distances})
        assert image.size == (400 * panels, 380)
        for panel in range(3):  # a line in each
            assert drawn(image, BLUE, 400 * panel, 400 * panel + 400) > 100


def test_a_method_without_a_penalty_has_no_panel_for_it():
    log = {name: np.arange(50) + 1.0 for name in LOG_COLUMNS}
    log["frechet_distance"] = np.full(50, np.nan)
    assert curves(log).width == 1200
    assert curves(log | {"penalty": np.zeros(50)}).width == 800
    zeros = {name: np.zeros(50) for name in ("wasserstein", "penalty", "gradient_norm")}
    assert curves(log | zeros).width == 800


def test_a_single_value_can_be_seen():
    log = {name: np.array([3.0]) for name in LOG_COLUMNS}
    image = curves(log)
    for panel in range(4):
        assert drawn(image.crop((0, 0, image.width, 320)), BLUE, 400 * panel, 400 * panel + 400) > 5


def test_norms_far_below_1_fill_their_panel():
    """Weight clipping: the line at 1 must not press them onto the axis."""
    log = {name: np.linspace(0.001, 0.01, 100) for name in LOG_COLUMNS}
    log |= {"penalty": np.zeros(100), "frechet_distance": np.full(100, np.nan)}
    panel = np.asarray(curves(log).crop((400, 0, 800, 320))).astype(int)
    rows = np.flatnonzero((np.abs(panel - BLUE).max(2) < 30).any(1))
    assert rows.max() - rows.min() > 50


def test_curves_show_raw_values_and_their_running_mean():
    noise = np.tile([0.0, 1.0], 100)
    log = {name: noise for name in LOG_COLUMNS} | {"step": np.arange(200.0)}
    image = curves(log).crop((0, 0, 1600, 320))  # without the legend
    rows = np.flatnonzero((np.abs(np.asarray(image).astype(int) - BLUE).max(2) < 30).any(1))
    raw = np.flatnonzero((np.abs(np.asarray(image).astype(int) - SILVER).max(2) < 10).any(1))
    assert rows.max() - rows.min() < 0.5 * (raw.max() - raw.min())  # the mean is smoother


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
    assert animation.size == (500, 250)  # reduced by a whole factor
    assert max(animation.size) <= TIMELAPSE_SIDE
    assert animation.convert("L").getpixel((5, 5)) == 0
    animation.seek(TIMELAPSE_FRAMES - 1)
    assert animation.convert("L").getpixel((5, 5)) == 255


def test_a_damaged_frame_is_named(tmp_path):
    frame = tmp_path / "1.png"
    Image.new("L", (64, 64)).save(frame)
    whole = frame.read_bytes()
    for content in (b"", b"text", whole[:40], whole[:33] + b"0" * 50):
        frame.write_bytes(content)
        with pytest.raises(OSError) as error:
            timelapse([frame], io.BytesIO())
        assert f"{frame} is damaged" in str(error.value) and "remove it" in str(error.value)
