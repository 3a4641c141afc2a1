"""Every option of a training run: its default, its meaning, its valid values, where it applies.

`Config` declares each option once; flags, TOML files, `--help` and the checks follow from it. It is
a pure value: nothing here looks at the disk.
"""

import inspect
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from utils import DIVERGENCE_POINTS, METHODS
from wgan.augmentation import POLICIES
from wgan.data import DATASETS, ImageOptions, parse_image_size
from wgan.errors import suggestion
from wgan_gp import CRITIC_NORMS, MODELS, NORMS, UPSAMPLINGS

# ---------------------------------------------------------------- checks of single values

Check = Callable[[object], str | None]  # what is wrong with a value, or None


def one_of(choices: Iterable[str]) -> Check:
    def check(value):
        if value in choices:
            return None
        return f"must be one of {', '.join(choices)}{suggestion(str(value), choices)}"

    return check


def at_least(minimum: float, maximum: float = math.inf) -> Check:
    text = f"must be at least {minimum:g}"
    text += f" and at most {maximum:g}" if maximum < math.inf else ""
    return lambda value: None if minimum <= value <= maximum else text


def above(bound: float) -> Check:
    return lambda value: None if value > bound else f"must be greater than {bound:g}"


def decay_rate(value: float) -> str | None:
    return None if 0 <= value < 1 else "must be at least 0 and below 1"


def each(check: Check) -> Check:
    return lambda values: next(filter(None, map(check, values)), None)


def image_size(value: str) -> str | None:
    try:
        parse_image_size(value)
    except ValueError as error:
        return str(error)
    return None


def value_range(values: tuple[float, float]) -> str | None:
    low, high = values
    return None if low < high or low == high == 0 else "must be LOW below HIGH, or 0 0"


def augmentation(value: str) -> str | None:
    names = [] if value == "none" else value.split(",")
    if unknown := [name for name in names if name not in POLICIES]:
        hint = suggestion(unknown[0], POLICIES)
        return f"must be none, or some of {','.join(POLICIES)} without spaces{hint}"
    return "must name each of them once" if len({*names}) < len(names) else None


def zero_or_at_least_10(value: float) -> str | None:
    return None if value == 0 or value >= 10 else "must be 0, or at least 10"


POSITIVE, NOT_NEGATIVE, AT_LEAST_ONE = above(0), at_least(0), at_least(1)
COUNT, ZERO_OR_COUNT = at_least(1, 1_000_000), at_least(0, 1_000_000)

# ---------------------------------------------------------------- the options


# The groups of `--help`, which shows them in the order in which `Config` first uses them
DATA, METHOD, NETWORKS, TRAINING = "data", "method", "networks", "training"
HARDWARE, OUTPUT = "hardware and reproducibility", "output"


def option(
    group: str,
    default,
    help: str,
    check: Check | Iterable[str] = lambda value: None,
    resumable: bool = False,
    metavar: str | tuple[str, str] | None = None,
):
    """A field of `Config`. `check` may be the valid values, which `--help` then lists. A resumable
    option may change when a run is resumed. `metavar` stands for the value in `--help`; without
    one it is N for a number and NAME for text."""
    if not callable(check):
        help, check = f"{', '.join(check)}{f': {help}' if help else ''}", one_of(check)
    metavar = metavar or ("NAME" if type(default) is str else "N")
    metadata = {"group": group, "help": help, "check": check, "metavar": metavar}
    return field(default=default, metadata=metadata | {"resumable": resumable})


@dataclass(frozen=True)
class Config:
    """One run, fully explicit: together with the code it determines what is computed."""

    dataset: str = option(
        DATA,
        "glyphs",
        f"{', '.join(DATASETS)}, a folder, or a .zip, .csv, .npz or .npy file",
    )
    data_root: str = option(
        DATA, "datasets", "folder of downloaded and prepared data", resumable=True, metavar="PATH"
    )
    image_size: str = option(
        DATA, "", "64, or 64x96 (height x width); empty: the data's own", image_size, metavar="SIZE"
    )
    grey: bool = option(DATA, False, "convert to one channel")
    alpha: bool = option(DATA, False, "keep transparency as a fourth channel; off: on white")
    range: tuple[float, float] = option(
        DATA,
        (0.0, 0.0),
        "pixel values mapped to black and white; 0 0: minimum and maximum of the data set, but 0 "
        "and 255 for images of 8 bits",
        value_range,
        metavar=("LOW", "HIGH"),
    )
    flip: bool = option(DATA, False, "mirror half of the images, left to right")
    label_column: str = option(
        DATA, "", "column of the classes in a file of labels; empty: label", metavar="COLUMN"
    )
    conditional: bool = option(DATA, False, "train a class-conditional generator")
    clusters: int = option(
        DATA,
        0,
        "condition both networks on up to N groups of similar samples, whose means the generator "
        "refines; 0: off",
        ZERO_OR_COUNT,
    )
    augment: str = option(
        DATA,
        "none",
        f"differentiable augmentation for small data sets: {','.join(POLICIES)} or some of them",
        augmentation,
    )

    method: str = option(METHOD, "wgan-gp", "", METHODS)
    model: str = option(NETWORKS, "dcgan", "dense is used for points", MODELS)
    width: int = option(
        NETWORKS, 64, "channels of the critic's first stage; dense: hidden units", COUNT
    )
    generator_width: int = option(
        NETWORKS, 0, "width of the generator; 0: as --width", ZERO_OR_COUNT
    )
    noise_dim: int = option(NETWORKS, 128, "dimension of the noise vector", COUNT)
    categories: int = option(
        NETWORKS, 0, "one-hot choice among N in the first N noise dimensions; 0: off", ZERO_OR_COUNT
    )
    generator_norm: str = option(NETWORKS, "batch", "normalisation of the generator", NORMS)
    critic_norm: str = option(
        NETWORKS, "none", "normalisation of the critic; orthonormal is for dense", CRITIC_NORMS
    )
    upsampling: str = option(NETWORKS, "transposed", "of the generator", UPSAMPLINGS)
    patch_features: int = option(
        NETWORKS, 0, "features per 8x8 patch of a dense critic; 0: pixels", at_least(0, 10_000)
    )
    texture_features: int = option(
        NETWORKS, 0, "features of the texture in a critic of patches", at_least(0, 10_000)
    )
    coarse: float = option(
        TRAINING,
        0.0,
        "share of the training, at its start, with images of half the size",
        at_least(0, 0.9),
    )

    batch_size: int = option(TRAINING, 64, "samples per update", COUNT)
    steps: int = option(TRAINING, 2000, "generator updates", NOT_NEGATIVE, resumable=True)
    epochs: float = option(
        TRAINING,
        0.0,
        "passes of the critic over the data, instead of --steps",
        at_least(0, 1_000_000_000),
        resumable=True,
    )
    max_seconds: int = option(
        TRAINING,
        0,
        "wall-clock limit in seconds, at least 10; 0: no limit",
        zero_or_at_least_10,
        resumable=True,
        metavar="SECONDS",
    )
    enough_steps: int = option(
        TRAINING,
        0,
        "steps that a recipe needs; fewer in --max-seconds are reported",
        NOT_NEGATIVE,
        resumable=True,
    )
    generator_batch: int = option(
        TRAINING, 0, "samples per update of the generator; 0: as --batch-size", ZERO_OR_COUNT
    )
    accumulate: int = option(
        TRAINING,
        1,
        "compute each update in N parts of the batch, to save memory; batch normalisation uses the "
        "statistics of each part",
        COUNT,
        resumable=True,
    )
    n_critic: int = option(TRAINING, 5, "critic updates before each generator update", COUNT)
    optimizer: str = option(TRAINING, "adam", "", ("adam", "rmsprop"))
    lr_critic: float = option(
        TRAINING, 1e-4, "learning rate of the critic", POSITIVE, metavar="RATE"
    )
    lr_generator: float = option(
        TRAINING, 1e-4, "learning rate of the generator", POSITIVE, metavar="RATE"
    )
    betas: tuple[float, float] = option(
        TRAINING,
        (0.0, 0.9),
        "Adam's beta1 and beta2",
        each(decay_rate),
        metavar=("BETA1", "BETA2"),
    )
    lr_warmup: int = option(
        TRAINING, 0, "steps over which both learning rates increase linearly", NOT_NEGATIVE
    )
    lr_decay: bool = option(TRAINING, False, "decrease both learning rates linearly to zero")
    grad_clip: float = option(
        TRAINING, 0.0, "maximum gradient norm; 0: no clipping", NOT_NEGATIVE, metavar="NORM"
    )
    gp_weight: float = option(
        METHOD, 10.0, "weight of the gradient penalty", NOT_NEGATIVE, metavar="WEIGHT"
    )
    gamma: float = option(METHOD, 1.0, "weight of R1 and R2", POSITIVE)
    clip: float = option(
        METHOD, 0.01, "clamp critic weights to [-c, c]; 0: off", NOT_NEGATIVE, metavar="C"
    )
    div_k: float = option(METHOD, 2.0, "weight of the divergence penalty", POSITIVE, metavar="K")
    div_p: float = option(
        METHOD, 6.0, "power of the gradient norm in the divergence penalty", above(1), metavar="P"
    )
    div_points: str = option(METHOD, "mixed", "points of the divergence penalty", DIVERGENCE_POINTS)
    init_from: str = option(
        TRAINING, "", "run or checkpoint whose weights a new run starts from", metavar="PATH"
    )
    ema: float = option(
        TRAINING,
        0.995,
        "decay of the generator's moving average, per 64 generated images; 0: off",
        decay_rate,
        metavar="DECAY",
    )

    seed: int = option(HARDWARE, 0, "random seed", at_least(0, 2**64 - 1))
    device: str = option(HARDWARE, "auto", "auto, cpu, cuda, cuda:1, mps", resumable=True)
    precision: str = option(
        HARDWARE, "auto", "what the networks compute in", ("auto", "fp32", "bf16")
    )
    compile: str = option(
        HARDWARE,
        "auto",
        "auto: if the expected saving exceeds the cost",
        ("auto", "on", "off"),
        resumable=True,
    )
    cuda_graph: bool = option(
        HARDWARE, True, "replay each step as a CUDA graph (one rank on CUDA)", resumable=True
    )
    deterministic: bool = option(
        HARDWARE, False, "bitwise-reproducible CUDA kernels (slower)", resumable=True
    )
    sample_every: int = option(
        OUTPUT, 100, "steps between sample grids", AT_LEAST_ONE, resumable=True
    )
    log_every: int = option(
        OUTPUT, 25, "steps between lines of log.csv", AT_LEAST_ONE, resumable=True
    )
    checkpoint_every: int = option(
        OUTPUT, 500, "steps between checkpoints", AT_LEAST_ONE, resumable=True
    )
    keep_every: int = option(
        OUTPUT, 0, "steps between checkpoints that are kept; 0: none", NOT_NEGATIVE, resumable=True
    )
    eval_every: int = option(
        OUTPUT,
        0,
        "steps between evaluations, which keep best.pt; 0: none",
        NOT_NEGATIVE,
        resumable=True,
    )
    tensorboard: bool = option(OUTPUT, False, "write events for TensorBoard", resumable=True)
    run: str = option(
        OUTPUT,
        "",
        "folder of the run; empty: images/<dataset>-<method>, with --config images/<recipe>",
        resumable=True,
        metavar="PATH",
    )

    def __post_init__(self) -> None:
        if self.steps and self.epochs:
            raise ValueError("give either steps or epochs, not both")
        if not (self.steps or self.epochs or self.max_seconds):
            raise ValueError("steps, epochs or max_seconds must be greater than 0")
        if self.conditional and self.clusters:
            raise ValueError(
                f"networks are conditioned on classes or on clusters ({self.clusters}), not both: "
                "use conditional, or clusters"
            )
        if self.grey and self.alpha:
            raise ValueError("grey and alpha cannot be combined: use one of them")
        bounded = self.clip or self.critic_norm in ("spectral", "orthonormal")
        if self.method == "wgan" and not bounded:
            raise ValueError("clip = 0 leaves the critic unbounded: add --critic-norm spectral")
        if self.categories > self.noise_dim:
            raise ValueError(
                f"categories ({self.categories}) must not exceed noise_dim ({self.noise_dim}): "
                "use a smaller number, or 0 for none"
            )
        if not self.run:
            object.__setattr__(self, "run", f"images/{last_name(self.dataset)}-{self.method}")

    def image_options(self) -> ImageOptions:
        """How images become bytes."""
        size = parse_image_size(self.image_size)
        limits = self.range if any(self.range) else None  # 0 0: automatic
        return ImageOptions(size, self.grey, self.alpha, limits, self.label_column)

    def options_of(self, names: Iterable[str]) -> dict:
        """The values of the options with these names, as keyword arguments."""
        return {name: getattr(self, name) for name in names}

    def applicable(self) -> dict:
        """The options that have an effect with this method, model and optimizer."""
        unused = without_effect(self)
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def to_toml(self, sources: dict[str, str] | None = None) -> str:
        """The applicable options as TOML, with the source of each as a comment."""
        lines = [f"{name} = {toml_value(value)}" for name, value in self.applicable().items()]
        if sources:
            lines = [f"{line:<32}  # {sources[line.split()[0]]}" for line in lines]
        return "\n".join(lines) + "\n"


FIELDS = {entry.name: entry for entry in fields(Config)}
# One name for two options. Given together with one of them, it sets only the other.
SHORTHANDS = {"lr": ("lr_critic", "lr_generator")}
# How long to train, with the values that set no limit. A source that sets one of these options
# overrides all three of weaker sources.
LENGTHS = {"steps": 0, "epochs": 0.0, "max_seconds": 0}
PATHS = ("dataset", "data_root", "run", "init_from")  # in which ~ is the home folder


# ---------------------------------------------------------------- which options have an effect


def keyword_parameters(network: type) -> list[str]:
    """The options of a network: the keyword parameters of its constructor."""
    _, *names = inspect.signature(network).parameters  # the first is the sample shape
    names = [name for name in names if name != "num_classes"]  # of the data, or clusters
    if unknown := set(names) - FIELDS.keys():
        raise TypeError(f"{network.__name__} has parameters that are no options: {unknown}")
    return names


def options_of_model(name: str) -> set[str]:
    model = MODELS[name]
    return {*keyword_parameters(model.generator), *keyword_parameters(model.critic)}


def options_of_method(name: str) -> set[str]:
    return {entry.name for entry in fields(METHODS[name])}


def without_effect(config: Config) -> dict[str, str]:
    """The options without effect in this combination, each with the option that disables it. What
    depends on the data is not included (`wgan.data.unused_options`)."""
    disabled: dict[str, str] = {}
    for own, table, options_of in (
        ("model", MODELS, options_of_model),
        ("method", METHODS, options_of_method),
    ):
        every = set().union(*map(options_of, table))
        disabled |= dict.fromkeys(every - options_of(getattr(config, own)), own)
    if config.optimizer != "adam":
        disabled["betas"] = "optimizer"
    if not config.patch_features:
        disabled.setdefault("texture_features", "patch_features")
    if METHODS[config.method].relativistic:  # a fake sample is compared with a real one
        disabled["generator_batch"] = "method"
    return disabled


def last_name(path: str) -> str:
    """The last part of a path, also of "." and "folder/.."."""
    return Path(os.path.abspath(path)).name


def toml_value(value) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


# ---------------------------------------------------------------- values


def validated(values: dict) -> dict:
    """Option values in their types, with shorthands expanded; ValueError, naming option and
    value, for an invalid one."""
    values = {name: validate(name, value) for name, value in values.items()}
    for name, expanded in SHORTHANDS.items():
        if name in values:
            value = values.pop(name)
            values = dict.fromkeys(expanded, value) | values
    return values


def validate(name: str, value):
    target = FIELDS.get(SHORTHANDS.get(name, (name,))[0])
    if target is None:
        raise ValueError(f"unknown option {name!r}{suggestion(name, [*FIELDS, *SHORTHANDS])}")
    if name == "image_size" and type(value) is int:
        value = str(value)  # the side of a square is naturally a number in TOML
    try:
        value = coerce(value, type(target.default))
        if name in PATHS:
            value = os.path.expanduser(value)
        problem = target.metadata["check"](value)
    except (TypeError, ValueError, OverflowError):
        problem = f"must be {TYPE_NAMES[type(target.default)]}"
    if problem:
        raise ValueError(f"{name} = {short_repr(value)}: {problem}")
    return value


TYPE_NAMES = {
    str: "text in valid UTF-8 without NUL",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    tuple: "two finite numbers",
}


def coerce(value, kind: type):
    """The value as `kind`; ValueError or TypeError if it has another type."""
    if kind is tuple:
        first, second = value
        return coerce(first, float), coerce(second, float)
    if kind in (int, float) and type(value) in (int, float):
        if not math.isfinite(value) or kind(value) != value:
            raise ValueError
        return kind(value)
    if type(value) is not kind:
        raise TypeError
    if kind is str and "\0" in value:
        raise ValueError
    return value.encode().decode() if kind is str else value  # ValueError if not valid UTF-8


def short_repr(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
