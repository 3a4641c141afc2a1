"""Whether a resumed run finds the data that it was trained on."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import run_main
from PIL import Image

import train
from wgan import load_generator, setup
from wgan.checkpoints import pack_checkpoint, read_checkpoint
from wgan.config import same_path, stored_config
from wgan.data import Dataset, RowReader
from wgan.data import dataset as dataset_module


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
    assert "resuming from" in capsys.readouterr().out
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
    line = f"the checkpoint was trained on 12 samples, and the data set {found}: not byte-identical"
    assert capsys.readouterr().out.count(line) == 1
    assert resume(pictures, run, 3) == 0  # the next checkpoint knows the new data
    assert "byte-identical" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, {"samples": "many"}])
def test_a_checkpoint_that_does_not_know_its_data_is_resumed(content, pictures, tmp_path, capsys):
    run = tmp_path / "r"
    assert resume(pictures, run, 1) == 0
    state = read_checkpoint(run / "checkpoint.pt")
    del state["data"]
    state |= {} if content is None else {"data": content}
    config = stored_config(state["config"])
    rest = {name: value for name, value in state.items() if name not in ("format", "config")}
    (run / "checkpoint.pt").write_bytes(pack_checkpoint(rest, config))
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
        (labels + 5, "has 2 classes, and the data 2; only in the checkpoint: 0, 1; new: 5, 6"),
        (np.arange(20) % 3, "has 2 classes, and the data 3; new: 2"),
    ):
        assert resume(labelled_array(path, other), run, 3, "--conditional") == 2
        assert message in capsys.readouterr().err


def test_initial_weights_do_not_bring_the_frequency_of_their_classes(tmp_path, capsys):
    sources = (np.arange(20) % 5 == 0), (np.arange(20) % 5 > 0) + 7  # 20 % and 80 % of the second
    paths = [labelled_array(tmp_path / f"{i}.npz", labels) for i, labels in enumerate(sources)]
    assert resume(paths[0], tmp_path / "a", 1, "--conditional") == 0
    start = ["--conditional", "--init-from", tmp_path / "a"]
    assert resume(paths[1], tmp_path / "b", 1, *start) == 0
    assert "only in the checkpoint: 0, 1; new: 7, 8; class k takes" in capsys.readouterr().err
    shares = load_generator(tmp_path / "b", device="cpu").class_shares
    assert shares.tolist() == pytest.approx([0.2, 0.8])


def test_a_run_without_known_data_is_not_found_elsewhere(pictures, tmp_path, capsys):
    run = tmp_path / "r"
    assert resume(pictures, run, 1) == 0
    state = read_checkpoint(run / "checkpoint.pt") | {"data": {}}
    config = stored_config(state.pop("config"))
    state.pop("format")
    (run / "checkpoint.pt").write_bytes(pack_checkpoint(state, replace(config)))
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
    assert same_path("./mnist", str(tmp_path / "mnist"))
    assert not same_path("mnist", "./mnist")
    assert not same_path("", ".")
    assert same_path("gone/", "./gone")
    assert not same_path("a\0b", "mnist2")


# ---------------------------------------------------------------- the identity of a data set


def identity(samples, files=""):
    return Dataset(RowReader.from_array(samples), None, files).identity()


def test_every_byte_of_a_small_data_set_counts(random):
    samples = random.integers(0, 256, (30, 1, 4, 4)).astype(np.uint8)
    first = identity(samples)
    assert first["samples"] == 30 and first == identity(samples.copy(), "renamed files")
    for index in range(30):
        changed = samples.copy()
        changed[index, 0, 3, 3] ^= 1
        assert identity(changed) != first
    assert identity(samples[::-1].copy()) != first
    assert identity(samples.reshape(30, 1, 2, 8)) != first


def test_of_a_large_data_set_samples_and_files_count(random, monkeypatch):
    monkeypatch.setattr(dataset_module, "DIGESTED_BYTES", 16 * 150)
    samples = random.integers(0, 256, (3000, 1, 4, 4)).astype(np.uint8)
    first = identity(samples, "files")
    assert identity(samples, "other files")["digest"] != first["digest"]
    changed = samples.copy()
    changed[0] ^= 1
    assert identity(changed, "files") != first
    changed = samples.copy()
    changed[1] ^= 1
    assert identity(changed, "files") == first  # not among the 150 samples


def test_points_have_an_identity_too(tmp_path, capsys):
    options = ["--dataset", "ring", "--run", str(tmp_path / "r"), "--batch-size", "8"]
    for steps in ("1", "2"):
        assert train.main([*options, "--device", "cpu", "--compile", "off", "--steps", steps]) == 0
    assert "byte-identical" not in capsys.readouterr().out


def test_a_finished_run_keeps_its_options(image_folder, tmp_path, capsys):
    """What was not trained with them is not reported, and not stored."""
    assert run_main(image_folder, tmp_path / "r", "--steps", 2) == 0
    stored = (tmp_path / "r" / "config.toml").read_bytes()
    assert run_main(image_folder, tmp_path / "r", "--steps", 2, "--compile", "on") == 0
    assert "byte-identical" not in capsys.readouterr().out
    assert (tmp_path / "r" / "config.toml").read_bytes() == stored


def test_augmentation_is_suggested_for_few_images(pictures, tmp_path, monkeypatch, capsys):
    for few, options, suggested in ((1000, [], True), (12, [], False), (1000, ["color"], False)):
        monkeypatch.setattr(setup, "FEW_IMAGES", few)
        augment = ["--augment", *options] if options else []
        assert resume(pictures, tmp_path / f"{few}{options}", 1, *augment) == 0
        assert ("12 images are few" in capsys.readouterr().err) == suggested
        assert resume(pictures, tmp_path / f"{few}{options}", 2, *augment) == 0
        assert "are few" not in capsys.readouterr().err  # too late
