"""The networks, and the device they run on.

A generator maps noise `(B, noise_dim)` to samples `(B, *sample_shape)`; a critic maps samples to
one unbounded score each, `(B,)`. The sample shape is `(C, H, W)` for images, with values in
[-1, 1], and `(D,)` for points. With `num_classes` > 0, both also take the class of each sample,
`(B,)` int64. `MODELS` lists the pairs of networks: a new architecture is one generator class, one
critic class and one entry. The other keyword parameters of their constructors are the model's
options, declared in wgan/config.py under the same names.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

Shape = tuple[int, ...]  # of a sample: (C, H, W) or (D,)


class Generator(nn.Module):
    """Base class of the generators: noise `(B, noise_dim)` to samples `(B, *sample_shape)`.

    Subclasses assign `layers`, which take `input_dim` values per sample. With `categories` = N, the
    first N noise dimensions are used as a one-hot choice among N categories. With `num_classes`, an
    embedding of the class, as long as the noise, is appended to the noise. With `clusters`, these
    are the classes, and `centre_dim` values follow: the centre of the cluster, a thumbnail or a
    point. While it is `coarse`, it generates halves of images (see `halve`).
    """

    layers: nn.Module
    coarse = False

    def __init__(
        self,
        sample_shape: Shape,
        noise_dim: int,
        categories: int,
        num_classes: int,
        clusters: int = 0,
    ):
        super().__init__()
        self.sample_shape, self.noise_dim = tuple(sample_shape), noise_dim
        self.categories, self.num_classes = categories, clusters or num_classes
        self.input_dim = 2 * noise_dim if self.num_classes else noise_dim
        self.centre_dim = prod(centre_shape(sample_shape)) if clusters else 0
        if self.num_classes:
            self.class_embedding = nn.Embedding(self.num_classes, noise_dim)
            # Small beside the noise, as otherwise all samples of a class become alike.
            nn.init.normal_(self.class_embedding.weight, 0.0, 0.1)
        if clusters:
            self.register_buffer("centres", torch.zeros(clusters, self.centre_dim))

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        inputs = [one_hot_categories(noise, self.categories)]
        if self.num_classes:
            inputs.append(self.class_embedding(labels))
        if self.centre_dim:
            inputs.append(self.centres[labels])
        inputs = torch.cat(inputs, 1)
        return self.halves(inputs) if self.coarse else self.layers(inputs)

    def halves(self, inputs: Tensor) -> Tensor:
        return halve(self.layers(inputs))


class Critic(nn.Module):
    """Base class of the critics: samples `(B, *sample_shape)` to scores `(B,)`.

    Subclasses assign `layers`, from samples to features `(B, F)`, and call `add_score`. The score
    is linear in the features, and there is no sigmoid at the end: a critic's score is not a
    probability (Arjovsky et al. 2017, section 3). With `num_classes`, the features h of a sample
    of class y are also projected onto an embedding of y, which adds <embedding(y), h> to the score
    (Miyato and Koyama 2018, equation 4).
    """

    layers: nn.Module

    def add_score(self, features: int, num_classes: int) -> None:
        self.score = nn.Linear(features, 1)
        self.num_classes = num_classes
        if num_classes:
            self.class_embedding = nn.Embedding(num_classes, features)
            nn.init.zeros_(self.class_embedding.weight)  # at first, the class does not matter

    def forward(self, samples: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.layers(samples).to(self.score.weight.dtype)
        # The loss leaves the level of the scores free. Far from 0, bfloat16 would round too much.
        with torch.autocast(samples.device.type, enabled=False):
            scores = self.score(features).squeeze(1)
            if self.num_classes:
                scores = scores + (self.class_embedding(labels) * features).sum(1)
        return scores


# ---------------------------------------------------------------- DCGAN


class DCGANGenerator(Generator):
    """Convolutional generator (Radford et al. 2016, figure 1): project, then double the size.

    Width 64: noise 128 -> 512x4x4 -> 256x8x8 -> 128x16x16 -> 64x32x32 -> Cx64x64

    Noise `(B, noise_dim)` to images `(B, C, H, W)` in [-1, 1], for every size that
    `count_halvings` accepts. `upsampling="nearest"` repeats pixels and convolves, which avoids
    the checkerboard artefacts of transposed convolutions (Odena et al. 2016).
    """

    def __init__(
        self,
        sample_shape: Shape,
        noise_dim: int = 128,
        width: int = 64,
        generator_width: int = 0,
        generator_norm: str = "batch",
        upsampling: str = "transposed",
        categories: int = 0,
        num_classes: int = 0,
        clusters: int = 0,
    ):
        super().__init__(sample_shape, noise_dim, categories, num_classes, clusters)
        channels, height, image_width = image_shape(sample_shape)
        stages = count_halvings(height, image_width)
        widths = stage_widths(generator_width or width, stages)[::-1]
        base = (widths[0], height >> stages, image_width >> stages)
        bias = generator_norm == "none"  # a normalisation has a bias of its own
        layers = [nn.Linear(self.input_dim, prod(base), bias=bias), nn.Unflatten(1, base)]
        for before, after in pairwise(widths):
            layers += [normalisation(generator_norm, before), nn.ReLU(inplace=True)]
            layers += [upsampling_convolution(upsampling, before, after, bias)]
        layers += [normalisation(generator_norm, widths[-1]), nn.ReLU(inplace=True)]
        layers += [upsampling_convolution(upsampling, widths[-1], channels), nn.Tanh()]
        if clusters:  # after the first doubling, or before it if there is only one
            first, features = (5, widths[1]) if stages > 1 else (2, widths[0])
            layers[:first] = [WithThumbnail(layers[:first], channels, features)]
        self.layers = nn.Sequential(*layers)
        self.apply(dcgan_initialisation)

    def halves(self, inputs: Tensor) -> Tensor:
        """The tanh of the last convolution's means, which need fewer products than its outputs."""
        *_, last, tanh = self.layers
        if not isinstance(last, UpsampleConv2d):
            return super().halves(inputs)
        return 2 * tanh(last.means(self.layers[:-2](inputs)))


class DCGANCritic(Critic):
    """Convolutional critic (Radford et al. 2016): halve the size, double the channels, score.

    Width 64: Cx64x64 -> 64x32x32 -> 128x16x16 -> 256x8x8 -> 512x4x4 -> 8192 features -> 1 score
    Width 64: Cx28x28 -> 64x14x14 -> 128x7x7 -> 256x3x3 -> 2304 features -> 1 score

    Images `(B, C, H, W)` to scores `(B,)`, for every size that `count_halvings` accepts. If
    the shorter side of the features is more than 4, they are halved once more: a score that is
    linear in 7x7 features would not see a whole shape.
    """

    def __init__(
        self, sample_shape: Shape, width: int = 64, critic_norm: str = "none", num_classes: int = 0
    ):
        super().__init__()
        channels, height, image_width = image_shape(sample_shape)
        stages = count_halvings(height, image_width)
        stages += (min(height, image_width) >> stages) > 4
        widths = stage_widths(width, stages)
        bias = critic_norm in ("none", "spectral")  # other normalisations have a bias of their own
        # Radford et al. 2016, section 3: no normalisation on the critic's first layer.
        layers = [CriticConv2d(channels, widths[0], 4, 2, 1), LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [CriticConv2d(before, after, 4, 2, 1, bias=bias)]
            layers += [normalisation(critic_norm, after, critic=True), LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.add_score(widths[-1] * (height >> stages) * (image_width >> stages), num_classes)
        self.apply(dcgan_initialisation)
        bound_weights(self, critic_norm)


def stage_widths(width: int, stages: int) -> list[int]:
    """Channels after each of the critic's stages: each doubles them, up to eight times `width`."""
    return [width * 2 ** min(stage, 3) for stage in range(stages)]


def upsampling_convolution(name: str, before: int, after: int, bias: bool = True) -> nn.Module:
    """Doubles height and width: `(B, before, H, W)` to `(B, after, 2H, 2W)`."""
    if name == "transposed":
        return nn.ConvTranspose2d(before, after, 4, 2, 1, bias=bias)
    return UpsampleConv2d(before, after, bias)


class UpsampleConv2d(nn.Conv2d):
    """Repeats each pixel 2x2, then convolves 3x3: `(B, before, H, W)` to `(B, after, 2H, 2W)`.

    Both together are one transposed convolution, which needs 4 products per output instead of 9.
    """

    def __init__(self, before: int, after: int, bias: bool = True):
        super().__init__(before, after, 3, 1, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.kernel(), self.bias, stride=2, padding=1)

    def means(self, x: Tensor) -> Tensor:
        """The means of 2x2 outputs: `(B, before, H, W)` to `(B, after, H, W)`."""
        kernel = F.avg_pool2d(self.kernel(), 2, padding=1)
        return F.conv_transpose2d(x, kernel, self.bias, padding=1)

    def kernel(self) -> Tensor:
        return sum_of_offsets(self.weight.flip(2, 3).transpose(0, 1))


def sum_of_offsets(kernel: Tensor) -> Tensor:
    """3x3 kernels `(A, B, 3, 3)` convolved with 2x2 ones: `(A, B, 4, 4)`, channels last."""
    offsets = ((left, 1 - left, top, 1 - top) for left in (0, 1) for top in (0, 1))
    kernel = sum(F.pad(kernel, offset) for offset in offsets)
    return kernel.contiguous(memory_format=torch.channels_last)  # as `build_state` has networks


def dcgan_initialisation(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases zero (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# ---------------------------------------------------------------- residual


class ResidualGenerator(Generator):
    """Residual generator of Gulrajani et al. 2017 (appendix F), for the image sizes of a DCGAN.

    Width 64: noise 128 -> 64x4x4 -> 64x8x8 -> 64x16x16 -> 64x32x32 -> Cx32x32
    Width 64: noise 128 -> 512x4x4 -> 512x8x8 -> 256x16x16 -> 128x32x32 -> 64x64x64 -> Cx64x64

    Noise `(B, noise_dim)` to images `(B, C, H, W)` in [-1, 1]. With up to three doublings of the
    size, all blocks have `width` channels, as in the paper's network for CIFAR-10; with more, the
    first has 8 times `width`, as in its network for 64x64.
    """

    def __init__(
        self,
        sample_shape: Shape,
        noise_dim: int = 128,
        width: int = 64,
        generator_width: int = 0,
        generator_norm: str = "batch",
        categories: int = 0,
        num_classes: int = 0,
        clusters: int = 0,
    ):
        super().__init__(sample_shape, noise_dim, categories, num_classes, clusters)
        channels, height, image_width = image_shape(sample_shape)
        stages = count_halvings(height, image_width)
        levels = residual_levels(generator_width or width, stages)[::-1]
        base = (levels[0], height >> stages, image_width >> stages)
        layers = [nn.Linear(self.input_dim, prod(base)), nn.Unflatten(1, base)]
        layers += [ResidualBlock(*pair, generator_norm, "up") for pair in pairwise(levels)]
        if clusters:
            layers[:3] = [WithThumbnail(layers[:3], channels, levels[1])]
        layers += [normalisation(generator_norm, levels[-1]), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(levels[-1], channels, 3, 1, 1), nn.Tanh())
        residual_initialisation(self)


class ResidualCritic(Critic):
    """Residual critic of Gulrajani et al. 2017: images `(B, C, H, W)` to scores `(B,)`.

    Width 64: Cx32x32 -> 64x16x16 -> 64x8x8 -> 64x1x1 -> 64 -> 1
    Width 64: Cx64x64 -> 64x64x64 -> 128x32x32 -> 256x16x16 -> 512x8x8 -> 512x4x4 -> 8192 -> 1

    With up to three halvings: two blocks that halve the size, two that keep it, and a mean over
    all positions (appendix F). With more: one block per halving, then a linear layer over all
    positions.
    """

    def __init__(
        self, sample_shape: Shape, width: int = 64, critic_norm: str = "none", num_classes: int = 0
    ):
        super().__init__()
        channels, height, image_width = image_shape(sample_shape)
        stages = count_halvings(height, image_width)
        levels = residual_levels(width, stages)
        block = partial(ResidualBlock, norm=critic_norm, critic=True)
        if stages <= CONSTANT_STAGES:
            layers = [block(channels, width, resize="down", first=True)]
            layers += [block(width, width, resize="down")] if stages > 1 else []
            layers += [block(width, width), block(width, width)]
            layers += [LeakyReLU(0.0), nn.AdaptiveAvgPool2d(1)]
            positions = 1
        else:
            layers = [CriticConv2d(channels, levels[0], 3, 1, 1)]
            layers += [block(*pair, resize="down") for pair in pairwise(levels)]
            layers += [LeakyReLU(0.0)]
            positions = (height >> stages) * (image_width >> stages)
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.add_score(levels[-1] * positions, num_classes)
        residual_initialisation(self)
        bound_weights(self, critic_norm)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `resize` is "up" (nearest), "down" (mean) or "".

    The `first` block of a critic takes images, so it has no activation before its convolution.
    """

    def __init__(
        self,
        before: int,
        after: int,
        norm: str,
        resize: str = "",
        critic: bool = False,
        first: bool = False,
    ):
        super().__init__()
        inner = before if resize == "down" and not first else after
        grow = nn.Upsample(scale_factor=2) if resize == "up" else nn.Identity()
        shrink = nn.AvgPool2d(2) if resize == "down" else nn.Identity()
        conv = CriticConv2d if critic else nn.Conv2d

        def activated(channels: int) -> list[nn.Module]:
            activation = LeakyReLU(0.0) if critic else nn.ReLU()
            return [normalisation(norm, channels, critic), activation]

        layers = [] if first else activated(before)
        up, down = resize == "up", resize == "down"
        layers += [UpsampleConv2d(before, inner) if up else conv(before, inner, 3, 1, 1)]
        layers += activated(inner)
        layers += [DownsampleConv2d(inner, after) if down else conv(inner, after, 3, 1, 1)]
        self.path = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if resize or before != after:
            # Resizing and a 1x1 convolution commute; this order is the cheapest.
            self.shortcut = nn.Sequential(shrink, conv(before, after, 1), grow)

    def forward(self, x: Tensor) -> Tensor:
        return self.path(x) + self.shortcut(x)


CONSTANT_STAGES = 3  # with more halvings, the widths of residual blocks differ


def residual_levels(width: int, stages: int) -> list[int]:
    """Channels at each of the `stages` + 1 sizes, from the full image to the smallest."""
    if stages <= CONSTANT_STAGES:
        return [width] * (stages + 1)
    return stage_widths(width, stages + 1)


def residual_initialisation(network: nn.Module) -> None:
    """He weights in the blocks' 3x3 convolutions, Glorot weights elsewhere (the authors' code)."""
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


class DenseGenerator(Generator):
    """Three hidden layers with ReLU (Gulrajani et al. 2017, toy data), for images or points.

    Width 512: noise 128 -> 512 -> 512 -> 512 -> Cx28x28

    Noise `(B, noise_dim)` to samples `(B, *sample_shape)`; images end in a tanh, points do not.
    """

    def __init__(
        self,
        sample_shape: Shape,
        noise_dim: int = 128,
        width: int = 512,
        generator_width: int = 0,
        generator_norm: str = "none",
        categories: int = 0,
        num_classes: int = 0,
        clusters: int = 0,
    ):
        super().__init__(sample_shape, noise_dim, categories, num_classes, clusters)
        width = generator_width or width
        sizes = (self.input_dim + self.centre_dim, width, width, width)
        output = nn.Linear(width, prod(sample_shape))
        layers = [*hidden_layers(sizes, generator_norm), output, nn.Unflatten(1, sample_shape)]
        if len(sample_shape) == 3:
            layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)
        self.apply(he_initialisation)
        nn.init.normal_(output.weight, 0.0, 0.02)  # so that no tanh is saturated at first
        with torch.no_grad():  # small beside the noise
            self.layers[0].weight[:, self.input_dim :] *= 0.1


class DenseCritic(Critic):
    """Three hidden layers with ReLU (Gulrajani et al. 2017, toy data): samples to scores `(B,)`.

    Width 512: Cx28x28 -> 512 -> 512 -> 512 features -> 1 score

    With `patch_features` = N, the first hidden layer computes N features of each small patch of an
    image. It then uses LeakyReLU without normalisation, like the first layer of a DCGAN critic. The
    second layer sees the shapes in the image, and `texture_features` of a convolution its texture;
    the third sees both together.
    With `critic_norm="orthonormal"`, the critic is 1-Lipschitz by construction: its activations are
    `MaxMin`, its layers `OrthonormalLinear`. ValueError with patches or classes, or an odd width.
    """

    def __init__(
        self,
        sample_shape: Shape,
        width: int = 512,
        critic_norm: str = "none",
        patch_features: int = 0,
        texture_features: int = 0,
        num_classes: int = 0,
    ):
        super().__init__()
        orthonormal = critic_norm == "orthonormal"
        if orthonormal and (patch_features or num_classes or width % 2):
            raise ValueError(
                "an orthonormal critic has no patches, no classes and an even width, and this one "
                f"has {patch_features} patch features, {num_classes} classes and width {width}: "
                "change these, or use another --critic-norm"
            )
        if patch_features:
            patches = Patches(sample_shape, patch_features)
            shape = hidden_layers((patches.features, width), critic_norm, critic=True)
            layers = [patches, LeakyReLU(0.2), nn.Sequential(nn.Flatten(), *shape)]
            if texture_features:
                layers[-1] = ShapeAndTexture(layers[-1], patch_features, texture_features)
            sizes = (width + texture_features, width)
            layers += hidden_layers(sizes, critic_norm, critic=True)
        else:
            sizes = (prod(sample_shape), width, width, width)
            layers = [nn.Flatten(), *hidden_layers(sizes, critic_norm, critic=True)]
        self.layers = nn.Sequential(*layers)
        self.add_score(width, num_classes)
        if orthonormal:
            self.score = OrthonormalLinear(width, 1)
        self.apply(he_initialisation)
        bound_weights(self, critic_norm)


def hidden_layers(sizes: tuple[int, ...], norm: str, critic: bool = False) -> list[nn.Module]:
    """Dense layers from each size to the next, each with normalisation and activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        if norm == "orthonormal":
            layers += [OrthonormalLinear(before, after), MaxMin()]
            continue
        activation = LeakyReLU(0.0) if critic else nn.ReLU()
        normalise = normalisation(norm, after, critic, dense=True)
        layers += [nn.Linear(before, after), normalise, activation]
    return layers


def he_initialisation(module: nn.Module) -> None:
    """Weights that preserve the signal's scale through ReLU layers, biases zero (He et al. 2015).

    As in the code of Gulrajani et al. 2017. PyTorch's default shrinks the signal in each layer, so
    that a generator's first samples would hardly depend on the noise.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


# ---------------------------------------------------------------- coarse to fine


class CoarseToFineCritic(nn.Module):
    """Two critics: one of images `(B, C, H, W)`, and one of their halves, which a generator learns
    first (coarse to fine, as in Karras et al. 2018, arXiv:1710.10196)."""

    def __init__(self, coarse: nn.Module, fine: nn.Module, height: int):
        super().__init__()
        self.coarse, self.fine, self.height = coarse, fine, height

    def forward(self, samples: Tensor, labels: Tensor | None = None) -> Tensor:
        critic = self.fine if samples.shape[2] == self.height else self.coarse
        return critic(samples, labels)


def halve(images: Tensor) -> Tensor:
    """Images `(B, C, H, W)` at half the size, `(B, C, H // 2, W // 2)`: the means of 2x2 pixels,
    times 2. With this factor, images of equal 2x2 pixels are as far apart as their halves, so that
    a gradient norm of 1 means the same for both."""
    return 2 * F.avg_pool2d(images, 2)


def half_shape(sample_shape: Shape) -> Shape:
    """The shape of `halve`; ValueError for points and for a side of one pixel."""
    channels, height, width = image_shape(sample_shape, "--coarse 0")
    if min(height, width) < 2:
        raise ValueError(f"{height}x{width} images have no halves: use --coarse 0")
    return channels, height // 2, width // 2


# ---------------------------------------------------------------- layers of critics
#
# A penalty differentiates a critic twice. These layers equal PyTorch's in value and in all
# derivatives, but the second derivative is computed in less time.


class CriticConv2d(nn.Conv2d):
    """`nn.Conv2d`, with these options only, whose second derivative is fast."""

    def __init__(self, before: int, after: int, size: int, stride=1, padding=0, bias=True):
        super().__init__(before, after, size, stride, padding, bias=bias)
        # Compiled without this, the penalty would silently lose its gradient. It is done here and
        # not on import, because it loads the compiler, which takes a second.
        torch.compiler.allow_in_graph(convolve)

    def kernel(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.kernel(), self.bias
        if torch.is_autocast_enabled(x.device.type):  # autocast does not look into `Convolution`
            precision = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(precision), weight.to(precision)
            bias = None if bias is None else bias.to(precision)
        if x.is_cuda:
            x, weight = pad_channels(x), pad_channels(weight)
        return convolve(x, weight, bias, self.stride, self.padding)


class DownsampleConv2d(CriticConv2d):
    """A 3x3 convolution, then the mean of 2x2 outputs: `(B, before, H, W)` to `(B, after, H/2,
    W/2)`. Computed as one 4x4 convolution with stride 2, which needs 16 products instead of 36.
    """

    def __init__(self, before: int, after: int):
        super().__init__(before, after, 3, 2, 1)

    def kernel(self) -> Tensor:
        return sum_of_offsets(self.weight) / 4


def pad_channels(images: Tensor) -> Tensor:
    """Zero channels up to a multiple of 8, with which cuDNN can use tensor cores."""
    missing = -images.shape[1] % 8
    return F.pad(images, (0, 0, 0, 0, 0, missing)) if missing else images


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding) -> Tensor:
    return Convolution.apply(x, weight, bias, stride, padding)


class Convolution(torch.autograd.Function):
    """y = w * x + b, with a first derivative made of operations that have fast derivatives.

    For a gradient g of y, the gradient of x is the transposed convolution w^T g. The penalty is a
    function of w^T g, so its update needs the derivative of w^T g with respect to w. PyTorch
    computes it as a convolution of the images with a kernel as large as an image, for which no
    library has fast code. But w^T g is linear in w: like every transposed convolution, it has a
    weight gradient that costs as much as that of y. Writing w^T g as `conv_transpose2d` lets
    autograd use it.
    """

    @staticmethod
    def forward(x, weight, bias, stride, padding):
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, g):
        (x, weight), stride, padding = ctx.saved_tensors, ctx.stride, ctx.padding
        needs_x, *needs_weights = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
            output_padding = [(side + 2 * pad - kernel) % step for side, kernel, step, pad in sizes]
            grad_x = F.conv_transpose2d(g, weight, None, stride, padding, output_padding)
        if any(needs_weights):
            _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                g,
                x,
                weight,
                [len(weight)],  # shape of the bias
                stride,
                padding,
                [1, 1],  # dilation
                False,  # transposed
                [0, 0],  # output padding
                1,  # groups
                [False, *needs_weights],  # which gradients to compute
            )
        return grad_x, grad_weight, grad_bias, None, None


class LeakyReLU(nn.Module):
    """x if x > 0, else slope * x. Its second derivative is zero almost everywhere, and a penalty's
    backward pass through `nn.LeakyReLU` would propagate these zeros through the whole critic, at
    the cost of two of twelve forward passes. Here, no gradient flows to the sign of x.
    """

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler fuses this product with its neighbours
            return x * torch.where(x > 0, 1.0, self.slope).to(x.dtype)
        return LeakyReLUFunction.apply(x, self.slope)


class LeakyReLUFunction(torch.autograd.Function):
    """LeakyReLU whose derivative g * slope(y) is differentiated with respect to g only."""

    @staticmethod
    def forward(x, slope):
        return F.leaky_relu(x, slope)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.slope = inputs[1]
        ctx.save_for_backward(output)  # the next layer keeps it in any case

    @staticmethod
    def backward(ctx, g):
        y = ctx.saved_tensors[0].detach()  # positive exactly where x is
        return torch.ops.aten.leaky_relu_backward(g, y, ctx.slope, True), None


# ---------------------------------------------------------------- bounded layers of critics


class SpectralNorm(nn.Module):
    """W / sigma, where sigma estimates the largest singular value of a layer's weights, as a matrix
    `(out, the others)` (Miyato et al. 2018, arXiv:1802.05957, algorithm 1).

    Unlike in the paper, a convolution's kernel is no bound of its slope, and neither is a residual
    block's. `direction` `(out,)` is the left singular vector, which `power_iteration` improves.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("direction", F.normalize(weight.detach().flatten(1).sum(1), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        matrix, left = weight.flatten(1), self.direction[:, None]
        right = F.normalize((left * matrix.detach()).sum(0), dim=0)
        return weight / (left * matrix * right).sum()  # autocast would round matrix products

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        matrix = weight.flatten(1)
        self.direction.copy_(F.normalize(matrix @ (matrix.T @ self.direction), dim=0))


def bound_weights(critic: nn.Module, norm: str) -> None:
    """Apply `SpectralNorm` to all layers of an initialised critic, if `norm` is "spectral"."""
    if norm == "spectral":
        for module in list(critic.modules()):
            if isinstance(module, nn.Linear | nn.Conv2d):
                parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight))
        power_iteration(critic, 20)


def power_iteration(critic: nn.Module, count: int = 1) -> None:
    """Follow the weights with `SpectralNorm`, if the critic has any; once per update of the critic,
    so that the scores between updates do not depend on how often they are computed."""
    for module in critic.modules():
        if parametrize.is_parametrized(module):
            norm = module.parametrizations.weight
            for _ in range(count):
                norm[0].iterate(norm.original)


class OrthonormalLinear(nn.Linear):
    """y = Q x + b: `(B, in)` to `(B, out)`, float32, where Q has orthonormal columns or rows.

    Q is the Cayley transform of the weights, (1 - A) / (1 + A) for a square layer. So the layer is
    1-Lipschitz, to the rounding of matrix products: on CUDA, that of TF32 (Trockman and Kolter
    2021, arXiv:2104.07167).
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            tall = self.in_features < self.out_features
            weight = self.weight if tall else self.weight.T  # (n, k), n >= k
            upper, lower = weight.split([weight.shape[1], weight.shape[0] - weight.shape[1]])
            skew = upper - upper.T + lower.T @ lower
            one = torch.eye(len(skew), device=x.device)
            inverse = torch.linalg.solve(one + skew, one)
            columns = torch.cat([2 * inverse - one, -2 * lower @ inverse])
            return F.linear(x.float(), columns if tall else columns.T, self.bias)


class MaxMin(nn.Module):
    """The maximum and the minimum of pairs of features, `(B, F)`: GroupSort of groups of 2, which
    preserves norms of gradients (Anil et al. 2019, arXiv:1811.05381, section 4.2)."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return torch.cat([torch.maximum(one, other), torch.minimum(one, other)], 1)


# ---------------------------------------------------------------- patches of dense critics

PATCH_STEP = 4  # pixels from one patch to the next; patches are twice as large, so they overlap


class Patches(nn.Module):
    """Images `(B, C, H, W)` to features of their 8x8 patches, `(B, rows, columns,
    patch_features)`, with zero padding.

    Computes `nn.Conv2d(C, patch_features, 8, stride=4, padding=2)` of images padded at the bottom
    and on the right to multiples of 4. It is written as a convolution of 2x2 blocks of 4x4 pixels
    each, because convolutions with few channels are slow on a CPU.
    """

    def __init__(self, sample_shape: Shape, patch_features: int):
        super().__init__()
        channels, height, width = image_shape(sample_shape, "--patch-features 0")
        right, bottom = 2 + -width % PATCH_STEP, 2 + -height % PATCH_STEP
        self.padding = (2, right, 2, bottom)
        self.features = ceil(height / PATCH_STEP) * ceil(width / PATCH_STEP) * patch_features
        self.convolution = CriticConv2d(channels * PATCH_STEP**2, patch_features, 2)

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous()  # a generator's are channels last, which is slow here
        blocks = F.pad(images, self.padding).unflatten(3, (-1, PATCH_STEP))
        blocks = blocks.unflatten(2, (-1, PATCH_STEP)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return self.convolution(blocks.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ShapeAndTexture(nn.Module):
    """Patch features `(B, rows, columns, N)` to features `(B, width + T)`: those of a dense layer,
    which knows where a patch is, and T of a convolution, averaged over the image, whose weights
    learn from all places. The mean is scaled as one of independent values with unit variance.
    """

    def __init__(self, shape: nn.Module, patch_features: int, texture_features: int):
        super().__init__()
        self.shape = shape
        convolution = CriticConv2d(patch_features, texture_features, 3, stride=2)
        self.texture = nn.Sequential(convolution, LeakyReLU(0.0))

    def forward(self, patches: Tensor) -> Tensor:
        # Padded here, because oneDNN's bfloat16 gradients of weights that see only its padding, as
        # those of a single patch, are sometimes NaN.
        maps = F.pad(patches.permute(0, 3, 1, 2), (1, 1, 1, 1))
        texture = self.texture(maps).flatten(2)
        texture = texture.mean(2) * texture.shape[2] ** 0.5
        return torch.cat([self.shape(patches), texture], 1)


# ---------------------------------------------------------------- clusters

THUMBNAIL = 16  # pixels per side


def centre_shape(sample_shape: Shape) -> Shape:
    """The shape of a cluster's centre: a thumbnail of an image, or a point."""
    return (*sample_shape[:1], THUMBNAIL, THUMBNAIL) if len(sample_shape) == 3 else sample_shape


class WithThumbnail(nn.Module):
    """The first layers of a generator, and a convolution of a thumbnail, which is added to their
    features: each place sees 2x2 pixels, so that the next layers refine an image.

    `(B, N + C * 16 * 16)` to `(B, F, h, w)`: the layers map the first N values to features; the
    other values are the thumbnail, which is resized to 2h x 2w. Instance-conditioned GANs also
    start from real images, from their features (Casanova et al. 2021, arXiv:2109.05070).
    """

    def __init__(self, layers: list[nn.Module], channels: int, features: int):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.pixels = nn.Conv2d(channels, features, 2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs, thumbnail = inputs.tensor_split([-self.pixels.in_channels * THUMBNAIL**2], 1)
        features = self.layers(inputs)
        size = [2 * side for side in features.shape[2:]]
        thumbnail = thumbnail.unflatten(1, (-1, THUMBNAIL, THUMBNAIL))
        return features + self.pixels(F.interpolate(thumbnail, size, mode="bilinear"))


# ---------------------------------------------------------------- shared


def image_shape(sample_shape: Shape, remedy: str = "--model dense") -> tuple[int, int, int]:
    """Return the `(C, H, W)` of a sample; ValueError for points, which have no height and width."""
    if len(sample_shape) != 3:
        raise ValueError(
            f"points with {sample_shape[0]} coordinates have no height and width: use {remedy}"
        )
    return sample_shape


def count_halvings(height: int, width: int) -> int:
    """Number of stages of a DCGAN's generator: halvings until the shorter side is 4 to 7 pixels.

    ValueError, naming a size that works, if a side cannot be halved that often.
    """
    stages = max(0, (min(height, width) // 4).bit_length() - 1)
    unit = 2**stages
    if not stages or height % unit or width % unit:
        sides = [side // unit * unit if stages else ceil(side / 8) * 8 for side in (height, width)]
        raise ValueError(
            f"convolutions for {height}x{width} images need sides of 8 pixels or more that can be "
            f"halved until the shorter one has 4 to 7: use --image-size {sides[0]}x{sides[1]}"
        )
    return stages


UPSAMPLINGS = ("transposed", "nearest")
NORMS = {  # constructors for the channels of images
    "none": nn.Identity,
    "layer": partial(nn.GroupNorm, 1),  # over channels, height and width
    "instance": partial(nn.InstanceNorm2d, affine=True),
    "batch": nn.BatchNorm2d,
}
DENSE_NORMS = {"none": nn.Identity, "layer": nn.LayerNorm, "batch": nn.BatchNorm1d}
CRITIC_NORMS = (*NORMS, "spectral", "orthonormal")


def normalisation(name: str, channels: int, critic: bool = False, dense: bool = False) -> nn.Module:
    """The normalisation after a convolution, or after a `dense` layer; ValueError if none exists.

    A critic's batch normalisation keeps no running statistics, as a critic is only used in
    training.
    """
    norms = DENSE_NORMS if dense else NORMS
    if critic and name == "spectral":
        return nn.Identity()  # see `bound_weights`
    if name not in norms:
        raise ValueError(
            f"normalisation {name!r} does not exist for {'dense' if dense else 'convolutional'} "
            f"networks: use one of {', '.join(norms)}"
        )
    options = {"track_running_stats": False} if critic and name == "batch" else {}
    return norms[name](channels, **options)


def one_hot_categories(noise: Tensor, categories: int) -> Tensor:
    """Use the first N = `categories` dimensions of the noise `(B, noise_dim)` as a one-hot choice.

    The largest of them becomes sqrt(N), the others 0, so that their mean square remains 1. A
    continuous generator maps connected noise to connected samples, including some between two
    modes (Khayatkhoei et al. 2018). A discrete choice lets it jump between modes, like the one-hot
    part of the noise in Mukherjee et al. 2019.
    """
    if not categories:
        return noise
    chosen = F.one_hot(noise[:, :categories].argmax(1), categories) * categories**0.5
    return torch.cat([chosen.to(noise.dtype), noise[:, categories:]], 1)


@dataclass(frozen=True)
class Model:
    """A generator and a critic class, and option values that suit them.

    Both classes take the sample shape first; their keyword parameters, except `num_classes`, are
    the model's options.
    """

    generator: type[nn.Module]
    critic: type[nn.Module]
    help: str
    settings: dict = field(default_factory=dict)


MODELS = {
    "dcgan": Model(DCGANGenerator, DCGANCritic, "convolutions, for images (Radford et al. 2016)"),
    "residual": Model(ResidualGenerator, ResidualCritic, "residual blocks, for images"),
    "mixed": Model(
        DCGANGenerator,
        DenseCritic,
        "DCGAN generator, dense critic, for images",
        {"width": 256, "generator_width": 24, "critic_norm": "none", "patch_features": 32},
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
    """The device called `name`, always with an index on CUDA. "auto" is CUDA if available, then
    Apple's MPS, then the CPU; "cuda" is the first CUDA device.

    ValueError, listing the available devices, for one that does not exist.
    """
    available = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    available += ["mps", "cpu"] if torch.backends.mps.is_available() else ["cpu"]
    for device in available:
        if name in ("auto", device, device.split(":")[0]):
            return torch.device(device)
    raise ValueError(f"no device {name!r}; available devices: auto, {', '.join(available)}")
