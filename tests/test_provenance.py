"""Provenance survives being written."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from lib.errors import InputError
from lib.provenance import Provenance, Weights

TIME = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
WEIGHTS = Weights("vit_t", "ab" * 32, 3)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_round_trip_through_json(weights: Weights | None) -> None:
    record = Provenance("reader 1", TIME, weights)
    assert Provenance.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize(
    "change",
    [
        {"author": None},
        {"author": 5},
        {"time": "yesterday"},
        {"time": "2025-03-04T05:06:07"},
        {"weights": {"base": "vit_t"}},
        {"weights": {"base": "vit_t", "base_sha256": "ab", "adapter_version": True}},
    ],
)
def test_damaged_records_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Provenance.from_json({**Provenance("reader 1", TIME, WEIGHTS).to_json(), **change})
