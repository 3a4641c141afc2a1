"""Data sets, and shuffled batches of them."""

from wgan.data.batches import (
    Batches,
    Dataset,
    RowReader,
    blocks_of,
    check_batch_size,
    flip_where,
    seeded_generator,
    to_byte_images,
    to_float_images,
    within,
)
from wgan.data.images import Size, parse_image_size
from wgan.data.table import DATASETS, DatasetEntry, load_dataset, load_test_set, sample_shape

__all__ = [
    "DATASETS",
    "Batches",
    "Dataset",
    "DatasetEntry",
    "RowReader",
    "Size",
    "blocks_of",
    "check_batch_size",
    "flip_where",
    "load_dataset",
    "load_test_set",
    "parse_image_size",
    "sample_shape",
    "seeded_generator",
    "to_byte_images",
    "to_float_images",
    "within",
]
