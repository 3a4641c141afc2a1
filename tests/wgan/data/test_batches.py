"""Samples by index, and batches of them."""

import os

import numpy as np
import pytest
import torch

from wgan.data import Batches, Dataset, RowReader, flip_where, to_byte_images, to_float_images
from wgan.data import rows as rows_module


def numbered(count):
    return RowReader.from_array(np.arange(count, dtype=np.float32)[:, None].repeat(2, 1))


@pytest.fixture
def readers(tmp_path, random):
    """The same 50 images in files, of which one has none, and in memory."""
    samples = random.integers(0, 256, (50, 3, 4, 4)).astype(np.uint8)
    counts = [20, 0, 1, 29]
    files = [tmp_path / f"{index}.rows" for index in range(len(counts))]
    for file, rows in zip(files, np.split(samples, np.cumsum(counts)[:-1]), strict=True):
        file.write_bytes(rows.tobytes() + b"a manifest")
    return RowReader.from_files(files, counts, (3, 4, 4)), RowReader.from_array(samples)


# ---------------------------------------------------------------- samples by index


def test_files_are_read_as_memory_is(readers, cpu):
    in_files, in_memory = readers
    assert in_memory.in_memory and not in_files.in_memory
    for reader in readers:
        assert (len(reader), reader.sample_shape, reader.dtype) == (50, (3, 4, 4), torch.uint8)
        assert reader.nbytes == 50 * 48
    for indices in (torch.randperm(50), np.array([19, 20, 21, 0, 49, 49]), torch.tensor([]).long()):
        assert torch.equal(in_files.read(indices), in_memory.read(indices))
    assert torch.equal(in_files.to_device(cpu), in_memory.to_device(cpu))
    dataset = Dataset(in_files)
    assert torch.equal(dataset.read(np.array([49, 7])), in_memory.read(np.array([49, 7])))
    assert not dataset.is_points and Dataset(numbered(3)).is_points


@pytest.mark.parametrize("index", [-1, 50])
def test_an_index_outside_is_an_error(readers, index):
    for reader in readers:
        with pytest.raises((IndexError, RuntimeError)):
            reader.read(torch.tensor([index]))


def test_a_file_that_becomes_shorter_is_an_error(readers, tmp_path):
    os.truncate(tmp_path / "3.rows", 29 * 48 - 1)
    with pytest.raises(OSError, match=r"3\.rows became shorter"):
        readers[0].read(torch.arange(50))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove open files")
def test_a_file_that_is_removed_can_still_be_read(readers, tmp_path):
    expected = readers[0].read(torch.arange(50))
    for path in tmp_path.glob("*.rows"):
        path.unlink()
    assert torch.equal(readers[0].read(torch.arange(50)), expected)


def test_more_files_than_the_limit_can_be_open(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(300):
        (tmp_path / f"{number}.rows").write_bytes(bytes([number % 256]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))  # as on macOS
    try:
        files = [tmp_path / f"{number}.rows" for number in range(300)]
        samples = RowReader.from_files(files, [1] * 300, (1,)).read(torch.arange(300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert samples.flatten().tolist() == [number % 256 for number in range(300)]


def test_files_are_opened_on_demand_if_the_system_allows_no_more(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    limits, set_limit = resource.getrlimit(resource.RLIMIT_NOFILE), resource.setrlimit
    files = [tmp_path / f"{number}.rows" for number in range(200)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number, 0, number, 1]))

    def refuse(*arguments):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    set_limit(resource.RLIMIT_NOFILE, (128, limits[1]))
    try:
        reader = RowReader.from_files(files, [2] * 200, (2,))
        samples = reader.read(torch.arange(400).flip(0))
    finally:
        set_limit(resource.RLIMIT_NOFILE, limits)
    assert samples.flip(0).tolist() == [[number // 2, number % 2] for number in range(400)]
    files[7].unlink()
    with pytest.raises(FileNotFoundError):
        reader.read(torch.arange(400))


def test_runs_of_rows_are_read_at_once(readers, monkeypatch):
    starts = []

    def count(buffer, file, start):
        starts.append(start)
        return read_into(buffer, file, start)

    read_into = rows_module.read_into
    monkeypatch.setattr(rows_module, "read_into", count)
    indices = torch.tensor([*range(5, 30), *range(30, 50), 3, 4, 5, 4])
    assert torch.equal(readers[0].read(indices), readers[1].read(indices))
    assert starts == [5 * 48, 0, 0, 3 * 48, 4 * 48]  # one per run and file


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="how Linux counts memory")
def test_reading_files_does_not_fill_the_memory(tmp_path, cpu):
    files = [tmp_path / "0.rows", tmp_path / "1.rows"]
    for file in files:
        file.write_bytes(bytes(2**25))

    def used():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    reader = RowReader.from_files(files, [2**13, 2**13], (1, 64, 64))
    batches = Batches(reader, 64, seed=0, device=cpu)
    before = used()
    for number in range(0, 2**14 // 64, 4):
        batches(number, 4)
    assert used() - before < 2**25


# ---------------------------------------------------------------- batches


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own(cpu):
    batches = Batches(numbered(10), 4, seed=0, device=cpu)
    seen = torch.cat([batches(number)[:, 0] for number in range(10)]).int().tolist()
    epochs = [seen[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_any_batch_can_come_first(cpu):
    straight = Batches(numbered(10), 4, seed=3, device=cpu)
    in_order = [straight(number) for number in range(8)]
    assert torch.equal(Batches(numbered(10), 4, seed=3, device=cpu)(7), in_order[7])
    assert torch.equal(straight(0), in_order[0])
    assert not torch.equal(Batches(numbered(10), 4, seed=4, device=cpu)(7), in_order[7])


def test_bytes_span_minus_one_to_one_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    floats = to_float_images(values)
    assert (floats[0], floats[255]) == (-1, 1)
    assert torch.equal(to_byte_images(floats), values)
    assert to_byte_images(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]


def test_several_batches_at_once_are_those_one_by_one_even_over_many_epochs(cpu):
    batches = Batches(numbered(10), 4, seed=0, device=cpu)
    together = batches(1, 13)  # 52 samples of 10
    assert torch.equal(together, torch.cat([batches(number) for number in range(1, 14)]))


def test_prefetched_batches_are_those_of_resident_data(cpu):
    resident = Batches(numbered(10), 4, seed=0, device=cpu)
    prefetched = Batches(numbered(10), 4, seed=0, device=cpu, resident=False)
    for number in (0, 2, 4, 6, 3, 5, 0):  # in sequence, and out of it
        assert torch.equal(prefetched(number, 2), resident(number, 2))


def test_batches_from_files_are_those_from_memory(readers, cpu):
    in_files, in_memory = (Batches(reader, 8, seed=0, device=cpu) for reader in readers)
    assert in_memory.resident and not in_files.resident
    copied = Batches(readers[0], 8, seed=0, device=cpu, resident=True)
    for number in (0, 5, 10, 3):
        assert torch.equal(in_files(number, 5), in_memory(number, 5))
        assert torch.equal(copied(number, 5), in_memory(number, 5))


def test_ranks_share_each_batch(cpu):
    whole = Batches(numbered(10), 4, seed=0, device=cpu)
    parts = [
        Batches(numbered(10), 4, seed=0, device=cpu, rank_slice=slice(first, first + 2))(0, 3)
        for first in (0, 2)
    ]
    shared = [part.view(3, 2, 2) for part in parts]
    assert torch.equal(torch.cat(shared, 1), whole(0, 3).view(3, 4, 2))


def test_flips_exchange_left_and_right():
    images = torch.arange(12).view(2, 1, 2, 3)
    flipped = flip_where(images, torch.tensor([True, False]))
    assert flipped[0].tolist() == [[[2, 1, 0], [5, 4, 3]]]
    assert torch.equal(flipped[1], images[1])


def test_a_batch_larger_than_the_data_is_refused(cpu):
    with pytest.raises(ValueError, match="a batch of 11 is larger than the data set of 10"):
        Batches(numbered(10), 11, seed=0, device=cpu)
