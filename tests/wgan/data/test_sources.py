"""What below a folder belongs to a data set, and what this project wrote there itself."""

import numpy as np
import pytest
from helpers import SMALL, run_main
from PIL import Image

import generate
from wgan.data import ImageOptions, load_dataset
from wgan.data.sources import FolderSource
from wgan.plots import image_grid, png, save_gif
from wgan.run_folder import move_aside


@pytest.fixture
def folder(tmp_path, random):
    """Nine images, and one below a folder that looks a little like a run's."""
    folder = tmp_path / "images"
    (folder / "settings").mkdir(parents=True)
    for index in range(9):
        pixels = random.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    Image.fromarray(pixels).save(folder / "settings" / "9.png")
    (folder / "settings" / "config.toml").touch()
    return folder


def count(folder, root):
    return len(load_dataset(str(folder), root, ImageOptions((16, 16))))


def test_runs_and_generated_images_are_left_out_unless_they_are_named(folder, tmp_path, capsys):
    run = folder / "deeper" / "run"
    assert run_main(folder, run, *SMALL, "--steps", 2, "--data-root", tmp_path) == 0
    old = move_aside(run)
    assert old.name == "run.old-1"
    assert run_main(folder, run, *SMALL, "--steps", 2, "--data-root", tmp_path) == 0
    (run / "log.csv").unlink()  # a checkpoint is enough
    generated = folder / "generated"
    options = [str(run), "--count", "3", "--out", str(generated), "--device", "cpu"]
    assert generate.main(options) == 0
    capsys.readouterr()
    for _ in range(2):
        assert count(folder, tmp_path) == 10
    printed = capsys.readouterr().err
    assert printed.count("left out 3 of its folders, which contain runs or generated images") == 2


@pytest.mark.parametrize(
    "name", ["@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information"]
)
def test_folders_of_systems_and_storage_servers_are_left_out(name, folder, tmp_path):
    for place in (folder / name / "deeper", folder / "settings" / name.upper()):
        place.mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(place / "a.png")
    (folder / "#cats").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "#cats" / "a.png")
    assert count(folder, tmp_path) == 11


def test_the_folder_that_the_user_names_is_used(folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert run_main(folder, run, *SMALL, "--steps", 2, "--data-root", tmp_path) == 0
    generated = tmp_path / "generated"
    options = [str(run), "--count", "3", "--out", str(generated), "--device", "cpu"]
    assert generate.main(options) == 0
    capsys.readouterr()
    assert count(generated, tmp_path) == 3
    assert count(run / "samples", tmp_path) == len(list((run / "samples").iterdir()))
    assert {file.name for file in FolderSource(run).list()} >= {"real.png", "samples/000002.png"}
    assert "left out" not in capsys.readouterr().err
    (run / "config.toml").unlink()  # now its grids are strays
    with pytest.raises(ValueError, match=r"none of the \d files"):
        count(run / "samples", tmp_path)


def test_grids_and_animations_drawn_by_this_project_are_no_data(folder, tmp_path, capsys):
    grid = image_grid(np.zeros((4, 3, 16, 16), np.uint8))
    (folder / "grid.png").write_bytes(png(grid))
    with open(folder / "walk.gif", "wb") as file:
        save_gif([grid, grid], 80, file)
    grid.save(folder / "edited.png")  # by another program
    assert count(folder, tmp_path) == 11
    printed = capsys.readouterr().err
    assert "skipped 3 of 14 files" in printed  # and config.toml
    assert "'grid.png': drawn by this project, " in printed
    assert "'walk.gif': drawn by this project" in printed
