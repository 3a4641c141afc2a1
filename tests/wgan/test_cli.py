"""The command line: help, messages and exit codes."""

import io
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import ROOT
from helpers import SMALL, run_main
from PIL import Image

import train
from utils import METHODS
from wgan.cli import make_parser, parse_command_line
from wgan.config import FIELDS, SHORTHANDS
from wgan.data import DATASETS
from wgan.recipes import RECIPES
from wgan_gp import MODELS


def test_help_shows_every_option_with_its_default_and_every_name():
    text = " ".join(make_parser().format_help().split())
    for name in FIELDS:
        assert "--" + name.replace("_", "-") in text
    assert text.count("(default: ") == len(FIELDS)
    words = set(text.replace(",", " ").replace(":", " ").split())
    assert words >= {*METHODS, *MODELS, *DATASETS}
    for name in SHORTHANDS:
        assert f"--{name} " in text


def test_the_help_has_groups_and_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = make_parser().format_help()
    assert max(map(len, text.splitlines())) <= 80
    for name, entry in FIELDS.items():  # the last title before an option is its group's
        before = re.split(rf"\n  --{name.replace('_', '-')}\b", text)[0]
        assert re.findall(r"^(\w[\w ]+):$", before, re.M)[-1] == entry.metadata["group"]
    assert {path.stem for path in RECIPES.glob("*.toml")} <= set(re.findall(r"[\w-]+", text))


def test_flags_take_numbers_in_every_usual_form():
    flags = ["--steps", "1e3", "--lr", ".001", "--batch-size", "8"]
    config = parse_command_line(make_parser(), flags)[0].config
    assert (config.steps, config.lr_critic, config.batch_size) == (1000, 0.001, 8)
    assert type(config.steps) is int


def test_a_dry_run_prints_the_options_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--dry-run", "--seed", "7"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^seed = 7 +# command line$", output, re.M)
    assert re.search(r"^width = 256 +# configs/glyphs.toml$", output, re.M)
    assert tomllib.loads(output)["seed"] == 7
    assert not list(tmp_path.iterdir())
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert train.main(["--dry-run"]) == 0
    assert capsys.readouterr().out == ""  # the first rank alone prints


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "glyhps"], "did you mean 'glyphs'?"),
        (["--dataset", "missing/folder"], "no such folder"),
        (["--dataset", ""], "unknown dataset ''"),
        (["--dataset", "{empty}"], "none of the 0 files"),
        (["--dataset", "{texts}"], "none of the 1 files"),
        (["--width", "10000000000"], "at most 1e+06"),
        (["--generator-norm", "batch", "--batch-size", "1"], "a batch_size of 2 or more"),
        (["--batch-size", "41"], "larger than the data set"),
        (["--image-size", "30"], "use --image-size 28x28"),
        (["--image-size", "big"], "neither a side"),
        (["--critic-norm", "batch"], "mixes the samples of a batch"),
        (["--model", "dense", "--critic-norm", "instance"], "use one of none, layer, batch"),
        (["--lr", "-1"], "must be greater than 0"),
        (["--lr-critic", "0"], "must be greater than 0"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
        (["--batch-size", "9", "--accumulate", "2"], "use 8 or 10"),
        (["--run", "{texts}"], "is not empty and contains no run"),
        (["--run", "{texts}/a.png"], "is a file"),
        (["--run", "{texts}/a.png/run"], "a.png"),
        (["--config", "missing.toml"], "no configuration file"),
        (["--lr-critics", "1"], "did you mean '--lr-critic'?"),
        (["--steps", "many"], "must be a whole number"),
        (["surplus"], "unknown argument 'surplus'"),
        (["--run", "a\udcff"], "must be text in valid UTF-8"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments, message, image_folder, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("not an image")
    names = {"empty": tmp_path / "empty", "texts": tmp_path / "texts"}
    arguments = [argument.format(**names) for argument in arguments]
    assert run_main(image_folder, tmp_path / "r", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "r").exists()
    assert (tmp_path / "texts" / "a.png").read_text() == "not an image"


def test_the_advice_for_a_single_image_works(image_folder, tmp_path, capsys):
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(image_folder / "0.png", folder)
    assert run_main(folder, tmp_path / "r", "--steps", 1) == 2
    error = capsys.readouterr().err
    assert "use --batch-size 1 or less" in error
    advice = ["--batch-size", 1, "--generator-norm", "layer"]
    assert run_main(folder, tmp_path / "r", "--steps", 1, *advice) == 0
    grid = Image.open(tmp_path / "r" / "real.png")
    assert grid.size == (5 * 20, 5 * 20)  # enlarged; no black cells


def test_names_that_the_output_cannot_show_are_escaped(image_folder, tmp_path, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", output)
    assert run_main(image_folder, tmp_path / "画像", "--steps", 1) == 0
    output.flush()
    assert b"into " in output.buffer.getvalue() and b"\\u753b" in output.buffer.getvalue()


def test_points_need_dense_networks(tmp_path, capsys):
    assert train.main(["--dataset", "ring", "--model", "dcgan", "--run", str(tmp_path / "r")]) == 2
    assert "no height and width: use --model dense" in capsys.readouterr().err


def test_a_size_that_does_not_fit_is_refused_before_the_folder_is_decoded(
    image_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("wgan.setup.load_dataset", lambda *a: pytest.fail("decoded"))
    assert run_main(image_folder, tmp_path / "r", "--image-size", "30") == 2


def test_a_folder_that_contains_another_run_is_refused_and_left_as_it_was(
    image_folder, tmp_path, capsys
):
    run = tmp_path / "r"
    run_main(image_folder, run, "--steps", 2)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert run_main(image_folder, run, "--steps", 4, "--seed", 1, "--gp-weight", 3) == 2
    error = capsys.readouterr().err
    assert "gp_weight was 10.0 and is 3.0" in error
    assert "seed was 0 and is 1" in error
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_run_that_runs_out_of_memory_says_what_to_lower_and_accepts_it(
    image_folder, tmp_path, monkeypatch, capsys
):
    """In the first step there is no checkpoint yet, so that other options lose nothing."""
    monkeypatch.setattr(train, "train_step", lambda *a: torch.empty(2**60, dtype=torch.uint8))
    assert run_main(image_folder, tmp_path / "r", "--steps", 2) == 1
    error = capsys.readouterr().err
    assert "use --accumulate 2, or lower --batch-size, --width or --image-size" in error
    monkeypatch.undo()
    assert run_main(image_folder, tmp_path / "r", "--steps", 2, "--batch-size", 4) == 0


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "use --accumulate 2"),
        (OSError("0001.rows became shorter while it was in use"), "0001.rows became shorter"),
        (RuntimeError("a programming error"), None),  # is not caught
    ],
)
def test_failures_in_training(failure, message, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "train_step", Mock(side_effect=failure))
    if message is None:
        with pytest.raises(RuntimeError, match="a programming error"):
            run_main(image_folder, tmp_path / "r", "--steps", 2)
    else:
        assert run_main(image_folder, tmp_path / "r", "--steps", 2) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error


def test_ctrl_c_before_training_is_130(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("wgan.setup.load_dataset", Mock(side_effect=KeyboardInterrupt))
    assert run_main(image_folder, tmp_path / "r", "--steps", 2) == 130


def test_the_script_runs_from_any_folder_and_reports_bad_input_without_a_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--method", "wgan-gpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'wgan-gp'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path(tmp_path).iterdir())


def test_from_another_folder_recipes_are_found_and_runs_and_data_stay_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*SMALL, "--noise-dim", "2", "--dataset", "ring", "--steps", "1", "--device", "cpu"]
    assert train.main(["--config", "points-wgan-gp", *options]) == 0
    assert [path.name for path in tmp_path.glob("*/*")] == ["points-wgan-gp-ring"]
    stored = (tmp_path / "images/points-wgan-gp-ring/config.toml").read_text()
    assert 'data_root = "datasets"' in stored
