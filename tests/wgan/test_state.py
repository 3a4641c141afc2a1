"""The moving average, learning rates, and undoing a trial step."""

from dataclasses import replace

import pytest
import torch
from helpers import small_config
from torch import nn

from wgan.inputs import ema_weight
from wgan.state import build_state, follow_schedule, update_ema
from wgan_gp import MODELS

SHAPE = (1, 16, 16)


def test_the_moving_average_follows_its_formula(cpu):
    state = build_state(small_config(), SHAPE, cpu)
    start = [value.clone() for value in state.ema.state_dict().values()]
    with torch.no_grad():
        for value in state.generator.state_dict().values():  # weights and running statistics
            value.add_(1)

    def check(distance):  # how far every value has moved, of 1
        for old, new in zip(start, state.ema.state_dict().values(), strict=True):
            copied = not new.is_floating_point()  # batch normalisation's count
            torch.testing.assert_close(new, old + (1 if copied else distance), rtol=0, atol=1e-5)

    def move(decay, step):
        update_ema(state.ema, state.generator, torch.tensor(ema_weight(decay, step)))

    move(0.9, step=1000)
    check(0.1)
    move(0.9, step=0)  # the average's own weight is 1 / 10 in the first step
    check(1 - 0.9 * 0.1)
    move(0.0, step=1000)
    check(1)


def test_the_moving_average_spans_as_many_images_with_any_batch():
    """After 1024 images, what was there before weighs the same."""
    for batch_size in (16, 64, 256):
        weight = ema_weight(0.995, 10_000, batch_size)
        assert (1 - weight) ** (1024 // batch_size) == pytest.approx(0.995 ** (1024 / 64))
    assert ema_weight(0.0, 10_000, 16) == 1  # off


def test_rates_decay_linearly_to_zero_and_differ_for_the_two_networks(cpu):
    config = small_config(lr_critic=4e-3, lr_generator=1e-3, lr_decay=True)
    state = build_state(config, SHAPE, cpu)
    for progress, factor in ((0, 1), (0.5, 0.5), (0.99, 0.01)):
        follow_schedule(state, config, progress)
        assert state.critic_optimizer.param_groups[0]["lr"] == pytest.approx(4e-3 * factor)
        assert state.generator_optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * factor)
    follow_schedule(state, replace(config, lr_decay=False), 0.5)
    assert state.critic_optimizer.param_groups[0]["lr"] == 4e-3
    for step, factor in ((0, 0.1), (4, 0.5), (9, 1), (500, 1)):
        state.step = step
        follow_schedule(state, replace(config, lr_warmup=10), 0.5)
        rate = state.critic_optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(0.5 * 4e-3 * factor)


def test_the_generator_is_coarse_in_the_first_part_of_the_training(cpu):
    config = small_config(coarse=0.5)
    state = build_state(config, SHAPE, cpu)
    for progress in (0.0, 0.49, 0.5, 0.9):
        follow_schedule(state, config, progress)
        assert state.generator.coarse == (progress < 0.5)
        assert not state.ema.coarse


def test_a_run_that_is_rolled_back_changes_nothing_even_if_it_fails(cpu):
    state = build_state(small_config(), SHAPE, cpu)
    before = [tensor.clone() for tensor in state.tensors()]

    def train_and_fail():
        state.generator(torch.randn(4, 4)).sum().backward()
        state.generator_optimizer.step()
        assert not all(map(torch.equal, state.weights(), before))
        raise KeyError

    with pytest.raises(KeyError):
        state.run_and_roll_back(train_and_fail)
    assert all(map(torch.equal, state.weights(), before))
    moments = state.generator_optimizer.state.values()
    assert moments and all(not value.any() for entries in moments for value in entries.values())


@pytest.mark.parametrize(("method", "refused"), [("wgan-gp", True), ("wgan", False)])
def test_a_penalised_critic_of_ones_own_may_not_mix_its_batch(method, refused, cpu, monkeypatch):
    class Mixing(MODELS["dense"].critic):
        def __init__(self, sample_shape, num_classes=0):
            super().__init__(sample_shape, num_classes=num_classes)
            self.normalisation = nn.BatchNorm1d(3)

    entry = replace(MODELS["dense"], critic=Mixing)
    monkeypatch.setitem(MODELS, "dense", entry)
    config = small_config(method=method, model="dense")
    if not refused:
        assert build_state(config, (1, 8, 8), cpu).step == 0
        return
    with pytest.raises(ValueError, match=r"'normalisation' .*mixes the samples of a batch"):
        build_state(config, (1, 8, 8), cpu)
