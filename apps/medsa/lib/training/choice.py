"""Which cases a run trains on, and by which it is judged; pure functions, so that nothing has to be remembered.

A patient (a case, where patients are not known) belongs to validation or to training by a hash of its name alone, for
good: labels that are added move nothing, and what validates is never trained on.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lib.errors import TrainingError, UnjudgedError

Method = Literal["held out", "leave one out"]
GroupOf = Callable[[str], str]  # a case's patient, or the case itself
# Fewer patients than this cannot show that a label is better: the least of two changes is above 0 by chance too often.
MIN_GROUPS = 3
NO_LABELS = f"no labels: save a label first; training needs those of at least {MIN_GROUPS} patients or cases"
# Bounds the time that a decision takes; more than four labels may need more.
MAX_CASES = 12
# Of the cases that an incremental run could be judged by, and that never judged one, so many are read to choose from.
MAX_READ = 3 * MAX_CASES
# So few are left out one by one, more in two halves. The folds share the time of one training: from half of the labels
# a model learns enough to be judged, in a quarter of the time it does not.
MAX_SINGLES, HALVES = 3, 2


@dataclass(frozen=True)
class Choice:
    """Ids by what is done with them, each in the order of the hash.

    `folds` are cases of `training` that a model is judged by which was trained without them: none where `validation` is
    enough. `held_back` are of patients who validate, and more than a decision needs: nothing is done with them.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...] = ()
    held_back: tuple[str, ...] = ()

    @property
    def judged(self) -> tuple[str, ...]:
        """The cases by which the serving version and the candidate are compared."""
        return (*self.validation, *(case for fold in self.folds for case in fold))

    @property
    def method(self) -> Method:
        """How the run is judged."""
        return "leave one out" if self.folds else "held out"


def grouping(pattern: str | None, known: Mapping[str, str]) -> GroupOf:
    """Tells a case's patient: as `known` has it, else the first group of the regular expression `pattern` in its id.

    It is the id itself where neither says anything.
    """

    def group_of(case_id: str) -> str:
        if case_id in known:
            return known[case_id]
        match = re.search(pattern, case_id) if pattern is not None else None
        return match[1] if match is not None and match[1] else case_id

    return group_of


def case_hash(name: str) -> float:
    """A number in [0, 1) that depends on nothing but the name."""
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def choose(
    labels_of: Mapping[str, Collection[str]],
    expected: Collection[str],
    fraction: float,
    group_of: GroupOf = str,
    trained_before: Collection[str] = (),
) -> Choice:
    """Sorts usable cases, given by id with the labels that they hold.

    A patient validates when its hash is below `fraction`, unless a case of it was trained on by what serves
    (`trained_before`). Where these patients are fewer than MIN_GROUPS, or lack a label that is `expected`,
    cases that what serves has not seen, MAX_CASES (or MIN_GROUPS of every label, where that is more), are left out one
    patient at a time, or in HALVES folds where that would be more than MAX_SINGLES. Raises TrainingError where nothing
    is left to train on, or fewer than MIN_GROUPS patients to compare by, UnjudgedError where no case has an expected
    label: such a run could publish nothing.
    """
    ordered = sorted(labels_of, key=lambda case: (case_hash(group_of(case)), case))
    groups = {group_of(case) for case in ordered}
    if len(groups) < MIN_GROUPS:
        raise TrainingError(
            f"training needs usable labels of at least {MIN_GROUPS} patients or cases, found {len(groups)}"
        )
    seen = {group_of(case) for case in trained_before}
    held = [case for case in ordered if (group := group_of(case)) not in seen and case_hash(group) < fraction]
    validates = set(held)
    training = tuple(case for case in ordered if case not in validates)
    if not training:
        raise TrainingError(
            "no case is left to train on: all validate, by the hash of their names; label one more"
        )
    validation = _bounded(held, labels_of, expected, group_of)
    held_back = tuple(case for case in held if case not in validation)
    enough = len({group_of(case) for case in validation}) >= MIN_GROUPS
    if enough and set(expected) <= _labels(validation, labels_of):
        return Choice(training, validation, held_back=held_back)
    unseen = [case for case in training if group_of(case) not in seen]
    folds = _folds(_bounded(unseen, labels_of, expected, group_of), training, group_of)
    chosen = Choice(training, validation, folds, held_back)
    judges = {group_of(case) for case in chosen.judged}
    if len(judges) < MIN_GROUPS:
        others = (
            "the serving version was trained on the others" if seen else "the others are to be trained on"
        )
        raise TrainingError(
            f"{len(judges)} of at least {MIN_GROUPS} patients or cases to compare by: {others}; "
            f"label {MIN_GROUPS - len(judges)} more"
        )
    unjudged = sorted(set(expected) - _labels(chosen.judged, labels_of))
    if unjudged:
        raise UnjudgedError(
            f"no case can judge the label {', '.join(unjudged)}, so that nothing could be published: label one in a "
            "case that the serving version was not trained on, or roll back to a version that has not learned it"
        )
    return chosen


def obstacle(
    cases: Collection[str], fraction: float, group_of: GroupOf, trained_before: Collection[str]
) -> str | None:
    """Why no training on `cases` could publish anything, whatever labels they hold; None where one could."""
    if not cases:
        return NO_LABELS
    try:
        choose(dict.fromkeys(cases, ("any",)), ["any"], fraction, group_of, trained_before)
    except TrainingError as error:
        return str(error)
    return None


def to_read(
    others: Collection[str],
    trained_before: Collection[str],
    fraction: float,
    group_of: GroupOf,
    most: int,
    seed: int,
) -> set[str]:
    """Which of `others` an incremental run reads, beside its new cases and those that judged one before.

    Time and disk of a run must not grow with all that was ever labelled. Of what is trained on at most `most` by lot:
    what the serving version has learned, lest it forgets, and what it has not, as after a rollback or a refusal, half
    of each where there is more. Of what could judge MAX_READ. All of as many patients as there are.
    """
    seen = {group_of(case) for case in trained_before}
    judges = {
        case for case in others if (group := group_of(case)) not in seen and case_hash(group) < fraction
    }
    learned = set(others) & set(trained_before)
    missed = set(others) - learned - judges
    lot = random.Random(seed)
    repeated = _drawn(learned, max(most - len(missed), most // 2), lot, group_of)
    return first_held(judges, group_of) | repeated | _drawn(missed, most - len(repeated), lot, group_of)


def _drawn(cases: Collection[str], most: int, lot: random.Random, group_of: GroupOf) -> set[str]:
    """By lot, of as many patients as there are: a patient with very many cases must not be all that there is."""
    shuffled = lot.sample(sorted(cases), len(cases))
    return set(_patient_by_patient(shuffled, group_of)[:most])


def first_held(cases: Collection[str], group_of: GroupOf) -> set[str]:
    """Of `cases` that could judge, and of which most are not needed, those to be read: they must not grow either."""
    ordered = sorted(cases, key=lambda case: (case_hash(group_of(case)), case))
    return set(_patient_by_patient(ordered, group_of)[:MAX_READ])


def _labels(cases: Iterable[str], labels_of: Mapping[str, Collection[str]]) -> set[str]:
    return {label for case in cases for label in labels_of[case]}


def without_patients_of(cases: Iterable[str], fold: Iterable[str], group_of: GroupOf) -> tuple[str, ...]:
    """Those of `cases` that are of other patients than all of `fold`: who is judged by must not be trained on."""
    left_out = {group_of(case) for case in fold}
    return tuple(case for case in cases if group_of(case) not in left_out)


def _bounded(
    held: list[str],
    labels_of: Mapping[str, Collection[str]],
    expected: Collection[str],
    group_of: GroupOf,
) -> tuple[str, ...]:
    """Of every label the first MIN_GROUPS, then of all until they are MAX_CASES; of as many patients as there are."""
    chosen: list[str] = []
    for label in sorted(expected):
        with_it = _patient_by_patient([case for case in held if label in labels_of[case]], group_of)
        chosen += [case for case in with_it[:MIN_GROUPS] if case not in chosen]
    others = [case for case in _patient_by_patient(held, group_of) if case not in chosen]
    chosen += others[: max(0, MAX_CASES - len(chosen))]
    return tuple(case for case in held if case in chosen)


def _patient_by_patient(cases: Sequence[str], group_of: GroupOf) -> list[str]:
    """A first case of every patient, then a second of those that have one, and so on."""
    rounds: list[tuple[int, str]] = []
    taken: Counter[str] = Counter()
    for case in cases:
        group = group_of(case)
        rounds.append((taken[group], case))
        taken[group] += 1
    return [case for _, case in sorted(rounds, key=lambda one: one[0])]


def _folds(
    unseen: Sequence[str], training: tuple[str, ...], group_of: GroupOf
) -> tuple[tuple[str, ...], ...]:
    """Patients dealt to folds in turn; none where nothing would be left to train on."""
    groups = list(dict.fromkeys(group_of(case) for case in unseen))
    count = len(groups) if len(groups) <= MAX_SINGLES else HALVES
    place = {group: number % count for number, group in enumerate(groups)} if count else {}
    folds = tuple(tuple(case for case in unseen if place[group_of(case)] == fold) for fold in range(count))
    return tuple(fold for fold in folds if without_patients_of(training, fold, group_of))
