"""The benchmark of quality against time, with distances that are made up, and its processes."""

import json
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality import (
    measure,
    measure_plain_script,
    measure_recipe,
    plot,
    show,
    train_command,
    train_plain_script,
)
from wgan.cli import make_parser, parse_command_line
from wgan.data import Dataset, RowReader

pytestmark = pytest.mark.slow

RECIPE = "fashion-mnist-best"


def options_for(tmp_path, **changed):
    """What `parse_options` returns."""
    options = {"device": "cpu", "workers": 0, "data_root": str(tmp_path), "json": None}
    return Namespace(**{**options, "marks": [10, 20], "seeds": [0, 1, 2], **changed})


def test_the_plain_script_is_measured_at_each_mark(tmp_path):
    """By a clock that counts its calls: of each step, and two of each measurement."""
    labels = np.arange(300) % 2
    samples = np.random.default_rng(0).integers(0, 128, (300, 1, 28, 28))
    samples = (samples + 128 * labels[:, None, None, None]).astype(np.uint8)
    dataset = Dataset(RowReader.from_array(samples), labels)
    calls = iter(range(1000))
    options = options_for(tmp_path, marks=[2, 5])
    distances = train_plain_script(options, 0, dataset, lambda: next(calls))
    assert [mark for mark, _ in distances] == [2, 5]
    assert all(distance > 0 for _, distance in distances)
    # Calls 0, 1, 2; measuring: 3, 4; then 5 and 6, of which one second was measuring.
    assert next(calls) == 9


def test_a_recipe_trains_with_its_time_limit(tmp_path):
    """The command is one that train.py accepts."""
    _, script, *flags = train_command(RECIPE, 60, 2, tmp_path / "run", options_for(tmp_path))
    assert script.endswith("train.py")
    config = parse_command_line(make_parser(), flags)[0].config
    assert (config.dataset, config.max_seconds, config.seed) == ("fashion-mnist", 60, 2)
    assert (config.device, config.data_root) == ("cpu", str(tmp_path))


def test_a_recipe_whose_training_fails_has_no_distance(tmp_path, capfd):
    """The learning rates of this recipe take longer than a second to warm up."""
    options = options_for(tmp_path, marks=[1])
    assert list(measure_recipe(RECIPE, options, None, seed=3)) == [(1, None)]
    captured = capfd.readouterr()
    assert f"{RECIPE}, 1 s, seed 3: exit code 2" in captured.out
    assert "error: max_seconds = 1" in captured.err


def made_up(seed):
    yield 10, 100.0 + seed**2
    yield 20, None if seed == 1 else 50.0 + seed**2


def test_results_are_medians_over_seeds(tmp_path, capsys):
    loops = {"plain": lambda seed: [(10, 2.0 * seed), (20, seed)], RECIPE: made_up}
    show(result := measure(options_for(tmp_path), loops))
    output = capsys.readouterr().out
    assert "| plain | 2.0 (0.0 to 4.0) | 1.0 (0.0 to 2.0) |" in output
    assert f"| {RECIPE} | 101.0 (100.0 to 104.0) | 52.0 (50.0 to 54.0) |" in output
    plot(result, tmp_path / "q.png")
    pixels = np.asarray(Image.open(tmp_path / "q.png").convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # a line for each loop
        assert (pixels == colour).all(1).sum() > 50


def test_an_interruption_leaves_the_results_so_far(tmp_path):
    def interrupted(seed):
        yield 10, 9.0
        raise KeyboardInterrupt

    options = options_for(tmp_path, json=str(tmp_path / "q.json"), seeds=[2])
    with pytest.raises(KeyboardInterrupt):
        measure(options, {RECIPE: interrupted})
    kept = json.loads((tmp_path / "q.json").read_text())
    assert kept["loops"] == {RECIPE: {"2": {"10": 9.0}}}


def test_a_loop_without_any_result_has_failed(tmp_path, capsys):
    show(measure(options_for(tmp_path), {RECIPE: lambda seed: [(10, None)]}))
    assert f"| {RECIPE} | failed | failed |" in capsys.readouterr().out


@pytest.mark.nightly
def test_the_plain_script_runs_in_a_new_process_that_reports_its_errors(tmp_path):
    (tmp_path / "file").write_text("in the way of the data set")
    with pytest.raises((ValueError, OSError), match="file") as error:
        list(measure_plain_script(options_for(tmp_path / "file"), seed=0))
    assert "start_plain_script" in str(error.value.__cause__)  # the other process's traceback
