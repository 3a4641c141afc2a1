"""torchvision's data sets, without a network."""

import gzip
import struct
import sys

import numpy as np
import pytest
from conftest import ROOT

from wgan.data.table import load_dataset, load_test_set


def no_network(*arguments, **options):
    raise OSError("no network")


def write_idx(path, values):
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.tobytes())


def test_existing_files_are_used_without_a_network(tmp_path, random, monkeypatch):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = random.integers(0, 256, (10, 28, 28)).astype(np.uint8)
    for part, values in (("train", images), ("t10k", 255 - images)):
        write_idx(folder / f"{part}-images-idx3-ubyte", values)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(10).astype(np.uint8))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("network"))
    dataset = load_dataset("fashion-mnist", tmp_path)
    assert np.array_equal(dataset.read(np.arange(10))[:, 0], images)
    assert dataset.labels.tolist() == list(range(10))
    test = load_test_set("fashion-mnist", tmp_path)
    assert np.array_equal(test.read(np.arange(10))[:, 0], 255 - images)
    with pytest.raises(ValueError, match="glyphs has no test images: use one of mnist"):
        load_test_set("glyphs", tmp_path)
    assert load_dataset("fashion-mnist", tmp_path, "32").sample_shape == (1, 32, 32)


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
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ValueError, match="by hand") as error:
        load_dataset(name, tmp_path)
    assert file in str(error.value)
    assert str(tmp_path / folder) in str(error.value)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def raw(tmp_path, random, monkeypatch):
    """The folder of an intact Fashion-MNIST of ten images, without a network."""
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    write_idx(folder / IMAGES, random.integers(0, 256, (10, 28, 28)).astype(np.uint8))
    write_idx(folder / LABELS, np.arange(10).astype(np.uint8))
    return folder


@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize("content", ["empty", "header", "cut", "longer", "text", "other"])
def test_damaged_files_are_named_and_removing_them_helps(name, content, raw, tmp_path):
    intact = (raw / name).read_bytes()
    other = (raw / (LABELS if name == IMAGES else IMAGES)).read_bytes()
    damage = {"empty": b"", "header": intact[:7], "cut": intact[:-1], "longer": intact + b"x"}
    (raw / name).write_bytes((damage | {"text": b"not found\n" * 9, "other": other})[content])
    (raw / f"{name}.gz").write_bytes(gzip.compress(intact))  # by another program than the original
    with pytest.raises(ValueError, match=f"FashionMNIST is damaged: remove {name} from "):
        load_dataset("fashion-mnist", tmp_path)
    (raw / name).unlink()
    assert load_dataset("fashion-mnist", tmp_path).labels.tolist() == list(range(10))


def test_more_images_than_labels_are_refused(raw, tmp_path):
    write_idx(raw / LABELS, np.arange(9).astype(np.uint8))
    with pytest.raises(ValueError, match=rf"remove {IMAGES}\* and {LABELS}\* from"):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "content"])
def test_a_damaged_archive_is_named_and_not_unpacked(damage, raw, tmp_path):
    content = (raw / IMAGES).read_bytes()
    (raw / IMAGES).unlink()
    archive = raw / f"{IMAGES}.gz"
    damaged = {"cut": gzip.compress(content)[:-100], "text": b"not found"}
    archive.write_bytes((damaged | {"content": gzip.compress(content[:-1])})[damage])
    with pytest.raises(ValueError) as error:
        load_dataset("fashion-mnist", tmp_path)
    assert f"{IMAGES}.gz in {raw} is damaged or another file: remove it" in str(error.value)
    assert LABELS not in str(error.value) and not (raw / IMAGES).exists()


def test_damaged_archives_of_other_sets_are_named(raw, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"cut short")
    with pytest.raises(ValueError, match=f"{archive.name} in .* is damaged .*: remove it"):
        load_dataset("cifar10", tmp_path)
    archive = tmp_path / "celeba" / "img_align_celeba.zip"
    archive.parent.mkdir()
    archive.write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"is not unpacked: .* if that fails, it is damaged"):
        load_dataset("celeba", tmp_path)


def test_any_content_in_the_cache_of_digits_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("wgan.data.glyphs.GLYPH_COUNT", 20)
    with open(tmp_path / "glyphs.npz", "wb") as file:
        np.save(file, np.zeros(3))  # an array instead of an archive
    assert len(load_dataset("glyphs", tmp_path)) == 20
    with np.load(tmp_path / "glyphs.npz") as arrays:
        assert arrays["samples"].shape == (20, 1, 28, 28)


REAL_FASHION = ROOT / "datasets" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"


@pytest.mark.skipif(not REAL_FASHION.exists(), reason="Fashion-MNIST is not in datasets/")
def test_the_real_fashion_mnist():
    dataset = load_dataset("fashion-mnist", ROOT / "datasets")
    assert (len(dataset), dataset.sample_shape) == (60_000, (1, 28, 28))
    assert np.bincount(dataset.labels).tolist() == [6000] * 10
    images = dataset.read(np.arange(len(dataset))).numpy()
    assert images.mean() == pytest.approx(72.94, abs=0.01)
