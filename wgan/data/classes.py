"""The classes of a folder of images, which are its subfolders' names; their numbers in arrays.

Some subfolders are no classes: a single one around all images, the parts of a data set (`train`,
`val`, `test`), and numbered shards (`00000`, `01000`, ... or `part-1`, `part-2`, ...). Such a level
is passed over, and the level below it decides. See `datasets/README.md`.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from wgan.data.dataset import Dataset
from wgan.errors import one_line

NO_CLASS = -1  # the label of an image in no class folder
NO_CLASS_NAME = "no class"  # of the class that these images form in conditional training
MAX_STRAYS = 0.05  # of all images; if more are in no class folder, the subfolders are no classes
SHOWN_CLASSES, SHOWN_NAMES = 10, 3
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
SHARD = re.compile(r"(part|shard|chunk|batch|split|fold)[-_ ]?\d+", re.IGNORECASE)
PADDED = re.compile(r"\d{4,}")


def find_classes(names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...], str]:
    """The label of each image, `(N,)` int64 or None if there are no classes, the classes' names,
    and one line that says what was found; it is empty if the images' names, which are relative
    paths with "/", tell nothing.
    """
    paths = [unicodedata.normalize("NFC", name) for name in names]  # equal on all systems
    passed_over = []
    while True:
        folders = [path.partition("/")[0] if "/" in path else "" for path in paths]
        counts = Counter(folders)
        strays = counts.pop("", 0)
        note = describe_level(counts)
        if note is None or not counts:
            break
        passed_over += [note] if note else []
        paths = [path.partition("/")[2] for path in paths]
    reason = "; ".join(passed_over)
    if not counts:
        return None, (), f"no classes ({reason})" if reason else ""
    stray_names = [name for name, folder in zip(names, folders, strict=True) if not folder]
    listed = list_names(stray_names, SHOWN_NAMES)
    if strays > MAX_STRAYS * len(names):
        reason = f"{strays:,} of {len(names):,} images are in no class folder: {listed}"
        return None, (), f"no classes ({'; '.join([*passed_over, reason])})"
    labels, sizes = number_classes(folders, sorted(counts))
    line = f"{len(counts):,} classes{f' ({reason})' if reason else ''}: {sizes}"
    if strays:
        line += f"; {strays:,} images in no class folder are used without a class: {listed}"
    return labels, tuple(sorted(counts)), one_line(line)


def number_classes(classes: list[str], names: list[str]) -> tuple[np.ndarray, str]:
    """The labels `(N,)` int64 of samples of these classes, which are positions in `names` or -1,
    and the names with their numbers of samples."""
    numbers, counts = {name: number for number, name in enumerate(names)}, Counter(classes)
    labels = np.array([numbers.get(name, NO_CLASS) for name in classes], np.int64)
    return labels, list_names([f"{name} {counts[name]:,}" for name in names])


def classes_to_generate(dataset: Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels `(N,)` and names of the classes for conditional training, in which images in no class
    folder form a class of their own. ValueError if there are no classes.
    """
    labels, names = dataset.labels, dataset.class_names
    if labels is None or not names:
        raise ValueError(
            "--conditional needs classes, and this data has none: use a folder with a subfolder "
            "per class or a file of labels, a data set with classes, or leave --conditional out"
        )
    if (labels < 0).any():
        names = names if NO_CLASS_NAME in names else (*names, NO_CLASS_NAME)
        labels = np.where(labels < 0, names.index(NO_CLASS_NAME), labels)
    return labels, names


def class_numbers(names: Sequence[str]) -> list[int]:
    """The label of each class in array files: its name if the names are numbers, otherwise its
    position; -1 for images in no class folder."""
    numbered = are_numbers(names)
    return [
        NO_CLASS if name == NO_CLASS_NAME else int(name) if numbered else position
        for position, name in enumerate(names)
    ]


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all names are numbers as Python writes them: 7, but not 007."""
    names = [name for name in names if name != NO_CLASS_NAME]
    return bool(names) and all(
        name.isdecimal() and str(int(name)) == name and int(name) < 2**63 for name in names
    )


def match_classes(names: Sequence[str], reference: Sequence[str]) -> np.ndarray:
    """Map the labels of K classes to those of `reference`: an array `(K + 1,)` int64 to index with
    labels, whose last entry maps -1 to itself. A class that `reference` lacks maps to -1.

    Classes are matched by name. Numbers match the positions of names that are not numbers.
    """
    positions = {name: position for position, name in enumerate(reference)}
    if are_numbers(names) and not are_numbers(reference):
        positions = {str(position): position for position in range(len(reference))}
    unknown = [name for name in names if name not in positions and name != NO_CLASS_NAME]
    if unknown:
        print(
            f"the classes {list_names(unknown)} are not among those of the data, "
            f"{list_names(reference)}: their samples are compared without a class",
            file=sys.stderr,
        )
    return np.array([*(positions.get(name, NO_CLASS) for name in names), NO_CLASS])


def describe_other_classes(before: Sequence[str], now: Sequence[str]) -> str:
    """How the classes of the data differ from those of a checkpoint."""
    return (
        f"the checkpoint has {len(before)} classes, and the data {len(now)}; "
        f"in the checkpoint: {list_names(before)}; in the data: {list_names(now)}"
    )


def list_names(names: Sequence[str], count: int = SHOWN_CLASSES) -> str:
    """The first `count` names, in one line."""
    return one_line(", ".join(names[:count]) + (", ..." if len(names) > count else ""))


def describe_level(counts: Counter[str]) -> str | None:
    """Why these folders, with their numbers of images, are no classes; empty for a single folder,
    None if they are classes."""
    names = sorted(counts)
    if len(names) < 2:
        return ""
    if all(name.lower() in SPLITS for name in names):
        return f"merged over {', '.join(names)}"
    if all(map(SHARD.fullmatch, names)) or are_numbered_shards(counts):
        return f"{names[0]}, {names[1]}{', ...' if len(names) > 2 else ''} are numbered shards"
    return None


def are_numbered_shards(counts: Counter[str]) -> bool:
    """Whether all names are numbers of one length, of four or more digits and padded with zeros,
    and all folders but the last are about equally full. Zero-padded classes, as those of GTSRB,
    differ more in size."""
    names = sorted(counts)
    if not all(map(PADDED.fullmatch, names)) or len({*map(len, names)}) > 1:
        return False
    sizes = [counts[name] for name in names[:-1]]
    return names[0].startswith("0") and 2 * min(sizes) >= max(max(sizes), counts[names[-1]])
