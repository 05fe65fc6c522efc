"""The labelled cases of a training run: which there are, which are usable, which validate.

A case belongs to validation or training by a hash of its id alone, so that adding labels never moves a case
that was trained on into the validation part.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib.errors import MedsaError, TrainingError
from lib.prompts.promptset import PromptSet
from lib.volume import Volume, load_label, load_volume


@dataclass(frozen=True)
class CaseFile:
    """One labelled image of the datastore, and what its annotator had marked, by label name ("" for none)."""

    case_id: str
    image: Path
    label: Path
    recorded: Mapping[str, PromptSet] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Case:
    """One usable case: `label` is uint8 (i, j, k) on the volume's grid, with at least one labelled voxel."""

    case_id: str
    volume: Volume
    label: NDArray[np.uint8]
    recorded: Mapping[str, PromptSet] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A case left out of a run, and why."""

    case_id: str
    reason: str


def label_digest(path: Path) -> str:
    """Hex SHA-256 of a label file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def case_hash(case_id: str) -> float:
    """A number in [0, 1) that depends on nothing but the id."""
    digest = hashlib.sha256(case_id.encode("utf-8")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split(
    case_ids: Collection[str], fraction: float, trained_before: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """The ids to train on and those to validate on, each by rising hash.

    A case validates when its hash is below `fraction`. Where fewer than that share of the cases are, as chance has it
    with few labels, the lowest hashes above it fill up: a decision must not hang on one case. An id of
    `trained_before` never validates. Raises TrainingError when fewer than two cases are there, or none can validate.
    """
    ordered = sorted(set(case_ids), key=lambda case_id: (case_hash(case_id), case_id))
    if len(ordered) < 2:
        raise TrainingError(f"training needs at least 2 usable labelled cases, found {len(ordered)}")
    free = [case_id for case_id in ordered if case_id not in trained_before]
    if not free:
        raise TrainingError("no case is left to validate on: all were trained on before; label one more case")
    below = sum(case_hash(case_id) < fraction for case_id in free)
    wanted = max(below, math.ceil(fraction * len(ordered)))
    # One case always remains to train on.
    validation = free[: min(wanted, len(ordered) - 1)]
    return [case_id for case_id in ordered if case_id not in validation], validation


def load_cases(files: Sequence[CaseFile], labels: Mapping[str, int]) -> tuple[list[Case], list[Skipped]]:
    """The usable cases, and those that are not with the reason, both in the order of `files`."""
    cases: list[Case] = []
    skipped: list[Skipped] = []
    for file in files:
        try:
            cases.append(_load_case(file, labels))
        except (MedsaError, OSError) as error:
            skipped.append(Skipped(file.case_id, str(error)))
    return cases, skipped


def _load_case(file: CaseFile, labels: Mapping[str, int]) -> Case:
    volume = load_volume(file.image)
    label = load_label(file.label, volume, labels)
    if not label.any():
        raise TrainingError("the label is empty")
    return Case(file.case_id, volume, label, file.recorded)
