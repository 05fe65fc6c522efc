"""The table of benchmarks/base.py: from what happened on every slice to figures with their bars, and as text."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from base_user import Honoured, Record
from network import NO_BAR, Figure, entry_of, judged, machine, unmeasured

AT_CLICKS = (1, 3, 5, 10)
PROMPTS = (*map(str, AT_CLICKS), "box")
BARS = {"box": (0.75, 0.85), "1": (0.55, 0.70), "5": (0.75, 0.88)}  # bar and aim of the mean over the sets
HONOURED_BARS = (0.95, 0.99)
HONOURED = {
    "clicks": "clicks on their side of the outline after 5 clicks",
    "inside": "positive clicks inside after 5 clicks",
    "outside": "negative clicks outside after 5 clicks",
}
BY_NETWORK = {
    "clicks": "network: clicks",
    "inside": "network: inside",
    "outside": "network: outside",
}  # no bar: the figures above are what a user gets
CALIBRATION_BINS = 10

Row = dict[str, float | None]  # measures by name; None where nothing was there to be measured


@dataclass(frozen=True)
class Found:
    """What a set gave: all sessions, and Dice by prompt on its `shared` slices, the walker's and the network's."""

    records: Sequence[Record]
    walker: Row
    shared: Row
    shared_slices: int


# --- measures ---


def dice_row(records: Sequence[Record]) -> Row:
    """Mean Dice over slices, by prompt."""
    row = {str(count): mean_of([record.click_dice[count - 1] for record in records]) for count in AT_CLICKS}
    return {**row, "box": mean_of([record.box_dice for record in records])}


def set_row(records: Sequence[Record]) -> Row:
    """All measures of one set."""
    return {**dice_row(records), **iou_row(records), **honoured_row(records)}


def iou_row(records: Sequence[Record]) -> Row:
    """How far the predicted IoU is from the true one, over all answers to clicks and boxes."""
    pairs = iou_pairs(records)
    if not len(pairs):
        return {"iou error": None, "iou correlation": None}
    varies = len(pairs) > 1 and bool((pairs.std(axis=0) > 0).all())
    return {
        "iou error": float(np.abs(pairs[:, 0] - pairs[:, 1]).mean()),
        "iou correlation": float(np.corrcoef(pairs.T)[0, 1]) if varies else None,
    }


def iou_pairs(records: Iterable[Record]) -> np.ndarray:
    """(N, 2): predicted and true IoU of every answer."""
    return np.array([pair for record in records for pair in record.ious], dtype=float).reshape(-1, 2)


def honoured_row(records: Sequence[Record]) -> Row:
    """Shares of clicks, over all clicks of the set: in the answers, and in what the network made of the clicks."""
    alone = honoured_shares([record.honoured_by_network for record in records])
    return {
        **honoured_shares([record.honoured for record in records]),
        **{BY_NETWORK[part]: value for part, value in alone.items()},
    }


def honoured_shares(counts: Sequence[Honoured]) -> Row:
    """Shares of all clicks, of the positive and of the negative ones."""
    inside, positive, outside, negative = (
        sum(getattr(count, part) for count in counts)
        for part in ("inside", "positive", "outside", "negative")
    )
    return {
        "clicks": share(inside + outside, positive + negative),
        "inside": share(inside, positive),
        "outside": share(outside, negative),
    }


def share(part: int, whole: int) -> float | None:
    """None of nothing."""
    return part / whole if whole else None


def mean_of(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None without any."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def mean_row(rows: Iterable[Row]) -> Row:
    """The mean over sets of every measure; every set counts the same."""
    rows = list(rows)
    return {measure: mean_of(row[measure] for row in rows) for measure in (rows[0] if rows else ())}


def calibration(records: Iterable[Record]) -> list[dict[str, float | int | None]]:
    """By tenths of the predicted IoU (what lies outside 0..1 counts in the outer ones): answers, mean true IoU."""
    pairs = iou_pairs(records)
    places = np.clip((pairs[:, 0] * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    return [
        {
            "from": index / CALIBRATION_BINS,
            "to": (index + 1) / CALIBRATION_BINS,
            "answers": int((places == index).sum()),
            "mean_true_iou": mean_of(pairs[places == index, 1].tolist()),
        }
        for index in range(CALIBRATION_BINS)
    ]


# --- figures ---


def all_figures(found: Mapping[str, Found], lacking: str = "") -> list[Figure]:
    """The means over the sets with their bars, then each set; a mean that is `lacking` something is not judged."""
    rows = {name: set_row(entry.records) for name, entry in found.items()}
    means = mean_figures(mean_row(rows.values()), rows)
    if lacking or not found:
        means = [replace(figure, holds=None, note=lacking) for figure in means]
    figures = [*means, *baseline_figures("mean over sets", *baseline_means(found))]
    for name, row in rows.items():
        figures += set_figures(name, row, len(found[name].records))
        figures += baseline_figures(name, found[name].walker, found[name].shared)
    return figures


def mean_figures(mean: Row, rows: Mapping[str, Row]) -> list[Figure]:
    """What is asked of the base, over the sets."""
    figures = []
    for prompt, (bar, aim) in BARS.items():
        figures += bar_and_aim(f"mean over sets: Dice, {spoken(prompt)}", mean.get(prompt), "Dice", bar, aim)
    rest = [prompt for prompt in PROMPTS if prompt not in BARS]
    figures += [figure_of(f"mean over sets: Dice, {spoken(p)}", mean.get(p), "Dice") for p in rest]
    every = float(all(helps(row) for row in rows.values())) if rows else None
    figures.append(figure_of("every extra click helps on every set", every, "yes", ">= 1"))
    for part, name in HONOURED.items():
        figures += bar_and_aim(f"mean over sets: {name}", mean.get(part), "share", *HONOURED_BARS)
    figures += network_alone("mean over sets", mean)
    return [*figures, *iou_figures("mean over sets", mean)]


def set_figures(name: str, row: Row, slices: int) -> list[Figure]:
    """The values of one set; only that clicks have to help is asked of each."""
    fourfold = ", ".join(spelled(row[str(count)]) for count in AT_CLICKS)
    return [
        figure_of(f"{name}: object slices", slices, "slices"),
        *(figure_of(f"{name}: Dice, {spoken(prompt)}", row[prompt], "Dice") for prompt in PROMPTS),
        figure_of(f"{name}: every extra click helps", float(helps(row)), "yes", ">= 1", fourfold),
        *(figure_of(f"{name}: {spoken_of}", row[part], "share") for part, spoken_of in HONOURED.items()),
        *network_alone(name, row),
        *iou_figures(name, row),
    ]


def network_alone(name: str, row: Row) -> list[Figure]:
    """How the network itself obeys, before its answer is made to."""
    return [
        figure_of(f"{name}: {spoken_of}, by the network alone", row.get(BY_NETWORK[part]), "share")
        for part, spoken_of in HONOURED.items()
    ]


def iou_figures(name: str, row: Row) -> list[Figure]:
    """How good the predicted IoU is."""
    return [
        figure_of(f"{name}: mean |predicted - true IoU|", row.get("iou error"), "IoU"),
        figure_of(f"{name}: correlation of predicted and true IoU", row.get("iou correlation"), "r"),
    ]


def baseline_means(found: Mapping[str, Found]) -> tuple[Row, Row]:
    """Over the sets: the walker's Dice, and the network's on the same slices."""
    entries = found.values()
    return mean_row(entry.walker for entry in entries), mean_row(entry.shared for entry in entries)


def baseline_figures(name: str, walker: Row, shared: Row) -> list[Figure]:
    """Nothing is asked of the walker: it says how hard the slices are."""
    figures = []
    for who, row in (("random walker", walker), ("network on the walker's slices", shared)):
        figures += [figure_of(f"{name}: {who}, {spoken(p)}", row.get(p), "Dice") for p in PROMPTS]
    return figures


def helps(row: Row) -> bool:
    """Whether each of the four means is above the one before."""
    values = [row[str(count)] for count in AT_CLICKS]
    pairs = itertools.pairwise(values)
    return all(before is not None and after is not None and after > before for before, after in pairs)


def figure_of(name: str, value: float | None, unit: str, bar: str = NO_BAR, note: str = "") -> Figure:
    """Judged by its bar where there is a value."""
    if value is None:
        return unmeasured(name, unit, bar, note or "nothing to measure")
    return judged(name, value, unit, bar, note)


def bar_and_aim(name: str, value: float | None, unit: str, bar: float, aim: float) -> list[Figure]:
    """One entry for what has to be reached, one for what should."""
    entries = ((name, bar), (f"{name} (aim)", aim))
    return [figure_of(title, value, unit, f">= {limit:g}") for title, limit in entries]


def spoken(prompt: str) -> str:
    """A prompt as the names of figures have it."""
    if prompt == "box":
        return prompt
    return f"{prompt} click{'' if prompt == '1' else 's'}"


def spelled(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def json_entry(figure: Figure) -> dict[str, Any]:
    """As the file has it: what has no bar has no verdict either."""
    if figure.bar == NO_BAR:
        return {**entry_of(figure), "bar": None, "holds": None}
    return entry_of(figure)


def write_figures(figures: Iterable[Figure], file: Path | None) -> None:
    """The file of `--json`: the machine, and an entry for each figure; nothing without a file."""
    if file is not None:
        content = {"machine": machine(), "figures": [json_entry(figure) for figure in figures]}
        file.write_text(json.dumps(content, indent=2) + "\n")


# --- tables ---


def table(found: Mapping[str, Found]) -> str:
    """One line a set and their mean, the walker's below."""
    measures = (*PROMPTS, "iou error", "iou correlation", *HONOURED, *BY_NETWORK.values())
    lines = [line("set", ["slices", *measures])]
    rows = {name: set_row(entry.records) for name, entry in found.items()}
    for name, row in rows.items():
        lines.append(line(name, [str(len(found[name].records)), *(spelled(row[m]) for m in measures)]))
    mean = mean_row(rows.values())
    lines.append(line("mean over sets", ["", *(spelled(mean.get(m)) for m in measures)]))
    for name, entry in found.items():
        lines += baseline_lines(name, str(entry.shared_slices), entry.walker, entry.shared)
    return "\n".join([*lines, *baseline_lines("mean", "", *baseline_means(found))])


def baseline_lines(name: str, slices: str, walker: Row, shared: Row) -> list[str]:
    """The walker, and the network on the same slices."""
    named = ((f"{name}, walker", walker), (f"{name}, network there", shared))
    return [line(title, [slices, *(spelled(row.get(prompt)) for prompt in PROMPTS)]) for title, row in named]


def line(title: str, cells: Iterable[str]) -> str:
    """Columns as wide as the longest heading."""
    return f"{title:34}" + "".join(f"{cell:>{10 if len(cell) <= 9 else 18}}" for cell in cells)


def calibration_table(bins: Iterable[Mapping[str, Any]]) -> str:
    """Predicted IoU by tenths, and how good the masks were."""
    lines = [line("predicted IoU", ["answers", "true IoU"])]
    for entry in bins:
        title = f"{entry['from']:.1f} to {entry['to']:.1f}"
        lines.append(line(title, [str(entry["answers"]), spelled(entry["mean_true_iou"])]))
    return "\n".join(lines)
