"""The benchmark of speed: its counts, and its command in small."""

import json
import time

import pytest
import torch
from torch import nn

from benchmarks import speed
from benchmarks.speed import Comparison, flops_of, main, time_in_turn
from wgan.recipes import resolve

SMALL = ["--image-size", "16", "--width", "8", "--batch-size", "8", "--n-critic", "1"]
SMALL += ["--compile", "off", "--device", "cpu", "--seconds", "0.1", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def small_matrix(monkeypatch):
    """The hardware's speed is not measured, which takes seconds."""
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
    comparison = Comparison(resolve(options | {"dataset": "random bytes"}).config, (1, 16, 16))
    assert 0.6 < comparison.flops() / flops_of(comparison.loops["textbook"]) < 0.95


def test_slow_steps_are_timed_in_fewer_rounds(cpu):
    fast = time_in_turn({"a": lambda: None}, 0.01, cpu)
    slow = time_in_turn({"a": lambda: None, "b": lambda: time.sleep(0.01)}, 0.01, cpu)
    assert (len(fast["a"]), len(slow["a"]), len(slow["b"])) == (5, 2, 2)
    assert slow["b"][0] >= 0.01 > slow["a"][0]


def test_one_case_in_small(tmp_path, capsys):
    target = tmp_path / "results.json"
    assert main([*SMALL, "--json", str(target)]) == 0
    (row,) = json.loads(target.read_text())["cases"]
    assert row["case"] == "wgan-gp, dcgan, 16x16x1, width 8, batch 8, 1 critic update(s), float32"
    assert list(row["loops"]) == ["textbook, DataLoader", "textbook", "ours"]
    for loop in row["loops"].values():
        low, high = loop["ratio_range"]
        assert low <= loop["ratio"] <= high
        assert loop["flops_per_second"] > 0 and loop["of_matrix_product"] > 0
    assert row["loops"]["textbook"]["ratio_range"] == [1, 1]
    assert f"| {row['case']} | " in capsys.readouterr().out


def test_the_table_in_small(capsys, monkeypatch):
    """The flags of a row take precedence; the others hold for all rows."""
    monkeypatch.setattr(speed, "TABLE", ("--method wgan", "--model dense --batch-size 4"))
    assert main([*SMALL, "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| wgan, dcgan, 16x16x1, width 8, batch 8, 1 critic update(s), float32",
        "| wgan-gp, dense, 16x16x1, width 8, batch 4, 1 critic update(s), float32",
    ]
    assert all(line.count("|") == 7 for line in lines)


def test_the_cases_of_the_table_are_valid():
    parser = speed.make_speed_parser()
    for row in speed.TABLE:
        config, shape = speed.case_of(parser.parse_args(row.split()))
        assert len(shape) == 3 and config.dataset == "random bytes"
