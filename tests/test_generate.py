"""The command generate.py: every output format, and bad input."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import SMALL
from PIL import Image, ImageSequence

from generate import main
from train import main as train_main
from wgan import generate, load_generator
from wgan.data import to_byte_images
from wgan.data.glyphs import draw_glyphs
from wgan.sampling import TrainedGenerator, noise_of
from wgan_gp import one_hot_categories

pytestmark = pytest.mark.slow


def samples_of(run, count, seed, weights="ema"):
    """What the command should generate: `(N, H, W, C)`."""
    generator = load_generator(run, weights, device="cpu")
    return generate(generator, count, seed).permute(0, 2, 3, 1).numpy()


def test_every_format_contains_the_same_samples(trained_run, tmp_path):
    for out in ("a.npy", "a.npz", "a.png", "folder"):
        arguments = [str(trained_run), "--count", "10", "--seed", "3"]
        assert main([*arguments, "--out", str(tmp_path / out), "--device", "cpu"]) == 0
    expected = samples_of(trained_run, 10, 3)
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    assert np.array_equal(np.load(tmp_path / "a.npz")["samples"], expected)
    assert (tmp_path / "folder" / ".generated").exists()
    files = sorted((tmp_path / "folder").glob("*.png"))
    assert [file.name for file in files] == [f"{index:06d}.png" for index in range(10)]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), expected)
    grid = np.asarray(Image.open(tmp_path / "a.png"))[::5, ::5]  # it is enlarged
    assert np.array_equal(grid[2:18, 2:18], expected[0])
    assert np.array_equal(grid[20:36, 2:18], expected[8])


def test_weights_of_the_last_step_give_other_samples(trained_run, tmp_path):
    arguments = [str(trained_run), "--from", "raw", "--out", str(tmp_path / "raw.npy")]
    assert main([*arguments, "--device", "cpu"]) == 0
    samples = np.load(tmp_path / "raw.npy")
    assert np.array_equal(samples, samples_of(trained_run, 64, 0, "raw"))
    assert not np.array_equal(samples, samples_of(trained_run, 64, 0))


def frames_of(path):
    with Image.open(path) as animation:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]
        return frames, animation.info["duration"]


def test_an_interpolation_has_the_requested_frames(trained_run, tmp_path):
    out = tmp_path / "walk.gif"
    arguments = [str(trained_run), "--interpolate", "--device", "cpu", "--out", str(out)]
    more = [
        "--frames",
        "4",
        "--count",
        "16",
    ]  # of one sample, two frames may be equal, which Pillow joins
    assert main([*arguments, *more]) == 0
    frames, milliseconds = frames_of(out)
    assert (len(frames), milliseconds) == (5 * 4, 80)
    assert not np.array_equal(frames[0], frames[4])


def test_an_interpolation_passes_through_the_named_samples(trained_run, tmp_path):
    arguments = [str(trained_run), "--interpolate", "--out", str(tmp_path / "walk.gif")]
    arguments += ["--frames", "3", "--seed", "1", "--device", "cpu"]
    assert main([*arguments, "--through", "7", "2", "7"]) == 0
    frames, _ = frames_of(tmp_path / "walk.gif")
    samples = samples_of(trained_run, 8, 1)
    for frame, number in ((0, 7), (3, 2), (6, 7)):
        image = frames[frame][62:-62:30, 62:-62:30].astype(int)  # it is enlarged 30 times
        assert np.abs(image - samples[number]).mean() < 4  # a GIF has 256 colours


# ---------------------------------------------------------------- noise


def samples_in(tmp_path, source, *options):
    """What the command writes: `(N, H, W, C)`."""
    out = tmp_path / "samples.npy"
    assert main([str(source), *options, "--out", str(out), "--device", "cpu"]) == 0
    return np.load(out)


def alike(samples, others):
    """Equal but for rounding, which may depend on the place in a batch."""
    return np.abs(samples.astype(int) - others).max() <= 1


def test_the_sample_of_a_seed_stays_the_same_whatever_else_is_asked_for(trained_run, tmp_path):
    samples = samples_in(tmp_path, trained_run, "--seeds", "17,3,41")
    for sample, seed in zip(samples, (17, 3, 41), strict=True):
        assert alike(sample, samples_of(trained_run, 5, seed)[0])
    assert alike(samples_in(tmp_path, trained_run, "--seeds", "3")[0], samples[1])
    assert not alike(samples[0], samples[1])


def test_each_row_of_an_array_of_noise_is_a_sample(trained_run, tmp_path):
    noise = np.random.default_rng(0).normal(size=(130, 4))
    np.save(tmp_path / "z.npy", noise)
    generator = load_generator(trained_run, device="cpu")
    from_file = samples_in(tmp_path, trained_run, "--noise", str(tmp_path / "z.npy"))
    expected = to_byte_images(generator(torch.tensor(noise, dtype=torch.float32)))
    assert alike(from_file, expected.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(from_file, generate(generator, noise=noise).permute(0, 2, 3, 1))


def test_truncation_multiplies_the_noise(trained_run, tmp_path):
    noise = noise_of(load_generator(trained_run, device="cpu"), range(5), 2)
    np.save(tmp_path / "half.npy", 0.5 * noise)
    truncated = samples_in(
        tmp_path, trained_run, "--seed", "2", "--count", "5", "--truncation", "0.5"
    )
    half = samples_in(tmp_path, trained_run, "--noise", str(tmp_path / "half.npy"))
    assert alike(truncated, half)
    assert not alike(truncated, samples_of(trained_run, 5, 2))
    inputs = one_hot_categories(noise, 3), one_hot_categories(0.5 * noise, 3)
    assert torch.equal(inputs[0][:, :3], inputs[1][:, :3])  # the category stays


def test_an_interpolation_passes_through_the_seeds(trained_run, tmp_path):
    arguments = [str(trained_run), "--interpolate", "--frames", "2", "--device", "cpu"]
    assert main([*arguments, "--seeds", "5,9,1", "--out", str(tmp_path / "walk.gif")]) == 0
    frames, _ = frames_of(tmp_path / "walk.gif")
    assert len(frames) == 3 * 2
    for frame, seed in ((0, 5), (2, 9), (4, 1)):
        image = frames[frame][62:-62:30, 62:-62:30].astype(int)  # it is enlarged 30 times
        assert np.abs(image - samples_of(trained_run, 1, seed)[0]).mean() < 4


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 3)), "the noise has shape (5, 3), but this generator needs (N, 4)"),
        (np.zeros(4), "the noise has shape (4,)"),
        (np.zeros((0, 4)), "the noise has shape (0, 4)"),
        (np.full((2, 4), np.nan), "infinite values or NaN"),
        (np.full((2, 4), 1e300), "infinite values or NaN"),
        (np.zeros((2, 4), complex), "is no .npy file of real numbers"),
        (np.array([["a"] * 4]), "is no .npy file of real numbers"),
        (np.array([[None] * 4]), "is no .npy file of real numbers"),
        (None, "No such file"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error")
def test_noise_that_cannot_be_used_is_refused(array, message, trained_run, tmp_path, capsys):
    if array is not None:
        np.save(tmp_path / "z.npy", array, allow_pickle=True)
    assert main([str(trained_run), "--noise", str(tmp_path / "z.npy")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("source", ["{run}", "{run}/checkpoint.pt"])
def test_without_out_the_samples_go_to_the_runs_folder(source, trained_run, tmp_path, capsys):
    copy = shutil.copytree(trained_run, tmp_path / "copy")
    assert main([source.format(run=copy), "--count", "2", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"wrote 2 samples to {copy / 'generated.png'}\n"
    assert (copy / "generated.png").exists()
    assert main([source.format(run=copy), "--interpolate", "--frames", "1", "--device", "cpu"]) == 0
    assert (copy / "interpolation.gif").exists()


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (1000, (2 * (32 * 18 + 2), 2 * (32 * 18 + 2))),  # about square
        (3, (5 * (3 * 18 + 2), 5 * (18 + 2))),  # no empty cells
    ],
)
def test_a_grid_has_a_suitable_shape(count, size, trained_run, tmp_path):
    out = tmp_path / "a.PNG"
    assert main([str(trained_run), "--count", str(count), "--out", str(out)]) == 0
    with Image.open(out) as grid:
        assert grid.size == size


def test_points_are_written_as_numbers_and_as_a_plot(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "points.npy"
    options = [*SMALL, "--dataset", "ring", "--steps", "1", "--device", "cpu"]
    assert train_main([*options, "--run", str(run)]) == 0
    assert main([str(run), "--count", "150", "--out", str(out)]) == 0
    assert np.load(out).shape == (150, 2) and np.load(out).dtype == np.float32
    assert main([str(run), "--out", str(tmp_path / "points.png")]) == 0
    assert len(np.unique(Image.open(tmp_path / "points.png"))) > 2
    assert main([str(run), "--out", str(tmp_path / "folder")]) == 2
    capsys.readouterr()
    assert main([str(run), "--interpolate"]) == 2
    assert "points cannot be interpolated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}/none"], "there is no checkpoint or run"),
        (["{folder}"], "contains no checkpoint"),
        (["{run}/log.csv"], "is corrupt or was not written by this project"),
        (["{run}", "--count", "0"], "--count: 0: must be at least 1"),
        (["{run}", "--count", "x"], "invalid int value"),
        (["{run}", "--seed", "-1"], "--seed: -1: must be at least 0"),
        (["{run}", "--count", "1000000000000"], "must be at least 1 and at most 1e+07"),
        (["{run}", "--interpolate", "--through", "1000000000000"], "and at most 1e+07"),
        (["{run}", "--count", "1000000"], "can hold 390625 images of 16x16"),
        (["{run}", "--class", "0"], "generates no classes"),
        (["{run}", "--through", "3", "4"], "--through has no effect without --interpolate"),
        (["{run}", "--interpolate", "--per-class", "2"], "no effect with --interpolate"),
        (["{run}", "--interpolate", "--through", "3", "-4"], "--through: -4: must be at least 0"),
        (["{run}", "--interpolate", "--through", "3", "4", "--count", "2"], "with --through"),
        (["{run}", "--noise", "z.npy", "--seeds", "1"], "not allowed with argument --noise"),
        (["{run}", "--noise", "{run}/log.csv"], "is no .npy file of real numbers"),
        (["{run}", "--seeds", "1,x"], "invalid integers value: '1,x'"),
        (["{run}", "--seeds", "1,-2"], "-2: must be at least 0"),
        (["{run}", "--seeds", "1,2", "--count", "2"], "--count has no effect with --noise or"),
        (["{run}", "--seeds", "1,2", "--seed", "0"], "--seed has no effect with --noise or"),
        (["{run}", "--seeds", "1,2", "--interpolate", "--through", "1", "2"], "--through has no"),
        (["{run}", "--seeds", "1", "--interpolate"], "needs two noise vectors or more"),
        (["{run}", "--seeds", "1", "--class", "0"], "generates no classes"),
        (["{run}", "--truncation", "nan"], "--truncation nan: must be a number above 0"),
        (["{run}", "--out", "a.bmp"], "need a file with the suffix .png, .npz, .npy"),
        (["{run}", "--out", "a.gif"], "need a file with the suffix .png"),
        (["{run}", "--out", "a.png", "--interpolate"], "need a file with the suffix .gif"),
        (["{run}", "--out", "{run}"], "the folder is not empty"),
        (["{run}", "--out", "a.png/"], "a.png/ is a folder"),
        (["{run}", "--out", "none/a.png"], "there is no folder none"),
        (["{run}", "--from", "best"], "invalid choice"),
        (["{run}", "--device", "tpu"], "'tpu'"),
        (["{run}", "--nonsense"], "unknown argument '--nonsense'"),
        ([], "required: RUN"),
    ],
)
def test_bad_input_is_refused(arguments, message, trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"run": trained_run, "folder": tmp_path}
    assert main([argument.format(**names) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- classes


def test_the_weights_in_the_repository_generate_the_requested_digits(tmp_path, monkeypatch):
    weights = ROOT / "weights" / "glyphs.safetensors"
    assert weights.stat().st_size < 2 * 2**20
    monkeypatch.setitem(sys.modules, "safetensors", None)  # requirements.txt is enough
    samples = samples_in(tmp_path, weights, "--per-class", "20")
    images, digits = draw_glyphs(4000, seed=5)
    distances = torch.cdist(
        torch.tensor(samples).flatten(1).float(), torch.tensor(images).flatten(1).float()
    )
    nearest = digits[distances.argmin(1)]
    assert (nearest == np.repeat(np.arange(10), 20)).mean() > 0.8


class ClassAsLevel(torch.nn.Module):
    """Class k becomes an image of the level k / 4, whatever the noise."""

    sample_shape, noise_dim = (1, 8, 8), 4

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.25), requires_grad=False)

    def forward(self, noise, labels):
        return (labels * self.scale).view(-1, 1, 1, 1).expand(-1, *self.sample_shape)


@pytest.fixture
def classes_run(monkeypatch):
    return run_with_classes(monkeypatch, "cat", "dog", "owl")


def run_with_classes(monkeypatch, *names):
    generator = TrainedGenerator(ClassAsLevel(), names, (1,) * len(names))
    monkeypatch.setattr("generate.load_generator", lambda *_: generator)
    return "run"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--class", "owl,0", "--per-class", "2"], [2, 2, 0, 0]),
        (["--per-class", "1"], [0, 1, 2]),
        (["--class", "dog", "--count", "3"], [1, 1, 1]),
        (["--class", "owl,cat", "--seeds", "4,5"], [2, 2, 0, 0]),
        (["--class", "dog, owl", "--count", "5"], [1, 2, 1, 2, 1]),
    ],
)
def test_samples_are_of_the_requested_classes(options, expected, classes_run, tmp_path):
    out = tmp_path / "samples.npz"
    assert main([classes_run, "--out", str(out), *options]) == 0
    with np.load(out) as arrays:
        assert arrays["labels"].tolist() == expected
        levels = (np.array(expected) / 4 + 1) * 127.5
        assert np.abs(arrays["samples"].mean((1, 2, 3)) - levels).max() <= 0.5


def test_a_folder_has_a_subfolder_per_class(classes_run, tmp_path):
    out = tmp_path / "samples"
    assert main([classes_run, "--out", str(out), "--per-class", "1"]) == 0
    paths = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    names = [("cat", "000000.png"), ("dog", "000001.png"), ("owl", "000002.png")]
    assert paths == [str(Path(*parts)) for parts in names]


@pytest.mark.parametrize("name", ["../victim", "/victim", "a/b", ".", ".."])
def test_no_class_leads_out_of_the_folder(name, tmp_path, monkeypatch, capsys):
    run, out = run_with_classes(monkeypatch, "cat", name), tmp_path / "samples"
    assert main([run, "--out", str(out)]) == 2
    assert f"the class {name!r} cannot name a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([run, "--out", str(tmp_path / "samples.npz")]) == 0


def test_classes_have_the_numbers_of_the_data(tmp_path, monkeypatch):
    run, out = run_with_classes(monkeypatch, "5", "7", "no class"), tmp_path / "samples.npz"
    options = ["--class", "7,no class", "--per-class", "1"]
    assert main([run, "--out", str(out), *options]) == 0
    with np.load(out) as arrays:
        assert arrays["labels"].tolist() == [7, -1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class", "owls"], "did you mean 'owl'"),
        (["--class", "3"], "0 cat, 1 dog, 2 owl"),
        (["--class", ""], "there is no class ''"),
        (["--count", "10000000"], "10000000 samples are too many"),
        (["--per-class", "2000000"], "6000000 samples are too many"),
        (["--per-class", "0"], "--per-class: 0: must be at least 1"),
        (["--per-class", "1", "--count", "3"], "--count has no effect with --per-class"),
    ],
)
def test_bad_classes_are_refused(options, message, classes_run, tmp_path, capsys):
    assert main([classes_run, "--out", str(tmp_path / "x.png"), *options]) == 2
    assert message in capsys.readouterr().err
