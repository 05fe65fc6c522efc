"""The gate: may a newly trained adapter replace the one that serves? A pure function of their scores.

Non-inferiority as in trials: a candidate is refused where its mean Dice may be lower than the serving version's by more
than a margin, at a stated confidence, in a paired bootstrap over cases (patients, where they are known).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lib.evaluation.one_sided import lower_bound
from lib.training.choice import MIN_GROUPS

MEASURES = ("1 click", "3 clicks", "5 clicks", "no clicks")
ByCase = Mapping[str, float]


@dataclass(frozen=True)
class Scores:
    """Dice of one adapter: label -> measure -> case id -> Dice.

    `labels` is the adapter's label map. `dice` has an entry for every label that has to be judged, with no case where
    there is none to judge it by.
    """

    labels: Mapping[str, int]
    dice: Mapping[str, Mapping[str, ByCase]]

    def mean(self, label: str, measure: str) -> float:
        """Over the cases; NaN when there is none."""
        values = list(self.dice.get(label, {}).get(measure, {}).values())
        return fmean(values) if values else math.nan

    @property
    def overall(self) -> float | None:
        """Mean over labels and measures that have a score; None when none has."""
        means = [self.mean(label, measure) for label, found in self.dice.items() for measure in found]
        known = [mean for mean in means if not math.isnan(mean)]
        return fmean(known) if known else None


@dataclass(frozen=True)
class Rules:
    """`margin` in Dice, `confidence` of each bound, `seed` of the bootstrap; `group_of` tells a case's patient."""

    margin: float
    confidence: float
    seed: int = 0
    group_of: Callable[[str], str] = str


@dataclass(frozen=True)
class Decision:
    """Whether to publish, and why or why not. Refusal is a normal outcome."""

    publish: bool
    reasons: tuple[str, ...]


def decide(champion: Scores, candidate: Scores, rules: Rules) -> Decision:
    """Publishes a candidate that is nowhere worse by more than the margin, and better in at least one label.

    Anything that makes the two incomparable (other labels, other cases, no case, a label without a score, a
    number that is not a Dice) refuses. "Worse" is asked for every label and measure, "better" for a label's
    mean over the measures, of MIN_GROUPS patients at the least.
    """
    problems = tuple(_incomparable(champion, candidate))
    if problems:
        return Decision(False, problems)
    worse = tuple(_worse(champion, candidate, rules))
    if worse:
        return Decision(False, worse)
    changes = {label: _overall_changes(champion, candidate, label, rules) for label in champion.dice}
    judged = [found for found in changes.values() if len(found) >= MIN_GROUPS]
    texts = tuple(_change(label, champion, candidate) for label in champion.dice)
    if not judged:
        most = max(map(len, changes.values()))
        return Decision(
            False, (f"too few to tell: {most} of at least {MIN_GROUPS} patients or cases", *texts)
        )
    if not any(lower_bound(found, rules.confidence, rules.seed) > 0 for found in judged):
        return Decision(False, (f"no label is better for sure ({rules.confidence:.0%})", *texts))
    return Decision(True, texts)


def _worse(champion: Scores, candidate: Scores, rules: Rules) -> Iterator[str]:
    for label in champion.dice:
        for measure in MEASURES:
            changes = _changes(champion.dice[label][measure], candidate.dice[label][measure], rules)
            bound = lower_bound(changes, rules.confidence, rules.seed)
            if bound < -rules.margin:
                before, after = champion.mean(label, measure), candidate.mean(label, measure)
                yield (
                    f"{label}, {measure}: Dice {before:.4f} -> {after:.4f}, may be lower by {-bound:.4f}: worse by "
                    f"more than the margin {rules.margin:g} ({len(changes)} cases)"
                )


def _changes(before: ByCase, after: ByCase, rules: Rules) -> list[float]:
    """One number a group: cases of one patient are no independent samples."""
    groups: dict[str, list[float]] = {}
    for case, value in before.items():
        groups.setdefault(rules.group_of(case), []).append(after[case] - value)
    return [fmean(values) for values in groups.values()]


def _overall_changes(champion: Scores, candidate: Scores, label: str, rules: Rules) -> list[float]:
    before, after = (_over_measures(scores.dice[label]) for scores in (champion, candidate))
    return _changes(before, after, rules)


def _over_measures(found: Mapping[str, ByCase]) -> dict[str, float]:
    return {case: fmean(found[measure][case] for measure in MEASURES) for case in found[MEASURES[0]]}


def _incomparable(champion: Scores, candidate: Scores) -> Iterator[str]:
    if dict(champion.labels) != dict(candidate.labels):
        yield f"the label map changed from {dict(champion.labels)} to {dict(candidate.labels)}"
    if not candidate.dice or not any(_cases(found) for found in candidate.dice.values()):
        yield "there is no validation case"
    for label in sorted({*champion.dice, *candidate.dice}):
        before, after = champion.dice.get(label, {}), candidate.dice.get(label, {})
        if not _cases(before) or not _cases(after):
            yield f"{label}: no validation case has this label"
        elif _cases(before) != _cases(after) or _is_uneven(before) or _is_uneven(after):
            yield f"{label}: the two were not scored on the same validation cases"
        elif not all(
            _is_dice(value) for found in (before, after) for by in found.values() for value in by.values()
        ):
            yield f"{label}: a score is not a number between 0 and 1"


def _cases(found: Mapping[str, ByCase]) -> set[str]:
    return {case for by_case in found.values() for case in by_case}


def _is_uneven(found: Mapping[str, ByCase]) -> bool:
    return any(set(found.get(measure, {})) != _cases(found) for measure in MEASURES)


def _is_dice(value: float) -> bool:
    return 0.0 <= value <= 1.0


def _change(label: str, champion: Scores, candidate: Scores) -> str:
    parts: Sequence[str] = [
        f"{measure} {champion.mean(label, measure):.4f} -> {candidate.mean(label, measure):.4f}"
        for measure in MEASURES
    ]
    return f"{label}: Dice {', '.join(parts)}"
