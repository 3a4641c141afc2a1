"""The fast forms of a computation give the numbers of the plain ones."""

import numpy as np
import pytest
import torch
from test_train import assert_same_run, run_main, small_config
from torch import nn

from train import (
    build_state,
    draw_inputs,
    generator_step,
    set_rates,
    train_step,
    update_networks,
)
from utils import METHODS, gradient_penalty
from wgan import acceleration as compute
from wgan.acceleration import Compute, StepInputs, can_compile, choose_precision, loss_of_generator
from wgan.config import resolve
from wgan.data.table import Batches
from wgan.run_folder import RunDir
from wgan_gp import MODELS, LeakyReLU

SHAPE = (3, 16, 16)
PATCHES = {"model": "dense", "pyramid": 2, "patch_features": 3}
NETWORKS = {model: {"model": model} for model in MODELS} | {"patches": PATCHES}
EVERY = [(method, model) for method in METHODS for model in MODELS] + [("wgan-gp", "patches")]


def small_state(method, model, precision="fp32"):
    options = {"method": method, "width": 8, "noise_dim": 4, "precision": precision}
    config = resolve(options | NETWORKS[model], {})
    return build_state(config, SHAPE, torch.device("cpu"))


def flags(method, model):
    options = {"method": method} | NETWORKS[model]
    return [
        part for name, value in options.items() for part in ("--" + name.replace("_", "-"), value)
    ]


def gradients(state):
    """All gradients of a critic's and a generator's loss on fixed numbers, as one vector."""
    random = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, 8, *SHAPE, generator=random).tanh()
    mix, noise = torch.rand(8, generator=random), torch.randn(8, 4, generator=random)
    with torch.no_grad():  # weights of a size at which no score is nearly zero
        for parameter in [*state.critic.parameters(), *state.generator.parameters()]:
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random))
                parameter.div_(parameter[0].numel() ** 0.5)
    networks = ((state.critic, (real, fake, mix)), (state.critic, (state.generator, noise)))
    functions = (
        lambda *arguments: state.compute.critic_loss(*arguments).loss,
        state.compute.generator_loss,
    )
    owners = (state.critic, state.generator)
    found = []
    for function, (network, arguments), owner in zip(functions, networks, owners, strict=True):
        owner.zero_grad()
        function(network, *arguments).backward(inputs=list(owner.parameters()))
        found += [parameter.grad.flatten().clone() for parameter in owner.parameters()]
    return torch.cat(found)


def close(one, other, most):
    return ((one - other).norm() / other.norm()).item() < most


@pytest.mark.parametrize(("method", "model"), EVERY)
def test_compiled_whole_equals_eager(method, model):
    torch.compiler.reset()
    expected = gradients(small_state(method, model))
    state = small_state(method, model)
    # Traced and decomposed as for code generation, which would take ten seconds each.
    state.compute.compile(backend="aot_eager_decomp_partition")
    assert close(gradients(state), expected, 1e-5)


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="there is no C++ compiler")
def test_generated_code_equals_eager():
    torch.compiler.reset()
    expected = gradients(small_state("wgan-gp", "dcgan"))
    state = small_state("wgan-gp", "dcgan")
    state.compute.compile(critic_only=True)  # with the penalty; each costs ten seconds
    assert close(gradients(state), expected, 1e-4)


@pytest.mark.parametrize(("method", "model"), EVERY)
def test_bfloat16_equals_float32_within_its_rounding(method, model):
    state = small_state(method, model, "bf16")
    found = gradients(state)
    assert found.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in state.critic.parameters())
    # Rounding is 0.4 %, and flips some activations near zero; how many depends on the hardware.
    expected = gradients(small_state(method, model))
    assert torch.cosine_similarity(found, expected, dim=0) > 0.95
    assert not torch.equal(found, expected)


@pytest.mark.parametrize(("method", "model"), EVERY)
def test_channels_last_equals_contiguous(method, model):
    state, plain = small_state(method, model), small_state(method, model)
    plain.critic.to(memory_format=torch.contiguous_format)
    plain.generator.to(memory_format=torch.contiguous_format)
    if model == "dcgan":
        weight = next(p for p in state.critic.parameters() if p.dim() == 4)
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert close(gradients(state), gradients(plain), 1e-5)


def test_losses_are_float32_whatever_networks_compute_in():
    state = small_state("wgan-div", "dcgan", "bf16")
    images = torch.randn(4, *SHAPE)
    losses = state.compute.critic_loss(state.critic, images, images, torch.rand(4))
    assert {value.dtype for value in losses} == {torch.float32}
    assert state.compute.samples(state.generator, torch.randn(4, 4)).dtype == torch.float32


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_the_masked_activation_equals_pytorchs_to_the_second_derivative(slope):
    def network(activation):
        torch.manual_seed(0)
        linear = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 1)
        return nn.Sequential(linear[0], activation, linear[1], activation, linear[2])

    x = torch.randn(32, 6)
    ours, pytorchs = network(LeakyReLU(slope)), network(nn.LeakyReLU(slope))
    torch.testing.assert_close(ours(x), pytorchs(x))
    for net in (ours, pytorchs):
        gradient_penalty(lambda points, net=net: net(points).squeeze(1), x).backward()
    for one, other in zip(ours.parameters(), pytorchs.parameters(), strict=True):
        if other.grad is not None or one.grad is not None:
            zero = torch.zeros_like(one)
            torch.testing.assert_close(
                zero if one.grad is None else one.grad, zero if other.grad is None else other.grad
            )


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="there is no C++ compiler")
def test_a_compiled_bfloat16_run_resumes_exactly(picture_folder, tmp_path, capsys):
    options = ["--compile", "on", "--precision", "bf16", "--model", "dense"]
    for run, parts in (("whole", [4]), ("halved", [2, 4])):
        for steps in parts:
            torch.compiler.reset()
            assert run_main(picture_folder, tmp_path / run, *options, "--steps", steps) == 0
    assert capsys.readouterr().out.count("compiling the losses, once ... took") == 3
    assert_same_run(tmp_path / "halved", tmp_path / "whole")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "model"), EVERY)
def test_every_run_resumes_exactly(method, model, precision, picture_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(RunDir, "finish", lambda self: None)  # curves cost more than the steps
    options = [*flags(method, model), "--precision", precision, "--flip"]
    for run, parts in (("whole", [4]), ("halved", [2, 4])):
        for steps in parts:
            assert run_main(picture_folder, tmp_path / run, *options, "--steps", steps) == 0
    assert_same_run(tmp_path / "halved", tmp_path / "whole")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize(("method", "model"), EVERY)
def test_deterministic_cuda_runs_resume_exactly(method, model, compiled, picture_folder, tmp_path):
    options = [*flags(method, model), "--compile", compiled, "--flip"]
    options += ["--device", "cuda", "--deterministic"]
    for run, parts in (("whole", [4]), ("halved", [2, 4])):
        for steps in parts:
            assert run_main(picture_folder, tmp_path / run, *options, "--steps", steps) == 0
    assert_same_run(tmp_path / "halved", tmp_path / "whole")


# ---------------------------------------------------------------- recorded steps


def three_steps(method, device, prepare, **options):
    """Three training steps on random pictures: the state after them, and their statistics."""
    config = small_config(method=method, n_critic=2, batch_size=8, flip=True, **options)
    state = build_state(config, SHAPE, device)
    samples = np.random.default_rng(0).integers(0, 256, (20, *SHAPE)).astype(np.uint8)
    batches = Batches(samples, config.batch_size, config.seed, device)
    prepare(state, config, batches)
    statistics = []
    for _ in range(3):
        set_rates(state, config, state.step / 3)
        step = train_step(state, config, batches)
        statistics.append({name: value.item() for name, value in step.items()})
    return state, statistics


def record_steps(state, config, batches):
    inputs = draw_inputs(state, config, batches)
    compute.record_step(
        state, inputs, lambda *values: update_networks(state, config, StepInputs(*values))
    )
    assert state.compute.recorded


def leave(state, config, batches):
    pass


def tensors(state):
    parts = [getattr(state, name).state_dict() for name in ("generator", "critic", "average")]
    optimizers = (state.generator_optimizer, state.critic_optimizer)
    parts += [entries for optimizer in optimizers for entries in optimizer.state.values()]
    return [value for part in parts for value in part.values()]


@pytest.mark.parametrize("method", METHODS)
def test_a_recorded_step_trains_as_a_plain_one(method, cpu, monkeypatch):
    def stand_in(run, rehearse):
        """What is like a CUDA graph but for the graph: fixed inputs, rehearsed, outputs filled."""
        rehearse(lambda: [run() for _ in range(3)])
        outputs = {}
        return lambda: outputs.update(run()), outputs

    monkeypatch.setattr(compute, "record", stand_in)
    plain, expected = three_steps(method, cpu, leave, lr_decay=True)
    recorded, found = three_steps(method, cpu, record_steps, lr_decay=True)
    assert found == expected
    assert all(map(torch.equal, tensors(recorded), tensors(plain)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_recorded_cuda_step_trains_as_a_plain_one(method):
    device = torch.device("cuda")
    plain, expected = three_steps(method, device, leave, lr_decay=True)
    recorded, found = three_steps(method, device, record_steps, lr_decay=True)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for one, other in zip(tensors(recorded), tensors(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_training_goes_on_where_a_step_cannot_be_recorded(cpu, monkeypatch, capsys):
    def broken(run, rehearse):
        rehearse(run)
        raise RuntimeError("operation not permitted\nand more")

    def try_to_record(*arguments):
        with pytest.raises(AssertionError):
            record_steps(*arguments)

    monkeypatch.setattr(compute, "record", broken)
    plain, expected = three_steps("wgan-gp", cpu, leave)
    state, found = three_steps("wgan-gp", cpu, try_to_record)
    assert "cannot be recorded (operation not permitted): training goes on" in (
        capsys.readouterr().out
    )
    assert found == expected
    assert all(map(torch.equal, tensors(state), tensors(plain)))


def test_the_critics_weights_want_no_gradient_in_the_generators_update(cpu):
    config = small_config()
    state = build_state(config, SHAPE, cpu)
    wanted = []
    loss = state.compute.generator_loss

    def spy(critic, generator, noise):
        wanted.extend(parameter.requires_grad for parameter in critic.parameters())
        return loss(critic, generator, noise)

    state.compute.generator_loss = spy
    generator_step(state, torch.randn(4, 4))
    assert wanted and not any(wanted)
    assert all(parameter.requires_grad for parameter in state.critic.parameters())


# ---------------------------------------------------------------- choosing


def test_compiling_leaves_the_state_as_it_was(picture_folder, tmp_path, monkeypatch):
    """A run whose losses ran once before the first step equals one in which they did not."""
    monkeypatch.setattr(Compute, "compile", lambda self, critic_only: None)
    monkeypatch.setattr(compute, "can_compile", lambda device: True)
    for compile_ in ("on", "off"):
        options = ["--compile", compile_, "--steps", 4]
        assert run_main(picture_folder, tmp_path / compile_, *options) == 0
    assert_same_run(tmp_path / "on", tmp_path / "off")


@pytest.mark.parametrize("fault", ["absent", "broken"])
def test_training_goes_on_without_a_compiler(fault, picture_folder, tmp_path, monkeypatch, capsys):
    def broken(self, critic_only):
        def call(*arguments):
            raise RuntimeError("the compiler fell over\nand more")

        self.critic_loss = call

    monkeypatch.setattr(compute, "can_compile", lambda device: fault != "absent")
    monkeypatch.setattr(Compute, "compile", broken)
    assert run_main(picture_folder, tmp_path / "r", "--compile", "on", "--steps", 2) == 0
    expected = {
        "absent": "not compiled, as a C++ compiler is missing: training goes on",
        "broken": "failed (the compiler fell over): training goes on",
    }
    assert expected[fault] in capsys.readouterr().out
    run_main(picture_folder, tmp_path / "plain", "--steps", 2)
    assert_same_run(tmp_path / "r", tmp_path / "plain")


def test_auto_compiles_long_runs_only(monkeypatch, picture_folder, tmp_path, capsys):
    monkeypatch.setattr(compute, "can_compile", lambda device: True)
    monkeypatch.setattr(Compute, "compile", lambda self, critic_only: None)
    for repaid, said in ((5, True), (6, True), (7, False)):  # 3 steps of 2 critic updates
        monkeypatch.setattr(compute, "COMPILE_REPAID", repaid)
        run = tmp_path / str(repaid)
        assert run_main(picture_folder, run, "--steps", 3, "--compile", "auto") == 0
        assert ("compiling" in capsys.readouterr().out) == said


def test_auto_takes_bfloat16_where_hardware_is_fast_at_it_and_data_are_images(monkeypatch):
    def auto(device, shape=SHAPE):
        return choose_precision("auto", torch.device(device), shape)

    for capability, precision in (((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert auto("cuda") == precision
    for features, precision in (("avx512f", torch.float32), ("amx_bf16", torch.bfloat16)):
        monkeypatch.setattr(
            compute.Path, "read_text", lambda path, text=f"flags : {features}": text
        )
        assert auto("cpu") == precision
    assert auto("cpu", (2,)) == torch.float32
    assert auto("mps") == torch.float32
    assert choose_precision("fp32", torch.device("cuda"), SHAPE) == torch.float32
    assert choose_precision("bf16", torch.device("mps"), (2,)) == torch.bfloat16


def test_the_generators_loss_reaches_the_generator():
    state = small_state("wgan-gp", "dense")
    loss = loss_of_generator(state.critic, state.generator, torch.randn(4, 4))
    loss.backward(inputs=list(state.generator.parameters()))
    assert all(p.grad.norm() > 0 for p in state.generator.parameters() if p.dim() > 1)
    assert all(p.grad is None for p in state.critic.parameters())
