"""Preparing a run: what is printed and stored, and advice for small data sets."""

import pytest
from helpers import run_main

import train
from wgan import setup

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(
    ("few", "options", "suggested"),
    [(1000, [], True), (40, [], False), (1000, ["--augment", "color"], False)],
)
def test_augmentation_is_suggested_for_few_images(
    few, options, suggested, image_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(setup, "FEW_IMAGES", few)
    assert run_main(image_folder, tmp_path / "r", *options, "--steps", 1) == 0
    assert ("with 40 images the critic may memorise" in capsys.readouterr().err) == suggested
    assert run_main(image_folder, tmp_path / "r", *options, "--steps", 2) == 0
    assert "memorise" not in capsys.readouterr().err  # too late
