"""The built-in digits."""

import numpy as np

from wgan.data.glyphs import draw_glyphs


def test_glyphs_depend_on_the_seed_alone():
    (first, labels), (again, labels_again) = draw_glyphs(300, 1), draw_glyphs(300, 1)
    assert np.array_equal(first, again)
    assert np.array_equal(labels, labels_again)
    assert not np.array_equal(first, draw_glyphs(300, 2)[0])


def test_glyphs_are_white_digits_on_black_inside_their_frame():
    images, labels = draw_glyphs(2000, 0)
    assert images.shape == (2000, 1, 28, 28)
    assert np.bincount(labels, minlength=10).min() > 150
    assert (images.max((1, 2, 3)) > 150).all()
    edges = np.ones((28, 28), bool)
    edges[1:-1, 1:-1] = False
    assert (images[:, 0, edges] > 30).mean() < 0.001


def test_glyphs_of_a_digit_are_alike():
    # A digit's mean over half the pictures explains the other half better than other digits' do.
    images, labels = draw_glyphs(4000, 0)
    flat = images.reshape(4000, -1).astype(float)
    means = np.stack([flat[:2000][labels[:2000] == d].mean(0) for d in range(10)])
    nearest = ((flat[2000:, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == labels[2000:]).mean() > 0.7
