"""`cli.py rollback`: lets an earlier adapter version serve again."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from lib.commands.shared_arguments import add_task_arguments, parts_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_task_arguments(parser)
    parser.add_argument("version", type=int, help="version to go back to; 0 is the base without adapter")


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """A running server takes the version up by itself."""
    releases = parts_of(arguments, app_dir).releases
    releases.rollback(arguments.version, datetime.now(UTC).isoformat(timespec="seconds"))
    print(f"version {releases.champion_version()} serves now")
    return 0
