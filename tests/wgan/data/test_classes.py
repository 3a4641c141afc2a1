"""Which subfolders are classes."""

import numpy as np
import pytest

from wgan.data import Dataset, RowReader
from wgan.data.classes import (
    NO_CLASS,
    class_numbers,
    classes_to_generate,
    find_classes,
    match_classes,
)


def names_in(**folders):
    """Names of images; "__" in a folder's name means "/", a leading "_" nothing."""
    return [
        f"{folder.lstrip('_').replace('__', '/')}/{index}.png".lstrip("/")
        for folder, count in folders.items()
        for index in range(count)
    ]


def classes_in(names):
    """The images of each class."""
    labels, _, line = find_classes(names)
    if labels is None:
        return None, line
    classes = [
        sorted({name for name, own in zip(names, labels, strict=True) if own == label})
        for label in range(labels.max() + 1)
    ]
    return classes, line


def by_folder(names, *folders):
    return [sorted(name for name in names if folder in name.split("/")) for folder in folders]


CLASSES = {
    "plain": {"cats": 3, "dogs": 2},
    "deeper": {"cats__kittens": 3, "dogs__old__big": 2},
    "wrapped": {"animals__cats": 3, "animals__dogs": 2},
    "wrapped twice": {"a__b__cats": 3, "a__b__dogs": 2},
    "splits": {"train__cats": 3, "train__dogs": 2, "test__cats": 1},
    "other splits": {"Training__cats": 3, "validation__dogs": 2},
    "splits, wrapped": {"data__train__cats": 3, "data__val__dogs": 2, "data__test__dogs": 2},
    "images within splits": {"train__images__cats": 3, "valid__images__dogs": 2},
    "shards of classes": {"00000__cats": 3, "00000__dogs": 1, "00001__dogs": 3},
}


@pytest.mark.parametrize("layout", CLASSES)
def test_classes_are_found_at_every_usual_level(layout):
    names = names_in(**CLASSES[layout])
    classes, line = classes_in(names)
    assert classes == by_folder(names, "cats", "dogs")
    assert "2 classes" in line and f"cats {len(classes[0])}, dogs {len(classes[1])}" in line
    assert ("merged over" in line) == ("splits" in layout)


NONE = {
    "flat": ({"_": 5}, ""),
    "one folder": ({"cats": 5}, ""),
    "one folder of folders": ({"a__b": 5}, ""),
    "splits alone": ({"train": 5, "test": 2}, "merged over test, train"),
    "images in splits": ({"train__images": 5, "test__images": 2}, "merged over"),
    "numbered": ({"_00000": 5, "_00001": 5, "_00002": 1}, "00000, 00001, ... are numbered shards"),
    "by thousands": ({"_69000": 9, "_00000": 10, "_01000": 10}, "are numbered shards"),
    "parts": ({"part-1": 50, "part-2": 2}, "part-1, part-2 are numbered shards"),
    "Shards": ({"Shard_01": 5, "Shard_02": 5}, "are numbered shards"),
    "many strays": ({"_": 5, "cats": 20, "dogs": 20}, "5 of 45 images are in no class folder"),
}


@pytest.mark.parametrize("layout", NONE)
def test_other_folders_are_no_classes(layout):
    folders, reason = NONE[layout]
    classes, line = classes_in(names_in(**folders))
    assert classes is None
    assert reason in line if reason else line == ""


NUMBERS = {
    "digits": [str(digit) for digit in range(10)],
    "two digits": ["00", "01", "02"],
    "years": ["1990", "1991", "1992"],
    "of several lengths": ["0001", "00002"],
    "one is a word": ["0000", "0001", "none"],
    "words with numbers": ["class1", "class2"],
    "part of a word": ["part1", "party"],
    "one is no split": ["train", "plane", "test"],
}


@pytest.mark.parametrize("layout", NUMBERS)
def test_numbers_may_be_classes(layout):
    names = [f"{folder}/{index}.png" for folder in NUMBERS[layout] for index in range(3)]
    assert classes_in(names)[0] == by_folder(names, *sorted(NUMBERS[layout]))


def test_padded_numbers_with_uneven_counts_are_classes():
    """As the traffic signs of GTSRB, unlike the shards of FFHQ."""
    assert len(classes_in(names_in(_00000=21, _00001=222, _00002=225, _00003=141))[0]) == 4


def test_a_few_strays_stay_in_the_data_without_a_class():
    names = ["sheet.png", *names_in(cats=20, dogs=20), "z.png"]
    labels, _, line = find_classes(names)
    assert labels.tolist() == [NO_CLASS, *[0] * 20, *[1] * 20, NO_CLASS]
    assert "2 images in no class folder are used without a class: sheet.png, z.png" in line


def test_a_class_in_two_unicode_forms_is_one():
    names = names_in(**{"train__e\u0301te\u0301": 2, "val__\u00e9t\u00e9": 3, "val__hiver": 2})
    labels, class_names, line = find_classes(names)
    assert class_names == ("hiver", "\u00e9t\u00e9") and labels.tolist() == [1] * 5 + [0] * 2
    assert "2 classes" in line and "\u00e9t\u00e9 5" in line


def test_names_cannot_control_the_terminal():
    line = find_classes(names_in(**{"a\x1b[2J\x9b31m": 2, "b\u202ec": 2}))[2]
    assert line.isprintable() and r"a\x1b[2J\x9b31m 2, b\u202ec 2" in line


def test_the_line_is_short_whatever_the_folders_are():
    names = [f"class{index}/0.png" for index in range(1000)]
    line = find_classes(names)[2]
    assert line.startswith("1,000 classes: class0 1, class1 1,") and len(line) < 250
    assert line.endswith(", ...")
    assert "\n" not in find_classes(names_in(**{"a\nb": 2, "c": 2}))[2]


# ---------------------------------------------------------------- conditional training


def labelled(labels, names):
    samples = RowReader.from_array(np.zeros((len(labels), 1, 8, 8), np.uint8))
    return Dataset(samples, None if labels is None else np.array(labels), class_names=names)


def test_images_in_no_class_folder_are_a_class_of_their_own(capsys):
    labels, names = classes_to_generate(labelled([0, 1] * 5 + [NO_CLASS] * 5, ("a", "b")))
    assert labels.tolist() == [0, 1] * 5 + [2] * 5
    assert names == ("a", "b", "no class")
    assert capsys.readouterr().err == ""
    # A folder of that name has the same meaning.
    data = labelled([0, 1] * 5 + [NO_CLASS] * 5, ("a", "no class"))
    labels, names = classes_to_generate(data)
    assert labels.tolist() == [0, 1] * 5 + [1] * 5 and names == ("a", "no class")


def test_data_without_class_names_have_no_classes():
    with pytest.raises(ValueError, match="--conditional needs classes"):
        classes_to_generate(labelled([0, 1], ()))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("cat", "dog"), [0, 1]),
        (("5", "7", "1000"), [5, 7, 1000]),
        (("2", "9", "no class"), [2, 9, -1]),
        (("cat", "7", "no class"), [0, 1, -1]),
        (("00", "01", "07"), [0, 1, 2]),
        (("7", "18446744073709551616"), [0, 1]),
        ((), []),
    ],
)
def test_classes_are_written_as_the_numbers_that_they_are_or_by_position(names, expected):
    assert class_numbers(names) == expected


@pytest.mark.parametrize(
    ("names", "reference", "expected"),
    [
        (("bag", "boot", "dress"), ("dress", "bag", "boot"), [1, 2, 0]),  # a folder, a data set
        (("0", "2"), ("dress", "bag", "boot"), [0, 2]),  # an array, a data set
        (("1", "2", "3"), ("1", "2", "3"), [0, 1, 2]),
        (("1000", "5", "7"), ("5", "7", "1000"), [2, 0, 1]),  # a folder sorts names as text
        (("a", "no class"), ("a", "b"), [0, -1]),
        (("0", "2"), ("00", "01", "07"), [0, 2]),  # zero-padded names are no numbers
    ],
)
def test_classes_are_matched_by_name(names, reference, expected, capsys):
    assert match_classes(names, reference).tolist() == [*expected, NO_CLASS]
    assert capsys.readouterr().err == ""


def test_classes_that_the_data_do_not_have_are_named(capsys):
    assert match_classes(("a", "x", "3"), ("b", "a")).tolist() == [1, -1, -1, -1]
    assert "the classes x, 3 are not among those of the data, b, a" in capsys.readouterr().err
