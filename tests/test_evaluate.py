"""The command that measures a run, and the measuring during training."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import SMALL, run_main

import evaluate
import train
from evaluate import Evaluator, choose_features, kept_classifier, main
from generate import load_generator
from wgan.data.table import Dataset
from wgan.evaluation import metrics
from wgan.run_folder import read_checkpoint


@pytest.fixture(autouse=True)
def no_inception(monkeypatch, tmp_path):
    """As on a machine that never fetched Inception's weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def labelled_folder(tmp_path_factory):
    """Two classes of 8x8 pictures, 40 each."""
    folder = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(0)
    for label, value in (("dark", 0), ("light", 200)):
        (folder / label).mkdir()
        for index in range(40):
            pixels = random.integers(value, value + 50, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


def trained(folder, run, tmp_path, *options):
    size = ["--image-size", "8", "--grey", "--data-root", tmp_path / "data"]
    return run_main(folder, run, *size, "--steps", 4, *options)


def test_a_runs_figures_beside_the_floor(labelled_folder, tmp_path, capsys):
    assert trained(labelled_folder, tmp_path / "r", tmp_path) == 0
    capsys.readouterr()
    target = tmp_path / "figures.json"
    assert main([str(tmp_path / "r"), "--json", str(target), "--samples", "30"]) == 0
    result = json.loads(target.read_text())
    assert result["samples"] == 30
    assert result["features"].startswith("classifier-")
    generated, real = result["generated"], result["real"]
    assert generated.keys() == real.keys()
    assert real["frechet_distance"] < generated["frechet_distance"]
    assert real["classes"] == 2
    assert "sliced_wasserstein_8x8" in real
    with Image.open(tmp_path / "r" / "neighbours.png") as picture:
        assert picture.size[0] > picture.size[1] // 2
    shown = capsys.readouterr().out
    assert "frechet distance" in shown and "real, held out" in shown


def test_more_samples_than_half_of_the_data_are_not_compared(labelled_folder, tmp_path):
    assert trained(labelled_folder, tmp_path / "r", tmp_path) == 0
    assert main([str(tmp_path / "r"), "--json", str(tmp_path / "j")]) == 0
    assert json.loads((tmp_path / "j").read_text())["samples"] == 40


def test_pictures_without_classes_are_compared_by_patches(picture_folder, tmp_path):
    assert run_main(picture_folder, tmp_path / "r", "--steps", 2) == 0
    assert main([str(tmp_path / "r"), "--json", str(tmp_path / "j")]) == 0
    generated = json.loads((tmp_path / "j").read_text())["generated"]
    assert list(generated) == ["sliced_wasserstein_16x16"]


def test_points_are_compared_exactly(tmp_path, monkeypatch):
    options = ["--dataset", "ring", "--run", str(tmp_path / "r"), "--steps", "2"]
    monkeypatch.setattr(evaluate, "PAIRED_POINTS", 200)
    assert train.main([*map(str, SMALL), *options]) == 0
    arguments = [str(tmp_path / "r"), "--json", str(tmp_path / "j"), "--samples", "500"]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "j").read_text())
    assert result["real"]["modes"] == result["real"]["modes_in_all"] == 8
    assert result["real"]["good_samples"] > 0.95
    assert result["generated"]["good_samples"] < 0.5
    assert result["real"]["wasserstein_distance"] < result["generated"]["wasserstein_distance"]
    assert math.isfinite(result["generated"]["critic_estimate"])


def test_held_out_pictures_are_neither_compared_with_nor_learned(tmp_path, cpu, monkeypatch):
    samples = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1).repeat(8, 2).repeat(8, 3)
    seen = []

    def spy(images, labels, classes, device):
        seen.append(images[torch.arange(len(images))])
        return metrics.Classifier(1, 2).eval()

    monkeypatch.setattr(metrics, "train_classifier", spy)
    evaluator = Evaluator(Dataset(samples, np.arange(200) % 2), str(tmp_path), cpu, samples=50)
    names = [set(part[:, 0, 0, 0].tolist()) for part in (evaluator.held_out, *seen)]
    assert len(names[0]) == 50 and len(names[1]) == 150
    assert not names[0] & names[1]
    assert set(evaluator.reference[:, 0, 0, 0].tolist()) <= names[1]


def test_the_classifier_is_kept_and_made_again_when_damaged_or_of_other_data(
    tmp_path, cpu, monkeypatch, capsys
):
    samples = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(np.uint8)
    dataset, rows = Dataset(samples, np.arange(40) % 2), np.arange(40)
    trained_times, train_classifier = [], metrics.train_classifier

    def counted(*arguments):
        trained_times.append(1)
        return train_classifier(*arguments)

    monkeypatch.setattr(metrics, "train_classifier", counted)
    first, name = kept_classifier(dataset, rows, str(tmp_path), cpu)
    second, same = kept_classifier(dataset, rows, str(tmp_path), cpu)
    assert (len(trained_times), same) == (1, name)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    (file,) = tmp_path.glob("classifier-*.pt")
    assert name.startswith(file.stem)
    file.write_bytes(b"damaged")
    kept_classifier(dataset, rows, str(tmp_path), cpu)
    assert len(trained_times) == 2
    assert "is made again" in capsys.readouterr().err
    other = Dataset(samples, 1 - dataset.labels)
    assert kept_classifier(other, rows, str(tmp_path), cpu)[1] != name


def test_a_class_that_the_classifier_never_saw_is_counted_all_the_same(tmp_path, cpu):
    samples = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(np.uint8)
    for alone in range(40):  # the last class is one picture, whichever half it falls into
        labels = np.zeros(40, np.int64)
        labels[alone] = 3
        evaluator = Evaluator(Dataset(samples, labels), str(tmp_path), cpu)
        if samples[alone] in evaluator.held_out.numpy():
            break
    assert evaluator.report(evaluator.held_out)["classes"] >= 1


def test_too_few_pictures_are_refused(tmp_path, cpu):
    samples = np.zeros((7, 1, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="at least 8 images, and the data set has 7"):
        Evaluator(Dataset(samples, np.arange(7) % 2), str(tmp_path), cpu)


def test_features_are_chosen_by_what_there_is(tmp_path):
    assert choose_features("auto", labelled=True) == "classifier"
    assert choose_features("auto", labelled=False) == ""
    with pytest.raises(ValueError, match="needs a data set with classes"):
        choose_features("classifier", labelled=False)
    weights = tmp_path / "hub" / "checkpoints"
    weights.mkdir(parents=True)
    (weights / "weights-inception-2015-12-05-6726825d.pth").touch()
    assert choose_features("auto", labelled=True) == "inception"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/run"], "there is no checkpoint or run no/such/run"),
        (["run", "--samples", "1"], "--samples must be at least 4"),
        (["run", "--samples", "many"], "invalid int"),
        (["run", "--features", "vgg"], "invalid choice"),
        (["run", "--device", "quantum"], "no device 'quantum'"),
    ],
)
def test_bad_input_ends_with_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


# ---------------------------------------------------------------- during training


def log_of(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_checkpoint_is_kept(labelled_folder, tmp_path, monkeypatch):
    distances = iter([5.0, 3.0, 4.0])
    monkeypatch.setattr(Evaluator, "frechet_distance", lambda self, images: next(distances))
    run = tmp_path / "r"
    assert trained(labelled_folder, run, tmp_path, "--steps", 6, "--eval-every", 2) == 0
    measured = {row["step"]: row["frechet_distance"] for row in log_of(run)}
    assert {step: value for step, value in measured.items() if value} == {
        "2": "5.0", "4": "3.0", "6": "4.0",
    }  # fmt: skip
    assert read_checkpoint(run / "best.pt")["step"] == 4
    assert load_generator(run / "best.pt").sample_shape == (1, 8, 8)


def test_a_resumed_run_remembers_its_best(labelled_folder, tmp_path, monkeypatch):
    distances = iter([3.0, 4.0])
    monkeypatch.setattr(Evaluator, "frechet_distance", lambda self, images: next(distances))
    run = tmp_path / "r"
    for steps in (2, 4):
        options = ["--steps", steps, "--eval-every", 2]
        assert trained(labelled_folder, run, tmp_path, *options) == 0
    assert read_checkpoint(run / "best.pt")["step"] == 2


def test_measuring_leaves_training_as_it_was(labelled_folder, tmp_path):
    for name, options in (("measured", ["--eval-every", 2]), ("plain", [])):
        assert trained(labelled_folder, tmp_path / name, tmp_path, *options) == 0
    measured, plain = (
        read_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("measured", "plain")
    )
    for name in ("generator", "critic", "average"):
        for one, other in zip(measured[name].values(), plain[name].values(), strict=True):
            assert torch.equal(one, other)
    values = [row["frechet_distance"] for row in log_of(tmp_path / "measured")]
    assert [bool(value) for value in values][-1]


def test_measuring_without_classes_is_refused(picture_folder, tmp_path, capsys):
    assert run_main(picture_folder, tmp_path / "r", "--eval-every", 2) == 2
    assert "needs a data set of at least 8 images with classes" in capsys.readouterr().err
