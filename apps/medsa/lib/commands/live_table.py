"""Shows the simulated annotator's progress: a live table in a terminal, one line per case elsewhere."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from statistics import median
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lib.commands.annotator import CaseRow, ObjectRow

_ROWS_BESIDE_TABLE = 8  # header, borders and the line below


class LiveTable(AbstractContextManager["LiveTable"]):
    """A context manager; `show` is the Annotator's report, `finish` prints all of it and the summary."""

    def __init__(self, console: Console, clicks: int) -> None:
        self._console, self._clicks = console, clicks
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._printed = 0

    def __enter__(self) -> "LiveTable":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, rows: Sequence[CaseRow], now: str) -> None:
        """Brings the screen up to date; `now` says what is being done, empty after a case ended."""
        if self._console.is_terminal:
            fitting = max(3, self._console.size.height - _ROWS_BESIDE_TABLE)
            self._live.update(Group(table_of(rows[-fitting:], self._clicks), Text(now)), refresh=True)
        elif not now and len(rows) > self._printed:
            self._printed = len(rows)
            self._console.print(line_of(rows[-1]), soft_wrap=True)

    def finish(self, rows: Sequence[CaseRow], summary: dict[str, Any]) -> None:
        """The whole table and the closing lines."""
        self._console.print(table_of(rows, self._clicks))
        means = ", ".join(f"{value:.3f}" for value in summary["mean_dice_by_click"])
        seconds = summary["median_click_seconds"]
        self._console.print(f"cases {summary['cases']}, saved {summary['saved']}, errors {summary['errors']}")
        decisions = ", ".join(run["decision"] for run in summary["trainings"])
        self._console.print(f"trainings {len(summary['trainings'])} ({decisions or '-'})")
        self._console.print(f"adapter versions that answered: {summary['versions']}")
        self._console.print(f"mean Dice by click: {means or '-'}")
        self._console.print(f"median seconds per click: {'-' if seconds is None else f'{seconds:.2f}'}")


def table_of(rows: Sequence[CaseRow], clicks: int) -> Table:
    """One line per object; a case that failed has its error in the last column."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("case", "object"):
        table.add_column(heading, overflow="fold")
    for number in range(1, clicks + 1):
        table.add_column(f"Dice {number}", justify="right")
    table.add_column("s/click", justify="right")
    table.add_column("adapter", justify="right")
    table.add_column("", overflow="fold")
    for row in rows:
        for result in row.objects or [ObjectRow("")]:
            dice = [f"{value:.3f}" for value in result.dice]
            dice += [""] * (clicks - len(dice))
            table.add_row(row.case_id, result.label, *dice, _seconds(result), _version(row), _state(row))
    return table


def line_of(row: CaseRow) -> str:
    """A finished case in one line."""
    objects = "; ".join(
        f"{result.label} {' '.join(f'{value:.3f}' for value in result.dice)} ({_seconds(result)} s)"
        for result in row.objects
    )
    return f"{row.case_id}: {objects or '-'}, adapter {_version(row) or '-'}, {_state(row) or 'open'}"


def _seconds(result: ObjectRow) -> str:
    return f"{median(result.seconds):.2f}" if result.seconds else ""


def _version(row: CaseRow) -> str:
    return "" if row.version is None else str(row.version)


def _state(row: CaseRow) -> str:
    return f"ERROR {row.error}" if row.error else "saved" if row.saved else ""
