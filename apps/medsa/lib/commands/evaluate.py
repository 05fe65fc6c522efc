"""`cli.py evaluate`: two adapter versions on the same cases, with the same simulated annotator."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib.commands.comparison import (
    LAST,
    ObjectScores,
    Subject,
    compare,
    load_predictor,
    pair_files,
    summarise,
    version_number,
)
from lib.commands.shared_arguments import (
    add_task_arguments,
    add_truth_arguments,
    parts_of,
    read_case_ids,
    write_json,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; the default compares the newest version with the base, after one click."""
    add_task_arguments(parser)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="named like the images")
    parser.add_argument("--version", default=LAST, metavar="N", help="to judge (default: the newest)")
    parser.add_argument("--base-version", default="0", metavar="N", help="to compare with (%(default)s)")
    add_truth_arguments(parser, clicks=1)


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Compares, prints a line per object and the means."""
    parts = parts_of(arguments, app_dir)
    files = pair_files(arguments.images, arguments.labels, read_case_ids(arguments.only))
    before, after = (version_number(parts, text) for text in (arguments.base_version, arguments.version))
    labels = dict(parts.settings.task.labels)
    subject = Subject(load_predictor(parts, before), load_predictor(parts, after), labels)
    scores = compare(subject, files, arguments.clicks, arguments.merge, _show)
    by_click = summarise(scores, arguments.clicks)
    for row in by_click:
        print(describe(row, before, after))
    objects = [asdict(score) for score in scores]
    content = {"base_version": before, "version": after, "objects": objects, "by_click": by_click}
    write_json(arguments.json, content)
    return 0


def describe(row: dict[str, Any], before: int, after: int) -> str:
    """One line of the outcome."""
    means = f"version {before} {row['before']:.3f}, version {after} {row['after']:.3f}"
    text = f"{row['clicks']} click(s): {means}"
    if "difference" not in row:
        return text
    found = row["difference"]
    interval = f"95 % interval {found['low']:+.3f} to {found['high']:+.3f}"
    return f"{text}, difference {found['mean']:+.3f} ({interval})"


def _show(scores: ObjectScores) -> None:
    before, after = (" ".join(f"{value:.3f}" for value in curve) for curve in (scores.before, scores.after))
    print(f"{scores.case_id} {scores.label}: {before} -> {after}", flush=True)
