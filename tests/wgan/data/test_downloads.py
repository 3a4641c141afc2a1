"""torchvision's data sets, without a network."""

import struct
import sys

import numpy as np
import pytest

from wgan.data import ImageOptions, load_dataset, load_test_set

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def write_idx(path, values):
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.tobytes())


@pytest.fixture
def raw(tmp_path):
    """The folder of a Fashion-MNIST with ten images. Its test images are brighter."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.arange(10 * 28 * 28).reshape(10, 28, 28)
    for part, values in (("train", images % 100), ("t10k", images % 100 + 100)):
        write_idx(folder / f"{part}-images-idx3-ubyte", values.astype(np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(10).astype(np.uint8))
    return folder


def test_existing_files_are_used_without_a_network(raw, tmp_path):
    dataset = load_dataset("fashion-mnist", tmp_path)
    expected = np.arange(10 * 28 * 28).reshape(10, 1, 28, 28) % 100
    assert np.array_equal(dataset.read(np.arange(10)), expected)
    assert dataset.labels.tolist() == list(range(10))
    test = load_test_set("fashion-mnist", tmp_path)
    assert np.array_equal(test.read(np.arange(10)), expected + 100)
    options = ImageOptions((32, 32))
    assert load_dataset("fashion-mnist", tmp_path, options).sample_shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("mnist", "train-images-idx3-ubyte.gz", "MNIST/raw"),
        ("fashion-mnist", "train-labels-idx1-ubyte.gz", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-python.tar.gz", ""),
        ("celeba", "img_align_celeba.zip", "celeba"),
        ("lsun", "bedroom_train_lmdb.zip", "lsun"),
    ],
)
def test_a_failed_download_names_the_files_and_their_folder(
    name, file, folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ValueError, match="by hand") as error:
        load_dataset(name, tmp_path)
    assert file in str(error.value)
    assert str(tmp_path / folder) in str(error.value)


@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize("content", ["empty", "header", "cut", "longer", "text", "other"])
def test_corrupt_files_are_refused_and_removing_them_helps(name, content, raw, tmp_path):
    intact = (raw / name).read_bytes()
    other = (raw / (LABELS if name == IMAGES else IMAGES)).read_bytes()
    corrupt = {"empty": b"", "header": intact[:7], "cut": intact[:-1], "longer": intact + b"x"}
    (raw / name).write_bytes((corrupt | {"text": b"not found\n" * 9, "other": other})[content])
    with pytest.raises(ValueError, match=f"Remove files that may be corrupt from {raw}"):
        load_dataset("fashion-mnist", tmp_path)
    (raw / name).unlink()
    with pytest.raises(ValueError, match=f"Download .*{name}.gz"):
        load_dataset("fashion-mnist", tmp_path)
    (raw / name).write_bytes(intact)
    assert load_dataset("fashion-mnist", tmp_path).labels.tolist() == list(range(10))


def test_a_corrupt_archive_is_refused(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=f"Remove files that may be corrupt from {tmp_path}"):
        load_dataset("cifar10", tmp_path)
