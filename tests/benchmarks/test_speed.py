"""The benchmark compares like with like: its textbook loop is right, and its counts are."""

import json
import subprocess
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import quality as race
from benchmarks import speed as benchmark
from benchmarks.speed import configuration, flops_of, main
from benchmarks.textbook import Textbook, from_loader, from_memory
from train import build_state, critic_step, generator_step
from utils import METHODS
from wgan.config import resolve
from wgan.data.table import Batches, Dataset, floats_to_bytes

SHAPE = (1, 16, 16)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["dcgan", "dense"])
def test_the_textbook_loop_trains_as_ours_does(method, model, cpu, monkeypatch):
    """The same weights after a step on the same numbers, so that only speed differs."""
    options = {"method": method, "model": model, "width": 8, "noise_dim": 4, "batch_size": 8}
    config = resolve({"n_critic": 2, "generator_norm": "none", "precision": "fp32"} | options, {})
    state = build_state(config, SHAPE, cpu)
    real = torch.rand(2, 8, *SHAPE) * 2 - 1
    noise, mix = torch.randn(3, 8, 4), torch.rand(2, 8)
    textbook = Textbook(config, state.generator, state.critic, iter(real))
    noises, mixes = iter(noise), iter(mix)
    monkeypatch.setattr(textbook, "noise", lambda: next(noises))
    monkeypatch.setattr(torch, "rand", lambda *shape, device: next(mixes).view(shape))
    textbook.step()
    for i in range(2):
        critic_step(state, real[i], noise[i], mix[i])
    generator_step(state, noise[2])
    for ours, plain in (
        (state.critic, textbook.critic),
        (state.generator, textbook.generator),
    ):
        for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_operations_are_counted(cpu):
    layer, samples = nn.Linear(3, 5, bias=False), torch.randn(7, 3)
    assert flops_of(lambda: layer(samples)) == 2 * 7 * 3 * 5
    # Backward once more for the weights; the samples want no gradient.
    assert flops_of(lambda: layer(samples).sum().backward()) == 2 * 2 * 7 * 3 * 5


def test_ours_does_less_work_than_the_textbook_loop(cpu):
    config, shape = configuration_of("--image-size", "16", "--width", "8", "--batch-size", "8")
    contest = benchmark.Contest(config, shape, workers=0)
    ours = flops_of(contest.loops["ours"])
    assert 0.6 < ours / flops_of(contest.loops["textbook"]) < 0.95


def configuration_of(*arguments):
    parser = benchmark.make_parser()
    return configuration(parser.parse_args(["--compile", "off", *arguments]))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_loader_feeds_the_same_pictures_as_memory_does(channels, cpu):
    samples = np.random.default_rng(0).integers(0, 256, (4, channels, 8, 8)).astype(np.uint8)
    whole = Batches(samples, 4, 0, cpu)
    expected = next(from_memory(whole.samples.numpy(), 4, cpu))
    loaded = next(from_loader(samples, 4, workers=0))
    assert loaded.shape == expected.shape
    found = floats_to_bytes(loaded).flatten(1).tolist()
    assert sorted(found) == sorted(torch.from_numpy(samples).flatten(1).tolist())


@pytest.mark.parametrize("loop", benchmark.ALONE)
def test_a_loop_alone_reports_its_peak_memory(loop, capsys):
    arguments = ["--image-size", "16", "--width", "8", "--batch-size", "8", "--n-critic", "1"]
    assert main([*arguments, "--compile", "off", "--alone", loop]) == 0
    memory = int(capsys.readouterr().out.splitlines()[-1])
    assert memory == 0 or memory > benchmark.SAMPLES * 16 * 16  # the data at least


def test_the_whole_comparison_in_small(tmp_path, capsys, monkeypatch):
    """But for the processes of their own, which take seconds to start."""
    monkeypatch.setattr(benchmark, "startup_seconds", lambda device: 1.0)
    monkeypatch.setattr(benchmark, "memory_alone", lambda loop, arguments: 2**20)
    target = tmp_path / "figures.json"
    small = ["--image-size", "16", "--width", "8", "--batch-size", "8", "--n-critic", "1"]
    small += ["--seconds", "0.1", "--compile", "off", "--precision", "fp32"]
    assert main([*small, "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert list(result["loops"]) == ["textbook, DataLoader", "textbook", "ours"]
    for loop in result["loops"].values():
        assert loop["images_per_second"] == pytest.approx(8000 / loop["ms_a_step"])
        low, high = loop["ratio_range"]
        assert low <= loop["ratio"] <= high
    for shares in result["time_goes_to"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["convolutions and matrix products"] > 0
    shown = capsys.readouterr().out
    assert "textbook, DataLoader" in shown and "to its first step" in shown


def test_the_plain_script_is_measured_at_each_mark(monkeypatch, capsys, tmp_path):
    samples = np.random.default_rng(0).integers(0, 256, (300, 1, 28, 28)).astype(np.uint8)
    dataset = Dataset(samples, np.arange(300) % 2)
    monkeypatch.chdir(tmp_path)  # where the classifier is kept
    monkeypatch.setattr(race, "load_dataset", lambda name: dataset)
    clock = iter(range(1000))
    monkeypatch.setattr(race, "seconds_since_start", lambda: next(clock))
    steps, step = [], Textbook.step
    monkeypatch.setattr(Textbook, "step", lambda self: steps.append(1) or step(self))
    assert main(["--alone", "plain", "--marks", "5,2", "--device", "cpu"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert list(measured) == ["2", "5"]
    assert all(value > 0 for value in measured.values())
    assert len(steps) == 3  # at 0, 1 and 5, of which a second went into measuring


def test_quality_is_the_median_over_seeds_kept_after_each_run(monkeypatch, capsys, tmp_path):
    """With distances that follow from seed and time: the table, the plot, and what an
    interruption leaves."""
    plain = {0: 70, 1: 110, 2: 60}
    runs = []

    def samples_of_recipe(recipe, seconds, environment, count):
        seed = int(environment[-1])
        runs.append((recipe, seconds, seed))
        if (seconds, seed) == (20, 1):
            raise subprocess.CalledProcessError(1, "train.py")
        return torch.tensor(1000 / seconds + seed**2)

    class Evaluator:
        count = 10
        frechet_distance = staticmethod(float)

    def distances_of_plain_script(options, environment):
        return {10: 2.0 * plain[int(environment[-1])], 20: plain[int(environment[-1])]}

    monkeypatch.setattr(race, "fashion_evaluator", lambda options: Evaluator)
    monkeypatch.setattr(race, "samples_of_recipe", samples_of_recipe)
    monkeypatch.setattr(race, "distances_of_plain_script", distances_of_plain_script)
    loops = "plain,fashion-mnist-best"
    arguments = ["--quality", "--marks", "20,10", "--seeds", "3", "--loops", loops]
    arguments += ["--json", str(tmp_path / "q.json"), "--plot", str(tmp_path / "q.png")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "| plain dense script | 140.0 (120.0 to 220.0) | 70.0 (60.0 to 110.0) |" in shown
    assert "| fashion-mnist-best | 101.0 (100.0 to 104.0) | 52.0 (50.0 to 54.0) |" in shown
    assert "fashion-mnist-best, 20 s, seed 1: exit code 1" in shown
    assert runs == [("fashion-mnist-best", mark, seed) for seed in range(3) for mark in (10, 20)]
    drawn = np.asarray(Image.open(tmp_path / "q.png").convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # a line for each
        assert (drawn == colour).all(1).sum() > 50

    ending = Mock(side_effect=[torch.tensor(9.0), KeyboardInterrupt])
    monkeypatch.setattr(race, "samples_of_recipe", ending)
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, "--seed", "2"])
    kept = json.loads((tmp_path / "q.json").read_text())
    assert kept["loops"]["plain"] == {"2": {"10": 120.0, "20": 60}}
    assert kept["loops"]["fashion-mnist-best"] == {"2": {"10": 9.0}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "wgan-pg"], "did you mean 'wgan-gp'"),
        (["--image-size", "big"], "neither a side"),
        (["--channels", "2"], "--channels 1 or 3"),
        (["--image-size", "30"], "use --image-size"),
        (["--seconds", "soon"], "invalid float"),
        (["--seconds", "inf"], "--seconds must lie between"),
        (["--quality", "--seeds", "0"], "--seeds must be at least 1"),
        (["--quality", "--seed", "-1"], "--seed must not be negative"),
        (["--quality", "--marks", "5,60"], "max_seconds = 5"),
        (["--quality", "--marks", "60,soon"], "--marks takes seconds such as 60,120,300"),
        (["--quality", "--loops", "plain,best"], "there is no 'best'; there is plain, fashion"),
        (["--quality", "--plot", "no/such/folder/x.png"], "no/such/folder"),
        (["--quality", "--plot", "."], ". cannot be written"),
        (["--plot", "x.png"], "--plot draws the figures of --quality"),
        (["--json", "no/such/folder/x.json", "--growth"], "no/such/folder"),
    ],
)
def test_bad_options_end_with_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
