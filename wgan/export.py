"""A trained generator as a file for other programs, and its model card."""

import json
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from utils import METHODS
from wgan.checkpoints import EXPORTED, config_of, read_any_checkpoint
from wgan.config import FIELDS, last_name
from wgan.errors import one_line
from wgan.evaluation.report import format_report
from wgan.files import check_output, write_whole
from wgan.safetensors import to_safetensors
from wgan.sampling import TrainedGenerator, generator_of

MARK = "<!-- written by generate.py --export -->\n"
EVALUATION = "evaluation.json"  # in a run's folder, from evaluate.py --json


def export(source: str, out: str) -> tuple[Path, Path]:
    """Write the averaged generator of a run or checkpoint, and its model card; their paths.

    The suffix is `.onnx`, or `.safetensors` with matrices and kernels in float16. ValueError for
    another one, or if a file that is no model card would be replaced.
    """
    path = check_output("--export", out)
    card, folder = path.with_suffix(".md"), Path(source)
    if path.suffix not in (".onnx", ".safetensors"):
        raise ValueError(f"--export {out}: use the suffix .onnx or .safetensors")
    if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"--export {out} would replace {card}, no model card: use another name")
    checkpoint = read_any_checkpoint(source)
    generator, config = generator_of(checkpoint, source, "ema", "cpu"), config_of(checkpoint)
    # What is handed on contains no paths of this machine.
    public = {"dataset": last_name(config.dataset), "data_root": "datasets"}
    checkpoint["config"] = vars(replace(config, **public, run="", init_from=""))
    content = {name: checkpoint.get(name) for name in EXPORTED} | {"noise_dim": config.noise_dim}
    metadata = {name: json.dumps(value, default=str) for name, value in content.items()}
    if path.suffix == ".onnx":
        data = to_onnx(generator, metadata)
    else:
        weights = generator.network.state_dict().items()
        data = to_safetensors({n: w.half() if w.dim() > 1 else w for n, w in weights}, metadata)
    write_whole(path, data)
    metrics = read_metrics(folder if folder.is_dir() else folder.parent, checkpoint, path.name)
    write_whole(card, (model_card(checkpoint, generator, path) + metrics).encode())
    return path, card


def to_onnx(generator: TrainedGenerator, metadata: dict[str, str]) -> bytes:
    """The network in float32, for batches of any size: `noise`, and with classes or clusters
    `labels`, to `samples`."""
    try:
        import onnxscript  # noqa: F401  PyTorch's exporter needs it
    except ImportError as error:
        raise ValueError("--export to .onnx needs: pip install onnx onnxscript") from error
    inputs = {"noise": torch.zeros(2, generator.noise_dim)}
    if generator.class_counts:
        inputs["labels"] = torch.zeros(2, dtype=torch.int64)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(action="ignore"):  # about names of axes
        program = torch.onnx.export(
            generator.network,
            tuple(inputs.values()),
            input_names=[*inputs],
            output_names=["samples"],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


def model_card(checkpoint: dict, generator: TrainedGenerator, path: Path) -> str:
    """What an exported generator is, and how to use it."""
    config, shape, names = config_of(checkpoint), generator.sample_shape, generator.class_names
    values = "in [-1, 1]: the pixel values {:g} to {:g}".format(*generator.scale or (0, 255))
    if len(shape) == 1:
        values = "standardised: see `data` in the metadata" if generator.standardisation else ""
    noise_dim, counts = config.noise_dim, generator.class_counts
    draw = """
import json
counts = numpy.array(json.loads(session.get_modelmeta().custom_metadata_map["class_counts"]))
labels = numpy.random.choice(len(counts), 16, p=counts / counts.sum())"""
    draw, labels = (draw, ', "labels": labels') if counts else ("", "")
    code = f"""\
import numpy, onnxruntime
noise = numpy.random.standard_normal((16, {noise_dim})).astype("float32")
session = onnxruntime.InferenceSession("{path.name}"){draw}
(samples,) = session.run(None, {{"noise": noise{labels}}})"""
    if path.suffix == ".safetensors":
        code = f"""\
from wgan import generate, load_generator  # in this project's folder
samples = generate(load_generator("{path.name}"), count=16)"""
    classes = one_line(", ".join(names)) or (f"none, {len(counts)} clusters" if counts else "none")
    options = {n: v for n, v in config.applicable().items() if v != FIELDS[n].default}
    options.pop("run")
    return f"""{MARK}
# {path.stem}: the generator of a Wasserstein GAN

- Data: {config.dataset}, {checkpoint["data"].get("samples")} samples of shape {shape}
- Classes: {classes}
- Method: `{config.method}`. {METHODS[config.method].__doc__.splitlines()[0]}
- Network: `{config.model}`, moving average after {checkpoint.get("step")} steps
- Input: `noise` `(N, {noise_dim})` from N(0, 1){", `labels` `(N,)` int64" if counts else ""}
- Output: `samples` `(N, {", ".join(map(str, shape))})` float32 {values}
- Options: {", ".join(f"{n} = {v}" for n, v in options.items())}

```python
{code}
```
"""


def read_metrics(folder: Path, checkpoint: dict, name: str) -> str:
    """The metrics of the checkpoint's step in `EVALUATION`; empty without any."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        result = json.loads((folder / EVALUATION).read_text(encoding="utf-8")) | {"source": name}
        if result["step"] == checkpoint["step"]:
            result = {k: v for k, v in result.items() if k not in ("neighbours", "columns")}
            return f"\n```\n{format_report(result)}\n```\n"
    return ""
