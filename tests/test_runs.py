"""Whole runs: what they leave behind, exact resume, every recipe, classes."""

import math
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import OFTEN, SMALL, assert_same_run, assert_same_state, contents, run_main
from PIL import Image

import train
from train import main
from utils import METHODS
from wgan import generate, load_generator
from wgan.checkpoints import read_checkpoint
from wgan.data import DATASETS, Dataset, RowReader
from wgan.recipes import read_toml
from wgan.run_folder import LOG_COLUMNS
from wgan_gp import MODELS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_model_leaves_a_complete_run(method, model, image_folder, tmp_path):
    run = tmp_path / "run"
    options = ["--method", method, "--model", model, "--steps", "4"]
    assert run_main(image_folder, run, *options) == 0
    log, state, grids = contents(run)
    assert (run / "log.csv").read_text().splitlines()[0] == ",".join(LOG_COLUMNS)
    assert [row["step"] for row in log] == ["2", "4"]
    assert [row["images"] for row in log] == ["32", "64"]
    assert float(log[1]["epoch"]) == 64 / 40
    assert sorted(grids) == ["000000.png", "000002.png", "000004.png"]
    assert len(set(grids.values())) == 3  # training changed the samples
    assert state["step"] == 4
    for name in ("config.toml", "real.png", "timelapse.gif", "curves.png"):
        assert (run / name).stat().st_size > 0


@pytest.mark.parametrize("method", METHODS)
def test_points_are_drawn_over_the_critics_surface(method, tmp_path):
    run = tmp_path / "r"
    arguments = ["--dataset", "ring", "--method", method, "--width", "16", "--steps", "2"]
    assert main([*arguments, "--run", str(run), "--device", "cpu"]) == 0
    image = np.asarray(Image.open(run / "samples" / "000002.png").convert("RGB")).astype(int)
    assert image.shape == (520, 600, 3)
    corner = image[60:160, 60:160].reshape(-1, 3)  # far from the data: the surface
    assert len(np.unique(corner, axis=0)) > 3
    red = (image[..., 0] > 180) & (image[..., 1] < 80)  # generated points
    assert red.sum() > 20


def test_the_readmes_first_command(tmp_path, monkeypatch):
    """`python train.py` without a data set: the digits, with their recipe."""
    monkeypatch.setattr("wgan.data.glyphs.GLYPH_COUNT", 200)
    monkeypatch.chdir(tmp_path)
    assert main(["--steps", "2", "--compile", "off"]) == 0
    state = read_checkpoint(tmp_path / "images" / "glyphs-wgan-gp" / "checkpoint.pt")
    assert state["step"] == 2 and state["sample_shape"] == (1, 28, 28)


@pytest.mark.nightly
def test_the_ring_is_learned(tmp_path, capsys):
    """All eight modes are found, and most samples are near one of them."""
    run = str(tmp_path / "ring")
    options = ["--dataset", "ring", "--width", "64", "--lr", "1e-3", "--lr-decay"]
    options += ["--noise-dim", "16", "--categories", "16", "--steps", "250", "--compile", "off"]
    assert main([*options, "--sample-every", "1000", "--run", run]) == 0
    points = generate(load_generator(run, device="cpu"), 2000)
    angles = torch.arange(8) * math.pi / 4
    modes = 2**0.5 * torch.stack([angles.cos(), angles.sin()], 1)
    distances, nearest = torch.cdist(points, modes).min(1)
    assert (distances < 0.3).float().mean() > 0.8
    assert (nearest[distances < 0.3].bincount(minlength=8) > 20).all()


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=[pytest.mark.nightly] if m != "wgan-gp" else []) for m in METHODS],
)
def test_convolutions_learn_what_images_look_like(method, image_folder, tmp_path):
    """The mean sample becomes red at the top and blue at the bottom, as the mean image is."""
    options = ["--model", "dcgan", "--method", method, "--critic-norm", "layer"]
    options += ["--lr", "3e-3", "--optimizer", "adam"]
    options += {"wgan": ["--clip", 0.1], "wgan-gp": ["--gp-weight", 1]}.get(method, [])
    assert run_main(image_folder, tmp_path / "r", *options, "--steps", 80, "--ema", 0.9) == 0
    mean = generate(load_generator(tmp_path / "r", device="cpu"), 100).float().mean(0)
    top, bottom = mean[:, :8].mean((1, 2)), mean[:, 8:].mean((1, 2))  # real: 220, 20, 20 and so on
    assert top[0] > 150 > 60 > max(top[1], top[2])
    assert bottom[2] > 150 > 60 > max(bottom[0], bottom[1])


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(image_folder, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_main(image_folder, tmp_path / name, "--steps", 4, "--seed", seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path / "a")[0] != contents(tmp_path / "c")[0]


COARSE = {"model": "mixed", "upsampling": "nearest", "coarse": 0.5}  # until the run stops


@pytest.mark.parametrize("others", [{}, COARSE], ids=["dcgan", "coarse"])
def test_a_run_with_decaying_rates_resumes_exactly_after_a_stop(
    others, image_folder, tmp_path, monkeypatch
):
    options = ["--steps", 6, "--lr-decay", *as_flags(others)]
    run_main(image_folder, tmp_path / "whole", *options)
    step = train.train_step

    def stopping_step(state, *rest):
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)  # takes effect after this step
        return step(state, *rest)

    monkeypatch.setattr(train, "train_step", stopping_step)
    assert run_main(image_folder, tmp_path / "halved", *options) == 128 + signal.SIGINT
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "halved" / "checkpoint.pt")["step"] == 3
    assert run_main(image_folder, tmp_path / "halved", *options) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "halved")


def test_an_augmented_run_in_parts_resumes_exactly(image_folder, tmp_path, capsys):
    options = ["--augment", "color,translation,cutout", "--accumulate", 2]
    run_main(image_folder, tmp_path / "whole", *options, "--steps", 4)
    for steps in (2, 4):
        run_main(image_folder, tmp_path / "parts", *options, "--steps", steps)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    run_main(image_folder, tmp_path / "plain", "--steps", 4, *options[2:])
    assert contents(tmp_path / "whole")[0] != contents(tmp_path / "plain")[0]
    capsys.readouterr()
    assert run_main(image_folder, tmp_path / "parts", *options[:3], 4, "--steps", 6) == 0
    assert (
        "--accumulate was 2 and is 4: results will not be byte-identical" in capsys.readouterr().out
    )


@pytest.mark.parametrize(("steps", "factors"), [(4, [0.5, 0.25]), (8, [0.75, 0.625])])
def test_a_run_whose_rates_have_decayed_is_lengthened(
    steps, factors, image_folder, tmp_path, monkeypatch, capsys
):
    run, rates, step = tmp_path / "r", [], train.train_step

    def spy(state, *rest):
        rates.append(state.critic_optimizer.param_groups[0]["lr"] / rest[0].lr_critic)
        return step(state, *rest)

    monkeypatch.setattr(train, "train_step", spy)
    for _ in range(2):
        assert run_main(image_folder, run, "--steps", 2, "--lr-decay") == 0
    output = capsys.readouterr().out
    assert "finished at step 2 of 2; to train further, raise --steps above 2" in output
    assert run_main(image_folder, run, "--steps", steps, "--lr-decay") == 0
    assert rates[:4] == pytest.approx([1, 0.5, *factors])
    line = f"steps was 2 and is {steps}: the learning rates now decay over the new length, and the "
    assert line + "result will not be that of an uninterrupted run" in capsys.readouterr().out


def test_another_number_of_threads_is_reported(image_folder, tmp_path, monkeypatch, capsys):
    run_main(image_folder, tmp_path / "r", "--steps", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert run_main(image_folder, tmp_path / "r", "--steps", 4) == 0
    line = "device was cpu (1 threads) and is cpu (7 threads): results will not be byte-identical"
    assert line in capsys.readouterr().out


def test_fewer_steps_than_a_run_has_are_not_called_its_end(image_folder, tmp_path, capsys):
    run_main(image_folder, tmp_path / "r", "--steps", 4)
    capsys.readouterr()
    assert run_main(image_folder, tmp_path / "r", "--steps", 2) == 0
    output = capsys.readouterr().out
    assert "is finished at step 4;" in output and "above 4" in output


def test_every_nth_checkpoint_is_kept_and_used_like_any_other(image_folder, tmp_path):
    run = tmp_path / "r"
    run_main(image_folder, run, "--steps", 7, "--keep-every", 3)
    kept = sorted(path.name for path in run.glob("checkpoint-*"))
    assert kept == ["checkpoint-000003.pt", "checkpoint-000006.pt"]
    run_main(image_folder, tmp_path / "short", "--steps", 3)
    one, other = run / kept[0], tmp_path / "short" / "checkpoint.pt"
    states = [read_checkpoint(path) for path in (one, other)]
    assert states[0].pop("progress") < states[1].pop("progress") == 1
    assert_same_state(*states)
    for start in ("a", "b"):  # the kept one and the other give the same run
        source = one if start == "a" else other
        assert run_main(image_folder, tmp_path / start, "--steps", 2, "--init-from", source) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.skipif(os.name == "nt", reason="Windows does not delete a locked file")
def test_a_run_deleted_during_training_ends_without_writing(
    image_folder, tmp_path, monkeypatch, capsys
):
    """Another process may use the folder's place by now."""
    original, run = train.train_step, tmp_path / "r"

    def step_and_delete(state, *arguments):
        if state.step == 3:
            shutil.rmtree(run)
            run.mkdir()
        return original(state, *arguments)

    monkeypatch.setattr(train, "train_step", step_and_delete)
    assert run_main(image_folder, run, "--steps", 20) == 1
    assert "was deleted or replaced during training" in capsys.readouterr().err
    assert not list(run.iterdir())


def test_the_stored_configuration_repeats_the_run(image_folder, tmp_path):
    run_main(image_folder, tmp_path / "a", "--steps", 2, "--lr", "3e-4", "--critic-norm", "layer")
    main(["--config", str(tmp_path / "a" / "config.toml"), "--run", str(tmp_path / "b")])
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_finished_run_is_reported_and_draws_the_plots_that_a_kill_prevented(
    image_folder, tmp_path, capsys
):
    run_main(image_folder, tmp_path / "r", "--steps", 2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.pt")}
    plots = [tmp_path / "r" / name for name in ("curves.png", "timelapse.gif")]
    for path in plots:
        path.unlink()
    assert run_main(image_folder, tmp_path / "r", "--steps", 2) == 0
    assert "finished at step 2 of 2" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.pt")}
    assert all(path.exists() for path in plots)


def test_epochs_count_the_critics_passes_over_the_data(image_folder, tmp_path):
    run_main(image_folder, tmp_path / "r", "--epochs", 2)  # 40 images, 2 x 8 a step
    log, state, _ = contents(tmp_path / "r")
    assert state["step"] == 5
    assert float(log[-1]["epoch"]) == 2


def test_fresh_moves_the_old_run_aside(image_folder, tmp_path):
    run_main(image_folder, tmp_path / "r", "--steps", 2)
    assert run_main(image_folder, tmp_path / "r", "--steps", 4, "--seed", 9, "--fresh") == 0
    assert contents(tmp_path / "r.old-1")[1]["step"] == 2
    assert contents(tmp_path / "r")[1]["step"] == 4


def test_grids_show_samples_of_every_class(tmp_path):
    for kind, value in (("a", 0), ("b", 255)):
        (tmp_path / "p" / kind).mkdir(parents=True)
        for index in range(70):
            Image.new("L", (8, 8), value).save(tmp_path / "p" / kind / f"{index}.png")
    options = ["--image-size", "8", "--grey", "--width", "2", "--steps", "1", "--device", "cpu"]
    assert main(["--dataset", str(tmp_path / "p"), *options, "--run", str(tmp_path / "r")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "r" / "real.png"))
    assert 0.2 < (pixels == 255).mean() < 0.6


@pytest.mark.parametrize("interval", ["--log-every", "--checkpoint-every"])
def test_training_stops_when_a_number_is_not_finite(
    interval, image_folder, tmp_path, capsys, monkeypatch
):
    healthy_step = train.train_step

    def failing_step(state, *rest):
        losses = healthy_step(state, *rest)
        if state.step == 3:
            next(state.critic.parameters()).data[0] = float("nan")
        return losses

    monkeypatch.setattr(train, "train_step", failing_step)
    others = {"--log-every": "--checkpoint-every", "--checkpoint-every": "--log-every"}
    options = ["--steps", 10, interval, 2, others[interval], 4]
    assert run_main(image_folder, tmp_path / "r", *options) == 1
    error = capsys.readouterr().err
    assert "by step 4" in error and "Lower --lr" in error
    checkpoints = list((tmp_path / "r").glob("checkpoint*"))
    for path in checkpoints:
        weights = read_checkpoint(path)["critic"].values()
        assert all(weight.isfinite().all() for weight in weights)
    assert len(checkpoints) == (1 if interval == "--checkpoint-every" else 0)


def main_into(output, arguments):
    """The command in a process of its own, with its output in a file."""
    torch.set_num_threads(1)
    sys.stdout = open(output, "w", buffering=1)
    sys.exit(main(arguments))


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM to a process")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_and_resumes_exactly(number, processes, image_folder, tmp_path):
    arguments = ["--dataset", image_folder, "--image-size", "16", *SMALL, "--device", "cpu"]
    arguments = [*map(str, arguments), "--sample-every", "100000", "--log-every", "100000"]
    arguments += ["--coarse", "0"]  # as in `arguments_for`
    arguments += ["--checkpoint-every", "20"]
    endless = [*arguments, "--run", str(tmp_path / "r"), "--steps", "1000000"]
    process = processes.Process(target=main_into, args=(tmp_path / "output", endless))
    process.start()
    while not (tmp_path / "r" / "checkpoint.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert "run the same command to resume" in (tmp_path / "output").read_text()
    step = read_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"]
    assert step > 0
    for run in ("r", "whole"):
        assert main([*arguments, "--steps", str(step + 3), "--run", str(tmp_path / run)]) == 0
    states = [read_checkpoint(tmp_path / run / "checkpoint.pt") for run in ("r", "whole")]
    assert_same_state(*states)


# ---------------------------------------------------------------- exact resume of everything

PATCHES = {"model": "dense", "patch_features": 3}
VARIANTS = {model: {"model": model} for model in MODELS} | {"patches": PATCHES}


def as_flags(options):
    return [p for name, value in options.items() for p in ("--" + name.replace("_", "-"), value)]


def assert_resumes_exactly(image_folder, tmp_path, *options):
    for run, parts in (("whole", [4]), ("halved", [2, 4])):
        for steps in parts:
            assert run_main(image_folder, tmp_path / run, *options, "--steps", steps) == 0
    assert_same_run(tmp_path / "halved", tmp_path / "whole")


@pytest.fixture
def no_plots(monkeypatch):
    """Curves and timelapse cost more than the steps of a small run."""
    monkeypatch.setattr("wgan.run_folder.RunFolder.save_plots", lambda self: None)


@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_run_resumes_exactly(method, model, image_folder, tmp_path, no_plots):
    options = as_flags({"method": method} | VARIANTS[model])
    precision = "bf16" if model == "dcgan" else "fp32"
    assert_resumes_exactly(image_folder, tmp_path, *options, "--precision", precision, "--flip")


@pytest.mark.parametrize(
    ("model", "norm"),
    [
        ("dcgan", "spectral"),
        pytest.param("residual", "spectral", marks=pytest.mark.nightly),
        ("dense", "orthonormal"),
    ],
)
def test_critics_that_are_bounded_by_construction_resume_exactly(
    model, norm, image_folder, tmp_path, no_plots
):
    options = {"method": "wgan", "clip": 0, "model": model, "critic_norm": norm, "accumulate": 2}
    assert_resumes_exactly(image_folder, tmp_path, *as_flags(options), "--precision", "bf16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_deterministic_cuda_runs_resume_exactly(
    method, model, compiled, image_folder, tmp_path, no_plots
):
    options = as_flags({"method": method} | VARIANTS[model])
    options += ["--compile", compiled, "--flip", "--device", "cuda", "--deterministic"]
    assert_resumes_exactly(image_folder, tmp_path, *options)


def test_another_pytorch_version_is_reported(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "2.10.7+cpu")
    run_main(image_folder, tmp_path / "r", "--steps", 2)
    monkeypatch.undo()
    capsys.readouterr()
    assert run_main(image_folder, tmp_path / "r", "--steps", 4) == 0
    assert "torch was 2.10.7 and is" in capsys.readouterr().out
    assert run_main(image_folder, tmp_path / "r", "--steps", 6) == 0
    assert "torch was" not in capsys.readouterr().out


# ---------------------------------------------------------------- every recipe


RECIPES = sorted((ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains(path, tmp_path, monkeypatch, random, no_plots):
    """One step of each, with narrow networks and small batches."""
    recipe = read_toml(path)
    dataset = recipe.get("dataset", "grid" if path.stem.startswith("points") else "glyphs")
    shape = DATASETS[dataset].shape
    samples = random.random((16, *shape), np.float32)
    if len(shape) == 3:
        samples = (255 * samples).astype(np.uint8)
    tiny = Dataset(RowReader.from_array(samples))
    monkeypatch.setattr("wgan.setup.load_dataset", lambda *arguments: tiny)
    options = ["--config", path, "--dataset", dataset, "--steps", 1, "--no-conditional", *OFTEN]
    options += ["--width", 8, "--generator-width", 8, "--batch-size", 8]
    options += ["--generator-batch", 8] if "generator_batch" in recipe else []
    options += ["--compile", "off", "--device", "cpu", "--run", tmp_path / "r"]
    assert main([*map(str, options)]) == 0
    assert read_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 1


# ---------------------------------------------------------------- classes


def train_whole_and_in_parts(folder, tmp_path, *options):
    """The generator of a run that is byte for byte the same in one part and in two."""
    options += ("--grey", "--model", "dense", "--lr", "1e-2", "--gp-weight", "1")
    options += ("--sample-every", "30", "--checkpoint-every", "30")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_main(folder, whole, *options, "--steps", "120") == 0
    for steps in ("60", "120"):
        assert run_main(folder, parts, *options, "--steps", steps) == 0
    assert_same_run(whole, parts)
    return load_generator(whole)


def test_a_conditional_run_learns_the_classes_and_resumes_exactly(class_folder, tmp_path):
    generator = train_whole_and_in_parts(class_folder, tmp_path, "--conditional")
    assert generator.class_names == ("day", "night")
    assert generator.class_counts == (24, 8)
    images = generate(generator, 40, labels=torch.arange(40) % 2).float()
    day, night = images[::2].mean().item(), images[1::2].mean().item()
    assert day > 150 and night < 100


def test_a_run_with_clusters_learns_their_shares_and_resumes_exactly(class_folder, tmp_path):
    generator = train_whole_and_in_parts(class_folder, tmp_path, "--clusters", "2")
    assert generator.class_names == ()
    assert sorted(generator.class_counts) == [8, 24]
    means = generate(generator, 400).float().mean((1, 2, 3))
    dark = (means < 125).float().mean().item()
    assert dark == pytest.approx(0.25, abs=0.08)  # as in the data
    day, night = (generate(generator, labels=[k] * 20).float().mean() for k in (0, 1))
    assert abs(day - night) > 50


def test_new_images_of_a_resumed_run_join_its_clusters(class_folder, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(class_folder, folder)
    options = ["--clusters", "2", "--grey", "--model", "dense"]
    assert run_main(folder, tmp_path / "r", *options, "--steps", "2") == 0
    before = read_checkpoint(tmp_path / "r" / "checkpoint.pt")
    shutil.copytree(folder / "night", folder / "evening")
    assert run_main(folder, tmp_path / "r", *options, "--steps", "4") == 0
    after = read_checkpoint(tmp_path / "r" / "checkpoint.pt")
    assert torch.equal(before["ema"]["centres"], after["ema"]["centres"])
    added = np.subtract(after["class_counts"], before["class_counts"])
    assert sorted(added) == [0, 8]
    more = ["--steps", "2", "--init-from", tmp_path / "r"]
    assert run_main(folder, tmp_path / "s", *options, *more) == 0
    started = read_checkpoint(tmp_path / "s" / "checkpoint.pt")
    assert torch.equal(before["ema"]["centres"], started["ema"]["centres"])
    assert "in 2 clusters" in capsys.readouterr().out


def test_clusters_and_classes_exclude_each_other(class_folder, tmp_path, capsys):
    options = ["--conditional", "--clusters", "2", "--steps", "2"]
    assert run_main(class_folder, tmp_path / "run", *options) == 2
    assert "on classes or on clusters (2), not both" in capsys.readouterr().err


def test_conditional_without_classes_is_refused(image_folder, tmp_path, capsys):
    assert run_main(image_folder, tmp_path / "run", "--conditional", "--steps", "2") == 2
    assert "--conditional needs classes" in capsys.readouterr().err
