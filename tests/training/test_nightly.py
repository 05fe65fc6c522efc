from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lib.training.nightly import (
    MAX_STARTS,
    NightFile,
    NightLog,
    Nights,
    is_due,
    is_news,
    is_worthwhile,
    minutes_of,
)

BERLIN = Nights.of("02:00", "Europe/Berlin", 4)
LATE = Nights.of("23:30", "UTC", 6)


def utc(day: int, hour: int, minute: int = 0, month: int = 6) -> datetime:
    return datetime(2026, month, day, hour, minute, tzinfo=UTC)


def ended(time: datetime, decision: str = "published", trigger: str = "nightly") -> dict[str, Any]:
    return {"decision": decision, "trigger": trigger, "kind": "full", "time": time.isoformat()}


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (utc(10, 23, 59), False),  # 01:59 in Berlin
        (utc(10, 0, 0), True),
        (utc(10, 3, 59), True),
        (utc(10, 4, 0), False),
        (utc(10, 15, 0), False),
    ],
)
def test_it_is_due_while_the_window_is_open(now: datetime, due: bool) -> None:
    assert is_due(now, BERLIN, NightLog(), []) is due


def test_a_window_may_reach_over_midnight() -> None:
    assert is_due(utc(10, 23, 30), LATE, NightLog(), [])
    assert is_due(utc(11, 5, 29), LATE, NightLog(), [])
    assert not is_due(utc(11, 5, 30), LATE, NightLog(), [])
    assert LATE.begun(utc(11, 5)) == utc(10, 23, 30)


def test_a_night_missed_while_the_server_was_down_runs_later_in_its_window() -> None:
    """The last record is of another day, and the server starts at 05:30 in Berlin."""
    before = [ended(utc(9, 1))]
    assert is_due(utc(10, 3, 30), BERLIN, NightLog(utc(9, 0), 1), before)
    assert not is_due(utc(10, 6), BERLIN, NightLog(utc(9, 0), 1), before)


@pytest.mark.parametrize("decision", ["published", "refused"])
def test_a_night_is_over_with_its_run(decision: str) -> None:
    assert not is_due(utc(10, 1), BERLIN, NightLog(), [ended(utc(10, 0, 5), decision)])
    assert is_due(utc(11, 1), BERLIN, NightLog(), [ended(utc(10, 0, 5), decision)])


@pytest.mark.parametrize(
    "record",
    [
        ended(utc(10, 0, 5), trigger="person"),
        ended(utc(10, 0, 5), "stopped"),
        ended(utc(10, 0, 5), "failed"),
        {"decision": "published", "trigger": "nightly"},
        {"decision": "published", "trigger": "nightly", "time": "yesterday"},
    ],
)
def test_other_records_do_not_end_it(record: dict[str, Any]) -> None:
    assert is_due(utc(10, 1), BERLIN, NightLog(), [record])


def test_after_a_crash_it_is_started_again_but_not_for_ever() -> None:
    begun = utc(10, 0)
    assert is_due(utc(10, 1), BERLIN, NightLog(begun, MAX_STARTS - 1), [])
    assert not is_due(utc(10, 1), BERLIN, NightLog(begun, MAX_STARTS), [])
    assert is_due(utc(11, 1), BERLIN, NightLog(begun, MAX_STARTS), []), "the next night begins anew"


def test_a_night_that_somebody_stopped_stays_stopped() -> None:
    assert not is_due(utc(10, 1), BERLIN, NightLog(utc(10, 0), 1, over=True), [])
    assert is_due(utc(11, 1), BERLIN, NightLog(utc(10, 0), 1, over=True), [])


def nights_in(nights: Nights, start: datetime, hours: int) -> list[datetime]:
    """When a server that looks every ten minutes and whose run takes half an hour starts one."""
    starts: list[datetime] = []
    records: list[dict[str, Any]] = []
    now = start
    while now < start + timedelta(hours=hours):
        if is_due(now, nights, NightLog(), records):
            starts.append(now)
            records.append(ended(now))
            now += timedelta(minutes=30)
        now += timedelta(minutes=10)
    return starts


def test_where_the_clock_is_set_forward_over_it_the_night_runs_once() -> None:
    """On 29 March 2026 the clocks of Berlin go from 02:00 to 03:00: there is no 02:30."""
    nights = Nights.of("02:30", "Europe/Berlin", 2)
    assert nights_in(nights, utc(28, 12, month=3), 36) == [utc(29, 1, 30, month=3)]


def test_where_the_clock_is_set_back_over_it_the_night_runs_once() -> None:
    """On 25 October 2026 the clocks of Berlin go from 03:00 to 02:00: 02:30 comes twice."""
    nights = Nights.of("02:30", "Europe/Berlin", 2)
    assert nights_in(nights, utc(24, 12, month=10), 36) == [utc(25, 0, 30, month=10)]


def test_every_night_of_a_year_runs_once() -> None:
    assert len(nights_in(Nights.of("02:30", "America/New_York", 3), utc(1, 12, month=1), 24 * 365)) == 365


def test_the_next_night_is_told() -> None:
    assert BERLIN.coming(utc(10, 0)) == utc(11, 0)
    assert BERLIN.coming(utc(9, 23)) == utc(10, 0)


def test_what_is_left_of_the_window_bounds_the_time() -> None:
    assert BERLIN.left(utc(10, 3)) == timedelta(hours=1)
    assert BERLIN.left(utc(10, 5)) == timedelta()
    assert minutes_of(timedelta(hours=1), 100) == pytest.approx(51.0)
    assert minutes_of(timedelta(hours=9), 40) == pytest.approx(120.0)
    assert minutes_of(timedelta(hours=9), 2) == pytest.approx(10.0)


def test_only_other_labels_are_news() -> None:
    full = {"kind": "full", "decision": "refused", "label_digests": {"a": "1"}}
    assert is_news({"a": "1"}, [])
    assert not is_news({"a": "1"}, [full])
    assert is_news({"a": "2"}, [full])
    assert is_news({"a": "1", "b": "1"}, [full])
    assert is_news({"a": "1"}, [{**full, "decision": "stopped"}])
    assert is_news({"a": "1"}, [{**full, "kind": "incremental"}])


def test_a_run_of_much_less_than_a_night_is_none() -> None:
    short = {"kind": "full", "decision": "refused", "label_digests": {"a": "1"}, "minutes": 1.0}
    assert is_news({"a": "1"}, [short], usual=100.0)
    assert not is_news({"a": "1"}, [{**short, "minutes": 60.0}], usual=100.0)
    assert not is_news({"a": "1"}, [{**short, "minutes": None}], usual=100.0), "older records do not say"
    whole = {**short, "minutes": 100.0}
    assert is_news({"a": "1"}, [{**whole, "trained_minutes": 10.0}], usual=100.0), (
        "the end of its window came first"
    )
    assert not is_news({"a": "1"}, [{**whole, "trained_minutes": 90.0}], usual=100.0)
    assert not is_news({"a": "1"}, [{**whole, "trained_minutes": None}], usual=100.0)
    assert not is_news({"a": "1"}, [{**short, "trained_minutes": 100.0}], usual=100.0), (
        "it went on after a crash"
    )


@pytest.mark.parametrize(
    ("minutes", "usual", "enough"), [(0.9, 204, False), (10, 204, True), (2, 2.5, True), (1, 2.5, False)]
)
def test_the_end_of_a_window_is_not_begun_with(minutes: float, usual: float, enough: bool) -> None:
    assert is_worthwhile(minutes, usual) is enough


def test_the_file_outlives_a_restart_and_counts_a_night_at_a_time(tmp_path: Any) -> None:
    path = tmp_path / "nightly.json"
    NightFile(path).note_start(utc(10, 0))
    NightFile(path).note_start(utc(10, 0))
    assert NightFile(path).read() == NightLog(utc(10, 0), 2)
    NightFile(path).take_back_start(utc(10, 0))
    assert NightFile(path).read() == NightLog(utc(10, 0), 1)
    NightFile(path).note_start(utc(10, 0))
    NightFile(path).note_over(utc(10, 0))
    assert NightFile(path).read() == NightLog(utc(10, 0), 2, over=True)
    NightFile(path).note_start(utc(11, 0))
    assert NightFile(path).read() == NightLog(utc(11, 0), 1)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"begun": "x", "starts": 1, "over": false}', '{"starts": 1}']
)
def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Any, content: str) -> None:
    path = tmp_path / "nightly.json"
    path.write_text(content)
    assert NightFile(path).read() == NightLog()
