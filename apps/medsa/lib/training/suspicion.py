"""Labels that look wrong: those that the new version, which has learned from all of them, agrees with far less."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lib.training.pending import FINISHED

# Fewer values than this say nothing about what is usual.
LEAST = 5
# Median absolute deviations, scaled to standard deviations of a normal distribution (Leys et al. 2013).
DEVIATIONS, SCALE = 3.5, 1.4826
# However alike the others are, a difference in Dice that is smaller than this is none to ask about.
LEAST_GAP = 0.2


@dataclass(frozen=True)
class Agreement:
    """Dice of what the model finds without clicks in a case, and of its label."""

    case_id: str
    label: str
    dice: float


@dataclass(frozen=True)
class Suspicion:
    """A label that is to be looked at again; `typical` is the median Dice of that label over the cases."""

    case_id: str
    label: str
    dice: float
    typical: float


def suspects(found: Sequence[Agreement]) -> tuple[Suspicion, ...]:
    """The outliers far below the others of their label, lowest first."""
    named = [one for label in sorted({one.label for one in found}) for one in _of_label(found, label)]
    return tuple(sorted(named, key=lambda one: (one.dice, one.case_id)))


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


def _of_label(found: Sequence[Agreement], label: str) -> list[Suspicion]:
    own = [one for one in found if one.label == label]
    if len(own) < LEAST:
        return []
    typical = median(one.dice for one in own)
    spread = SCALE * median(abs(one.dice - typical) for one in own)
    limit = typical - max(LEAST_GAP, DEVIATIONS * spread)
    return [Suspicion(one.case_id, label, one.dice, typical) for one in own if one.dice < limit]
