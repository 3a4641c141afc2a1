"""Every option of a training run: its default, what it means and what it may be.

`Config` declares each option once; flags, TOML files, `--help` and the checks follow from
it. A value comes from the first of these that names it: the flag, the TOML file, the data
set's recipe for the method, its settings, the model's, the method's, the default here.
"""

import argparse
import inspect
import json
import math
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path

from utils import DIVERGENCE_POINTS, METHODS
from wgan.acceleration import PRECISIONS
from wgan.data.table import DATASETS, parse_image_size
from wgan_gp import MODELS, NORMS, UPSAMPLINGS

Check = Callable[[object], str | None]  # what is wrong with a value, or None


def one_of(choices: Iterable[str]) -> Check:
    def check(value):
        if value in choices:
            return None
        return f"must be one of {', '.join(choices)}{suggestion(str(value), choices)}"

    return check


def between(low: float, high: float = math.inf, low_open: bool = False, high_open: bool = True):
    def check(value):
        inside = (value > low if low_open else value >= low) and (
            value < high if high_open else value <= high
        )
        least = f"greater than {low:g}" if low_open else f"at least {low:g}"
        most = "" if high == math.inf else f" and {'below' if high_open else 'at most'} {high:g}"
        return None if inside else f"must be {least}{most}"

    return check


def each(check: Check) -> Check:
    return lambda values: next(filter(None, map(check, values)), None)


def image_size(value: str) -> str | None:
    try:
        parse_image_size(value)
    except ValueError as error:
        return str(error)
    return None


POSITIVE = between(0, low_open=True)
NOT_NEGATIVE = between(0)
AT_LEAST_ONE = between(1)
COUNT = between(1, 1_000_000, high_open=False)
SEED = between(0, 2**64, high_open=True)


def no_or_enough_seconds(value: float) -> str | None:
    return None if value == 0 or value >= 10 else "must be 0, or at least 10"


def option(default, help: str, check: Check = lambda value: None, harmless: bool = False):
    """A field of `Config`. A harmless option may change when a run is resumed."""
    return field(default=default, metadata={"help": help, "check": check, "harmless": harmless})


@dataclass(frozen=True)
class Config:
    """One run, fully explicit: together with the code it says what will be computed."""

    dataset: str = option("glyphs", f"{', '.join(DATASETS)}, or a folder of pictures")
    data_root: str = option("datasets", "where downloaded and prepared data lie", harmless=True)
    image_size: str = option(
        "", "64 or 64x96 (height x width); empty: the set's own, 64 for folders", image_size
    )
    grey: bool = option(False, "one channel in place of three")
    flip: bool = option(False, "mirror half of the pictures, left to right")

    method: str = option("wgan-gp", ", ".join(METHODS), one_of(METHODS))
    model: str = option("dcgan", ", ".join(MODELS), one_of(MODELS))
    width: int = option(
        64, "dcgan: channels of the critic's first stage; dense: hidden units", COUNT
    )
    noise_dim: int = option(128, "numbers of noise that make one sample", COUNT)
    categories: int = option(
        0,
        "how many of them are not numbers, but make one choice among as many",
        between(0, 1_000_000, high_open=False),
    )
    generator_norm: str = option("batch", ", ".join(NORMS), one_of(NORMS))
    sync_batch_norm: bool = option(
        False, "with several ranks: the generator's batch normalisation uses all ranks' samples"
    )
    critic_norm: str = option("none", ", ".join(NORMS), one_of(NORMS))
    upsampling: str = option("transposed", ", ".join(UPSAMPLINGS), one_of(UPSAMPLINGS))

    pyramid: int = option(
        1, "dense: sizes whose sum is the picture, each half as large as the one before",
        between(1, 8, high_open=False),
    )  # fmt: skip
    patch_features: int = option(
        0, "dense: features of each 8x8 patch that the networks see and draw; 0: plain pixels",
        between(0, 10_000, high_open=False),
    )  # fmt: skip

    batch_size: int = option(64, "samples in one update", COUNT)
    steps: int = option(2000, "generator updates to train for", NOT_NEGATIVE, harmless=True)
    epochs: float = option(
        0.0, "passes of the critic over the data, in place of --steps", NOT_NEGATIVE, harmless=True
    )
    max_seconds: int = option(
        0, "end so long after the process began, unless --steps end it before; 0: no limit",
        no_or_enough_seconds, harmless=True,
    )  # fmt: skip
    generator_batch: int = option(
        0,
        "samples in an update of the generator; 0: as --batch-size",
        between(0, 1_000_000, high_open=False),
    )
    n_critic: int = option(5, "critic updates before each generator update", COUNT)
    optimizer: str = option("adam", "adam, rmsprop", one_of(("adam", "rmsprop")))
    lr_critic: float = option(1e-4, "learning rate of the critic", POSITIVE)
    lr_generator: float = option(1e-4, "learning rate of the generator", POSITIVE)
    betas: tuple[float, float] = option((0.0, 0.9), "Adam's averages", each(between(0, 1)))
    lr_decay: bool = option(False, "lower both rates linearly to zero at the last step")
    grad_clip: float = option(0.0, "longest gradient of an update; 0: any", NOT_NEGATIVE)
    gp_weight: float = option(10.0, "wgan-gp: weight of the penalty", NOT_NEGATIVE)
    clip: float = option(0.01, "wgan: largest weight of the critic", POSITIVE)
    div_k: float = option(2.0, "wgan-div: weight of the penalty", POSITIVE)
    div_p: float = option(6.0, "wgan-div: power of the gradient's norm", between(1, low_open=True))
    div_points: str = option(
        "mixed", f"wgan-div: penalise at {', '.join(DIVERGENCE_POINTS)} points",
        one_of(DIVERGENCE_POINTS),
    )  # fmt: skip
    init_from: str = option("", "run or checkpoint whose weights a new run starts from")
    ema: float = option(0.995, "decay of the generator's moving average; 0: none", between(0, 1))

    seed: int = option(0, "of all random numbers", SEED)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", harmless=True)
    precision: str = option(
        "auto", "auto, fp32, bf16: what networks compute in", one_of(PRECISIONS)
    )
    compile: str = option(
        "auto", "auto, on, off; auto: if the run is long enough", one_of(("auto", "on", "off")),
        harmless=True,
    )  # fmt: skip
    deterministic: bool = option(False, "CUDA: the same bytes each time, slower", harmless=True)
    sample_every: int = option(100, "steps between sample pictures", AT_LEAST_ONE, harmless=True)
    log_every: int = option(25, "steps between lines of log.csv", AT_LEAST_ONE, harmless=True)
    checkpoint_every: int = option(500, "steps between checkpoints", AT_LEAST_ONE, harmless=True)
    eval_every: int = option(
        0, "steps between measurements of quality, which keep best.pt; 0: none", NOT_NEGATIVE,
        harmless=True,
    )  # fmt: skip
    run: str = option("", "folder of the run; empty: images/<dataset>-<method>", harmless=True)

    def __post_init__(self) -> None:
        if self.steps and self.epochs:
            raise ValueError("give either steps or epochs, and not both")
        if not (self.steps or self.epochs or self.max_seconds):
            raise ValueError("steps, epochs or max_seconds must be greater than 0")
        networks = (MODELS[self.model].generator, MODELS[self.model].critic)
        for name in ("pyramid", "patch_features"):
            used = any(name in inspect.signature(network).parameters for network in networks)
            value = getattr(self, name)
            if not used and value != FIELDS[name].default:
                raise ValueError(f"{name} = {value} does nothing with model {self.model!r}")
        if self.categories > self.noise_dim:
            raise ValueError(
                f"categories = {self.categories}: there are only {self.noise_dim} numbers of noise "
                "(noise_dim) to choose among"
            )
        if self.generator_norm == "batch" and 1 in (self.batch_size, self.generator_batch):
            raise ValueError("batch normalisation (generator_norm) needs a batch_size of 2 or more")
        if self.critic_norm == "batch" and METHODS[self.method].per_sample:
            raise ValueError(
                f"critic_norm = batch does not go with {self.method}: it penalises each sample's "
                "own gradient, and batch normalisation mixes the samples of a batch "
                "(Gulrajani et al. 2017, section 4); use layer, instance or none"
            )

    def arguments_for(self, function: Callable) -> dict:
        """The options that a class or function has parameters of the same names for."""
        names = inspect.signature(function).parameters
        return {name: value for name, value in asdict(self).items() if name in names}

    def to_toml(self) -> str:
        lines = [f"{name} = {toml_value(value)}" for name, value in asdict(self).items()]
        return "\n".join(lines) + "\n"


FIELDS = {entry.name: entry for entry in fields(Config)}
# One name for two options; given beside one of them, it stands for the other alone.
SHORTHANDS = {"lr": ("lr_critic", "lr_generator")}


REPLACES = {"steps": ["epochs"], "epochs": ["steps"], "max_seconds": ["steps", "epochs"]}


def resolve(file: dict, flags: dict) -> Config:
    """The configuration from a file's values and the flags'; ValueError for a bad one."""
    file, flags = expand(file), expand(flags)
    given = {**file, **flags}
    source = DATASETS.get(given.get("dataset", FIELDS["dataset"].default))
    settings, recipes = (source.settings, source.recipes) if source else ({}, {})
    method = given.get("method", FIELDS["method"].default)
    home = settings.get("model", FIELDS["model"].default)  # which these settings are for
    model = given.get("model", home)
    layers = [METHODS[method].settings, MODELS[model].settings]
    if model == home:
        layers += [settings, recipes.get(method, {})]
    layers += [file, flags]
    values = {name: value for layer in layers for name, value in expand(layer).items()}
    noise_dim = values.get("noise_dim", FIELDS["noise_dim"].default)
    if "categories" not in given and values.get("categories", 0) > noise_dim:
        values["categories"] = 0  # a setting for more noise than was asked for
    config = Config(**values)
    if not config.run:
        dataset = Path(config.dataset).resolve().name
        config = replace(config, run=f"images/{dataset}-{config.method}")
    return config


def restore(stored: dict) -> Config:
    """The configuration that a run has written. An option that was added since is at its default,
    whatever suits the data set by now."""
    added = {name: entry.default for name, entry in FIELDS.items() if name not in REPLACES}
    return resolve(added | stored, {})


def expand(layer: dict) -> dict:
    """A layer of values, checked, its shorthands written out."""
    layer = {name: checked(name, value) for name, value in layer.items()}
    for name, stands_for in SHORTHANDS.items():
        if name in layer:
            value = layer.pop(name)
            layer = dict.fromkeys(stands_for, value) | layer
    # Steps replace the epochs of a weaker layer, epochs its steps, and time alone both.
    for one, others in REPLACES.items():
        if layer.get(one):
            layer = {other: type(FIELDS[other].default)(0) for other in others} | layer
    return layer


def checked(name: str, value):
    """The value in its option's type; ValueError, naming option and value, where it is none."""
    target = FIELDS.get(SHORTHANDS.get(name, (name,))[0])
    if target is None:
        raise ValueError(f"unknown option {name!r}{suggestion(name, [*FIELDS, *SHORTHANDS])}")
    if name == "image_size" and type(value) is int:
        value = str(value)  # a square's side, as it comes naturally in TOML
    try:
        value = converted(value, type(target.default))
        problem = target.metadata["check"](value)
    except (TypeError, ValueError, OverflowError):
        problem = f"must be {KINDS[type(target.default)]}"
    if problem:
        raise ValueError(f"{name} = {shown(value)}: {problem}")
    return value


KINDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    tuple: "two finite numbers",
}


def converted(value, kind: type):
    """The value as `kind`; ValueError or TypeError where it is of another type."""
    if kind is tuple:
        first, second = value
        return converted(first, float), converted(second, float)
    if kind in (int, float) and type(value) in (int, float):
        if not math.isfinite(value) or kind(value) != value:
            raise ValueError
        return kind(value)
    if type(value) is not kind:
        raise TypeError
    return value


def suggestion(name: str, names) -> str:
    close = get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def changes(old: dict, new: Config) -> list[str]:
    """The differences between a stored configuration and a new one that alter the result."""
    found = []
    for name, entry in FIELDS.items():
        # A run of an older version did what the default of a newer option does.
        before, after = old.get(name, entry.default), getattr(new, name)
        # The rate's decay ends at the last step, so with it the number of steps matters.
        harmless = entry.metadata["harmless"] and not (new.lr_decay and name in REPLACES)
        if not harmless and before != after:
            found.append(f"{name} was {before!r} and is {after!r}")
    return found


# ---------------------------------------------------------------- TOML and flags


def toml_value(value) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def read_toml(path: str) -> dict:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = sorted(str(other) for other in Path("configs").glob("*.toml"))
        raise ValueError(f"no configuration file {path!r}{suggestion(path, others)}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the configuration file {path!r} cannot be read: {error}") from None


class Parser(argparse.ArgumentParser):
    """Bad flags raise, as bad values do, so that one place reports both."""

    def error(self, message):
        raise ValueError(message)


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--config` and a flag for every option; what is not given does not appear."""
    parser.add_argument("--config", metavar="FILE", help="TOML file of options")
    for name, stands_for in SHORTHANDS.items():
        text = f"sets both of {', '.join(map(flag, stands_for))}"
        parser.add_argument(flag(name), default=argparse.SUPPRESS, metavar="X", help=text)
    for name, entry in FIELDS.items():
        arguments = {"default": argparse.SUPPRESS, "help": f"{entry.metadata['help']} "
                     f"({default_text(name)})".replace("%", "%%")}  # fmt: skip
        if entry.type is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments["metavar"] = "X"
            arguments["nargs"] = 2 if type(entry.default) is tuple else None
        parser.add_argument(flag(name), **arguments)


def choices_help() -> str:
    """A line for each method, model and data set, for the end of `--help`."""
    texts = {name: (method.__doc__ or "").splitlines()[0] for name, method in METHODS.items()}
    texts |= {name: entry.help for name, entry in {**MODELS, **DATASETS}.items()}
    return "\n".join(f"  {name:<15}{text}" for name, text in texts.items())


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def default_text(name: str) -> str:
    """The default, and in whose settings it is another."""
    default = FIELDS[name].default
    owners: dict[str, list[str]] = {}
    entries = {**METHODS, **MODELS, **DATASETS}
    tables = {owner: entry.settings for owner, entry in entries.items()}
    for dataset, source in DATASETS.items():
        tables |= {f"{dataset} with {method}": recipe for method, recipe in source.recipes.items()}
    for owner, settings in tables.items():
        if settings:
            value = expand(settings).get(name, default)
            if value != default:
                owners.setdefault(shown_default(value), []).append(owner)
    others = [f"; {', '.join(names)}: {value}" for value, names in owners.items()]
    return f"default: {shown_default(default)}{''.join(others)}"


def shown_default(value) -> str:
    if isinstance(value, tuple):
        return " ".join(map(shown_default, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, int | float) else value or "empty"


def parse_command_line(parser: argparse.ArgumentParser, argv: list[str] | None):
    """The `Config` and the remaining arguments of a parser that `add_options` has seen."""
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        name = unknown[0].split("=")[0]
        raise ValueError(f"unknown argument {unknown[0]!r}{suggestion(name, known)}")
    given = vars(arguments)
    names = [name for name in (*FIELDS, *SHORTHANDS) if name in given]
    flags = {name: from_text(name, given[name]) for name in names}
    return resolve(read_toml(arguments.config) if arguments.config else {}, flags), arguments


def from_text(name: str, text):
    """A flag's text as a number where its option is one; other text is left to the checks."""
    if isinstance(text, list):
        return [from_text(name, part) for part in text]
    if type(FIELDS[SHORTHANDS.get(name, (name,))[0]].default) not in (int, float, tuple):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
