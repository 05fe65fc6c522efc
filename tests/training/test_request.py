import json
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from lib.errors import InputError
from lib.training.request import RunRequest


def test_a_request_travels_as_plain_values() -> None:
    until = datetime(2026, 1, 2, 6, 0, tzinfo=ZoneInfo("Europe/Berlin"))
    asked = RunRequest("full", "nightly", "base", 90.0, until)
    json.dumps(asked.to_json())
    assert RunRequest.parse({"model": "medsa", **asked.to_json()}) == asked


def test_a_bare_request_is_a_persons_incremental_run() -> None:
    assert RunRequest.parse({"model": "medsa"}) == RunRequest("incremental", "person", "champion", None)


def test_a_full_run_starts_from_the_base_where_nothing_else_is_said() -> None:
    assert RunRequest.parse({"kind": "full"}).start == "base"
    assert RunRequest.parse({"kind": "full", "start": "champion"}).start == "champion"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "half"),
        ("trigger", "me"),
        ("start", "v3"),
        ("minutes", 0),
        ("minutes", "3"),
        ("minutes", True),
        ("until", "tomorrow"),
        ("until", 6),
        ("until", "2026-01-02T06:00:00"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{field}.*{value}"):
        RunRequest.parse({field: value})
