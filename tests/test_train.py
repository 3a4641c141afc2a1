"""The training steps against closed forms, and whole runs through the command line."""

import csv
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, LinearCritic, ShiftGenerator
from PIL import Image

import train
from train import TrainState, build_state, critic_step, generator_step, main, train_step
from utils import METHODS, unbiased_estimate
from wgan import budget as progress
from wgan.acceleration import Compute
from wgan.config import resolve
from wgan.data.table import Batches
from wgan.evaluation.metrics import wasserstein_distance
from wgan.run_folder import LOG_COLUMNS, read_checkpoint
from wgan_gp import MODELS

# ---------------------------------------------------------------- the steps, on linear problems

SHIFT = torch.tensor([3.0, -1.0])


def linear_state(method, critic=(0.0, 0.0), shift=(0.0, 0.0), rate=0.01, **options):
    """A linear critic against a generator that is only a shift, in our own training state."""
    critic, generator = LinearCritic(critic), ShiftGenerator(shift)
    return TrainState(
        generator=generator,
        critic=critic,
        average=ShiftGenerator(shift).eval(),
        critic_optimizer=torch.optim.SGD(critic.parameters(), rate),
        generator_optimizer=torch.optim.SGD(generator.parameters(), rate),
        compute=Compute(METHODS[method](**options)),
        sample_shape=(2,),
    )


def train_critic(state, steps):
    """Our critic step on two Gaussians a shift apart; the same noise, so that nothing is random."""
    noise = torch.randn(64, 2)
    for _ in range(steps):
        critic_step(state, real=noise + SHIFT, noise=noise, mix=torch.rand(64))
    return state.critic.weights.detach()


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_gradient_penalty_settles_where_theory_says(weight):
    weights = train_critic(linear_state("wgan-gp", critic=(0.1, 0.1), gp_weight=weight), 1000)
    length = 1 + SHIFT.norm() / (2 * weight)
    torch.testing.assert_close(weights, length * SHIFT / SHIFT.norm(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_a_dense_critics_estimate_is_the_exact_distance_once_its_bias_is_taken_off(weight, cpu):
    options = {"method": "wgan-gp", "model": "dense", "width": 64, "noise_dim": 2}
    config = resolve(options | {"gp_weight": weight, "precision": "fp32", "lr": 2e-3}, {})
    state = build_state(config, (2,), cpu)
    state.generator = ShiftGenerator((0.0, 0.0))  # the noise itself
    random = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(600):
        real, noise = torch.randn(2, 256, 2, generator=random)
        losses = critic_step(state, real + SHIFT, noise, torch.rand(256, generator=random))
        estimates.append(losses.wasserstein.item())
    biased = np.mean(estimates[-100:])
    points = torch.randn(2, 500, 2, generator=random)
    exact = wasserstein_distance(points[0] + SHIFT, points[1])
    assert exact == pytest.approx(SHIFT.norm().item(), rel=0.1)
    assert unbiased_estimate(biased, weight) == pytest.approx(exact, rel=0.1)
    assert abs(biased - exact) > abs(unbiased_estimate(biased, weight) - exact)


@pytest.mark.parametrize(("k", "p"), [(2.0, 6.0), (1.0, 2.0)])
def test_divergence_settles_where_theory_says(k, p):
    state = linear_state("wgan-div", div_k=k, div_p=p, div_points="mixed")
    weights = train_critic(state, 1000)
    length = (SHIFT.norm() / (k * p)) ** (1 / (p - 1))
    torch.testing.assert_close(weights, length * SHIFT / SHIFT.norm(), rtol=1e-3, atol=1e-3)


def test_clipping_settles_in_a_corner():
    weights = train_critic(linear_state("wgan", clip=0.05), 20)
    torch.testing.assert_close(weights, 0.05 * SHIFT.sign())


METHOD_OPTIONS = {
    "wgan": {"clip": 0.5},
    "wgan-gp": {"gp_weight": 10.0},
    "wgan-div": {"div_k": 2.0, "div_p": 6.0, "div_points": "mixed"},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_generator_moves_onto_the_data(method):
    state = linear_state(method, rate=0.05, **METHOD_OPTIONS[method])
    random = torch.Generator().manual_seed(0)
    start = SHIFT.norm()
    for _ in range(400):
        for _ in range(5):
            real = torch.randn(256, 2, generator=random) + SHIFT
            noise, mix = torch.randn(256, 2, generator=random), torch.rand(256, generator=random)
            critic_step(state, real, noise, mix)
        generator_step(state, torch.randn(256, 2, generator=random))
    assert (state.generator.shift.detach() - SHIFT).norm() < 0.1 * start


def test_a_critic_update_leaves_the_generator_alone_and_the_other_way_round():
    state = linear_state("wgan-gp", critic=(1.0, 2.0), gp_weight=10.0)
    before = state.generator.shift.clone()
    critic_step(state, torch.randn(8, 2), torch.randn(8, 2), torch.rand(8))
    assert torch.equal(state.generator.shift, before)
    assert state.generator.shift.grad is None
    before, gradient = state.critic.weights.clone(), state.critic.weights.grad.clone()
    generator_step(state, torch.randn(8, 2))
    assert torch.equal(state.critic.weights, before)
    assert torch.equal(state.critic.weights.grad, gradient)


def test_weights_are_clipped_after_the_optimizers_step():
    state = linear_state("wgan", rate=100.0, clip=0.01)
    critic_step(state, torch.randn(8, 2) + 5, torch.randn(8, 2), torch.rand(8))
    assert state.critic.weights.abs().max() <= 0.01


def test_gradient_clipping_bounds_the_update():
    state = linear_state("wgan", rate=1.0, clip=100.0)
    critic_step(state, torch.randn(8, 2) + 1000, torch.randn(8, 2), torch.rand(8), grad_clip=0.5)
    assert state.critic.weights.norm().item() == pytest.approx(0.5, rel=1e-4)


# ---------------------------------------------------------------- whole steps


def small_config(**options):
    return resolve({"width": 8, "noise_dim": 4, "batch_size": 8, "n_critic": 3} | options, {})


def small_batches(config, random, shape=(1, 16, 16)):
    samples = random.integers(0, 256, (32, *shape)).astype(np.uint8)
    return Batches(samples, config.batch_size, config.seed, torch.device("cpu"))


def test_a_step_is_n_critic_critic_updates_with_fresh_noise_and_data_then_the_generator(
    random, cpu, monkeypatch
):
    config = small_config()
    calls = []
    real_critic_step, real_generator_step = train.critic_step, train.generator_step

    def spy_critic(state, real, noise, *rest):
        calls.append(("critic", real.clone(), noise.clone()))
        return real_critic_step(state, real, noise, *rest)

    def spy_generator(state, noise, *rest):
        calls.append(("generator", None, noise.clone()))
        return real_generator_step(state, noise, *rest)

    monkeypatch.setattr(train, "critic_step", spy_critic)
    monkeypatch.setattr(train, "generator_step", spy_generator)
    state = build_state(config, (1, 16, 16), cpu)
    batches = small_batches(config, random)
    for _ in range(2):
        train_step(state, config, batches)
    assert [name for name, _, _ in calls] == (["critic"] * 3 + ["generator"]) * 2
    assert len({noise.sum().item() for _, _, noise in calls}) == 8
    assert len({real.sum().item() for _, real, _ in calls if real is not None}) == 6


def test_flips_mirror_about_half_of_the_samples(random, cpu):
    config = small_config(flip=True)
    state, batches = build_state(config, (1, 16, 16), cpu), small_batches(config, random)
    coins = []
    for state.step in range(20):
        coins.append(train.draw_inputs(state, config, batches).mirrored.float().mean().item())
    assert 0.4 < np.mean(coins) < 0.6
    assert len(set(coins)) > 1


def test_mirrored_samples_reach_the_critic_mirrored(random, cpu, monkeypatch):
    seen, critic_step = [], train.critic_step

    def spy(state, real, *rest):
        seen.append(real)
        return critic_step(state, real, *rest)

    monkeypatch.setattr(train, "critic_step", spy)
    batches = small_batches(small_config(), random)
    for flip in (False, True):
        config = small_config(flip=flip, n_critic=1)
        state = build_state(config, (1, 16, 16), cpu)
        inputs = train.draw_inputs(state, config, batches)
        train.update_networks(state, config, inputs)
    straight, mirrored = seen
    coins = inputs.mirrored[0]
    assert coins.any() and not coins.all()
    assert torch.equal(mirrored[coins], straight[coins].flip(3))
    assert torch.equal(mirrored[~coins], straight[~coins])


def test_the_average_follows_its_formula(cpu):
    state = build_state(small_config(), (1, 16, 16), cpu)
    start = [value.clone() for value in state.average.state_dict().values()]
    with torch.no_grad():
        for value in state.generator.state_dict().values():  # weights and running statistics
            value.add_(1)

    def check(distance):  # how far every value has come from its start, of 1
        for old, new in zip(start, state.average.state_dict().values(), strict=True):
            whole = not new.is_floating_point()  # batch normalisation's count is copied
            torch.testing.assert_close(new, old + (1 if whole else distance), rtol=0, atol=1e-5)

    def move(decay, step):
        weight = torch.tensor(train.average_weight(decay, step))
        train.update_average(state.average, state.generator, weight)

    move(0.9, step=1000)
    check(0.1)
    move(0.9, step=0)  # 1 / 10 in the first step
    check(1 - 0.9 * 0.1)
    move(0.0, step=1000)
    check(1)


def test_rates_decay_linearly_to_zero_and_differ_for_the_two_networks(cpu):
    config = small_config(lr_critic=4e-3, lr_generator=1e-3, lr_decay=True)
    state = build_state(config, (1, 16, 16), cpu)
    for share_done, factor in ((0, 1), (0.5, 0.5), (0.99, 0.01)):
        train.set_rates(state, config, share_done)
        assert state.critic_optimizer.param_groups[0]["lr"] == pytest.approx(4e-3 * factor)
        assert state.generator_optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * factor)
    train.set_rates(state, replace(config, lr_decay=False), 0.5)
    assert state.critic_optimizer.param_groups[0]["lr"] == 4e-3


# ---------------------------------------------------------------- the command

SMALL = [
    "--width",
    "8",
    "--noise-dim",
    "4",
    "--batch-size",
    "8",
    "--n-critic",
    "2",
    "--compile",
    "off",
]
OFTEN = ["--log-every", "2", "--sample-every", "2", "--checkpoint-every", "2"]


def run_main(folder, run, *more):
    arguments = ["--dataset", folder, "--image-size", "16", *SMALL, *OFTEN, "--device", "cpu"]
    return main([*map(str, arguments), "--run", str(run), *map(str, more)])


def contents(run):
    """All that a run computed: the log without its times, the checkpoint, the pictures."""
    rows = list(csv.DictReader((run / "log.csv").read_text().splitlines()))
    log = [{k: v for k, v in row.items() if "second" not in k} for row in rows]
    pictures = {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
    return log, read_checkpoint(run / "checkpoint.pt"), pictures


def assert_same_run(one, other):
    (log, state, pictures), (log2, state2, pictures2) = contents(one), contents(other)
    assert log == log2
    assert pictures == pictures2
    assert_same_state(state, state2)


def assert_same_state(one, other):
    for name in ("seconds", "config"):  # how long it took and where it lies may differ
        one.pop(name), other.pop(name)
    assert_equal_trees(one, other)


def assert_equal_trees(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_trees(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal_trees(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_model_leaves_a_whole_run(method, model, picture_folder, tmp_path):
    run = tmp_path / "run"
    options = ["--method", method, "--model", model, "--steps", "4"]
    assert run_main(picture_folder, run, *options) == 0
    log, state, pictures = contents(run)
    assert (run / "log.csv").read_text().splitlines()[0] == ",".join(LOG_COLUMNS)
    assert [row["step"] for row in log] == ["2", "4"]
    assert [row["images"] for row in log] == ["32", "64"]
    assert float(log[1]["epoch"]) == 64 / 40
    assert sorted(pictures) == ["000000.png", "000002.png", "000004.png"]
    assert len(set(pictures.values())) == 3  # training changed the pictures
    assert state["step"] == 4
    for name in ("config.toml", "real.png", "timelapse.gif", "curves.png"):
        assert (run / name).stat().st_size > 0


@pytest.mark.parametrize("method", METHODS)
def test_points_show_the_critics_surface(method, tmp_path):
    arguments = ["--dataset", "ring", "--method", method, "--width", "16", "--steps", "2"]
    assert main([*arguments, "--run", str(tmp_path / "r"), "--device", "cpu"]) == 0
    assert Image.open(tmp_path / "r" / "samples" / "000002.png").size == (500, 500)


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(picture_folder, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_main(picture_folder, tmp_path / name, "--steps", 4, "--seed", seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path / "a")[0] != contents(tmp_path / "c")[0]


def test_a_run_whose_rates_decay_resumes_exactly_after_a_stop(
    picture_folder, tmp_path, monkeypatch
):
    options = ["--steps", 6, "--lr-decay"]
    run_main(picture_folder, tmp_path / "whole", *options)
    step = train.train_step

    def stopping_step(state, *rest):
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)  # taken after the step under way
        return step(state, *rest)

    monkeypatch.setattr(train, "train_step", stopping_step)
    assert run_main(picture_folder, tmp_path / "halved", *options) == 128 + signal.SIGINT
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "halved" / "checkpoint.pt")["step"] == 3
    assert run_main(picture_folder, tmp_path / "halved", *options) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "halved")


def test_a_decayed_run_says_that_it_cannot_be_lengthened(picture_folder, tmp_path, capsys):
    run_main(picture_folder, tmp_path / "r", "--steps", 2, "--lr-decay")
    assert run_main(picture_folder, tmp_path / "r", "--steps", 2, "--lr-decay") == 0
    assert "a longer run needs another --run" in capsys.readouterr().out
    assert run_main(picture_folder, tmp_path / "r", "--steps", 4, "--lr-decay") == 2
    assert "steps was 2 and is 4" in capsys.readouterr().err


def test_the_stored_configuration_repeats_the_run(picture_folder, tmp_path):
    run_main(picture_folder, tmp_path / "a", "--steps", 2, "--lr", "3e-4", "--critic-norm", "layer")
    main(["--config", str(tmp_path / "a" / "config.toml"), "--run", str(tmp_path / "b")])
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_finished_run_says_so_and_is_left_alone(picture_folder, tmp_path, capsys):
    run_main(picture_folder, tmp_path / "r", "--steps", 2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.p*")}
    assert run_main(picture_folder, tmp_path / "r", "--steps", 2) == 0
    assert "finished: 2 of 2 steps" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.p*")}


def test_epochs_count_the_critics_passes_over_the_data(picture_folder, tmp_path):
    run_main(picture_folder, tmp_path / "r", "--epochs", 2)  # 40 pictures, 2 x 8 a step
    log, state, _ = contents(tmp_path / "r")
    assert state["step"] == 5
    assert float(log[-1]["epoch"]) == 2


def test_fresh_moves_the_old_run_aside(picture_folder, tmp_path, capsys):
    run_main(picture_folder, tmp_path / "r", "--steps", 2)
    assert run_main(picture_folder, tmp_path / "r", "--steps", 4, "--seed", 9, "--fresh") == 0
    assert contents(tmp_path / "r.old-1")[1]["step"] == 2
    assert contents(tmp_path / "r")[1]["step"] == 4


@pytest.mark.parametrize("interval", ["--log-every", "--checkpoint-every"])
def test_training_stops_when_a_number_is_not_finite(
    interval, picture_folder, tmp_path, capsys, monkeypatch
):
    healthy_step = train.train_step

    def failing_step(state, *rest):
        statistics = healthy_step(state, *rest)
        if state.step == 3:
            next(state.critic.parameters()).data[0] = float("nan")
        return statistics

    monkeypatch.setattr(train, "train_step", failing_step)
    others = {"--log-every": "--checkpoint-every", "--checkpoint-every": "--log-every"}
    options = ["--steps", 10, interval, 2, others[interval], 4]
    assert run_main(picture_folder, tmp_path / "r", *options) == 1
    error = capsys.readouterr().err
    assert "by step 4" in error and "Lower --lr" in error
    checkpoints = list((tmp_path / "r").glob("checkpoint*"))
    for path in checkpoints:
        weights = read_checkpoint(path)["critic"].values()
        assert all(weight.isfinite().all() for weight in weights)
    assert len(checkpoints) == (1 if interval == "--checkpoint-every" else 0)


def main_into(output, arguments):
    """The command in a process of its own, and what it says in a file."""
    torch.set_num_threads(1)
    sys.stdout = open(output, "w", buffering=1)
    sys.exit(main(arguments))


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send a process SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_and_goes_on_exactly(number, processes, picture_folder, tmp_path):
    arguments = ["--dataset", picture_folder, "--image-size", "16", *SMALL, "--device", "cpu"]
    arguments = [*map(str, arguments), "--sample-every", "100000", "--log-every", "100000"]
    arguments += ["--checkpoint-every", "20"]
    endless = [*arguments, "--run", str(tmp_path / "r"), "--steps", "1000000"]
    process = processes.Process(target=main_into, args=(tmp_path / "output", endless))
    process.start()
    while not (tmp_path / "r" / "checkpoint.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert "the same command goes on from there" in (tmp_path / "output").read_text()
    step = read_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"]
    assert step > 0
    for run in ("r", "whole"):
        assert main([*arguments, "--steps", str(step + 3), "--run", str(tmp_path / run)]) == 0
    states = [read_checkpoint(tmp_path / run / "checkpoint.pt") for run in ("r", "whole")]
    assert_same_state(*states)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "glyhps"], "did you mean glyphs?"),
        (["--dataset", "missing/folder"], "no such folder"),
        (["--dataset", "{empty}"], "holds no files"),
        (["--dataset", "{texts}"], "none a readable picture"),
        (["--dataset", "ring", "--flip"], "these samples are points"),
        (["--width", "10000000000"], "at most 1e+06"),
        (["--generator-norm", "batch", "--batch-size", "1"], "a batch_size of 2 or more"),
        (["--batch-size", "41"], "a batch of 41 is larger than the data set of 40"),
        (["--image-size", "30"], "use --image-size 28x28 or 32x32"),
        (["--image-size", "big"], "neither a side"),
        (["--model", "dense", "--width", "1000000"], "GiB"),
        (["--dataset", "ring", "--model", "dcgan"], "use --model dense"),
        (["--critic-norm", "batch"], "mixes the samples of a batch"),
        (["--model", "dense", "--critic-norm", "instance"], "use one of none, layer, batch"),
        (["--lr", "-1"], "must be greater than 0"),
        (["--lr-critic", "0"], "must be greater than 0"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
        (["--run", "{texts}"], "is not empty and holds no run"),
        (["--run", "{texts}/a.png"], "is a file"),
        (["--config", "missing.toml"], "no configuration file"),
        (["--lr-critics", "1"], "did you mean '--lr-critic'?"),
        (["--steps", "many"], "must be a whole number"),
        (["surplus"], "unknown argument 'surplus'"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments, message, picture_folder, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("no picture")
    names = {"empty": tmp_path / "empty", "texts": tmp_path / "texts"}
    arguments = [argument.format(**names) for argument in arguments]
    assert run_main(picture_folder, tmp_path / "r", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "r").exists()
    assert (tmp_path / "texts" / "a.png").read_text() == "no picture"


def test_a_folder_that_holds_another_run_is_refused_and_left_as_it_was(
    picture_folder, tmp_path, capsys
):
    run = tmp_path / "r"
    run_main(picture_folder, run, "--steps", 2)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert run_main(picture_folder, run, "--steps", 4, "--seed", 1, "--gp-weight", 3) == 2
    error = capsys.readouterr().err
    assert "gp_weight was 10.0 and is 3.0" in error
    assert "seed was 0 and is 1" in error
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_run_without_a_checkpoint_takes_other_options(picture_folder, tmp_path, monkeypatch):
    """As after too little memory in the first step, when there is nothing to spoil yet."""
    monkeypatch.setattr(train, "train_step", lambda *a: torch.empty(2**60, dtype=torch.uint8))
    assert run_main(picture_folder, tmp_path / "r", "--steps", 2) == 1
    monkeypatch.undo()
    assert run_main(picture_folder, tmp_path / "r", "--steps", 2, "--batch-size", 4) == 0


def test_pictures_show_samples_of_every_class(tmp_path, monkeypatch):
    for kind, value in (("a", 0), ("b", 255)):
        (tmp_path / "p" / kind).mkdir(parents=True)
        for index in range(70):
            Image.new("L", (8, 8), value).save(tmp_path / "p" / kind / f"{index}.png")
    options = ["--image-size", "8", "--grey", "--width", "2", "--steps", "1", "--device", "cpu"]
    assert main(["--dataset", str(tmp_path / "p"), *options, "--run", str(tmp_path / "r")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "r" / "real.png"))
    assert 0.2 < (pixels == 255).mean() < 0.6


def test_an_output_folder_that_cannot_be_written_is_refused(picture_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run_main(picture_folder, tmp_path / "file" / "run", "--steps", 2) == 2
    assert "file" in capsys.readouterr().err


def test_the_script_runs_from_anywhere_and_reports_bad_input_without_a_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--method", "wgan-pg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'wgan-gp'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path(tmp_path).iterdir())


# ---------------------------------------------------------------- a budget


class Clock:
    """Seconds since the start of a process, as the test says."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress, "seconds_since_start", lambda: self.now)


def test_a_budget_of_time_ends_early_enough_for_the_last_pictures(monkeypatch):
    clock = Clock(monkeypatch)
    clock.now = 16.0  # imports and compiling are over
    budget = progress.Budget(math.inf, 60)
    end = 60 - progress.ENDING_SECONDS
    assert (budget.is_over(10**9), budget.share_done(5)) == (False, 0)
    clock.now = (16 + end) / 2
    assert budget.share_done(5) == pytest.approx(0.5)
    assert budget.seconds_left(5, steps_a_second=1) == pytest.approx((end - 16) / 2)
    clock.now = end
    assert (budget.is_over(5), budget.share_done(5)) == (True, 1)


def test_whichever_ends_first_ends_training(monkeypatch):
    clock = Clock(monkeypatch)
    budget = progress.Budget(100, 60)
    assert budget.share_done(75) == 0.75
    assert budget.is_over(100) and not budget.is_over(99)
    assert budget.progress(75) == "step 75 of 100"
    clock.now = 60.0
    assert budget.is_over(1)
    clock.now = 0.0
    resumed = progress.Budget(math.inf, 60, share_before=0.8)
    assert resumed.share_done(5) == 0.8
    clock.now = (60 - progress.ENDING_SECONDS) / 2
    assert resumed.share_done(5) == pytest.approx(0.9)
    unlimited = progress.Budget(100, 0)
    assert not unlimited.is_over(99)
    assert unlimited.share_done(25) == 0.25


def test_a_run_of_limited_time_ends_in_time_with_all_its_files(picture_folder, tmp_path, capsys):
    run = tmp_path / "r"
    command = [sys.executable, str(ROOT / "train.py"), "--dataset", str(picture_folder), *SMALL]
    command += ["--image-size", "16", "--lr-decay", "--max-seconds", "10", "--run", str(run)]
    start = time.perf_counter()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert time.perf_counter() - start < 10
    step = int(re.search(r"finished at step (\d+);", output)[1])
    assert step > 0
    assert read_checkpoint(run / "checkpoint.pt")["step"] == step
    assert (run / "samples" / f"{step:06d}.png").exists() and (run / "timelapse.gif").exists()
    # Its rates have decayed to zero, so that the same command does not begin again.
    assert main(command[2:]) == 0
    assert f"is finished: {step} steps; a longer run needs another --run" in capsys.readouterr().out


def test_the_generators_batch_may_be_larger(random, cpu):
    config = small_config(generator_batch=16)
    state, batches = build_state(config, (1, 16, 16), cpu), small_batches(config, random)
    inputs = train.draw_inputs(state, config, batches)
    assert (inputs.noise.shape, inputs.generator_noise.shape) == ((3, 8, 4), (16, 4))
    train_step(state, config, batches)
