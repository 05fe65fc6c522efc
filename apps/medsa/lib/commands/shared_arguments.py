"""Options that several subcommands share."""

import argparse
import json
from pathlib import Path
from typing import Any

from lib.errors import NotFoundError
from lib.server.parts import Parts, build_parts


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """--task, --state and --conf, which mean what they mean to the server."""
    parser.add_argument("--task", help="name of a file in configs/tasks (default: demo)")
    parser.add_argument("--state", help="state folder (default: model/<task> in the app folder)")
    parser.add_argument(
        "--conf",
        nargs=2,
        action="append",
        default=[] if parser.argument_default is None else parser.argument_default,
        metavar=("KEY", "VALUE"),
        help="any setting, as for the server; may be repeated",
    )


def add_truth_arguments(parser: argparse.ArgumentParser, clicks: int) -> None:
    """--clicks, --merge, --only and --json, for whatever simulates an annotator."""
    parser.add_argument(
        "--clicks", type=int, default=clicks, metavar="K", help="for each object (%(default)s)"
    )
    parser.add_argument("--merge", metavar="NAME", help="all that is not zero in the truth is this label")
    parser.add_argument("--only", type=Path, metavar="FILE", help="case ids, one a line, in this order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def read_case_ids(file: Path | None) -> tuple[str, ...] | None:
    """The lines of a list of case ids; None stands for no list. Raises NotFoundError for an absent file."""
    if file is None:
        return None
    if not file.is_file():
        raise NotFoundError("only", str(file), "a file with one case id a line")
    return tuple(file.read_text(encoding="utf-8").split())


def write_json(file: Path | None, content: dict[str, Any]) -> None:
    """Writes the figures, if a file was asked for."""
    if file is not None:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parts_of(arguments: argparse.Namespace, app_dir: Path) -> Parts:
    """What the server would be made of with these options; raises SettingsError."""
    conf = dict(arguments.conf)
    for key in ("task", "state"):
        if (value := getattr(arguments, key)) is not None:
            conf[key] = value
    return build_parts(app_dir, conf)
