"""The augmentation against closed forms."""

import pytest
import torch

from wgan.augmentation import POLICIES, Augmentation, adjust_color, cut_out, translate

EVERY = Augmentation(",".join(POLICIES))
HALF = torch.full((2,), 0.5)


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_neutral_numbers_change_nothing(channels):
    x = images(2, channels, 8, 12)
    torch.testing.assert_close(adjust_color(x, HALF, HALF, HALF), x, rtol=0, atol=1e-6)
    assert torch.equal(translate(x, HALF, HALF), x)
    assert Augmentation("none")(x, None) is x


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_colours_change_as_in_the_authors_sequence_and_opacity_does_not(channels):
    x, u = images(4, channels, 8, 8), torch.rand(3, 4)
    colors = x[:, : {1: 1, 2: 1, 3: 3, 4: 3}[channels]]
    brightness, saturation, contrast = u.view(3, 4, 1, 1, 1)
    brighter = colors + (brightness - 0.5)
    grey = brighter.mean(1, keepdim=True)
    saturated = (brighter - grey) * (2 * saturation) + grey
    mean = saturated.mean((1, 2, 3), keepdim=True)
    contrasted = (saturated - mean) * (contrast + 0.5) + mean
    changed = adjust_color(x, *u)
    torch.testing.assert_close(changed[:, : colors.shape[1]], contrasted)
    assert torch.equal(changed[:, colors.shape[1] :], x[:, colors.shape[1] :])


def test_translation_moves_by_up_to_an_eighth_and_adds_grey():
    x = images(1, 2, 8, 16)  # by up to one row and two columns
    for row, down in ((0.0, -1), (0.5, 0), (0.999, 1)):
        for column, right in ((0.0, -2), (0.3, -1), (0.5, 0), (0.7, 1), (0.999, 2)):
            expected = torch.zeros_like(x)
            rows, columns = range(max(0, down), min(8, 8 + down)), range(16)
            for i in rows:
                for j in columns:
                    if 0 <= j - right < 16:
                        expected[:, :, i, j] = x[:, :, i - down, j - right]
            found = translate(x, torch.tensor([row]), torch.tensor([column]))
            assert torch.equal(found, expected), (down, right)


@pytest.mark.parametrize(
    ("row", "column", "rows", "columns"),
    [
        (0.5, 0.5, slice(2, 6), slice(3, 8)),  # 5 of 10 columns around column 5
        (0.0, 0.0, slice(0, 2), slice(0, 3)),  # a quarter, as the centre is in the corner
        (0.999, 0.999, slice(6, 8), slice(7, 10)),
    ],
)
def test_cutout_removes_half_of_the_side(row, column, rows, columns):
    x = images(1, 3, 8, 10) + 2  # nowhere 0
    found = cut_out(x, torch.tensor([row]), torch.tensor([column]))
    expected = x.clone()
    expected[:, :, rows, columns] = 0
    assert torch.equal(found, expected)


def test_each_image_has_its_own_numbers():
    x, u = images(3, 3, 16, 16), torch.rand(3, EVERY.numbers)
    together = EVERY(x, u)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], EVERY(x[i : i + 1], u[i : i + 1]))


def test_the_order_is_the_given_one():
    x, u = images(2, 1, 8, 8), torch.rand(2, 4)
    expected = translate(cut_out(x, u[:, 0], u[:, 1]), u[:, 2], u[:, 3])
    assert torch.equal(Augmentation("cutout,translation")(x, u), expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_the_gradient_equals_finite_differences(channels):
    x = images(2, channels, 8, 8).double().requires_grad_()
    u = torch.rand(2, EVERY.numbers, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: EVERY(x, u), x, check_undefined_grad=False)
