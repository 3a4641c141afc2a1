"""The printed table."""

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
