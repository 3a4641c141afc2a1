"""The format of .safetensors files: round trips, its bytes, and corrupt files."""

import json

import pytest
import torch

from wgan.safetensors import read_safetensors, to_safetensors

TENSORS = {
    "half": torch.tensor([[1.0, -2.5, 3.0]]).half(),
    "scalar": torch.tensor(7),
    "kernel": torch.arange(8.0).view(1, 2, 2, 2).contiguous(memory_format=torch.channels_last),
}


def header_of(content):
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def with_header(content, header):
    text = json.dumps(header).encode()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    return len(text).to_bytes(8, "little") + text + data


def test_tensors_and_metadata_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_safetensors(TENSORS, {"name": "x"}))
    tensors, metadata = read_safetensors(path)
    assert tensors.keys() == TENSORS.keys() and metadata["name"] == "x"
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)


def test_the_bytes_are_those_that_the_format_documents():
    content = to_safetensors({"a": torch.tensor([1.0, 2.0])}, {})
    start = 8 + int.from_bytes(content[:8], "little")
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert header_of(content)["a"] == entry and start % 8 == 0
    assert content[start:] == bytes.fromhex("0000803f00000040")


def test_the_official_package_reads_and_writes_the_same(tmp_path):
    official = pytest.importorskip("safetensors.torch", reason="needs pip install safetensors")
    loaded = official.load(to_safetensors(TENSORS, {"name": "x"}))
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    official.save_file(contiguous, tmp_path / "b.safetensors", {"name": "x"})
    read, metadata = read_safetensors(tmp_path / "b.safetensors")
    assert metadata == {"name": "x"} and len(read) == len(loaded) == 3
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor) and torch.equal(read[name], tensor)


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is corrupt or no \.safetensors file"):
        read_safetensors(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    content = to_safetensors(TENSORS, {"name": "x"})
    for length in range(0, len(content), 7):
        refused(tmp_path / "a.safetensors", content[:length])


def test_a_changed_weight_is_noticed(tmp_path):
    content = bytearray(to_safetensors(TENSORS, {}))
    content[-1] ^= 1
    refused(tmp_path / "a.safetensors", content)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "BF16"},
        {"dtype": ["F16"]},
        {"shape": [1, 4]},
        {"shape": [-3, -1]},
        {"shape": "3"},
        {"data_offsets": [0, 10**12]},
        {"data_offsets": [-6, -1]},
        {"data_offsets": [0, 5]},
        {"data_offsets": [40, 40]},
        {"data_offsets": [46, 40]},
        {"data_offsets": ["0", "6"]},
        {"data_offsets": 6},
    ],
    ids=str,
)
def test_a_header_that_does_not_describe_the_data_is_refused(change, tmp_path):
    content = to_safetensors(TENSORS, {})
    header = header_of(content)
    header["half"] |= change
    refused(tmp_path / "a.safetensors", with_header(content, header))


@pytest.mark.parametrize("header", [[], 3, None, {"a": 3}, {"__metadata__": 3}, {"a": {}}], ids=str)
def test_other_headers_are_refused(header, tmp_path):
    refused(tmp_path / "a.safetensors", with_header(to_safetensors(TENSORS, {}), header))


def test_other_files_are_refused(tmp_path):
    for content in (b"", b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04" * 20):
        refused(tmp_path / "a.safetensors", content)
