"""What the curves and the metrics of a run say: which known state it is in, and what to change.

`RULES` is the table of these states. A healthy run gets no sentence. docs/curves.md has the runs on
which the bounds were chosen.
"""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from utils import METHODS
from wgan.config import Config
from wgan.data import find_entry

SENTENCES = 3  # at most
ROWS, STEPS = 20, 500  # of the log, below which its curves are not read
SHORT = 0.4  # of the steps that a recipe needs, below which samples are hard to recognise
SMALL = 32  # pixels, at which a step takes a quarter of the time of 64
VANISHED = 1e-4  # norm of a gradient

# When a rule applies to the facts of a run, its sentence, a format of the facts, and its source. A
# comparison with a missing fact, NaN, is false.
RULES: tuple[tuple[Callable[[dict], bool], str, str], ...] = (
    (
        lambda f: f["norm"] > 5 * f["highest_norm"],
        "The gradient norm is {norm:.2g} instead of {highest_norm:g}: raise --gp-weight.",
        "docs/curves.md: the norm for a small weight",
    ),
    (
        lambda f: f["penalty"] > f["estimate"] + 0.2 * f["peak"] and f["upper_estimate"] >= 0,
        "The penalty ({penalty:.2g}) exceeds the estimate ({estimate:.2g}): lower --lr-critic.",
        "docs/curves.md: at most half of it for a converged critic",
    ),
    (
        lambda f: f["norm"] < VANISHED,
        "The critic's gradient has vanished (norm {norm:.1g}): start again with a {remedy}.",
        "Gulrajani et al. 2017 (arXiv:1704.00028), figure 1, for clipping",
    ),
    (
        lambda f: VANISHED <= f["norm"] < 0.5 * f["lowest_norm"] or f["upper_estimate"] < 0,
        "The critic is too weak (gradient norm {norm:.2g}, estimate {estimate:.2g}): raise "
        "--n-critic or --lr-critic.",
        "Arjovsky et al. 2017 (arXiv:1701.07875), section 3: train the critic till optimality",
    ),
    (
        lambda f: f["memorises"] > 0,
        "The estimate rises throughout, to {last:.2g}: the critic is ahead of the generator, and "
        "in part memorises data that it has seen {epoch:.0f} times. Use more data, a smaller "
        "--width or, with --model dcgan, --augment translation.",
        "Karras et al. 2020 (arXiv:2006.06676), section 2; docs/images.md",
    ),
    (
        lambda f: f["last"] > max(0.8 * f["peak"], 0.95 * f["highest"]) and not f["memorises"] > 0,
        "The critic is too strong (the estimate stays at {last:.2g}): raise --lr-generator, or "
        "lower --lr-critic or --n-critic.",
        "docs/curves.md: the estimate falls",
    ),
    (
        lambda f: f["precision"] > 0.8 * f["real_precision"] and f["recall"] < f["low_recall"],
        "Precision is {precision:.2f}, but recall {recall:.2f}: the samples hardly vary. Look for "
        "copies in neighbours.png; train longer, or raise --n-critic.",
        "Kynkäänniemi et al. 2019 (arXiv:1904.06991), section 3",
    ),
    (
        lambda f: f["classes"] < 0.9 * f["real_classes"],
        "The samples show {classes} of {real_classes} classes: use {real_classes} --categories or "
        "more.",
        "docs/experiments.md",
    ),
)


def advise(
    log: dict[str, np.ndarray],
    config: Config,
    progress: float | None = None,
    result: dict | None = None,
) -> list[str]:
    """Up to `SENTENCES` sentences about a run from the columns of its log, its progress (0 to 1, if
    known) and the result of evaluate.py (if it was evaluated); none if no rule applies."""
    facts = defaultdict(lambda: math.nan, facts_of_metrics(result) if result else {})
    step = log["step"][-1] if len(log["step"]) else 0
    sentences = too_few_steps(config, step / progress) if step and progress else []
    ended = progress in (None, 1) and step >= STEPS and len(log["step"]) >= ROWS
    if ended and not sentences:
        facts |= facts_of_curves(log, config)
    sentences += [text.format_map(facts) for applies, text, _ in RULES if applies(facts)]
    return sentences[:SENTENCES]


def too_few_steps(config: Config, steps: float) -> list[str]:
    """A sentence if the `steps` that fit into --max-seconds are too few for the recipe."""
    steps = min(steps, config.steps or math.inf)
    if not config.max_seconds or steps >= SHORT * config.enough_steps:
        return []
    seconds = 100 * math.ceil(config.max_seconds * config.enough_steps / steps / 100)
    entry = find_entry(config.dataset)
    shape = config.image_options().shape(entry.shape) if entry and not entry.is_points else (0,)
    smaller = f" or, with --fresh, --image-size {SMALL}" if max(shape) > SMALL else ""
    return [
        f"About {steps:,.0f} steps fit into --max-seconds {config.max_seconds}, and this recipe "
        f"needs about {config.enough_steps:,}: use --max-seconds {seconds}{smaller}."
    ]


def facts_of_curves(log: dict[str, np.ndarray], config: Config) -> dict[str, object]:
    """Means and medians over the second half of the log, and how the estimate went."""
    estimate, penalty, norm = (log[n] for n in ("wasserstein", "penalty", "gradient_norm"))
    half, quarters = len(estimate) // 2, [part.mean() for part in np.array_split(estimate, 4)]
    epoch, peak = log["epoch"][-1], max(np.sort(estimate)[-3:].mean(), 1e-9)
    rises = quarters == sorted(quarters) and quarters[-1] > 1.5 * max(quarters[0], 0.1 * peak)
    clip = config.applicable().get("clip")
    lowest, highest = METHODS[config.method].norms
    return {
        "estimate": estimate[half:].mean(),
        "upper_estimate": np.quantile(estimate[half:], 0.75),
        "peak": peak,
        "highest": max(quarters),
        "last": quarters[-1] if np.median(norm[half:]) >= VANISHED else 0.0,
        "memorises": rises and epoch >= 10,
        "epoch": epoch,
        "penalty": penalty[half:].mean(),
        "norm": np.median(norm[half:]),
        "lowest_norm": lowest,
        "highest_norm": highest,
        "remedy": f"--clip above {clip:g}, or --method wgan-gp" if clip else "smaller --lr-critic",
    }


def facts_of_metrics(result: dict) -> dict[str, float]:
    """The metrics of evaluate.py; modes are classes."""
    facts = dict(result["generated"]) | {f"real_{n}": v for n, v in result["real"].items()}
    if "modes" in facts:
        facts |= {"classes": facts["modes"], "real_classes": facts["modes_in_all"]}
    return facts | {"low_recall": 0.1 * facts.get("real_recall", math.nan)}
