"""What a run shows while it trains."""

import math
from types import SimpleNamespace

import pytest

from wgan import display
from wgan.budget import Budget, StepStatus
from wgan.display import Display, describe_seconds

ROW = {"wasserstein": 1.0, "penalty": 0.0, "images_per_second": 1000.0}


def status_at(step, budget, seconds):
    finished = budget.is_over(step)
    return StepStatus(step, finished, 0, False, budget.progress(step), seconds)


def display_at(elapsed, step, budget, monkeypatch, progress=0.0):
    """A display after some seconds of training up to a step, without a terminal."""
    monkeypatch.setattr("wgan.budget.seconds_since_start", lambda: elapsed)
    start = SimpleNamespace(step=0, seconds=0.0, progress=progress)
    display = Display(start, budget, 100)
    status = status_at(step, budget, elapsed)
    display.advance(status)
    display.show(status, ROW)
    display.close()
    return display


@pytest.mark.parametrize(
    ("limits", "elapsed", "step", "line"),
    [
        ((math.inf, 104), 25, 50, " 25%  step 50  W 1  penalty 0  samples/s 1,000  75 s left"),
        ((math.inf, 104), 100, 90, "100%  step 90 "),
        ((200, 104), 25, 150, " 75%  step 150/200 "),  # the steps end first
        ((200, 104), 80, 20, " 80%  step 20/200 "),  # the time ends first
        ((200, 0), 25, 50, "step 50/200  W 1  penalty 0  samples/s 1,000  15 s left"),
    ],
)
def test_a_line_names_the_limit_that_ends_the_run(limits, elapsed, step, line, monkeypatch, capsys):
    monkeypatch.setattr(display, "ESTIMATE_SECONDS", math.inf)
    monkeypatch.setattr("wgan.budget.seconds_since_start", lambda: 0.0)
    display_at(elapsed, step, Budget(*limits), monkeypatch)
    assert capsys.readouterr().out.startswith(line)


@pytest.mark.parametrize(("steps", "advice"), [(300, False), (10**9, True)])
def test_the_duration_is_told_once_and_how_to_shorten_it(steps, advice, monkeypatch, capsys):
    budget = Budget(steps, 0)
    shown = display_at(10, 100, budget, monkeypatch)
    shown.advance(status_at(101, budget, 10.1))
    output = capsys.readouterr().out
    assert output.count(" left, at 0.1 s per step") == 1
    assert ("--max-seconds 600" in output) == advice


def test_durations_are_rounded():
    expected = {0: "0 s", 40.4: "40 s", 119: "119 s", 120: "2 min", 7199: "120 min", 7200: "2 h"}
    assert {seconds: describe_seconds(seconds) for seconds in expected} == expected
    assert describe_seconds(14 * 3600 + 100) == "14 h"
