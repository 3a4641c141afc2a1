"""The fast forms of the losses give the numbers of the plain ones."""

import pytest
import torch
from helpers import critic_batch, generator_batch, small_config
from torch import nn

from utils import METHODS, gradient_penalty, interpolate
from wgan import losses
from wgan.acceleration import can_compile
from wgan.augmentation import Augmentation
from wgan.losses import build_losses, choose_precision
from wgan.state import build_state
from wgan_gp import MODELS, LeakyReLU, halve

SHAPE = (3, 16, 16)
NETWORKS = {model: {"model": model} for model in MODELS}
NETWORKS |= {"patches": {"model": "dense", "patch_features": 3, "texture_features": 2}}
NETWORKS |= {"conditional": {"model": "dcgan"}}
NETWORKS |= {"spectral": {"model": "dcgan", "critic_norm": "spectral"}}
NETWORKS |= {"orthonormal": {"model": "dense", "critic_norm": "orthonormal"}}
NETWORKS |= {"augmented": {"model": "dcgan", "augment": "color,translation,cutout"}}
CLASSES = {"conditional": ("a", "b", "c")}
EVERY = [(method, model) for method in METHODS for model in MODELS]
EVERY += [
    ("wgan-gp", "spectral"),
    ("wgan-gp", "orthonormal"),
    ("wgan-gp", "patches"),
    ("wgan-gp", "conditional"),
    ("wgan-gp", "augmented"),
]
# Tracing takes seconds, so every method and every network is traced once, not every pair.
TRACED = [("wgan-div", "dense")]
OTHERS = [(method, "dcgan") for method in METHODS]
OTHERS += [("wgan-gp", network) for network in NETWORKS if network != "dcgan"]
TRACED += [pytest.param(*pair, marks=pytest.mark.nightly) for pair in OTHERS]


def small_state(method, model, precision="fp32"):
    config = small_config(method=method, precision=precision, **NETWORKS[model])
    return build_state(config, SHAPE, torch.device("cpu"), CLASSES.get(model, ()))


def gradients(state):
    """All gradients of the critic's and the generator's loss on fixed numbers, as one vector."""
    rng = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, 8, *SHAPE, generator=rng).tanh()
    mix, noise = torch.rand(8, generator=rng), torch.randn(8, 4, generator=rng)
    labels = torch.arange(8) % 3
    losses = state.losses
    with torch.no_grad():  # weights of a size at which no score is nearly zero
        for parameter in [*state.critic.parameters(), *state.generator.parameters()]:
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=rng))
                parameter.div_(parameter[0].numel() ** 0.5)
    uniforms = torch.rand(8, 3, 7, generator=rng)
    of_critic = critic_batch(real, fake, mix, labels, uniforms[:, :2])
    of_generator = generator_batch(noise, labels, uniforms[:, 2], real, uniforms[:, 0])
    values = []
    for network, loss in (
        (state.critic, lambda: losses.critic(state.critic, of_critic).loss),
        (state.generator, lambda: losses.generator(state.generator, state.critic, of_generator)),
    ):
        network.zero_grad()
        loss().backward(inputs=list(network.parameters()))
        values += [parameter.grad.flatten().clone() for parameter in network.parameters()]
    return torch.cat(values)


def close(one, other, tolerance):
    return ((one - other).norm() / other.norm()).item() < tolerance


@pytest.mark.parametrize(("method", "model"), TRACED)
def test_compiled_whole_equals_eager(method, model):
    torch.compiler.reset()
    expected = gradients(small_state(method, model))
    state = small_state(method, model)
    # Traced and decomposed as for code generation, which would take ten seconds each.
    state.losses = state.losses.compiled(backend="aot_eager_decomp_partition")
    assert close(gradients(state), expected, 1e-5)


@pytest.mark.nightly
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="there is no C++ compiler")
def test_generated_code_equals_eager():
    torch.compiler.reset()
    expected = gradients(small_state("wgan-gp", "dcgan"))
    state = small_state("wgan-gp", "dcgan")
    compiled = state.losses.compiled().critic  # the penalty's; each takes ten seconds
    state.losses = state.losses._replace(critic=compiled)
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


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("method", ["wgan-gp", "r3gan"])
def test_the_losses_of_a_coarse_generator_are_those_of_halves(method, compiled):
    config = small_config(method=method, model="mixed", coarse=0.5, precision="fp32")
    state = build_state(config, SHAPE, torch.device("cpu"))
    if compiled:
        state.losses = state.losses.compiled(backend="aot_eager_decomp_partition")
    real, mix, noise = torch.randn(4, *SHAPE), torch.rand(4), torch.randn(4, 4)
    state.generator.coarse, labels = True, torch.zeros(4, dtype=torch.int64)
    fake = state.losses.sample(state.generator, noise, labels)
    assert fake.shape == (4, 3, 8, 8)
    loss = state.losses.critic(state.critic, critic_batch(real, fake, mix))
    expected = state.method.critic_loss(state.critic.coarse, halve(real), fake, mix)
    torch.testing.assert_close(loss, expected)
    batch = generator_batch(noise, real=real if state.method.relativistic else None)
    expected = state.method.generator_loss(state.critic.coarse, halve(real), fake)
    torch.testing.assert_close(
        state.losses.generator(state.generator, state.critic, batch), expected
    )


def test_losses_are_float32_whatever_the_networks_compute_in():
    state = small_state("wgan-div", "dcgan", "bf16")
    images = torch.randn(4, *SHAPE)
    losses = state.losses.critic(state.critic, critic_batch(images, images, torch.rand(4)))
    assert {value.dtype for value in losses} == {torch.float32}
    batch = generator_batch(torch.randn(4, 4))
    samples = state.losses.sample(state.generator, batch.noise, batch.labels)
    assert samples.dtype == torch.float32


@pytest.mark.parametrize("model", ["dcgan", "residual", "conditional", "dense"])
def test_the_estimate_does_not_depend_on_the_level_of_the_scores(model):
    """To which a critic may drift, because only differences of scores are trained."""
    state = small_state("wgan-gp", model, "bf16")
    batch = critic_batch(*torch.randn(2, 8, *SHAPE), torch.rand(8), torch.arange(8) % 3)
    estimates = []
    for level in (0.0, 1000.0):
        nn.init.constant_(state.critic.score.bias, level)
        estimates.append(state.losses.critic(state.critic, batch).wasserstein.item())
    assert estimates[0] != 0
    assert estimates[1] == pytest.approx(estimates[0], abs=1e-3)


@pytest.mark.parametrize(("size", "parts"), [(8, 3), (4, 3), (7, 4), (2, 4), (12, 8)])
def test_a_batch_without_equal_parts_is_refused(size, parts):
    samples = torch.zeros(size, 2)
    for batch in (critic_batch(samples, samples, samples[:, 0]), generator_batch(samples)):
        with pytest.raises(ValueError, match=f"of {size} samples cannot be cut into {parts} equal"):
            list(losses.split(batch, parts))
        assert [len(part.labels) for part in losses.split(batch, size)] == [1] * size


def test_the_critic_is_penalised_between_the_augmented_samples():
    rng = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 8, *SHAPE, generator=rng)
    mix, uniforms = torch.rand(8, generator=rng), torch.rand(8, 2, 7, generator=rng)
    method = METHODS["wgan-gp"](gp_weight=10.0)
    augment = Augmentation("color,translation,cutout")
    seen = []

    def critic(samples, labels=None):
        seen.append(samples)
        return samples.square().flatten(1).sum(1)

    losses = build_losses(method, torch.float32, torch.device("cpu"), "color,translation,cutout")
    losses.critic(critic, critic_batch(real, fake, mix, augmentation=uniforms))
    both, between = seen
    real, fake = augment(real, uniforms[:, 0]), augment(fake, uniforms[:, 1])
    assert torch.equal(both, torch.cat([real, fake]))
    torch.testing.assert_close(between, interpolate(real, fake, mix))


def test_the_generators_loss_reaches_the_generator_alone():
    state = small_state("wgan-gp", "dense")
    batch = generator_batch(torch.randn(4, 4))
    loss = state.losses.generator(state.generator, state.critic, batch)
    loss.backward(inputs=list(state.generator.parameters()))
    assert all(p.grad.norm() > 0 for p in state.generator.parameters() if p.dim() > 1)
    assert all(p.grad is None for p in state.critic.parameters())


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_the_masked_activation_equals_pytorchs_up_to_the_second_derivative(slope):
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
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in (one, other)]
        torch.testing.assert_close(*gradients)


def test_auto_is_bfloat16_if_the_hardware_accelerates_it_and_the_data_are_images(monkeypatch):
    def auto(device, shape=SHAPE):
        return choose_precision("auto", torch.device(device), shape)

    for capability, precision in (((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert auto("cuda") == precision
    for features, precision in (("avx512f", torch.float32), ("amx_bf16", torch.bfloat16)):
        monkeypatch.setattr(losses.Path, "read_text", lambda path, text=f"flags : {features}": text)
        assert auto("cpu") == precision
    assert auto("cpu", (2,)) == torch.float32
    assert auto("mps") == torch.float32
    assert choose_precision("fp32", torch.device("cuda"), SHAPE) == torch.float32
    assert choose_precision("bf16", torch.device("mps"), (2,)) == torch.bfloat16
