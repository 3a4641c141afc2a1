"""Differentiable augmentation for data sets of few images (Zhao et al. 2020, arXiv:2006.10738).

Real and generated images are altered at random before the critic scores them, in the critic's and
in the generator's update. The critic then cannot memorise the data, and because the changes are
differentiable, the generator is trained through them. The random numbers are passed in, uniform in
[0, 1), and the changes and their ranges are those of the authors' code.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SHIFT = 1 / 8  # the maximum translation, as a share of the image's side
HOLE = 1 / 2  # the side of the removed part, as a share of the image's side


def adjust_color(
    images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor
) -> Tensor:
    """Add up to 0.5 to the brightness, and multiply the saturation by up to 2 and the contrast by
    0.5 to 1.5; 0.5 changes nothing. Images `(B, C, H, W)`, the others `(B,)`.

    With s = 2 * saturation, c = contrast + 0.5 and b = brightness - 0.5, a pixel x becomes
    c s x + c (1 - s) m + (1 - c) M + b, where m is the mean of its channels and M that of the
    image. One channel has no saturation: s = 1. The last of 2 or 4 channels is opacity, and stays.
    """
    colors = images.shape[1] - (images.shape[1] in (2, 4))
    x, opacity = images[:, :colors], images[:, colors:]
    saturation = 2 * saturation if colors > 1 else torch.ones_like(saturation)
    s, c, b = (v.view(-1, 1, 1, 1) for v in (saturation, contrast + 0.5, brightness - 0.5))
    shift = (1 - c) * x.mean((1, 2, 3), keepdim=True) + b
    changed = c * s * x + (c * (1 - s) * x.mean(1, keepdim=True) + shift)
    return torch.cat([changed, opacity], 1)


def translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move images `(B, C, H, W)` by whole pixels, up to an eighth of the side in each direction;
    0.5 changes nothing. What enters is 0, mid-grey, so that it differs from a black or white
    background and the generator does not learn to move its images."""
    height, width = images.shape[2:]
    rows = source_positions(down, height)[:, :, None]  # (B, H, 1)
    columns = source_positions(right, width)[:, None]  # (B, 1, W)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    pixels = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    pixels = pixels.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    moved = images.flatten(2).gather(2, pixels).view(images.shape)
    return moved * inside[:, None]


def source_positions(uniforms: Tensor, side: int) -> Tensor:
    """The position that each of `side` pixels is taken from, `(B, side)`."""
    maximum = int(side * SHIFT + 0.5)
    moved_by = (uniforms * (2 * maximum + 1)).long() - maximum
    return torch.arange(side, device=uniforms.device) - moved_by[:, None]


def cut_out(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Replace a rectangle of half the height and width by 0, mid-grey. Its centre is anywhere in
    the image, so part of it may lie outside. Images `(B, C, H, W)`, row and column `(B,)`."""
    rows = inside_hole(row, images.shape[2])[:, :, None]  # (B, H, 1)
    columns = inside_hole(column, images.shape[3])[:, None]  # (B, 1, W)
    return images * ~(rows & columns)[:, None]


def inside_hole(uniforms: Tensor, side: int) -> Tensor:
    """Whether each of `side` positions is in the removed part, `(B, side)`."""
    size = int(side * HOLE + 0.5)
    first = (uniforms * (side + 1 - size % 2)).long() - size // 2
    positions = torch.arange(side, device=uniforms.device) - first[:, None]
    return (positions >= 0) & (positions < size)


class Policy(NamedTuple):
    function: Callable[..., Tensor]
    numbers: int  # random numbers per image


POLICIES = {
    "color": Policy(adjust_color, 3),
    "translation": Policy(translate, 2),
    "cutout": Policy(cut_out, 2),
}


class Augmentation:
    """The changes that `--augment` names, such as "color,translation", one after the other; "none"
    changes nothing."""

    def __init__(self, names: str = "none"):
        self.policies = [POLICIES[name] for name in names.split(",") if name != "none"]
        self.numbers = sum(policy.numbers for policy in self.policies)

    def __call__(self, images: Tensor, uniforms: Tensor | None) -> Tensor:
        """Change images `(B, C, H, W)` by random numbers `(B, numbers)`, uniform in [0, 1)."""
        if not self.policies:
            return images
        parts = uniforms.split([policy.numbers for policy in self.policies], 1)
        for policy, part in zip(self.policies, parts, strict=True):
            images = policy.function(images, *part.unbind(1))
        return images
