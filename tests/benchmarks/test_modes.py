"""What the benchmark of modes counts, on samples of known modes, and its command in small."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks import modes
from benchmarks.modes import main, mixture, stacks
from wgan.data import Dataset, RowReader, load_dataset
from wgan.evaluation.features import Features


class Brightness(Features):
    """The class of an image is its brightness over 100: 0, 1 or 2."""

    def __call__(self, images):
        assert images.shape[1] == 1  # one channel at a time
        return images.float().mean((1, 2, 3))[:, None] / 100

    def probabilities(self, features):
        return (-20 * (features - torch.arange(3.0)).abs()).softmax(1)


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    """The exact distance of 2,000 points takes seconds."""
    monkeypatch.setattr(modes, "POINTS", 1000)
    monkeypatch.setattr(modes, "PAIRED", 100)


@pytest.fixture
def shades(monkeypatch):
    """Three classes of grey images, and few stacks of them."""
    monkeypatch.setattr(modes, "STACKS", 500)
    monkeypatch.setattr(modes, "IMAGES", 900)
    labels = np.arange(90) % 3
    images = np.broadcast_to(100 * labels[:, None, None, None], (90, 1, 8, 8)).astype(np.uint8)
    return Dataset(RowReader.from_array(images), labels, class_names=("a", "b", "c"))


def test_stacks_of_three_images_have_the_modes_of_their_channels(shades):
    task = stacks(shades, Brightness())
    assert task.real.shape == (900, 3, 8, 8) and task.dataset.sample_shape == (3, 8, 8)
    values = task.judge(task.real)
    assert (values["modes"], values["modes_in_all"], values["good_samples"]) == (27, 27, 1)
    assert values["mode_divergence"] == pytest.approx(26 / 1800, rel=0.6)
    collapsed = task.real[:, :1].expand(-1, 3, -1, -1)  # three equal channels: 3 modes of 27
    values = task.judge(collapsed)
    assert values["modes"] == 3
    assert values["mode_divergence"] == pytest.approx(math.log(9), abs=0.02)
    assert values["good_samples"] == 1
    doubtful = task.real.clone()
    doubtful[:90, 1] = 50  # between two classes in one channel
    assert task.judge(doubtful)["good_samples"] == pytest.approx(0.9)
    order = torch.tensor([[0, 100, 200], [200, 100, 0]]).byte()[:, :, None, None]
    assert task.judge(order.expand(-1, -1, 8, 8))["modes"] == 2  # the order of the channels counts


def test_points_of_one_mode_are_a_collapse_and_real_ones_are_none():
    task = mixture(load_dataset("ring"))
    real = task.judge(task.real)
    assert (real["modes"], real["modes_in_all"]) == (8, 8)
    assert real["good_samples"] > 0.97 and real["mode_divergence"] < 0.02
    collapsed = task.judge(torch.tensor([[2**0.5, 0.0]]).expand(len(task.real), 2))
    assert (collapsed["modes"], collapsed["good_samples"]) == (1, 1)
    assert collapsed["mode_divergence"] == pytest.approx(math.log(8), abs=0.01)
    chords = 2 * 2**0.5 * np.sin(np.pi * np.arange(8) / 8)  # from one mode to each
    assert collapsed["wasserstein_distance"] == pytest.approx(chords.mean(), rel=0.2)
    assert real["wasserstein_distance"] < 0.5 * collapsed["wasserstein_distance"]


@pytest.mark.slow
def test_the_command_in_small(tmp_path, capsys):
    target = tmp_path / "modes.json"
    flags = ["--rows", "ring", "--methods", "wgan-gp", "--steps", "2", "--seeds", "0", "1"]
    assert main([*flags, "--device", "cpu", "--json", str(target)]) == 0
    runs = json.loads(target.read_text())["runs"]
    cases = [(run["method"], run["noise"], run["seed"]) for run in runs]
    noises = ("2 dimensions", "and 100 categories")
    assert cases == [("real", "", 0), *(("wgan-gp", n, s) for n in noises for s in (0, 1))]
    assert len({run["wasserstein_distance"] for run in runs}) == 5  # each is a run of its own
    output = capsys.readouterr().out
    assert "ring: 8 modes" in output and "| real |  | 8 |" in output
    assert output.count("| wgan-gp |") == 2 and " to " in output


def test_stacks_are_trained_on(shades, cpu):
    task = stacks(shades, Brightness())
    options = {"dataset": "stacks", "method": "r3gan", "steps": 2, "device": "cpu", "width": 8}
    options |= {"generator_width": 4, "patch_features": 4, "batch_size": 8, "compile": "off"}
    config = modes.resolve(options, modes.ROWS["stacked"][0]).config
    with modes.tqdm(disable=True) as bar:
        generator = modes.train_generator(config, task.dataset, bar)
    assert modes.generate(generator, 5).shape == (5, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rows", "rings"], "rings"), (["--steps", "0"], "--steps"), (["--methods", "x"], "'x'")],
)
def test_bad_options_end_with_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
