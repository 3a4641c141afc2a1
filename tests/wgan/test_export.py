"""Exported generators: what they compute, what their files contain, and reading them again."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from helpers import run_main, small_config, write_with_digest

from evaluate import main as evaluate
from generate import main
from wgan import generate, load_generator
from wgan.checkpoints import CHECKPOINT_FORMAT, read_checkpoint
from wgan.safetensors import read_safetensors, to_safetensors
from wgan.state import build_state

IMAGES = {"dcgan": (3, 16, 16), "residual": (3, 16, 16), "mixed": (1, 28, 28), "dense": (1, 28, 28)}
OWN = {"residual": {}, "dense": {"categories": 3}}
DIGITS = {"upsampling": "nearest", "generator_norm": "batch"}


def store(path, model, names=(), shape=None, data=None, **options):
    """A checkpoint of untrained networks, with weights and running statistics so that the samples
    vary as much as those of a trained generator."""
    options = OWN.get(model, DIGITS) | options
    config = small_config(model=model, conditional=bool(names), **options)
    state = build_state(config, shape or IMAGES[model], torch.device("cpu"), names)
    state.class_counts = (1,) * (len(names) or config.clusters)
    state.data = data or {"samples": 9}
    for name, value in state.ema.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.dim() > 1:
            torch.nn.init.kaiming_normal_(value)
    content = {"format": CHECKPOINT_FORMAT, "config": vars(config), **state.to_checkpoint()}
    write_with_digest(path, content)
    return str(path)


def export(source, out):
    assert main([source, "--export", str(out)]) == 0
    return out


@pytest.mark.parametrize("model", IMAGES)
@pytest.mark.parametrize(
    ("names", "clusters"),
    [((), 0), (("ant", "the | cät"), 0), ((), 3)],
    ids=["", "classes", "clusters"],
)
def test_safetensors_give_the_samples_of_the_checkpoint(model, names, clusters, tmp_path):
    source = store(tmp_path / "c.pt", model, names, clusters=clusters)
    path = str(export(source, tmp_path / "m.safetensors"))
    one, other = (load_generator(name, device="cpu") for name in (source, path))
    assert one.class_names == other.class_names == names
    assert len(one.class_counts) == len(other.class_counts) == len(names) + clusters
    difference = generate(one, 20).int() - generate(other, 20).int()
    assert difference.abs().max() <= 4  # kernels are float16
    assert generate(one, 20).float().std() > 5
    again = str(export(path, tmp_path / "again.safetensors"))
    assert torch.equal(generate(load_generator(again, device="cpu"), 20), generate(other, 20))


def test_vectors_keep_their_units(tmp_path):
    columns = {"mean": [1e9, 5.0], "deviation": [2.0, 0.0], "columns": ["time", "five"]}
    data = {"samples": 9, "digest": "d", "standardisation": columns}
    source = store(tmp_path / "c.pt", "dense", shape=(2,), data=data)
    generator = load_generator(export(source, tmp_path / "m.safetensors"), device="cpu")
    assert generator.standardisation.columns == ("time", "five")
    samples = generate(generator, 50)
    assert abs(samples[:, 0].mean() - 1e9) < 100 and torch.equal(
        samples[:, 1], torch.full((50,), 5)
    )
    assert "standardised" in (tmp_path / "m.md").read_text()


def test_pixels_keep_their_range(tmp_path):
    source = store(tmp_path / "c.pt", "dcgan", data={"samples": 9, "scale": (0.0, 4095.0)})
    generator = load_generator(export(source, tmp_path / "m.safetensors"), device="cpu")
    assert generator.scale == (0.0, 4095.0)
    assert "the pixel values 0 to 4095" in (tmp_path / "m.md").read_text()


def test_the_metadata_and_the_card_describe_the_generator_and_name_no_paths(tmp_path, capsys):
    folder = tmp_path / "secret" / "pets"
    source = store(tmp_path / "c.pt", "dcgan", ("ant", "cat"), dataset=str(folder))
    result = {"source": source, "step": 0, "samples": 900, "neighbours": str(tmp_path / "n.png")}
    result |= {"generated": {"recall": 0.25}, "real": {"recall": 0.75}}
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    path = export(source, tmp_path / "m.safetensors")
    assert capsys.readouterr().out == f"wrote {path} {tmp_path / 'm.md'}\n"
    metadata = read_safetensors(path)[1]
    values = {name: json.loads(metadata[name]) for name in metadata if name != "sha256"}
    assert values["sample_shape"] == [3, 16, 16] and values["class_names"] == ["ant", "cat"]
    assert values["config"]["width"] == 8 and values["noise_dim"] == 4
    card = (tmp_path / "m.md").read_text(encoding="utf-8")
    assert "pets, 9 samples of shape (3, 16, 16)" in card and "Classes: ant, cat" in card
    assert re.search(r"recall +0.25 +0.75", card)
    assert "secret" not in card + str(metadata) and str(tmp_path) not in card + str(metadata)
    result["step"] = 100  # of another checkpoint
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    export(source, tmp_path / "m.safetensors")
    assert "recall" not in (tmp_path / "m.md").read_text(encoding="utf-8")


def run_code_of(card):
    names = {}
    exec(re.search(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.S)[1], names)
    return names["samples"]


def test_the_code_in_the_card_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(store(tmp_path / "c.pt", "dcgan", ("ant", "cat")), "m.safetensors")
    assert run_code_of(tmp_path / "m.md").shape == (16, 3, 16, 16)


# ---------------------------------------------------------------- ONNX


def assert_onnx_equals_pytorch(source, path):
    """Batches of several sizes; the card's code; the metadata."""
    runtime = pytest.importorskip("onnxruntime", reason="needs pip install onnxruntime")
    pytest.importorskip("onnxscript", reason="needs pip install onnx onnxscript")
    generator = load_generator(source, device="cpu")
    session = runtime.InferenceSession(export(source, path))
    for count in (1, 2, 5):
        noise = 3 * torch.randn(count, generator.noise_dim)
        labels = torch.arange(count) % max(1, len(generator.class_counts))
        inputs = {"noise": noise.numpy(), "labels": labels.numpy()}
        inputs = {entry.name: inputs[entry.name] for entry in session.get_inputs()}
        assert len(inputs) == 1 + bool(generator.class_counts)
        (samples,) = session.run(None, inputs)
        assert np.abs(samples - generator(noise, labels).numpy()).max() < 1e-4
        assert samples.std() > 0.05
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["sample_shape"]) == list(generator.sample_shape)
    assert run_code_of(path.with_suffix(".md")).shape == (16, *generator.sample_shape)


def test_onnx_computes_what_pytorch_computes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = store(tmp_path / "c.pt", "mixed", ("ant", "cat"), categories=3)
    assert_onnx_equals_pytorch(source, tmp_path / "m.onnx")


@pytest.mark.nightly
def test_clusters_are_labels_in_onnx(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = store(tmp_path / "c.pt", "mixed", clusters=3)
    assert_onnx_equals_pytorch(source, tmp_path / "m.onnx")


@pytest.mark.nightly
@pytest.mark.parametrize("model", IMAGES)
@pytest.mark.parametrize("names", [(), ("ant", "cat")], ids=["", "classes"])
def test_every_model_computes_the_same_in_onnx(model, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_onnx_equals_pytorch(store(tmp_path / "c.pt", model, names), tmp_path / "m.onnx")


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main([store(tmp_path / "c.pt", "dcgan"), "--export", str(tmp_path / "m.onnx")]) == 2
    assert "pip install onnx onnxscript" in capsys.readouterr().err
    assert not (tmp_path / "m.md").exists()


# ---------------------------------------------------------------- reading


def test_training_starts_from_exported_weights(trained_run, image_folder, tmp_path, capsys):
    path = export(str(trained_run), tmp_path / "m.safetensors")
    options = ["--steps", 1, "--lr", "1e-12", "--init-from", path]
    assert run_main(image_folder, tmp_path / "run", *options) == 0
    assert "has no critic, which starts untrained" in capsys.readouterr().err
    after = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    before = read_checkpoint(trained_run / "checkpoint.pt")
    for name, value in before["ema"].items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(after["generator"][name], value, rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(after["critic"][k], v) for k, v in before["critic"].items())


def test_exported_generators_are_evaluated_without_a_critic(
    trained_run, image_folder, tmp_path, hub, capsys
):
    path = export(str(trained_run), tmp_path / "m.safetensors")
    options = ["--dataset", str(image_folder), "--samples", "10", "--device", "cpu"]
    assert evaluate([str(path), *options]) == 0
    output = capsys.readouterr().out
    assert "recall" in output and "critic" not in output


def test_files_without_an_exported_generator_are_refused(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    good = export(store(tmp_path / "c.pt", "dcgan"), path).read_bytes()
    weights, metadata = read_safetensors(path)
    cases = [
        (good[:-1], "is corrupt or no .safetensors file"),
        (to_safetensors(weights, {}), "was not exported by this project: 'config'"),
        (to_safetensors(weights, metadata | {"data": "3"}), "was not exported by this project"),
        (to_safetensors({}, metadata), "contains no generator of this project"),
        (to_safetensors(weights, metadata | {"config": "{}"}), "contains no generator"),
        (to_safetensors(weights, metadata | {"sample_shape": "[3, 32, 32]"}), "contains no gener"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        capsys.readouterr()
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--export", "m.pt"], "use the suffix .onnx or .safetensors"),
        (["--export", "none/m.onnx"], "there is no folder none"),
        (["--export", "NOTES.onnx"], "would replace NOTES.md, no model card"),
        (["--export", "m.onnx", "--count", "3"], "--count has no effect with --export"),
        (["--export", "m.onnx", "--from", "raw"], "--from has no effect with --export"),
        (["--export", "m.onnx", "--interpolate"], "--interpolate has no effect with --export"),
    ],
)
def test_bad_exports_are_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = store(tmp_path / "c.pt", "dcgan")
    (tmp_path / "NOTES.md").write_text("mine")
    assert main([source, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "NOTES.md").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_an_export_has_no_weights_of_the_last_step(tmp_path, capsys):
    path = export(store(tmp_path / "c.pt", "dcgan"), tmp_path / "m.safetensors")
    assert main([str(path), "--from", "raw"]) == 2
    assert "has no weights but those of the moving average" in capsys.readouterr().err
