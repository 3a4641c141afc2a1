"""Which samples a grid shows."""

import torch

from wgan.sample_grid import class_rows


def test_a_grid_has_a_row_per_class_and_repeats_the_samples_of_small_classes():
    labels = torch.tensor([1, 0, 2, 1] * 10)
    labels[labels == 2] = 1
    labels[[5, 6, 7]] = 2
    order = torch.arange(39, -1, -1)
    rows = class_rows(order, labels, [2, 0]).view(2, 8)
    assert rows[0].tolist() == [7, 6, 5] * 2 + [7, 6]
    assert rows[1].tolist() == [37, 33, 29, 25, 21, 17, 13, 9]
