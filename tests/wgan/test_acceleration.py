"""Compiling and capturing: whether it happens, and that training is the same with and without."""

import numpy as np
import pytest
import torch
from helpers import assert_same_run, run_main, small_config

from train import all_updates, sample_inputs, train_step
from utils import METHODS
from wgan import acceleration, distributed
from wgan.acceleration import accelerate, can_compile, capture_step, should_compile
from wgan.budget import Budget
from wgan.data import Batches, RowReader
from wgan.losses import Losses
from wgan.state import build_state, set_learning_rates

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
    capture_step(state, config, sample_inputs(state, config, batches), all_updates)
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
    monkeypatch.setattr(Losses, "compiled", lambda self, critic_only: self)
    monkeypatch.setattr(acceleration, "can_compile", lambda device: True)
    for compile_ in ("on", "off"):
        options = ["--compile", compile_, "--steps", 4]
        assert run_main(image_folder, tmp_path / compile_, *options) == 0
    assert_same_run(tmp_path / "on", tmp_path / "off")


@pytest.mark.parametrize("fault", ["absent", "broken"])
def test_training_continues_without_a_compiler(fault, image_folder, tmp_path, monkeypatch, capsys):
    def broken(self, critic_only):
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


def test_a_trial_step_exchanges_no_batch_statistics(cpu, monkeypatch):
    """Several ranks: in training mode, SyncBatchNorm would wait for ranks whose trial failed."""
    config = small_config(sync_batch_norm=True, compile="on")
    state, modes, compiled = build_state(config, SHAPE, cpu), [], []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(acceleration, "can_compile", lambda device: True)
    monkeypatch.setattr(
        Losses, "compiled", lambda self, critic_only: compiled.append(critic_only) or self
    )
    inputs = (torch.zeros(1),)

    def step(state, config, inputs):
        modes.append(state.generator.training)

    accelerate(state, config, Budget(10, 0), inputs, step)
    assert (modes, compiled, state.generator.training) == ([False], [True], True)


def test_auto_compiles_long_runs_only(monkeypatch):
    monkeypatch.setattr(acceleration, "MIN_UPDATES_TO_COMPILE", 6)
    monkeypatch.setattr(acceleration, "MIN_SECONDS_TO_COMPILE", 100)
    auto = small_config(n_critic=2)
    assert should_compile(auto, Budget(3, 0)) and not should_compile(auto, Budget(2, 0))
    for seconds in (99, 100):
        limited = small_config(n_critic=2, max_seconds=seconds)
        assert should_compile(limited, Budget(10**6, seconds)) == (seconds == 100)
    assert should_compile(small_config(compile="on"), Budget(1, 0))
    assert not should_compile(small_config(compile="off"), Budget(10**6, 0))
