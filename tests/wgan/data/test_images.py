"""Images of every kind, files that are not images, and arrays."""

import numpy as np
import pytest
from PIL import Image

from wgan.data.images import fit_images, parse_image_size
from wgan.data.table import load_dataset

RED, GREY = (200, 50, 0), 100


def load(folder, size, grey=False) -> np.ndarray:
    dataset = load_dataset(str(folder), image_size=size, grey=grey)
    return dataset.read(np.arange(len(dataset))).numpy()


def save_mixed_images(folder):
    """Every kind of image, all of one colour, and the bytes that each should become."""
    folder.mkdir(exist_ok=True)
    rgb = Image.new("RGB", (40, 30), RED)
    images = {
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
    for name, (image, _) in images.items():
        image.save(folder / name, quality=95)
    return {name: colour for name, (_, colour) in images.items()}


def test_every_kind_of_image_becomes_its_colour(tmp_path):
    expected = save_mixed_images(tmp_path / "p")
    samples = load(tmp_path / "p", "16")
    assert samples.shape == (len(expected), 3, 16, 16)
    for sample, name in zip(samples, sorted(expected), strict=True):
        # JPEG and WebP round colours, CMYK a little more.
        assert np.abs(sample - np.array(expected[name])[:, None, None]).max() <= 4, name


def test_grey_has_one_channel(tmp_path):
    save_mixed_images(tmp_path / "p")
    samples = load(tmp_path / "p", "16x24", grey=True)
    assert samples.shape[1:] == (1, 16, 24)


def test_floats_keep_their_own_range(tmp_path):
    ramp = np.linspace(-5, 5, 32, dtype=np.float32)[None].repeat(32, 0)
    Image.fromarray(ramp).save(tmp_path / "float.tiff")
    sample = load(tmp_path, "32")[0, 0]
    assert sample[0, 0] == 0
    assert sample[0, -1] == 255


def test_exif_rotation_is_undone(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(pixels[::-1].copy()).save(tmp_path / "rotated.png", exif=exif)
    sample = load(tmp_path, "32")[0]
    assert sample[:, :14].min() > 250
    assert sample[:, 18:].max() < 5


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    sample = load(tmp_path, "8")[0]
    assert sample[:, 4, 4].tolist() == [255, 0, 0]


def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255  # the middle third
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    sample = load(tmp_path, "16")[0]
    assert sample[:, :, 1:-1].min() > 250


def test_broken_files_are_skipped_counted_and_named(tmp_path, capsys):
    save_mixed_images(tmp_path)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "half.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:60])
    (tmp_path / ".hidden").write_text("not even looked at")
    assert len(load(tmp_path, "8")) == 13
    printed = capsys.readouterr().err
    assert "3 of 16 files" in printed
    assert "'empty.png'" in printed and "'half.png'" in printed and "'notes.txt'" in printed


def test_postscript_is_not_handed_to_another_program(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("run"))
    Image.new("RGB", (20, 20)).save(tmp_path / "a.eps")
    with pytest.raises(ValueError, match="none of the 1 files"):
        load_dataset(str(tmp_path))


def test_image_sizes():
    assert parse_image_size("64") == (64, 64)
    assert parse_image_size("64x96") == (64, 96)
    assert parse_image_size("") is None
    for bad in ("0", "64x", "x64", "-3", "64 x 64", "6e1", "1000000"):
        with pytest.raises(ValueError, match="neither a side"):
            parse_image_size(bad)


def test_arrays_are_resized_cropped_and_greyed_as_files_are(tmp_path, random):
    smooth = Image.fromarray(random.integers(0, 256, (6, 9, 3)).astype(np.uint8)).resize((96, 64))
    smooth.save(tmp_path / "a.png")
    pixels = np.array(smooth).transpose(2, 0, 1)[None]
    for size, grey in (("32", False), ("16x32", True)):
        from_file = load(tmp_path, size, grey)
        from_array = fit_images(pixels, parse_image_size(size), grey)
        assert from_array.shape == from_file.shape
        difference = np.abs(from_array.astype(int) - from_file)  # bilinear against bicubic
        assert difference.mean() < 2 and difference.max() < 20
