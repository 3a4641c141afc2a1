"""Data sets that are folders or zip archives of images, or LSUN's database."""

import sys
from dataclasses import replace
from pathlib import Path

from wgan.data.arrays import ARRAY_SUFFIXES
from wgan.data.cache import FolderCache, Images
from wgan.data.classes import SHOWN_NAMES, find_classes, list_names
from wgan.data.dataset import Dataset
from wgan.data.downloads import download
from wgan.data.image_options import ImageOptions
from wgan.data.labels import find_labels
from wgan.data.pixels import report_scale
from wgan.data.sources import FolderSource, LsunSource, Source, ZipSource

DEFAULT_SIZE = (64, 64)


def load_folder(folder: Path, root: Path, options: ImageOptions) -> Dataset:
    """Load all images of a folder or a zip archive, with the classes of files of labels or else of
    its subfolders, and print these.

    Files that are not images are skipped with a warning. Raises ValueError if no image is left.
    """
    source = open_source(folder, root)
    images = load_images(source, root, options)
    classes = find_labels(source, images.names, options.label_column)
    labels, class_names, line = classes or find_classes(images.names)
    if line:
        print(f"{folder}: {line}", file=sys.stderr)
    return Dataset(images.samples, labels, images.digest, class_names, scale=images.scale)


def is_images(path: Path) -> bool:
    """Whether a path names a folder or a zip archive."""
    return path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file())


def open_source(path: Path, root: Path) -> FolderSource | ZipSource:
    """What contains the images of a folder, or of a zip archive."""
    return FolderSource(path, leave_out=root / "prepared") if path.is_dir() else ZipSource(path)


def load_celeba(root: Path, options: ImageOptions) -> Dataset:
    """CelebA's 202,599 aligned faces, without their attributes."""
    folder = root / "celeba" / "img_align_celeba"
    if not folder.is_dir():
        files = ["img_align_celeba.zip (unpacked to img_align_celeba/)"]
        download("CelebA", files, root / "celeba", root=str(root), split="all")
    return load_folder(folder, root, options)


def load_lsun(root: Path, options: ImageOptions) -> Dataset:
    """LSUN's bedrooms. Reading its database needs the package lmdb; ValueError if it is missing."""
    folder = root / "lsun" / "bedroom_train_lmdb"
    if not (folder / "data.mdb").is_file():
        raise ValueError(
            "LSUN cannot be downloaded automatically. Download bedroom_train_lmdb.zip by hand, "
            f"and unpack it into {folder.parent}"
        )
    images = load_images(LsunSource(folder), root, options)
    return Dataset(images.samples, digest=images.digest, scale=images.scale)


def load_images(source: Source, root: Path, options: ImageOptions) -> Images:
    """Load all images of a source, with a warning about unreadable ones; ValueError if none is."""
    options = replace(options, size=options.size or DEFAULT_SIZE)
    images = FolderCache(source, root, options).load()
    skipped = images.unreadable
    if source.left_out:
        print(
            f"{source.path}: left out {len(source.left_out)} of its folders, which contain runs or "
            f"generated images ({list_names(source.left_out, SHOWN_NAMES)})",
            file=sys.stderr,
        )
    count = len(images.names) + len(skipped)
    if skipped:
        reasons = [f"{name!r}: {reason}" for name, reason in skipped.items()]
        print(
            f"{source.path}: skipped {len(skipped)} of {count} files that cannot be used "
            f"({list_names(reasons, SHOWN_NAMES)})",
            file=sys.stderr,
        )
    if not images.names:
        has_arrays = any(name.lower().endswith(ARRAY_SUFFIXES) for name in skipped)
        advice = ": name one .npy or .npz file; join arrays with numpy.concatenate"
        raise ValueError(
            f"none of the {count} files in {source.path} is a readable image"
            + (advice if has_arrays else "")
        )
    report_scale(images.samples, images.scale, source.path)
    return images
