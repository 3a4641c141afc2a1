"""The classes of images in files of labels:

    dataset.json                   {"labels": [["00000/img00000000.png", 6], ...]} (StyleGAN, EDM)
    metadata.csv, metadata.jsonl   columns `file_name` and `label` (Hugging Face's imagefolder)
    labels.csv                     the same; without `file_name`, the first column has the names

Names are relative to the file's folder.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable
from unicodedata import normalize

import numpy as np

from wgan.data.classes import SHOWN_NAMES, list_names, number_classes
from wgan.data.sources import FolderSource, ZipSource
from wgan.errors import one_line, suggestion

FLOAT_OR_VECTOR = re.compile(r"[-+]?\d*\.\d*(e[-+]?\d+)?|\[.*\]", re.IGNORECASE)


def find_labels(
    source: FolderSource | ZipSource, names: list[str], column: str
) -> tuple[np.ndarray, tuple[str, ...], str] | None:
    """The label of each image, `(N,)` int64, the classes' names, and a line that says what was
    found, as `find_classes` returns them; None without labels in files.

    `column` is `--label-column`. ValueError for files, rows and values that give no classes.
    """
    if column and not source.label_files:
        raise ValueError(f"--label-column {column}: there is no file of labels in {source.path}")
    classes, repeated = {}, []
    for file in source.label_files:
        folder, place = file[: file.rfind("/") + 1], f"{source.path}/{file}"
        for name, value in read_rows(place, source.read(file), column):
            path = normalize("NFC", folder + name.removeprefix("./"))
            repeated += [path] if path in classes else []
            classes[path] = class_name(value, path, place)
    if not classes:
        return None
    files = list_names(source.label_files)
    if repeated:
        listed = list_names(repeated, SHOWN_NAMES)
        raise ValueError(f"{files}: {len(repeated):,} images have several rows: {listed}")
    paths = [normalize("NFC", name) for name in names]
    values = [classes.get(path, "") for path in paths]
    used = sorted({*values} - {""})
    used.sort(key=int if all(map(str.isdecimal, used)) else None)
    if not used:
        raise ValueError(
            f"{files}: none of {len(classes):,} rows has a class for an image; they are for names "
            f"such as {next(iter(classes))!r}, and images have names such as {paths[0]!r}"
        )
    labels, sizes = number_classes(values, used)
    line = f"{len(used):,} classes from {files}{f', column {column}' if column else ''}: {sizes}"
    for what, left in (
        ("images have no class there", [p for p, v in zip(paths, values, strict=True) if not v]),
        ("rows are for no readable image", sorted(classes.keys() - {*paths})),
    ):
        line += f"; {len(left):,} {what}: {list_names(left, SHOWN_NAMES)}" if left else ""
    return labels, tuple(used), one_line(line)


def read_rows(file: str, content: bytes, column: str) -> list[tuple[str, object]]:
    """The images' names and their labels; none, and a message, if there is no column `label`.

    ValueError if the file has another format, or not the column `column`.
    """
    try:
        columns, rows = parse(file, content.decode("utf-8-sig"))
        name = "file_name" if "file_name" in columns else columns[0]
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(
            f"{file} is not a file of labels ({type(error).__name__}: {error}): rename it, "
            "or correct it as datasets/README.md describes"
        ) from error
    others = [other for other in columns if other != name]
    is_pair = file.endswith("labels.csv") and len(others) == 1
    label = column or (others[0] if is_pair else "label")
    if label in others:
        return [(str(row.get(name)), row.get(label)) for row in rows]
    text = f"{file} has no column {label!r}, but {list_names(others) or 'no other'}"
    if column:
        raise ValueError(text + suggestion(column, others))
    print(f"{text}: it is not used; --label-column names the classes' column", file=sys.stderr)
    return []


def parse(file: str, text: str) -> tuple[list[str], Iterable[dict]]:
    """The columns and the rows of a file of labels."""
    if file.endswith(".csv"):
        reader = csv.DictReader(io.StringIO(text), delimiter=delimiter_of(text))
        return list(reader.fieldnames or ()), reader
    if file.endswith(".json"):
        pairs = json.loads(text)["labels"] or []
        return ["file_name", "label"], [{"file_name": a, "label": b} for a, b in pairs]
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def delimiter_of(text: str) -> str:
    """What separates the columns: the most frequent of three in the first line."""
    return max(",;\t", key=text.partition("\n")[0].count)


def class_name(value: object, path: str, file: str) -> str:
    """The class that a label names; empty for none. ValueError for floats and vectors."""
    text = "" if value is None else normalize("NFC", str(value).strip())
    if isinstance(value, float | list | dict) or FLOAT_OR_VECTOR.fullmatch(text):
        raise ValueError(
            f"{file}: the label {text[:40]} of {path} is not a class: classes are names or whole "
            "numbers, one per image"
        )
    return text
