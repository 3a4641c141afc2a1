"""The training steps, against closed forms and as whole steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import LinearCritic, ShiftGenerator
from helpers import critic_batch, generator_batch, small_config

import train
from train import critic_step, generator_step, sample_fakes, train_step
from utils import METHODS, corrected_estimate
from wgan import distributed
from wgan.augmentation import Augmentation
from wgan.data import Batches, RowReader, to_float_images
from wgan.evaluation.metrics import wasserstein_distance
from wgan.inputs import sample_inputs
from wgan.losses import build_losses
from wgan.state import TrainState, build_method, build_state

# ---------------------------------------------------------------- the steps, on linear problems

SHIFT = torch.tensor([3.0, -1.0])
PLAIN = small_config()  # no gradient clipping, the batch in one part


def linear_state(name, critic=(0.0, 0.0), shift=(0.0, 0.0), rate=0.01, **options):
    """A linear critic against a generator that is only a shift, in our own training state."""
    critic, generator = LinearCritic(critic), ShiftGenerator(shift)
    method = build_method(small_config(method=name, dataset="mnist", **options))
    return TrainState(
        generator=generator,
        critic=critic,
        ema=ShiftGenerator(shift).eval(),
        critic_optimizer=torch.optim.SGD(critic.parameters(), rate),
        generator_optimizer=torch.optim.SGD(generator.parameters(), rate),
        method=method,
        losses=build_losses(method, torch.float32, torch.device("cpu")),
        sample_shape=(2,),
    )


def train_critic(state, steps):
    """Our critic step on two Gaussians a shift apart; the same noise, so that nothing is random."""
    noise = torch.randn(64, 2)
    for _ in range(steps):
        critic_step(state, critic_batch(noise + SHIFT, noise, torch.rand(64)), PLAIN)
    return state.critic.weights.detach()


@pytest.mark.parametrize("weight", [1.0, 10.0])
@pytest.mark.parametrize("method", ["wgan-gp", "wgan-lp"])
def test_gradient_penalties_settle_where_theory_says(method, weight):
    weights = train_critic(linear_state(method, critic=(0.1, 0.1), gp_weight=weight), 1000)
    length = 1 + SHIFT.norm() / (2 * weight)
    torch.testing.assert_close(weights, length * SHIFT / SHIFT.norm(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weight", [1.0, pytest.param(10.0, marks=pytest.mark.nightly)])
def test_a_dense_critics_estimate_is_the_exact_distance_once_its_bias_is_removed(weight, cpu):
    options = {"model": "dense", "width": 64, "noise_dim": 2, "precision": "fp32", "lr": 2e-3}
    config = small_config(dataset="mnist", gp_weight=weight, **options)
    state = build_state(config, (2,), cpu)
    rng = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(600):
        real, fake = torch.randn(2, 256, 2, generator=rng)
        batch = critic_batch(real + SHIFT, fake, torch.rand(256, generator=rng))
        losses = critic_step(state, batch, config)
        estimates.append(losses.wasserstein.item())
    biased = np.mean(estimates[-100:])
    points = torch.randn(2, 500, 2, generator=rng)
    exact = wasserstein_distance(points[0] + SHIFT, points[1])
    assert exact == pytest.approx(SHIFT.norm().item(), rel=0.1)
    assert corrected_estimate(biased, weight) == pytest.approx(exact, rel=0.1)
    assert abs(biased - exact) > abs(corrected_estimate(biased, weight) - exact)


@pytest.mark.parametrize(("k", "p"), [(2.0, 6.0), (1.0, 2.0)])
def test_divergence_settles_where_theory_says(k, p):
    weights = train_critic(linear_state("wgan-div", div_k=k, div_p=p), 1000)
    length = (SHIFT.norm() / (k * p)) ** (1 / (p - 1))
    torch.testing.assert_close(weights, length * SHIFT / SHIFT.norm(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_zero_centred_penalties_settle_where_theory_says(gamma):
    """Of w S - gamma |w|^2 at w = S / (2 gamma); of softplus(-w S) + gamma |w|^2 where
    2 gamma w = S / (1 + exp(w S))."""
    weights = train_critic(linear_state("wgan-r1r2", gamma=gamma), 1000)
    torch.testing.assert_close(weights, SHIFT / (2 * gamma), rtol=1e-3, atol=1e-3)
    weights = train_critic(linear_state("r3gan", gamma=gamma), 1000)
    torch.testing.assert_close(2 * gamma * weights, SHIFT / (1 + torch.exp(weights @ SHIFT)))


def test_clipping_settles_in_a_corner():
    weights = train_critic(linear_state("wgan", clip=0.05), 20)
    torch.testing.assert_close(weights, 0.05 * SHIFT.sign())


@pytest.mark.parametrize("method", METHODS)
def test_the_generator_moves_onto_the_data(method):
    # The papers' 0.01 and 1 would take too long.
    options = {"wgan": {"clip": 0.5}, "r3gan": {"gamma": 0.2}}.get(method, {})
    state = linear_state(method, rate=0.05, **options)
    rng = torch.Generator().manual_seed(0)
    for _ in range(400):
        for _ in range(5):
            real = torch.randn(256, 2, generator=rng) + SHIFT
            noise, mix = torch.randn(256, 2, generator=rng), torch.rand(256, generator=rng)
            (fake,) = sample_fakes(state, noise[None], torch.zeros(1, len(noise)), 1)
            critic_step(state, critic_batch(real, fake, mix), PLAIN)
        batch = generator_batch(torch.randn(256, 2, generator=rng), real=real)
        generator_step(state, batch, PLAIN)
    assert (state.generator.shift.detach() - SHIFT).norm() < 0.1 * SHIFT.norm()


def test_a_critic_update_leaves_the_generator_alone_and_vice_versa():
    state = linear_state("wgan-gp", critic=(1.0, 2.0))
    before = state.generator.shift.clone()
    batch = critic_batch(torch.randn(8, 2), torch.randn(8, 2), torch.rand(8))
    critic_step(state, batch, PLAIN)
    assert torch.equal(state.generator.shift, before)
    assert state.generator.shift.grad is None
    before, gradient = state.critic.weights.clone(), state.critic.weights.grad.clone()
    generator_step(state, generator_batch(torch.randn(8, 2)), PLAIN)
    assert torch.equal(state.critic.weights, before)
    assert torch.equal(state.critic.weights.grad, gradient)


def test_no_gradients_of_the_critics_weights_are_computed_in_the_generators_update():
    state = linear_state("wgan-gp")
    required = []

    def spy(generator, critic, batch):
        required.extend(parameter.requires_grad for parameter in critic.parameters())
        return generator(batch.noise).mean()

    state.losses = state.losses._replace(generator=spy)
    generator_step(state, generator_batch(torch.randn(4, 2)), PLAIN)
    assert required and not any(required)
    assert all(parameter.requires_grad for parameter in state.critic.parameters())


def test_weights_are_clipped_after_the_optimizers_step():
    state = linear_state("wgan", rate=100.0, clip=0.01)
    batch = critic_batch(torch.randn(8, 2) + 5, torch.randn(8, 2), torch.rand(8))
    critic_step(state, batch, PLAIN)
    assert state.critic.weights.abs().max() <= 0.01


def test_gradient_clipping_bounds_the_update():
    state = linear_state("wgan", rate=1.0, clip=100.0)
    batch = critic_batch(torch.randn(8, 2) + 1000, torch.randn(8, 2), torch.rand(8))
    critic_step(state, batch, replace(PLAIN, grad_clip=0.5))
    assert state.critic.weights.norm().item() == pytest.approx(0.5, rel=1e-4)


# ---------------------------------------------------------------- whole steps

SHAPE = (1, 16, 16)


def small_batches(config, random, shape=(1, 16, 16)):
    samples = random.integers(0, 256, (32, *shape)).astype(np.uint8)
    reader = RowReader.from_array(samples)
    labels = np.arange(32) % 2  # of two classes
    return Batches(reader, config.batch_size, config.seed, torch.device("cpu"), labels=labels)


@pytest.fixture
def calls(monkeypatch):
    """The calls of the two updates, with their arguments."""
    calls = []
    updates = train.critic_step, train.generator_step

    def spy_critic(state, batch, config):
        calls.append(("critic", batch.real.clone(), batch.fake.clone()))
        return updates[0](state, batch, config)

    def spy_generator(state, batch, config):
        calls.append(("generator", None, batch.noise.clone()))
        return updates[1](state, batch, config)

    monkeypatch.setattr(train, "critic_step", spy_critic)
    monkeypatch.setattr(train, "generator_step", spy_generator)
    return calls


def test_a_step_is_n_critic_critic_updates_with_fresh_noise_and_data_then_the_generator(
    random, cpu, calls
):
    config = small_config(n_critic=3)
    state, batches = build_state(config, (1, 16, 16), cpu), small_batches(config, random)
    for _ in range(2):
        train_step(state, config, batches)
    assert [name for name, _, _ in calls] == (["critic"] * 3 + ["generator"]) * 2
    assert len({drawn.sum().item() for _, _, drawn in calls}) == 8
    assert len({real.sum().item() for _, real, _ in calls if real is not None}) == 6


@pytest.mark.parametrize(("norm", "calls"), [("none", 1), ("layer", 1), ("batch", 3)])
def test_fakes_are_sampled_at_once_unless_a_sample_depends_on_its_batch(
    norm, calls, cpu, monkeypatch
):
    state = build_state(small_config(generator_norm=norm), (1, 16, 16), cpu)
    noise, labels, sizes = torch.randn(3, 8, 4), torch.zeros(3, 8), []
    with torch.no_grad():
        expected = [
            state.losses.sample(state.generator, *pair) for pair in zip(noise, labels, strict=True)
        ]

    def sample(generator, noise, labels, sample=state.losses.sample):
        sizes.append(len(noise))
        return sample(generator, noise, labels)

    state.losses = state.losses._replace(sample=sample)
    fakes = sample_fakes(state, noise, labels, accumulate=1)
    assert sizes == [24 // calls] * calls
    assert not fakes.requires_grad
    torch.testing.assert_close(fakes, torch.stack(expected))


def test_a_steps_randomness_depends_on_the_seed_and_the_step_alone(random, cpu):
    config = small_config(augment="color,translation,cutout", flip=True)
    batches, drawn = small_batches(config, random), []
    for step in (5, 6, 5):
        torch.manual_seed(step + len(drawn))  # the global generator has no influence
        drawn.append(sample_inputs(step, config, batches))
    for first, other, again in zip(*drawn, strict=True):
        assert torch.equal(first, again)
        assert first.numel() == 1 or not torch.equal(first, other)


@pytest.mark.parametrize(
    ("method", "size", "generator_size", "ranks"),
    [
        ("wgan-gp", 128, 256, 2),
        ("wgan-gp", 96, 96, 2),
        ("wgan-gp", 320, 320, 5),
        ("wgan-gp", 48, 144, 3),
        ("r3gan", 96, 0, 2),
    ],
)
def test_ranks_draw_their_slices_of_the_same_numbers(
    method, size, generator_size, ranks, random, cpu, monkeypatch
):
    options = {"batch_size": size, "n_critic": 2, "method": method}
    options |= {"generator_batch": generator_size} if generator_size else {}
    config = small_config(**options, augment="color,cutout", flip=True)
    samples = random.integers(0, 256, (400, 1, 16, 16)).astype(np.uint8)
    drawn = []

    def draw(rank, ranks):
        monkeypatch.setattr(distributed, "world_size", lambda: ranks)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        reader, own = RowReader.from_array(samples), distributed.rank_slice(size)
        batches = Batches(reader, size, 0, cpu, own, labels=np.arange(400) % 2)
        inputs = sample_inputs(0, config, batches)
        of_generator = [name for name in inputs._fields if name.startswith("generator")]
        return inputs._replace(**{name: getattr(inputs, name)[None] for name in of_generator})

    whole = draw(0, 1)
    randn, drawn = torch.randn, []
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(randn(*a, **k)) or drawn[-1])
    parts = [draw(rank, ranks) for rank in range(ranks)]
    for name, all_values in whole._asdict().items():
        if name != "ema_weight":
            assert torch.equal(torch.cat([getattr(p, name) for p in parts], 1), all_values), name
    # Each rank draws its share and the rest of the blocks at its ends, not the global batch.
    most = 2 * (size + (generator_size or size)) / ranks + 4 * 64
    assert sum(part.shape[-2] for part in drawn) / ranks <= most
    assert whole.noise.unique().numel() == whole.noise.numel()  # no block is drawn twice


def test_flipped_samples_reach_the_critic_mirrored(random, cpu, calls):
    batches = small_batches(small_config(), random)
    for flip in (False, True):
        config = small_config(flip=flip, n_critic=1)
        state = build_state(config, (1, 16, 16), cpu)
        inputs = sample_inputs(0, config, batches)
        train.all_updates(state, config, inputs)
    straight, mirrored = (real for name, real, _ in calls if name == "critic")
    flip = inputs.flip[0]
    assert flip.any() and not flip.all()
    assert torch.equal(mirrored[flip], straight[flip].flip(3))
    assert torch.equal(mirrored[~flip], straight[~flip])


def test_the_labels_of_a_step_are_those_of_its_real_samples(random):
    config = small_config(n_critic=3)
    batches = small_batches(config, random)
    inputs, indices = sample_inputs(0, config, batches), batches.indices(0, 3)
    assert torch.equal(inputs.labels.flatten(), indices % 2)
    assert torch.equal(inputs.real.flatten(0, 1), batches.samples.read(indices))


def test_a_relativistic_methods_generator_gets_a_batch_of_its_own(random, cpu):
    """With its classes, mirrored and augmented like the critic's; other methods draw none."""
    config = small_config(method="r3gan", n_critic=2, flip=True, augment="translation")
    batches = small_batches(config, random)
    inputs, indices = sample_inputs(1, config, batches), batches.indices(3, 3)
    assert torch.equal(inputs.real.flatten(0, 1), batches.samples.read(indices))
    batch, flip = inputs.generator_batch(), inputs.flip[2]
    real = to_float_images(inputs.real[2])
    assert torch.equal(batch.labels, indices[-8:] % 2)
    assert torch.equal(batch.real[flip], real[flip].flip(3)) and flip.any()
    assert torch.equal(batch.real[~flip], real[~flip])
    state, seen = build_state(config, SHAPE, cpu), []
    state.critic.register_forward_pre_hook(lambda module, samples: seen.append(samples[0]))
    state.losses.generator(state.generator, state.critic, batch)
    augmented = Augmentation("translation")(batch.real, batch.real_augmentation)
    assert torch.equal(seen[0], augmented) and not torch.equal(augmented, batch.real)
    plain = sample_inputs(1, small_config(n_critic=2), batches)
    assert len(plain.real) == 2 and not plain.generator_batch().real.numel()


def test_a_relativistic_method_refuses_a_generators_batch_of_another_size():
    with pytest.raises(ValueError, match="generator_batch = 16 has no effect with method r3gan"):
        small_config(method="r3gan", generator_batch=16)


def test_the_generators_classes_are_as_frequent_as_in_the_data(random, cpu):
    config, counts = small_config(generator_batch=1000), torch.tensor([6, 0, 2, 24])
    labels = torch.arange(4).repeat_interleave(counts).numpy()
    reader = RowReader.from_array(random.integers(0, 256, (32, 1, 16, 16)).astype(np.uint8))
    inputs = sample_inputs(0, config, Batches(reader, 8, 0, cpu, labels=labels))
    frequencies = inputs.generator_labels.bincount(minlength=4) / 1000
    torch.testing.assert_close(frequencies, counts / 32, rtol=0, atol=0.05)


def test_fakes_and_the_generators_samples_are_of_the_given_classes(random, cpu):
    config = small_config(n_critic=2)
    state = build_state(config, (1, 16, 16), cpu, ("a", "b"))
    inputs, seen = sample_inputs(0, config, small_batches(config, random)), []
    forward = state.generator.forward

    def spy(noise, labels):
        seen.append(labels)
        return forward(noise, labels)

    state.generator.forward = spy
    train.all_updates(state, config, inputs)
    *of_fakes, of_generator = seen
    assert torch.equal(torch.cat(of_fakes), inputs.labels.flatten())
    assert torch.equal(of_generator, inputs.generator_labels)


@pytest.mark.parametrize("classes", [(), ("a", "b")])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_in_parts_trains_like_the_whole_batch(method, classes, cpu):
    """Up to rounding, which SGD does not amplify as Adam does."""
    options = {"model": "dense", "precision": "fp32", "augment": "color,translation,cutout"}
    options |= {"clip": 0.5} if method == "wgan" else {}
    options |= {} if METHODS[method].relativistic else {"generator_batch": 16}
    results = []
    for accumulate in (1, 4):
        config = small_config(method=method, accumulate=accumulate, **options)
        batches = small_batches(config, np.random.default_rng(0))  # the same for both
        state = build_state(config, SHAPE, cpu, classes)
        start = [weights.clone() for weights in state.weights()]
        for name in ("critic", "generator"):
            optimizer = torch.optim.SGD(getattr(state, name).parameters(), 1e-4)
            setattr(state, f"{name}_optimizer", optimizer)
        losses = [train_step(state, config, batches) for _ in range(3)]
        results.append((list(state.weights()), losses))
    (whole, losses), (parts, losses_of_parts) = results
    moved = [(a - b).norm() / a.norm() for a, b in zip(whole, start, strict=True) if a.dim() > 1]
    assert max(moved) > 1e-3
    for one, other in zip(whole, parts, strict=True):
        assert (one - other).norm() <= 1e-6 * max(1, one.norm())  # biases start at zero
    for one, other in zip(losses, losses_of_parts, strict=True):
        assert {k: v.item() for k, v in one.items()} == pytest.approx(
            {k: v.item() for k, v in other.items()}, rel=1e-4, abs=1e-6
        )


def test_each_network_computes_one_part_of_a_batch_at_a_time(random, cpu, monkeypatch):
    config = small_config(accumulate=4, n_critic=2, generator_batch=16)
    state, batches = build_state(config, SHAPE, cpu), small_batches(config, random)
    averaged, sizes = [], {"generator": [], "critic": []}
    monkeypatch.setattr(distributed, "average_gradients", averaged.append)
    for name, found in sizes.items():
        getattr(state, name).register_forward_hook(lambda _, i, o, s=found: s.append(len(o)))
    train_step(state, config, batches)
    assert sizes["generator"] == [2] * 8 + [4] * 4  # with batch normalisation
    assert max(sizes["critic"]) == 4  # two real and two fake, or four of the generator's
    assert averaged == [state.critic] * 2 + [state.generator]  # once per update


def test_the_generators_batch_may_be_larger(random, cpu):
    config = small_config(generator_batch=16, n_critic=3)
    state, batches = build_state(config, (1, 16, 16), cpu), small_batches(config, random)
    inputs = sample_inputs(0, config, batches)
    assert (inputs.noise.shape, inputs.generator_noise.shape) == ((3, 8, 4), (16, 4))
    train_step(state, config, batches)
