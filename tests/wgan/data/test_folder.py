"""Folders of images, CelebA and LSUN as data sets."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from wgan.data import ImageOptions, cache, load_dataset


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (value % 256, value // 256, 7)).save(path)


def test_classes_follow_the_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "IMAGES_PER_BUCKET", 1)
    for value, kind in enumerate(["cats", "dogs", "cows"]):
        for index in range(3):
            save(tmp_path / "p" / kind / "deeper" / f"{index}.png", value)
    (tmp_path / "p" / "cats" / "0.txt").write_text("x")
    dataset = load_dataset(str(tmp_path / "p"), tmp_path, ImageOptions((8, 8)))
    values = dataset.read(np.arange(9))[:, 0, 0, 0]
    assert dataset.labels.tolist() == [[0, 2, 1][value] for value in values]
    assert sorted(dataset.labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert capsys.readouterr().err.endswith("p: 3 classes: cats 3, cows 3, dogs 3\n")
    save(tmp_path / "p" / "stray.png", 0)  # in no subfolder
    assert load_dataset(str(tmp_path / "p"), tmp_path, ImageOptions((8, 8))).labels is None


def test_celeba_is_read_from_its_unpacked_folder(tmp_path):
    for index in range(3):
        save(tmp_path / "celeba" / "img_align_celeba" / f"{index:06d}.png", index)
    faces = load_dataset("celeba", tmp_path)
    assert faces.sample_shape == (3, 64, 64)
    assert faces.read(np.arange(3))[:, 0, 5, 5].tolist() == [0, 1, 2]


def test_lsun_is_read_from_its_database(tmp_path, capsys):
    lmdb = pytest.importorskip("lmdb")
    folder = tmp_path / "lsun" / "bedroom_train_lmdb"
    folder.mkdir(parents=True)

    def put(**images):
        with lmdb.open(str(folder)) as database, database.begin(write=True) as transaction:
            for key, colour in images.items():
                buffer = io.BytesIO()
                Image.new("RGB", (20, 30), (colour, 0, 0)).save(buffer, "PNG")
                transaction.put(key.encode(), buffer.getvalue() if colour else b"not an image")

    (folder / "data.mdb").write_bytes(b"not a database")
    with pytest.raises(ValueError, match="cannot be read"):
        load_dataset("lsun", tmp_path)
    (folder / "data.mdb").unlink()
    put(a=1, b=0, c=3)
    for _ in range(2):
        dataset = load_dataset("lsun", tmp_path, ImageOptions((8, 8)))
        assert dataset.read(np.arange(2))[:, 0, 0, 0].tolist() == [1, 3]
    assert capsys.readouterr().err.count("preparing") == 1
    put(aa=5)
    assert load_dataset("lsun", tmp_path, ImageOptions((8, 8))).read(np.arange(3))[
        :, 0, 0, 0
    ].tolist() == [1, 5, 3]


def test_lsun_names_the_missing_package(tmp_path, monkeypatch):
    (tmp_path / "lsun" / "bedroom_train_lmdb").mkdir(parents=True)
    (tmp_path / "lsun" / "bedroom_train_lmdb" / "data.mdb").touch()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match="pip install lmdb"):
        load_dataset("lsun", tmp_path)
