"""The data of benchmarks/training.py: who is labelled, who is tested, chosen here by name before anything is run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from base_data import MissingSetError
from loop_cases import CARDIAC_TUNED_ON, HIPPOCAMPUS_TUNED_ON

from lib.commands.truth import find_cases, load_truth
from lib.training.cases import Case
from lib.training.choice import case_hash
from lib.volume import load_volume

LABELLED_VOLUMES, TESTED_VOLUMES, LABELLED_PATIENTS = 40, 60, 12
MOMENTS = ("ED", "ES")


@dataclass(frozen=True)
class Study:
    """One set. `labelled` and `tested` are groups, a volume or a patient each; `cases` maps a group to its case ids.

    `counts` are how many groups the learning curves take, `label` names all that is not zero in the truth.
    """

    name: str
    task: str
    label: str
    folder: Path
    labelled: tuple[str, ...]
    tested: tuple[str, ...]
    cases: Mapping[str, tuple[str, ...]]
    counts: tuple[int, ...]

    def load(self, groups: Sequence[str]) -> list[Case]:
        """The cases of these groups, with everything that is labelled as one label of value 1."""
        images, labels = find_cases(self.folder / "images"), find_cases(self.folder / "labels")
        found = []
        for case in (case for group in groups for case in self.cases[group]):
            truth = load_truth(labels[case], {self.label: 1}, merge=self.label)
            found.append(Case(case, load_volume(images[case]), (truth.label > 0).astype(np.uint8)))
        return found

    def first(self, count: int, seed: int) -> tuple[str, ...]:
        """`count` of the labelled groups; another seed labels others first."""
        order = np.random.default_rng(seed).permutation(len(self.labelled))
        return tuple(self.labelled[place] for place in order[:count])


def hippocampus(data: Path) -> Study:
    """By the hash of the name: 60 volumes to test by which nothing was ever chosen, 40 others to label.

    The 88 that are left are those on which the training was developed.
    """
    folder = _folder(data, "hippocampus_mr")
    known = find_cases(folder / "labels")
    ordered = sorted((case for case in find_cases(folder / "images") if case in known), key=case_hash)
    ours = ordered[: LABELLED_VOLUMES + TESTED_VOLUMES]
    tested = [case for case in ours if case not in HIPPOCAMPUS_TUNED_ON][:TESTED_VOLUMES]
    labelled = [case for case in ours if case not in tested][:LABELLED_VOLUMES]
    each = {case: (case,) for case in ours}
    return Study(
        "hippocampus_mr",
        "hippocampus",
        "hippocampus",
        folder,
        tuple(labelled),
        tuple(tested),
        each,
        (5, 10, 20, 40),
    )


def cardiac(data: Path) -> Study:
    """12 patients to label (the 8 that something was tuned on before, and 4 by the hash of the name), 12 to test."""
    folder = _folder(data, "cardiac_lv_mr")
    patients = sorted({case.rsplit("_", 1)[0] for case in find_cases(folder / "images")}, key=case_hash)
    rest = [patient for patient in patients if patient not in CARDIAC_TUNED_ON]
    labelled = [*CARDIAC_TUNED_ON, *rest[: LABELLED_PATIENTS - len(CARDIAC_TUNED_ON)]]
    tested = [patient for patient in patients if patient not in labelled]
    stacks = {patient: tuple(f"{patient}_{moment}" for moment in MOMENTS) for patient in patients}
    return Study(
        "cardiac_lv_mr",
        "cardiac_lv",
        "left_ventricle",
        folder,
        tuple(labelled),
        tuple(tested),
        stacks,
        (5, 10, 12),
    )


STUDIES: Mapping[str, Callable[[Path], Study]] = {"hippocampus_mr": hippocampus, "cardiac_lv_mr": cardiac}


def _folder(data: Path, name: str) -> Path:
    folder = data / name
    if not (folder / "images").is_dir():
        raise MissingSetError(f"{name}: no such set in {data}")
    return folder
