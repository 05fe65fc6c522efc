"""The cases of a run without all of their volumes in memory: forty CTs would take as much as a workstation has.

Volumes are read again whenever they are needed, which is a few times a run. What training draws from at random lies in
memory as long as there is room, and from then on in a file that the system keeps in memory as far as it can.
"""

import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lib.errors import MedsaError, TrainingError
from lib.files import file_digest
from lib.memory import available_bytes
from lib.training.cases import Case, CaseFile, Skipped, load_case
from lib.training.slabs import TrainingCase
from lib.volume import load_volume

# Of the memory that is available when a run begins; the rest is for the network, for one volume, and for clicks.
CASES_SHARE = 0.25
# Of the disk, for what is saved meanwhile.
LEFT_FREE = 2 << 30


class Shelf:
    """The usable cases by id. Labels are kept (packed) as they were at first: another may be saved meanwhile."""

    def __init__(self) -> None:
        self._files: dict[str, CaseFile] = {}
        self._labels: dict[str, tuple[bytes, tuple[int, ...]]] = {}
        self._occurring: dict[str, tuple[str, ...]] = {}

    @classmethod
    def of(
        cls, files: Sequence[CaseFile], labels: Mapping[str, int], pause: Callable[[], None] = lambda: None
    ) -> tuple["Shelf", list[Skipped]]:
        """Reads every case once: those that can be used, and the others with the reason, in the order of `files`.

        `pause()` is called before each, and may end it by an error.
        """
        shelf, skipped = cls(), []
        for file in files:
            pause()
            try:
                shelf._put(file, load_case(file, labels), labels)
            except (MedsaError, OSError, MemoryError) as error:
                skipped.append(Skipped(file.case_id, str(error) or type(error).__name__))
        return shelf, skipped

    @property
    def labels_of(self) -> Mapping[str, tuple[str, ...]]:
        """Case id -> the labels that have a voxel in it."""
        return self._occurring

    def occurring(self, case_ids: Collection[str] | None = None) -> set[str]:
        """The labels that have a voxel in one of these cases, or of all."""
        chosen = self._occurring if case_ids is None else case_ids
        return {name for case_id in chosen for name in self._occurring[case_id]}

    def pick(self, case_ids: Sequence[str]) -> "Picked":
        """These cases, read one after the other each time that they are gone through."""
        return Picked(self, tuple(case_ids))

    def image_digest(self, case_id: str) -> str:
        """Of the image's file as it is now. Raises OSError when it is gone."""
        return file_digest(self._files[case_id].image)

    def case(self, case_id: str) -> Case:
        """One case. Raises TrainingError when its image is another one by now, VolumeError when it is gone."""
        file, (packed, shape) = self._files[case_id], self._labels[case_id]
        volume = load_volume(file.image)
        if volume.shape_ijk != shape:
            raise TrainingError(f"the image of {case_id} was replaced during the run; it is tried again")
        label = np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(shape)
        return Case(case_id, volume, label, file.recorded)

    def _put(self, file: CaseFile, case: Case, labels: Mapping[str, int]) -> None:
        self._files[case.case_id] = file
        self._labels[case.case_id] = zlib.compress(case.label.tobytes(), 1), case.label.shape
        held = set(np.unique(case.label).tolist())
        self._occurring[case.case_id] = tuple(name for name, value in labels.items() if value in held)


class Picked(Collection[Case]):
    """Some cases of a shelf, in memory one at a time."""

    def __init__(self, shelf: Shelf, case_ids: tuple[str, ...]) -> None:
        self._shelf, self.case_ids = shelf, case_ids

    def __iter__(self) -> Iterator[Case]:
        return map(self._shelf.case, self.case_ids)

    def __len__(self) -> int:
        return len(self.case_ids)

    def __contains__(self, case: object) -> bool:
        return isinstance(case, Case) and case.case_id in self.case_ids


class Room:
    """Where prepared cases lie: in memory up to `limit` bytes, the others in files of `folder` without a name.

    These are gone with the process, however it ends.
    """

    def __init__(self, folder: Path, limit: int | None) -> None:
        self._folder, self._limit, self._taken = folder, limit, 0

    @classmethod
    def beside(cls, folder: Path) -> "Room":
        """Room for a share of the memory that is available now."""
        available = available_bytes(torch.device("cpu"))
        return cls(folder, None if available is None else int(CASES_SHARE * available))

    def keep(self, case: TrainingCase) -> TrainingCase:
        """The same case, wherever there is room for it."""
        size = case.planes.nbytes + case.labels.nbytes
        if self._limit is None or self._taken + size <= self._limit:
            self._taken += size
            return case
        return replace(case, planes=self._in_file(case.planes), labels=self._in_file(case.labels))

    def _in_file(self, array: NDArray[Any]) -> NDArray[Any]:
        free = shutil.disk_usage(self._folder).free
        if free - array.nbytes < LEFT_FREE:
            raise TrainingError(
                f"the state folder's disk has {free >> 20} MB left, and labels are saved there too: the cases of this "
                f"training need {array.nbytes >> 20} MB more than memory has; allowed: {LEFT_FREE >> 20} MB stay free"
            )
        with tempfile.TemporaryFile(dir=self._folder) as file:
            # Written, not mapped for writing: a full disk is an error then, and does not kill the process.
            file.write(np.ascontiguousarray(array).data)
            file.flush()
            return np.memmap(file, dtype=array.dtype, mode="r", shape=array.shape)
