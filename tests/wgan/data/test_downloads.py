"""torchvision's data sets, without a network."""

import struct
import sys

import numpy as np
import pytest
from conftest import ROOT

from wgan.data.table import load_dataset


def write_idx(path, values):
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.tobytes())


def test_existing_files_are_used_without_a_network(tmp_path, random, monkeypatch):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = random.integers(0, 256, (10, 28, 28)).astype(np.uint8)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(10).astype(np.uint8))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("network"))
    dataset = load_dataset("fashion-mnist", tmp_path)
    assert np.array_equal(dataset.read(np.arange(10))[:, 0], images)
    assert dataset.labels.tolist() == list(range(10))
    assert load_dataset("fashion-mnist", tmp_path, "32").sample_shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("mnist", "train-images-idx3-ubyte.gz", "MNIST/raw"),
        ("fashion-mnist", "t10k-labels-idx1-ubyte.gz", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-python.tar.gz", ""),
        ("celeba", "img_align_celeba.zip", "celeba"),
        ("lsun", "bedroom_train_lmdb.zip", "lsun"),
    ],
)
def test_a_failed_download_names_the_files_and_their_folder(
    name, file, folder, tmp_path, monkeypatch
):
    def no_network(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ValueError, match="by hand") as error:
        load_dataset(name, tmp_path)
    assert file in str(error.value)
    assert str(tmp_path / folder) in str(error.value)


def test_unreadable_files_are_named(tmp_path, monkeypatch):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (folder / f"{part}-{kind}-ubyte").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"FashionMNIST in .* cannot be read .*: remove them"):
        load_dataset("fashion-mnist", tmp_path)


REAL_FASHION = ROOT / "datasets" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"


@pytest.mark.skipif(not REAL_FASHION.exists(), reason="Fashion-MNIST is not in datasets/")
def test_the_real_fashion_mnist():
    dataset = load_dataset("fashion-mnist", ROOT / "datasets")
    assert (len(dataset), dataset.sample_shape) == (60_000, (1, 28, 28))
    assert np.bincount(dataset.labels).tolist() == [6000] * 10
    images = dataset.read(np.arange(len(dataset))).numpy()
    assert images.mean() == pytest.approx(72.94, abs=0.01)
