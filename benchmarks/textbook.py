"""The training loop that people copy, written plainly: what `benchmark.py` compares with.

Eager, float32, contiguous; separate passes for real, fake and mixed samples;
`autograd.grad(..., create_graph=True)`; an `.item()` after each update. Right, and slow.
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from wgan.config import Config
from wgan.data.table import bytes_to_floats
from wgan_gp import LeakyReLU


class Textbook:
    """A WGAN loop as tutorials write it, over copies of two networks. `step()` is `n_critic`
    critic updates and one of the generator."""

    def __init__(
        self, config: Config, generator: nn.Module, critic: nn.Module, real: Iterator[Tensor]
    ):
        self.config, self.real = config, real
        self.device = next(critic.parameters()).device
        contiguous = {"memory_format": torch.contiguous_format}
        self.generator = plain_activations(deepcopy(generator)).to(**contiguous)
        self.critic = plain_activations(deepcopy(critic)).to(**contiguous)
        self.optimizers = [
            torch.optim.RMSprop(network.parameters(), lr=rate)
            if config.optimizer == "rmsprop"
            else torch.optim.Adam(network.parameters(), lr=rate, betas=config.betas)
            for network, rate in (
                (self.generator, config.lr_generator),
                (self.critic, config.lr_critic),
            )
        ]

    def step(self) -> None:
        optimizer_generator, optimizer_critic = self.optimizers
        for _ in range(self.config.n_critic):
            real = next(self.real).to(self.device)
            fake = self.generator(self.noise()).detach()
            optimizer_critic.zero_grad()
            loss = self.critic(fake).mean() - self.critic(real).mean()
            loss = loss + self.penalty(real, fake)
            loss.backward()
            optimizer_critic.step()
            if self.config.method == "wgan":
                for parameter in self.critic.parameters():
                    parameter.data.clamp_(-self.config.clip, self.config.clip)
            loss.item()
        optimizer_generator.zero_grad()
        loss = -self.critic(self.generator(self.noise())).mean()
        loss.backward()
        optimizer_generator.step()
        loss.item()

    def noise(self) -> Tensor:
        return torch.randn(self.config.batch_size, self.config.noise_dim, device=self.device)

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor | float:
        if self.config.method == "wgan":
            return 0.0
        mix = torch.rand(len(real), *[1] * (real.dim() - 1), device=self.device)
        mixed = (mix * real + (1 - mix) * fake).requires_grad_(True)
        scores = self.critic(mixed)
        gradients = torch.autograd.grad(
            scores, mixed, torch.ones_like(scores), create_graph=True, retain_graph=True
        )[0].flatten(1)
        if self.config.method == "wgan-gp":
            return self.config.gp_weight * ((gradients.norm(2, dim=1) - 1) ** 2).mean()
        squares = (gradients**2).sum(1)
        return self.config.div_k * (squares ** (self.config.div_p / 2)).mean()


def plain_activations(network: nn.Module) -> nn.Module:
    """The network with PyTorch's own LeakyReLU in place of ours."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, LeakyReLU):
                setattr(module, name, nn.LeakyReLU(child.slope))
    return network


def from_memory(samples: np.ndarray, size: int, device: torch.device) -> Iterator[Tensor]:
    resident = torch.from_numpy(samples).to(device)
    while True:
        yield bytes_to_floats(resident[torch.randint(len(resident), (size,), device=device)])


def from_loader(samples: np.ndarray, size: int, workers: int) -> Iterator[Tensor]:
    """PIL images through torchvision's transforms and a DataLoader, as tutorials feed them."""
    from PIL import Image
    from torchvision import transforms

    to_floats = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize([0.5] * samples.shape[1], [0.5] * samples.shape[1]),
        ]
    )

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> Tensor:
            return to_floats(Image.fromarray(samples[index].transpose(1, 2, 0).squeeze()))

    loader = torch.utils.data.DataLoader(
        Pictures(), size, shuffle=True, drop_last=True, num_workers=workers
    )
    while True:
        yield from loader


# ---------------------------------------------------------------- the dense networks people copy


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


PLAIN_DENSE = {  # the settings that come with them
    "method": "wgan-gp",
    "optimizer": "adam",
    "lr": 2e-4,
    "betas": (0.5, 0.999),
    "batch_size": 64,
    "n_critic": 5,
    "gp_weight": 10.0,
    "noise_dim": 100,
}
