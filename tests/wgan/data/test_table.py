"""Names of data sets, and their shapes."""

import numpy as np
import pytest
from PIL import Image

from wgan.data import ImageOptions, load_dataset, load_test_set, sample_shape


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glyhps", r"did you mean 'glyphs'\?"),
        ("no/such/folder", "there is no such folder or file"),
        ("file.txt", "it is a file"),
        ("empty", "none of the 0 files"),
        ("texts", "none of the 1 files"),
    ],
)
def test_what_is_not_a_data_set_is_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("x")
    with pytest.raises(ValueError, match=message):
        load_dataset(name)
    with pytest.raises(ValueError, match="has no test images: use one of mnist"):
        load_test_set(name)
    if not (tmp_path / name).is_dir():
        with pytest.raises(ValueError, match=message):
            sample_shape(name)


def test_shapes_are_known_before_anything_is_loaded(tmp_path):
    folder = str(tmp_path)
    assert sample_shape(folder) == (3, 64, 64)
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    for name, options in (
        (folder, ImageOptions()),
        (folder, ImageOptions((16, 24), grey=True)),
        ("ring", ImageOptions((16, 16), grey=True)),
    ):
        loaded = load_dataset(name, tmp_path / "root", options)
        assert loaded.sample_shape == sample_shape(name, options)
        assert loaded.read(np.array([0])).shape[1:] == loaded.sample_shape
    assert sample_shape("cifar10", ImageOptions(grey=True)) == (1, 32, 32)
    assert sample_shape("mnist", ImageOptions((32, 32))) == (1, 32, 32)
