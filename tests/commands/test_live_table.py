"""What the simulated annotator shows."""

import io

from rich.console import Console

from lib.commands.annotator import CaseRow, ObjectRow, summarise
from lib.commands.live_table import LiveTable, line_of

GOOD = CaseRow("case0", [ObjectRow("liver", [0.5, 0.75], [0.2, 0.4])], version=3, saved=True)
BAD = CaseRow("case1", error="422 no such image")


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=140, height=20)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_each_case_is_one_line_when_it_is_done() -> None:
    target = console(terminal=False)
    with LiveTable(target, clicks=2) as table:
        table.show([GOOD], "saving")
        assert shown(target) == ""
        table.show([GOOD], "")
        table.show([GOOD, BAD], "")
    assert shown(target).splitlines() == [line_of(GOOD), line_of(BAD)]


def test_a_line_has_the_figures_or_the_error() -> None:
    assert line_of(GOOD) == "case0: liver 0.500 0.750 (0.30 s), adapter 3, saved"
    assert line_of(BAD) == "case1: -, adapter -, ERROR 422 no such image"


def test_a_terminal_sees_what_happens_now() -> None:
    target = console(terminal=True)
    with LiveTable(target, clicks=2) as table:
        table.show([GOOD], "case1: liver, click 1")
    for text in ("case1: liver, click 1", "0.750", "liver"):
        assert text in shown(target)


def test_a_terminal_sees_the_last_rows_only() -> None:
    target = console(terminal=True)
    rows = [CaseRow(f"case{number:03d}", [ObjectRow("liver")]) for number in range(40)]
    with LiveTable(target, clicks=2) as table:
        table.show(rows, "")
    assert "case039" in shown(target)
    assert "case000" not in shown(target)


def test_the_end_shows_all_rows_and_the_summary() -> None:
    target = console(terminal=False)
    run = {"decision": "refused", "reasons": [], "time": "t"}
    LiveTable(target, clicks=2).finish([GOOD, BAD], summarise([GOOD, BAD], 2, [run]))
    text = shown(target)
    for part in ("case0", "ERROR 422", "cases 2, saved 1, errors 1", "trainings 1 (refused)", "0.500, 0.750"):
        assert part in text
