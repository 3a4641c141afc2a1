"""Samples from checkpoints, in every form."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import run_main

from generate import generate, load_generator, main, slerp
from train import main as train_main
from wgan.run_folder import read_checkpoint


@pytest.fixture(scope="module")
def run(picture_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    assert run_main(picture_folder, run, "--steps", 4) == 0
    return run


def test_a_generator_loads_in_one_line_with_the_weights_asked_for(run):
    state = read_checkpoint(run / "checkpoint.pt")
    for weights, part in (("average", "average"), ("raw", "generator")):
        generator = load_generator(run, weights, device="cpu")
        assert not generator.training
        assert generator.noise_dim == 4
        for name, value in generator.state_dict().items():
            assert torch.equal(value, state[part][name])


def test_samples_follow_from_the_seed_and_begin_alike_for_every_count(run):
    generator = load_generator(run / "checkpoint.pt", device="cpu")
    many = generate(generator, 130, seed=1)
    assert many.shape == (130, 3, 16, 16) and many.dtype == torch.uint8
    assert torch.equal(generate(generator, 7, seed=1), many[:7])
    assert not torch.equal(generate(generator, 7, seed=2), many[:7])
    assert len(torch.unique(many.flatten(1), dim=0)) == 130


def test_every_form_holds_the_same_samples(run, tmp_path):
    expected = generate(load_generator(run, device="cpu"), 10, seed=3).permute(0, 2, 3, 1).numpy()
    for out in ("a.npy", "a.npz", "a.png", "folder"):
        arguments = [str(run), "--count", "10", "--seed", "3", "--out", str(tmp_path / out)]
        assert main([*arguments, "--device", "cpu"]) == 0
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    assert np.array_equal(np.load(tmp_path / "a.npz")["samples"], expected)
    files = sorted((tmp_path / "folder").iterdir())
    assert [file.name for file in files] == [f"{index:06d}.png" for index in range(10)]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), expected)
    grid = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(grid[2:18, 2:18], expected[0])
    assert np.array_equal(grid[20:36, 2:18], expected[8])


def test_interpolation_is_a_walk_that_closes(run, tmp_path):
    out = tmp_path / "walk.gif"
    assert main([str(run), "--interpolate", "--out", str(out), "--device", "cpu"]) == 0
    assert Image.open(out).n_frames > 50


def test_slerp_keeps_to_the_sphere_and_meets_both_ends():
    start, end = torch.randn(6, 100), torch.randn(6, 100)
    half = torch.tensor(0.5)
    torch.testing.assert_close(slerp(start, end, torch.tensor(0.0)), start)
    torch.testing.assert_close(slerp(start, end, torch.tensor(1.0)), end)
    expected = (start.norm(dim=1) + end.norm(dim=1)) / 2
    torch.testing.assert_close(slerp(start, end, half).norm(dim=1), expected)
    torch.testing.assert_close(slerp(start, 3 * start, half), 2 * start)


def test_points_are_written_as_numbers(tmp_path):
    run, out = tmp_path / "run", tmp_path / "points.npy"
    options = ["--dataset", "ring", "--width", "16", "--steps", "1", "--device", "cpu"]
    assert train_main([*options, "--run", str(run)]) == 0
    assert main([str(run), "--count", "150", "--out", str(out)]) == 0
    assert np.load(out).shape == (150, 2) and np.load(out).dtype == np.float32
    assert main([str(run), "--out", str(tmp_path / "points.png")]) == 0
    assert main([str(run), "--out", str(tmp_path / "folder")]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}/none"], "there is no checkpoint or run"),
        (["{folder}"], "holds no checkpoint"),
        (["{run}/log.csv"], "damaged, or none of this project's"),
        (["{run}", "--count", "0"], "--count must be at least 1"),
        (["{run}", "--count", "x"], "invalid int value"),
        (["{run}", "--out", "a.jpeg"], "end it in one of"),
        (["{run}", "--out", "a.gif"], "--interpolate makes a .gif"),
        (["{run}", "--out", "{run}"], "this folder is not empty"),
        (["{run}", "--from", "best"], "invalid choice"),
        (["{run}", "--device", "tpu"], "no device 'tpu'"),
        (["{run}", "--nonsense"], "unrecognized arguments"),
        ([], "required: source"),
    ],
)
def test_bad_input_is_refused(arguments, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"run": run, "folder": tmp_path}
    assert main([argument.format(**names) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not list(tmp_path.iterdir())
