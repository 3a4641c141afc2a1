"""Data sets, and shuffled batches of them."""

from wgan.data.batches import Batches, check_batch_size
from wgan.data.classes import classes_to_generate
from wgan.data.clusters import find_centres, find_clusters
from wgan.data.dataset import Dataset
from wgan.data.image_options import ImageOptions, Size, parse_image_size
from wgan.data.pixels import flip_where, opaque, to_byte_images, to_float_images
from wgan.data.randomness import draw_rows, seeded_generator
from wgan.data.rows import RowReader
from wgan.data.standardisation import Standardisation
from wgan.data.table import (
    DATASETS,
    DatasetEntry,
    find_dataset,
    find_entry,
    load_dataset,
    load_test_set,
    sample_shape,
    unused_options,
)
