"""`cli.py releases`: the adapter versions, what each training run decided and why; rolling back and pruning."""

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lib.commands.rollback import add_version_argument, roll_back
from lib.commands.shared_arguments import add_task_arguments, parts_of, write_json
from lib.training.account import Entry, Figures, VersionAccount, account_of, explain, overview
from lib.training.releases import Releases

ACTIONS = {
    "list": "the versions and the decisions, oldest first (the default)",
    "show": "all that is known of one version",
    "rollback": "let an earlier version serve again",
    "prune": "remove the weights of old versions",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and an optional action with its own."""
    add_task_arguments(parser)
    _add_json(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", description="list if none is given")
    for name, text in ACTIONS.items():
        # What is given before the action must not be reset by the action's own defaults.
        action = actions.add_parser(name, help=text, description=text, argument_default=argparse.SUPPRESS)
        add_task_arguments(action)
        if name in ("list", "show"):
            _add_json(action)
        if name == "show":
            action.add_argument("version", type=int, help="its number; 0 is the base without adapter")
        elif name == "rollback":
            add_version_argument(action)
        elif name == "prune":
            action.add_argument(
                "--keep", type=int, required=True, metavar="N", help="how many of the newest stay"
            )


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Prints, or does what was asked; a running server takes it up by itself."""
    releases = parts_of(arguments, app_dir).releases
    if arguments.action == "show":
        _show(account_of(releases, arguments.version), arguments.json)
    elif arguments.action == "rollback":
        print(roll_back(releases, arguments.version))
    elif arguments.action == "prune":
        print(prune(releases, arguments.keep))
    else:
        Console().print(versions_table(releases))
        write_json(arguments.json, overview(releases))
    return 0


def prune(releases: Releases, keep: int) -> str:
    """Does it and says which weights are gone; raises InputError for a `keep` below 1."""
    gone = releases.prune(keep, datetime.now(UTC).isoformat(timespec="seconds"))
    kept = f"kept: {_listed(releases.versions()[1:])}"
    return f"weights removed of versions {_listed(gone)}; {kept}" if gone else f"nothing to remove; {kept}"


def versions_table(releases: Releases) -> Table:
    """One line per record, oldest first; the serving version is named in the title."""
    table = Table("time", "decision", "version", "run", "labels", "Dice before", "Dice after", "why")
    state = overview(releases)
    table.title = f"serving version: {state['serving']} (0: the base without adapter)"
    table.caption = Text(state["problem"] or "")
    for record in releases.records():
        entry = explain(record)
        table.add_row(
            Text(entry.time),
            Text(entry.decision),
            _version_text(entry, state),
            Text(_kind_text(entry)),
            _labels_text(entry),
            _dice(entry.dice_before),
            _dice(entry.dice_after),
            Text("; ".join([*entry.reasons, *entry.remarks])),
        )
    return table


def details(account: VersionAccount) -> list[tuple[str, str]]:
    """What `show` prints beside the figures: names and values, without those that are not known."""
    rows = [("version", _standing(account))]
    if account.run is not None:
        rows += _run_rows(account.run)
    rows += [(f"label of {case}", f"sha256 {digest[:12]}") for case, digest in account.digests.items()]
    rows += [(key.replace("_", " "), str(value)) for key, value in (account.adapter or {}).items()]
    rows += [("problem", account.problem or "")]
    return [(name, value) for name, value in rows if value]


def figures_table(entry: Entry) -> Table:
    """One line per label: Dice without clicks and after each, before -> after."""
    after = {figures.label: figures for figures in entry.after}
    clicks = max((len(figures.clicks) for figures in (*entry.before, *entry.after)), default=0)
    table = Table("label", "cases", "no click", *(f"{count}. click" for count in range(1, clicks + 1)))
    table.title = "Dice on the validation cases, before -> after"
    labels = list(dict.fromkeys(figures.label for figures in (*entry.before, *entry.after)))
    before = {figures.label: figures for figures in entry.before}
    for label in labels:
        table.add_row(Text(label), *_changes(before.get(label), after.get(label)))
    return table


def _show(account: VersionAccount, json_file: Path | None) -> None:
    table = Table(show_header=False)
    for name, value in details(account):
        table.add_row(Text(name), Text(value))
    Console().print(table)
    if account.run is not None and (account.run.before or account.run.after):
        Console().print(figures_table(account.run))
    write_json(json_file, asdict(account))


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is known there")


def _standing(account: VersionAccount) -> str:
    parts = [str(account.version)]
    parts += ["the base without adapter"] if account.version == 0 else []
    parts += ["serves"] if account.serving else []
    if account.weights == "pruned":
        parts.append(f"its weights were pruned on {account.pruned}")
    elif account.weights == "missing":
        parts.append("its folder is gone")
    return ", ".join(parts)


def _run_rows(run: Entry) -> list[tuple[str, str]]:
    loss = "" if run.loss is None else f", loss {run.loss:g}"
    return [
        ("made", run.time),
        ("decision", run.decision),
        ("run", _kind_text(run)),
        ("started from", _started_from(run)),
        ("resumed", _said(run.resumed) if run.resumed else ""),
        ("served before", _known(run.parent)),
        ("why", "\n".join(run.reasons)),
        ("half way", "yes: the mean of the weights before and after" if run.half_way else ""),
        ("method", run.method or ""),
        ("labels offered", _known(run.labels)),
        ("trained on", _counted(run.trained)),
        ("left out in turn", _counted(run.left_out)),
        ("validated on", _counted(run.validated)),
        ("trained labels", ", ".join(run.trained_labels)),
        ("skipped", _lines(run.skipped)),
        ("suspicious", _lines(run.suspicious)),
        ("notes", "\n".join(run.notes)),
        ("events", _lines(run.events)),
        ("steps", "" if run.steps is None else f"{run.steps}{loss}"),
        ("seconds", ", ".join(f"{stage} {seconds:g}" for stage, seconds in run.seconds.items())),
    ]


def _started_from(run: Entry) -> str:
    return (
        f"version {run.parent}"
        if run.start == "champion" and run.parent
        else (run.start and "the base") or ""
    )


def _kind_text(entry: Entry) -> str:
    return ", ".join(text for text in (entry.kind, entry.trigger, entry.by) if text)


def _version_text(entry: Entry, state: dict[str, Any]) -> str:
    if entry.version is None:
        return _listed(entry.versions) if entry.versions else ""
    marks = "" if not entry.makes_version else _mark(entry.version, state)
    return f"{entry.version}{marks}"


def _mark(version: int, state: dict[str, Any]) -> str:
    if version == state["serving"]:
        return " serves"
    if version in state["versions"]:
        return ""
    return " pruned" if version in state["pruned"] else " gone"


def _labels_text(entry: Entry) -> str:
    left_out = f" ({len(entry.left_out)} left out in turn)" if entry.left_out else ""
    known = entry.trained or entry.validated
    return f"{len(entry.trained)}{left_out} + {len(entry.validated)}" if known else ""


def _changes(before: Figures | None, after: Figures | None) -> list[str]:
    """The cells of a label: its cases, then each figure before -> after."""
    found = [figures for figures in (before, after) if figures is not None]
    pairs = zip_longest(_in_order(before), _in_order(after))
    return [
        str(max(figures.cases for figures in found)),
        *(f"{_dice(old)} -> {_dice(new)}" for old, new in pairs),
    ]


def _in_order(figures: Figures | None) -> tuple[float | None, ...]:
    """Without clicks, then after each."""
    return () if figures is None else (figures.automatic, *figures.clicks)


def _dice(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _known(value: object) -> str:
    return "" if value is None else str(value)


def _counted(cases: tuple[str, ...]) -> str:
    return f"{len(cases)}: {', '.join(cases)}" if cases else ""


def _lines(rows: Iterable[Any]) -> str:
    return "\n".join(_said(row) for row in rows)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {content}" for key, content in value.items())
    return str(value)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
