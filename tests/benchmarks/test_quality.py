"""The benchmark of quality against time, with distances that are made up, and its processes."""

import json
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import quality
from benchmarks.quality import (
    RECORDS,
    chance_of_mean,
    main,
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
    options["dataset"] = None
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


def test_methods_differ_in_nothing_but_the_method(tmp_path, monkeypatch):
    """Also where the data set has another recipe for the method."""
    commands = {}

    def record(recipe, seconds, options, evaluator, seed, flags):
        run = tmp_path / "run"
        commands[flags[-1]] = [*train_command(recipe, seconds, seed, run, options), *flags]
        return 1.0, 2.0

    monkeypatch.setattr(quality, "train_and_measure", record)
    for name in ("load_dataset", "build_evaluator"):
        monkeypatch.setattr(quality, name, lambda *arguments: None)
    arguments = ["--methods", "wgan", "wgan-gp", "r3gan", "--dataset", "fashion-mnist"]
    assert main([*arguments, "--marks", "60", "--device", "cpu"]) == 0
    configs = {
        method: parse_command_line(make_parser(), command[2:])[0].config
        for method, command in commands.items()
    }
    assert [config.method for config in configs.values()] == list(configs) == arguments[1:4]
    shared = ("model", "width", "generator_width", "batch_size", "lr_critic", "n_critic", "betas")
    shared += ("dataset", "categories", "critic_norm", "optimizer", "max_seconds", "steps")
    assert len({tuple(getattr(c, name) for name in shared) for c in configs.values()}) == 1


def test_points_and_options_without_effect_are_refused(capsys):
    for arguments, message in (
        (["--methods", "wgan", "--dataset", "ring"], "benchmarks.modes"),
        (["--methods", "wgan", "--dataset", "rings"], "unknown dataset 'rings'"),
        (["--methods", "wgan", "--loops", "plain"], "not allowed with"),
        (["--dataset", "glyphs"], "--dataset has no effect without --methods"),
        (["--record", "fashion-mnist-cpu", "--marks", "60"], "--marks has no effect"),
        (["--record", "fashion-mnist-cpu", "--seeds", "0"], "two or more"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_the_chance_of_two_distances_is_that_of_cauchys_law():
    """With two, t has one degree of freedom: P(T < t) = 1/2 + arctan(t) / pi. Here t = -1, -3."""
    assert chance_of_mean([4.0, 5.0], 5.0) == pytest.approx(0.25)
    assert chance_of_mean([3.0, 4.0], 5.0) == pytest.approx(0.5 - np.arctan(3) / np.pi)
    assert chance_of_mean([5.0, 6.0], 5.0) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("below", "spread", "verdict"),
    [(0.5, 0.1, "is met"), (0.05, 1.0, "not met"), (-1.0, 0.1, "not met"), (None, 0, "failed")],
)
def test_a_record_needs_a_mean_that_is_below_the_target_beyond_doubt(
    below, spread, verdict, monkeypatch, tmp_path, capsys
):
    record = RECORDS["fashion-mnist-cpu"]

    def made_up_run(recipe, seconds, options, evaluator, seed):
        assert (recipe, seconds, options.device) == (record.recipe, record.seconds, "cpu")
        if below is None:
            print("it failed")
            return None, 7.0
        return record.target - below + spread * (seed - 2), 301.0 + seed

    monkeypatch.setattr(quality, "train_and_measure", made_up_run)
    for name in ("load_dataset", "build_evaluator"):
        monkeypatch.setattr(quality, name, lambda *arguments: None)
    target = tmp_path / "r.json"
    code = main(["--record", "fashion-mnist-cpu", "--json", str(target)])
    output = capsys.readouterr().out
    assert verdict in output and code == (0 if verdict == "is met" else 1)
    if below is not None:
        assert "longest run 305.0 s" in output and "seed 4: Fréchet distance" in output
        assert len(json.loads(target.read_text())["runs"]) == 5


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
