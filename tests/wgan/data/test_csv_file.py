"""Tables of numbers: from a `.csv` file to a run, samples, an evaluation and a picture."""

import csv

import numpy as np
import pytest
from helpers import OFTEN, SMALL, parse
from PIL import Image

import evaluate
import generate
import train
from wgan import load_generator
from wgan.data import load_dataset

HEADER = ["height (cm)", "weight, kg", "constant"]


@pytest.fixture
def table(tmp_path, random):
    """80 rows of two correlated columns and a constant, of very different units."""
    height = random.normal(170, 10, 80)
    rows = np.stack(
        [height, 1e-3 * (height - 100 + random.normal(0, 5, 80)), np.full(80, 1.7e9)], 1
    )
    write(tmp_path / "people.csv", [HEADER, *rows.tolist()])
    return tmp_path / "people.csv"


def write(path, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def read(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        header, *rows = csv.reader(file)
    return header, np.array(rows, float)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_is_standardised_and_keeps_its_names(delimiter, table, tmp_path):
    _, values = read(table)
    path = write(tmp_path / "t.csv", [["2020", "b", "c"], *values.tolist(), []], delimiter)
    dataset = load_dataset(str(path))
    assert dataset.standardisation.columns == ("2020", "b", "c")
    units = dataset.standardisation.undo(dataset.read(np.arange(80))).numpy()
    assert np.allclose(units, values, rtol=1e-6)


@pytest.mark.slow
def test_a_run_on_a_table_and_back(table, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "new.csv"
    options = ["--dataset", table, *SMALL, *OFTEN, "--run", run, "--device", "cpu"]
    for steps in (2, 4):
        assert train.main([*map(str, options), "--steps", str(steps)]) == 0
    printed = capsys.readouterr()
    assert "options: configs/vectors.toml" in printed.out and "resumed at step 2" in printed.out
    assert "byte-identical" not in printed.out
    names = [str(run), "--device", "cpu"]
    assert generate.main([*names, "--count", "200", "--out", str(out)]) == 0
    header, samples = read(out)
    assert header == HEADER and samples.shape == (200, 3)
    assert (samples[:, 2] == 1.7e9).all()
    assert generate.main([*names, "--count", "200", "--out", str(tmp_path / "new.npy")]) == 0
    assert np.array_equal(np.load(tmp_path / "new.npy"), samples)
    assert generate.main([*names]) == 0
    assert evaluate.main(names) == 0
    report = capsys.readouterr().out
    assert evaluate.main([str(out), str(table), "--neighbours", str(tmp_path / "c.png")]) == 0
    assert (
        "correlation difference" in report and "correlation difference" in capsys.readouterr().out
    )
    for picture in (run / "columns.png", tmp_path / "c.png", run / "generated.png"):
        assert Image.open(picture).width > 400
    assert load_generator(run, device="cpu").standardisation.columns == tuple(HEADER)


def test_the_recipe_is_used_for_tables_and_arrays_of_vectors(table, tmp_path):
    np.save(tmp_path / "v.npy", np.eye(80))
    for name in (table, tmp_path / "v.npy"):
        config = parse("--dataset", name)
        assert (config.model, config.max_seconds, config.lr_decay) == ("dense", 120, True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "first line must contain a name"),
        ([[1, 2], [3, 4]], "first line must contain a name"),
        ([["", "a"], [0, 4]], "first line must contain a name"),  # an index of pandas
        ([["a", "b"]], "not all lines have 2 columns"),
        ([["a", "b"], [1, 2], [3]], "not all lines have 2 columns"),
        ([["a", "kind", "b"], [1, "cat", 3], [1, "dog", ""]], "text or gaps: kind, b: remove"),
        ([["a", "b"], [1, 2], [3, "nan"]], r"NaN or infinite, the first at index \(1, 1\)"),
    ],
)
def test_wrong_tables_are_refused(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_dataset(str(write(tmp_path / "t.csv", rows)))


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes("größe\n1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="csv file in UTF-8"):
        load_dataset(str(tmp_path / "t.csv"))


# ---------------------------------------------------------------- two tables


def values_of(report):
    lines = [line.rsplit(None, 3) for line in report.splitlines()]
    return {line[0]: line[1:3] for line in lines if len(line) == 4 and line[3] == "lower"}


def test_two_tables_are_compared_in_units_of_the_second(table, tmp_path, capsys):
    _, values = read(table)
    moved = values + np.array([3 * values[:, 0].std(), 0, 0])
    assert (
        evaluate.main([str(write(tmp_path / "m.csv", [HEADER, *moved.tolist()])), str(table)]) == 0
    )
    marginal = values_of(capsys.readouterr().out)["worst marginal distance"]
    assert float(marginal[0]) == pytest.approx(3, abs=0.5) and float(marginal[1]) < 0.5
    shuffled = np.stack([values[:, 0], values[::-1, 1], values[:, 2]], 1)
    write(tmp_path / "s.csv", [HEADER, *shuffled.tolist()])
    assert evaluate.main([str(tmp_path / "s.csv"), str(table)]) == 0
    numbers = values_of(capsys.readouterr().out)
    assert float(numbers["worst marginal distance"][0]) < 0.5
    difference, floor = map(float, numbers["correlation difference"])
    assert difference > 0.2 > 3 * floor


@pytest.mark.parametrize(
    ("header", "width", "message"),
    [
        (
            ["weight, kg", "height (cm)", "constant"],
            3,
            "different columns cannot be compared: weight, kg, height",
        ),
        (HEADER[:2], 2, "cannot be compared: height (cm), weight, kg and height"),
    ],
)
def test_tables_of_other_columns_are_not_compared(header, width, message, table, tmp_path, capsys):
    other = write(tmp_path / "o.csv", [header, *np.eye(width).tolist() * 20])
    assert evaluate.main([str(other), str(table)]) == 2
    assert message in capsys.readouterr().err
    assert evaluate.main([str(table), str(table), "--features", "random"]) == 2
    assert "--features has no effect on points" in capsys.readouterr().err
