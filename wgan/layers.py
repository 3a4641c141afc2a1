"""Where the value of an option comes from.

The strongest layer that sets it wins: flag, `--config` file, the data set's recipe (a TOML file in
configs/, unless the `--config` file names a method), the data set's settings, the model's settings,
the method's settings, the default.
"""

import re
from pathlib import Path
from typing import NamedTuple

from utils import METHODS
from wgan.config import (
    FIELDS,
    OVERRIDES,
    RECIPES,
    Config,
    find_toml,
    last_name,
    read_toml,
    shown,
    validated,
    without_effect,
)
from wgan.data import DATASETS, find_entry, is_points
from wgan_gp import MODELS, choose_device

CONDITIONAL_UPDATES = 2  # of the critic, at least
CUDA = "-cuda"  # the end of the name of a recipe for a GPU


class Layer(NamedTuple):
    """Option values that come from one place."""

    source: str
    values: dict


class Resolved(NamedTuple):
    """A configuration, and which layer each value comes from."""

    config: Config
    sources: dict[str, str]


def resolve(flags: dict, file: Layer | None = None) -> Resolved:
    """The configuration from flags and a file; ValueError for a bad value, an unknown option, or
    one that was given and has no effect."""
    given = [*([file] if file else []), Layer("command line", flags)]
    given = [Layer(layer.source, validated_of(layer)) for layer in given]
    named = {name: value for layer in given for name, value in layer.values.items()}
    if file:
        check_data_of_recipe(given[0], named.get("dataset"))
    whole = file is not None and "method" in file.values  # nothing else is mixed into such a file
    recipe = None if whole else find_recipe(named)
    named = (recipe.values if recipe else {}) | named
    dataset = named.get("dataset", FIELDS["dataset"].default)
    entry = find_entry(dataset)
    points = entry is not None and len(entry.shape) == 1
    method = named.get("method", FIELDS["method"].default)
    model = named.get("model", "dense" if points else FIELDS["model"].default)
    layers = [
        Layer("default", {name: entry.default for name, entry in FIELDS.items()}),
        Layer(f"method {method}", validated(METHODS[method].settings)),
        Layer(f"model {model}", validated(MODELS[model].settings | {"model": model})),
        Layer(f"dataset {dataset}", validated(entry.settings if entry else {})),
        *([recipe] if recipe else []),
        *([Layer(file.source, {"run": run_of_file(*given)})] if file else []),
        *given,
    ]
    resolved = merge(layers)
    if needs_more_updates(resolved, layers):
        layers.insert(-1, Layer("--conditional", {"n_critic": CONDITIONAL_UPDATES}))
        resolved = merge(layers)
    check_given_options(resolved.config, given)
    return resolved


def needs_more_updates(resolved: Resolved, layers: list[Layer]) -> bool:
    """Whether a recipe that was made without classes trains a DCGAN with too few critic updates for
    them: with one, all samples of a class become alike (docs/experiments.md)."""
    config, source = resolved.config, resolved.sources["n_critic"]
    if not config.conditional or config.model != "dcgan" or config.n_critic >= CONDITIONAL_UPDATES:
        return False
    return is_recipe(source) and not any(
        "conditional" in layer.values for layer in layers if layer.source == source
    )


def is_recipe(source: str) -> bool:
    """Whether a layer's values come from a file in configs/."""
    return find_toml(source).resolve().parent == RECIPES.resolve()


def run_of_file(file: Layer, flags: Layer) -> str:
    """The default folder of a run with `--config`: the file's name, and the data set and the method
    if flags change them."""
    names = [Path(file.source).stem]
    for option in ("dataset", "method"):
        value = flags.values.get(option)
        if value is not None and value != file.values.get(option):
            names.append(last_name(value))
    return f"images/{'-'.join(names)}"


def validated_of(layer: Layer) -> dict:
    """The layer's valid values; ValueError, naming the file if it is one, for an invalid one."""
    try:
        return validated(layer.values)
    except ValueError as error:
        origin = "" if layer.source == "command line" else f"{layer.source}: "
        raise ValueError(f"{origin}{error}") from None


def merge(layers: list[Layer]) -> Resolved:
    """Apply the layers, each once, the weakest first."""
    values, sources = {}, {}
    for source, layer in layers:
        if source != "default":
            for name, weaker in OVERRIDES.items():
                if layer.get(name):
                    layer = {other: type(FIELDS[other].default)(0) for other in weaker} | layer
        values |= layer
        sources |= dict.fromkeys(layer, source)
    try:
        return Resolved(Config(**values), sources)
    except ValueError as error:  # what one option needs may have been set by another layer
        others = [
            f"{name} is from {source}"
            for name, source in sources.items()
            if re.search(rf"\b{name}\b", str(error)) and source not in ("default", "command line")
        ]
        raise ValueError("; ".join([str(error), *others])) from None


def check_given_options(config: Config, given: list[Layer]) -> None:
    """ValueError for a given option that has no effect in this combination."""
    unused = without_effect(config)
    for source, values in given:
        for name in values:
            if name in unused:
                origin = "" if source == "command line" else f" ({source})"
                raise ValueError(
                    f"{name} = {shown(values[name])}{origin} has no effect with {unused[name]}: "
                    "remove it"
                )


# ---------------------------------------------------------------- recipes


def find_recipe(named: dict) -> Layer | None:
    """The first recipe of the data set for the method and model that were named, if any."""
    dataset, device = (named.get(key, FIELDS[key].default) for key in ("dataset", "device"))
    for layer in recipes_of(dataset, device):
        wanted = {**layer.values, **named}
        if all(
            wanted[key] == layer.values[key] for key in ("method", "model") if key in layer.values
        ):
            return layer
    return None


def recipes_of(dataset: str, device: str = "cpu") -> list[Layer]:
    """The recipes of a data set or folder; paths are shown relative to the repository. On CUDA, a
    recipe NAME-cuda takes the place of NAME, if it exists."""
    entry, names = find_entry(dataset), []
    for name in entry.recipes if entry else ():
        other = f"{name}{CUDA}"
        names.append(other if is_cuda(device) and (RECIPES / f"{other}.toml").exists() else name)
    return [
        Layer(f"configs/{name}.toml", validated(read_toml(RECIPES / f"{name}.toml")))
        for name in names
    ]


def is_cuda(device: str) -> bool:
    try:
        return choose_device(device).type == "cuda"
    except ValueError:  # reported later
        return False


def check_data_of_recipe(recipe: Layer, dataset: str | None) -> None:
    """ValueError for a recipe for several data sets without one of them, or for points with
    images. `dataset` is None if neither the recipe nor a flag names it."""
    if not is_recipe(recipe.source):
        return
    stem = find_toml(recipe.source).stem.removesuffix(CUDA)
    own = [name for name, entry in DATASETS.items() if stem in entry.recipes]
    if (dataset or FIELDS["dataset"].default) in own:
        return
    for_points = bool(own) and is_points(own[0])
    if dataset is None or (for_points and not is_points(dataset)):
        names = f"{', '.join(own[:-1])} or {own[-1]}" if for_points else "FOLDER"
        kind = "points" if for_points else "images"
        raise ValueError(f"{recipe.source} is for {kind}: add --dataset {names}")


def unused_recipe(config: Config) -> str | None:
    """A line that says that the data set has recipes, but none for this method and model."""
    recipes = recipes_of(config.dataset, config.device)
    if not recipes or find_recipe(vars(config)):
        return None
    needs = [
        f"{source} is for {' and '.join(values[k] for k in ('method', 'model') if k in values)}"
        for source, values in recipes
    ]
    return (
        f"no recipe for {config.method} and {config.model}, so their own settings apply "
        f"({', '.join(needs)})"
    )
