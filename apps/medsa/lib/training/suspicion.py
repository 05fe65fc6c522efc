"""Labels that look wrong: those that the new version, which has learned from all of them, agrees with far less."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

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


def _of_label(found: Sequence[Agreement], label: str) -> list[Suspicion]:
    own = [one for one in found if one.label == label]
    if len(own) < LEAST:
        return []
    typical = median(one.dice for one in own)
    spread = SCALE * median(abs(one.dice - typical) for one in own)
    limit = typical - max(LEAST_GAP, DEVIATIONS * spread)
    return [Suspicion(one.case_id, label, one.dice, typical) for one in own if one.dice < limit]
