"""The score file `scores.json`: how uncertain which version was about each unlabelled case.

Written by the scoring process alone, whole and atomically; the server reads it.
"""

import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from lib.files import write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseScore:
    """`score` in bits, None for an image that could not be scored, with the `error` then."""

    score: float | None
    base: str
    adapter_version: int
    error: str | None = None


@dataclass(frozen=True)
class ScoreTable:
    """Scores by case id."""

    cases: dict[str, CaseScore]

    def values_by_case(self) -> dict[str, float]:
        """The cases that have a score; one of an earlier version is better than none."""
        return {case: entry.score for case, entry in self.cases.items() if entry.score is not None}

    def missing(self, candidates: Collection[str], base: str, adapter_version: int) -> list[str]:
        """The candidates that this model has neither scored nor failed on, by name."""
        return sorted(
            case
            for case in candidates
            if (entry := self.cases.get(case)) is None
            or (entry.base, entry.adapter_version) != (base, adapter_version)
        )


def read_scores(path: Path) -> ScoreTable:
    """The scores on record; an empty table when there are none or the file cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return ScoreTable({str(case): CaseScore(**entry) for case, entry in content.items()})
    except FileNotFoundError:
        return ScoreTable({})
    except (ValueError, TypeError, AttributeError):
        log.warning("%s cannot be read; all cases are scored again", path.name)
        return ScoreTable({})


def write_scores(path: Path, table: ScoreTable) -> None:
    """Replaces the file by `table`."""
    write_json(path, {case: asdict(entry) for case, entry in sorted(table.cases.items())})
