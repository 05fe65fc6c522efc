"""Labels that look wrong: those that the new version, which has learned from all of them, agrees with far less.

It is asked without clicks, which shows a label of another structure, and after some clicks as the label would have
them, which shows one that does not fit the image: a right label of a hard case it follows then.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lib.training.pending import FINISHED

# Fewer values than this say nothing about what is usual.
LEAST = 5
# Median absolute deviations, scaled to standard deviations of a normal distribution (Leys et al. 2013).
DEVIATIONS, SCALE = 3.5, 1.4826
CLICKS = 3
# However alike the others are, a difference in Dice that is smaller than this is none to ask about; by clicks.
LEAST_GAP = {0: 0.2, CLICKS: 0.1}


@dataclass(frozen=True)
class Agreement:
    """Dice of a case's label with what the model finds without clicks (`automatic`), and after `CLICKS` of them."""

    case_id: str
    label: str
    automatic: float
    clicked: float

    def dice(self, clicks: int) -> float:
        """After so many clicks, 0 or `CLICKS`."""
        return self.clicked if clicks else self.automatic


@dataclass(frozen=True)
class Suspicion:
    """A label that is to be looked at again; `typical` is the median Dice of that label over the cases.

    Both are those after so many `clicks`.
    """

    case_id: str
    label: str
    dice: float
    typical: float
    clicks: int = 0


def suspects(found: Sequence[Agreement]) -> tuple[Suspicion, ...]:
    """The outliers far below the others of their label, lowest first, each where it is farthest below."""
    named: dict[tuple[str, str], Suspicion] = {}
    for label in sorted({one.label for one in found}):
        own = [one for one in found if one.label == label]
        for one in (one for clicks in LEAST_GAP for one in _outliers(own, clicks)):
            known = named.setdefault((one.case_id, label), one)
            if one.typical - one.dice > known.typical - known.dice:
                named[one.case_id, label] = one
    return tuple(sorted(named.values(), key=lambda one: (one.dice, one.case_id)))


def still_suspicious(
    records: Iterable[Mapping[str, Any]], current: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    """What finished runs have found, as their records have it, and none that looked again has taken back.

    `current` has the digests of the labels by case: one that was changed since is another label. Records of before
    medsa noted what was looked at say all that was known then.
    """
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for record in records:
        if record.get("decision") not in FINISHED:
            continue
        looked_at = record.get("looked_at")
        if isinstance(looked_at, list | tuple):
            found = {key: row for key, row in found.items() if key[0] not in looked_at}
        else:
            found = {}
        for row in _rows(record.get("suspicious")):
            case = str(row.get("case_id"))
            if case in current and current[case] == _table(record.get("label_digests")).get(case):
                found[case, str(row.get("label"))] = row
    return list(found.values())


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _outliers(own: Sequence[Agreement], clicks: int) -> list[Suspicion]:
    if len(own) < LEAST:
        return []
    values = [one.dice(clicks) for one in own]
    typical = median(values)
    spread = SCALE * median(abs(value - typical) for value in values)
    limit = typical - max(LEAST_GAP[clicks], DEVIATIONS * spread)
    return [
        Suspicion(one.case_id, one.label, value, typical, clicks)
        for one, value in zip(own, values, strict=True)
        if value < limit
    ]
