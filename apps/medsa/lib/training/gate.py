"""The gate: may a newly trained adapter replace the one that serves? A pure function of their scores."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

SAME = 1e-6  # Dice means nearer than this are equal


@dataclass(frozen=True)
class Scores:
    """Dice of one adapter on the validation cases.

    `labels` is the adapter's label map, `cases` the validation cases in order. `dice` holds, for every label
    that occurs in any usable case, one number per validation case with that label (none: an empty tuple).
    """

    labels: Mapping[str, int]
    cases: tuple[str, ...]
    dice: Mapping[str, tuple[float, ...]]

    def mean(self, label: str) -> float:
        """Mean Dice of a label; NaN when it has none."""
        values = self.dice.get(label, ())
        return sum(values) / len(values) if values else math.nan

    @property
    def overall(self) -> float | None:
        """Mean over the labels that have a score; None when none has."""
        means = [self.mean(label) for label, values in self.dice.items() if values]
        return sum(means) / len(means) if means else None


@dataclass(frozen=True)
class Decision:
    """Whether to publish, and why or why not. Refusal is a normal outcome."""

    publish: bool
    reasons: tuple[str, ...]


def decide(champion: Scores, candidate: Scores, margin: float) -> Decision:
    """Publishes a candidate if no label is worse than the champion by more than `margin`, and one is better.

    Anything that makes the two incomparable (other labels, other cases, no case, a label without a score, a
    number that is not a Dice) refuses.
    """
    problems = tuple(_incomparable(champion, candidate))
    if problems:
        return Decision(False, problems)
    changes = {label: candidate.mean(label) - champion.mean(label) for label in champion.dice}
    worse = tuple(
        f"{_change(label, champion, candidate)}: worse by more than the margin {margin:g}"
        for label, change in changes.items()
        if change < -margin - SAME
    )
    if worse:
        return Decision(False, worse)
    if not any(change > SAME for change in changes.values()):
        return Decision(False, ("no label is better than with the serving version",))
    return Decision(True, tuple(_change(label, champion, candidate) for label in changes))


def _incomparable(champion: Scores, candidate: Scores) -> Iterator[str]:
    if dict(champion.labels) != dict(candidate.labels):
        yield f"the label map changed from {dict(champion.labels)} to {dict(candidate.labels)}"
    if champion.cases != candidate.cases:
        yield "the two were not scored on the same validation cases"
    if not candidate.cases or not candidate.dice:
        yield "there is no validation case"
    for label in sorted({*champion.dice, *candidate.dice}):
        before, after = champion.dice.get(label, ()), candidate.dice.get(label, ())
        if not before or not after:
            yield f"{label}: no validation case has this label"
        elif len(before) != len(after):
            yield f"{label}: scored on {len(after)} cases, the serving version on {len(before)}"
        elif not all(0.0 <= value <= 1.0 for value in (*before, *after)):
            yield f"{label}: a score is not a number between 0 and 1"


def _change(label: str, champion: Scores, candidate: Scores) -> str:
    return f"{label}: Dice {champion.mean(label):.4f} -> {candidate.mean(label):.4f}"
