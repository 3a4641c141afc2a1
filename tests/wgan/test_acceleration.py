"""Compiling and capturing: whether it happens, and that training is the same with and without."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_same_run, run_main, small_config

from train import all_updates, main, train_step
from utils import METHODS
from wgan import acceleration, distributed
from wgan import budget as budget_module
from wgan.acceleration import (
    accelerate,
    can_capture,
    can_compile,
    capture_step,
    prepare_device,
    seconds_per_step,
)
from wgan.budget import Budget
from wgan.config import read_toml
from wgan.data import Batches, RowReader
from wgan.inputs import sample_inputs
from wgan.losses import Losses
from wgan.state import build_state, set_learning_rates
from wgan_gp import choose_device

SHAPE = (3, 16, 16)

# ---------------------------------------------------------------- captured steps


def three_steps(method, device, prepare, **options):
    """Three training steps on random images: the state after them, and their losses."""
    config = small_config(method=method, n_critic=2, flip=True, **options)
    state = build_state(config, SHAPE, device)
    samples = np.random.default_rng(0).integers(0, 256, (20, *SHAPE)).astype(np.uint8)
    reader = RowReader.from_array(samples)
    batches = Batches(reader, config.batch_size, config.seed, device)
    prepare(state, config, batches)
    losses = []
    for _ in range(3):
        set_learning_rates(state, config, state.step / 3)
        step = train_step(state, config, batches)
        losses.append({name: value.item() for name, value in step.items()})
    return state, losses


def capture_steps(state, config, batches):
    capture_step(state, config, sample_inputs(state.step, config, batches), all_updates)
    assert state.graph


def leave_as_it_is(state, config, batches):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_a_captured_step_trains_like_a_plain_one(method, cpu, monkeypatch):
    def stand_in(run, run_and_roll_back):
        """Like a CUDA graph, but for the graph: fixed inputs, a trial, outputs that are filled."""
        run_and_roll_back(lambda: [run() for _ in range(3)])
        outputs = {}
        return lambda: outputs.update(run()), outputs

    monkeypatch.setattr(acceleration, "capture", stand_in)
    plain, expected = three_steps(method, cpu, leave_as_it_is, lr_decay=True)
    captured, found = three_steps(method, cpu, capture_steps, lr_decay=True)
    assert found == expected
    assert all(map(torch.equal, captured.tensors(), plain.tensors()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_captured_cuda_step_trains_like_a_plain_one(method):
    device = torch.device("cuda", 0)
    plain, expected = three_steps(method, device, leave_as_it_is, lr_decay=True)
    captured, found = three_steps(method, device, capture_steps, lr_decay=True)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for one, other in zip(captured.tensors(), plain.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_training_continues_if_a_step_cannot_be_captured(cpu, monkeypatch, capsys):
    def broken(run, run_and_roll_back):
        run_and_roll_back(run)
        raise RuntimeError("operation not permitted\nand more")

    def try_to_capture(*arguments):
        with pytest.raises(AssertionError):
            capture_steps(*arguments)

    monkeypatch.setattr(acceleration, "capture", broken)
    plain, expected = three_steps("wgan-gp", cpu, leave_as_it_is)
    state, found = three_steps("wgan-gp", cpu, try_to_capture)
    assert "not captured (operation not permitted); training continues" in capsys.readouterr().out
    assert found == expected
    assert all(map(torch.equal, state.tensors(), plain.tensors()))


# ---------------------------------------------------------------- compiled losses


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="there is no C++ compiler")
def test_a_compiled_bfloat16_run_resumes_exactly(image_folder, tmp_path, capsys):
    options = ["--compile", "on", "--precision", "bf16", "--model", "dense"]
    for run, parts in (("whole", [4]), ("halved", [2, 4])):
        for steps in parts:
            torch.compiler.reset()
            assert run_main(image_folder, tmp_path / run, *options, "--steps", steps) == 0
    assert capsys.readouterr().out.count("compiling the losses, once ... took") == 3
    assert_same_run(tmp_path / "halved", tmp_path / "whole")


def test_compiling_leaves_the_state_as_it_was(image_folder, tmp_path, monkeypatch):
    """A run whose losses were called once before the first step equals one without that call."""
    monkeypatch.setattr(Losses, "compiled", lambda self: self)
    monkeypatch.setattr(acceleration, "can_compile", lambda device: True)
    for compile_ in ("on", "off"):
        options = ["--compile", compile_, "--steps", 4]
        assert run_main(image_folder, tmp_path / compile_, *options) == 0
    assert_same_run(tmp_path / "on", tmp_path / "off")


@pytest.mark.parametrize("fault", ["absent", "broken"])
def test_training_continues_without_a_compiler(fault, image_folder, tmp_path, monkeypatch, capsys):
    def broken(self):
        def call(*arguments):
            raise RuntimeError("the compiler crashed\nand more")

        return self._replace(critic=call)

    monkeypatch.setattr(acceleration, "can_compile", lambda device: fault != "absent")
    monkeypatch.setattr(Losses, "compiled", broken)
    assert run_main(image_folder, tmp_path / "r", "--compile", "on", "--steps", 2) == 0
    expected = {
        "absent": "not compiled because a C++ compiler is missing; training continues",
        "broken": "failed (the compiler crashed); training continues",
    }
    assert expected[fault] in capsys.readouterr().out
    run_main(image_folder, tmp_path / "plain", "--steps", 2)
    assert_same_run(tmp_path / "r", tmp_path / "plain")


# ---------------------------------------------------------------- the decision of "auto"


def decide(cpu, monkeypatch, budget, step_seconds=1.0, possible=True, **options):
    """The decision of `--compile auto`, whether a step was timed, and the state."""
    timed, config = [], small_config(n_critic=1, **options)
    state = build_state(config, SHAPE, cpu)
    monkeypatch.setattr(acceleration, "COMPILE_SECONDS", 60.0)
    monkeypatch.setattr(acceleration, "COMPILE_GAIN", {("cpu", torch.float32): 0.1})
    monkeypatch.setattr(
        acceleration, "seconds_per_step", lambda *_: timed.append(1) or step_seconds
    )
    monkeypatch.setattr(acceleration, "can_compile", lambda device: possible)
    monkeypatch.setattr(acceleration, "compile_losses", lambda *_, **__: None)
    decided = accelerate(state, config, budget, (torch.zeros(1),), all_updates)
    assert decided == replace(config, compile=decided.compile)
    return decided.compile, len(timed)


@pytest.mark.parametrize(
    ("steps", "max_seconds", "expected"),
    [
        (601, 0, ("on", 1)),  # 601 s, of which 10 % are more than 60 s
        (599, 0, ("off", 1)),
        (math.inf, 700, ("on", 0)),  # no step need be timed
        (math.inf, 500, ("off", 0)),
        (601, 500, ("off", 1)),
        (599, 700, ("off", 1)),
        (601, 700, ("on", 1)),
    ],
)
def test_auto_compiles_if_the_gain_exceeds_the_cost(steps, max_seconds, expected, cpu, monkeypatch):
    monkeypatch.setattr(budget_module, "seconds_since_start", lambda: 0.0)
    budget = Budget(steps, max_seconds)
    assert decide(cpu, monkeypatch, budget, precision="fp32") == expected
    assert decide(cpu, monkeypatch, budget, precision="fp32", possible=False)[0] == "off"
    # No gain is known for this precision.
    assert decide(cpu, monkeypatch, budget, precision="bf16")[0] == "off"


def test_on_and_off_are_not_decided_again(cpu, monkeypatch):
    for given in ("on", "off"):
        long = Budget(10**9, 0)
        assert decide(cpu, monkeypatch, long, precision="fp32", compile=given) == (given, 0)


def test_timing_a_step_leaves_the_state_as_it_was(cpu):
    """Also that of optimizers without a step so far."""
    plain, expected = three_steps("wgan-gp", cpu, leave_as_it_is)

    def probe(state, config, batches):
        inputs = sample_inputs(state.step, config, batches)
        assert 0 < seconds_per_step(state, lambda: all_updates(state, config, inputs)) < 60

    timed, found = three_steps("wgan-gp", cpu, probe)
    assert found == expected
    assert all(map(torch.equal, timed.tensors(), plain.tensors()))


def test_a_resumed_run_computes_as_it_was_decided_at_its_start(image_folder, tmp_path, monkeypatch):
    """The decision is stored, and neither made again nor undone by a longer or shorter rest."""
    decisions, compiled = iter([True]), []
    monkeypatch.setattr(acceleration, "compiling_pays", lambda *_: next(decisions))
    monkeypatch.setattr(acceleration, "can_compile", lambda device: True)
    monkeypatch.setattr(Losses, "compiled", lambda self: compiled.append(1) or self)
    for steps in (2, 4):
        options = ["--compile", "auto", "--steps", steps]
        assert run_main(image_folder, tmp_path / "r", *options) == 0
        assert read_toml(tmp_path / "r" / "config.toml")["compile"] == "on"
    assert len(compiled) == 2
    # The stored file repeats the run, whatever would be decided now.
    repeat = ["--config", str(tmp_path / "r/config.toml"), "--run", str(tmp_path / "again")]
    assert main(repeat) == 0
    assert len(compiled) == 3
    assert_same_run(tmp_path / "again", tmp_path / "r")


@pytest.mark.parametrize(("ranks", "capture"), [(1, True), (2, True), (1, False)])
def test_steps_are_captured_on_cuda_with_one_rank(ranks, capture, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    config = small_config(cuda_graph=capture)
    assert can_capture(config, torch.device("cuda", 0)) == (ranks == 1 and capture)
    assert not can_capture(config, torch.device("cpu"))


def test_cudnn_tries_its_algorithms_unless_deterministic(monkeypatch):
    """With a stand-in as strict as CUDA, which needs the device's index."""

    def set_device(device):
        if device.index is None:
            raise ValueError(f"Expected a torch.device with a specified index, but got: {device}")

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    precision = torch.get_float32_matmul_precision()
    try:
        for name in ("auto", "cuda", "cuda:1"):
            for deterministic in (True, False):
                prepare_device(choose_device(name), deterministic)
                assert torch.backends.cudnn.benchmark == (not deterministic)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(precision)
