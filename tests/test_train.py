"""The training steps against closed forms, and whole runs."""

import math
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, LinearCritic, ShiftGenerator
from helpers import (
    OFTEN,
    SMALL,
    assert_same_run,
    assert_same_state,
    contents,
    run_main,
    small_config,
)
from PIL import Image

import train
from train import critic_step, generator_step, main, sample_fakes, train_step
from utils import METHODS, unbiased_estimate
from wgan import distributed, generate, load_generator
from wgan.checkpoints import read_checkpoint
from wgan.config import read_toml
from wgan.data import DATASETS, Batches, Dataset, RowReader
from wgan.evaluation.metrics import wasserstein_distance
from wgan.losses import build_losses
from wgan.run_folder import LOG_COLUMNS
from wgan.state import TrainState, build_method, build_state
from wgan_gp import MODELS

# ---------------------------------------------------------------- the steps, on linear problems

SHIFT = torch.tensor([3.0, -1.0])


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
        critic_step(state, real=noise + SHIFT, fake=noise, mix=torch.rand(64))
    return state.critic.weights.detach()


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_gradient_penalty_settles_where_theory_says(weight):
    weights = train_critic(linear_state("wgan-gp", critic=(0.1, 0.1), gp_weight=weight), 1000)
    length = 1 + SHIFT.norm() / (2 * weight)
    torch.testing.assert_close(weights, length * SHIFT / SHIFT.norm(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_a_dense_critics_estimate_is_the_exact_distance_once_its_bias_is_removed(weight, cpu):
    options = {"model": "dense", "width": 64, "noise_dim": 2, "precision": "fp32", "lr": 2e-3}
    config = small_config(dataset="mnist", gp_weight=weight, **options)
    state = build_state(config, (2,), cpu)
    rng = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(600):
        real, fake = torch.randn(2, 256, 2, generator=rng)
        losses = critic_step(state, real + SHIFT, fake, torch.rand(256, generator=rng))
        estimates.append(losses.wasserstein.item())
    biased = np.mean(estimates[-100:])
    points = torch.randn(2, 500, 2, generator=rng)
    exact = wasserstein_distance(points[0] + SHIFT, points[1])
    assert exact == pytest.approx(SHIFT.norm().item(), rel=0.1)
    assert unbiased_estimate(biased, weight) == pytest.approx(exact, rel=0.1)
    assert abs(biased - exact) > abs(unbiased_estimate(biased, weight) - exact)


@pytest.mark.parametrize(("k", "p"), [(2.0, 6.0), (1.0, 2.0)])
def test_divergence_settles_where_theory_says(k, p):
    weights = train_critic(linear_state("wgan-div", div_k=k, div_p=p), 1000)
    length = (SHIFT.norm() / (k * p)) ** (1 / (p - 1))
    torch.testing.assert_close(weights, length * SHIFT / SHIFT.norm(), rtol=1e-3, atol=1e-3)


def test_clipping_settles_in_a_corner():
    weights = train_critic(linear_state("wgan", clip=0.05), 20)
    torch.testing.assert_close(weights, 0.05 * SHIFT.sign())


@pytest.mark.parametrize("method", METHODS)
def test_the_generator_moves_onto_the_data(method):
    options = {"clip": 0.5} if method == "wgan" else {}  # the paper's 0.01 would take too long
    state = linear_state(method, rate=0.05, **options)
    rng = torch.Generator().manual_seed(0)
    for _ in range(400):
        for _ in range(5):
            real = torch.randn(256, 2, generator=rng) + SHIFT
            noise, mix = torch.randn(256, 2, generator=rng), torch.rand(256, generator=rng)
            (fake,) = sample_fakes(state, noise[None], torch.zeros(1, len(noise)))
            critic_step(state, real, fake, mix)
        generator_step(state, torch.randn(256, 2, generator=rng))
    assert (state.generator.shift.detach() - SHIFT).norm() < 0.1 * SHIFT.norm()


def test_a_critic_update_leaves_the_generator_alone_and_vice_versa():
    state = linear_state("wgan-gp", critic=(1.0, 2.0))
    before = state.generator.shift.clone()
    critic_step(state, torch.randn(8, 2), torch.randn(8, 2), torch.rand(8))
    assert torch.equal(state.generator.shift, before)
    assert state.generator.shift.grad is None
    before, gradient = state.critic.weights.clone(), state.critic.weights.grad.clone()
    generator_step(state, torch.randn(8, 2))
    assert torch.equal(state.critic.weights, before)
    assert torch.equal(state.critic.weights.grad, gradient)


def test_no_gradients_of_the_critics_weights_are_computed_in_the_generators_update():
    state = linear_state("wgan-gp")
    required = []

    def spy(generator, critic, noise, *rest):
        required.extend(parameter.requires_grad for parameter in critic.parameters())
        return generator(noise).mean()

    state.losses = state.losses._replace(generator=spy)
    generator_step(state, torch.randn(4, 2))
    assert required and not any(required)
    assert all(parameter.requires_grad for parameter in state.critic.parameters())


def test_weights_are_clipped_after_the_optimizers_step():
    state = linear_state("wgan", rate=100.0, clip=0.01)
    critic_step(state, torch.randn(8, 2) + 5, torch.randn(8, 2), torch.rand(8))
    assert state.critic.weights.abs().max() <= 0.01


def test_gradient_clipping_bounds_the_update():
    state = linear_state("wgan", rate=1.0, clip=100.0)
    critic_step(state, torch.randn(8, 2) + 1000, torch.randn(8, 2), torch.rand(8), grad_clip=0.5)
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
    found = []
    updates = train.critic_step, train.generator_step

    def spy_critic(state, real, fake, *rest, **options):
        found.append(("critic", real.clone(), fake.clone()))
        return updates[0](state, real, fake, *rest, **options)

    def spy_generator(state, noise, *rest, **options):
        found.append(("generator", None, noise.clone()))
        return updates[1](state, noise, *rest, **options)

    monkeypatch.setattr(train, "critic_step", spy_critic)
    monkeypatch.setattr(train, "generator_step", spy_generator)
    return found


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
    noise, sizes = torch.randn(3, 8, 4), []
    with torch.no_grad():
        expected = [state.losses.sample(state.generator, batch) for batch in noise]

    def sample(generator, batch, labels, sample=state.losses.sample):
        sizes.append(len(batch))
        return sample(generator, batch)

    state.losses = state.losses._replace(sample=sample)
    found = train.sample_fakes(state, noise, torch.zeros(noise.shape[:2]))
    assert sizes == [24 // calls] * calls
    assert not any(fake.requires_grad for fake in found)
    torch.testing.assert_close(torch.stack(list(found)), torch.stack(expected))


def test_a_steps_randomness_depends_on_the_seed_and_the_step_alone(random, cpu):
    config = small_config(augment="color,translation,cutout")
    state, batches = (
        build_state(config, (1, 16, 16), cpu, ("a", "b")),
        small_batches(config, random),
    )
    drawn = []
    for state.step in (5, 6, 5):
        torch.manual_seed(state.step + len(drawn))  # the global generator has no influence
        drawn.append(train.sample_inputs(state, config, batches))
    for first, other, again in zip(*drawn, strict=True):
        assert torch.equal(first, again)
        assert first.numel() == 1 or not torch.equal(first, other)


@pytest.mark.parametrize(
    ("size", "generator_size", "ranks"), [(128, 256, 2), (96, 96, 2), (320, 320, 5), (48, 144, 3)]
)
def test_ranks_draw_their_slices_of_the_same_numbers(
    size, generator_size, ranks, random, cpu, monkeypatch
):
    options = {"batch_size": size, "generator_batch": generator_size, "n_critic": 2}
    config = small_config(**options, augment="color,cutout")
    state = build_state(config, (1, 16, 16), cpu, ("a", "b"))
    samples = random.integers(0, 256, (400, 1, 16, 16)).astype(np.uint8)
    drawn = []

    def draw(rank, ranks):
        monkeypatch.setattr(distributed, "world_size", lambda: ranks)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        reader, own = RowReader.from_array(samples), distributed.rank_slice(size)
        batches = Batches(reader, size, 0, cpu, own, labels=np.arange(400) % 2)
        inputs = train.sample_inputs(state, config, batches)
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
    most = 2 * (size + generator_size) / ranks + 4 * 64
    assert sum(part.shape[-2] for part in drawn) / ranks <= most
    assert whole.noise.unique().numel() == whole.noise.numel()  # no block is drawn twice


def test_flipped_samples_reach_the_critic_mirrored(random, cpu, calls):
    batches = small_batches(small_config(), random)
    for flip in (False, True):
        config = small_config(flip=flip, n_critic=1)
        state = build_state(config, (1, 16, 16), cpu)
        inputs = train.sample_inputs(state, config, batches)
        train.all_updates(state, config, inputs)
    straight, mirrored = (real for name, real, _ in calls if name == "critic")
    flip = inputs.flip[0]
    assert flip.any() and not flip.all()
    assert torch.equal(mirrored[flip], straight[flip].flip(3))
    assert torch.equal(mirrored[~flip], straight[~flip])


def test_the_labels_of_a_step_are_those_of_its_real_samples(random, cpu):
    config = small_config(n_critic=3)
    state, batches = (
        build_state(config, (1, 16, 16), cpu, ("a", "b")),
        small_batches(config, random),
    )
    inputs = train.sample_inputs(state, config, batches)
    drawn = batches.indices(0, 3)
    assert torch.equal(inputs.labels.flatten(), drawn % 2)
    assert torch.equal(inputs.real.flatten(0, 1), batches.take(drawn))


def test_fakes_and_the_generators_samples_are_of_the_given_classes(random, cpu):
    config = small_config(n_critic=2)
    state, batches = (
        build_state(config, (1, 16, 16), cpu, ("a", "b")),
        small_batches(config, random),
    )
    inputs, seen = train.sample_inputs(state, config, batches), []
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
    options = {"model": "dense", "precision": "fp32", "generator_batch": 16}
    options |= {"augment": "color,translation,cutout"} | ({"clip": 0.5} if method == "wgan" else {})
    found = []
    for accumulate in (1, 4):
        config = small_config(method=method, accumulate=accumulate, **options)
        batches = small_batches(config, np.random.default_rng(0))  # the same for both
        state = build_state(config, SHAPE, cpu, classes)
        start = [weights.clone() for weights in state.weights()]
        for name in ("critic", "generator"):
            optimizer = torch.optim.SGD(getattr(state, name).parameters(), 1e-4)
            setattr(state, f"{name}_optimizer", optimizer)
        losses = [train_step(state, config, batches) for _ in range(3)]
        found.append((list(state.weights()), losses))
    (whole, losses), (parts, losses_of_parts) = found
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
    inputs = train.sample_inputs(state, config, batches)
    assert (inputs.noise.shape, inputs.generator_noise.shape) == ((3, 8, 4), (16, 4))
    train_step(state, config, batches)


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_model_leaves_a_complete_run(method, model, image_folder, tmp_path):
    run = tmp_path / "run"
    options = ["--method", method, "--model", model, "--steps", "4"]
    assert run_main(image_folder, run, *options) == 0
    log, state, grids = contents(run)
    assert (run / "log.csv").read_text().splitlines()[0] == ",".join(LOG_COLUMNS)
    assert [row["step"] for row in log] == ["2", "4"]
    assert [row["images"] for row in log] == ["32", "64"]
    assert float(log[1]["epoch"]) == 64 / 40
    assert sorted(grids) == ["000000.png", "000002.png", "000004.png"]
    assert len(set(grids.values())) == 3  # training changed the samples
    assert state["step"] == 4
    for name in ("config.toml", "real.png", "timelapse.gif", "curves.png"):
        assert (run / name).stat().st_size > 0


@pytest.mark.parametrize("method", METHODS)
def test_points_are_drawn_over_the_critics_surface(method, tmp_path):
    run = tmp_path / "r"
    arguments = ["--dataset", "ring", "--method", method, "--width", "16", "--steps", "2"]
    assert main([*arguments, "--run", str(run), "--device", "cpu"]) == 0
    image = np.asarray(Image.open(run / "samples" / "000002.png").convert("RGB")).astype(int)
    assert image.shape == (520, 600, 3)
    corner = image[60:160, 60:160].reshape(-1, 3)  # far from the data: the surface
    assert len(np.unique(corner, axis=0)) > 3
    red = (image[..., 0] > 180) & (image[..., 1] < 80)  # generated points
    assert red.sum() > 20


def test_the_readmes_first_command(tmp_path, monkeypatch):
    """`python train.py` without a data set: the digits, with their recipe."""
    monkeypatch.setattr("wgan.data.glyphs.GLYPH_COUNT", 200)
    monkeypatch.chdir(tmp_path)
    assert main(["--steps", "2", "--compile", "off"]) == 0
    state = read_checkpoint(tmp_path / "images" / "glyphs-wgan-gp" / "checkpoint.pt")
    assert state["step"] == 2 and state["sample_shape"] == (1, 28, 28)


@pytest.mark.slow
def test_the_ring_is_learned(tmp_path, capsys):
    """All eight modes are found, and most samples are near one of them."""
    run = str(tmp_path / "ring")
    options = ["--dataset", "ring", "--width", "64", "--lr", "1e-3", "--lr-decay"]
    options += ["--noise-dim", "16", "--categories", "16", "--steps", "250", "--compile", "off"]
    assert main([*options, "--sample-every", "1000", "--run", run]) == 0
    points = generate(load_generator(run, device="cpu"), 2000)
    angles = torch.arange(8) * math.pi / 4
    modes = 2**0.5 * torch.stack([angles.cos(), angles.sin()], 1)
    distances, nearest = torch.cdist(points, modes).min(1)
    assert (distances < 0.3).float().mean() > 0.8
    assert (nearest[distances < 0.3].bincount(minlength=8) > 20).all()


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(image_folder, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_main(image_folder, tmp_path / name, "--steps", 4, "--seed", seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path / "a")[0] != contents(tmp_path / "c")[0]


def test_a_run_with_decaying_rates_resumes_exactly_after_a_stop(
    image_folder, tmp_path, monkeypatch
):
    options = ["--steps", 6, "--lr-decay"]
    run_main(image_folder, tmp_path / "whole", *options)
    step = train.train_step

    def stopping_step(state, *rest):
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)  # takes effect after this step
        return step(state, *rest)

    monkeypatch.setattr(train, "train_step", stopping_step)
    assert run_main(image_folder, tmp_path / "halved", *options) == 128 + signal.SIGINT
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "halved" / "checkpoint.pt")["step"] == 3
    assert run_main(image_folder, tmp_path / "halved", *options) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "halved")


def test_an_augmented_run_in_parts_resumes_exactly(image_folder, tmp_path, capsys):
    options = ["--augment", "color,translation,cutout", "--accumulate", 2]
    run_main(image_folder, tmp_path / "whole", *options, "--steps", 4)
    for steps in (2, 4):
        run_main(image_folder, tmp_path / "parts", *options, "--steps", steps)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    run_main(image_folder, tmp_path / "plain", "--steps", 4, *options[2:])
    assert contents(tmp_path / "whole")[0] != contents(tmp_path / "plain")[0]
    capsys.readouterr()
    assert run_main(image_folder, tmp_path / "parts", *options[:3], 4, "--steps", 6) == 0
    assert "was written with --accumulate 2, and training resumes with 4" in capsys.readouterr().out


def test_a_run_whose_rates_have_decayed_cannot_be_lengthened(image_folder, tmp_path, capsys):
    run_main(image_folder, tmp_path / "r", "--steps", 2, "--lr-decay")
    assert run_main(image_folder, tmp_path / "r", "--steps", 2, "--lr-decay") == 0
    assert "learning rates have decayed to zero (lr_decay)" in capsys.readouterr().out
    assert run_main(image_folder, tmp_path / "r", "--steps", 4, "--lr-decay") == 2
    error = capsys.readouterr().err
    assert "(lr_decay), so its length is fixed (steps was 2 and is 4)" in error
    assert f"--init-from {tmp_path / 'r'} and another --run" in error
    further = ["--steps", 4, "--lr-decay", "--init-from", tmp_path / "r"]
    assert run_main(image_folder, tmp_path / "further", *further) == 0


def test_fewer_steps_than_a_run_has_are_not_called_its_end(image_folder, tmp_path, capsys):
    run_main(image_folder, tmp_path / "r", "--steps", 4)
    capsys.readouterr()
    assert run_main(image_folder, tmp_path / "r", "--steps", 2) == 0
    output = capsys.readouterr().out
    assert "is finished at step 4;" in output and "more than 4" in output


def test_every_nth_checkpoint_is_kept_and_used_like_any_other(image_folder, tmp_path):
    run = tmp_path / "r"
    run_main(image_folder, run, "--steps", 7, "--keep-every", 3)
    kept = sorted(path.name for path in run.glob("checkpoint-*"))
    assert kept == ["checkpoint-000003.pt", "checkpoint-000006.pt"]
    run_main(image_folder, tmp_path / "short", "--steps", 3)
    one, other = run / kept[0], tmp_path / "short" / "checkpoint.pt"
    states = [read_checkpoint(path) for path in (one, other)]
    assert states[0].pop("progress") < states[1].pop("progress") == 1
    assert_same_state(*states)
    for start in ("a", "b"):  # the kept one and the other give the same run
        source = one if start == "a" else other
        assert run_main(image_folder, tmp_path / start, "--steps", 2, "--init-from", source) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_finite_divergence_is_said_at_the_end(image_folder, tmp_path, monkeypatch, capsys):
    def huge(*arguments):
        losses = ("wasserstein", "penalty", "generator_loss")
        return dict.fromkeys(losses, torch.tensor(-2e6))

    run_main(image_folder, tmp_path / "a", "--steps", 2)
    assert "diverged" not in capsys.readouterr().out
    monkeypatch.setattr(train, "all_updates", huge)
    run_main(image_folder, tmp_path / "b", "--steps", 2)
    assert "the Wasserstein estimate is -2e+06: training has diverged" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="Windows does not delete a locked file")
def test_a_run_deleted_during_training_is_made_again_and_resumes(
    image_folder, tmp_path, monkeypatch, capsys
):
    original, run = train.train_step, tmp_path / "r"

    def step_and_delete(state, *arguments):
        if state.step == 3:
            shutil.rmtree(run)
        return original(state, *arguments)

    monkeypatch.setattr(train, "train_step", step_and_delete)
    assert run_main(image_folder, run, "--steps", 6) == 0
    monkeypatch.undo()
    error = capsys.readouterr().err
    assert error.count("was deleted; recreating it") == 1 and "could not" not in error
    log = (run / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "4", "6"]
    assert run_main(image_folder, run, "--steps", 8) == 0
    assert run_main(image_folder, tmp_path / "whole", "--steps", 8) == 0
    states = [read_checkpoint(path / "checkpoint.pt") for path in (run, tmp_path / "whole")]
    assert_same_state(*states)


def test_the_stored_configuration_repeats_the_run(image_folder, tmp_path):
    run_main(image_folder, tmp_path / "a", "--steps", 2, "--lr", "3e-4", "--critic-norm", "layer")
    main(["--config", str(tmp_path / "a" / "config.toml"), "--run", str(tmp_path / "b")])
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_finished_run_is_reported_and_left_alone(image_folder, tmp_path, capsys):
    run_main(image_folder, tmp_path / "r", "--steps", 2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.p*")}
    assert run_main(image_folder, tmp_path / "r", "--steps", 2) == 0
    assert "finished at step 2 of 2" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.p*")}


def test_a_finished_run_draws_the_plots_that_a_kill_prevented(image_folder, tmp_path):
    run_main(image_folder, tmp_path / "r", "--steps", 2)
    for name in ("curves.png", "timelapse.gif"):
        (tmp_path / "r" / name).unlink()
    assert run_main(image_folder, tmp_path / "r", "--steps", 2) == 0
    assert (tmp_path / "r" / "curves.png").exists() and (tmp_path / "r" / "timelapse.gif").exists()


def test_epochs_count_the_critics_passes_over_the_data(image_folder, tmp_path):
    run_main(image_folder, tmp_path / "r", "--epochs", 2)  # 40 images, 2 x 8 a step
    log, state, _ = contents(tmp_path / "r")
    assert state["step"] == 5
    assert float(log[-1]["epoch"]) == 2


def test_fresh_moves_the_old_run_aside(image_folder, tmp_path):
    run_main(image_folder, tmp_path / "r", "--steps", 2)
    assert run_main(image_folder, tmp_path / "r", "--steps", 4, "--seed", 9, "--fresh") == 0
    assert contents(tmp_path / "r.old-1")[1]["step"] == 2
    assert contents(tmp_path / "r")[1]["step"] == 4


def test_grids_show_samples_of_every_class(tmp_path):
    for kind, value in (("a", 0), ("b", 255)):
        (tmp_path / "p" / kind).mkdir(parents=True)
        for index in range(70):
            Image.new("L", (8, 8), value).save(tmp_path / "p" / kind / f"{index}.png")
    options = ["--image-size", "8", "--grey", "--width", "2", "--steps", "1", "--device", "cpu"]
    assert main(["--dataset", str(tmp_path / "p"), *options, "--run", str(tmp_path / "r")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "r" / "real.png"))
    assert 0.2 < (pixels == 255).mean() < 0.6


@pytest.mark.parametrize("interval", ["--log-every", "--checkpoint-every"])
def test_training_stops_when_a_number_is_not_finite(
    interval, image_folder, tmp_path, capsys, monkeypatch
):
    healthy_step = train.train_step

    def failing_step(state, *rest):
        losses = healthy_step(state, *rest)
        if state.step == 3:
            next(state.critic.parameters()).data[0] = float("nan")
        return losses

    monkeypatch.setattr(train, "train_step", failing_step)
    others = {"--log-every": "--checkpoint-every", "--checkpoint-every": "--log-every"}
    options = ["--steps", 10, interval, 2, others[interval], 4]
    assert run_main(image_folder, tmp_path / "r", *options) == 1
    error = capsys.readouterr().err
    assert "by step 4" in error and "Lower --lr" in error
    checkpoints = list((tmp_path / "r").glob("checkpoint*"))
    for path in checkpoints:
        weights = read_checkpoint(path)["critic"].values()
        assert all(weight.isfinite().all() for weight in weights)
    assert len(checkpoints) == (1 if interval == "--checkpoint-every" else 0)


def main_into(output, arguments):
    """The command in a process of its own, with its output in a file."""
    torch.set_num_threads(1)
    sys.stdout = open(output, "w", buffering=1)
    sys.exit(main(arguments))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM to a process")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_and_resumes_exactly(number, processes, image_folder, tmp_path):
    arguments = ["--dataset", image_folder, "--image-size", "16", *SMALL, "--device", "cpu"]
    arguments = [*map(str, arguments), "--sample-every", "100000", "--log-every", "100000"]
    arguments += ["--checkpoint-every", "20"]
    endless = [*arguments, "--run", str(tmp_path / "r"), "--steps", "1000000"]
    process = processes.Process(target=main_into, args=(tmp_path / "output", endless))
    process.start()
    while not (tmp_path / "r" / "checkpoint.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert "run the same command to resume" in (tmp_path / "output").read_text()
    step = read_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"]
    assert step > 0
    for run in ("r", "whole"):
        assert main([*arguments, "--steps", str(step + 3), "--run", str(tmp_path / run)]) == 0
    states = [read_checkpoint(tmp_path / run / "checkpoint.pt") for run in ("r", "whole")]
    assert_same_state(*states)


# ---------------------------------------------------------------- exact resume of everything

PATCHES = {"model": "dense", "pyramid": 2, "patch_features": 3}
VARIANTS = {model: {"model": model} for model in MODELS} | {"patches": PATCHES}


def as_flags(options):
    return [p for name, value in options.items() for p in ("--" + name.replace("_", "-"), value)]


def assert_resumes_exactly(image_folder, tmp_path, *options):
    for run, parts in (("whole", [4]), ("halved", [2, 4])):
        for steps in parts:
            assert run_main(image_folder, tmp_path / run, *options, "--steps", steps) == 0
    assert_same_run(tmp_path / "halved", tmp_path / "whole")


@pytest.fixture
def no_plots(monkeypatch):
    """Curves and timelapse cost more than the steps of a small run."""
    monkeypatch.setattr("wgan.run_folder.RunFolder.save_plots", lambda self: None)


@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_run_resumes_exactly(method, model, image_folder, tmp_path, no_plots):
    options = as_flags({"method": method} | VARIANTS[model])
    precision = "bf16" if model == "dcgan" else "fp32"
    assert_resumes_exactly(image_folder, tmp_path, *options, "--precision", precision, "--flip")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_deterministic_cuda_runs_resume_exactly(
    method, model, compiled, image_folder, tmp_path, no_plots
):
    options = as_flags({"method": method} | VARIANTS[model])
    options += ["--compile", compiled, "--flip", "--device", "cuda", "--deterministic"]
    assert_resumes_exactly(image_folder, tmp_path, *options)


def test_another_pytorch_version_is_reported(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "2.10.7+cpu")
    run_main(image_folder, tmp_path / "r", "--steps", 2)
    monkeypatch.undo()
    capsys.readouterr()
    assert run_main(image_folder, tmp_path / "r", "--steps", 4) == 0
    assert "written with PyTorch 2.10.7, and this is" in capsys.readouterr().out
    assert run_main(image_folder, tmp_path / "r", "--steps", 6) == 0
    assert "PyTorch" not in capsys.readouterr().out


# ---------------------------------------------------------------- every recipe


RECIPES = sorted((ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains(path, tmp_path, monkeypatch, random, no_plots):
    """One step of each, with narrow networks and small batches."""
    recipe = read_toml(path)
    dataset = recipe.get("dataset", "grid" if path.stem.startswith("points") else "glyphs")
    shape = DATASETS[dataset].shape
    samples = random.random((16, *shape), np.float32)
    if len(shape) == 3:
        samples = (255 * samples).astype(np.uint8)
    tiny = Dataset(RowReader.from_array(samples))
    monkeypatch.setattr("wgan.setup.load_dataset", lambda *arguments: tiny)
    options = ["--config", path, "--dataset", dataset, "--steps", 1, "--no-conditional", *OFTEN]
    options += [
        "--width",
        8,
        "--generator-width",
        8,
        "--batch-size",
        8,
        "--generator-batch",
        8,
        "--compile",
        "off",
        "--device",
        "cpu",
        "--run",
        tmp_path / "r",
    ]
    assert main([*map(str, options)]) == 0
    assert read_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 1


def test_the_recipes_cover_every_model():
    assert {read_toml(path).get("model") for path in RECIPES} >= set(MODELS)


# ---------------------------------------------------------------- classes


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory):
    """24 bright images in the folder `day`, 8 dark ones in `night`."""
    folder = tmp_path_factory.mktemp("classes")
    random = np.random.default_rng(0)
    for name, count, level in (("day", 24, 200), ("night", 8, 30)):
        (folder / name).mkdir()
        for index in range(count):
            pixels = random.integers(level, level + 20, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_a_conditional_run_learns_the_classes_and_resumes_exactly(class_folder, tmp_path):
    options = ["--conditional", "--grey", "--lr", "1e-2", "--gp-weight", "1", "--noise-dim", "4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_main(class_folder, whole, *options, "--steps", "60") == 0
    for steps in ("30", "60"):
        assert run_main(class_folder, parts, *options, "--steps", steps) == 0
    assert_same_run(whole, parts)
    generator = load_generator(whole)
    assert generator.class_names == ("day", "night")
    assert generator.class_shares.tolist() == [0.75, 0.25]
    images = generate(generator, 40, labels=torch.arange(40) % 2).float()
    day, night = images[::2].mean().item(), images[1::2].mean().item()
    assert day > 150 and night < 100


def test_conditional_without_classes_is_refused(image_folder, tmp_path, capsys):
    assert run_main(image_folder, tmp_path / "run", "--conditional", "--steps", "2") == 2
    assert "--conditional needs classes" in capsys.readouterr().err
