"""Pictures of every kind, and files that are none."""

import os

import numpy as np
import pytest
from PIL import Image

from wgan.data.table import load_dataset

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
