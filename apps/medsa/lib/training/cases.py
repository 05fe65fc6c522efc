"""The labelled cases of a training run: which there are, and which are usable."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib.errors import TrainingError
from lib.prompts.promptset import PromptSet
from lib.volume import Volume, load_label, load_volume


@dataclass(frozen=True)
class CaseFile:
    """One labelled image of the datastore, and what its annotator had marked, by label name ("" for none).

    `problem` says why the image cannot be had, if so; where it is `away` it may be had another time. `patient` tells
    whom it is of, None where the datastore does not know.
    """

    case_id: str
    image: Path
    label: Path
    recorded: Mapping[str, PromptSet] = field(default_factory=dict)
    problem: str | None = None
    away: bool = False
    patient: str | None = None


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


def load_case(file: CaseFile, labels: Mapping[str, int]) -> Case:
    """Raises VolumeError, LabelError or TrainingError, or OSError, for a case that cannot be used."""
    if file.problem is not None:
        raise TrainingError(file.problem)
    volume = load_volume(file.image)
    label = load_label(file.label, volume, labels)
    if not label.any():
        raise TrainingError("the label is empty")
    return Case(file.case_id, volume, label, file.recorded)
