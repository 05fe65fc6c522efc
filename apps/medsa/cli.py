"""medsa's command line: `python apps/medsa/cli.py SUBCOMMAND --help`.

Each subcommand is a module of `lib.commands` with `add_arguments(parser)` and `run(arguments, app_dir)`.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lib.environment import give_way, prepare_environment
from lib.errors import MedsaError

APP_DIR = Path(__file__).resolve().parent
COMMANDS = {
    "serve": "start all that annotating needs: a PACS with demo series, and the server",
    "demo": "write demo studies and their true labels",
    "simulate": "annotate at a running server, as a person would",
    "train": "train on the labels of a studies folder, without a server",
    "retrain": "retrain on all labels from the base, for the night: cron, systemd, Slurm, torchrun",
    "score": "score the cases of a studies folder, in one process or in several",
    "evaluate": "compare two adapter versions on cases with a known label",
    "releases": "list adapter versions and what each training decided",
    "rollback": "let an earlier adapter version serve again",
    "parameters": "count what is trained beside each base, part by part",
    "pretrain": "train the small base model from scratch",
}

# On a machine that serves too, clicks come before these.
BEHIND = ("train", "retrain", "score")


def build_parser(chosen: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the options of the `chosen` subcommands only: their modules take seconds to import."""
    parser = argparse.ArgumentParser(prog="cli.py", description="medsa: Medical SAM Adapter for MONAI Label")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="SUBCOMMAND")
    for name, text in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name in chosen:
            module = import_module(f"lib.commands.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs one subcommand; returns the exit code. A MedsaError ends it with one line on stderr and code 2."""
    prepare_environment()
    arguments = build_parser(argv[:1]).parse_args(argv)
    try:
        return int(arguments.run(arguments, APP_DIR))
    except MedsaError as error:
        print(f"medsa: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medsa: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in BEHIND:
        give_way()
    sys.exit(main(sys.argv[1:]))
