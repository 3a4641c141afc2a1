"""The command line of train.py: flags, `--help`, messages and exit codes."""

import argparse
import shlex
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress

from utils import METHODS
from wgan import distributed
from wgan.acceleration import Step
from wgan.budget import SAVE_SIGNALS, Signals, start_clock
from wgan.command import Parser, run_script
from wgan.config import FIELDS, SHORTHANDS
from wgan.data import DATASETS, find_dataset
from wgan.errors import BadInput, TrainingFailed, explain_out_of_memory
from wgan.recipes import RECIPES, Resolved, resolve
from wgan.report import refresh
from wgan.setup import Run, set_up
from wgan_gp import MODELS


def run_training(argv: list[str] | None, step: Step, train: Callable[[Run], int]) -> int:
    """`python train.py`; the exit code: 0 done, 1 training failed, 2 bad input, 128 + signal if
    stopped by a signal.

    `step` performs the updates of one step, `train` the whole training of a run.
    """
    if argv is not None:
        start_clock()  # a call in a notebook, whose process may be older than the limit in time
    return run_script(lambda: parse_and_train(argv, step, train), bad_input=())


def parse_and_train(argv: list[str] | None, step: Step, train: Callable[[Run], int]) -> int:
    try:
        resolved, options = parse_command_line(make_parser(), argv)
        find_dataset(resolved.config.dataset)
    except (ValueError, OSError) as error:  # all ranks have the same command line
        distributed.fail(str(error), BadInput)
    config = resolved.config
    if options.dry_run:
        if distributed.is_first():
            print(config.to_toml(resolved.sources), end="")
        return 0
    advice = (
        f"use --accumulate {2 * config.accumulate}, or lower --batch-size, --width or --image-size "
        "(a run that has a checkpoint needs --fresh for that)"
    )
    with distributed.process_group(), explain_out_of_memory(advice):
        print(f"options: {resolved.recipe or f'the settings of {config.method}'}")
        command = shlex.join(["train.py", *(sys.argv[1:] if argv is None else argv)])
        with Signals(SAVE_SIGNALS), set_up(config, options.fresh, step, command) as run:
            if run.is_finished():
                refresh(run.folder, 1.0)
                print(run.describe_finished())
                return 0
            try:
                return train(run)
            except OSError as error:  # reading the data
                raise TrainingFailed(f"{error}. The same command resumes the run.") from error


def make_parser() -> Parser:
    parser = Parser(
        prog="train.py",
        usage="%(prog)s [--config RECIPE] [--dataset NAME] [options]",
        description="Train a Wasserstein GAN. Recipes have other values than these defaults:\n"
        "--dry-run prints the values that a command uses, and where they come from.",
        epilog=describe_choices(),
    )
    add_options(parser)
    parser.add_argument("--fresh", action="store_true", help="move the folder's old run aside")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved options as TOML and exit"
    )
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and a flag for every option, in its group. Flags that are not given set
    nothing."""
    parser.add_argument("--config", metavar="RECIPE", help="a recipe's name, or a TOML file")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, entry in FIELDS.items():
        about = entry.metadata
        if about["group"] not in groups:
            groups[about["group"]] = parser.add_argument_group(about["group"])
        add = groups[about["group"]].add_argument
        arguments = {
            "default": argparse.SUPPRESS,
            "help": f"{about['help']} (default: {value_text(entry.default)})".replace("%", "%%"),
        }
        if entry.type is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments["metavar"] = about["metavar"]
            arguments["nargs"] = 2 if type(entry.default) is tuple else None
            arguments["type"] = str if type(entry.default) is str else number
        add(flag(name), **arguments)
        for shorthand, both in SHORTHANDS.items():
            if name == both[-1]:
                text = f"sets both {' and '.join(map(flag, both))}"
                add(flag(shorthand), **arguments | {"help": text})


def describe_choices() -> str:
    """Each method, model and data set with what it is, and the names of the recipes."""
    tables = {
        "methods": {name: method.__doc__.splitlines()[0] for name, method in METHODS.items()},
        "models": {name: entry.help for name, entry in MODELS.items()},
        "data sets": {name: entry.help for name, entry in DATASETS.items()},
    }
    lines = []
    for title, texts in tables.items():
        lines += [f"{title}:", *(f"  {name:<13} {text}" for name, text in texts.items()), ""]
    recipes = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
    return "\n".join(
        [
            *lines,
            "recipes:",
            textwrap.indent(textwrap.fill(recipes, 76, break_on_hyphens=False), "  "),
        ]
    )


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def value_text(value) -> str:
    if isinstance(value, tuple):
        return " ".join(map(value_text, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, int | float) else value or "empty"


def parse_command_line(
    parser: argparse.ArgumentParser, argv: list[str] | None
) -> tuple[Resolved, argparse.Namespace]:
    """The resolved options, and the other arguments, of a parser with `add_options`.

    ValueError for invalid input.
    """
    arguments = parser.parse_args(argv)
    flags = {n: value for n, value in vars(arguments).items() if n in (*FIELDS, *SHORTHANDS)}
    return resolve(flags, arguments.config), arguments


def number(text: str) -> int | float | str:
    """A flag's text as a number, if it is one; the checks of the configuration follow."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
