"""Images of every kind, files that are not images, and arrays."""

import struct
import sys
import types

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from wgan.data import ImageOptions, load_dataset, parse_image_size
from wgan.data import images as images_module
from wgan.data.images import NO_DATA, open_image, register_formats
from wgan.data.pixels import fit_images

RED, GREY = (200, 50, 0), 100


def load(folder, side, grey=False, **options) -> np.ndarray:
    options = ImageOptions((side, side), grey, **options)
    dataset = load_dataset(str(folder), folder.parent / "root", options)
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
    samples = load(tmp_path / "p", 16, range=(0, 65535))
    assert samples.shape == (len(expected), 3, 16, 16)
    for sample, name in zip(samples, sorted(expected), strict=True):
        # JPEG and WebP round colours, CMYK a little more.
        assert np.abs(sample - np.array(expected[name])[:, None, None]).max() <= 4, name


# ---------------------------------------------------------------- more than 8 bits


RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))


def save_all(folder, *arrays, suffix="tif", **options):
    folder.mkdir(exist_ok=True)
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index}.{suffix}", **options)
    return folder


def save_tiff(path, array, sample_format, bands=1):
    """A TIFF file of any type of values, also of those that Pillow does not write."""
    bits, offset = 8 * array.itemsize, 8 + 2 + 9 * 12 + 4
    bits_tag = (3, bands, bits | bits << 16 if bands <= 2 else offset)
    rows, width = array.shape[0], array.shape[1]
    lists = struct.pack(f"<{bands}H", *[bits] * bands) if bands > 2 else b""
    tags = {256: (4, 1, width), 257: (4, 1, rows), 258: bits_tag, 259: (3, 1, 1), 262: (3, 1, 1)}
    tags |= {273: (4, 1, offset + len(lists)), 277: (3, 1, bands), 279: (4, 1, array.nbytes)}
    tags |= {339: (3, 1, sample_format)}
    entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(header + entries + bytes(4) + lists + array.tobytes())


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("top", [1023, 4095, 65535])
def test_the_brightest_integer_of_a_set_becomes_white(top, suffix, tmp_path):
    arrays = [(RAMP * value).astype(np.uint16) for value in (top, top // 2)]
    first, second = load(save_all(tmp_path / "p", *arrays, suffix=suffix), 32, True)[:, 0]
    assert first[0, 0] == second[0, 0] == 0
    assert first[0, -1] == 255
    assert second[0, -1] == 127  # scaled like the whole set
    assert len(np.unique(first)) == 32


@pytest.mark.parametrize(
    ("array", "sample_format"),
    [
        ((RAMP * 2000 - 1000).astype(np.int16), 2),
        ((RAMP * 200 - 100).astype(np.int8), 2),
        ((RAMP * 3e9 - 1.5e9).astype(np.int32), 2),
        ((RAMP * 4e9).astype(np.uint32), 1),
        ((RAMP / 7 - 3).astype(np.float32), 3),
    ],
)
def test_signed_and_large_values_keep_their_order(array, sample_format, tmp_path):
    save_tiff(tmp_path / "p" / "a.tif", array, sample_format)
    sample = load(tmp_path / "p", 32, True)[0, 0]
    assert np.abs(sample - 255 * RAMP).max() <= 2


def test_integers_start_at_zero_and_floats_at_their_smallest(tmp_path):
    for kind, darkest in ((np.uint16, 128), (np.float32, 0)):
        array = (1000 + 1000 * RAMP).astype(kind)
        sample = load(save_all(tmp_path / kind.__name__, array), 32, True)[0, 0]
        assert (sample[0, 0], sample[0, -1]) == (darkest, 255)


@pytest.mark.parametrize("no_data", ["-9999", "-3.40282346600000016e+38", "5e4"])
def test_pixels_without_a_value_are_black_and_do_not_count(no_data, tmp_path):
    array = (100 + 50 * RAMP).astype(np.float32)
    array[0, 20:24] = np.nan, np.inf, -np.inf, float(no_data)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[NO_DATA] = no_data
    sample = load(save_all(tmp_path / "p", array, tiffinfo=tags), 32, True)[0, 0]
    assert sample[0, 20:24].tolist() == [0] * 4
    assert np.abs(sample[1] - 255 * RAMP[1]).max() <= 1


def test_a_given_range_is_kept_and_has_a_cache_of_its_own(tmp_path, capsys):
    folder = save_all(tmp_path / "p", (RAMP * 100 + 50).astype(np.float32))
    for _ in range(2):
        assert load(folder, 32, True, range=(0, 300))[0, 0, 0, -1] == 128  # of 150
        assert load(folder, 32, True, range=(60, 100))[0, 0, 0, [0, -1]].tolist() == [
            0,
            255,
        ]
        assert load(folder, 32, True)[0, 0, 0, [0, -1]].tolist() == [0, 255]
    assert "p: black is 60, white is 100" in capsys.readouterr().err


def test_a_range_applies_to_images_of_8_bits_unless_there_are_deep_ones(tmp_path):
    maps = (RAMP * 18).round().astype(np.uint8)
    folder = save_all(tmp_path / "p", maps)
    expected = (maps * (255 / 18)).round().astype(np.uint8)
    assert np.array_equal(load(folder, 32, True, range=(0, 18))[0, 0], expected)
    assert np.array_equal(load(folder, 32, range=(0, 18))[0], [expected] * 3)
    Image.fromarray(maps.astype(np.uint16)).save(folder / "1.tif")
    bytes_, deep = load(folder, 32, True, range=(0, 18))[:, 0]
    assert np.array_equal(bytes_, maps) and np.array_equal(deep, expected)
    (folder / "1.tif").unlink()
    assert np.array_equal(load(folder, 32, True, range=(0, 18))[0, 0], expected)


def test_opacity_is_not_scaled(tmp_path):
    image = Image.new("RGBA", (8, 8), (0, 9, 18, 9))
    (tmp_path / "p").mkdir()
    image.save(tmp_path / "p" / "a.png")
    sample = load(tmp_path / "p", 8, alpha=True, range=(0, 18))[0]
    assert sample[:, 4, 4].tolist() == [0, 128, 255, 9]


def test_few_grey_levels_are_reported(tmp_path, capsys):
    outlier = np.zeros((32, 32), np.uint16)
    outlier[0, 0], outlier[0, 1] = 60_000, 300
    dark = (RAMP * 15).astype(np.uint8)  # as 12 bits in 16 become where Pillow drops the last 8
    two_tone, photo = (RAMP > 0.5).astype(np.uint8) * 255, (np.arange(1024).reshape(32, 32) % 90)
    expected = {"outlier": (outlier, "white is 60000"), "dark": (dark, "up to 15: if that")}
    expected |= {"two_tone": (two_tone, None), "photo": (photo.astype(np.uint8), None)}
    for name, (array, text) in expected.items():
        load(save_all(tmp_path / name, array), 32)
        printed = capsys.readouterr().err
        assert ("of 256 grey levels" in printed) == (text is not None), name
        assert (text or "") in printed


# ---------------------------------------------------------------- what Pillow does not read


def test_heic_is_read_once_pillow_heif_is_installed(tmp_path, monkeypatch, capsys):
    """A stand-in for the package, which reads every HEIC file as a red square."""

    class Opener(Image.Image):
        format = "HEIF"

        def __init__(self, file, name):
            super().__init__()
            red = Image.new("RGB", (9, 9), "red")
            self._mode, self._size, self.im = red.mode, red.size, red.im

    package = types.ModuleType("pillow_heif")
    package.register_heif_opener = lambda: Image.register_open(
        "HEIF", Opener, lambda start: start[4:12] == b"ftypheic"
    )
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    folder = save_all(tmp_path / "p", np.full((9, 9, 3), 255, np.uint8))
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    register_formats.cache_clear()
    assert len(load(folder, 8)) == 1
    assert "'phone.heic': HEIC: install pillow-heif" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    register_formats.cache_clear()
    try:
        assert load(folder, 8)[:, :, 4, 4].tolist() == [[255, 255, 255], [255, 0, 0]]
    finally:
        register_formats.cache_clear()


# ---------------------------------------------------------------- metadata


def test_broken_metadata_does_not_drop_an_image(tmp_path):
    image, folder = Image.new("RGB", (20, 20), RED), tmp_path / "p"
    folder.mkdir()
    exif = {"words": b"garbage", "cut": b"Exif\0\0II*\0", "far": b"Exif\0\0II*\0\xff\xff\xff\x7f"}
    for name, content in exif.items():
        for suffix in ("png", "webp", "jpg"):
            image.save(folder / f"{name}.{suffix}", exif=content)
    samples = load(folder, 8)
    assert len(samples) == len(list(folder.iterdir())) == 9
    assert np.abs(samples - np.array(RED)[:, None, None]).max() <= 4


def test_pixels_are_not_made_up_where_a_png_file_is_broken(tmp_path, random):
    pixels = random.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    folder = save_all(tmp_path / "p", pixels, suffix="png")
    content = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(content[:-100])
    middle = content.index(b"IDAT") + 50
    (folder / "flip.png").write_bytes(content[:middle] + b"\0\1" + content[middle + 2 :])
    assert len(load(folder, 8)) == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation, suffix, tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :, 0] = pixels[:, :16, 1] = 255  # red above, green on the left
    stored = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud}
    stored |= {5: lambda a: a.swapaxes(0, 1), 6: np.rot90, 8: lambda a: np.rot90(a, -1)}
    stored[7] = lambda a: np.rot90(a, 2).swapaxes(0, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored[orientation](pixels).copy())
    (tmp_path / "p").mkdir()
    image.save(tmp_path / "p" / f"a.{suffix}", exif=exif, quality=95)
    difference = load(tmp_path / "p", 32)[0].transpose(1, 2, 0).astype(int) - pixels
    assert np.abs(difference).mean() < 12  # of JPEG and WebP at edges


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_a_stack_or_an_animation_gives_its_first_page_and_a_message(suffix, tmp_path, capsys):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    (tmp_path / "p").mkdir()
    for name in "ab":
        file = tmp_path / "p" / f"{name}.{suffix}"
        frames[0].save(file, save_all=True, append_images=frames[1:], **options)
    frames[0].save(tmp_path / "p" / f"single.{suffix}")
    samples = load(tmp_path / "p", 8)
    assert samples[:2, :, 4, 4].tolist() == [[255, 0, 0]] * 2
    text = "only the first page or frame of 2 files is used, of 6 in all"
    assert text in capsys.readouterr().err


def test_threads_open_one_large_image_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "LARGE", 100)
    folder = save_all(tmp_path / "p", *[np.zeros((20, 20), np.uint8)] * 6, suffix="png")
    Image.new("L", (9, 9)).save(folder / "small.png")
    with open_image(folder / "0.png"):
        assert images_module.ONE_LARGE_IMAGE.locked()
        with open_image(folder / "small.png") as small:
            assert small.size == (9, 9)
    assert len(load(folder, 8)) == 7


def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255  # the middle third
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    sample = load(tmp_path, 16)[0]
    assert sample[:, :, 1:-1].min() > 250


def test_broken_files_are_skipped_counted_and_named(tmp_path, capsys):
    save_mixed_images(tmp_path)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "half.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:60])
    (tmp_path / ".hidden").write_text("not even looked at")
    assert len(load(tmp_path, 8)) == 13
    printed = capsys.readouterr().err
    assert "3 of 16 files" in printed
    assert "'empty.png'" in printed and "'half.png'" in printed and "'notes.txt'" in printed


@pytest.mark.parametrize("kind", ["uint16", "int16", "float32", "pgm"])
def test_a_truncated_deep_image_is_skipped_and_does_not_count_for_the_scale(kind, tmp_path, capsys):
    values = (RAMP * 4000).astype("uint16" if kind == "pgm" else kind)
    folder = save_all(tmp_path / "p", values // 2)
    if kind == "pgm":
        Image.fromarray(values).save(folder / "cut.pgm")
    else:
        save_tiff(folder / "cut.tif", values, {"uint16": 1, "int16": 2, "float32": 3}[kind])
    cut = next(folder.glob("cut.*"))
    cut.write_bytes(cut.read_bytes()[:-900])
    assert len(load(folder, 8)) == 1
    printed = capsys.readouterr().err
    assert "skipped 1 of 2 files" in printed and "white is 2000" in printed


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
    for options in (ImageOptions((32, 32)), ImageOptions((16, 32), grey=True)):
        from_file = load_dataset(str(tmp_path), tmp_path / "root", options).read([0]).numpy()
        from_array = fit_images(pixels, options)
        assert from_array.shape == from_file.shape
        assert np.abs(from_array.astype(int) - from_file).max() <= 2  # of rounding


def test_zero_is_white_in_tiff_files_that_say_so(tmp_path):
    for name, photometric in (("black", 1), ("white", 0)):
        path = tmp_path / name / "a.tif"
        save_tiff(path, (RAMP * 4095).astype(np.uint16), 1)
        content = path.read_bytes()
        entry = struct.pack("<HHII", 262, 3, 1, 1)
        path.write_bytes(content.replace(entry, struct.pack("<HHII", 262, 3, 1, photometric)))
    black, white = (load(tmp_path / name, 32, True)[0] for name in ("black", "white"))
    assert np.abs(black[0] - 255 * RAMP).max() <= 1
    assert np.array_equal(white, 255 - black)


def test_alpha_is_a_fourth_channel_of_every_kind_of_file(tmp_path):
    """Transparent pixels are white, whatever colour the file has there."""
    clear = Image.new("RGBA", (8, 8), (*RED, 255))
    clear.paste((1, 2, 3, 0), (0, 0, 4, 8))
    (tmp_path / "p").mkdir()
    clear.save(tmp_path / "p" / "a.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([1, 2, 3, *RED])
    palette.paste(0, (0, 0, 4, 8))
    palette.save(tmp_path / "p" / "b.png", transparency=0)
    Image.new("RGB", (8, 8), RED).save(tmp_path / "p" / "c.png")
    samples = load(tmp_path / "p", 8, alpha=True)
    solid = [*RED, 255]
    assert samples[:, :, 4, 6].tolist() == [solid] * 3
    assert samples[:, :, 4, 1].tolist() == [[255, 255, 255, 0]] * 2 + [solid]
