"""Images from files and folders, and samples with labels."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wgan.data import Dataset, RowReader
from wgan.evaluation.samples import (
    read_array,
    read_dataset,
    read_pair,
    sample_run,
    sample_with_labels,
)


def images(count=6, shape=(4, 5, 3)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)


def test_arrays_may_have_their_channels_first_or_last(tmp_path):
    last = images()
    np.save(tmp_path / "last.npy", last)
    np.save(tmp_path / "first.npy", last.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "x.npz", samples=last, labels=np.arange(6))
    for name in ("last.npy", "first.npy", "x.npz"):
        dataset = read_array(tmp_path / name)
        read = dataset.read(torch.arange(6)).numpy()
        assert np.array_equal(read, last.transpose(0, 3, 1, 2))
    assert dataset.labels.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"samples": images().astype(np.float32)}, "contains float32"),
        ({"samples": images(shape=(2,))}, "comparing needs images"),
        ({"samples": images(shape=(4, 5, 2))}, "with 1 or 3 channels"),
        ({"pictures": images()}, "it has pictures, but no samples"),
        ({"samples": images(), "labels": np.arange(5)}, "6 images, but labels int64 .5,."),
        ({"samples": np.array([{}])}, "cannot be read"),
    ],
    ids=["floats", "vectors", "channels", "name", "labels", "objects"],
)
def test_other_arrays_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_array(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_unreadable_files_are_named(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.np. cannot be read"):
        read_array(tmp_path / name)
    with pytest.raises(ValueError, match=r"there is no file .*no\.npy"):
        read_array(tmp_path / "no.npy")


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
    with pytest.raises(ValueError, match="has 3 images, but comparing needs at least 4"):
        read_pair(names[2], names[0], str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no image in"):
        read_pair(str(tmp_path / "empty"), names[0].replace("a.npy", "empty"), str(tmp_path))


class ByLabel(nn.Module):
    """Images whose brightness is their label."""

    noise_dim, sample_shape, num_classes = 2, (1, 4, 4), 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, noise, labels):
        assert len(noise) == len(labels)
        return (labels.float() - 1).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


def test_samples_have_the_labels_they_were_generated_for_in_the_datas_frequencies():
    frequencies = torch.tensor([10, 0, 30])
    samples = sample_with_labels(ByLabel(), 2050, 0, frequencies)
    assert torch.equal(samples.values[:, 0, 0, 0], torch.tensor([0, 128, 255])[samples.labels])
    counts = samples.labels.bincount(minlength=3) / 2050
    torch.testing.assert_close(counts, torch.tensor([0.25, 0, 0.75]), atol=0.04, rtol=0)
    fewer = sample_with_labels(ByLabel(), 30, 0, frequencies)
    assert torch.equal(fewer.labels, samples.labels[:30])
    assert not torch.equal(sample_with_labels(ByLabel(), 30, 1, frequencies).labels, fewer.labels)


def test_a_run_of_fewer_classes_than_the_data_is_refused():
    dataset = Dataset(RowReader.from_array(images()), np.array([0, 1, 2, -1, 2, 2]))
    assert set(sample_run(ByLabel(), dataset, 100, 0).labels.tolist()) == {0, 1, 2}
    more = Dataset(dataset.samples, np.arange(6))
    with pytest.raises(ValueError, match="the run has 3 classes, but the data set now has 6"):
        sample_run(ByLabel(), more, 100, 0)
