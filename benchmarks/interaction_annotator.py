"""A simulated annotator at the real server: Dice after each click, clicks honoured, and what corrections destroy."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import httpx
import numpy as np
from base_data import ANYTHING, SETS, Member, MissingSetError, evenly, require
from base_figures import figure_of, spoken
from interaction_server import PATIENCE_S, fresh_server
from network import Figure
from numpy.typing import NDArray

from lib.commands.client import MedsaClient
from lib.evaluation.simulated_user import ClickResult, annotate
from lib.prompts.promptset import PromptSet
from lib.transforms.geometry import slice_axis
from lib.volume import load_volume

CLICKS, SHOWN = 10, (1, 3, 5, 10)
# A slice farther away than this from a correction is damaged by a larger loss of Dice than this.
FAR, DROP = 10, 0.02
LEAST_GAIN = 0.1  # of 5 clicks over 1
# The window of the CT set is the demo task's.
TASK_OF = {"hippocampus_mr": "object", "cardiac_lv_mr": "object", "abdomen_ct": "demo"}
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Track:
    """One object: volume Dice and seconds of each click; clicks, those honoured, far slices, those damaged."""

    case: str
    name: str
    dice: list[float]
    seconds: list[float]
    clicks: int
    honoured: int
    far: int
    damaged: int


def annotator_figures(data: Path, work: Path, cases: int | None) -> list[Figure]:
    """All sets; what was annotated before in `work` is not done again."""
    tracks: dict[str, list[Track]] = {}
    missing: dict[str, str] = {}
    for name in TASK_OF:
        try:
            tracks[name] = annotate_set(name, data, work / name, cases)
        except MissingSetError as error:
            missing[name] = str(error)
    return all_figures(tracks, missing)


def all_figures(tracks: Mapping[str, Sequence[Track]], missing: Mapping[str, str]) -> list[Figure]:
    """Each set, then all of them; without a set that is `missing` (and why) what is of all is not judged."""
    found: list[Figure] = []
    for name in TASK_OF:
        found += set_figures(name, tracks.get(name, ()), missing.get(name, ""))
    curves = [curve_of(rows) for rows in tracks.values()]
    mean = [fmean(values) for values in zip(*curves, strict=True)] if curves else None
    everything = [track for rows in tracks.values() for track in rows]
    overall = [
        *curve_figures("mean over the sets", mean, ""),
        *treatment_figures("all sets", everything, judge=True),
    ]
    if missing:
        note = f"without {', '.join(missing)}"
        overall = [replace(figure, holds=None, note=note) for figure in overall]
    return [*found, *overall]


def annotate_set(name: str, data: Path, work: Path, cases: int | None) -> list[Track]:
    """Every object of every volume of a set, over HTTP."""
    members = SETS[name](data)
    members = members if cases is None else evenly(members, cases)
    require(*(member.image for member in members))
    studies, done = work / "studies", work / "tracks"
    for folder in (studies, done):
        folder.mkdir(parents=True, exist_ok=True)
    for number, member in enumerate(members):
        suffix = ".nrrd" if member.image.name.endswith(".nrrd") else ".nii.gz"
        shutil.copyfile(member.image, studies / f"{_case(number, member)}{suffix}")
    if any(not (done / f"{_case(n, member)}.json").exists() for n, member in enumerate(members)):
        with (
            fresh_server(work, studies, task=TASK_OF[name]) as url,
            httpx.Client(base_url=url, timeout=PATIENCE_S) as http,
        ):
            for number, member in enumerate(members):
                _annotate_case(_case(number, member), member, http, done)
    return [
        Track(**row)
        for number, member in enumerate(members)
        for row in json.loads((done / f"{_case(number, member)}.json").read_text())
    ]


def _case(number: int, member: Member) -> str:
    return f"{number:03d}_{member.image.name.split('.')[0]}"


def _annotate_case(case: str, member: Member, http: httpx.Client, done: Path) -> None:
    target = done / f"{case}.json"
    if target.exists():
        return
    grid, label = load_volume(member.image), load_volume(member.label).array
    rows = []
    for name, value in member.objects.items():
        truth = label != 0 if value == ANYTHING else label == value
        if truth.any():
            # A client of its own for each object: the label's name is not told, as OHIF does not tell it either.
            client = MedsaClient(http, f"{case} {name}")
            rows.append(asdict(_track(case, name, truth, grid.spacing_mm, client)))
    target.write_text(json.dumps(rows) + "\n")


def _track(case: str, name: str, truth: BoolArray, spacing_mm: Sequence[float], client: MedsaClient) -> Track:
    masks: list[BoolArray] = []
    seconds: list[float] = []

    def predict(prompts: PromptSet) -> BoolArray:
        answer = client.infer("medsa", case, prompts)
        seconds.append(answer.seconds)
        masks.append(answer.mask != 0)
        return masks[-1]

    axis = slice_axis(spacing_mm, "auto", truth.shape)
    results = annotate(predict, truth, CLICKS, axis, spacing_mm)
    clicks, kept = honoured_clicks(results, masks)
    far, damaged = far_slices(results, masks, truth, axis)
    return Track(case, name, [result.dice for result in results], seconds, clicks, kept, far, damaged)


def honoured_clicks(results: Sequence[ClickResult], masks: Sequence[BoolArray]) -> tuple[int, int]:
    """(clicks of all answers, those of them on their side of the answer's outline)."""
    clicks = honoured = 0
    for result, mask in zip(results, masks, strict=True):
        for points, inside in ((result.prompts.positive_ijk, True), (result.prompts.negative_ijk, False)):
            clicks += len(points)
            honoured += sum(bool(mask[point]) == inside for point in points)
    return clicks, honoured


def far_slices(
    results: Sequence[ClickResult], masks: Sequence[BoolArray], truth: BoolArray, axis: int
) -> tuple[int, int]:
    """(slices more than `FAR` away from a correction that show anything, those whose Dice it made worse by `DROP`)."""
    far = damaged = 0
    true = np.moveaxis(truth, axis, 0)
    for number in range(1, len(results)):
        place = _new_click(results[number - 1].prompts, results[number].prompts)[axis]
        before, after = (np.moveaxis(masks[n], axis, 0) for n in (number - 1, number))
        for index in range(len(true)):
            shown = true[index].any() or before[index].any() or after[index].any()
            if abs(index - place) > FAR and shown:
                far += 1
                damaged += _dice(before[index], true[index]) - _dice(after[index], true[index]) > DROP
    return far, damaged


def _new_click(before: PromptSet, after: PromptSet) -> tuple[int, int, int]:
    known = len(before.positive_ijk), len(before.negative_ijk)
    new = (*after.positive_ijk[known[0] :], *after.negative_ijk[known[1] :])
    return new[0]


def _dice(one: BoolArray, other: BoolArray) -> float:
    """1 where both are empty: an object that appears where there is none counts as damage."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def mean_dice(tracks: Iterable[Track], click: int) -> float:
    """After `click` clicks; where no error was left before, the last value."""
    return fmean(track.dice[min(click, len(track.dice)) - 1] for track in tracks)


def curve_of(tracks: Sequence[Track]) -> list[float] | None:
    """Mean Dice after each of the numbers of clicks `SHOWN`; None of no object."""
    return [mean_dice(tracks, click) for click in SHOWN] if tracks else None


def set_figures(name: str, tracks: Sequence[Track], note: str = "") -> list[Figure]:
    """The curve of a set, whether it rises, by how much, and what a click takes; `note` says why there is none."""
    corrections = [value for track in tracks for value in track.seconds[1:]]
    every = [value for track in tracks for value in track.seconds]
    return [
        *curve_figures(name, curve_of(tracks), note or f"{len(tracks)} objects"),
        figure_of(f"{name}: a click takes, median", median(every) if every else None, "s", note=note),
        figure_of(
            f"{name}: a correction takes, median",
            median(corrections) if corrections else None,
            "s",
            note=note,
        ),
        *treatment_figures(name, tracks, judge=False),
    ]


def curve_figures(name: str, curve: Sequence[float] | None, note: str) -> list[Figure]:
    """The values of `curve` at `SHOWN`, whether it rises throughout, and from 1 click to 5."""
    values = curve or [None] * len(SHOWN)
    rises = float(all(later > earlier for earlier, later in pairwise(curve))) if curve else None
    gain = curve[SHOWN.index(5)] - curve[SHOWN.index(1)] if curve else None
    return [
        *(
            figure_of(dice_name(name, click), value, "Dice", note=note)
            for click, value in zip(SHOWN, values, strict=True)
        ),
        figure_of(f"{name}: rises from 1 to 3 to 5 to 10 clicks", rises, "yes", ">= 1", note),
        figure_of(f"{name}: 5 clicks above 1", gain, "Dice", f">= {LEAST_GAIN}", note),
    ]


def dice_name(name: str, click: int) -> str:
    """What the figure is called."""
    return f"{name}: volume Dice, {spoken(str(click))}"


def treatment_figures(name: str, tracks: Sequence[Track], *, judge: bool) -> list[Figure]:
    """Clicks honoured and far slices damaged."""
    clicks, far = sum(track.clicks for track in tracks), sum(track.far for track in tracks)
    kept = sum(track.honoured for track in tracks) / clicks if clicks else None
    damaged = sum(track.damaged for track in tracks) / far if far else None
    bars = (">= 0.99", "<= 0.01") if judge else ("-", "-")
    return [
        figure_of(f"{name}: clicks honoured in the 3D answer", kept, "share", bars[0], f"{clicks} clicks"),
        figure_of(f"{name}: far slices damaged by a correction", damaged, "share", bars[1], f"{far} slices"),
    ]


def plot(figures: Iterable[Figure], target: Path) -> None:
    """The curves of the sets as a picture."""
    from matplotlib.figure import Figure as Picture  # only here: the figures need no plotting library

    values: Mapping[str, float | None] = {figure.name: figure.value for figure in figures}
    picture = Picture(figsize=(6, 4), layout="constrained")
    axes = picture.subplots()
    for name in TASK_OF:
        curve = [values.get(dice_name(name, click)) for click in SHOWN]
        if None not in curve:
            axes.plot(SHOWN, curve, "o-", label=name)
    axes.set(xlabel="clicks per object", ylabel="mean volume Dice", ylim=(0, 1), xticks=SHOWN)
    axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(target, dpi=120)
