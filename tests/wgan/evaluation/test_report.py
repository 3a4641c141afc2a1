"""The printed table."""

import pytest

from wgan.evaluation.report import format_report


def test_each_line_has_a_floor_and_says_in_which_direction_it_improves():
    result = {
        "source": "a.npz",
        "reference": "b",
        "samples": 500,
        "features": "random-1",
        "generated": {"frechet_distance": 2.5, "precision": 0.5, "modes": 3, "modes_in_all": 4},
        "real": {"frechet_distance": 0.5, "precision": 0.9},
        "neighbours": "n.png",
    }
    heading, _, columns, *lines, _, last = format_report(result).splitlines()
    assert heading == "a.npz and b, 500 samples, features: random-1"
    assert columns.split() == ["generated", "real,", "held", "out", "better"]
    assert [line.split() for line in lines] == [
        ["frechet", "distance", "2.5", "0.5", "lower"],
        ["precision", "0.5", "0.9", "higher"],
        ["modes", "of", "4", "3", "higher"],
    ]
    assert last.endswith("n.png")
    assert "fewer than 500 samples" in format_report(result | {"samples": 499})


@pytest.mark.parametrize("trained_on", [True, False])
def test_a_critics_estimate_is_no_measure_and_says_on_which_data_it_is(trained_on):
    estimates = {"critic_estimate": 1.5, "corrected_estimate": 1.25}
    result = {"source": "r", "samples": 500, "training_data": trained_on, "real": {}}
    lines = format_report(result | {"generated": estimates}).splitlines()[-2:]
    label = "estimate, training data" if trained_on else "estimate"
    assert [" ".join(line.split()) for line in lines] == [
        f"critic {label} 1.5",
        f"corrected {label} 1.25",
    ]
