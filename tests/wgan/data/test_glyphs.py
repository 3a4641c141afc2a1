"""The built-in digits."""

import os

import numpy as np
import pytest

from wgan.data import glyphs
from wgan.data.glyphs import draw_glyphs
from wgan.data.table import load_dataset


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
    # A digit's mean over half the images explains the other half better than other digits' do.
    images, labels = draw_glyphs(4000, 0)
    flat = images.reshape(4000, -1).astype(float)
    means = np.stack([flat[:2000][labels[:2000] == d].mean(0) for d in range(10)])
    nearest = ((flat[2000:, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == labels[2000:]).mean() > 0.7


def test_glyphs_are_drawn_once_and_a_corrupt_cache_is_drawn_again(tmp_path, monkeypatch, capsys):
    def pixels():
        dataset = load_dataset("glyphs", tmp_path)
        return dataset.read(np.arange(len(dataset))).numpy()

    monkeypatch.setattr(glyphs, "GLYPH_COUNT", 200)
    first = pixels()
    with monkeypatch.context() as patch:
        patch.setattr(glyphs, "draw_glyphs", lambda *arguments: pytest.fail("drawn again"))
        assert np.array_equal(pixels(), first)
    content = bytearray((tmp_path / "glyphs.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    for corrupt in (content, content[: len(content) // 2]):
        (tmp_path / "glyphs.npz").write_bytes(corrupt)
        assert np.array_equal(pixels(), first)
        assert "corrupt" in capsys.readouterr().err
    monkeypatch.setattr(glyphs, "GLYPH_VERSION", glyphs.GLYPH_VERSION + 1)
    monkeypatch.setattr(glyphs, "GLYPH_COUNT", 100)
    assert len(pixels()) == 100
    assert os.listdir(tmp_path) == ["glyphs.npz"]


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(glyphs, "GLYPH_COUNT", 20)
    (tmp_path / "file").write_text("in the way")
    assert len(load_dataset("glyphs", tmp_path / "file")) == 20
    assert "could not write the cache" in capsys.readouterr().err
