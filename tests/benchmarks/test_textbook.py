"""The textbook loop is correct: it trains as ours does, on the same data."""

import pickle

import numpy as np
import pytest
import torch
from helpers import critic_batch, generator_batch

from benchmarks.textbook import PENALTIES, PILImages, Textbook, from_loader, from_memory
from train import critic_step, generator_step, sample_fakes
from utils import METHODS
from wgan.data import to_byte_images
from wgan.recipes import resolve
from wgan.state import build_state

SHAPE = (1, 16, 16)


@pytest.mark.parametrize("method", [name for name in METHODS if name in PENALTIES])
@pytest.mark.parametrize("model", ["dcgan", "dense"])
def test_the_textbook_loop_trains_as_ours_does(method, model, cpu, monkeypatch):
    """The same weights after a step on the same random numbers, so only the speed differs."""
    options = {"method": method, "model": model, "width": 8, "noise_dim": 4, "batch_size": 8}
    options |= {"n_critic": 2, "generator_norm": "none", "precision": "fp32"}
    config = resolve(options | {"dataset": "random bytes"}).config
    state = build_state(config, SHAPE, cpu)
    real = torch.rand(2, 8, *SHAPE) * 2 - 1
    noise, mix = torch.randn(3, 8, 4), torch.rand(2, 8)
    textbook = Textbook(config, state.generator, state.critic, iter(real))
    noises, mixes = iter(noise), iter(mix)
    monkeypatch.setattr(textbook, "noise", lambda: next(noises))
    monkeypatch.setattr(textbook, "mix", lambda count: next(mixes))
    before = [parameter.detach().clone() for parameter in textbook.critic.parameters()]
    textbook.step()
    fake = sample_fakes(state, noise[:2], torch.zeros(noise[:2].shape[:2]), 1)
    for i in range(2):
        critic_step(state, critic_batch(real[i], fake[i], mix[i]), config)
    generator_step(state, generator_batch(noise[2]), config)
    for ours, theirs in (
        (state.critic, textbook.critic),
        (state.generator, textbook.generator),
    ):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    after = textbook.critic.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_method_that_it_does_not_implement_is_refused(cpu, monkeypatch):
    config = resolve({"dataset": "random bytes", "width": 8}).config
    state = build_state(config, SHAPE, cpu)
    monkeypatch.delitem(PENALTIES, config.method)
    with pytest.raises(ValueError, match="does not implement the method"):
        Textbook(config, state.generator, state.critic, iter([]))


@pytest.mark.parametrize("channels", [1, 3])
def test_both_feeds_yield_the_same_images(channels, cpu):
    images = np.random.default_rng(0).integers(0, 256, (4, channels, 8, 8)).astype(np.uint8)
    expected = sorted(torch.from_numpy(images).flatten(1).tolist())
    loaded = next(from_loader(images, 4, workers=0))
    assert sorted(to_byte_images(loaded).flatten(1).tolist()) == expected
    drawn = next(from_memory(images, 50, cpu))  # with replacement, so each occurs almost surely
    assert drawn.shape == (50, channels, 8, 8) and drawn.dtype == torch.float32
    assert sorted(to_byte_images(drawn).flatten(1).unique(dim=0).tolist()) == expected


def test_the_loaders_processes_can_receive_the_images():
    """On macOS and Windows they are started anew, and everything is pickled."""
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    copy = pickle.loads(pickle.dumps(PILImages(images)))
    assert torch.equal(to_byte_images(copy[1]), torch.from_numpy(images[1]))
