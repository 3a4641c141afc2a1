"""When training ends."""

import math
import os
import re
import signal
import threading

import pytest
from helpers import run_main

from wgan import budget
from wgan.budget import RESERVED_SECONDS, Budget, Signals
from wgan.checkpoints import read_checkpoint


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start of the process, as the test sets them."""

    class Clock:
        now, tick = 0.0, 0.0

        def read(self):
            self.now += self.tick
            return self.now

    clock = Clock()
    monkeypatch.setattr(budget, "seconds_since_start", clock.read)
    return clock


def test_a_limit_in_time_leaves_room_for_the_last_files(clock):
    clock.now = 16.0  # spent on imports and compiling
    limited = Budget(math.inf, 60)
    end = 60 - RESERVED_SECONDS
    assert (limited.is_over(10**9), limited.progress(5)) == (False, 0)
    clock.now = (16 + end) / 2
    assert limited.progress(5) == pytest.approx(0.5)
    assert limited.seconds_left(5, steps_per_second=1) == pytest.approx((end - 16) / 2)
    clock.now = end
    assert (limited.is_over(5), limited.progress(5)) == (True, 1)


def test_steps_or_time_end_training_whichever_comes_first(clock):
    both = Budget(100, 60)
    assert both.progress(75) == 0.75
    assert both.is_over(100) and not both.is_over(99)
    assert both.describe(75) == "step 75 of 100"
    clock.now = 60.0
    assert both.is_over(1)
    unlimited = Budget(100, 0)
    assert not unlimited.is_over(99)
    assert unlimited.progress(25) == 0.25


@pytest.mark.parametrize("limit", [60, 200])
def test_a_resumed_run_has_the_time_that_is_left(limit, clock):
    total = limit - RESERVED_SECONDS
    resumed = Budget(math.inf, limit, seconds_before=40.0)
    assert resumed.progress(5) == pytest.approx(40 / total)
    assert resumed.seconds_left(5, steps_per_second=1) == total - 40
    clock.now = (total - 40) / 2
    assert resumed.progress(5) == pytest.approx((40 + total) / 2 / total)
    clock.now = total - 40
    assert resumed.is_over(5)


def test_a_resumed_run_without_time_to_train_ends_as_finished(clock):
    resumed = Budget(math.inf, 60, seconds_before=50.0)
    clock.now = 20.0  # spent on compiling
    assert resumed.start(5, Signals()).finished


def test_compiling_before_the_start_costs_time_but_no_progress(clock):
    limited = Budget(math.inf, 60)
    clock.now = 30.0
    limited.start(0, Signals())
    assert limited.progress(0) == 0
    assert limited.seconds_left(0, steps_per_second=1e-9) == pytest.approx(30 - RESERVED_SECONDS)


def test_seconds_of_training_go_on_after_an_interruption(clock):
    resumed = Budget(100, 0, seconds_before=40.0)
    clock.now = 10.0
    resumed.start(5, Signals())
    clock.now = 13.0
    assert resumed.status(6, Signals()).seconds == 43


def test_a_status_reports_a_save_request_once():
    signals = Signals()
    signals.save_requested = True
    statuses = [Budget(10, 0).status(3, signals) for _ in range(2)]
    assert [status.save_requested for status in statuses] == [True, False]
    signals.stop_signal = 15
    status = Budget(10, 0).status(3, signals)
    assert status.ended and not status.finished


def test_a_run_of_limited_time_leaves_all_its_files(image_folder, tmp_path, clock, capsys):
    run = tmp_path / "r"
    clock.tick = 0.1  # seconds that each look at the clock takes
    options = ["--max-seconds", "10"]
    assert run_main(image_folder, run, *options) == 0
    step = int(re.search(r"finished at step (\d+);", capsys.readouterr().out)[1])
    assert step > 1
    assert read_checkpoint(run / "checkpoint.pt")["step"] == step
    assert (run / "samples" / f"{step:06d}.png").exists() and (run / "timelapse.gif").exists()
    # The time is that of the whole run.
    assert run_main(image_folder, run, *options) == 0
    expected = f"is finished at step {step}; to train further, raise --max-seconds above 10"
    assert expected in capsys.readouterr().out
    clock.now = 0.0
    assert run_main(image_folder, run, "--max-seconds", "20") == 0
    assert read_checkpoint(run / "checkpoint.pt")["step"] >= 2 * step


def test_a_call_in_an_old_process_has_all_its_time(image_folder, tmp_path, monkeypatch, capsys):
    """As in a notebook, whose kernel is older than the limit."""
    monkeypatch.setattr(budget, "_start", budget._start - 10_000)
    assert budget.seconds_since_start() > 10_000
    assert run_main(image_folder, tmp_path / "r", "--max-seconds", "10", "--steps", "2") == 0
    assert "finished at step 2 of 2" in capsys.readouterr().out


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("kind", [k for k in budget.STOP_SIGNALS if k != signal.SIGINT])
def test_the_first_signal_is_acknowledged_at_once(kind, capfd):
    before = signal.getsignal(kind)
    with Signals() as signals:
        signal.raise_signal(kind)
        assert signals.stop_signal == kind
        signal.raise_signal(kind)  # a second one is not the user's impatience
    assert signal.getsignal(kind) == before
    assert capfd.readouterr().err.count("finishing this step") == 1


def test_a_second_ctrl_c_stops_at_once(capfd):
    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert "finishing this step" in capfd.readouterr().err
        assert signals.stop_signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_an_ignored_hangup_remains_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.stop_signal == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_training_works_outside_the_main_thread(image_folder, tmp_path):
    codes = []
    options = image_folder, tmp_path / "r", "--steps", 2
    thread = threading.Thread(target=lambda: codes.append(run_main(*options)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert read_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 2
