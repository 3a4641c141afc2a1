"""The benchmark of speed: its counts, and its three modes in small."""

import json
import time

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import speed
from benchmarks.common import SAMPLES, build_training
from benchmarks.speed import Comparison, flops_of, images_in_file, main, peak_memory, process_memory
from wgan.data import RowReader
from wgan.layers import resolve

SMALL = ["--image-size", "16", "--width", "8", "--batch-size", "8", "--n-critic", "1"]
SMALL += ["--compile", "off", "--device", "cpu", "--seconds", "0.1"]


@pytest.fixture(autouse=True)
def small_matrix(monkeypatch):
    """The hardware's speed is not measured, which takes a second."""
    monkeypatch.setattr(speed, "matrix_product_flops", lambda precision, device: 1e9)


def test_operations_are_counted():
    layer, samples = nn.Linear(3, 5, bias=False), torch.randn(7, 3)
    assert flops_of(lambda: layer(samples)) == 2 * 7 * 3 * 5
    # The backward pass computes gradients of the weights, but none of the samples.
    assert flops_of(lambda: layer(samples).sum().backward()) == 2 * 2 * 7 * 3 * 5


def test_operations_inside_a_vjp_are_counted():
    layer, samples = nn.Linear(3, 5, bias=False), torch.randn(7, 3)

    def run():
        _, pull_back = torch.func.vjp(layer, samples)
        pull_back(torch.ones(7, 5))

    assert flops_of(run) == 2 * 2 * 7 * 3 * 5


def test_ours_needs_fewer_operations_than_the_textbook_loop():
    options = {"width": 8, "batch_size": 8, "compile": "off", "device": "cpu"}
    config = resolve(options | {"dataset": "random bytes"}).config
    comparison = Comparison(config, (1, 16, 16), workers=0)
    assert 0.6 < comparison.flops() / flops_of(comparison.loops["textbook"]) < 0.95


def test_memory_is_that_of_this_process(cpu):
    before = process_memory("RssAnon")
    assert before == 0 or before > 2**20
    block = bytearray(2**26)
    assert before == 0 or process_memory("RssAnon") >= before + len(block) // 2
    assert peak_memory(cpu) in (0, process_memory("VmHWM"))
    assert process_memory("NoSuchKey") == 0


@pytest.mark.parametrize("loop", ["textbook", "ours"])
def test_the_process_of_one_loop_prints_its_peak_memory(loop, capsys):
    assert main([*SMALL, "--peak-memory-of", loop]) == 0
    memory = int(capsys.readouterr().out.splitlines()[-1])
    assert memory == 0 or memory > SAMPLES * 16 * 16  # at least the data


def test_one_case_in_small(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "measure_memory", lambda loop, argv: 2**20)
    target = tmp_path / "results.json"
    assert main([*SMALL, "--precision", "fp32", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert list(result["loops"]) == ["textbook, DataLoader", "textbook", "ours"]
    for loop in result["loops"].values():
        assert loop["images_per_second"] == pytest.approx(8000 / loop["ms_per_step"])
        low, high = loop["ratio_range"]
        assert low <= loop["ratio"] <= high
    assert result["loops"]["textbook"]["ratio_range"] == [1, 1]
    assert 0 < result["inputs_share"] < 1
    output = capsys.readouterr().out
    assert "textbook, DataLoader" in output and "ours in float32" in output


@pytest.mark.slow
def test_the_memory_of_a_loop_is_measured_in_its_own_process():
    memory = speed.measure_memory("ours", [*SMALL, "--json", "no/such/folder/x.json"])
    assert memory == 0 or memory > SAMPLES * 16 * 16


def test_the_table_in_small(capsys, monkeypatch):
    cases = {"first": {"method": "wgan"}, "second": {"model": "dense", "precision": "fp32"}}
    small = {"image_size": "16", "width": 8, "batch_size": 8}
    monkeypatch.setattr(speed, "CASES", {name: small | case for name, case in cases.items()})
    table = ["--table", "--n-critic", "1", "--compile", "off", "--seconds", "0.1"]
    assert main(table) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| first", "| second"]
    assert all(line.count("|") == 7 for line in lines[-4:])
    assert main([*table, "--only", "sec"]) == 0
    assert "| first" not in (output := capsys.readouterr().out) and "| second" in output
    assert main([*table, "--width", "16"]) == 2
    assert "the cases of --table set width" in capsys.readouterr().err


def test_slow_steps_are_timed_in_fewer_rounds(cpu, monkeypatch):
    fast = speed.time_in_turn({"a": lambda: None}, 0.01, cpu)
    slow = speed.time_in_turn({"a": lambda: None, "b": lambda: time.sleep(0.01)}, 0.01, cpu)
    assert (len(fast["a"]), len(slow["a"]), len(slow["b"])) == (5, 2, 2)
    assert slow["b"][0] >= 0.01 > slow["a"][0]


def test_extras_in_small(tmp_path, capsys, monkeypatch):
    built = []

    def spy(config, *rest):
        built.append((config.augment, rest[-1]))
        return build_training(config, *rest)

    monkeypatch.setattr(speed, "build_training", spy)
    target = tmp_path / "results.json"
    assert main([*SMALL, "--extras", "--json", str(target)]) == 0
    rows = json.loads(target.read_text())["options"]
    assert list(rows) == ["without", "--conditional", "--augment color,translation,cutout"]
    assert built == [("none", 0), ("none", 10), ("color,translation,cutout", 0)]
    assert rows["without"]["ratio_range"] == [1, 1]
    assert "--conditional" in capsys.readouterr().out
    assert main([*SMALL, "--extras", "--growth"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_benchmark_with_classes_trains_a_conditional_model(cpu):
    config = resolve(
        {
            "dataset": "random bytes",
            "width": 8,
            "batch_size": 8,
            "conditional": True,
            "compile": "off",
            "device": "cpu",
        }
    ).config
    images = np.zeros((30, 1, 16, 16), np.uint8)
    state, batches = build_training(config, (1, 16, 16), cpu, RowReader.from_array(images), 3)
    assert state.generator.class_shares.tolist() == pytest.approx([1 / 3] * 3)
    assert set(batches.labels(0, 3).tolist()) == {0, 1, 2}


def test_growth_in_small(tmp_path, capsys, monkeypatch):
    for name, values in (("IMAGE_COUNTS", (50, 60)), ("BATCH_SIZES", (4, 8)), ("SIDES", (16, 32))):
        monkeypatch.setattr(speed, name, values)
    target = tmp_path / "results.json"
    assert main([*SMALL, "--growth", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert [row["images"] for row in result["images"]] == [50, 60]
    assert [row["batch_size"] for row in result["batch"]] == [4, 8]
    for row in result["side"]:
        assert row["ns_per_pixel"] == pytest.approx(1000 * row["us_per_image"] / row["side"] ** 2)
    assert "us/image" in capsys.readouterr().out


def test_images_in_a_file_are_read_from_there(tmp_path):
    images = images_in_file(tmp_path / "images", 3, (1, 2, 2))
    assert not images.in_memory and len(images) == 3
    assert images.read(torch.tensor([2, 0])).unique().tolist() == [128]


def test_cases_do_not_depend_on_flags():
    (names,) = {tuple(sorted(case)) for case in speed.CASES.values()}
    assert set(names) >= {"method", "model", "image_size", "channels", "precision", "width"}
