"""The command evaluate.py, and evaluation during training."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers import SMALL, run_main
from PIL import Image

import train
from evaluate import main
from wgan import load_generator
from wgan.checkpoints import read_checkpoint
from wgan.evaluation import comparison, points, samples
from wgan.evaluation.evaluator import Evaluator
from wgan.state import NETWORKS

pytestmark = pytest.mark.slow

pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture(scope="module")
def labelled_folder(tmp_path_factory):
    """Two classes of 8x8 images, 40 each."""
    folder = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(0)
    for label, value in (("dark", 0), ("light", 200)):
        (folder / label).mkdir()
        for index in range(40):
            pixels = random.integers(value, value + 50, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


def train_labelled(folder, run, *options):
    size = ["--image-size", "8", "--grey", "--data-root", run.parent / "data"]
    return run_main(folder, run, *size, "--steps", 4, *options)


def evaluate(folder, *arguments):
    """The result of the command, which is written to a file in a folder."""
    target = folder / "metrics.json"
    assert main([*map(str, arguments), "--json", str(target)]) == 0
    return json.loads(target.read_text())


def test_metrics_are_reported_next_to_their_floor(labelled_folder, tmp_path, capsys):
    assert train_labelled(labelled_folder, tmp_path / "r") == 0
    capsys.readouterr()
    result = evaluate(tmp_path, tmp_path / "r", "--samples", 30)
    assert result["samples"] == 30
    assert result["features"].startswith("classifier-")
    generated, real = result["generated"], result["real"]
    estimates = ("critic_estimate", "corrected_estimate", "critic_lower_bound")
    names = {f"{name}{end}" for name in estimates for end in ("", "_per_pixel")}
    assert generated.keys() - real.keys() == names
    for name in estimates:
        assert generated[f"{name}_per_pixel"] == pytest.approx(generated[name] / 8)
    assert real["frechet_distance"] < generated["frechet_distance"]
    assert real["classes"] == 2
    with Image.open(tmp_path / "r" / "neighbours.png") as image:
        assert image.size == (8 * 82, 8 * 82)  # 8 samples, each with 7 neighbours; enlarged by 8
    output = capsys.readouterr().out
    assert "frechet distance" in output and "real, held out" in output


def test_a_checkpoint_is_read_once_and_in_the_requested_weights(
    labelled_folder, tmp_path, monkeypatch
):
    assert train_labelled(labelled_folder, tmp_path / "r") == 0
    reads, read = [], comparison.read_any_checkpoint
    monkeypatch.setattr(
        comparison, "read_any_checkpoint", lambda path: reads.append(path) or read(path)
    )
    generators, generate = [], samples.generate
    monkeypatch.setattr(
        samples, "generate", lambda net, *more: generators.append(net) or generate(net, *more)
    )
    assert evaluate(tmp_path, tmp_path / "r", "--from", "raw")["samples"] == 40  # half of the data
    assert len(reads) == 1
    expected = read_checkpoint(tmp_path / "r" / "checkpoint.pt")["generator"]
    for name, value in generators[0].network.state_dict().items():
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize("method", ["wgan-gp", "wgan"])
def test_points_are_compared_exactly(method, tmp_path, monkeypatch, capsys):
    options = ["--dataset", "ring", "--run", str(tmp_path / "r"), "--steps", "2"]
    monkeypatch.setattr(points, "PAIRED_POINTS", 200)
    assert train.main([*SMALL, "--method", method, *options]) == 0
    result = evaluate(tmp_path, tmp_path / "r", "--samples", 500)
    generated, real = result["generated"], result["real"]
    assert real["modes"] == real["modes_in_all"] == 8
    assert real["good_samples"] > 0.95
    assert generated["good_samples"] < 0.5
    assert real["wasserstein_distance"] < generated["wasserstein_distance"]
    assert math.isfinite(generated["critic_estimate"])
    assert generated["critic_lower_bound"] < 1.1 * generated["wasserstein_distance"]
    # Only an estimate with a gradient penalty is corrected.
    assert ("corrected_estimate" in generated) == (method == "wgan-gp")
    assert "critic estimate, training data" in capsys.readouterr().out
    random = np.random.default_rng(1)
    np.save(tmp_path / "fresh.npy", random.normal(size=(100, 2)).astype(np.float32))
    evaluate(tmp_path, tmp_path / "r", "--dataset", tmp_path / "fresh.npy")
    assert "training data" not in capsys.readouterr().out


def test_data_that_moved_are_named_with_flags(image_folder, tmp_path, capsys):
    pictures = shutil.copytree(image_folder, tmp_path / "pictures")
    assert run_main(pictures, tmp_path / "r", "--steps", 1, "--data-root", tmp_path / "d") == 0
    moved = pictures.rename(tmp_path / "moved")
    capsys.readouterr()
    assert main([str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert f"{str(pictures)!r}: there is no such folder" in error
    assert error.count("\n") == 1
    assert "--dataset" in error and "--data-root" in error
    arguments = [str(tmp_path / "r"), "--dataset", str(moved), "--data-root", str(tmp_path / "d2")]
    assert main(arguments) == 0
    assert (tmp_path / "d2" / "prepared").is_dir()
    assert "was trained on" not in capsys.readouterr().err
    for name in ("1.png", "2.png", "3.png"):
        (moved / name).unlink()
    assert main(arguments) == 0
    assert "was trained on 40 samples, and the data set now has 37\n" in capsys.readouterr().err
    assert main([*arguments[:2], ""]) == 2
    assert "unknown dataset ''" in capsys.readouterr().err


def test_a_corrupt_checkpoint_is_replaced_by_the_previous_one(image_folder, tmp_path, capsys):
    for steps in (1, 2):
        assert run_main(image_folder, tmp_path / "r", "--steps", steps) == 0
    (tmp_path / "r" / "checkpoint.pt").write_bytes(b"x")
    assert evaluate(tmp_path, tmp_path / "r")["step"] == 1
    assert "is corrupt" in capsys.readouterr().err
    (tmp_path / "r" / "checkpoint.previous.pt").write_bytes(b"x")
    assert main([str(tmp_path / "r")]) == 2


@pytest.fixture(scope="module")
def mislabelled_folder(tmp_path_factory):
    """Noise in two classes, between which there is no difference."""
    folder = tmp_path_factory.mktemp("mislabelled")
    random = np.random.default_rng(0)
    for index in range(80):
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8), np.uint8)).save(path)
    return folder


def test_no_metrics_from_a_classifier_that_learned_nothing(mislabelled_folder, tmp_path, capsys):
    assert train_labelled(mislabelled_folder, tmp_path / "r") == 0
    assert evaluate(tmp_path, tmp_path / "r")["features"].startswith("random-")
    assert "no better than chance (50.0%): comparing without classes" in capsys.readouterr().err
    assert main([str(tmp_path / "r"), "--features", "classifier"]) == 2
    assert "no better than chance (50.0%): check the classes" in capsys.readouterr().err
    # Training does not need the metrics.
    assert train_labelled(mislabelled_folder, tmp_path / "r2", "--eval-every", 2) == 0
    assert "--eval-every is ignored: the class" in capsys.readouterr().err


def test_a_data_set_of_another_shape_is_refused(image_folder, tmp_path, monkeypatch, capsys):
    assert run_main(image_folder, tmp_path / "r", "--steps", 1) == 0
    load = comparison.load_dataset
    monkeypatch.setattr(comparison, "load_dataset", lambda name, root, *more: load("ring", root))
    assert main([str(tmp_path / "r")]) == 2
    assert "they cannot be compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/run"], "there is no checkpoint or run no/such/run"),
        (["run", "--samples", "1"], "--samples/--count: 1: must be at least 4"),
        (["run", "--samples", "many"], "invalid int"),
        (["run", "--features", "vgg"], "invalid choice"),
        (["run", "--from", "average"], "invalid choice"),
        (["run", "--json", "no/such/file"], "there is no folder no/such: create it first"),
        (["run", "--neighbours", "x.png/"], "--neighbours x.png/ is a folder"),
        (["run", "other"], "give the data to compare a run with by --dataset"),
        (["a.npy", "b.npy"], "unknown dataset 'a.npy': there is no such folder or file"),
        (["a.npy", "b", "--dataset", "c"], "compare it with one other array"),
        (["."], ". is not a run: compare it with one"),
        (["run", "--reference", "all"], "invalid choice"),
        ([], "required: SOURCE"),
    ],
)
def test_bad_input_ends_with_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# ---------------------------------------------------------------- without a run


@pytest.fixture
def arrays(tmp_path, random):
    """Two arrays of dark noise, the first with labels, and one of flat images."""
    pixels = random.integers(0, 100, (3, 40, 8, 8, 1)).astype(np.uint8)
    names = [str(tmp_path / name) for name in ("a.npz", "b.npy", "c.npy")]
    np.savez(names[0], samples=pixels[0], labels=np.arange(40) % 2)
    np.save(names[1], pixels[1])
    np.save(names[2], pixels[2] // 100 + 150)
    return names


def test_two_arrays_are_compared(arrays, tmp_path, capsys):
    similar = evaluate(tmp_path, arrays[0], arrays[1], "--neighbours", str(tmp_path / "n.png"))
    assert "lower" in capsys.readouterr().out
    assert (tmp_path / "n.png").exists()
    other = evaluate(tmp_path, arrays[2], arrays[1])
    assert similar["samples"] == other["samples"] == 20
    distances = [result["generated"]["frechet_distance"] for result in (similar, other)]
    assert distances[0] < 3 * similar["real"]["frechet_distance"] < distances[1]


def test_an_array_with_labels_is_compared_with_a_data_set(labelled_folder, arrays, tmp_path):
    options = ["--dataset", str(labelled_folder), "--data-root", str(tmp_path / "d")]
    result = evaluate(tmp_path, arrays[0], *options)
    assert result["features"].startswith("classifier-")
    assert result["real"]["class_agreement"] > 0.9
    assert 0.3 < result["generated"]["class_agreement"] < 0.7  # all are dark
    assert not list(tmp_path.glob("*.png"))


def test_options_without_effect_are_refused(labelled_folder, arrays, tmp_path, capsys):
    for options in (["--seed", "5"], ["--from", "raw"]):
        assert main([*arrays[:2], *options]) == 2
        assert f"{options[0]} has no effect without a run" in capsys.readouterr().err
    points = tmp_path / "points"
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(40, 3)))
    options = ["--run", str(points), "--steps", "1", *SMALL, "--device", "cpu"]
    assert train.main(["--dataset", str(tmp_path / "v.npy"), *options]) == 0
    assert main([str(points), "--features", "random"]) == 2
    assert "--features has no effect on points" in capsys.readouterr().err


def test_a_folder_has_no_test_images(labelled_folder, arrays, tmp_path, capsys):
    arguments = [arrays[0], str(labelled_folder), "--data-root", str(tmp_path / "d")]
    assert main([*arguments, "--reference", "test"]) == 2
    error = capsys.readouterr().err
    assert "has no test images: use one of mnist" in error.splitlines()[-1]


# ---------------------------------------------------------------- during training


def log_of(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_checkpoint_is_kept_and_remembered_by_a_resumed_run(
    labelled_folder, tmp_path, monkeypatch
):
    distances = iter([5.0, 3.0, 4.0])
    monkeypatch.setattr(Evaluator, "frechet_distance", lambda self, images: next(distances))
    run = tmp_path / "r"
    for steps in (4, 6):
        options = ["--steps", steps, "--eval-every", 2]
        assert train_labelled(labelled_folder, run, *options) == 0
    measured = {row["step"]: row["frechet_distance"] for row in log_of(run)}
    assert {step: value for step, value in measured.items() if value} == {
        "2": "5.0", "4": "3.0", "6": "4.0",
    }  # fmt: skip
    assert read_checkpoint(run / "best.pt")["step"] == 4
    assert load_generator(run / "best.pt").sample_shape == (1, 8, 8)


def test_evaluation_does_not_change_training(labelled_folder, tmp_path):
    for name, options in (("evaluated", ["--eval-every", 2]), ("plain", [])):
        assert train_labelled(labelled_folder, tmp_path / name, *options) == 0
    evaluated, plain = (
        read_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("evaluated", "plain")
    )
    for name in NETWORKS:
        for one, other in zip(evaluated[name].values(), plain[name].values(), strict=True):
            assert torch.equal(one, other)
    assert float(log_of(tmp_path / "evaluated")[-1]["frechet_distance"]) > 0


def test_images_without_classes_are_evaluated_in_random_features(image_folder, tmp_path, capsys):
    assert run_main(image_folder, tmp_path / "r", "--steps", 2, "--eval-every", 2) == 0
    assert float(log_of(tmp_path / "r")[-1]["frechet_distance"]) > 0
    assert read_checkpoint(tmp_path / "r" / "best.pt")["step"] == 2


def test_too_few_images_are_not_evaluated(tmp_path, capsys):
    np.save(tmp_path / "few.npy", np.arange(7 * 256, dtype=np.uint8).reshape(7, 16, 16))
    options = ["--grey", "--batch-size", 4, "--steps", 2, "--eval-every", 2]
    assert run_main(tmp_path / "few.npy", tmp_path / "r", *options) == 0
    error = capsys.readouterr().err
    assert "--eval-every is ignored: evaluation needs at least 8 samples, but the data" in error
