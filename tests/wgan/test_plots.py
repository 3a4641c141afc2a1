"""Pictures, pixel by pixel where that can be said."""

import io

import numpy as np
import pytest
from PIL import Image

from wgan.plots import (
    TIMELAPSE_FRAMES,
    TIMELAPSE_SIDE,
    curves,
    image_grid,
    running_mean,
    scatter,
    timelapse,
)
from wgan.run_folder import LOG_COLUMNS


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_in_reading_order(channels):
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * 20
    images = images.repeat(channels, 1).repeat(4, 2).repeat(6, 3)
    grid = np.asarray(image_grid(images, columns=4, gap=1)).reshape(3 * 5 + 1, 4 * 7 + 1, -1)
    for index in range(10):
        top, left = 1 + index // 4 * 5, 1 + index % 4 * 7
        assert (grid[top : top + 4, left : left + 6] == index * 20).all()
    assert (grid[11:, 15:] == 0).all()


def test_a_running_mean_keeps_lines_and_smooths_noise():
    line = np.arange(100.0)
    inside = slice(5, -5)
    assert running_mean(line)[inside] == pytest.approx(line[inside])
    assert running_mean(np.tile([0.0, 1.0], 500)).std() < 0.05
    assert running_mean(np.array([3.0])).tolist() == [3.0]


def test_a_scatter_has_y_upward_and_the_data_inside():
    real = np.array([[1.0, 1.0], [-1.0, -1.0]])
    scores = np.linspace(0, 1, 50)[:, None].repeat(50, 1)  # grows with y: viridis ends in yellow
    picture = np.asarray(scatter(real, real[:1], scores)).astype(int)
    above, below = picture[60:100, 40:200].mean((0, 1)), picture[400:440, 300:460].mean((0, 1))
    assert above[0] > below[0] + 50  # yellow has red in it, the violet below has not
    assert picture.shape == (500, 500, 3)


def test_curves_are_drawn_from_one_line_on():
    for count in (1, 50):
        log = {name: np.arange(count) + 1.0 for name in LOG_COLUMNS}
        assert curves(log).size == (1600, 360)
        log["frechet_distance"][1:] = np.nan  # measured now and then
        assert curves(log).size == (1600, 360)
        log["frechet_distance"][:] = np.nan  # and not at all
        assert curves(log).size == (1200, 360)


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
    assert animation.size == (TIMELAPSE_SIDE, TIMELAPSE_SIDE // 2)
    assert animation.convert("L").getpixel((5, 5)) == 0
    animation.seek(TIMELAPSE_FRAMES - 1)
    assert animation.convert("L").getpixel((5, 5)) == 255
