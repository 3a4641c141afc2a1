"""The format of `.safetensors` files: a length, a header in JSON and raw tensors, never code.

The format is documented at https://github.com/huggingface/safetensors.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {"I64": torch.int64, "F32": torch.float32, "F16": torch.float16}
LENGTH = 8  # bytes of the header's length


def to_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The content of a file with tensors of the types in `DTYPES`, on the CPU, and metadata, to
    which the SHA-256 of the tensors is added."""
    type_names = {dtype: name for name, dtype in DTYPES.items()}
    header, data = {}, b""
    # The widest values first, so that all are aligned.
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].itemsize):
        start, data = len(data), data + tensor.numpy().tobytes()
        header[name] = {"dtype": type_names[tensor.dtype], "shape": [*tensor.shape]}
        header[name]["data_offsets"] = [start, len(data)]
    metadata = metadata | {"sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps({"__metadata__": metadata} | header).encode()
    text += b" " * (-len(text) % LENGTH)
    return len(text).to_bytes(LENGTH, "little") + text + data


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file; ValueError if it is corrupt, OSError if it cannot be
    read."""
    content = path.read_bytes()
    try:
        start = LENGTH + int.from_bytes(content[:LENGTH], "little")
        header, data = json.loads(content[LENGTH:start]), content[start:]
        metadata = header.pop("__metadata__", {})
        if metadata.get("sha256") not in (None, hashlib.sha256(data).hexdigest()):
            raise ValueError("its checksum is wrong")
        tensors = {}
        for name, entry in header.items():
            values = bytearray(data[slice(*entry["data_offsets"])])
            tensor = torch.frombuffer(values, dtype=DTYPES[entry["dtype"]])
            tensors[name] = tensor.view(entry["shape"])  # an error if it has another number
    except Exception as error:  # a file from elsewhere may contain anything
        raise ValueError(f"{path} is corrupt or no .safetensors file: {error}") from error
    return tensors, metadata
