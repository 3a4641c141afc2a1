"""The command line of train.py: flags, `--help`, messages and exit codes."""

import argparse
import sys
from collections.abc import Callable

from utils import METHODS
from wgan import distributed
from wgan.budget import start_clock
from wgan.config import FIELDS, RECIPES, SHORTHANDS, read_toml, suggestion, validated
from wgan.data import DATASETS
from wgan.errors import (
    BadInput,
    CommandError,
    Parser,
    PeerFailed,
    TrainingFailed,
    explain_out_of_memory,
    one_line,
)
from wgan.layers import Layer, Resolved, resolve, unused_recipe
from wgan.monitor import try_to_write
from wgan.output import safe_output
from wgan.setup import Run, set_up
from wgan_gp import MODELS

GROUPS = {  # the first option of each group in `--help`
    "dataset": "data",
    "method": "method and networks",
    "batch_size": "training",
    "seed": "hardware and reproducibility",
    "sample_every": "output",
}
OTHER_NAMES = {  # flags of other programs
    "--resume": "the same command resumes",
    "--checkpoint": "the same command resumes, and --init-from starts from other weights",
    "--bs": "use --batch-size",
    "--learning-rate": "use --lr",
    "--latent-dim": "use --noise-dim",
    "--save-every": "use --checkpoint-every, or --keep-every",
    "--workers": "not needed: all cores read the data",
    "--amp": "use --precision",
}
OTHER_NAMES |= dict.fromkeys(("--epoch", "--num-epochs"), "use --epochs")
OTHER_NAMES |= dict.fromkeys(
    ("--name", "--out", "--outdir", "--output", "--output-dir"), "use --run"
)
OTHER_NAMES |= dict.fromkeys(("--data", "--dataroot", "--data-dir"), "use --dataset")
OTHER_NAMES |= dict.fromkeys(
    ("--gpu", "--gpus", "--cuda"), "use --device cuda:0, or torchrun for several GPUs"
)
OTHER_NAMES["--num-workers"] = OTHER_NAMES["--workers"]


def run_training(argv: list[str] | None, train: Callable[[Run], int]) -> int:
    """`python train.py`; the exit code: 0 done, 1 training failed, 2 bad input, 128 + signal if
    stopped by a signal. Without `argv`, training is what this process was started for, so that a
    limit in time includes the imports."""
    start_clock(with_process=argv is None)
    with safe_output():
        return parse_and_train(argv, train)


def parse_and_train(argv: list[str] | None, train: Callable[[Run], int]) -> int:
    try:
        (config, sources), options = parse_command_line(make_parser(), argv)
    except ValueError as error:
        if distributed.is_first():  # all ranks have the same command line
            print(f"error: {one_line(error)}", file=sys.stderr)
        return BadInput.exit_code
    if options.dry_run:
        if distributed.is_first():
            print(config.to_toml(sources), end="")
        return 0
    advice = (
        f"--batch-size is {config.batch_size} and --width {config.width}; use --accumulate "
        f"{2 * config.accumulate}, or lower one of them or --image-size (a run that has a "
        "checkpoint needs --fresh for that)"
    )
    try:
        with distributed.process_group(), explain_out_of_memory(advice):
            if not options.config and (line := unused_recipe(config)):
                print(line)
            with set_up(config, options.fresh) as run:
                if run.is_finished():
                    try_to_write("curves and timelapse", run.folder.save_missing_plots)
                    print(run.describe_finished())
                    return 0
                for difference in run.differences:
                    print(difference)
                print(run.describe(), flush=True)
                try:
                    return train(run)
                except OSError as error:  # reading the data
                    raise TrainingFailed(f"{error}. The last checkpoint is untouched.") from error
    except PeerFailed as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except CommandError as error:
        rank = "" if distributed.is_first() else f" on rank {distributed.rank()}"
        print(f"error{rank}: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # before training, or the second one during training
        return 130


def make_parser() -> Parser:
    parser = Parser(
        prog="train.py",
        description="Train a Wasserstein GAN.",
        epilog=f"methods, models and data sets:\n{describe_choices()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    parser.add_argument("--fresh", action="store_true", help="move the folder's old run aside")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved options as TOML and exit"
    )
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and a flag for every option. Flags that are not given set nothing."""
    parser.add_argument("--config", metavar="FILE", help="TOML file of options")
    group: argparse._ActionsContainer = parser
    for name, entry in FIELDS.items():
        if name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        arguments = {
            "default": argparse.SUPPRESS,
            "help": f"{entry.metadata['help']} ({default_text(name)})".replace("%", "%%"),
        }
        if entry.type is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments["metavar"] = {int: "N", float: "X", tuple: "X"}.get(type(entry.default), "S")
            arguments["nargs"] = 2 if type(entry.default) is tuple else None
        group.add_argument(flag(name), **arguments)
        for shorthand, (first, *rest) in SHORTHANDS.items():
            if name == first:
                text = f"sets both {' and '.join(map(flag, (first, *rest)))}"
                group.add_argument(
                    flag(shorthand), default=argparse.SUPPRESS, metavar="X", help=text
                )


def describe_choices() -> str:
    """A line for each method, model and data set, for the end of `--help`."""
    texts = {name: (method.__doc__ or "").splitlines()[0] for name, method in METHODS.items()}
    texts |= {name: entry.help for name, entry in {**MODELS, **DATASETS}.items()}
    width = 2 + max(map(len, texts))
    return "\n".join(f"  {name:<{width}}{text}" for name, text in texts.items())


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def default_text(name: str) -> str:
    """The default of an option, and where another value is the default."""
    default = FIELDS[name].default
    tables = {own: entry.settings for own, entry in {**METHODS, **MODELS}.items()}
    recipes = sorted({recipe for entry in DATASETS.values() for recipe in entry.recipes})
    tables |= {f"{recipe}.toml": read_toml(RECIPES / f"{recipe}.toml") for recipe in recipes}
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
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        name = unknown[0].split("=")[0]
        hint = OTHER_NAMES.get(name.replace("_", "-"))
        hint = f": {hint}" if hint else suggestion(name, known)
        raise ValueError(f"unknown argument {unknown[0]!r}{hint}")
    given = vars(arguments)
    names = [name for name in (*FIELDS, *SHORTHANDS) if name in given]
    flags = {name: from_text(name, given[name]) for name in names}
    path = arguments.config
    return resolve(flags, Layer(path, read_toml(path)) if path else None), arguments


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
