"""Arrays as data: images and vectors of every shape and type, and files that are none."""

import numpy as np
import pytest
import torch
from helpers import SMALL, parse
from PIL import Image

import evaluate
import generate
import train
from wgan import load_generator
from wgan.data import ImageOptions, load_dataset, sample_shape
from wgan.data import arrays as arrays_module

COUNT = 12


@pytest.fixture
def images(random):
    """Twelve colour images of 8 x 16 with alpha, `(N, H, W, C)`."""
    return random.integers(0, 256, (COUNT, 8, 16, 4)).astype(np.uint8)


def save(path, array, **labels):
    np.savez(path, images=array, **labels) if path.suffix == ".npz" else np.save(path, array)
    return str(path)


def read(name, **options):
    dataset = load_dataset(name, options=ImageOptions(**options))
    assert sample_shape(name, ImageOptions(**options)) == dataset.sample_shape
    return dataset.read(np.arange(len(dataset))).numpy()


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("converted_once", [0, 2**28])
def test_every_layout_of_images_gives_the_same(
    suffix, converted_once, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(arrays_module, "CONVERTED_ONCE", converted_once)
    monkeypatch.setattr(arrays_module, "VALUES_AT_ONCE", 5 * 8 * 16 * 3)
    colour = images[..., :3]
    expected = colour.transpose(0, 3, 1, 2)
    for index, array in enumerate((colour, expected, np.asfortranarray(colour))):
        samples = read(save(tmp_path / f"{index}{suffix}", array))
        assert np.array_equal(samples, expected)
    plain = read(save(tmp_path / f"plain{suffix}", images[..., 0]))
    assert np.array_equal(plain, images[:, None, :, :, 0])
    assert np.array_equal(read(save(tmp_path / f"one{suffix}", images[..., :1])), plain)
    name = save(tmp_path / f"grey{suffix}", colour)
    assert read(name, size=(16, 8), grey=True).shape == (COUNT, 1, 16, 8)


def test_a_large_file_is_read_by_position(images, tmp_path, monkeypatch):
    name = save(tmp_path / "a.npy", images[..., :3])
    monkeypatch.setattr(arrays_module, "CONVERTED_ONCE", 0)
    dataset = load_dataset(name)
    assert not dataset.samples.in_memory
    order = np.array([7, 0, 11, 7])
    expected = torch.from_numpy(images[order, ..., :3]).permute(0, 3, 1, 2)
    assert torch.equal(dataset.read(order), expected)
    in_memory = load_dataset(save(tmp_path / "b.npz", images[..., :3])).identity()
    assert dataset.identity() == in_memory


def test_a_folder_of_arrays_is_refused(images, tmp_path):
    (tmp_path / "p").mkdir()
    np.save(tmp_path / "p" / "a.npy", images)
    (tmp_path / "p" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"name one \.npy or \.npz file; join .*concatenate"):
        load_dataset(str(tmp_path / "p"), tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "p" / "a.png")
    assert len(load_dataset(str(tmp_path / "p"), tmp_path)) == 1  # a folder of images


@pytest.mark.parametrize(
    ("values", "limits", "expected"),
    [
        (np.array([0.0, 0.5, 1.0]), None, [0, 128, 255]),
        (np.array([-1.0, 0.0, 1.0], np.float16), None, [0, 128, 255]),
        (np.array([1000, 2000], np.uint16), None, [128, 255]),
        (np.array([-100, 100], ">i4"), None, [0, 255]),
        (np.array([False, True]), None, [0, 255]),
        (np.array([5.0, 300.0, 400.0], np.float32), (100, 300), [0, 255]),
    ],
)
def test_other_types_are_scaled_as_those_of_folders(values, limits, expected, tmp_path, capsys):
    name = save(tmp_path / "a.npy", np.resize(values, (3, 8, 8)))
    samples = read(name, range=limits)
    assert samples.dtype == np.uint8 and np.unique(samples).tolist() == expected
    assert "black is " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(3, 0.5), "lie between 0.5 and 0.5"),
        (np.zeros(3, np.int32), "lie between 0 and 0"),
        (np.array([-1.7e308, 0, 1.7e308]), "lie between -1.7e\\+308 and 1.7e\\+308"),
    ],
)
def test_values_that_cannot_be_scaled_are_refused(values, message, tmp_path):
    name = save(tmp_path / "a.npy", np.resize(values, (3, 8, 8)))
    with pytest.raises(ValueError, match=message):
        load_dataset(name)
    assert read(name, range=(-1.0, 1.0)).shape == (3, 1, 8, 8)


def test_labels_are_numbered_from_0_and_negative_ones_are_none(images, tmp_path):
    labels = np.array([7, 3, -5] * 4, np.int8)
    for stored in (labels, labels[:, None]):
        dataset = load_dataset(save(tmp_path / "a.npz", images[..., :3], labels=stored))
        assert dataset.labels.tolist() == [1, 0, -1] * 4


def test_options_without_effect_are_refused(images, tmp_path):
    colour = save(tmp_path / "a.npy", images[..., :3])
    vectors = save(tmp_path / "v.npy", np.eye(9))
    for name, options in (
        (colour, ["--alpha"]),
        (vectors, ["--range", 0, 9]),
        (vectors, ["--grey"]),
        (vectors, ["--image-size", 8]),
        ("glyphs", ["--alpha"]),
    ):
        with pytest.raises(ValueError, match="has no effect with dataset"):
            parse("--dataset", name, *options)
    assert parse("--dataset", vectors).model == "dense"


FILLED = np.linspace(0, 1, 3 * 64).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "limits", "text"),
    [
        (np.array([0, 1], np.uint8), None, "use 2 of 256 grey levels, up to 1: "),
        (np.arange(19, dtype=np.uint8), None, "use 19 of 256 grey levels, up to 18: "),
        (np.arange(19, dtype=np.uint8), (0, 18), None),
        (np.array([False, True]), None, None),
        (np.arange(19), None, None),  # black is 0, white is 18
        (np.append(FILLED, np.float32(9.97e36)), None, "use 2 of 256 grey levels, up to 255: "),
        (np.append(FILLED, np.float32(-9999)), None, "use 2 of 256 grey levels, up to 255: "),
        (np.append(FILLED, np.float32(-9999)), (0, 1), None),
        (np.array([0, 255], np.uint8), None, None),
    ],
)
def test_few_grey_levels_are_reported_as_those_of_folders(values, limits, text, tmp_path, capsys):
    samples = read(save(tmp_path / "a.npy", np.resize(values, (4, 16, 16))), range=limits)
    printed = capsys.readouterr().err
    assert text in printed if text else "grey levels" not in printed
    assert text or samples.max() == 255


def test_the_scale_is_printed_stored_and_written_beside_generated_images(tmp_path, capsys):
    values = np.random.default_rng(0).random((20, 16, 16)) * 300 - 100
    values[3, 4, 5], values[6, 7, 8] = -100, 1900
    run, out = str(tmp_path / "run"), str(tmp_path / "out.npz")
    name = save(tmp_path / "a.npy", values.round().astype(np.int16))
    options = ["--dataset", name, *SMALL, "--device", "cpu", "--run", run, "--steps", "1"]
    assert train.main(options) == 0
    assert "black is -100, white is 1900" in capsys.readouterr().err
    assert load_generator(run).scale == (-100, 1900)
    assert generate.main([run, "--out", out, "--device", "cpu"]) == 0
    with np.load(out) as written:
        assert written["range"].tolist() == [-100, 1900] and written["samples"].dtype == np.uint8
    np.save(name, values.round().astype(np.int16)[[0, 1, 2, 4, 5, 9, 10, 11]])  # other extremes
    assert evaluate.main([run, "--device", "cpu"]) == 0
    assert "black is -100, white is 1900" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_every_value_of_a_large_array_counts(kind, tmp_path, monkeypatch, random):
    monkeypatch.setattr(arrays_module, "CONVERTED_ONCE", 0)
    monkeypatch.setattr(arrays_module, "VALUES_AT_ONCE", 100)
    array = random.integers(0, 200, (400, 5, 5)).astype(kind)
    identities = [load_dataset(save(tmp_path / "a.npy", array)).identity()]
    for index in (1, 222, 399):
        array[index, 2, 3] += 0.01 if kind == np.float32 else 1  # less than a grey level
        identities.append(load_dataset(save(tmp_path / "a.npy", array)).identity())
    assert len({identity["digest"] for identity in identities}) == 4
    array = np.asfortranarray(array)
    assert load_dataset(save(tmp_path / "b.npy", array)).identity() == identities[-1]


@pytest.mark.parametrize(
    "labels",
    [
        *(np.eye(4)[[0] * COUNT], np.ones(COUNT), np.arange(7), np.zeros((COUNT, 2), int)),
        *(np.array(["ant"] * COUNT), np.array([{}] * COUNT)),
    ],
)
def test_arrays_that_are_not_used_are_named(labels, images, tmp_path, capsys):
    content = {"images": images[..., :3], "x_test": images, "y": labels}
    np.savez(tmp_path / "a.npz", **content)
    assert load_dataset(str(tmp_path / "a.npz")).labels is None
    text = f"not used: x_test, y ({labels.dtype}; classes are one integer per sample)"
    assert text in capsys.readouterr().err


# ---------------------------------------------------------------- transparency


def test_four_channels_need_alpha_and_are_white_where_they_are_transparent(images, tmp_path):
    """The fourth may be infrared, depth or black ink."""
    images[:, :4, :, 3] = 0
    images[:, 4:, :, 3] = 255
    name = save(tmp_path / "a.npy", images)
    expected = images[..., :3].copy()
    expected[:, :4] = 255
    for array in (name, save(tmp_path / "b.npz", images.transpose(0, 3, 1, 2) / 7)):
        with pytest.raises(ValueError, match="4 channels: use --alpha if the fourth is opacity"):
            load_dataset(array, options=ImageOptions(grey=True))
    samples = read(name, alpha=True)
    assert np.array_equal(samples[:, :3], expected.transpose(0, 3, 1, 2))
    assert np.array_equal(samples[:, 3], images[..., 3])


def test_hidden_colours_do_not_bleed_when_resized(tmp_path):
    array = np.zeros((1, 16, 16, 4), np.uint8)
    array[..., :8, 0], array[..., :8, 3] = 255, 255  # red on the left, hidden black on the right
    samples = read(save(tmp_path / "a.npy", array), alpha=True, size=(8, 8))[0]
    visible = samples[3] > 0
    assert (samples[0][visible] > 250).all() and (samples[1][visible] == 0).all()
    (tmp_path / "p").mkdir()
    Image.fromarray(array[0]).save(tmp_path / "p" / "a.png")
    from_file = (
        load_dataset(str(tmp_path / "p"), tmp_path, ImageOptions((8, 8), alpha=True))
        .read([0])[0]
        .numpy()
    )
    assert np.abs(from_file[:3, :, :3].astype(int) - samples[:3, :, :3]).max() <= 1
    assert (from_file[:, :, -1] == [[255], [255], [255], [0]]).all()


def test_alpha_without_transparency_is_refused(images, tmp_path, capsys):
    images[..., 3] = 255
    name = save(tmp_path / "a.npy", images)
    options = ["--alpha", "--image-size", "8", "--batch-size", "2", "--run", str(tmp_path / "r")]
    assert train.main(["--dataset", name, *options]) == 2
    assert "a.npy is transparent: remove --alpha" in capsys.readouterr().err


# ---------------------------------------------------------------- vectors


@pytest.fixture(scope="module")
def spectra():
    random = np.random.default_rng(0)
    spectra = random.standard_normal((60, 5)) * [1, 10, 1e3, 1, 1] + [0, 5, 1e6, 1.7e9, 0]
    spectra[:, 4] = 0.1
    return spectra


def test_a_run_on_vectors_resumes_and_generates_in_their_units(spectra, tmp_path, capsys):
    name, run = save(tmp_path / "v.npz", spectra, y=np.arange(60)), str(tmp_path / "run")
    options = ["--dataset", name, *SMALL, "--device", "cpu", "--run", run]
    for steps in ("1", "2"):
        assert train.main([*options, "--steps", steps]) == 0
    printed = capsys.readouterr()
    assert "60 vectors of 5 values" in printed.err
    assert "resumed at step 1" in printed.out and "checkpoint was trained on" not in printed.out
    out = str(tmp_path / "out.npy")
    assert generate.main([run, "--count", "200", "--out", out, "--device", "cpu"]) == 0
    samples = np.load(out)
    assert samples.shape == (200, 5) and samples.dtype == np.float64
    assert (samples[:, 4] == 0.1).all()
    assert abs(samples[:, 3].mean() - 1.7e9) < 10 and abs(samples[:, 2].mean() - 1e6) < 1e4
    assert np.isfinite(read(out)).all()  # it can be read again
    assert generate.main([run, "--out", str(tmp_path / "out.png"), "--device", "cpu"]) == 0
    assert evaluate.main([run, "--device", "cpu"]) == 0
    assert "wasserstein distance" in capsys.readouterr().out


@pytest.mark.nightly
def test_a_generator_of_vectors_can_be_asked_for_a_class(tmp_path, capsys):
    """Each class is a point of its own, so that a sample shows which class was generated."""
    labels = np.arange(120) % 3
    name = save(tmp_path / "v.npz", 10.0 * labels[:, None] + np.zeros(2), labels=labels + 5)
    run, out = str(tmp_path / "run"), str(tmp_path / "out.npz")
    options = ["--dataset", name, "--conditional", "--width", "32", "--batch-size", "30"]
    options += ["--lr", "3e-3", "--lr-decay", "--gp-weight", "1", "--compile", "off"]
    options += ["--device", "cpu", "--n-critic", "5", "--betas", "0", "0.9"]
    options += ["--steps", "150", "--sample-every", "150", "--run", run]
    assert train.main(options) == 0
    generated = [run, "--class", "7,5", "--per-class", "20", "--out", out, "--device", "cpu"]
    assert generate.main(generated) == 0
    with np.load(out) as written:
        means = written["samples"].reshape(2, 20, 2).mean(1)
    assert means == pytest.approx(np.array([[20, 20], [0, 0]]), abs=3)
    assert evaluate.main([run, "--device", "cpu"]) == 0
    report = capsys.readouterr().out
    assert "within class wasserstein" in report and "critic estimate" not in report


def test_convolutions_and_evaluations_are_refused(spectra, tmp_path, capsys):
    name = save(tmp_path / "v.npy", spectra)
    for options, text in (
        (["--model", "dcgan"], "use --model dense"),
        (["--eval-every", "2"], "these samples are points"),
    ):
        assert train.main(["--dataset", name, *options, "--run", str(tmp_path / "r")]) == 2
        assert text in capsys.readouterr().err


# ---------------------------------------------------------------- errors


NAN = np.ones((20, 8, 8), np.float32)
NAN[3, 0, 2] = NAN[7, 1, 1] = np.nan
IMAGES = np.zeros((4, 8, 8), np.uint8)
BAD = {
    "objects": ({"a": np.array([[{}]], object)}, "objects are not loaded"),
    "complex": ({"a": np.ones((4, 2), complex)}, "the type complex128: samples are real"),
    "text": ({"a": np.array([["a"]])}, "samples are real numbers"),
    "nan": ({"a": NAN}, r"NaN or infinite, the first at index \(3, 0, 2\)"),
    "infinite": ({"a": np.array([[1, np.inf]])}, r"the first at index \(0, 1\)"),
    "one": ({"a": np.arange(5)}, r"the shape \(5,\): samples are"),
    "five": ({"a": np.zeros((1, 2, 3, 4, 5))}, r"the shape \(1, 2, 3, 4, 5\): samples are"),
    "zero": ({"a": np.zeros((0, 28, 28))}, "no number is 0"),
    "single": ({"a": np.zeros((28, 28, 3))}, "looks like one image"),
    "channels": ({"a": np.zeros((9, 28, 28, 5))}, "1, 3 or 4 channels"),
    "names": ({"a": IMAGES, "b": IMAGES}, "contains a, b: name the array of samples 'samples'"),
    "none": ({}, "contains no arrays"),
    "positional": ({"arr_0": IMAGES, "arr_1": IMAGES}, "contains arr_0, arr_1: name the array"),
}


@pytest.mark.parametrize("kind", BAD)
def test_arrays_that_are_no_samples_are_refused(kind, tmp_path):
    content, message = BAD[kind]
    np.savez(tmp_path / "a.npz", **content)
    for options in (ImageOptions(), ImageOptions(range=(0.0, 1.0))):
        with pytest.raises(ValueError, match=message):
            load_dataset(str(tmp_path / "a.npz"), options=options)
    if list(content) == ["a"]:
        np.save(tmp_path / "a.npy", content["a"])
        with pytest.raises(ValueError, match=message):
            load_dataset(str(tmp_path / "a.npy"))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_corrupt_files_are_refused_however_short(suffix, tmp_path, random):
    path = tmp_path / f"a{suffix}"
    np.savez_compressed(path, x=NAN * 0 + 1) if suffix == ".npz" else np.save(path, IMAGES)
    content = path.read_bytes()
    for length in (0, 3, 50, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is corrupt or not an array"):
            load_dataset(str(path))


def test_an_image_size_that_the_networks_cannot_take_is_refused(tmp_path, capsys):
    name = save(tmp_path / "a.npy", np.zeros((9, 30, 30), np.uint8))
    assert train.main(["--dataset", name, "--run", str(tmp_path / "r")]) == 2
    assert "use --image-size 28x28" in capsys.readouterr().err
