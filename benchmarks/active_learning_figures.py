"""The figures of benchmarks/active_learning.py, from the runs that were made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from active_learning_rounds import EVERYTHING, Run
from base_figures import figure_of
from network import Figure, unmeasured
from scipy import stats

CONFIDENCE = 0.95
NEAR_FULL = 0.95  # of the Dice with the whole pool
OURS, RIVAL, PLAIN = "medsa", "foreground_random", "random"
LABELS_BAR, LABELS_AIM, TYPICAL_BAR = 0.8, 0.5, 0.25

# Strategy -> its runs, one a seed, in the order of the seeds.
Runs = Mapping[str, Sequence[Run]]


def curve(run: Run) -> tuple[list[int], list[float]]:
    """Numbers of labels, and the mean Dice with each, of the rounds that were tested."""
    tested = [one for one in run.rounds if one.dice]
    return [one.labels for one in tested], [fmean(one.dice) for one in tested]


def area(run: Run) -> float:
    """The area under the curve, as the mean Dice over the budget."""
    labels, dice = curve(run)
    if len(labels) == 1:
        return dice[0]
    return float(np.trapezoid(dice, labels) if hasattr(np, "trapezoid") else np.trapz(dice, labels)) / (
        labels[-1] - labels[0]
    )


def labels_to(run: Run, wanted: float) -> float:
    """With how many labels the Dice is first reached, between rounds in proportion; the whole budget if never."""
    labels, dice = curve(run)
    if dice[0] >= wanted:
        return float(labels[0])
    for place in range(1, len(labels)):
        if dice[place] >= wanted:
            part = (wanted - dice[place - 1]) / (dice[place] - dice[place - 1])
            return labels[place - 1] + part * (labels[place] - labels[place - 1])
    return float(labels[-1])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's for the mean; without an end for a single value."""
    if len(values) < 2:
        return -np.inf, np.inf
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half


def penalty_matrix(runs: Runs) -> dict[str, dict[str, float]]:
    """[loser][winner]: in which share of the rounds the winner is better for sure, by a paired t-test over the seeds.

    After Ash et al., arXiv 1906.03671.
    """
    found: dict[str, dict[str, float]] = {}
    for loser, theirs in runs.items():
        for winner, ours in runs.items():
            if loser == winner:
                continue
            pairs = list(zip(theirs, ours, strict=False))
            gains = np.array([np.subtract(curve(our)[1], curve(their)[1]) for their, our in pairs])
            beaten = [interval(list(gain))[0] > 0 for gain in gains.T]
            found.setdefault(loser, {})[winner] = round(fmean(beaten), 3)
    return found


def study_figures(name: str, runs: Runs, full: Sequence[Run]) -> list[Figure]:
    """All figures of one set. `runs` are complete ones, the same seeds for all strategies."""
    figures = []
    for strategy, own in runs.items():
        areas, last = [area(run) for run in own], [fmean(run.rounds[-1].dice) for run in own]
        minutes = fmean(sum(one.scoring_seconds for one in run.rounds) for run in own) / 60
        figures += [
            figure_of(f"{name}: {strategy}: area under the curve", fmean(areas), "Dice", note=_told(areas)),
            figure_of(f"{name}: {strategy}: final Dice", fmean(last), "Dice", note=_told(last)),
            figure_of(f"{name}: {strategy}: scoring", minutes, "CPU minutes a run"),
        ]
    if OURS not in runs:
        return [
            *figures,
            unmeasured(f"{name}: area, {OURS} above {RIVAL}", "Dice", "-", "no whole run of it"),
        ]
    figures += _against_rival(name, runs)
    figures += _labels_saved(name, runs, full)
    ranks = [run.typicality for run in runs[OURS] if run.typicality is not None]
    figures.append(
        figure_of(
            f"{name}: share of the pool that is more typical than the first case, worst seed",
            max(ranks),
            "of the pool",
            f"<= {TYPICAL_BAR}",
            _told(ranks),
        )
    )
    return figures


def plot(runs: Mapping[str, Runs], target: Path) -> None:
    """The learning curves with their intervals, a picture a set."""
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(1, len(runs), figsize=(6 * len(runs), 4), squeeze=False)
    for place, (name, of_set) in zip(axes[0], runs.items(), strict=True):
        for strategy, own in of_set.items():
            labels, _ = curve(own[0])
            dice = np.array([curve(run)[1] for run in own])
            mean, half = dice.mean(axis=0), _half_widths(dice)
            (line,) = place.plot(labels, mean, marker=".", label=strategy)
            place.fill_between(labels, mean - half, mean + half, color=line.get_color(), alpha=0.12)
        place.set_title(name)
        place.set_xlabel("labelled cases")
        place.set_ylabel("Dice without a click")
        place.grid(alpha=0.3)
        place.legend()
    drawing.tight_layout()
    drawing.savefig(target, dpi=80)
    pyplot.close(drawing)


def _half_widths(dice: np.ndarray) -> np.ndarray:
    if len(dice) < 2:
        return np.zeros(dice.shape[1])
    return np.array([interval(list(column))[1] - fmean(column) for column in dice.T])


def _against_rival(name: str, runs: Runs) -> list[Figure]:
    title = f"{name}: area under the curve, {OURS} above {RIVAL}"
    if RIVAL not in runs:
        return [unmeasured(title, "Dice", "interval not below 0", f"no whole run of {RIVAL}")]
    differences = [area(our) - area(their) for our, their in zip(runs[OURS], runs[RIVAL], strict=True)]
    low, high = interval(differences)
    known = f"{CONFIDENCE:.0%} interval {low:.4f} to {high:.4f}, " if len(differences) > 1 else ""
    note = f"{known}{len(differences)} seeds: {_told(differences)}"
    mean = fmean(differences)
    return [
        Figure(
            title, mean, "Dice", "interval not below 0", high >= 0 if len(differences) > 1 else None, note
        ),
        Figure(f"{title} (aim)", mean, "Dice", "interval above 0", low > 0, note),
    ]


def _labels_saved(name: str, runs: Runs, full: Sequence[Run]) -> list[Figure]:
    title = f"{name}: labels to {NEAR_FULL:.0%} of the whole pool's Dice, {OURS} against {PLAIN}"
    if PLAIN not in runs or not full:
        return [unmeasured(title, "times", f"<= {LABELS_BAR}", f"no whole run of {PLAIN} or of {EVERYTHING}")]
    wanted = NEAR_FULL * fmean(fmean(run.rounds[-1].dice) for run in full)
    if wanted <= 0:
        return [unmeasured(title, "times", f"<= {LABELS_BAR}", "nothing was learned from the whole pool")]
    ours, plain = ([labels_to(run, wanted) for run in runs[strategy]] for strategy in (OURS, PLAIN))
    note = f"Dice {wanted:.3f}: {_told(ours, 1)} and {_told(plain, 1)} labels"
    ratio = fmean(ours) / fmean(plain)
    return [
        figure_of(title, ratio, "times", f"<= {LABELS_BAR}", note),
        figure_of(f"{title} (aim)", ratio, "times", f"<= {LABELS_AIM}", note),
    ]


def _told(values: Sequence[float], places: int = 3) -> str:
    return ", ".join(f"{value:.{places}f}" for value in values)
