"""The benchmark of several ranks: one rank in this process, and the summary of many."""

import json

import pytest

from benchmarks import scaling
from benchmarks.scaling import main, rank_counts, summarise

SMALL = ["--image-size", "16", "--width", "8", "--batch-size", "8", "--n-critic", "2"]
SMALL += ["--compile", "off", "--device", "cpu", "--seconds", "0.1"]


def test_one_rank_measures_itself(tmp_path):
    target = tmp_path / "measured.json"
    assert main([*SMALL, "--rank-result", str(target)]) == 0
    measured = json.loads(target.read_text())
    assert 0 < measured["collective_seconds_per_step"] < measured["seconds_per_step"] < 5


def test_efficiency_compares_with_one_rank():
    starts = {
        count: [
            {"seconds_per_step": seconds, "collective_seconds_per_step": 0.1}
            for seconds in (best, best + 0.1, best + 7)
        ]
        for count, best in ((1, 0.9), (2, 1.9))
    }
    one, two = summarise(starts, samples_per_rank=40)
    assert (one["ranks"], one["efficiency"]) == (1, 1)
    assert one["images_per_second"] == pytest.approx(40)
    assert two["seconds_per_step"] == pytest.approx(2)
    assert two["images_per_second"] == pytest.approx(40)
    assert two["efficiency"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 4]), (8, [1, 2, 4, 8])]
)
def test_ranks_double_up_to_the_number_of_cores(cores, counts, cpu, monkeypatch):
    monkeypatch.setattr(scaling, "usable_cores", lambda: cores)
    assert rank_counts(cpu) == counts


def test_the_whole_benchmark_with_ranks_that_are_made_up(tmp_path, capsys, monkeypatch):
    def start_ranks(count, argv):
        assert argv[: len(SMALL)] == SMALL
        return {"seconds_per_step": 0.01 * count, "collective_seconds_per_step": 0.001}

    monkeypatch.setattr(scaling, "usable_cores", lambda: 2)
    monkeypatch.setattr(scaling, "start_ranks", start_ranks)
    assert main([*SMALL, "--json", str(tmp_path / "s.json")]) == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert [row["efficiency"] for row in result["ranks"]] == [1, 0.5]
    assert result["gradient_bytes"]["critic"] > 0
    assert "| 2 | 20.0 | 1.00 | 1600 | 50% |" in capsys.readouterr().out


@pytest.mark.slow
def test_two_ranks_are_started_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measured = scaling.start_ranks(2, SMALL)
    assert measured["collective_seconds_per_step"] > 0
