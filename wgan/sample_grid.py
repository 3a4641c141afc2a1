"""What the sample grids of a run show: generated samples of fixed noise, and real samples."""

import torch
from PIL.Image import Image
from torch import Tensor

from wgan import plots
from wgan.data import seeded_generator, to_byte_images, to_float_images
from wgan.setup import Run
from wgan.state import TrainState

GRID_IMAGES = 64
GRID_COLUMNS, GRID_CLASSES = 8, 16  # one row per class, of the most frequent ones
SCATTER_POINTS = 1000
SCATTER_COLOURS = 128  # files are a third as large as with all colours
SURFACE_SIDE = 100  # lattice points along each axis of a critic's surface


class SampleGrid:
    """Fixed noise `(N, noise_dim)` and labels `(N,)`, and real samples `(N, ...)` of these classes,
    arranged in the same way. With classes, there is one row per class."""

    def __init__(self, run: Run):
        config, names, device = run.config, run.state.class_names, run.state.device
        self.standardisation = run.dataset.standardisation
        order, labels = run.batches.order(0).cpu(), run.batches.all_labels.cpu()
        indices = order[: SCATTER_POINTS if run.dataset.is_points else GRID_IMAGES]
        self.row_labels: list[str] = []
        if names and not run.dataset.is_points:
            counts = labels.bincount(minlength=len(names))
            classes = sorted(counts.topk(min(GRID_CLASSES, len(names))).indices.tolist())
            indices = class_rows(order, labels, classes)
            self.row_labels = [names[number] for number in classes]
        rng = seeded_generator("cpu", config.seed, "grid")  # the same on every device
        self.noise = torch.randn(len(indices), config.noise_dim, generator=rng).to(device)
        self.labels = labels[indices].to(device)
        self.real = to_float_images(run.dataset.read(indices).to(device))

    @torch.no_grad()
    def draw(self, state: TrainState) -> Image:
        """Samples of the moving average: a grid, or points over the critic's surface."""
        samples = state.ema(self.noise, self.labels)
        if self.real.dim() == 4:
            return self.draw_images(samples)
        points = self.real.cpu().numpy(), samples.cpu().numpy()
        if self.real.shape[1] != 2:
            return plots.vectors(self.real, samples, self.standardisation)
        if state.class_counts:  # no one surface of the critic to draw
            return plots.scatter(*points)
        extent = plots.extent(points[0])
        axis = torch.linspace(-extent, extent, SURFACE_SIDE, device=self.real.device)
        lattice = torch.cartesian_prod(axis, axis).flip(1)  # (S * S, 2), rows along y
        scores = state.critic(lattice).view(SURFACE_SIDE, SURFACE_SIDE).cpu().numpy()
        return plots.scatter(*points, scores).quantize(SCATTER_COLOURS)

    def draw_real(self) -> Image:
        if self.real.dim() == 4:
            return self.draw_images(self.real)
        if self.real.shape[1] != 2:
            return plots.vectors(self.real, None, self.standardisation)
        return plots.scatter(self.real.cpu().numpy()).quantize(SCATTER_COLOURS)

    def draw_images(self, images: Tensor) -> Image:
        return plots.image_grid(
            to_byte_images(images).cpu().numpy(), columns=GRID_COLUMNS, row_labels=self.row_labels
        )


def class_rows(order: Tensor, labels: Tensor, classes: list[int]) -> Tensor:
    """Indices of `GRID_COLUMNS` samples of each class, the first in the order `(N,)`. A class with
    fewer samples repeats them."""
    rows = [order[labels[order] == number][:GRID_COLUMNS] for number in classes]
    return torch.cat([row.repeat(GRID_COLUMNS)[:GRID_COLUMNS] for row in rows])
