"""The classes of images in files of labels. Names of images are relative to the file's folder.

    dataset.json                   {"labels": [["00000/img00000000.png", 6], ...]} (StyleGAN, EDM)
    metadata.csv, metadata.jsonl   columns `file_name` and `label` (Hugging Face's imagefolder)
    labels.csv                     the same; without `file_name`, the first column has the names

A column of another name than `label` is chosen with `--label-column`.
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
    """What `find_classes` returns, from files of labels; None without labels in them.

    ValueError if the column `column` is missing, and for rows and values that give no classes.
    """
    files, classes, repeated = list_names(source.label_files), {}, []
    if column and not files:
        raise ValueError(f"--label-column {column}: there is no file of labels in {source.path}")
    for file in source.label_files:
        for name, value in read_rows(f"{source.path}/{file}", source.read(file), column):
            path = normalize("NFC", file[: file.rfind("/") + 1] + name)
            repeated += [path] if path in classes else []
            classes[path] = "" if value is None else normalize("NFC", str(value).strip())
            if isinstance(value, float | list) or FLOAT_OR_VECTOR.fullmatch(classes[path]):
                raise ValueError(
                    f"{file}: the label {str(value)[:40]} of {path} is not a class: a class is a "
                    "name or a whole number"
                )
    if repeated:
        listed = list_names(repeated, SHOWN_NAMES)
        raise ValueError(f"{files}: {len(repeated):,} images have several rows: {listed}")
    if not classes:
        return None
    paths = [normalize("NFC", name) for name in names]
    values = [classes.get(path, "") for path in paths]
    used = sorted({*values} - {""})
    if not used:
        raise ValueError(
            f"{files}: none of {len(classes):,} rows has a class for an image: they name images "
            f"like {next(iter(classes))!r} instead of {paths[0]!r}"
        )
    used.sort(key=int if all(map(str.isdecimal, used)) else None)
    labels, sizes = number_classes(values, used)
    line = f"{len(used):,} classes from {files}{f', column {column}' if column else ''}: {sizes}"
    for what, left in (
        ("images have no class there", [p for p, v in zip(paths, values, strict=True) if not v]),
        ("rows are for no readable image", sorted(classes.keys() - {*paths})),
    ):
        line += f"; {len(left):,} {what}: {list_names(left, SHOWN_NAMES)}" if left else ""
    return labels, tuple(used), one_line(line)


def read_rows(file: str, content: bytes, column: str) -> list[tuple[str, object]]:
    """The images' names and their labels; none, and a message, if there is no column `label`."""
    try:
        columns, rows = parse(file, content.decode("utf-8-sig"))
        name = "file_name" if "file_name" in columns else columns[0]
    except (ValueError, LookupError, TypeError, csv.Error) as error:
        raise ValueError(
            f"{file} is not a file of labels ({type(error).__name__}: {error}): rename it, or "
            "correct it as datasets/README.md describes"
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
    """What separates columns: the most frequent of three characters in the first line."""
    return max(",;\t", key=text.partition("\n")[0].count)
