"""Data sets, pictures of every kind, and batches."""

import io
import os
import struct

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from wgan.data import table as data
from wgan.data.table import (
    Batches,
    Dataset,
    bytes_to_floats,
    fit_images,
    fits,
    flip_some,
    floats_to_bytes,
    load_dataset,
    parse_image_size,
)

# ---------------------------------------------------------------- built in


def test_glyphs_are_drawn_once_and_a_damaged_cache_is_drawn_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "GLYPH_COUNT", 200)
    first = load_dataset("glyphs", tmp_path)
    monkeypatch.setattr(data, "draw_glyphs", lambda *arguments: pytest.fail("drawn again"))
    assert np.array_equal(load_dataset("glyphs", tmp_path).samples, first.samples)
    monkeypatch.undo()
    monkeypatch.setattr(data, "GLYPH_COUNT", 200)
    content = bytearray((tmp_path / "glyphs.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "glyphs.npz").write_bytes(content)
    assert np.array_equal(load_dataset("glyphs", tmp_path).samples, first.samples)
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "glyphs.npz").write_bytes(content[: len(content) // 2])
    assert np.array_equal(load_dataset("glyphs", tmp_path).samples, first.samples)
    assert os.listdir(tmp_path) == ["glyphs.npz"]


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "GLYPH_COUNT", 20)
    (tmp_path / "file").write_text("in the way")
    assert len(load_dataset("glyphs", tmp_path / "file").samples) == 20
    assert "cannot keep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "modes", "deviation"), [("ring", 8, 0.0141), ("grid", 25, 0.0177)]
)
def test_gaussians_lie_where_the_paper_has_them(name, modes, deviation):
    dataset = load_dataset(name)
    assert dataset.samples.dtype == np.float32
    assert dataset.samples.shape == (100_000, 2)
    centres = np.stack([dataset.samples[dataset.labels == m].mean(0) for m in range(modes)])
    spread = np.stack([dataset.samples[dataset.labels == m].std(0) for m in range(modes)])
    assert spread.mean() == pytest.approx(deviation, rel=0.02)
    if name == "ring":
        assert np.hypot(*centres.T) == pytest.approx(2**0.5, abs=0.002)
    else:
        assert np.unique(centres.round(2)) == pytest.approx([-1.41, -0.71, 0, 0.71, 1.41])


def test_the_swiss_roll_winds_one_and_a_half_times():
    points = load_dataset("swissroll").samples
    radius = np.hypot(*points.T) * 7.5
    # Its radius is its angle, from 1.5 pi to 4.5 pi, but for noise of deviation 0.25.
    assert radius.min() == pytest.approx(1.5 * np.pi, abs=1.2)
    assert radius.max() == pytest.approx(4.5 * np.pi, abs=1.2)
    angle = np.arctan2(points[:, 1], points[:, 0])
    off = (radius - angle + np.pi) % (2 * np.pi) - np.pi
    assert off.std() == pytest.approx(0.25, rel=0.05)


# ---------------------------------------------------------------- torchvision's sets


def write_idx(path, values):
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.tobytes())


@pytest.fixture
def idx_files(tmp_path, random):
    """A Fashion-MNIST of ten images in torchvision's own layout."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = random.integers(0, 256, (10, 28, 28)).astype(np.uint8)
    labels = np.arange(10).astype(np.uint8)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return tmp_path, images


def test_files_already_there_are_used_without_a_network(idx_files, monkeypatch):
    root, images = idx_files
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("network"))
    dataset = load_dataset("fashion-mnist", root)
    assert np.array_equal(dataset.samples[:, 0], images)
    assert dataset.labels.tolist() == list(range(10))
    assert load_dataset("fashion-mnist", root, "32").samples.shape == (10, 1, 32, 32)


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
    monkeypatch.setitem(__import__("sys").modules, "gdown", None)
    with pytest.raises(ValueError, match="by hand") as error:
        load_dataset(name, tmp_path)
    assert file in str(error.value)
    assert str(tmp_path / folder) in str(error.value)


def test_celeba_is_read_from_its_unpacked_folder(tmp_path):
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (178, 218), (10 * index, 20, 30)).save(folder / f"{index:06d}.png")
    faces = load_dataset("celeba", tmp_path).samples
    assert faces.shape == (3, 3, 64, 64)
    assert faces[:, :, 5, 5].tolist() == [[0, 20, 30], [10, 20, 30], [20, 20, 30]]


def test_lsun_is_read_from_its_data_base(tmp_path, capsys):
    lmdb = pytest.importorskip("lmdb")
    folder = tmp_path / "lsun" / "bedroom_train_lmdb"
    folder.mkdir(parents=True)

    def put(**pictures):
        with lmdb.open(str(folder)) as base, base.begin(write=True) as transaction:
            for key, colour in pictures.items():
                buffer = io.BytesIO()
                Image.new("RGB", (20, 30), (colour, 0, 0)).save(buffer, "PNG")
                transaction.put(key.encode(), buffer.getvalue() if colour else b"no picture")

    (folder / "data.mdb").write_bytes(b"no data base")
    with pytest.raises(ValueError, match="cannot be read"):
        load_dataset("lsun", tmp_path)
    (folder / "data.mdb").unlink()
    put(a=1, b=0, c=3)
    for _ in range(2):
        samples = load_dataset("lsun", tmp_path, "8").samples
        assert samples.shape == (2, 3, 8, 8)
        assert samples[:, 0, 0, 0].tolist() == [1, 3]
    assert capsys.readouterr().err.count("preparing") == 1
    put(aa=5)
    assert load_dataset("lsun", tmp_path, "8").samples[:, 0, 0, 0].tolist() == [1, 5, 3]


def test_lsun_says_which_package_is_missing(tmp_path, monkeypatch):
    (tmp_path / "lsun" / "bedroom_train_lmdb").mkdir(parents=True)
    (tmp_path / "lsun" / "bedroom_train_lmdb" / "data.mdb").touch()
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(ValueError, match="pip install lmdb"):
        load_dataset("lsun", tmp_path)


REAL_FASHION = ROOT / "datasets" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"


@pytest.mark.skipif(not REAL_FASHION.exists(), reason="Fashion-MNIST is not in datasets/")
def test_the_real_fashion_mnist():
    dataset = load_dataset("fashion-mnist", ROOT / "datasets")
    assert dataset.samples.shape == (60_000, 1, 28, 28)
    assert np.bincount(dataset.labels).tolist() == [6000] * 10
    assert dataset.samples.mean() == pytest.approx(72.94, abs=0.01)


# ---------------------------------------------------------------- names and sizes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glyhps", "did you mean glyphs?"),
        ("no/such/folder", "there is no such folder"),
        ("file.txt", "it is a file"),
        ("empty", "holds no files"),
        ("texts", "none a readable picture"),
    ],
)
def test_what_is_no_data_set_is_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("x")
    with pytest.raises(ValueError, match=message):
        load_dataset(name)


def test_image_sizes():
    assert parse_image_size("64") == (64, 64)
    assert parse_image_size("64x96") == (64, 96)
    assert parse_image_size("") is None
    for bad in ("0", "64x", "x64", "-3", "64 x 64", "6e1", "1000000"):
        with pytest.raises(ValueError, match="neither a side"):
            parse_image_size(bad)


def test_arrays_are_resized_cropped_and_greyed_as_pictures_are(tmp_path, random):
    smooth = Image.fromarray(random.integers(0, 256, (6, 9, 3)).astype(np.uint8)).resize((96, 64))
    smooth.save(tmp_path / "a.png")
    pixels = np.array(smooth).transpose(2, 0, 1)[None]
    for size, grey in (("32", False), ("16x32", True)):
        as_picture = load_dataset(str(tmp_path), image_size=size, grey=grey).samples
        as_array = fit_images(pixels, parse_image_size(size), grey)
        assert as_array.shape == as_picture.shape
        difference = np.abs(as_array.astype(int) - as_picture)  # bilinear against bicubic
        assert difference.mean() < 2 and difference.max() < 20


# ---------------------------------------------------------------- batches


def numbered(count):
    return np.arange(count, dtype=np.float32)[:, None].repeat(2, 1)


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own(cpu):
    batches = Batches(numbered(10), 4, seed=0, device=cpu)
    seen = torch.cat([batches(number)[:, 0] for number in range(10)]).int().tolist()
    epochs = [seen[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_any_batch_can_be_had_first(cpu):
    straight = Batches(numbered(10), 4, seed=3, device=cpu)
    in_order = [straight(number) for number in range(8)]
    assert torch.equal(Batches(numbered(10), 4, seed=3, device=cpu)(7), in_order[7])
    assert torch.equal(straight(0), in_order[0])
    assert not torch.equal(Batches(numbered(10), 4, seed=4, device=cpu)(7), in_order[7])


def test_bytes_span_minus_one_to_one_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    floats = bytes_to_floats(values)
    assert (floats[0], floats[255]) == (-1, 1)
    assert torch.equal(floats_to_bytes(floats), values)
    assert floats_to_bytes(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]


def test_several_batches_at_once_are_those_one_by_one_even_over_many_epochs(cpu):
    batches = Batches(numbered(10), 4, seed=0, device=cpu)
    together = batches(1, 13)  # 52 samples of 10
    assert torch.equal(together, torch.cat([batches(number) for number in range(1, 14)]))


def test_prefetched_batches_are_those_of_resident_data(cpu):
    resident = Batches(numbered(10), 4, seed=0, device=cpu)
    prefetched = Batches(numbered(10), 4, seed=0, device=cpu, resident=False)
    for number in (0, 2, 4, 6, 3, 5, 0):  # in sequence, and out of it
        assert torch.equal(prefetched(number, 2), resident(number, 2))
    assert torch.equal(prefetched.take(torch.tensor([3])), resident.take(torch.tensor([3])))


def test_the_next_batches_are_gathered_before_they_are_asked_for(cpu):
    batches = Batches(numbered(10), 4, seed=0, device=cpu, resident=False)
    batches(0, 2)
    expected = batches.coming[(2, 2)].result()
    assert batches(2, 2).data_ptr() == expected.data_ptr()


@pytest.fixture
def mapped(tmp_path, random):
    """Samples in a mapped file that must not be written to, and the same in memory."""
    samples = random.integers(0, 256, (50, 3, 4, 4)).astype(np.uint8)
    samples.tofile(tmp_path / "rows")
    return np.memmap(tmp_path / "rows", np.uint8, "r", shape=samples.shape), samples


@pytest.mark.filterwarnings("error:.*not writable")
def test_batches_of_a_mapped_file_are_those_of_memory(mapped, cpu):
    in_file, in_memory = (Batches(samples, 8, seed=0, device=cpu) for samples in mapped)
    assert in_memory.resident and not in_file.resident
    for number in (0, 5, 10, 3):
        assert torch.equal(in_file(number, 5), in_memory(number, 5))
    assert torch.equal(in_file.take(torch.tensor([3, 0])), in_memory.take(torch.tensor([3, 0])))
    copied = Batches(mapped[0], 8, seed=0, device=cpu, resident=True)
    assert torch.equal(copied(7, 2), in_memory(7, 2))
    places = np.array([49, 7])
    assert np.array_equal(Dataset(mapped[0]).take(places).numpy(), mapped[1][places])


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="how Linux counts memory")
def test_a_mapped_file_does_not_count_as_memory(tmp_path, cpu):
    with open(tmp_path / "rows", "wb") as file:
        file.write(bytes(2**26))

    def resident():
        pages = int(open("/proc/self/statm").read().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    samples = np.memmap(tmp_path / "rows", np.uint8, "r", shape=(2**14, 1, 64, 64))
    batches = Batches(samples, 64, seed=0, device=cpu)
    before = resident()
    for number in range(0, 2**14 // 64, 4):
        batches(number, 4)
    assert resident() - before < 2**25


def test_a_mapped_file_that_was_replaced_is_still_read(mapped, tmp_path, cpu):
    (tmp_path / "rows").unlink()
    batches = Batches(mapped[0], 50, seed=0, device=cpu)
    assert torch.equal(batches(0), Batches(mapped[1], 50, seed=0, device=cpu)(0))


def test_a_file_that_has_become_shorter_is_an_error(mapped, tmp_path, cpu):
    batches = Batches(mapped[0], 50, seed=0, device=cpu)
    os.truncate(tmp_path / "rows", 2000)
    with pytest.raises(OSError, match="has become shorter"):
        batches(0)


def test_samples_stay_on_the_host_where_they_would_fill_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert fits(500, torch.device("cuda"))
    assert not fits(501, torch.device("cuda"))
    assert fits(10**15, torch.device("cpu"))


def test_flips_exchange_left_and_right_where_asked():
    images = torch.arange(12).view(2, 1, 2, 3)
    flipped = flip_some(images, torch.tensor([True, False]))
    assert flipped[0].tolist() == [[[2, 1, 0], [5, 4, 3]]]
    assert torch.equal(flipped[1], images[1])


def test_a_batch_larger_than_the_data_is_refused(cpu):
    with pytest.raises(ValueError, match="a batch of 11 is larger than the data set of 10"):
        Batches(numbered(10), 11, seed=0, device=cpu)
