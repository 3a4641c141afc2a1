"""Preparing a run: what is printed and stored."""

import pytest
from helpers import run_main

import train

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
