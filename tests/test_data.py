"""Data sets, pictures of every kind, and batches."""

import os
import struct

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import data
from data import (
    DATASETS,
    Batches,
    bytes_to_floats,
    draw_glyphs,
    fit_images,
    floats_to_bytes,
    load_dataset,
    parse_image_size,
)

# ---------------------------------------------------------------- built in


def test_glyphs_depend_on_the_seed_alone():
    first, again, other = draw_glyphs(300, 1), draw_glyphs(300, 1), draw_glyphs(300, 2)
    assert np.array_equal(first.samples, again.samples)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.samples, other.samples)


def test_glyphs_are_white_digits_on_black_inside_their_frame():
    glyphs = draw_glyphs(2000, 0)
    assert glyphs.samples.shape == (2000, 1, 28, 28)
    assert np.bincount(glyphs.labels, minlength=10).min() > 150
    assert (glyphs.samples.max((1, 2, 3)) > 150).all()
    edges = np.ones((28, 28), bool)
    edges[1:-1, 1:-1] = False
    assert (glyphs.samples[:, 0, edges] > 30).mean() < 0.001


def test_glyphs_of_a_digit_are_alike():
    # A digit's mean over half the pictures explains the other half better than other digits' do.
    glyphs = draw_glyphs(4000, 0)
    flat = glyphs.samples.reshape(4000, -1).astype(float)
    means = np.stack([flat[:2000][glyphs.labels[:2000] == d].mean(0) for d in range(10)])
    nearest = ((flat[2000:, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == glyphs.labels[2000:]).mean() > 0.7


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


REAL_FASHION = ROOT / "datasets" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"


@pytest.mark.skipif(not REAL_FASHION.exists(), reason="Fashion-MNIST is not in datasets/")
def test_the_real_fashion_mnist():
    dataset = load_dataset("fashion-mnist", ROOT / "datasets")
    assert dataset.samples.shape == (60_000, 1, 28, 28)
    assert np.bincount(dataset.labels).tolist() == [6000] * 10
    assert dataset.samples.mean() == pytest.approx(72.94, abs=0.01)


# ---------------------------------------------------------------- folders of pictures

RED, GREY = (200, 50, 0), 100


def save_mixed_pictures(folder):
    """Every kind of picture, all of one colour, and the bytes that each should become."""
    folder.mkdir(exist_ok=True)
    rgb = Image.new("RGB", (40, 30), RED)
    pictures = {
        "rgb.png": (rgb, RED),
        "rgb.bmp": (rgb, RED),
        "rgb.jpg": (rgb, RED),
        "rgb.webp": (rgb, RED),
        "rgb.tiff": (rgb, RED),
        "palette.gif": (rgb.quantize(4), RED),
        "cmyk.jpg": (rgb.convert("CMYK"), RED),
        "grey.png": (Image.new("L", (40, 30), GREY), (GREY,) * 3),
        "black-and-white.png": (Image.new("1", (40, 30), 1), (255,) * 3),
        "half-clear.png": (Image.new("RGBA", (40, 30), (0, 0, 0, 51)), (204,) * 3),
        "grey-clear.png": (Image.new("LA", (40, 30), (0, 0)), (255,) * 3),
        "16-bit.png": (Image.fromarray(np.full((30, 40), 100 * 256, np.uint16)), (100,) * 3),
        "16-bit.tiff": (Image.fromarray(np.full((30, 40), 100 * 256, np.uint16)), (100,) * 3),
    }
    for name, (picture, _) in pictures.items():
        picture.save(folder / name, quality=95)
    return {name: colour for name, (_, colour) in pictures.items()}


def test_every_kind_of_picture_becomes_its_colour(tmp_path):
    expected = save_mixed_pictures(tmp_path / "p")
    samples = load_dataset(str(tmp_path / "p"), image_size="16").samples
    assert samples.shape == (len(expected), 3, 16, 16)
    for sample, name in zip(samples, sorted(expected), strict=True):
        # JPEG and WebP round colours, CMYK a little more.
        assert np.abs(sample - np.array(expected[name])[:, None, None]).max() <= 4, name


def test_grey_has_one_channel(tmp_path):
    save_mixed_pictures(tmp_path / "p")
    samples = load_dataset(str(tmp_path / "p"), image_size="16x24", grey=True).samples
    assert samples.shape[1:] == (1, 16, 24)


def test_floats_keep_their_own_range(tmp_path):
    ramp = np.linspace(-5, 5, 32, dtype=np.float32)[None].repeat(32, 0)
    Image.fromarray(ramp).save(tmp_path / "float.tiff")
    sample = load_dataset(str(tmp_path), image_size="32").samples[0, 0]
    assert sample[0, 0] == 0
    assert sample[0, -1] == 255


def test_exif_rotation_is_undone(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(pixels[::-1].copy()).save(tmp_path / "rotated.png", exif=exif)
    sample = load_dataset(str(tmp_path), image_size="32").samples[0]
    assert sample[:, :14].min() > 250
    assert sample[:, 18:].max() < 5


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    sample = load_dataset(str(tmp_path), image_size="8").samples[0]
    assert sample[:, 4, 4].tolist() == [255, 0, 0]


def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255  # the middle third
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    sample = load_dataset(str(tmp_path), image_size="16").samples[0]
    assert sample[:, :, 1:-1].min() > 250


def test_broken_files_are_skipped_counted_and_named(tmp_path, capsys):
    save_mixed_pictures(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "half.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:60])
    (tmp_path / ".hidden").write_text("not even looked at")
    assert len(load_dataset(str(tmp_path), image_size="8").samples) == 13
    printed = capsys.readouterr().err
    assert "3 of 16 files" in printed
    assert "'empty.png'" in printed and "'half.png'" in printed and "'notes.txt'" in printed


def test_postscript_is_not_handed_to_another_program(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("run"))
    Image.new("RGB", (20, 20)).save(tmp_path / "a.eps")
    with pytest.raises(ValueError, match="none a readable picture"):
        load_dataset(str(tmp_path))


def test_subfolders_are_searched_and_are_the_classes(tmp_path):
    for kind in ("cats", "dogs"):
        (tmp_path / kind / "deeper").mkdir(parents=True)
        for index in range(2):
            colour = 10 if kind == "cats" else 20
            Image.new("L", (9, 9), colour).save(tmp_path / kind / "deeper" / f"{index}.png")
    dataset = load_dataset(str(tmp_path), image_size="8")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.samples[:, 0, 0, 0].tolist() == [10, 10, 20, 20]
    Image.new("L", (9, 9)).save(tmp_path / "stray.png")
    assert load_dataset(str(tmp_path), image_size="8").labels is None


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_loop_of_links_ends(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(load_dataset(str(tmp_path), image_size="8").samples) == 1


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


def test_arrays_are_resized_cropped_and_greyed_as_pictures_are():
    images = np.zeros((2, 3, 8, 24), np.uint8)
    images[:, 0, :, 8:16] = 255
    fitted = fit_images(images, (16, 16), grey=True)
    assert fitted.shape == (2, 1, 16, 16)
    assert abs(int(fitted[0, 0, 8, 8]) - 76) <= 1  # 0.299 of 255


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


def test_flips_mirror_left_and_right_about_half_of_the_time(cpu):
    images = np.zeros((64, 1, 1, 2), np.uint8)
    images[..., 0] = 255
    batches = Batches(images, 64, seed=0, device=cpu, flip=True)
    left = torch.cat([batches(number)[:, 0, 0, 0] for number in range(8)])
    assert 0.4 < (left == -1).float().mean() < 0.6
    assert torch.equal(batches(3), batches(3))


def test_a_batch_larger_than_the_data_is_refused(cpu):
    with pytest.raises(ValueError, match="a batch of 11 is larger than the data set of 10"):
        Batches(numbered(10), 11, seed=0, device=cpu)


def test_every_data_set_has_its_line_of_help():
    assert all(source.help for source in DATASETS.values())
