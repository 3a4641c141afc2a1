"""What is shown and saved between steps, by the number of steps and by the time."""

import math
import signal
from types import SimpleNamespace

import pytest
from helpers import assert_same_run, run_main

import train
from wgan import monitor
from wgan.budget import Budget
from wgan.checkpoints import read_checkpoint
from wgan.monitor import describe_seconds

RARELY = ["--log-every", 100, "--sample-every", 100, "--checkpoint-every", 100]


def test_slow_steps_show_and_save_something_in_between(image_folder, tmp_path, monkeypatch, capsys):
    """And the log, the grids and the final state are those of a run in which no time passes."""
    run_main(image_folder, tmp_path / "plain", *RARELY, "--steps", 4)
    assert "step 2/4" not in capsys.readouterr().out
    monkeypatch.setattr(monitor, "MAX_SECONDS_WITHOUT_LINE", 0)
    monkeypatch.setattr(monitor, "MAX_SECONDS_UNSAVED", (0, 0))
    monkeypatch.setattr(monitor, "SECONDS_BETWEEN_LINES", 0)
    slow, saved, step = tmp_path / "slow", [], train.train_step

    def spy(state, *rest):
        if state.step:
            saved.append(read_checkpoint(slow / "checkpoint.pt")["step"])
            assert (slow / "latest.png").exists()
        return step(state, *rest)

    monkeypatch.setattr(train, "train_step", spy)
    assert run_main(image_folder, slow, *RARELY, "--steps", 4) == 0
    assert saved == [1, 2, 3]
    output = capsys.readouterr().out
    assert all(f"step {step}/4" in output for step in (1, 2, 3, 4))
    assert not (slow / "latest.png").exists()  # outdated by the last grid
    assert_same_run(slow, tmp_path / "plain")


def test_a_stopped_run_shows_its_last_samples(image_folder, tmp_path, monkeypatch):
    after_step = train.Monitor.after_step

    def stop_after_three(self, status, losses):
        after_step(self, status, losses)
        if status.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train.Monitor, "after_step", stop_after_three)
    run = tmp_path / "r"
    assert run_main(image_folder, run, *RARELY, "--steps", 6) == 130
    assert (run / "latest.png").exists()
    monkeypatch.setattr(train.Monitor, "after_step", after_step)
    assert run_main(image_folder, run, *RARELY, "--steps", 6) == 0
    assert not (run / "latest.png").exists()  # outdated by the last grid


def test_a_long_run_is_saved_less_often():
    class Watch(monitor.Monitor):
        def __init__(self):
            self.start_clock(SimpleNamespace(seconds=50))

    after = (SimpleNamespace(seconds=50 + seconds) for seconds in (1, 2000, 10**6))
    unsaved = [Watch().max_seconds_unsaved(status) for status in after]
    assert unsaved == [60, 200, 600]


@pytest.mark.parametrize(("steps", "advice"), [(3, False), (10**9, True)])
def test_the_duration_is_told_once_and_how_to_shorten_it(
    steps, advice, image_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(monitor, "ESTIMATE_SECONDS", 0)
    after_step = train.Monitor.after_step

    def stop_after_three(self, status, losses):
        after_step(self, status, losses)
        if self.state.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.Monitor, "after_step", stop_after_three)
    run_main(image_folder, tmp_path / "r", "--steps", steps)
    output = capsys.readouterr().out
    assert output.count(" left, at ") == 1
    assert ("--max-seconds 600" in output) == advice


def test_a_resumed_run_says_so(image_folder, tmp_path, capsys):
    for steps, text in ((2, "from step 0 to step 2"), (4, "resumed at step 2, to step 4")):
        run_main(image_folder, tmp_path / "r", "--steps", steps)
        assert text in capsys.readouterr().out


def display_at(elapsed, step, budget, monkeypatch, state_step=0):
    """A display whose process has trained for some seconds up to a step."""
    clock = [0.0]
    monkeypatch.setattr("wgan.budget.seconds_since_start", lambda: clock[0])
    display = monitor.Display(SimpleNamespace(step=state_step, seconds=0.0), budget, 100)
    display.bar = SimpleNamespace(n=0, disable=True, set_description_str=lambda *_, **__: None)
    display.bar.update = lambda n: setattr(display.bar, "n", display.bar.n + n)
    display.bar.set_postfix = lambda *_, **__: None
    clock[0] = elapsed
    display.advance(SimpleNamespace(step=step))
    display.show({"step": step, "wasserstein": 1.0, "penalty": 0.0, "images_per_second": 1000.0})
    return display


@pytest.mark.parametrize(
    ("limits", "elapsed", "step", "bar", "line"),
    [
        (
            (math.inf, 104),
            25,
            50,
            0.25,
            " 25%  step 50  W 1  penalty 0  samples/s 1,000  75 s left",
        ),
        ((math.inf, 104), 100, 90, 1, "100%  step 90 "),
        ((200, 104), 25, 150, 0.75, " 75%  step 150/200 "),  # the steps end first
        ((200, 104), 80, 20, 0.8, " 80%  step 20/200 "),  # the time ends first
        ((200, 0), 25, 50, 50, "step 50/200  W 1  penalty 0  samples/s 1,000  15 s left"),
    ],
)
def test_the_bar_moves_to_the_limit_that_ends_the_run(
    limits, elapsed, step, bar, line, monkeypatch, capsys
):
    assert display_at(elapsed, step, Budget(*limits), monkeypatch).bar.n == pytest.approx(bar)
    assert capsys.readouterr().out.startswith(line)


def test_the_bar_of_a_resumed_run_shows_the_time_of_this_process(monkeypatch):
    finished = Budget(math.inf, 104, progress_before=1.0)  # an earlier process used up its time
    display = display_at(50, 900, finished, monkeypatch, state_step=800)
    assert display.bar.n == pytest.approx(0.5)


def test_durations_are_rounded():
    expected = {0: "0 s", 40.4: "40 s", 119: "119 s", 120: "2 min", 7199: "120 min", 7200: "2 h"}
    assert {seconds: describe_seconds(seconds) for seconds in expected} == expected
    assert describe_seconds(14 * 3600 + 100) == "14 h"
