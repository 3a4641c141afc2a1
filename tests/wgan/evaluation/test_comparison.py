"""Images from files and folders, and samples with labels."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wgan.data import Dataset, RowReader
from wgan.evaluation.comparison import read_dataset, read_pair
from wgan.evaluation.samples import sample_run
from wgan.sampling import TrainedGenerator


def images(count=6, shape=(4, 5, 3)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)


def test_the_classes_of_a_pair_are_matched(tmp_path):
    """The labels of a folder are those of the array whose numbers are its folders' names."""
    pixels = images()
    np.savez(tmp_path / "x.npz", samples=pixels, labels=[7, 10, -1, 10, 7, 30])
    for index, name in enumerate(["30", "10", "7", "7", "10", "30"]):
        (tmp_path / "f" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[index]).save(tmp_path / "f" / name / f"{index}.png")
    pair = [str(tmp_path / "f"), str(tmp_path / "x.npz")]
    first, second = read_pair(*pair, str(tmp_path))
    assert second.class_names == ("7", "10", "30")
    assert second.labels.tolist() == [0, 1, -1, 1, 0, 2]
    assert first.labels.tolist() == [1, 1, 2, 2, 0, 0]  # files are sorted by name: 10, 30, 7
    values = second.read(torch.arange(6))
    order = [1, 4, 0, 5, 2, 3]
    assert torch.equal(first.read(torch.arange(6)), values[order])


@pytest.mark.parametrize(
    "content", [np.zeros((6, 7), np.float32), np.array([{}] * 6)], ids=["vectors", "objects"]
)
def test_arrays_without_images_are_refused(content, tmp_path):
    np.save(tmp_path / "x.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy"):
        read_dataset(str(tmp_path / "x.npy"), str(tmp_path))


def test_a_folder_is_loaded_in_the_shape_of_its_partner(tmp_path):
    (tmp_path / "grey").mkdir()
    for index, pixels in enumerate(images(4, (6, 6))):
        Image.fromarray(pixels).save(tmp_path / "grey" / f"{index}.png")
    folder = str(tmp_path / "grey")
    np.save(tmp_path / "colours.npy", images(8, (4, 4, 3)))
    assert read_dataset(folder, str(tmp_path)).sample_shape == (1, 6, 6)
    for pair in ([folder, str(tmp_path / "colours.npy")], [str(tmp_path / "colours.npy"), folder]):
        assert {part.sample_shape for part in read_pair(*pair, str(tmp_path))} == {(3, 4, 4)}


def test_pairs_of_other_shapes_or_of_too_few_images_are_refused(tmp_path):
    names = [str(tmp_path / f"{name}.npy") for name in "abc"]
    for name, array in zip(names, [images(), images(shape=(4, 4, 3)), images(3)], strict=True):
        np.save(name, array)
    with pytest.raises(ValueError, match=r"shape \(3, 4, 5\), but .*\(3, 4, 4\)"):
        read_pair(names[0], names[1], str(tmp_path))
    with pytest.raises(ValueError, match="at least 4 samples, but the data has 3"):
        read_pair(names[2], names[0], str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no image in"):
        read_pair(str(tmp_path / "empty"), names[0].replace("a.npy", "empty"), str(tmp_path))


@pytest.mark.parametrize("source", ["faded", "faded.npy"])
@pytest.mark.parametrize("reference", ["real", "real.npy"])
def test_both_sides_of_a_comparison_have_the_scale_of_the_reference(source, reference, tmp_path):
    real = np.random.default_rng(0).random((8, 6, 6)).astype(np.float32)
    real[0, 0, :2] = 0, 1
    for name, values in (("faded", 0.4 + 0.2 * real), ("real", real)):
        np.save(tmp_path / f"{name}.npy", values)
        (tmp_path / name).mkdir()
        for index, image in enumerate(values):
            Image.fromarray(image).save(tmp_path / name / f"{index}.tif")
    names = [str(tmp_path / name) for name in (source, reference)]
    first, second = read_pair(*names, str(tmp_path))
    assert first.scale == second.scale == (0, 1)
    values = [dataset.read(torch.arange(8)) for dataset in (first, second)]
    assert values[1].min() == 0 and values[1].max() == 255
    assert values[0].min() == 102 and values[0].max() == 153


def test_generated_bytes_are_compared_as_they_are_and_deep_images_not_with_bytes(tmp_path):
    names = [str(tmp_path / "bytes.npy"), str(tmp_path / "deep.npy")]
    np.save(names[0], images(8, (6, 6)))
    np.save(names[1], images(8, (6, 6)).astype(np.uint16) * 100)
    first, second = read_pair(*names, str(tmp_path))
    assert (first.read(torch.arange(8)) == torch.from_numpy(images(8, (6, 6)))[:, None]).all()
    assert first.scale is None and second.scale[0] == 0
    with pytest.raises(ValueError, match=r"deep\.npy have not: convert the latter to uint8"):
        read_pair(*names[::-1], str(tmp_path))


def test_four_channels_are_compared_with_a_folder_of_transparent_images(tmp_path):
    pixels = images(8, (6, 6, 4))
    np.save(tmp_path / "a.npy", pixels)
    (tmp_path / "p").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "p" / f"{index}.png")
    first, second = read_pair(str(tmp_path / "a.npy"), str(tmp_path / "p"), str(tmp_path))
    assert first.sample_shape == (4, 6, 6)
    assert torch.equal(first.read(torch.arange(8)), second.read(torch.arange(8)))


class ByLabel(nn.Module):
    """Images whose brightness is their label."""

    noise_dim, sample_shape = 2, (1, 4, 4)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, noise, labels):
        return (labels.float() - 1).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


def test_samples_have_the_classes_they_were_generated_for():
    dataset = Dataset(RowReader.from_array(images()), np.array([0] * 6), class_names=("a", "b"))
    generator = TrainedGenerator(ByLabel(), ("a", "b", "no class"), (1, 0, 3))
    samples = sample_run(generator, dataset, 200, 0)
    levels = samples.values[:, 0, 0, 0]
    assert set(levels.tolist()) == {0, 255}
    assert torch.equal(samples.labels, torch.where(levels == 0, 0, -1))  # the others have no class
    unlabelled = Dataset(RowReader.from_array(images()))
    assert sample_run(generator, unlabelled, 5, 0).labels is None
