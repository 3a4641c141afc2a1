"""Classes in files of labels, in folders and zip archives."""

import json

import numpy as np
import pytest
from helpers import parse, run_main
from PIL import Image
from test_zip import assert_same, pack

from wgan import load_generator
from wgan.data import ImageOptions, load_dataset

OPTIONS = ImageOptions((8, 8))
NAMES = [f"{index:05}.png" for index in range(24)]
KINDS = ["cat", "dog", "fish"]


@pytest.fixture
def folder(tmp_path):
    """24 images whose red is their number, in two numbered shards."""
    for index, name in enumerate(NAMES):
        path = tmp_path / "data" / f"{index // 12:05}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (index, 0, 0)).save(path)
    return tmp_path / "data"


def paths(folder):
    return [f"{index // 12:05}/{name}" for index, name in enumerate(NAMES)]


def kind_of(index):
    return KINDS[index % 3]


def json_of(value):
    return lambda folder: json.dumps(
        {"labels": [[path, value(index)] for index, path in enumerate(paths(folder))]}
    )


def csv_of(header, *values, separator=","):
    def write(folder):
        rows = [[path, *(v(i) for v in values)] for i, path in enumerate(paths(folder))]
        return "\n".join([header, *(separator.join(map(str, row)) for row in rows)])

    return write


def jsonl_of(value):
    return lambda folder: "\n".join(
        json.dumps({"file_name": path, "label": value(index)})
        for index, path in enumerate(paths(folder))
    )


def load(path, column=""):
    return load_dataset(str(path), path.parent, ImageOptions((8, 8), label_column=column))


def classes_by_number(dataset):
    """The class of each image, by the number in its red channel."""
    order = dataset.read(np.arange(len(dataset)))[:, 0, 4, 4].tolist()
    names = [dataset.class_names[k] if k >= 0 else None for k in dataset.labels]
    return dict(zip(order, names, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "column", "expected"),
    [
        ("dataset.json", json_of(lambda i: i % 12), "", lambda i: str(i % 12)),
        ("metadata.csv", csv_of("file_name,label", kind_of), "", kind_of),
        ("metadata.csv", csv_of("file_name;label", kind_of, separator=";"), "", kind_of),
        (
            "metadata.csv",
            csv_of("file_name,label", lambda i: 7 * (i % 2)),
            "",
            lambda i: str(i % 2 * 7),
        ),
        ("metadata.jsonl", jsonl_of(kind_of), "", kind_of),
        ("labels.csv", csv_of("image,kind", kind_of), "", kind_of),
        (
            "labels.csv",
            csv_of("image_id,Smiling,Male", lambda i: 1 - i % 2 * 2, kind_of),
            "Smiling",
            lambda i: str(1 - i % 2 * 2),
        ),
    ],
)
def test_every_kind_of_file_in_folders_and_archives(
    name, content, column, expected, folder, tmp_path, capsys
):
    (folder / name).write_text("\ufeff" * name.endswith("csv") + content(folder), "utf-8")
    dataset = load(folder, column)
    assert classes_by_number(dataset) == {index: expected(index) for index in range(24)}
    printed = capsys.readouterr().err
    assert f"classes from {name}" in printed
    assert "skipped" not in printed
    for around in ("", "data/"):
        packed = load(pack(folder, tmp_path / "p.zip", around), column)
        assert_same(dataset, packed)
        assert np.array_equal(dataset.labels, packed.labels)


def test_many_numbers_are_in_their_order(folder):
    (folder / "dataset.json").write_text(json_of(lambda i: i % 12)(folder))
    assert load(folder).class_names == tuple(map(str, range(12)))


def test_a_file_counts_for_its_own_folder(folder):
    for shard in ("00000", "00001"):
        rows = [f"{path.name},{shard}" for path in (folder / shard).iterdir()]
        (folder / shard / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    assert classes_by_number(load(folder)) == {i: f"0000{i // 12}" for i in range(24)}


def test_what_does_not_fit_is_counted(folder, capsys):
    rows = [f"{path},{kind_of(i)}" for i, path in enumerate(paths(folder)) if i > 1]
    rows[0] = rows[0].split(",")[0] + ","  # no class
    rows += ["missing.png,cat", "00000/../x.png,dog"]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    classes = classes_by_number(load(folder))
    assert [classes[index] for index in range(4)] == [None, None, None, "cat"]
    printed = capsys.readouterr().err
    assert "3 images have no class there: 00000/00000.png, 00000/00001.png, 00000/0000" in printed
    assert "2 rows are for no readable image: 00000/../x.png, missing.png" in printed


def test_subfolders_are_the_classes_if_no_file_has_labels(class_folder, tmp_path, capsys):
    archive = pack(class_folder, tmp_path / "p.zip")
    expected = load(archive)
    for name, content in (
        ("dataset.json", '{"labels": null}'),
        ("metadata.csv", "file_name,text,split\nday/0.png,a bright image,train"),
    ):
        (class_folder / name).write_text(content)
        try:
            assert_same(load(pack(class_folder, tmp_path / "p.zip")), expected)
        finally:
            (class_folder / name).unlink()
    printed = capsys.readouterr().err
    assert "metadata.csv has no column 'label', but text, split: it is not used" in printed


def write(content, name="metadata.csv"):
    return lambda folder: (folder / name).write_text(
        content if isinstance(content, str) else content(folder)
    )


@pytest.mark.parametrize(
    ("damage", "column", "message"),
    [
        (lambda folder: None, "kind", "--label-column kind: there is no file of labels"),
        (write(csv_of("file_name,kind", kind_of)), "kidn", "but kind; did you mean 'kind'"),
        (write("file_name,label\nx.png,1"), "", "none of 1 rows has a class for an image.*'x.png'"),
        (write(lambda f: csv_of("file_name,label", kind_of)(f) + "\n00000/00003.png,cat"), "",
         "1 images have several rows: 00000/00003.png"),
        (write(csv_of("file_name,label", lambda i: i / 7)), "", "label 0.0 of .* is not a class"),
        (write(json_of(lambda i: [0, 1, 0]), "dataset.json"), "", r"label \[0, 1, 0\] of"),
        (write(jsonl_of(lambda i: 0.5), "metadata.jsonl"), "", "the label 0.5 of"),
        (write("{]", "dataset.json"), "", "dataset.json is not a file of labels .JSONDecodeError"),
        (write('{"images": []}', "dataset.json"), "", "dataset.json is not a file of labels"),
        (write("", "labels.csv"), "", "labels.csv is not a file of labels"),
        (lambda folder: (folder / "metadata.csv").write_bytes(b"file_name\xff"), "",
         "metadata.csv is not a file of labels .UnicodeDecodeError"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(damage, column, message, folder):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load(folder, column)


def test_a_run_is_trained_on_the_labels(folder, tmp_path, capsys):
    (folder / "labels.csv").write_text(csv_of("id,one,two", lambda i: i % 2, kind_of)(folder))
    for column, names in (("two", tuple(KINDS)), ("one", ("0", "1"))):
        options = ["--conditional", "--label-column", column, "--steps", 2, "--fresh"]
        assert run_main(folder, tmp_path / "run", *options) == 0
        assert load_generator(tmp_path / "run", device="cpu").class_names == names
    options = ["--conditional", "--label-column", "two", "--steps", 4]
    assert run_main(folder, tmp_path / "run", *options) == 2
    assert "the checkpoint has 2 classes, and the data 3" in capsys.readouterr().err
    with pytest.raises(ValueError, match="label_column = 'two' has no effect with dataset glyphs"):
        parse("--label-column", "two")
