"""The command line of train.py: flags, `--help`, messages and exit codes."""

import argparse
import shutil
import textwrap
from collections.abc import Callable

from utils import METHODS
from wgan import distributed
from wgan.acceleration import Step
from wgan.budget import start_clock
from wgan.command import Parser, run_script
from wgan.config import FIELDS, SHORTHANDS, validated
from wgan.data import DATASETS
from wgan.errors import BadInput, TrainingFailed, explain_out_of_memory
from wgan.files import try_to_write
from wgan.recipes import RECIPES, Resolved, resolve
from wgan.setup import Run, set_up
from wgan_gp import MODELS

OTHER_NAMES = {  # flags of other programs
    "--resume": "the same command resumes",
    "--bs": "use --batch-size",
    "--learning-rate": "use --lr",
    "--latent-dim": "use --noise-dim",
    "--outdir": "use --run",
    "--output": "use --run",
    "--data": "use --dataset",
    "--dataroot": "use --dataset",
    "--gpu": "use --device cuda:0, or torchrun for several GPUs",
    "--gpus": "use --device cuda:0, or torchrun for several GPUs",
    "--workers": "images are decoded on all cores",
    "--num-workers": "images are decoded on all cores",
}


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
    except ValueError as error:  # all ranks have the same command line
        distributed.fail(str(error), BadInput)
    config = resolved.config
    if options.dry_run:
        if distributed.is_first():
            print(config.to_toml(resolved.sources), end="")
        return 0
    advice = (
        f"--batch-size is {config.batch_size} and --width {config.width}; use --accumulate "
        f"{2 * config.accumulate}, or lower one of them or --image-size (a run that has a "
        "checkpoint needs --fresh for that)"
    )
    with distributed.process_group(), explain_out_of_memory(advice):
        print(f"options: {resolved.recipe or f'the settings of {config.method}'}")
        with set_up(config, options.fresh, step) as run:
            if run.is_finished():
                try_to_write("curves and timelapse", run.folder.save_plots)
                print(run.describe_finished())
                return 0
            try:
                return train(run)
            except OSError as error:  # reading the data
                raise TrainingFailed(f"{error}. The last checkpoint is untouched.") from error


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps names with hyphens, such as wgan-gp, on one line."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def make_parser() -> Parser:
    parser = Parser(
        prog="train.py",
        usage="%(prog)s [--config RECIPE] [--dataset NAME] [options]",
        description="Train a Wasserstein GAN. Recipes have other values than these defaults:\n"
        "--dry-run prints the values that a command uses, and where they come from.",
        epilog=describe_choices(shutil.get_terminal_size().columns - 2),
        formatter_class=HelpFormatter,
    )
    parser.hints = OTHER_NAMES
    add_options(parser)
    parser.add_argument("--fresh", action="store_true", help="move the folder's old run aside")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved options as TOML and exit"
    )
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and a flag for every option, in its group. Flags that are not given set
    nothing."""
    config_help = "TOML file of options, or the name of a recipe"
    parser.add_argument("--config", metavar="RECIPE", help=config_help)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, entry in FIELDS.items():
        about = entry.metadata
        if about["group"] not in groups:
            groups[about["group"]] = parser.add_argument_group(about["group"])
        add = groups[about["group"]].add_argument
        for shorthand, both in SHORTHANDS.items():
            if name == both[0]:
                text = f"sets both {' and '.join(map(flag, both))}"
                add(flag(shorthand), default=argparse.SUPPRESS, metavar=about["metavar"], help=text)
        arguments = {
            "default": argparse.SUPPRESS,
            "help": f"{about['help']} ({default_text(name)})".replace("%", "%%"),
        }
        if entry.type is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments["metavar"] = about["metavar"]
            arguments["nargs"] = 2 if type(entry.default) is tuple else None
        add(flag(name), **arguments)


def describe_choices(columns: int) -> str:
    """Each method, model and data set with what it is, and the names of the recipes."""
    methods = {name: (method.__doc__ or "").splitlines()[0] for name, method in METHODS.items()}
    models, data = ({n: entry.help for n, entry in t.items()} for t in (MODELS, DATASETS))
    indent = 4 + max(map(len, [*methods, *models, *data]))
    lines = []
    for title, texts in (("methods", methods), ("models", models), ("data sets", data)):
        lines += [f"{title}:"]
        for name, text in texts.items():
            first = f"  {name}".ljust(indent)
            lines += wrap(text, columns, first, " " * indent)
        lines += [""]
    names = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
    return "\n".join([*lines, "recipes:", *wrap(names, columns, "  ", "  ")])


def wrap(text: str, columns: int, first: str, other: str) -> list[str]:
    return textwrap.wrap(
        text, columns, initial_indent=first, subsequent_indent=other, break_on_hyphens=False
    )


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def default_text(name: str) -> str:
    """The default of an option, and those of methods and models that differ."""
    default = FIELDS[name].default
    tables = {own: entry.settings for own, entry in {**METHODS, **MODELS}.items()}
    owners: dict[str, list[str]] = {}
    for owner, settings in tables.items():
        value = validated(settings).get(name, default)
        if value != default and name not in ("method", "model"):
            owners.setdefault(value_text(value), []).append(owner)
    others = [f"; {', '.join(names)}: {value}" for value, names in owners.items()]
    return f"default: {value_text(default)}{''.join(others)}"


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
    given = vars(arguments)
    names = [name for name in (*FIELDS, *SHORTHANDS) if name in given]
    flags = {name: from_text(name, given[name]) for name in names}
    return resolve(flags, arguments.config), arguments


def from_text(name: str, text):
    """A flag's text as a number if its option is one; the checks of the configuration follow."""
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
