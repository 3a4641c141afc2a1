"""Where the value of an option comes from: the first of these sources that sets it.

    the command line
    the recipe: the `--config` file or, without one, the data set's recipe in configs/
    the settings of the data set, of the model, of the method
    the default

A recipe holds with every method: its options of another method are dropped. Its tables [cuda] and
[conditional] replace values on a GPU and with classes.
"""

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from utils import METHODS
from wgan.config import FIELDS, LENGTHS, Config, last_name, short_repr, validated, without_effect
from wgan.data import DatasetEntry, find_entry, unused_options
from wgan.errors import suggestion
from wgan_gp import MODELS, choose_device

RECIPES = Path(__file__).parent.parent / "configs"
COMMAND_LINE = "command line"
TABLES = ("cuda", "conditional")


class Source(NamedTuple):
    """Option values that come from one place."""

    name: str
    values: dict


@dataclass(frozen=True)
class Recipe:
    """The options in a TOML file, and those in its tables."""

    name: str
    values: dict
    tables: dict[str, dict] = field(default_factory=dict)

    def sources(self, flags: dict) -> list[Source]:
        """The values and those tables that apply together with the flags, the weakest first."""
        sources = [Source(self.name, self.values)]
        options = self.values | flags
        for table, applies in (
            ("cuda", is_cuda(options.get("device", FIELDS["device"].default))),
            ("conditional", options.get("conditional", FIELDS["conditional"].default)),
        ):
            if applies and table in self.tables:
                sources.append(Source(f"{self.name} [{table}]", self.tables[table]))
        return sources


class Resolved(NamedTuple):
    """A configuration, the source of each value, and the name of the recipe, if there is one."""

    config: Config
    sources: dict[str, str]
    recipe: str | None


def resolve(flags: dict, file: str | None = None) -> Resolved:
    """The configuration from flags and the `--config` file.

    ValueError for a bad value, an unknown option, or one that was given and has no effect.
    """
    flags = validated(flags)
    recipe = read_recipe(file) if file else find_recipe(flags)
    recipe_sources = recipe.sources(flags) if recipe else []
    options = {name: value for source in recipe_sources for name, value in source.values.items()}
    options |= flags
    if file and "dataset" not in options:
        raise ValueError(f"{file} names no data set: add --dataset")
    dataset = options.get("dataset", FIELDS["dataset"].default)
    entry = find_entry(dataset)
    method = options.get("method", FIELDS["method"].default)
    settings = {"model": "dense"} if entry and entry.is_points else {}
    settings |= entry.settings if entry else {}
    model = options.get("model", settings.get("model", FIELDS["model"].default))
    resolved = merge(
        [
            Source("default", {name: entry.default for name, entry in FIELDS.items()}),
            Source(f"method {method}", validated(METHODS[method].settings)),
            Source(f"model {model}", validated(MODELS[model].settings)),
            Source(f"dataset {dataset}", validated(settings)),
            *([Source(file, {"run": run_of_file(recipe, flags)})] if file else []),
            *recipe_sources,
            Source(COMMAND_LINE, flags),
        ]
    )
    check_effect(resolved, recipe_sources if file else [], flags, entry)
    return Resolved(*resolved, recipe.name if recipe else None)


def merge(sources: list[Source]) -> tuple[Config, dict[str, str]]:
    """Apply the sources, the weakest first; the configuration and the source of each value."""
    values, origins = {}, {}
    for name, own in sources:
        if name != "default" and any(own.get(length) for length in LENGTHS):
            own = LENGTHS | own
        values |= own
        origins |= dict.fromkeys(own, name)
    try:
        return Config(**values), origins
    except ValueError as error:  # what one option needs may have been set by another source
        others = [
            f"{option} is from {name}"
            for option, name in origins.items()
            if re.search(rf"\b{option}\b", str(error)) and name not in ("default", COMMAND_LINE)
        ]
        raise ValueError("; ".join([str(error), *others])) from None


def check_effect(
    resolved: tuple[Config, dict[str, str]],
    file: list[Source],
    flags: dict,
    entry: DatasetEntry | None,
) -> None:
    """ValueError for a flag without effect in this combination, and for an option of the `--config`
    file, unless a flag disables it or it has its default value."""
    config, _ = resolved
    disabled = without_effect(config)
    if entry:
        disabled |= dict.fromkeys(unused_options(entry), "dataset")
    values = {
        option: (source, value)
        for source, options in [*file, Source(COMMAND_LINE, flags)]
        for option, value in options.items()
    }
    for option in values.keys() & disabled.keys():
        by, (source, value) = disabled[option], values[option]
        on_command_line = source == COMMAND_LINE
        if not on_command_line and (by in flags or value == FIELDS[option].default):
            continue
        origin = "" if on_command_line else f" ({source})"
        raise ValueError(
            f"{option} = {short_repr(value)}{origin} has no effect with {by} "
            f"{getattr(config, by)}: remove it"
        )


# ---------------------------------------------------------------- recipes


def find_recipe(flags: dict) -> Recipe | None:
    """The data set's recipe: its first for this model and method, or else its first for this model,
    which holds with other methods, too."""
    entry = find_entry(flags.get("dataset", FIELDS["dataset"].default))
    recipes = [read_recipe(RECIPES / f"{name}.toml") for name in (entry.recipes if entry else ())]
    for options in (("model", "method"), ("model",)):
        for recipe in recipes:
            if all(flags.get(o, recipe.values.get(o)) == recipe.values.get(o) for o in options):
                return recipe
    return None


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file, shown relative to the repository; ValueError, naming the file, for
    an invalid value."""
    name, content = str(path), read_toml(path)
    if Path(path).parent == RECIPES:
        name = f"{RECIPES.name}/{Path(path).name}"
    tables = {table: content.pop(table) for table in TABLES if isinstance(content.get(table), dict)}
    try:
        return Recipe(
            name, validated(content), {table: validated(own) for table, own in tables.items()}
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def read_toml(path: str | Path) -> dict:
    """The options in a TOML file, or in a recipe; ValueError if it cannot be read."""
    try:
        text = find_toml(path).read_text(encoding="utf-8-sig")  # editors add a byte order mark
        return tomllib.loads(text)
    except FileNotFoundError:
        hint = suggestion(Path(path).stem, [recipe.stem for recipe in RECIPES.glob("*.toml")])
        raise ValueError(f"no configuration file {str(path)!r}{hint}") from None
    except OSError as error:
        raise ValueError(f"cannot read the configuration file {str(path)!r}: {error}") from None
    except (ValueError, RecursionError) as error:  # of the encoding, of TOML or its depth
        raise ValueError(
            f"cannot read the configuration file {str(path)!r}: it must be TOML ({error})"
        ) from None


def find_toml(path: str | Path) -> Path:
    """The file at a path, or else the recipe of that name, with or without folder and suffix, so
    that recipes are found from every current folder."""
    own = Path(os.path.expanduser(path))
    places = (own, RECIPES.parent / path, RECIPES / path)
    candidates = (Path(f"{place}{suffix}") for place in places for suffix in ("", ".toml"))
    return next((file for file in candidates if file.is_file()), own)


def run_of_file(recipe: Recipe, flags: dict) -> str:
    """The default folder of a run with `--config`: the file's name, and the data set and the method
    of flags."""
    names = [last_name(flags[name]) for name in ("dataset", "method") if name in flags]
    return f"images/{'-'.join([Path(recipe.name).stem, *names])}"


def is_cuda(device: str) -> bool:
    try:
        return choose_device(device).type == "cuda"
    except ValueError:  # reported later
        return False
