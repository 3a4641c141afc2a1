"""The benchmark of quality against time, with distances that are made up, and its processes."""

import json
import subprocess
from argparse import Namespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import quality
from benchmarks.quality import main
from benchmarks.textbook import Textbook
from wgan.data import Dataset, RowReader

RECIPE = "fashion-mnist-best"


@pytest.fixture
def small_fashion(monkeypatch, tmp_path):
    """300 dark and bright images, in two classes, in place of Fashion-MNIST."""
    labels = np.arange(300) % 2
    samples = np.random.default_rng(0).integers(0, 128, (300, 1, 28, 28))
    samples = (samples + 128 * labels[:, None, None, None]).astype(np.uint8)
    dataset = Dataset(RowReader.from_array(samples), labels)
    monkeypatch.setattr(quality, "load_dataset", lambda name, root: dataset)
    return ["--data-root", str(tmp_path), "--device", "cpu"]


def test_the_plain_script_is_measured_at_each_mark(small_fashion, monkeypatch, capsys):
    clock = iter(range(1000))
    monkeypatch.setattr(quality, "seconds_since_start", lambda: next(clock))
    steps, step = [], Textbook.step
    monkeypatch.setattr(Textbook, "step", lambda self: steps.append(1) or step(self))
    assert main([*small_fashion, "--plain-script", "--marks", "5,2"]) == 0
    distances = json.loads(capsys.readouterr().out)
    assert list(distances) == ["2", "5"]
    assert all(value > 0 for value in distances.values())
    assert len(steps) == 3  # at 0, 1 and 5; measuring took a second that is not counted


def test_the_plain_script_runs_in_a_process_with_the_same_options(monkeypatch):
    run = Mock(return_value='noise\n{"2": 1.5, "5": 1.0}\n')
    monkeypatch.setattr(quality, "run_python", run)
    options = Namespace(marks="5,2", device="cpu", workers=1, data_root="/data")
    assert quality.measure_plain_script(options, seed=3) == {2: 1.5, 5: 1.0}
    module, *arguments = map(str, run.call_args.args[1:])
    assert module == "benchmarks.quality"
    parsed = quality.parse_options(arguments)
    assert parsed.plain_script
    assert (parsed.marks, parsed.seed, parsed.device) == ("5,2", 3, "cpu")
    assert (parsed.workers, parsed.data_root) == (1, "/data")


def test_a_recipe_trains_with_its_time_limit(monkeypatch):
    """The command is one that train.py accepts."""
    from wgan.cli import make_parser, parse_command_line

    command = []

    def run_python(script, *arguments):
        command.extend(map(str, arguments))
        assert script.name == "train.py" and script.exists()

    monkeypatch.setattr(quality, "run_python", run_python)
    monkeypatch.setattr(quality, "load_generator", lambda run: run)
    monkeypatch.setattr(quality, "generate", lambda generator, count: count)
    options = Namespace(device="cpu", data_root="/data")
    assert quality.samples_of_recipe(RECIPE, 60, 2, 100, options) == 100
    (config, _), _ = parse_command_line(make_parser(), command)
    assert (config.dataset, config.max_seconds, config.seed) == ("fashion-mnist", 60, 2)
    assert (config.device, config.data_root) == ("cpu", "/data")


@pytest.fixture
def made_up(monkeypatch):
    """Distances that follow from seed and time; one run fails."""
    plain, runs = {0: 70, 1: 110, 2: 60}, []

    def samples_of_recipe(recipe, mark, seed, count, options):
        runs.append((recipe, mark, seed))
        if (mark, seed) == (20, 1):
            raise subprocess.CalledProcessError(1, "train.py")
        return torch.tensor(1000 / mark + seed**2)

    class Evaluator:
        count = 10
        frechet_distance = staticmethod(float)

    def measure_plain_script(options, seed):
        return {10: 2.0 * plain[seed], 20: plain[seed]}

    monkeypatch.setattr(quality, "build_evaluator", lambda options: Evaluator)
    monkeypatch.setattr(quality, "samples_of_recipe", samples_of_recipe)
    monkeypatch.setattr(quality, "measure_plain_script", measure_plain_script)
    return runs


ARGUMENTS = ["--marks", "20,10", "--seeds", "3", "--loops", f"plain,{RECIPE}"]


def test_results_are_medians_over_seeds(made_up, capsys, tmp_path):
    assert main([*ARGUMENTS, "--plot", str(tmp_path / "q.png")]) == 0
    output = capsys.readouterr().out
    assert "| plain dense script | 140.0 (120.0 to 220.0) | 70.0 (60.0 to 110.0) |" in output
    assert f"| {RECIPE} | 101.0 (100.0 to 104.0) | 52.0 (50.0 to 54.0) |" in output
    assert f"{RECIPE}, 20 s, seed 1: exit code 1" in output
    assert made_up == [(RECIPE, mark, seed) for seed in range(3) for mark in (10, 20)]
    pixels = np.asarray(Image.open(tmp_path / "q.png").convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # a line for each loop
        assert (pixels == colour).all(1).sum() > 50


def test_an_interruption_leaves_the_results_so_far(made_up, monkeypatch, tmp_path):
    samples = Mock(side_effect=[torch.tensor(9.0), KeyboardInterrupt])
    monkeypatch.setattr(quality, "samples_of_recipe", samples)
    assert main([*ARGUMENTS, "--json", str(tmp_path / "q.json"), "--seed", "2"]) == 130
    kept = json.loads((tmp_path / "q.json").read_text())
    assert kept["loops"]["plain"] == {"2": {"10": 120.0, "20": 60}}
    assert kept["loops"][RECIPE] == {"2": {"10": 9.0}}


def test_a_loop_without_any_result_has_failed(capsys):
    result = {"machine": "m", "marks": [10], "seeds": 1, "loops": {RECIPE: {0: {10: None}}}}
    quality.show(result)
    assert f"| {RECIPE} | failed |" in capsys.readouterr().out
