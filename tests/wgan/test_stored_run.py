"""Whether a run's folder contains the run that is asked for, with the data it was trained on."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import parse, run_main, write_with_digest
from PIL import Image

from wgan import load_generator
from wgan.checkpoints import config_of, read_checkpoint
from wgan.stored_run import changes, is_same_path

pytestmark = pytest.mark.slow


@pytest.fixture
def pictures(tmp_path):
    return save_images(tmp_path / "pictures", 12)


def save_images(folder, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.bmp")
    return folder


def rewrite(path, **values):
    """Replace values in a checkpoint."""
    write_with_digest(path, read_checkpoint(path) | values)


def resume(folder, run, steps, *options):
    return run_main(folder, run, "--steps", steps, "--data-root", run.parent / "data", *options)


def test_the_same_folder_may_be_written_in_another_way(pictures, tmp_path, monkeypatch, capsys):
    run = tmp_path / "r"
    assert resume(pictures, run, 1) == 0
    monkeypatch.chdir(tmp_path)
    spellings = ["pictures", f"{pictures}{os.sep}", f"..{os.sep}{tmp_path.name}{os.sep}pictures"]
    for step, spelling in enumerate(spellings, 2):
        assert resume(spelling, run, step) == 0
    assert read_checkpoint(run / "checkpoint.pt")["step"] == 4
    assert "byte-identical" not in capsys.readouterr().out


def test_data_that_moved_are_recognised_and_training_is_the_same(pictures, tmp_path, capsys):
    for name in ("moved", "stayed"):
        assert resume(pictures, tmp_path / name, 2) == 0
    assert resume(pictures, tmp_path / "stayed", 4) == 0
    other = tmp_path / "other disk" / "images"
    other.parent.mkdir()
    pictures.rename(other)
    assert resume(other, tmp_path / "moved", 4) == 0
    assert "byte-identical" not in capsys.readouterr().out
    ends = [read_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("moved", "stayed")]
    for one, two in zip(*(end["generator"].values() for end in ends), strict=True):
        assert torch.equal(one, two)
    # Its checkpoint and config.toml name the new folder; from there, the data may move again.
    assert resume(shutil.move(other, tmp_path / "third"), tmp_path / "moved", 5) == 0


def test_moved_data_are_recognised_by_the_newest_intact_checkpoint(pictures, tmp_path, capsys):
    run = tmp_path / "r"
    for step in (1, 2):
        assert resume(pictures, run, step) == 0
    (run / "checkpoint.pt").write_bytes(b"x")
    assert resume(pictures.rename(tmp_path / "moved"), run, 3) == 0
    assert "resuming from an older checkpoint" in capsys.readouterr().out
    assert read_checkpoint(run / "checkpoint.pt")["step"] == 3


def test_other_data_under_another_path_are_another_run(pictures, tmp_path, capsys):
    run = tmp_path / "r"
    assert resume(pictures, run, 1) == 0
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    for number, (count, seed) in enumerate([(11, 0), (12, 1)]):
        assert resume(save_images(tmp_path / str(number), count, seed), run, 2) == 2
        assert "contains another run (dataset was" in capsys.readouterr().err
    # The same data do not excuse another option.
    moved = shutil.copytree(pictures, tmp_path / "copy")
    assert resume(moved, run, 2, "--seed", "5") == 2
    assert "another run (seed was 0 and is 5)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ("fewer", "now has 9"),
        ("more", "now has 13"),
        ("other", "now has the same number of different ones"),
    ],
)
def test_changed_data_are_announced(changed, found, pictures, tmp_path, capsys):
    run = tmp_path / "r"
    assert resume(pictures, run, 1) == 0
    if changed == "fewer":
        for index in (0, 5, 11):
            (pictures / f"{index:02}.bmp").unlink()
    else:
        name = "07.bmp" if changed == "other" else "new.bmp"
        Image.new("RGB", (16, 16), "red").save(pictures / name)
        os.utime(pictures / name, ns=(1, 1))
    capsys.readouterr()
    assert resume(pictures, run, 2) == 0
    line = f"the checkpoint was trained on 12 samples, and the data set {found}: results will not"
    assert capsys.readouterr().out.count(line) == 1
    assert resume(pictures, run, 3) == 0  # the next checkpoint knows the new data
    assert "byte-identical" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, {"samples": "many"}])
def test_a_checkpoint_that_does_not_know_its_data_is_resumed(content, pictures, tmp_path, capsys):
    run = tmp_path / "r"
    assert resume(pictures, run, 1) == 0
    rewrite(run / "checkpoint.pt", data=content)
    Image.new("RGB", (16, 16), "red").save(pictures / "new.bmp")
    assert resume(pictures, run, 2) == 0
    assert "byte-identical" not in capsys.readouterr().out


def labelled_array(path, labels):
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16), np.uint8)
    np.savez(path, images=images, labels=labels)
    return path


def test_other_labels_are_announced_and_other_classes_refused(tmp_path, capsys):
    run, path = tmp_path / "r", tmp_path / "a.npz"
    labels = np.arange(20) % 2
    assert resume(labelled_array(path, labels), run, 1, "--conditional") == 0
    assert resume(labelled_array(path, 1 - labels), run, 2, "--conditional") == 0
    assert "trained on other labels of the same samples" in capsys.readouterr().out
    for other, message in (
        (labels + 5, "has 2 classes, and the data 2; in the checkpoint: 0, 1; in the data: 5, 6"),
        (np.arange(20) % 3, "has 2 classes, and the data 3; in the checkpoint"),
    ):
        assert resume(labelled_array(path, other), run, 3, "--conditional") == 2
        assert message in capsys.readouterr().err


def test_initial_weights_do_not_bring_the_frequency_of_their_classes(tmp_path, capsys):
    sources = (np.arange(20) % 5 == 0), (np.arange(20) % 5 > 0) + 7  # 20 % and 80 % of the second
    paths = [labelled_array(tmp_path / f"{i}.npz", labels) for i, labels in enumerate(sources)]
    assert resume(paths[0], tmp_path / "a", 1, "--conditional") == 0
    start = ["--conditional", "--init-from", tmp_path / "a"]
    assert resume(paths[1], tmp_path / "b", 1, *start) == 0
    assert "in the checkpoint: 0, 1; in the data: 7, 8; class k takes" in capsys.readouterr().err
    assert load_generator(tmp_path / "b", device="cpu").class_counts == (4, 16)


def test_a_run_without_known_data_is_not_found_elsewhere(pictures, tmp_path, capsys):
    run = tmp_path / "r"
    assert resume(pictures, run, 1) == 0
    rewrite(run / "checkpoint.pt", data={})
    assert resume(shutil.copytree(pictures, tmp_path / "copy"), run, 2) == 2
    assert "contains another run (dataset was" in capsys.readouterr().err


def test_weights_to_start_from_may_be_written_in_another_way(pictures, tmp_path):
    assert resume(pictures, tmp_path / "a", 1) == 0
    for step, name in enumerate(["a", "a/", "./a"], 1):
        options = ["--init-from", f"{tmp_path}/{name}"]
        assert resume(pictures, tmp_path / "b", step, *options) == 0


def test_names_of_data_sets_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    assert is_same_path("./mnist", str(tmp_path / "mnist"))
    assert not is_same_path("mnist", "./mnist")
    assert not is_same_path("", ".")
    assert is_same_path("gone/", "./gone")
    assert not is_same_path("a\0b", "mnist2")


def test_only_options_that_change_the_result_count_as_changes():
    old = parse("--dataset", "mnist", "--model", "residual")
    resumable = ("--model", "residual", "--steps", "9", "--log-every", "7", "--device", "cpu")
    assert changes(old, parse("--dataset", "mnist", *resumable)) == []
    assert changes(old, replace(old, seed=5)) == ["seed was 0 and is 5"]
    decayed = parse("--lr-decay", "--steps", "5")
    assert changes(decayed, parse("--lr-decay", "--steps", "9")) == []


def test_a_stored_run_keeps_the_defaults_of_options_that_were_added_since():
    stored = vars(parse()) | {"categories": 20}
    for name in ("categories", "augment", "accumulate", "generator_width"):
        del stored[name]
    assert parse().categories > 0  # by the recipe
    assert config_of({"config": stored}).categories == 0


def test_an_option_that_was_removed_matters_only_if_it_had_an_effect():
    stored = vars(parse())
    assert config_of({"config": stored | {"pyramid": 1}}) == config_of({"config": stored})
    with pytest.raises(ValueError, match="unknown option 'pyramid'"):
        config_of({"config": stored | {"pyramid": 3}})
