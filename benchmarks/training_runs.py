"""Runs that add to runs, as a server makes them: five new labels at a time, and labels that are wrong.

Real runs (`lib.training.run`), gate and publishing included, on files as a server leaves them. After each run the
tested cases are annotated with the version that serves then.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import nibabel
import numpy as np
from base_figures import figure_of
from network import Figure
from numpy.typing import NDArray
from scipy import ndimage
from training_curves import write_whole
from training_data import Study
from training_methods import APP, Trained, answering, settings_of

from lib.bases import choose_base, encoder_precision
from lib.model.adapter_io import adapted
from lib.model.catalog import build_model
from lib.model.medsa import MedSA
from lib.training.cases import Case, CaseFile
from lib.training.record import RunRecord
from lib.training.releases import Releases
from lib.training.request import RunRequest
from lib.training.run import run_training
from lib.volume import save_mask

FIRST, ADDED, RUNS = 10, 5, 3  # labels of the first run, of each later one, and how many those are
TESTED = 20  # of the tested cases, for each version
MINUTES_BAR, WORSE_BAR = 5.0, -0.01
POISON_LABELS = 20  # of the run that has wrong ones among them


@dataclass(frozen=True)
class Poison:
    """How many labels are wrong: each is that of the next wrong case, stretched to the image, or `mirrored` too."""

    name: str
    wrong: int
    mirrored: bool


# A tenth of all labels shuffled; and a tenth of the new ones with labels that no case of this set could have.
POISONS = (
    Poison("shuffled", (FIRST + POISON_LABELS) // 10, mirrored=False),
    Poison("poison", POISON_LABELS // 10, mirrored=True),
)


@dataclass(frozen=True)
class Step:
    """A run and what the version that serves after it does: mean Dice after one click by group of cases."""

    name: str
    decision: str
    version: int
    minutes: float
    dice: Mapping[str, float]
    reasons: Sequence[str] = ()
    suspicious: Sequence[str] = ()


class Workshop:
    """The files and the state of a server on `study`, without the server."""

    def __init__(self, study: Study, work: Path, minutes: float | None) -> None:
        self.study, self.work, self.settings = study, work, settings_of(study.task)
        if minutes is not None:
            training = self.settings.training.model_copy(update={"train_minutes": minutes})
            self.settings = self.settings.model_copy(update={"training": training})
        self.state = work / "state"

    def file_of(self, case: Case, label: NDArray[np.uint8] | None = None) -> CaseFile:
        """The case as files; `label` instead of its own."""
        folder = self.work / "files"
        folder.mkdir(parents=True, exist_ok=True)
        image, path = folder / f"{case.case_id}.nii.gz", folder / f"{case.case_id}.label.nii.gz"
        if not image.exists():
            nibabel.save(nibabel.Nifti1Image(case.volume.array, case.volume.affine), image)
        save_mask(case.label if label is None else label, case.volume, path)
        return CaseFile(case.case_id, image, path)

    def run(self, files: Sequence[CaseFile], request: RunRequest) -> tuple[RunRecord, float]:
        """One run and the minutes that it took."""
        started = time.monotonic()
        record = run_training(self.state, files, self.settings, self._build, request=request)
        return record, (time.monotonic() - started) / 60.0

    def serving(self) -> Trained:
        """What answers now."""
        model, sha256 = self._build()
        champion = Releases(self.state).champion()
        if champion is not None:
            model = adapted(champion.folder, model, sha256, self.settings.task.labels)
        return answering(self.settings, model, 0)

    def _build(self) -> tuple[MedSA, str]:
        choice = choose_base(self.settings, APP, None)
        labels = list(self.settings.task.labels)
        return build_model(choice, labels, encoder_precision(self.settings.serving))


def added_figures(study: Study, work: Path, seeds: int, minutes: float | None) -> list[Figure]:
    """`FIRST` labels, then `ADDED` more at a time; the matrix of all versions, and the bars."""
    runs = [_kept(work / f"added-{seed}", partial(_add, study, seed, minutes)) for seed in range(seeds)]
    longest = max(step.minutes for steps in runs for step in steps[2:])
    gains = [_change(steps, at, _new(at)) for steps in runs for at in range(2, len(steps))]
    losses = [_change(steps, at, "tested") for steps in runs for at in range(2, len(steps))]
    earlier = [
        _change(steps, at, _new(before))
        for steps in runs
        for at in range(2, len(steps))
        for before in range(1, at)
    ]
    published = sum(step.decision == "published" for steps in runs for step in steps[1:])
    note = f"{len(runs)} seeds, {published} of {sum(len(steps) - 1 for steps in runs)} runs published"
    name = f"{study.name}: incremental run after {ADDED} new labels"
    return [
        figure_of(f"{name}, longest", longest, "minutes", f"<= {MINUTES_BAR}", note),
        figure_of(f"{name}, on the new cases", fmean(gains), "Dice", "> 0", note),
        figure_of(f"{name}, on the tested cases, mean", fmean(losses), "Dice", f">= {WORSE_BAR}", note),
        figure_of(f"{name}, on the tested cases, worst", min(losses), "Dice", f">= {WORSE_BAR}", note),
        figure_of(f"{name}, on earlier labels, mean", fmean(earlier), "Dice", f">= {WORSE_BAR}", note),
        figure_of(f"{name}, on earlier labels, worst", min(earlier), "Dice", f">= {WORSE_BAR}", note),
        *_matrix(study, runs),
    ]


def poison_figures(study: Study, work: Path, seeds: int, minutes: float | None) -> list[Figure]:
    """`POISON_LABELS` more labels, some of them of other cases: what the gate does, and who is named."""
    return [figure for poison in POISONS for figure in _poison_figures(study, work, seeds, minutes, poison)]


def _poison_figures(
    study: Study, work: Path, seeds: int, minutes: float | None, poison: Poison
) -> list[Figure]:
    runs = [
        _kept(work / f"{poison.name}-{seed}", partial(_poison, study, seed, minutes, poison))
        for seed in range(seeds)
    ]
    held = [steps[2].decision != "published" or _change(steps, 2, "tested") >= WORSE_BAR for steps in runs]
    wrong = [set(steps[2].name.split(": ")[1].split(", ")) for steps in runs]
    named = [set(steps[2].suspicious) for steps in runs]
    share = fmean(len(bad & found) / len(bad) for bad, found in zip(wrong, named, strict=True))
    beside = sum(len(found - bad) for bad, found in zip(wrong, named, strict=True))
    how = " and mirrored" if poison.mirrored else ""
    name = f"{study.name}: {POISON_LABELS} labels more, {poison.wrong} of them shuffled{how}"
    changes = ", ".join(f"{steps[2].decision} {_change(steps, 2, 'tested'):+.3f}" for steps in runs)
    return [
        figure_of(f"{name}: refused or no worse", fmean(map(float, held)), "share of runs", ">= 1", changes),
        figure_of(f"{name}: wrong labels named", share, "share", ">= 1", f"{beside} right ones named too"),
    ]


def _add(study: Study, seed: int, minutes: float | None, work: Path) -> list[Step]:
    shop, cases = Workshop(study, work, minutes), _named_anew(study, FIRST + RUNS * ADDED, seed)
    first = FIRST * len(cases) // (FIRST + RUNS * ADDED)
    added = (len(cases) - first) // RUNS
    groups = {"tested": study.load(study.tested)[:TESTED], _new(1): cases[:first]}
    groups |= {_new(2 + run): cases[first + run * added : first + (run + 1) * added] for run in range(RUNS)}
    steps = [Step("base", "", 0, 0.0, _dice(shop.serving(), groups))]
    files: list[CaseFile] = []
    for at in range(1, RUNS + 2):
        files += [shop.file_of(case) for case in groups[_new(at)]]
        record, took = shop.run(files, RunRequest(trigger="labels"))
        steps.append(_step(f"run {at}", shop, record, took, groups))
    return steps


def _poison(study: Study, seed: int, minutes: float | None, poison: Poison, work: Path) -> list[Step]:
    shop, cases = Workshop(study, work, minutes), _named_anew(study, FIRST + POISON_LABELS, seed)
    groups = {"tested": study.load(study.tested)[:TESTED]}
    steps = [Step("base", "", 0, 0.0, _dice(shop.serving(), groups))]
    clean, later = cases[:FIRST], cases[FIRST:]
    files = [shop.file_of(case) for case in clean]
    record, took = shop.run(files, RunRequest(trigger="labels"))
    steps.append(_step("clean", shop, record, took, groups))
    wrong = later[: poison.wrong]
    swapped = {
        case.case_id: _of_another(case, other, poison.mirrored)
        for case, other in zip(wrong, wrong[1:] + wrong[:1], strict=True)
    }
    files += [shop.file_of(case, swapped.get(case.case_id)) for case in later]
    record, took = shop.run(files, RunRequest("full", "command line", "champion"))
    steps.append(_step(f"wrong: {', '.join(swapped)}", shop, record, took, groups))
    return steps


def _named_anew(study: Study, count: int, seed: int) -> list[Case]:
    """The first cases to label. Under their own names too few would validate: the hash has chosen who is labelled."""
    return [replace(case, case_id=f"new_{case.case_id}") for case in study.load(study.first(count, seed))]


def _of_another(case: Case, other: Case, mirrored: bool) -> NDArray[np.uint8]:
    """The label of `other`, stretched to the grid of `case`; `mirrored` along all axes, if so."""
    zoom = [to / of for to, of in zip(case.label.shape, other.label.shape, strict=True)]
    turned = np.asarray(other.label[::-1, ::-1, ::-1]) if mirrored else other.label
    return np.asarray(ndimage.zoom(turned, zoom, order=0, grid_mode=True, mode="nearest"), dtype=np.uint8)


def _step(
    name: str, shop: Workshop, record: RunRecord, took: float, groups: Mapping[str, Sequence[Case]]
) -> Step:
    content = record.to_json()
    named = [str(one["case_id"]) for one in content.get("suspicious", ())]
    version = Releases(shop.state).champion_version()
    step = Step(name, record.decision, version, took, _dice(shop.serving(), groups), record.reasons, named)
    print(f"{shop.study.name} {name}: {step.decision}, {took:.1f} min, {dict(step.dice)}", flush=True)
    return step


def _dice(trained: Trained, groups: Mapping[str, Sequence[Case]]) -> dict[str, float]:
    if trained.clicked is None:
        raise TypeError("this one takes no clicks")
    return {name: fmean(map(trained.clicked, cases)) for name, cases in groups.items()}


def _new(at: int) -> str:
    return f"labels of run {at}"


def _change(steps: Sequence[Step], at: int, group: str) -> float:
    return steps[at].dice[group] - steps[at - 1].dice[group]


def _matrix(study: Study, runs: Sequence[Sequence[Step]]) -> list[Figure]:
    return [
        figure_of(
            f"{study.name}: matrix: after {runs[0][at].name}: {group}",
            fmean(steps[at].dice[group] for steps in runs),
            "Dice",
            note=", ".join(f"{steps[at].decision or 'base'}" for steps in runs),
        )
        for at in range(len(runs[0]))
        for group in runs[0][0].dice
    ]


def _kept(work: Path, measure: Callable[[Path], list[Step]]) -> list[Step]:
    """The steps of an earlier run, else made now; what a stopped one left is begun anew."""
    file = work.with_suffix(".json")
    if file.exists():
        return [Step(**step) for step in json.loads(file.read_text())]
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    steps = measure(work)
    write_whole(file, [asdict(step) for step in steps])
    return steps
