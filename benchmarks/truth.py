"""Compare critics with distances, potentials and gradients that are known exactly.

    python -m benchmarks.truth                        all rows and methods, in about ten minutes
    python -m benchmarks.truth --rows A --updates 20000 --methods wgan-gp r3gan

Every critic is trained alone, with the same network, batches and Adam. Rows, real and fake samples:
    A  one dimension: N(1, 2^2) and N(0, 1), where each method's own optimal critic is known
    B  2 X and X with X from N(0, 1), in 2 and 128 dimensions: W = E|X|
    C  funnels (Korotin et al. 2022, arXiv:2206.07767): points moved along known rays, in 16
       dimensions with the paper's settings, and images of Fashion-MNIST
    D  two finite sets of 512 points, in 2 and 16 dimensions: W by linear assignment
    F  no critic: exact W of real images from others, from k-means centres, from their mean
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.common import ROOT, check_writable, write_json
from utils import METHODS, Method, input_gradients, interpolate, wasserstein_estimate
from wgan.acceleration import describe_machine
from wgan.command import Parser, integer, run_script
from wgan.data import load_dataset, to_float_images
from wgan.evaluation.metrics import c_transform_bound, wasserstein_distance
from wgan.evaluation.samples import shuffled
from wgan.files import write_whole
from wgan.plots import new_figure, png, to_image
from wgan_gp import DenseCritic, power_iteration

MARKS = (100, 1000, 5000, 20_000)  # updates after which a critic is measured
FRESH = 4096  # samples that a critic is measured on and was not trained on

CONTENDERS: dict[str, tuple[Method, str]] = {  # the method, and its critic's normalisation
    "wgan": (METHODS["wgan"](clip=0.04), "none"),  # Korotin et al. 2022's
    "wgan-spectral": (METHODS["wgan"](clip=0), "spectral"),
    "wgan-orthonormal": (METHODS["wgan"](clip=0), "orthonormal"),
    "wgan-gp": (METHODS["wgan-gp"](gp_weight=10), "none"),
    "wgan-lp": (METHODS["wgan-lp"](gp_weight=10), "none"),
    "wgan-div": (METHODS["wgan-div"](div_k=2, div_p=6, div_points="mixed"), "none"),
    "wgan-r1r2": (METHODS["wgan-r1r2"](gamma=1), "none"),
    "r3gan": (METHODS["r3gan"](gamma=1), "none"),
}


@dataclass(frozen=True)
class Pair:
    """Two distributions whose Wasserstein-1 distance is known."""

    name: str
    draw: Callable[[torch.Generator, int], tuple[Tensor, Tensor]]  # real and fake, (B, D)
    distance: float
    gradient: Callable[[Tensor], Tensor]  # of the optimal critic, at fake samples (B, D)
    sets: tuple[Tensor, Tensor] | None = None  # real and fake, if these are all points
    batch: int = 256
    rate: float = 1e-3


REAL, FAKE = (1.0, 2.0), (0.0, 1.0)  # mean and standard deviation
GRID = torch.linspace(-12, 14, 5201, dtype=torch.float64)
SHOWN = torch.linspace(-5, 7, 241)  # where the slopes of critics are plotted


def densities() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """On `GRID`: the densities p of real and q of fake points and r of their interpolates, and
    D = Q - P, the difference of the distribution functions."""
    real, fake = (torch.distributions.Normal(*map(torch.tensor, law)) for law in (REAL, FAKE))
    mix = (torch.arange(2000, dtype=torch.float64)[:, None] + 0.5) / 2000
    deviation = ((mix * REAL[1]) ** 2 + ((1 - mix) * FAKE[1]) ** 2).sqrt()
    between = torch.distributions.Normal(mix * REAL[0] + (1 - mix) * FAKE[0], deviation)
    p, q, r = (law.log_prob(GRID).exp() for law in (real, fake, between))
    return p, q, r.mean(0), fake.cdf(GRID) - real.cdf(GRID)


def optimal_slope(name: str) -> Tensor | None:
    """f' of the critic that maximises a contender's own objective, on `GRID`: the integral of D f',
    which is the estimate, minus the penalty. None without a closed form."""
    slope = OPTIMAL_SLOPES.get(name)
    return slope(CONTENDERS[name][0], *densities()) if slope else None


BOUNDED, PENALISED = ("wgan-spectral", "wgan-orthonormal"), ("wgan-gp", "wgan-lp")
OPTIMAL_SLOPES: dict[str, Callable[..., Tensor]] = {  # of the method m and `densities`
    **dict.fromkeys(BOUNDED, lambda m, p, q, r, d: d.sign()),
    **dict.fromkeys(PENALISED, lambda m, p, q, r, d: d.sign() + d / (2 * m.gp_weight * r)),
    "wgan-div": lambda m, p, q, r, d: (
        d.sign() * (d.abs() / (m.div_k * m.div_p * r)) ** (1 / (m.div_p - 1))
    ),
    "wgan-r1r2": lambda m, p, q, r, d: d / (m.gamma * (p + q)),
}


def one_dimension() -> Pair:
    difference = densities()[3]

    def draw(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        real, fake = torch.randn(2, count, 1, generator=rng)
        return REAL[0] + REAL[1] * real, FAKE[0] + FAKE[1] * fake

    distance = torch.trapezoid(difference.abs(), GRID).item()
    return Pair("A", draw, distance, lambda fake: at(difference.sign(), fake))


def at(values: Tensor, points: Tensor) -> Tensor:
    """A function on `GRID` at points `(B, 1)`, from the nearest grid point."""
    return values[torch.searchsorted(GRID, points.double()).clamp(max=len(GRID) - 1)].float()


def scaling(dimension: int, scale: float = 2.0) -> Pair:
    """The optimal critic is |x|, and W = (scale - 1) E|X|."""
    log_mean = math.lgamma((dimension + 1) / 2) - math.lgamma(dimension / 2)

    def draw(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        real, fake = torch.randn(2, count, dimension, generator=rng)
        return scale * real, fake

    distance = (scale - 1) * math.sqrt(2) * math.exp(log_mean)
    return Pair(f"B, {dimension} dimensions", draw, distance, nn.functional.normalize)


@dataclass(frozen=True)
class Funnels:
    """u(x) = min over k of |x - a_k| + b_k is the optimal critic of any two laws whose points are
    paired along the rays of its funnels, the real one farther from the centre."""

    centres: Tensor  # a, (K, D)
    heights: Tensor  # b, (K,)

    def rays(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each point's funnel `(B,)`, direction from its centre `(B, D)` and distance `(B, 1)`."""
        owner = (torch.cdist(points, self.centres) + self.heights).argmin(1)
        offset = points - self.centres[owner]
        distance = offset.norm(dim=1, keepdim=True).clamp(min=1e-12)  # if images are equal
        return owner, offset / distance, distance

    def pull(self, points: Tensor, wall: float) -> Tensor:
        """Points of the cube [-wall, wall]^D moved along their rays: the position t in [0, 1] on
        the segment of the ray on which its funnel is the lowest becomes t^8."""
        owner, direction, distance = self.rays(points)
        centre = self.centres[owner]
        end = ((wall - direction.sign() * centre) / direction.abs()).amin(1, keepdim=True)
        for other, height in zip(self.centres, self.heights, strict=True):
            offset, lower = other - centre, self.heights[owner] - height
            slope = (direction * offset).sum(1) + lower
            meets = (offset.square().sum(1) - lower**2) / (2 * slope)  # where both are equal
            end = torch.minimum(end, torch.where(slope > 1e-9, meets, math.inf)[:, None])
        return centre + direction * end * (distance / end).clamp(max=1) ** 8


def mix_to_one(dimension: int, count: int) -> Pair:
    """Korotin et al. 2022's pair, with our own draw of the funnels, and the paper's settings."""
    rng = torch.Generator().manual_seed(2)
    points = 5 * torch.rand(100_000, dimension, generator=rng) - 2.5
    funnels = Funnels(points[:count], 0.1 * torch.randn(count, generator=rng))
    points = points[count:]

    def draw(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        real, other = 5 * torch.rand(2, count, dimension, generator=rng) - 2.5
        return real, funnels.pull(other, 2.5)

    distance = (points - funnels.pull(points, 2.5)).norm(dim=1).mean().item()
    options = {"gradient": lambda fake: funnels.rays(fake)[1], "batch": 1024, "rate": 2e-4}
    return Pair(f"C, {dimension} dimensions, {count} funnels", draw, distance, **options)


def image_funnels(images: Tensor) -> Pair:
    """Images `(N, D)`, each moved towards the nearest of 16 others by up to half of the way."""
    funnels, images = Funnels(images[:16], torch.zeros(16)), images[16:]

    def draw(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        real, other = images[torch.randint(len(images), (2, count), generator=rng)]
        _, direction, distance = funnels.rays(other)
        return real, other - direction * distance * torch.rand(count, 1, generator=rng) / 2

    distance = funnels.rays(images)[2].mean().item() / 4
    return Pair("C, images, 16 funnels", draw, distance, lambda fake: funnels.rays(fake)[1])


def finite_sets(dimension: int, count: int = 512) -> Pair:
    """N(0, 1.5^2) and N(0, 1). The gradient at a fake point is the direction of its partner."""
    rng = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, count, dimension, generator=rng)
    real = 1.5 * real
    costs = torch.cdist(fake.double(), real.double()).numpy()
    rows, partners = linear_sum_assignment(costs)
    directions = nn.functional.normalize(real[partners] - fake)

    def draw(rng: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        return tuple(part[torch.randint(count, (size,), generator=rng)] for part in (real, fake))

    name, distance = f"D, {dimension} dimensions", float(costs[rows, partners].mean())
    return Pair(name, draw, distance, lambda _: directions, sets=(real, fake))


def load_images(data_root: str, count: int) -> Tensor:
    """`count` images of Fashion-MNIST `(N, 784)`, with values in [-1, 1]."""
    dataset = load_dataset("fashion-mnist", data_root)
    return to_float_images(dataset.read(shuffled(len(dataset))[:count])).flatten(1)


PAIRS: dict[str, list[Callable[[str], Pair]]] = {  # each takes the folder of downloaded data
    "A": [lambda _: one_dimension()],
    "B": [lambda _: scaling(2), lambda _: scaling(128)],
    "C": [lambda _: mix_to_one(16, 4), lambda root: image_funnels(load_images(root, 10_000))],
    "D": [lambda _: finite_sets(2), lambda _: finite_sets(16)],
    "F": [],
}


def stanczuk(images: Tensor, count: int = 500) -> dict[str, float]:
    """Exact distances of `count` images `(N, D)` from others, and from what is no good sample
    (Stanczuk et al. 2021, arXiv:2103.01678): the smallest distance is not that of real images."""
    batch, other, rest = images[:count], images[count : 2 * count], images[2 * count :]
    centres = torch.from_numpy(kmeans2(rest.numpy(), count, minit="points", seed=0)[0])
    others = {"others": other, "k-means centres": centres, "mean": rest.mean(0).expand(count, -1)}
    return {name: wasserstein_distance(batch, part) for name, part in others.items()}


def train_critic(pair: Pair, name: str, updates: int, bar: tqdm) -> Iterator[dict]:
    """Train a critic, and measure it at the marks and at the end. The critic is dense, with the two
    hidden layers of Korotin et al. 2022 instead of three."""
    method, norm = CONTENDERS[name]
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    critic = DenseCritic(pair.draw(rng, 1)[0].shape[1:], 128, norm)
    del critic.layers[-2 if norm == "orthonormal" else -3 :]
    optimizer = torch.optim.Adam(critic.parameters(), pair.rate, betas=(0.0, 0.9))
    seconds = 0.0
    for update in range(1, updates + 1):
        start = time.perf_counter()
        real, fake = pair.draw(rng, pair.batch)
        losses = method.critic_loss(critic, real, fake, torch.rand(len(real), generator=rng))
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
        method.after_critic_step(critic)
        power_iteration(critic)
        seconds += time.perf_counter() - start
        bar.update()
        if update in MARKS or update == updates:
            line = {"row": pair.name, "method": name, "last": update == updates}
            yield line | {"updates": update, "seconds": seconds} | measure(pair, name, critic)


def measure(pair: Pair, name: str, critic: nn.Module) -> dict[str, float]:
    """How far a critic is from the truth, on fresh samples or the finite sets; distances over W."""
    rng = torch.Generator().manual_seed(1)
    real, fake = pair.sets or pair.draw(rng, FRESH)
    between = interpolate(real, fake, torch.rand(len(real), generator=rng))
    own, *others = (input_gradients(critic, part).detach() for part in (fake, real, between))
    slope = max(part.norm(dim=1).max().item() for part in (own, *others))
    truth, scores = pair.gradient(fake), critic(real).detach()
    estimate = wasserstein_estimate(scores, critic(fake)).item() / pair.distance
    values = {"W": pair.distance, "estimate": estimate, "slope": slope}
    values["estimate/slope"] = estimate / slope
    values["cosine"] = torch.cosine_similarity(own.flatten(), truth.flatten(), dim=0).item()
    values["l2"] = (own - truth).square().sum(1).mean().item()
    if pair.sets:
        values["bound"] = c_transform_bound(scores, real, fake) / pair.distance
    if pair.name != "A":
        return values
    values["slopes"] = input_gradients(critic, SHOWN[:, None]).flatten().tolist()
    if (optimum := optimal_slope(name)) is not None:
        area = torch.trapezoid(densities()[3] * optimum, GRID).item()
        error = (own - at(optimum, fake)).norm() / at(optimum, fake).norm()
        values |= {"own optimum": area / pair.distance, "error": error.item()}
    return values


def show(result: dict) -> None:
    """Print a table of each pair, with the values after the last update."""
    hidden = ("row", "method", "last", "W", "slopes")
    print(f"\n{result['machine']}")
    lines = [line for line in result["critics"] if line["last"]]
    for row in dict.fromkeys(line["row"] for line in lines):
        own = [line for line in lines if line["row"] == row]
        names = dict.fromkeys(name for line in own for name in line if name not in hidden)
        print(f"\n{row}: W = {own[0]['W']:.3f}\n\n| method | {' | '.join(names)} |")
        print("|---" * (1 + len(names)) + "|")
        for line in own:
            cells = [f"{line[name]:.3g}" if name in line else "" for name in names]
            print(f"| {line['method']} | {' | '.join(cells)} |")
    for name, distance in result["images"].items():
        print(f"\nF: W of 500 real images from {name}: {distance:.2f}")


def plot(result: dict, target: Path) -> None:
    """Values after the last update: estimates against cosines; f' in row A beside its optimum."""
    lines = [line for line in result["critics"] if line["last"]]
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for name in dict.fromkeys(line["method"] for line in lines):
        own = [line for line in lines if line["method"] == name]
        axes.scatter(*([line[key] for line in own] for key in ("cosine", "estimate")), label=name)
    axes.axhline(1, color="grey", linewidth=1)
    axes.set(xlabel="cosine of the gradients at fake samples", ylabel="estimate / W", yscale="log")
    axes.legend(fontsize=8)
    write_whole(target, png(to_image(figure)))
    figure = new_figure(10, 5)
    lines = [line for line in lines if "slopes" in line]
    for index, line in enumerate(lines):
        axes = figure.add_subplot(2, math.ceil(len(lines) / 2), index + 1)
        axes.plot(SHOWN.numpy(), line["slopes"])
        if (optimum := optimal_slope(line["method"])) is not None:
            axes.plot(GRID.numpy(), optimum.numpy(), "--")
        axes.set(title=line["method"], xlim=(-5, 7))
    figure.tight_layout()
    write_whole(target.with_stem(f"{target.stem}-slopes"), png(to_image(figure)))


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 130 Ctrl-C."""
    return run_script(lambda: run(argv))


def run(argv: list[str] | None) -> None:
    parser = Parser(prog="python -m benchmarks.truth", description=__doc__)
    add, names = parser.add_argument, list(CONTENDERS)
    add("--rows", nargs="+", choices=PAIRS, default=list(PAIRS), help="default: all")
    add("--methods", nargs="+", choices=names, default=names, metavar="NAME", help="default: all")
    add("--updates", type=integer(1), default=1000, metavar="N", help="default: 1000")
    add("--json", metavar="FILE", help="also write the results to this file")
    add("--plot", metavar="PNG", help="plot to this file, and with -slopes added to its name")
    add("--data-root", default=str(ROOT / "datasets"), help="folder of downloaded data")
    options = parser.parse_args(argv)
    for path in (options.json, options.plot):
        check_writable(path)
    pairs = [build(options.data_root) for row in options.rows for build in PAIRS[row]]
    result: dict = {"machine": describe_machine(torch.device("cpu")), "critics": [], "images": {}}
    if "F" in options.rows:
        result["images"] = stanczuk(load_images(options.data_root, 6000))
    total = len(pairs) * len(options.methods) * options.updates
    with tqdm(total=total, unit="update", disable=None) as bar:
        for pair, name in product(pairs, options.methods):
            result["critics"] += train_critic(pair, name, options.updates, bar)
            write_json(options.json, result)
    show(result)
    write_json(options.json, result)
    if options.plot:
        plot(result, Path(options.plot))


if __name__ == "__main__":
    sys.exit(main())
