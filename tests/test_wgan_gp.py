"""The networks: shapes, sizes, ranges; the choice of a device."""

import inspect
import math
from copy import deepcopy
from itertools import groupby

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.textbook import plain_layers
from utils import gradient_penalty
from wgan_gp import (
    MODELS,
    CoarseToFineCritic,
    CriticConv2d,
    DCGANCritic,
    DCGANGenerator,
    DenseCritic,
    DenseGenerator,
    DownsampleConv2d,
    Generator,
    LeakyReLU,
    OrthonormalLinear,
    Patches,
    ResidualBlock,
    ResidualCritic,
    ResidualGenerator,
    UpsampleConv2d,
    WithThumbnail,
    choose_device,
    convolve,
    count_halvings,
    half_shape,
    halve,
    normalisation,
    one_hot_categories,
    pad_channels,
    power_iteration,
)

SIZES = [(8, 8), (28, 28), (32, 32), (48, 48), (64, 64), (96, 96), (128, 128), (256, 128), (64, 96)]
SIZES += [(20, 20), (28, 56)]  # whose critic halves once more
CONVOLUTIONS = [("dcgan", {}), ("dcgan", {"upsampling": "nearest"}), ("residual", {})]
CASES = [(model, options, size) for model, options in CONVOLUTIONS for size in SIZES]
CASES += [("dense", {}, size) for size in ((28, 28), (30, 17), (2, 3))]


@pytest.mark.parametrize(("model", "options", "size"), CASES)
def test_networks_make_and_score_every_size(model, options, size):
    images = MODELS[model].generator((3, *size), 5, width=2, **options)(torch.randn(2, 5))
    assert images.shape == (2, 3, *size)
    assert MODELS[model].critic((3, *size), width=2)(images).shape == (2,)


DCGAN = [(DCGANGenerator, 64), (DCGANCritic, 64), (DCGANCritic, 28)]
RESIDUAL = [(n, side) for n in (ResidualGenerator, ResidualCritic) for side in (32, 64)]


@pytest.mark.parametrize(("network", "side"), [*DCGAN, *RESIDUAL])
def test_the_docstrings_trace_the_shapes(network, side):
    shapes = []
    model = network((3, side, side), width=64)
    for layer in model.layers:
        layer.register_forward_hook(lambda layer, inputs, output: shapes.append(output.shape[1:]))
    model(torch.randn(1, 128) if issubclass(network, Generator) else torch.randn(1, 3, side, side))
    names = ["x".join(map(str, shape)) for shape, _ in groupby(shapes)]
    if issubclass(network, Generator):
        names[0] = "noise 128"  # in place of the first layer's flat values
        names[-1] = f"Cx{side}x{side}"
    else:
        names.insert(0, f"Cx{side}x{side}")
    assert f"Width 64: {' -> '.join(names)}" in network.__doc__


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_one_to_four_channels(name, channels):
    shape = (channels, 16, 16)
    images = MODELS[name].generator(shape, 5, width=4)(torch.randn(2, 5))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert MODELS[name].critic(shape, width=4)(images).shape == (2,)


@pytest.mark.parametrize(("side", "stages"), [(8, 1), (28, 2), (32, 3), (48, 3), (64, 4), (128, 5)])
def test_the_number_of_stages_follows_from_the_size(side, stages):
    assert count_halvings(side, side) == stages


@pytest.mark.parametrize(
    ("size", "smaller"),
    [
        ((30, 30), "28x28"),
        ((100, 100), "96x96"),
        ((218, 178), "192x160"),
        ((7, 7), "8x8"),
        ((64, 65), "64x64"),
    ],
)
def test_sizes_that_do_not_halve_name_one_that_does(size, smaller):
    with pytest.raises(ValueError, match=f"use --image-size {smaller}$"):
        count_halvings(*size)


def test_each_suggested_size_works():
    for height in range(1, 150, 3):
        for width in range(1, 150, 7):
            try:
                count_halvings(height, width)
            except ValueError as error:
                name = str(error).split("--image-size ")[1]
                assert count_halvings(*map(int, name.split("x"))) > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_conditional_critic_adds_the_projection_of_its_features_on_the_class(name):
    critic = MODELS[name].critic((1, 16, 16), width=4, num_classes=3)
    images, labels = torch.randn(6, 1, 16, 16), torch.tensor([0, 1, 2, 2, 1, 0])
    without_classes = critic.score(critic.layers(images)).squeeze(1)
    torch.testing.assert_close(critic(images, labels), without_classes)  # embeddings start at zero
    torch.nn.init.normal_(critic.class_embedding.weight)
    inner = [critic.layers(images)[i] @ critic.class_embedding.weight[labels[i]] for i in range(6)]
    torch.testing.assert_close(critic(images, labels), without_classes + torch.stack(inner))


@pytest.mark.parametrize("name", MODELS)
def test_the_class_changes_what_is_generated_from_the_same_noise(name):
    generator = MODELS[name].generator((1, 16, 16), 5, width=4, num_classes=2).eval()
    noise, labels = torch.randn(1, 5).expand(4, 5), torch.tensor([0, 1, 0, 1])
    images = generator(noise, labels)
    torch.testing.assert_close(images[:2], images[2:])
    assert (images[0] - images[1]).abs().max() > 0.01 * images.abs().max()


@pytest.mark.parametrize("size", [(16, 24), (8, 8)])
@pytest.mark.parametrize("name", MODELS)
def test_the_centre_of_a_cluster_changes_what_is_generated_from_the_same_noise(name, size):
    generator = MODELS[name].generator((3, *size), 5, width=4, clusters=2).eval()
    noise, labels = torch.randn(1, 5).expand(2, 5), torch.tensor([0, 1])
    before = generator(noise, labels)
    generator.centres[1] = torch.randn(3 * 16 * 16)
    images = generator(noise, labels)
    torch.testing.assert_close(images[0], before[0])
    assert (images[1] - before[1]).abs().max() > 0.01 * before.abs().max()


def test_each_place_of_the_first_features_sees_its_2x2_pixels_of_the_thumbnail():
    layers = [nn.Linear(5, 2 * 8 * 8), nn.Unflatten(1, (2, 8, 8))]
    module = WithThumbnail(layers, channels=3, features=2)
    noise, thumbnail = torch.randn(4, 5), torch.randn(4, 3, 16, 16)
    features = module(torch.cat([noise, thumbnail.flatten(1)], 1))
    gain = features - nn.Sequential(*layers)(noise)
    for row, column in ((0, 0), (2, 7)):
        pixels = thumbnail[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = pixels.flatten(1) @ module.pixels.weight.flatten(1).T + module.pixels.bias
        torch.testing.assert_close(gain[:, :, row, column], expected)


@pytest.mark.parametrize("name", MODELS)
def test_at_first_the_noise_matters_more_than_the_class(name):
    generator = MODELS[name].generator((1, 16, 16), 64, width=8, num_classes=2).eval()
    noise, labels = torch.randn(200, 64), torch.arange(2).repeat_interleave(100)
    images = generator(noise, labels)
    of_noise = images[:100].std(0).mean()
    of_class = (generator(noise, 1 - labels) - images).std(0).mean()
    assert of_class < 0.5 * of_noise


@pytest.mark.parametrize("name", MODELS)
def test_the_generators_width_is_its_own_or_the_critics(name):
    def shapes(network, **widths):
        return [parameter.shape for parameter in network((3, 16, 16), **widths).parameters()]

    generator, critic = MODELS[name].generator, MODELS[name].critic
    wide = shapes(generator, width=8)
    assert shapes(generator, width=4, generator_width=8) == wide
    assert shapes(generator, width=8, generator_width=0) == wide != shapes(generator, width=4)
    assert "generator_width" not in inspect.signature(critic).parameters


def test_dcgan_weights_start_as_the_paper_says():
    for network in (DCGANGenerator((1, 28, 28)), DCGANCritic((1, 28, 28))):
        weights = [p for p in network.parameters() if p.dim() > 1 and p.numel() > 10_000]
        assert weights
        for weight in weights:
            assert weight.mean().abs() < 1e-3
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_dense_layers_pass_the_noise_on_at_first():
    layers = list(DenseGenerator((2,), noise_dim=512, width=512).layers)
    signal = torch.randn(1000, 512)
    for layer in layers[:9]:  # three times linear, nothing, ReLU
        signal = layer(signal)
    assert 0.5 < signal.square().mean() < 2


def test_scores_are_not_capped():
    for critic in (DCGANCritic((1, 16, 16), 4), DenseCritic((1, 16, 16), 8)):
        images = 1e6 * torch.randn(4, 1, 16, 16)
        assert critic(images).abs().max() > 10


def test_dense_points_are_not_capped_and_have_the_papers_three_hidden_layers():
    generator = DenseGenerator((2,), noise_dim=2, width=512)
    assert generator(1e4 * torch.randn(8, 2)).abs().max() > 1
    shapes = [tuple(p.shape) for p in DenseCritic((2,), width=512).parameters() if p.dim() == 2]
    assert shapes == [(512, 2), (512, 512), (512, 512), (1, 512)]


NORMALISED = [("layer", 4, (1, 2, 3)), ("instance", 4, (2, 3)), ("batch", 4, (0, 2, 3))]
NORMALISED += [("layer", 2, (1,)), ("batch", 2, (0,))]  # dense


@pytest.mark.parametrize(("name", "dimensions", "axes"), NORMALISED)
@pytest.mark.parametrize("critic", [False, True])
def test_normalised_values_have_mean_0_and_variance_1(name, dimensions, axes, critic):
    x = 3 * torch.randn((9, 6, 4, 4)[:dimensions]) + 2
    expected = (x - x.mean(axes, keepdim=True)) / x.std(axes, correction=0, keepdim=True)
    layer = normalisation(name, 6, critic, dense=dimensions == 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "options", "remedy"),
    [
        (DCGANGenerator, {}, "--model dense"),
        (DCGANCritic, {}, "--model dense"),
        (DenseCritic, {"patch_features": 4}, "--patch-features 0"),
        (DenseCritic, {"critic_norm": "instance"}, "one of none, layer, batch"),
    ],
)
def test_what_needs_height_and_width_refuses_points(network, options, remedy):
    with pytest.raises(ValueError, match=f": use {remedy}"):
        network((2,), **options)


def test_a_critic_keeps_no_running_statistics_and_a_generator_does():
    assert not list(DCGANCritic((1, 16, 16), 4, critic_norm="batch").buffers())
    assert list(DCGANGenerator((1, 16, 16), 4, 4).buffers())


def test_auto_prefers_cuda_then_mps_then_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda:0")
    assert choose_device("cuda") == torch.device("cuda:0")  # CUDA calls need an index
    assert choose_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="no device 'cuda'; available devices: auto, cpu"):
        choose_device("cuda")
    with pytest.raises(ValueError, match="no device 'gpu'"):
        choose_device("gpu")


# ---------------------------------------------------------------- layers of critics

SIZES_OF_CONVOLUTIONS = [(4, 2, 1), (3, 1, 1), (1, 1, 0), (3, 2, 1), (4, 1, 1), (1, 2, 0)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding"), SIZES_OF_CONVOLUTIONS)
def test_both_derivatives_of_a_convolution_are_right(kernel, stride, padding, bias):
    double = {"dtype": torch.float64, "requires_grad": True}
    x, weight = torch.randn(2, 3, 6, 7, **double), torch.randn(2, 3, kernel, kernel, **double)
    inputs = (x, weight, torch.randn(2, **double) if bias else None)

    def function(*tensors):
        return convolve(*tensors, (stride, stride), (padding, padding))

    expected = F.conv2d(*inputs, stride, padding)
    torch.testing.assert_close(function(*inputs), expected)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_both_derivatives_of_the_activation_are_right(slope):
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LeakyReLU(slope), x)
    assert torch.autograd.gradgradcheck(LeakyReLU(slope), x)


def penalty_gradients(critic, images, compiled, precision=torch.float32):
    """The gradient of a penalty with respect to the critic's weights, as one vector."""

    def penalty(critic, images):
        enabled = precision != torch.float32
        with torch.autocast("cpu", precision if enabled else None, enabled=enabled):
            return gradient_penalty(critic, images)

    if compiled:
        torch.compiler.reset()
        penalty = torch.compile(penalty, fullgraph=True, backend="aot_eager")
    weights = [p for p in critic.parameters() if p.dim() > 1]  # a penalty has no bias gradients
    return torch.cat([g.flatten() for g in torch.autograd.grad(penalty(critic, images), weights)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("network", "compiled"),
    [
        (DCGANCritic, False),
        (DCGANCritic, True),
        (ResidualCritic, False),
        pytest.param(ResidualCritic, True, marks=pytest.mark.nightly),
    ],
)
def test_a_penalty_has_the_gradient_it_has_with_pytorchs_layers(network, layout, compiled):
    """Compiled, it is the test that the compiler does not drop the second derivative."""
    ours = network((3, 16, 16), width=4).to(memory_format=layout)
    pytorchs = plain_layers(deepcopy(ours))
    assert sum(isinstance(module, CriticConv2d) for module in ours.modules()) >= 2
    assert not any(isinstance(m, CriticConv2d | LeakyReLU) for m in pytorchs.modules())
    images = torch.randn(6, 3, 16, 16).to(memory_format=layout)
    found = penalty_gradients(ours, images, compiled)
    expected = penalty_gradients(pytorchs, images, compiled=False)
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    rounded = penalty_gradients(ours, images, compiled, torch.bfloat16)
    assert torch.cosine_similarity(rounded, expected, dim=0) > 0.95
    assert not torch.equal(rounded, found)


@pytest.mark.parametrize(
    "option", [{"dilation": 2}, {"padding_mode": "reflect"}, {"groups": 2}], ids=str
)
def test_the_critics_convolution_refuses_options_that_it_does_not_have(option):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(option))}'"):
        CriticConv2d(4, 4, 3, padding=1, **option)


def test_zero_channels_change_no_value_and_no_gradient():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 4, 4)
    results = []
    for pad in (pad_channels, lambda images: images):
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = convolve(*map(pad, inputs), None, (2, 2), (1, 1))
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert pad_channels(x).shape == (2, 8, 8, 8)
    assert pad_channels(torch.zeros(1, 16, 2, 2)).shape == (1, 16, 2, 2)


@pytest.mark.parametrize("network", [DCGANGenerator, ResidualGenerator])
def test_a_generator_equals_upsampling_before_a_convolution(network):
    options = {"upsampling": "nearest"} if network is DCGANGenerator else {}
    ours = network((3, 16, 24), 5, width=4, **options).double()
    pytorchs = plain_layers(deepcopy(ours))
    assert any(isinstance(module, UpsampleConv2d) for module in ours.modules())
    assert any(isinstance(module, torch.nn.Upsample) for module in pytorchs.modules())
    noise = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(noise), pytorchs(noise), rtol=0, atol=1e-12)


def test_a_downsampling_convolution_is_a_convolution_before_a_mean():
    layer = DownsampleConv2d(3, 5).double()
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    expected = F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1), 2)
    torch.testing.assert_close(layer(x), expected)


# ---------------------------------------------------------------- bounded layers of critics


def matrices(critic):
    """The weights of each layer as a matrix."""
    layers = (m for m in critic.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d))
    return [layer.weight.detach().flatten(1) for layer in layers]


@pytest.mark.parametrize("network", [DCGANCritic, ResidualCritic, DenseCritic])
def test_spectral_normalisation_keeps_the_largest_singular_value_at_one(network):
    critic = network((1, 16, 16), width=8, critic_norm="spectral")
    optimizer = torch.optim.SGD(critic.parameters(), 0.1)
    for _ in range(30):
        critic(torch.randn(16, 1, 16, 16)).square().mean().backward()
        optimizer.step()
        power_iteration(critic)
    plain = network((1, 16, 16), width=8)
    assert [m.shape for m in matrices(critic)] == [m.shape for m in matrices(plain)]
    for matrix in matrices(critic):
        assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1, abs=0.03)


def test_scores_between_updates_do_not_depend_on_how_often_they_are_computed():
    critic, images = DCGANCritic((1, 16, 16), 4, critic_norm="spectral"), torch.randn(8, 1, 16, 16)
    assert torch.equal(critic(images), critic(images))


@pytest.mark.parametrize(("shape", "width"), [((1,), 8), ((2,), 64), ((1, 9, 9), 32)])
def test_orthonormal_layers_are_orthonormal(shape, width):
    critic = DenseCritic(shape, width, critic_norm="orthonormal")
    layers = [layer for layer in critic.modules() if isinstance(layer, OrthonormalLinear)]
    assert len(layers) == 4
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        with torch.autocast("cpu", torch.bfloat16):  # in which no layer would be
            columns = layer(torch.eye(layer.in_features)) - layer.bias
        singular = torch.linalg.svdvals(columns.detach())
        torch.testing.assert_close(singular, torch.ones_like(singular), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("deviation", "shift"), [(1.0, 2.0), (2.0, 0.0)])
def test_an_orthonormal_critic_reaches_the_distance_and_does_not_exceed_it(deviation, shift):
    """In one dimension, of N(shift, deviation^2) from N(0, 1): |shift|, or (deviation - 1) E|X|."""
    quantiles = torch.special.ndtri((torch.arange(256) + 0.5) / 256)[:, None]
    real, fake = deviation * quantiles + shift, quantiles
    exact = (real - fake).abs().mean().item()
    assert exact == pytest.approx(shift or (deviation - 1) * (2 / math.pi) ** 0.5, rel=0.01)
    critic = DenseCritic((1,), 16, critic_norm="orthonormal")
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2, betas=(0.0, 0.9))
    for _ in range(300):
        optimizer.zero_grad()
        (critic(fake).mean() - critic(real).mean()).backward()
        optimizer.step()
    estimate = (critic(real).mean() - critic(fake).mean()).item()
    assert 0.98 * exact < estimate < (1 + 1e-5) * exact


@pytest.mark.parametrize("options", [{"patch_features": 4}, {"num_classes": 2}, {"width": 7}])
def test_an_orthonormal_critic_refuses_what_is_not_bounded(options):
    with pytest.raises(ValueError, match="has no patches, no classes and an even width"):
        DenseCritic((1, 16, 16), critic_norm="orthonormal", **options)


# ---------------------------------------------------------------- residual


def convolution(before, after, side):
    return (before * side**2 + 1) * after


def test_residual_networks_for_cifar10_are_the_papers():
    """Gulrajani et al. 2017, appendix F: three blocks up from 4x4; two down, two more; 128 wide."""
    up = 2 * convolution(128, 128, 3) + convolution(128, 128, 1) + 2 * 256
    generator = (128 + 1) * 128 * 16 + 3 * up + 256 + convolution(128, 3, 3)
    first = convolution(3, 128, 3) + convolution(128, 128, 3) + convolution(3, 128, 1)
    down = 2 * convolution(128, 128, 3) + convolution(128, 128, 1)
    critic = first + down + 2 * 2 * convolution(128, 128, 3) + 128 + 1
    for network, weights in (
        (ResidualGenerator((3, 32, 32), width=128), generator),
        (ResidualCritic((3, 32, 32), width=128), critic),
    ):
        assert sum(parameter.numel() for parameter in network.parameters()) == weights


def test_a_block_of_zero_weights_is_its_shortcut():
    x = torch.randn(2, 4, 8, 8)
    for resize, expected in (
        ("", x),
        ("up", x.repeat_interleave(2, 2).repeat_interleave(2, 3)),
        ("down", F.avg_pool2d(x, 2)),
    ):
        block = ResidualBlock(4, 4, "none", resize, critic=True)
        for parameter in block.path.parameters():
            torch.nn.init.zeros_(parameter)
        if resize:
            torch.nn.init.dirac_(block.shortcut[1].weight)
            torch.nn.init.zeros_(block.shortcut[1].bias)
        torch.testing.assert_close(block(x), expected)


# ---------------------------------------------------------------- the dense critic's patches


@pytest.mark.parametrize("size", [(28, 28), (9, 17), (3, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_patches_are_a_convolution(size, layout):
    images = torch.randn(2, 3, *size).to(memory_format=layout)
    layer = Patches((3, *size), patch_features=5)
    # The kernels of blocks: 4x4 pixels of each channel, and 2x2 blocks.
    kernels = layer.convolution.weight.view(5, 3, 4, 4, 2, 2).permute(0, 1, 4, 2, 5, 3)
    expected = F.conv2d(
        F.pad(images, (0, -size[1] % 4, 0, -size[0] % 4)),
        kernels.reshape(5, 3, 8, 8),
        layer.convolution.bias,
        stride=4,
        padding=2,
    )
    features = layer(images)
    torch.testing.assert_close(features, expected.permute(0, 2, 3, 1))
    assert layer.features == features[0].numel()


def test_a_critic_of_patches_sees_every_pixel_of_its_image_only():
    critic = DenseCritic((1, 12, 12), width=8, patch_features=3)
    images = torch.randn(4, 1, 12, 12, requires_grad=True)
    (gradients,) = torch.autograd.grad(critic(images)[1], images)
    assert (gradients[1] != 0).all() and not gradients[[0, 2, 3]].any()


def test_texture_features_are_a_scaled_mean_over_all_places_seen_together_with_the_shape():
    critic = DenseCritic((1, 16, 16), width=8, patch_features=3, texture_features=2)
    images = torch.randn(5, 1, 16, 16)
    *first, both, hidden, _, _ = critic.layers
    patches = torch.nn.Sequential(*first)(images)
    dense, convolution = both.shape[1], both.texture[0]
    maps = F.conv2d(patches.permute(0, 3, 1, 2), convolution.weight, convolution.bias, 2, 1)
    assert maps.shape == (5, 2, 2, 2)
    texture = maps.relu().sum((2, 3)) / 2  # the mean of four places, times the root of four
    features = torch.cat([dense(patches.flatten(1)).relu(), texture], 1)
    expected = critic.score(hidden(features).relu()).squeeze(1)
    torch.testing.assert_close(critic(images), expected)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_texture_of_a_single_patch_has_no_gradient_for_its_padding(precision):
    critic = DenseCritic((1, 4, 4), width=8, patch_features=32, texture_features=64)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        for _ in range(5):
            gradient_penalty(critic, torch.randn(8, 1, 4, 4)).backward()
    (kernel,) = (w.grad for n, w in critic.named_parameters() if n.endswith("texture.0.weight"))
    assert kernel[:, :, 1, 1].any()
    kernel[:, :, 1, 1] = 0
    assert not kernel.any()


# ---------------------------------------------------------------- coarse to fine


def test_halves_are_as_far_apart_as_images_of_equal_pixels():
    halves = torch.randn(2, 3, 8, 12)
    images = halves.repeat_interleave(2, 2).repeat_interleave(2, 3) / 2
    torch.testing.assert_close(halve(images), halves)
    torch.testing.assert_close(images.flatten(1).norm(dim=1), halves.flatten(1).norm(dim=1))


def test_a_coarse_generator_generates_the_halves_of_its_images():
    noise = torch.randn(4, 5)
    for upsampling in ("nearest", "transposed"):
        generator = DCGANGenerator((3, 16, 24), 5, width=4, upsampling=upsampling)
        generator.layers[-1] = torch.nn.Identity()  # the mean of a tanh is not that of its input
        images = generator(noise)
        generator.coarse = True
        torch.testing.assert_close(generator(noise), halve(images))
    generator = DenseGenerator((1, 9, 12), 5, width=8)
    images = generator(noise)
    generator.coarse = True
    torch.testing.assert_close(generator(noise), halve(images))
    assert generator(noise).shape == (4, 1, 4, 6)


@pytest.mark.parametrize("shape", [(2,), (1, 1, 4)])
def test_what_has_no_halves_is_refused(shape):
    with pytest.raises(ValueError, match="use --coarse 0"):
        half_shape(shape)


def test_halves_have_a_critic_of_their_own():
    critics = [DenseCritic(shape, width=8) for shape in ((3, 4, 6), (3, 8, 12))]
    critic, images = CoarseToFineCritic(*critics, height=8), torch.randn(5, 3, 8, 12)
    torch.testing.assert_close(critic(images), critics[1](images))
    torch.testing.assert_close(critic(halve(images)), critics[0](halve(images)))


# ---------------------------------------------------------------- categories


def test_the_largest_of_the_first_numbers_is_the_choice():
    noise = torch.randn(20_000, 5)
    chosen = one_hot_categories(noise, 3)
    assert torch.equal(chosen[:, 3:], noise[:, 3:])
    assert torch.equal(chosen[:, :3].argmax(1), noise[:, :3].argmax(1))
    assert sorted(set(chosen[:, :3].flatten().tolist())) == pytest.approx([0, 3**0.5])
    torch.testing.assert_close(chosen[:, :3].square().sum(1), torch.full((20_000,), 3.0))
    shares = chosen[:, :3].bool().float().mean(0)
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    assert one_hot_categories(noise, 0) is noise


@pytest.mark.parametrize("model", MODELS)
def test_a_generator_of_choices_alone_makes_as_many_samples(model):
    generator = MODELS[model].generator((1, 16, 16), noise_dim=4, width=8, categories=4).eval()
    assert generator.state_dict().keys() == (
        MODELS[model].generator((1, 16, 16), noise_dim=4, width=8).state_dict().keys()
    )
    with torch.no_grad():
        samples = generator(torch.randn(200, 4))
    assert len(torch.unique(samples.flatten(1).mul(1e4).round(), dim=0)) == 4
