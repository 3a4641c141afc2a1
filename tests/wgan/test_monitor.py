"""What is shown and saved between steps, by the number of steps and by the time."""

from types import SimpleNamespace

import pytest
from helpers import assert_same_run, run_main

import train
from wgan import monitor
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


def test_durations_are_rounded():
    expected = {0: "0 s", 40.4: "40 s", 119: "119 s", 120: "2 min", 7199: "120 min", 7200: "2 h"}
    assert {seconds: describe_seconds(seconds) for seconds in expected} == expected
    assert describe_seconds(14 * 3600 + 100) == "14 h"
