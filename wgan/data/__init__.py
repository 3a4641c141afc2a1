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
from wgan.data.images import Size, opaque, parse_image_size
from wgan.data.standardisation import Standardisation
from wgan.data.table import (
    DATASETS,
    DatasetEntry,
    is_points,
    load_dataset,
    sample_shape,
    unused_options,
)

__all__ = [
    "DATASETS",
    "Batches",
    "Dataset",
    "DatasetEntry",
    "RowReader",
    "Size",
    "Standardisation",
    "blocks_of",
    "check_batch_size",
    "flip_where",
    "is_points",
    "load_dataset",
    "opaque",
    "parse_image_size",
    "sample_shape",
    "seeded_generator",
    "to_byte_images",
    "to_float_images",
    "unused_options",
    "within",
]
