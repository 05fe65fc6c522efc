"""`cli.py rollback`: lets an earlier adapter version serve again."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from lib.commands.shared_arguments import add_task_arguments, parts_of
from lib.training.releases import Releases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_task_arguments(parser)
    add_version_argument(parser)


def add_version_argument(parser: argparse.ArgumentParser) -> None:
    """The version to go back to, which may be left out."""
    parser.add_argument(
        "version",
        type=int,
        nargs="?",
        default=None,
        help="version to go back to (default: the one that served before); 0 is the base without adapter",
    )


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """A running server takes the version up by itself."""
    print(roll_back(parts_of(arguments, app_dir).releases, arguments.version))
    return 0


def roll_back(releases: Releases, version: int | None) -> str:
    """Does it and says what serves; raises NotFoundError when there is no such version."""
    releases.rollback(version, datetime.now(UTC).isoformat(timespec="seconds"))
    serving = releases.champion_version()
    return f"version {serving} serves now" + ("" if serving else ": the base without adapter")
