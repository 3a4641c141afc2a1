"""Each state of a run gets its sentence; a healthy run gets none."""

import numpy as np
import pytest
from helpers import small_config

from train import main
from utils import METHODS
from wgan import reading
from wgan.reading import advise, too_few_steps
from wgan.run_folder import LOG_COLUMNS, read_columns

FALLING = [10, 4, 2, 1, 0.7, 0.6, 0.5, 0.5]
RISING = [3, 6, 9, 12, 14, 16, 17, 18]
HEALTHY = {"wasserstein": FALLING, "penalty": 0.1, "gradient_norm": 1.0, "epoch": 5.0}


def log_of(**columns):
    """A log of 80 rows and 2,000 steps; a list spans them by straight lines."""
    place = np.linspace(0, 1, 80)
    log = {name: np.full(80, np.nan) for name in LOG_COLUMNS}
    for name, values in (HEALTHY | columns).items():
        values = np.atleast_1d(values)
        log[name] = np.interp(place, np.linspace(0, 1, len(values)), values)
    noise = 0.05 * np.random.default_rng(0).standard_normal(80)
    log["wasserstein"] = log["wasserstein"] * (1 + noise)
    return log | {"step": np.linspace(25, 2000, 80), "seconds": np.linspace(1, 100, 80)}


@pytest.mark.parametrize("method", METHODS)
def test_a_healthy_run_gets_no_sentence(method):
    norm = 1.0 if METHODS[method].norms[0] else 0.2
    assert advise(log_of(gradient_norm=norm), small_config(method=method), 1.0) == []


@pytest.mark.parametrize(
    ("columns", "options", "start"),
    [
        ({"gradient_norm": 7.0}, {}, "The gradient norm is 7 instead of 1"),
        ({"penalty": 4.0}, {}, "The penalty (4) exceeds the estimate ("),
        ({"gradient_norm": 1e-7}, {"method": "wgan"}, "The critic's gradient has vanished"),
        ({"gradient_norm": 0, "wasserstein": [1, 0, 0]}, {}, "The critic's gradient has vanished"),
        ({"gradient_norm": 0.2}, {}, "The critic is too weak ("),
        ({"wasserstein": [-1, -2, -2]}, {"method": "wgan-lp"}, "The critic is too weak ("),
        ({"wasserstein": RISING, "epoch": 40}, {}, "The estimate rises throughout, to 17: "),
        ({"wasserstein": RISING}, {}, "The critic is too strong ("),
        ({"wasserstein": [1, 9, 9, 9]}, {"method": "wgan-div"}, "The critic is too strong ("),
    ],
)
def test_a_state_gets_exactly_its_sentence(columns, options, start):
    (sentence,) = advise(log_of(**columns), small_config(**options), 1.0)
    assert sentence.startswith(start) and "nan" not in sentence


def test_what_to_do_about_a_vanished_gradient_depends_on_the_method():
    for method, remedy in (("wgan", "a --clip above 0.01"), ("wgan-gp", "a smaller --lr-critic")):
        (sentence,) = advise(log_of(gradient_norm=0), small_config(method=method), 1.0)
        assert remedy in sentence


def test_what_a_method_does_not_ask_for_is_no_state():
    """A small norm, unless the penalty targets 1; a large one, unless it bounds it."""
    for method, norm in (("wgan-lp", 0.2), ("wgan", 0.02), ("wgan-div", 30.0), ("r3gan", 0.05)):
        assert advise(log_of(gradient_norm=norm), small_config(method=method), 1.0) == []


def test_an_unfinished_or_short_run_is_not_read():
    log = log_of(wasserstein=RISING)
    assert advise(log, small_config(), 0.6) == []
    assert (
        advise(log | {"step": log["step"] / 5}, small_config(max_seconds=0, steps=400), 1.0) == []
    )
    assert advise({name: np.array([]) for name in LOG_COLUMNS}, small_config(), 1.0) == []


@pytest.mark.parametrize(
    ("generated", "start"),
    [
        ({"precision": 0.9, "recall": 0.01}, "Precision is 0.90, but recall 0.01"),
        ({"precision": 0.2, "recall": 0.01}, None),
        ({"precision": 0.9, "recall": 0.5}, None),
        ({"classes": 6, "precision": 0.9, "recall": 0.5}, "The samples show 6 of 10 classes"),
        ({"modes": 12, "modes_in_all": 25, "recall": 0.5}, "The samples show 12 of 25 classes"),
        ({"modes": 25, "modes_in_all": 25}, None),
    ],
)
def test_metrics_are_compared_with_those_of_real_samples(generated, start):
    result = {"generated": generated, "real": {"precision": 0.9, "recall": 0.9, "classes": 10}}
    sentences = advise(log_of(), small_config(), 1.0, result)
    assert len(sentences) == (start is not None)
    assert all(sentence.startswith(start) for sentence in sentences)


def test_a_run_that_is_too_short_says_how_long_it_should_be(image_folder):
    config = small_config(dataset=str(image_folder), max_seconds=600)
    assert config.enough_steps == 1000  # of the recipe
    (sentence,) = too_few_steps(config, 340)
    assert sentence.startswith("About 340 steps fit into --max-seconds 600, and this recipe needs")
    assert "--max-seconds 1800 or, with --fresh, --image-size 32" in sentence
    assert too_few_steps(config, 750) == []
    small = small_config(dataset="glyphs", max_seconds=60)
    assert "--image-size" not in too_few_steps(small, 100)[0]  # they have 28x28
    assert too_few_steps(small_config(dataset="glyphs", steps=10), 10) == []  # as asked for


@pytest.mark.parametrize(
    ("options", "start"),
    [
        (["--method", "wgan", "--clip", "1e-6"], "The critic's gradient has vanished"),
        (["--lr-critic", "1e-7", "--lr-generator", "0.03"], "The critic is too weak"),
    ],
)
def test_real_runs_that_are_made_to_be_in_a_state(options, start, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reading, "STEPS", 0)
    monkeypatch.setattr("wgan.run_folder.RunFolder.save_plots", lambda self: None)  # is slow
    run, short = tmp_path / "r", ["--steps", "60", "--log-every", "2", "--sample-every", "60"]
    small = ["--dataset", "ring", "--width", "16", "--n-critic", "1", "--device", "cpu"]
    assert main([*small, *short, *options, "--run", str(run)]) == 0
    assert start in capsys.readouterr().out
    assert len(read_columns(run)["step"]) == 30
