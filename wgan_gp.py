"""The networks, and the device they run on.

A generator maps noise `(B, noise_dim)` to samples `(B, *sample_shape)`; a critic maps
samples to one unbounded score each, `(B,)`. A sample shape is `(C, H, W)` for images,
whose values lie in [-1, 1], and `(D,)` for points. `MODELS` names the pairs that belong
together: a further architecture is one generator class, one critic class, one entry.
"""

import os
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("none", "layer", "instance", "batch")
UPSAMPLINGS = ("transposed", "nearest")


# ---------------------------------------------------------------- DCGAN


class DCGANGenerator(nn.Module):
    """Convolutional generator (Radford et al. 2016, figure 1): project, then double the size.

    noise `(B, noise_dim)` to images `(B, C, H, W)` in [-1, 1], for every size that
    `count_halvings` accepts. `upsampling="nearest"` repeats pixels and convolves, which
    cannot leave the checkerboard that transposed convolutions do (Odena et al. 2016).
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        noise_dim: int = 128,
        width: int = 64,
        generator_norm: str = "batch",
        upsampling: str = "transposed",
        categories: int = 0,
    ):
        super().__init__()
        self.sample_shape, self.noise_dim = tuple(sample_shape), noise_dim
        self.categories = categories
        channels, height, image_width = image_shape(sample_shape)
        widths = stage_widths(width, count_halvings(height, image_width))[::-1]
        base = (widths[0], height >> len(widths), image_width >> len(widths))
        bias = generator_norm == "none"
        layers = [nn.Linear(noise_dim, prod(base), bias=bias), nn.Unflatten(1, base)]
        for before, after in pairwise(widths):
            layers += [normalisation(generator_norm, before, base[1:]), nn.ReLU(inplace=True)]
            layers += doubling(upsampling, before, after, bias)
        layers += [normalisation(generator_norm, widths[-1], base[1:]), nn.ReLU(inplace=True)]
        layers += [*doubling(upsampling, widths[-1], channels, bias=True), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(dcgan_initialisation)

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(choose(noise, self.categories))


class DCGANCritic(nn.Module):
    """Convolutional critic (Radford et al. 2016): halve the size, double the channels, score.

    Images `(B, C, H, W)` to scores `(B,)`. There is no sigmoid at the end: a critic's
    score is not a probability (Arjovsky et al. 2017, section 3).
    """

    def __init__(self, sample_shape: tuple[int, ...], width: int = 64, critic_norm: str = "none"):
        super().__init__()
        channels, height, image_width = image_shape(sample_shape)
        widths = stage_widths(width, count_halvings(height, image_width))
        bias = critic_norm == "none"
        # Radford et al. 2016, section 3: no normalisation on the critic's first layer.
        layers = [nn.Conv2d(channels, widths[0], 4, 2, 1), LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=bias),
                normalisation(critic_norm, after, (height, image_width), critic=True),
                LeakyReLU(0.2),
            ]
        stages = len(widths)
        features = widths[-1] * (height >> stages) * (image_width >> stages)
        layers += [nn.Flatten(), nn.Linear(features, 1)]
        self.layers = nn.Sequential(*layers)
        self.apply(dcgan_initialisation)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).squeeze(1)


class LeakyReLU(nn.Module):
    """x where x > 0, slope * x elsewhere, as a product with a mask that carries no gradient.

    The values and gradients are `nn.LeakyReLU`'s. Its second derivative is zero almost
    everywhere, but a penalty's backward pass through `nn.LeakyReLU` would carry those zeros
    back through the whole critic, two of twelve forward passes' worth of work.
    """

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.where(x > 0, 1.0, self.slope).to(x.dtype)


def image_shape(
    sample_shape: tuple[int, ...], needed: str = "convolutions need"
) -> tuple[int, int, int]:
    """The `(C, H, W)` of a sample; ValueError for points, which have no rows and columns."""
    if len(sample_shape) != 3:
        raise ValueError(
            f"{needed} images, and these samples are points of {sample_shape[0]} "
            "coordinates: use --model dense --pyramid 1 --patch-features 0"
        )
    return sample_shape


def count_halvings(height: int, width: int) -> int:
    """How many stages a DCGAN has: halvings until the shorter side is 4 to 7 pixels.

    ValueError, with the nearest sizes that work, where a side cannot be halved so often.
    """
    if not fits_dcgan(height, width):
        stages = max(1, halvings(min(height, width)))
        nearest = [round_to_dcgan(height, width, up) for up in (False, True)]
        names = " or ".join(f"{h}x{w}" for h, w in nearest if fits_dcgan(h, w))
        raise ValueError(
            f"convolutions for {height}x{width} images would halve both sides {stages} time(s), so "
            f"they must be multiples of {2**stages}, and at least 8: use --image-size {names}"
        )
    return halvings(min(height, width))


def halvings(side: int) -> int:
    return max(0, (side // 4).bit_length() - 1)


def fits_dcgan(height: int, width: int) -> bool:
    stages = halvings(min(height, width))
    return stages > 0 and height % 2**stages == 0 and width % 2**stages == 0


def round_to_dcgan(height: int, width: int, up: bool) -> tuple[int, int]:
    """The nearest size that works, no smaller (`up`) or no larger; rounding can change the
    number of stages, hence the loop."""
    while not fits_dcgan(height, width):
        step = 2 ** max(1, halvings(min(height, width)))
        rounded = tuple(
            max(8, ceil(side / step) * step) if up else side // step * step
            for side in (height, width)
        )
        if rounded == (height, width):
            break
        height, width = rounded
    return height, width


def stage_widths(width: int, stages: int) -> list[int]:
    """Channels after each of the critic's stages: doubled by each, up to eight times `width`."""
    return [width * 2 ** min(stage, 3) for stage in range(stages)]


def doubling(upsampling: str, before: int, after: int, bias: bool) -> list[nn.Module]:
    """Layers that double height and width: `(B, before, H, W)` to `(B, after, 2H, 2W)`."""
    if upsampling == "transposed":
        return [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=bias)]
    return [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, 1, 1, bias=bias)]


def dcgan_initialisation(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases zero (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# ---------------------------------------------------------------- residual


class ResidualGenerator(nn.Module):
    """Residual generator of Gulrajani et al. 2017 (appendix F for 32x32), sizes as a DCGAN's.

    noise `(B, noise_dim)` to images `(B, C, H, W)` in [-1, 1]. All blocks are `width` wide up
    to three doublings of the size, as the paper's for CIFAR-10; beyond, as its for 64x64,
    they begin with 8 times `width`.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        noise_dim: int = 128,
        width: int = 64,
        generator_norm: str = "batch",
        categories: int = 0,
    ):
        super().__init__()
        self.sample_shape, self.noise_dim = tuple(sample_shape), noise_dim
        self.categories = categories
        channels, height, image_width = image_shape(sample_shape)
        stages = count_halvings(height, image_width)
        levels = residual_levels(width, stages)[::-1]
        base = (levels[0], height >> stages, image_width >> stages)
        layers = [nn.Linear(noise_dim, prod(base)), nn.Unflatten(1, base)]
        layers += [ResidualBlock(*pair, generator_norm, "up") for pair in pairwise(levels)]
        layers += [normalisation(generator_norm, levels[-1], base[1:]), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(levels[-1], channels, 3, 1, 1), nn.Tanh())
        residual_initialisation(self)

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(choose(noise, self.categories))


class ResidualCritic(nn.Module):
    """Residual critic of Gulrajani et al. 2017: images `(B, C, H, W)` to scores `(B,)`.

    Up to three halvings: two blocks that halve the size, two that keep it, and a mean over
    all positions (appendix F); beyond: a block for every halving, then all positions.
    """

    def __init__(self, sample_shape: tuple[int, ...], width: int = 64, critic_norm: str = "none"):
        super().__init__()
        channels, height, image_width = image_shape(sample_shape)
        stages = count_halvings(height, image_width)
        levels = residual_levels(width, stages)
        features = levels[-1]

        def block(before: int, after: int, resize: str, first: bool = False) -> nn.Module:
            return ResidualBlock(before, after, critic_norm, resize, critic=True, first=first)

        if stages <= CONSTANT_STAGES:
            halvings = min(stages, 2)
            layers = [block(channels, width, "down", first=True)]
            layers += [block(width, width, "down") for _ in range(halvings - 1)]
            layers += [block(width, width, "") for _ in range(2)]
            head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        else:
            layers = [nn.Conv2d(channels, levels[0], 3, 1, 1)]
            layers += [block(*pair, "down") for pair in pairwise(levels)]
            head = [nn.Flatten()]
            features *= (height >> stages) * (image_width >> stages)
        self.layers = nn.Sequential(*layers, LeakyReLU(0.0), *head, nn.Linear(features, 1))
        residual_initialisation(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).squeeze(1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `resize` is "up" (nearest), "down" (mean) or "".

    A critic's `first` block takes images, which are not activated beforehand.
    """

    def __init__(
        self,
        before: int,
        after: int,
        norm: str,
        resize: str,
        critic: bool = False,
        first: bool = False,
    ):
        super().__init__()
        inner = before if resize == "down" and not first else after
        grow = nn.Upsample(scale_factor=2) if resize == "up" else nn.Identity()
        shrink = nn.AvgPool2d(2) if resize == "down" else nn.Identity()

        def activated(channels: int) -> list[nn.Module]:
            activation = LeakyReLU(0.0) if critic else nn.ReLU()
            return [normalisation(norm, channels, (1, 1), critic), activation]

        self.path = nn.Sequential(
            *([] if first else activated(before)),
            *(grow, nn.Conv2d(before, inner, 3, 1, 1)),
            *(*activated(inner), nn.Conv2d(inner, after, 3, 1, 1), shrink),
        )
        same = before == after and not resize
        # Resizing and a 1x1 convolution may change places; this order costs least.
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(shrink, nn.Conv2d(before, after, 1), grow)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.path(x) + self.shortcut(x)


CONSTANT_STAGES = 3  # halvings up to which all residual blocks are equally wide


def residual_levels(width: int, stages: int) -> list[int]:
    """Channels at each size, from the whole picture's to the smallest: `stages` + 1 of them."""
    if stages <= CONSTANT_STAGES:
        return [width] * (stages + 1)
    return [width * 2 ** min(level, 3) for level in range(stages + 1)]


def residual_initialisation(network: nn.Module) -> None:
    """He's weights in the blocks' 3x3 convolutions, Glorot's elsewhere, as the authors' code."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            for layer in module.path:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")


# ---------------------------------------------------------------- dense


class DenseGenerator(nn.Module):
    """Three hidden layers of ReLU (Gulrajani et al. 2017, toy data), for images or points.

    noise `(B, noise_dim)` to samples `(B, *sample_shape)`; images end in a tanh, points do not.
    With `patch_features`, an image's finest details are drawn by a further layer, in small
    patches of so many features; `pyramid` adds coarser ones.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        noise_dim: int = 128,
        width: int = 512,
        generator_norm: str = "none",
        pyramid: int = 1,
        patch_features: int = 0,
        categories: int = 0,
    ):
        super().__init__()
        self.sample_shape, self.noise_dim = tuple(sample_shape), noise_dim
        self.categories = categories
        sum_up = PyramidSum(self.sample_shape, pyramid, patch_features)
        output = nn.Linear(width, sum_up.features)
        sizes = (noise_dim, width, width, width)
        layers = [*hidden_layers(sizes, generator_norm), output, sum_up]
        if len(sample_shape) == 3:
            layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)
        self.apply(he_initialisation)
        sum_up.start_small(output)

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(choose(noise, self.categories))


class PyramidSum(nn.Module):
    """Flat values `(B, features)` to images: the sum of a picture of the whole size, one of half
    the size made larger, one of a quarter, ..., `levels` in all. Points have one level.

    Any picture can be made with one level; but with several, neighbouring pixels share weights,
    so that shapes are learned sooner than grain (as in a Laplacian pyramid, Denton et al. 2015).
    With `patch_features`, the first values are not the whole picture's pixels but the features of
    the patches that it is made of.
    """

    def __init__(self, sample_shape: tuple[int, ...], levels: int, patch_features: int = 0):
        super().__init__()
        self.shapes = [sample_shape]
        if levels > 1:
            channels, height, width = image_shape(sample_shape, "a pyramid needs")
            self.shapes += [
                (channels, max(1, height >> level), max(1, width >> level))
                for level in range(1, levels)
            ]
        self.sizes = [prod(shape) for shape in self.shapes]
        self.finest: nn.Module = nn.Unflatten(1, sample_shape)
        if patch_features:
            self.finest = PatchSum(sample_shape, patch_features)
            self.sizes[0] = self.finest.features
        self.features = sum(self.sizes)

    def forward(self, values: Tensor) -> Tensor:
        first, *parts = values.split(self.sizes, dim=1)
        whole = self.finest(first)
        for part, shape in zip(parts, self.shapes[1:], strict=True):
            level = part.unflatten(1, shape)
            whole = whole + F.interpolate(level, size=whole.shape[2:], mode="bilinear")
        return whole

    @torch.no_grad()
    def start_small(self, output: nn.Linear) -> None:
        """Small weights where pixels are made, by the layer before or by the patches, so that no
        tanh is saturated at first."""
        pixels = output.weight
        if isinstance(self.finest, PatchSum):
            pixels = pixels[self.finest.features :]
            dcgan_initialisation(self.finest.linear)
        pixels.normal_(0.0, 0.02)


class DenseCritic(nn.Module):
    """Three hidden layers of ReLU (Gulrajani et al. 2017, toy data): samples to scores `(B,)`.

    With `patch_features`, the first of them, then of LeakyReLU and never normalised as in a
    convolutional critic, finds so many features in each small patch of an image.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        width: int = 512,
        critic_norm: str = "none",
        patch_features: int = 0,
    ):
        super().__init__()
        if patch_features:
            first = Patches(sample_shape, patch_features)
            layers = [first, LeakyReLU(0.2), nn.Flatten()]
            layers += hidden_layers((first.features, width, width), critic_norm, critic=True)
        else:
            sizes = (prod(sample_shape), width, width, width)
            layers = [nn.Flatten(), *hidden_layers(sizes, critic_norm, critic=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))
        self.apply(he_initialisation)

    def forward(self, samples: Tensor) -> Tensor:
        return self.layers(samples).squeeze(1)


PATCH_STEP = 4  # pixels from one patch to the next; patches are twice as large, and so overlap


class Patches(nn.Module):
    """Images `(B, C, H, W)` to features of their 8x8 patches, `(B, rows, columns,
    patch_features)`; beyond the border there are zeros.

    The numbers of `nn.Conv2d(C, patch_features, 8, stride=4, padding=2)` on images that were
    padded below and on the right to multiples of 4, as one matrix product: a CPU is slow at
    convolutions of few channels.
    """

    def __init__(self, sample_shape: tuple[int, ...], patch_features: int):
        super().__init__()
        channels, height, width = image_shape(sample_shape, "patches need")
        right, bottom = 2 + -width % PATCH_STEP, 2 + -height % PATCH_STEP
        self.padding = (2, right, 2, bottom)
        self.features = prod(patch_grid(height, width)) * patch_features
        self.linear = nn.Linear(channels * (2 * PATCH_STEP) ** 2, patch_features)

    def forward(self, images: Tensor) -> Tensor:
        blocks = F.pad(images, self.padding).unflatten(3, (-1, PATCH_STEP))
        blocks = blocks.unflatten(2, (-1, PATCH_STEP)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        upper, lower = blocks[:, :-1], blocks[:, 1:]  # (B, rows, columns + 1, C * 16)
        corners = [upper[:, :, :-1], upper[:, :, 1:], lower[:, :, :-1], lower[:, :, 1:]]
        return self.linear(torch.cat(corners, 3))


class PatchSum(nn.Module):
    """The way back: features `(B, rows * columns * patch_features)`, before their ReLU, to
    images `(B, C, H, W)`, the sum of the overlapping patches that a linear layer draws from them.

    But for the biases, and where sides are not multiples of 4, the numbers of
    `nn.ConvTranspose2d(patch_features, C, 8, stride=4, padding=2)` after a ReLU.
    """

    def __init__(self, sample_shape: tuple[int, ...], patch_features: int):
        super().__init__()
        self.sample_shape = channels, height, width = image_shape(sample_shape, "patches need")
        self.grid = (*patch_grid(height, width), patch_features)
        self.features = prod(self.grid)
        self.linear = nn.Linear(patch_features, channels * (2 * PATCH_STEP) ** 2)

    def forward(self, features: Tensor) -> Tensor:
        channels, height, width = self.sample_shape
        corners = self.linear(F.relu(features.unflatten(1, self.grid))).chunk(4, dim=3)
        # Each corner of a patch is a block of 4x4 pixels; the padding moves it to its place.
        places = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))
        moved = [F.pad(c, (0, 0, *place)) for c, place in zip(corners, places, strict=True)]
        blocks = sum(moved).unflatten(3, (channels, PATCH_STEP, PATCH_STEP))
        images = blocks.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return images[:, :, 2 : 2 + height, 2 : 2 + width]


def patch_grid(height: int, width: int) -> tuple[int, int]:
    """How many patches lie below and beside each other."""
    return ceil(height / PATCH_STEP), ceil(width / PATCH_STEP)


def he_initialisation(module: nn.Module) -> None:
    """Weights that keep the signal's size through ReLU layers, biases zero (He et al. 2015).

    As in the code of Gulrajani et al. 2017. PyTorch's own default shrinks the signal in each
    layer, so that the noise hardly reaches a generator's samples at first.
    """
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def hidden_layers(sizes: tuple[int, ...], norm: str, critic: bool = False) -> list[nn.Module]:
    """Dense layers from each size to the next, normalised and activated."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        activation = LeakyReLU(0.0) if critic else nn.ReLU()
        layers += [nn.Linear(before, after), normalisation(norm, after, (), critic), activation]
    return layers


# ---------------------------------------------------------------- both


def choose(noise: Tensor, categories: int) -> Tensor:
    """The first so many numbers of each noise `(B, noise_dim)` become a choice among as many:
    the largest becomes sqrt(categories), the others 0, so that their mean square stays 1.

    A continuous generator of connected noise makes connected samples: between two kinds of
    samples, some that are neither (Khayatkhoei et al. 2018). A choice lets it jump (as the one-hot
    part of the noise in Mukherjee et al. 2019).
    """
    if not categories:
        return noise
    chosen = F.one_hot(noise[:, :categories].argmax(1), categories) * categories**0.5
    return torch.cat([chosen.to(noise.dtype), noise[:, categories:]], 1)


def normalisation(
    kind: str, channels: int, size: tuple[int, ...], critic: bool = False
) -> nn.Module:
    """The normalisation named `kind` after a layer; an empty `size` means a dense layer.

    A critic's batch normalisation keeps no running statistics: a critic only ever trains.
    Layer normalisation of images is over channels, height and width (`GroupNorm(1, ...)`).
    """
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        layer = nn.BatchNorm2d if size else nn.BatchNorm1d
        return layer(channels, track_running_stats=not critic)
    if kind == "layer":
        return nn.GroupNorm(1, channels) if size else nn.LayerNorm(channels)
    if kind == "instance" and size:
        return nn.InstanceNorm2d(channels, affine=True)
    raise ValueError(
        f"normalisation {kind!r} does not exist for {'convolutional' if size else 'dense'} "
        f"networks: use one of {', '.join(n for n in NORMS if size or n != 'instance')}"
    )


@dataclass(frozen=True)
class Model:
    """A generator and a critic that belong together, and the option values that suit them.

    Each class takes the sample's shape, and as keywords the options that it names.
    """

    generator: type[nn.Module]
    critic: type[nn.Module]
    help: str
    settings: dict = field(default_factory=dict)


MODELS = {
    "dcgan": Model(DCGANGenerator, DCGANCritic, "convolutions, for images (Radford et al. 2016)"),
    "residual": Model(
        ResidualGenerator,
        ResidualCritic,
        "residual blocks, for images (Gulrajani et al. 2017)",
    ),
    "dense": Model(
        DenseGenerator,
        DenseCritic,
        "three hidden layers, for points and small images",
        {"width": 512, "generator_norm": "none", "critic_norm": "none"},
    ),
}


# ---------------------------------------------------------------- devices


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is CUDA where there is one, else Apple's MPS, else the CPU.

    ValueError, naming what is there, for a device that is not.
    """
    present = available_devices()
    if name == "auto":
        return torch.device(present[0])
    # A bare "cuda" is the current one of several.
    if name not in present and name not in {device.split(":")[0] for device in present}:
        raise ValueError(f"no device {name!r} here; there is: auto, {', '.join(present)}")
    return torch.device(name)


def available_devices() -> list[str]:
    """Names of the devices of this machine, the one to prefer first."""
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory that the device has in all, or None where that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
