"""The simulated annotator: works through cases at a real server over HTTP, as a person at a viewer would.

Per case: asks for the next one, clicks into the middle of each object and then on the largest error, saves
the true label, and waits for a training that this has queued.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.commands.client import MedsaClient
from lib.commands.truth import Truth, load_truth
from lib.errors import InputError, MedsaError, NotFoundError
from lib.evaluation.simulated_user import annotate
from lib.prompts.promptset import PromptSet
from lib.transforms.geometry import slice_axis
from lib.volume import save_mask

POLL_S = 1.0
QUEUE_PATIENCE_S = 120.0  # how long a queued training may take to start
NO_CASE = "-"  # stands in the row of a request that gave no case


@dataclass(frozen=True)
class Plan:
    """What to do: how many clicks per object, which cases (None: all the server offers), which label."""

    clicks: int = 3
    cases: int | None = None
    only: tuple[str, ...] | None = None
    merge: str | None = None
    label: str | None = None
    wait: bool = True
    model: str = "medsa"
    strategy: str = "medsa"


@dataclass
class ObjectRow:
    """One object of a case: volume Dice and seconds after each click."""

    label: str
    dice: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class CaseRow:
    """One case, or with NO_CASE a request for one that failed.

    `version` is the adapter version that answered last, `error` what went wrong, if anything.
    """

    case_id: str
    objects: list[ObjectRow] = field(default_factory=list)
    version: int | None = None
    saved: bool = False
    error: str | None = None


Report = Callable[[Sequence[CaseRow], str], None]


class Annotator:
    """Carries out a Plan; `report(rows, what happens now)` is called whenever something changed."""

    def __init__(
        self,
        client: MedsaClient,
        truth_files: Mapping[str, Path],
        plan: Plan,
        report: Report,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if plan.clicks < 1:
            raise InputError("clicks", plan.clicks, "at least 1")
        self._client, self._truth_files, self._plan = client, truth_files, plan
        self._report, self._sleep = report, sleep
        self._own_name, self._names = client.client_id, 1
        self._labels = client.labels(plan.model)
        self._check_label_names()
        self.rows: list[CaseRow] = []
        self.trainings: list[dict[str, Any]] = []
        self._last_run = client.status()["last_run"]

    def run(self) -> list[CaseRow]:
        """Works until the cases asked for are done or none is offered. Errors end up in the rows."""
        for case_id in self._cases():
            row = CaseRow(case_id)
            self.rows.append(row)
            try:
                self._work_on(row)
            except MedsaError as error:
                row.error = str(error)
            self._say("")
        return self.rows

    def _check_label_names(self) -> None:
        for option, name in (("label", self._plan.label), ("merge", self._plan.merge)):
            if name is not None and name not in self._labels:
                raise NotFoundError(option, name, f"one of {', '.join(self._labels)}")

    def _cases(self) -> Iterator[str]:
        if self._plan.only is not None:
            yield from self._plan.only[: self._plan.cases]
            return
        while self._plan.cases is None or len(self.rows) < self._plan.cases:
            self._say("next case")
            offered = self._next_case()
            if offered is None:
                return
            yield offered

    def _next_case(self) -> str | None:
        try:
            return self._new_case()
        except MedsaError as error:
            self.rows.append(CaseRow(NO_CASE, error=str(error)))
            return None

    def _new_case(self) -> str | None:
        """A case that was not worked on yet, None when no other is left.

        A case that failed stays unlabelled, so that the server goes on offering it to the one who has it. It is
        left with that client id, and the next case asked for under another.
        """
        seen = {row.case_id for row in self.rows}
        offered = self._client.next_case(self._plan.strategy)
        for _ in range(len(seen)):
            if offered not in seen:
                break
            self._take_another_name()
            offered = self._client.next_case(self._plan.strategy)
        if offered in seen:
            raise MedsaError(f"case {offered} is offered again and again")
        return offered

    def _take_another_name(self) -> None:
        self._names += 1
        self._client = self._client.under(f"{self._own_name}-{self._names}")

    def _work_on(self, row: CaseRow) -> None:
        truth = self._truth(row.case_id)
        objects = truth.objects(self._labels, self._plan.label)
        if not objects:
            raise MedsaError(f"truth of {row.case_id}: holds none of {', '.join(self._labels)}")
        for name, mask in objects.items():
            self._click(row, name, mask, truth)
        self._save(row, truth)
        if self._plan.wait:
            self._wait_for_training()

    def _truth(self, case_id: str) -> Truth:
        if case_id not in self._truth_files:
            raise NotFoundError("truth", case_id, "a case with a file in the truth folder")
        return load_truth(self._truth_files[case_id], self._labels, self._plan.merge)

    def _click(self, row: CaseRow, name: str, mask: NDArray[np.bool_], truth: Truth) -> None:
        result = ObjectRow(name)
        row.objects.append(result)

        def predict(prompts: PromptSet) -> np.ndarray:
            count = len(prompts.positive_ijk) + len(prompts.negative_ijk)
            self._say(f"{row.case_id}: {name}, click {count}")
            answer = self._client.infer(self._plan.model, row.case_id, prompts)
            row.version = answer.params.get("version")
            result.seconds.append(answer.seconds)
            return answer.mask

        spacing_mm = truth.grid.spacing_mm
        axis = slice_axis(spacing_mm, "auto", truth.grid.shape_ijk)
        clicks = annotate(predict, mask, self._plan.clicks, axis, spacing_mm, name)
        result.dice = [click.dice for click in clicks]

    def _save(self, row: CaseRow, truth: Truth) -> None:
        self._say(f"{row.case_id}: saving")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "label.nii.gz"
            save_mask(truth.label, truth.grid, file)
            self._client.save_label(row.case_id, file, self._labels)
        row.saved = True

    def _wait_for_training(self) -> None:
        """Returns when no training runs or is due; raises MedsaError when one fails or does not start."""
        idle_s = 0.0
        while True:
            status = self._client.status()
            if not status["training"]:
                self._note_last_run(status)
                if not status["training_due"]:
                    return
                if idle_s >= QUEUE_PATIENCE_S:
                    raise MedsaError(f"a training is due and did not start within {QUEUE_PATIENCE_S:.0f} s")
                idle_s += POLL_S
            self._say("training" if status["training"] else "training is due")
            self._sleep(POLL_S)

    def _note_last_run(self, status: Mapping[str, Any]) -> None:
        run = status["last_run"]
        if run is None or run == self._last_run:
            return
        self._last_run = run
        self.trainings.append(run)
        if run["decision"] == "failed":
            raise MedsaError(f"training failed: {'; '.join(run['reasons'])}")

    def _say(self, now: str) -> None:
        self._report(self.rows, now)


def mean_dice_by_click(rows: Sequence[CaseRow], clicks: int) -> list[float]:
    """The mean over all objects after 1, 2, .. clicks; an object without error left keeps its last value."""
    curves = [row_object.dice for row in rows for row_object in row.objects if row_object.dice]
    if not curves:
        return []
    return [fmean(curve[min(index, len(curve) - 1)] for curve in curves) for index in range(clicks)]


def summarise(rows: Sequence[CaseRow], clicks: int, trainings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that the JSON file and the closing lines say."""
    seconds = [value for row in rows for row_object in row.objects for value in row_object.seconds]
    return {
        "cases": sum(row.case_id != NO_CASE for row in rows),
        "saved": sum(row.saved for row in rows),
        "errors": sum(row.error is not None for row in rows),
        "trainings": [dict(run) for run in trainings],
        "versions": sorted({row.version for row in rows if row.version is not None}),
        "mean_dice_by_click": mean_dice_by_click(rows, clicks),
        "median_click_seconds": median(seconds) if seconds else None,
        "rows": [asdict(row) for row in rows],
    }
