"""The data of benchmarks/active_learning.py: from which cases a strategy chooses, and which are tested."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training_data import Study, cardiac, hippocampus

from lib.commands.truth import find_cases
from lib.training.choice import case_hash

POOL_VOLUMES, POOL_PATIENTS = 100, 14


@dataclass(frozen=True)
class PoolStudy:
    """`study` loads single cases; `pool` are those to choose from, `counts` how many are labelled at each round.

    It is tested with `tested_counts` of them: testing takes longer than training.
    """

    study: Study
    pool: tuple[str, ...]
    tested: tuple[str, ...]
    counts: tuple[int, ...]
    tested_counts: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the set."""
        return self.study.name


def hippocampus_pool(data: Path) -> PoolStudy:
    """A hundred volumes by the hash of the name, 88 others to test.

    The settings of training were developed on those 88, no strategy was on any.
    """
    study = hippocampus(data)
    known = find_cases(study.folder / "labels")
    ordered = sorted((case for case in find_cases(study.folder / "images") if case in known), key=case_hash)
    return _of_cases(
        study,
        ordered[:POOL_VOLUMES],
        ordered[POOL_VOLUMES:],
        (2, *range(6, 39, 4), 40),
        (2, 6, 10, 18, 26, 34, 40),
    )


def cardiac_pool(data: Path) -> PoolStudy:
    """The stacks of 14 patients; those of the 10 others are tested, of whom nothing was ever chosen by."""
    study = cardiac(data)
    patients = [*study.labelled, *study.tested]
    pool = [case for patient in patients[:POOL_PATIENTS] for case in study.cases[patient]]
    tested = [case for patient in patients[POOL_PATIENTS:] for case in study.cases[patient]]
    return _of_cases(study, pool, tested, (2, *range(6, 27, 4), 28))


POOLS: Mapping[str, Callable[[Path], PoolStudy]] = {
    "hippocampus_mr": hippocampus_pool,
    "cardiac_lv_mr": cardiac_pool,
}


def _of_cases(
    study: Study,
    pool: list[str],
    tested: list[str],
    counts: tuple[int, ...],
    tested_counts: tuple[int, ...] | None = None,
) -> PoolStudy:
    each = {case: (case,) for case in (*pool, *tested)}
    single = Study(
        study.name, study.task, study.label, study.folder, tuple(pool), tuple(tested), each, counts
    )
    return PoolStudy(
        single, tuple(pool), tuple(tested), counts, counts if tested_counts is None else tested_counts
    )
