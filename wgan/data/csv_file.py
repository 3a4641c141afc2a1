"""Vectors in a `.csv` file: a line with the names of the columns, and lines of numbers."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from wgan.data.arrays import VECTORS, Arrays, StoredArray, load_vectors
from wgan.data.classes import list_names
from wgan.data.dataset import Dataset
from wgan.data.image_options import ImageOptions
from wgan.data.labels import delimiter_of


def read_lines(path: Path, count: int | None = None) -> list[list[str]]:
    """All lines that are not empty, or the first `count`; ValueError if there are no names."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = delimiter_of(file.readline())
            file.seek(0)
            lines = list(islice(filter(None, csv.reader(file, delimiter=delimiter)), count))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a .csv file in UTF-8: {error}") from error
    if not lines or "" in lines[0] or to_numbers(lines[0]) is not None:
        raise ValueError(f"{path}: the first line must contain a name for each column")
    return lines


def to_numbers(texts: Sequence[str]) -> np.ndarray | None:
    """Texts as numbers; None if one is not a number."""
    try:
        return np.array(texts, np.float64)
    except ValueError:
        return None


def load_csv(path: Path, root: Path, options: ImageOptions) -> Dataset:
    """Standardised vectors. ValueError for columns that contain text or gaps, which it names."""
    names, *lines = read_lines(path)
    if {*map(len, lines)} != {len(names)}:
        raise ValueError(f"{path}: not all lines have {len(names)} columns, as the first one has")
    columns = [to_numbers(texts) for texts in zip(*lines, strict=True)]
    if text := [name for name, column in zip(names, columns, strict=True) if column is None]:
        raise ValueError(
            f"{path}: columns contain text or gaps: {list_names(text)}: remove them, or replace "
            "the text and the gaps by numbers"
        )
    array = np.stack(columns, 1)
    stored = StoredArray(path, "", array.shape, array.dtype, False, 0)
    dataset = load_vectors(Arrays(path, stored, VECTORS), lambda indices: array[indices])
    standardisation = replace(dataset.standardisation, columns=tuple(names))
    return replace(dataset, standardisation=standardisation)
