"""What is shown and saved between steps, by the number of steps and by the time."""

import csv
import signal

import pytest
from helpers import arguments_for, assert_same_run, parse, run_main

import train
from wgan import display, monitor
from wgan.budget import StepStatus
from wgan.checkpoints import read_checkpoint
from wgan.setup import set_up

pytestmark = pytest.mark.slow

RARELY = ["--log-every", 100, "--sample-every", 100, "--checkpoint-every", 100]


def test_slow_steps_show_and_save_something_in_between(image_folder, tmp_path, monkeypatch, capsys):
    """And the log, the grids and the final state are those of a run in which no time passes."""
    run_main(image_folder, tmp_path / "plain", *RARELY, "--steps", 4)
    assert "step 2/4" not in capsys.readouterr().out
    monkeypatch.setattr(monitor, "MAX_SECONDS_WITHOUT_LINE", 0)
    monkeypatch.setattr(monitor, "MAX_SECONDS_UNSAVED", (0, 0))
    monkeypatch.setattr(display, "SECONDS_BETWEEN_LINES", 0)
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


def test_a_refresh_during_training_changes_no_result(image_folder, tmp_path, monkeypatch):
    run_main(image_folder, tmp_path / "plain", "--steps", 4)
    monkeypatch.setattr(monitor, "REFRESH_SECONDS", 0)
    monkeypatch.setattr(monitor, "REFRESH_SHARE", 1e9)
    live, steps, step = tmp_path / "live", [], train.train_step

    def spy(state, *rest):
        if state.step:
            assert (live / "curves.png").exists() == (state.step >= 2)  # the log has a line
            assert (live / "timelapse.gif").exists()
            steps.append(f"{state.step} steps in" in (live / "report.html").read_text("utf-8"))
        return step(state, *rest)

    monkeypatch.setattr(train, "train_step", spy)
    assert run_main(image_folder, live, "--steps", 4) == 0
    assert steps == [False, True, False]  # there is a line every second step
    assert_same_run(live, tmp_path / "plain")


@pytest.fixture
def limited_run(image_folder, tmp_path):
    """A run of up to 100 seconds, in which 1,000 steps are enough."""
    options = ["--max-seconds", 100, "--enough-steps", 1000]
    config = parse(*arguments_for(image_folder, tmp_path / "r", *options))
    with set_up(config, fresh=False, step=train.all_updates) as run:
        yield run


@pytest.fixture
def watcher(limited_run):
    watcher = monitor.Monitor(limited_run)
    watcher.start()
    return watcher


def status_at(seconds, step, progress):
    return StepStatus(step, False, 0, False, progress, seconds)


def test_refreshes_take_one_percent_of_the_time(watcher, monkeypatch):
    clock, drawn = [0.0], []

    def draw(*arguments):
        drawn.append(seconds)
        clock[0] += 2  # seconds

    monkeypatch.setattr(monitor, "refresh", draw)
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: clock[0])
    for seconds in range(0, 1000, 10):
        watcher.refresh_if_due(status_at(seconds, 1, 0.5))
    assert drawn == [60, 260, 460, 660, 860]


def test_a_run_that_is_too_short_says_so_once(watcher, capsys):
    for seconds, number in ((1, 1), (19, 30), (21, 34), (22, 35), (60, 100)):
        watcher.warn_if_too_short(status_at(seconds, number, seconds / 100))
    output = capsys.readouterr().out
    assert output.count("steps fit into --max-seconds 100, and this recipe needs about 1,000") == 1
    assert "About 162 steps" in output  # by the speed when it was said


def test_a_long_enough_run_and_one_near_its_end_say_nothing(watcher, limited_run, capsys):
    watcher.warn_if_too_short(status_at(30, 300, 0.3))  # 1,000 steps
    limited_run.state.progress = 0.8
    late = monitor.Monitor(limited_run)
    late.warn_if_too_short(status_at(90, 90, 0.9))
    assert "steps fit" not in capsys.readouterr().out


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
    unsaved = [monitor.max_seconds_unsaved(seconds) for seconds in (1, 2000, 10**6)]
    assert unsaved == [60, 200, 600]


def test_the_best_checkpoint_has_the_seconds_of_its_step(class_folder, tmp_path):
    options = ["--steps", 3, "--eval-every", 1, "--log-every", 1, "--checkpoint-every", 100]
    assert run_main(class_folder, tmp_path / "r", *options) == 0
    best, last = (read_checkpoint(tmp_path / "r" / f"{name}.pt") for name in ("best", "checkpoint"))
    seconds = {row["step"]: float(row["seconds"]) for row in read_log(tmp_path / "r")}
    assert best["seconds"] == pytest.approx(seconds[str(best["step"])], abs=1e-3)
    assert last["seconds"] == pytest.approx(seconds["3"], abs=1e-3)


@pytest.mark.parametrize("augment", ["none", "translation,cutout"])
def test_the_gradient_norm_is_that_of_augmented_images(augment, image_folder, tmp_path):
    """The gradient of |x|^2 / 2 is x, so its norm is that of the images it is taken at."""
    config = parse(*arguments_for(image_folder, tmp_path / "r", "--augment", augment))
    with set_up(config, fresh=False, step=train.all_updates) as run:
        watcher = monitor.Monitor(run)
        run.state.critic.forward = lambda x, labels: x.square().flatten(1).sum(1) / 2
        run.state.ema.forward = lambda noise, labels: watcher.grid.real  # its interpolates are real
        plain = watcher.grid.real.flatten(1).norm(dim=1).mean()
        norm = watcher.gradient_norm()
    assert norm < 0.95 * plain if augment != "none" else norm == pytest.approx(plain.item())


def read_log(run):
    return list(csv.DictReader((run / "log.csv").read_text().splitlines()))


def test_a_resumed_run_says_so(image_folder, tmp_path, capsys):
    for steps, text in ((2, "from step 0 to step 2"), (4, "resumed at step 2, to step 4")):
        run_main(image_folder, tmp_path / "r", "--steps", steps)
        assert text in capsys.readouterr().out
