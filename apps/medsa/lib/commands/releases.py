"""`cli.py releases`: the adapter versions and what each training run decided."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from lib.commands.shared_arguments import add_task_arguments, parts_of
from lib.training.releases import Releases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_task_arguments(parser)


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Prints the table."""
    Console().print(versions_table(parts_of(arguments, app_dir).releases))
    return 0


def versions_table(releases: Releases) -> Table:
    """One line per record, oldest first; the serving version is named in the title."""
    table = Table("time", "decision", "version", "cases", "Dice before", "Dice after", "why")
    table.title = f"serving version: {releases.champion_version()} (0: the base without adapter)"
    for record in releases.records():
        table.add_row(
            str(record.get("time", "")),
            str(record.get("decision", "")),
            _text(record.get("version")),
            _text(len(record["trained"]) if "trained" in record else None),
            _mean_dice(record, "champion"),
            _mean_dice(record, "candidate"),
            "; ".join(record.get("reasons", ())),
        )
    return table


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _mean_dice(record: Mapping[str, Any], who: str) -> str:
    """Mean over the validation objects and their clicks."""
    values = [value for found in record.get("scores", {}).get(who, ()) for value in found["clicks"]]
    return f"{fmean(values):.3f}" if values else ""
