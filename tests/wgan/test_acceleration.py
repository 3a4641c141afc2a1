"""Compiling and capturing: whether it happens, and that training is the same with and without."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_same_run, run_main, small_config

from train import all_updates, main, train_step
from utils import METHODS
from wgan import acceleration, distributed
from wgan import budget as budget_module
from wgan.acceleration import (
    can_capture,
    can_compile,
    capture_step,
    compiling_pays,
    prepare_device,
    respect_cpu_quota,
    seconds_per_step,
)
from wgan.budget import Budget
from wgan.data import Batches, RowReader
from wgan.inputs import sample_inputs
from wgan.losses import Losses
from wgan.recipes import read_toml
from wgan.state import build_state, follow_schedule
from wgan_gp import choose_device

pytestmark = pytest.mark.slow

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
        follow_schedule(state, config, state.step / 3)
        step = train_step(state, config, batches)
        losses.append({name: value.item() for name, value in step.items()})
    return state, losses


def capture_steps(state, config, batches):
    capture_step(state, config, sample_inputs(state.step, config, batches), all_updates)


def time_a_step(state, config, batches):
    inputs = sample_inputs(state.step, config, batches)
    assert 0 < seconds_per_step(state, lambda: all_updates(state, config, inputs)) < 60


def leave_as_it_is(state, config, batches):
    pass


def stand_in(run, run_and_roll_back):
    """Like a CUDA graph, but for the graph: fixed inputs, a trial, outputs that are filled."""
    run_and_roll_back(lambda: [run() for _ in range(3)])
    outputs = {}
    return lambda: outputs.update(run()), outputs


def broken(run, run_and_roll_back):
    run_and_roll_back(run)
    raise RuntimeError("operation not permitted\nand more")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("prepare", "capture"),
    [(capture_steps, stand_in), (capture_steps, broken), (time_a_step, None)],
)
def test_capturing_and_timing_leave_training_as_it_is(
    prepare, capture, method, cpu, monkeypatch, capsys
):
    """Also the state of optimizers that have made no step before."""
    monkeypatch.setattr(acceleration, "capture", capture)
    plain, expected = three_steps(method, cpu, leave_as_it_is, lr_decay=True)
    state, losses = three_steps(method, cpu, prepare, lr_decay=True)
    assert bool(state.graph) == (capture is stand_in)
    refusal = "not captured (operation not permitted); training continues"
    assert (refusal in capsys.readouterr().out) == (capture is broken)
    assert losses == expected
    assert all(map(torch.equal, state.tensors(), plain.tensors()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_captured_cuda_step_trains_like_a_plain_one(method):
    device = torch.device("cuda", 0)
    plain, expected = three_steps(method, device, leave_as_it_is, lr_decay=True)
    captured, losses = three_steps(method, device, capture_steps, lr_decay=True)
    assert captured.graph
    for one, other in zip(losses, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for one, other in zip(captured.tensors(), plain.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- compiled losses


@pytest.mark.nightly
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="there is no C++ compiler")
def test_a_compiled_bfloat16_run_resumes_exactly(image_folder, tmp_path, capsys):
    options = ["--compile", "on", "--precision", "bf16", "--model", "dense"]
    for run, parts in (("whole", [4]), ("halved", [2, 4])):
        for steps in parts:
            torch.compiler.reset()
            assert run_main(image_folder, tmp_path / run, *options, "--steps", steps) == 0
    assert capsys.readouterr().out.count("compiling the losses, once ... took") == 3
    assert_same_run(tmp_path / "halved", tmp_path / "whole")


@pytest.mark.parametrize(
    ("compiler", "line"),
    [
        ("working", "compiling the losses, once ... took"),
        ("absent", "not compiled because a C++ compiler is missing; training continues"),
        ("broken", "failed (the compiler crashed); training continues"),
    ],
)
def test_compiling_and_its_failures_leave_training_as_it_is(
    compiler, line, image_folder, tmp_path, monkeypatch, capsys
):
    def compiled(self):
        def crash(*arguments):
            raise RuntimeError("the compiler crashed\nand more")

        return self._replace(critic=crash) if compiler == "broken" else self

    monkeypatch.setattr(acceleration, "can_compile", lambda device: compiler != "absent")
    monkeypatch.setattr(Losses, "compiled", compiled)
    assert run_main(image_folder, tmp_path / "r", "--compile", "on", "--steps", 4) == 0
    assert line in capsys.readouterr().out
    run_main(image_folder, tmp_path / "plain", "--compile", "off", "--steps", 4)
    assert_same_run(tmp_path / "r", tmp_path / "plain")


# ---------------------------------------------------------------- the decision of "auto"


@pytest.mark.parametrize(
    ("steps", "max_seconds", "pays"),
    [
        (601, 0, True),  # 601 s, of which a tenth is more than 60 s
        (599, 0, False),
        (math.inf, 700, True),
        (math.inf, 500, False),
        (601, 500, False),
        (599, 700, False),
        (601, 700, True),
    ],
)
def test_compiling_pays_if_the_gain_exceeds_the_cost(steps, max_seconds, pays, cpu, monkeypatch):
    """With steps of one second, bfloat16 on a CPU gains a tenth of them. No step is timed if the
    number of steps is not limited. No gain is known in float32."""
    monkeypatch.setattr(budget_module, "seconds_since_start", lambda: 0.0)
    monkeypatch.setattr(acceleration, "seconds_per_step", lambda state, run_step: run_step())
    run_step = None if steps == math.inf else lambda: 1.0
    for precision, compiler, expected in (
        ("bf16", True, pays),
        ("bf16", False, False),
        ("fp32", True, False),
    ):
        monkeypatch.setattr(acceleration, "can_compile", lambda device, answer=compiler: answer)
        state = build_state(small_config(precision=precision), SHAPE, cpu)
        assert compiling_pays(state, Budget(steps, max_seconds), run_step) == expected


def test_a_resumed_run_computes_as_it_was_decided_at_its_start(image_folder, tmp_path, monkeypatch):
    """The decision is stored, and neither made again nor undone if the budget changes."""
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


# ---------------------------------------------------------------- threads

V2, V1_QUOTA, V1_PERIOD = "cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "omp", "threads"),
    [
        ({}, None, 8),
        ({V2: "max 100000\n"}, None, 8),
        ({V2: "1200000 100000\n"}, None, 8),  # more than there are threads
        ({V2: "250000 100000\n"}, None, 3),
        ({V2: "25000 50000\n"}, None, 1),
        ({V2: "250000 100000\n"}, "8", 8),  # the user's choice
        ({V1_QUOTA: "-1\n", V1_PERIOD: "100000\n"}, None, 8),
        ({V1_QUOTA: "200000\n", V1_PERIOD: "100000\n"}, None, 2),
    ],
)
def test_a_container_uses_as_many_threads_as_it_has_cpus(
    files, omp, threads, tmp_path, monkeypatch, capsys
):
    chosen = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    respect_cpu_quota(tmp_path)
    assert chosen[-1] == threads
    output = capsys.readouterr().out
    assert output.startswith(f"{threads} threads, because") if threads < 8 else output == ""
