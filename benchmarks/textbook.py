"""The training loop of common tutorials, written plainly, as the baseline of the benchmarks.

Eager, float32, contiguous; separate passes for real, fake and mixed samples;
`autograd.grad(..., create_graph=True)`; an `.item()` after each update. Correct, and slow.
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from wgan.config import Config
from wgan.data import to_float_images
from wgan_gp import CriticConv2d, DownsampleConv2d, LeakyReLU, UpsampleConv2d


class Textbook:
    """A WGAN loop as in tutorials, over copies of two networks.

    `real` yields batches of images `(B, C, H, W)` in [-1, 1]. `step()` performs `n_critic` critic
    updates and one generator update. ValueError for a method without an entry in `PENALTIES`.
    """

    def __init__(
        self, config: Config, generator: nn.Module, critic: nn.Module, real: Iterator[Tensor]
    ):
        if config.method not in PENALTIES:
            raise ValueError(f"the textbook loop does not implement the method {config.method}")
        self.config, self.real = config, real
        self.penalty = PENALTIES[config.method]
        self.device = next(critic.parameters()).device
        contiguous = {"memory_format": torch.contiguous_format}
        self.generator = plain_layers(deepcopy(generator)).to(**contiguous)
        self.critic = plain_layers(deepcopy(critic)).to(**contiguous)
        self.generator_optimizer = self.optimizer(self.generator, config.lr_generator)
        self.critic_optimizer = self.optimizer(self.critic, config.lr_critic)

    def optimizer(self, network: nn.Module, rate: float) -> torch.optim.Optimizer:
        if self.config.optimizer == "rmsprop":
            return torch.optim.RMSprop(network.parameters(), lr=rate)
        return torch.optim.Adam(network.parameters(), lr=rate, betas=self.config.betas)

    def step(self) -> None:
        for _ in range(self.config.n_critic):
            real = next(self.real).to(self.device)
            fake = self.generator(self.noise()).detach()
            self.critic_optimizer.zero_grad()
            loss = self.critic(fake).mean() - self.critic(real).mean()
            mix = self.mix(len(real)).view(-1, *[1] * (real.dim() - 1))
            loss = loss + self.penalty(self.config, self.critic, mix * real + (1 - mix) * fake)
            loss.backward()
            self.critic_optimizer.step()
            if self.config.method == "wgan":
                for parameter in self.critic.parameters():
                    parameter.data.clamp_(-self.config.clip, self.config.clip)
            loss.item()
        self.generator_optimizer.zero_grad()
        loss = -self.critic(self.generator(self.noise())).mean()
        loss.backward()
        self.generator_optimizer.step()
        loss.item()

    def noise(self) -> Tensor:
        return torch.randn(self.config.batch_size, self.config.noise_dim, device=self.device)

    def mix(self, count: int) -> Tensor:
        return torch.rand(count, device=self.device)


def no_penalty(config: Config, critic: nn.Module, mixed: Tensor) -> float:
    return 0.0


def gradient_penalty(config: Config, critic: nn.Module, mixed: Tensor) -> Tensor:
    norms = input_gradients(critic, mixed).norm(2, dim=1)
    return config.gp_weight * ((norms - 1) ** 2).mean()


def divergence_penalty(config: Config, critic: nn.Module, mixed: Tensor) -> Tensor:
    squares = (input_gradients(critic, mixed) ** 2).sum(1)
    return config.div_k * (squares ** (config.div_p / 2)).mean()


def input_gradients(critic: nn.Module, mixed: Tensor) -> Tensor:
    mixed.requires_grad_(True)
    scores = critic(mixed)
    gradients = torch.autograd.grad(
        scores, mixed, torch.ones_like(scores), create_graph=True, retain_graph=True
    )
    return gradients[0].flatten(1)


PENALTIES = {"wgan": no_penalty, "wgan-gp": gradient_penalty, "wgan-div": divergence_penalty}


def plain_layers(network: nn.Module) -> nn.Module:
    """Replace this project's own layers by PyTorch's, in place."""
    for name, child in network.named_children():
        if isinstance(child, LeakyReLU):
            setattr(network, name, nn.LeakyReLU(child.slope))
        elif isinstance(child, CriticConv2d | UpsampleConv2d):
            layers = [child]
            if isinstance(child, UpsampleConv2d):
                layers = [nn.Upsample(scale_factor=2), child]
            elif isinstance(child, DownsampleConv2d):
                layers, child.stride = [child, nn.AvgPool2d(2)], (1, 1)
            child.__class__ = nn.Conv2d
            setattr(network, name, nn.Sequential(*layers))
        else:
            plain_layers(child)
    return network


# ---------------------------------------------------------------- batches


def from_memory(images: np.ndarray, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Random batches in [-1, 1] of images `(N, C, H, W)` uint8 that are kept on the device."""
    resident = torch.from_numpy(images).to(device)
    while True:
        indices = torch.randint(len(resident), (batch_size,), device=device)
        yield to_float_images(resident[indices])


def from_loader(images: np.ndarray, batch_size: int, workers: int) -> Iterator[Tensor]:
    """The same through PIL, torchvision's transforms and a DataLoader, as in tutorials."""
    loader = torch.utils.data.DataLoader(
        PILImages(images), batch_size, shuffle=True, drop_last=True, num_workers=workers
    )
    while True:
        yield from loader


class PILImages(torch.utils.data.Dataset):
    """Images `(N, C, H, W)` uint8 one by one, `(C, H, W)` in [-1, 1]. Processes can pickle it."""

    def __init__(self, images: np.ndarray):
        from torchvision import transforms

        half = [0.5] * images.shape[1]
        self.images = images
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(half, half)]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.images[index].transpose(1, 2, 0).squeeze()))


# ---------------------------------------------------------------- the dense networks of tutorials


class PlainDenseGenerator(nn.Module):
    """100-128-256-512-1024-784 with batch normalisation and LeakyReLU."""

    def __init__(self, sample_shape: tuple[int, ...], noise_dim: int = 100):
        super().__init__()
        self.sample_shape, self.noise_dim = tuple(sample_shape), noise_dim
        layers: list[nn.Module] = [nn.Linear(noise_dim, 128), nn.LeakyReLU(0.2)]
        for before, after in pairwise((128, 256, 512, 1024)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU(0.2)]
        layers += [nn.Linear(1024, int(np.prod(sample_shape))), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Unflatten(1, self.sample_shape))

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(noise)


class PlainDenseCritic(nn.Module):
    """784-512-256-1 with LeakyReLU."""

    def __init__(self, sample_shape: tuple[int, ...]):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Flatten(), nn.Linear(int(np.prod(sample_shape)), 512), nn.LeakyReLU(0.2)),
            *(nn.Linear(512, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1)),
        )

    def forward(self, samples: Tensor) -> Tensor:
        return self.layers(samples).squeeze(1)


PLAIN_DENSE = {  # the settings that tutorials use with them
    "method": "wgan-gp",
    "optimizer": "adam",
    "lr": 2e-4,
    "betas": (0.5, 0.999),
    "batch_size": 64,
    "n_critic": 5,
    "gp_weight": 10.0,
    "noise_dim": 100,
}
