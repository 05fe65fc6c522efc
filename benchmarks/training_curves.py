"""How good it gets: learning curves of three methods in the same CPU time, and what a longer training reaches.

Every single training is kept as a file, so that a run of hours can be stopped and gone on with.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from base_figures import figure_of
from network import Figure, machine
from training_data import Study
from training_methods import METHODS, scores, settings_of, untrained

MEASURES = ("1 click", "no clicks")
BARS = {"hippocampus_mr": {"no clicks": 0.70}, "cardiac_lv_mr": {"no clicks": 0.65}}
AIMS = {"hippocampus_mr": {"no clicks": 0.85, "1 click": 0.85}}
GAIN_BAR = 0.10
EQUAL = 0.0  # adapters are to be at least equal at these counts
EQUAL_AT = (5, 10)


@dataclass(frozen=True)
class Trial:
    """One training: from how many labelled groups, in how many CPU minutes."""

    method: str
    count: int
    seed: int
    minutes: float


@dataclass(frozen=True)
class Outcome:
    """Dice of every tested case by measure, and how many steps there were."""

    trial: Trial
    dice: Mapping[str, Sequence[float]]
    steps: int

    def mean(self, measure: str) -> float | None:
        """Over the tested cases; None for a method without that measure."""
        values = self.dice.get(measure)
        return fmean(values) if values else None


def outcome_of(study: Study, trial: Trial, out: Path) -> Outcome:
    """That of an earlier run, else made now and kept in `out`."""
    name = f"{study.name}-{trial.method}-{trial.count}-{trial.seed}-{trial.minutes:g}".replace(" ", "_")
    file = out / f"{name}.json"
    if file.exists():
        kept = json.loads(file.read_text())
        return Outcome(trial, kept["dice"], kept["steps"])
    settings, tested = settings_of(study.task), study.load(study.tested)
    if trial.method == "untrained":
        trained = untrained(settings)
    else:
        cases = study.load(study.first(trial.count, trial.seed))
        trained = METHODS[trial.method](settings, cases, 60.0 * trial.minutes, trial.seed)
    found = Outcome(trial, scores(trained, tested), trained.steps)
    write_whole(file, {"machine": machine(), **asdict(found)})
    shown = {measure: round(value, 3) for measure in MEASURES if (value := found.mean(measure)) is not None}
    print(f"{name}: {found.steps} steps, {shown}", flush=True)
    return found


def write_whole(file: Path, content: Any) -> None:
    """As JSON, in place at once or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(file)


def learned_figures(study: Study, out: Path, minutes: float, seeds: int) -> list[Figure]:
    """All labels, a longer training: before and after, on the tested cases."""
    before = outcome_of(study, Trial("untrained", 0, 0, 0.0), out)
    count = len(study.labelled)
    after = [outcome_of(study, Trial("adapters", count, seed, minutes), out) for seed in range(seeds)]
    note = f"{count} labelled, {len(study.tested)} tested, {minutes:g} CPU minutes, {seeds} seeds"
    figures = []
    for measure in MEASURES:
        means = [value for outcome in after if (value := outcome.mean(measure)) is not None]
        name = f"{study.name}: volume Dice, {measure}"
        bar = BARS.get(study.name, {}).get(measure)
        figures += [
            figure_of(f"{name}, before", before.mean(measure), "Dice"),
            figure_of(
                f"{name}, after", fmean(means), "Dice", f">= {bar}" if bar else "-", _spread(means, note)
            ),
        ]
        if measure == "1 click":
            gain = fmean(means) - (before.mean(measure) or 0.0)
            figures.append(figure_of(f"{name}, gain", gain, "Dice", f">= {GAIN_BAR}", note))
        if (aim := AIMS.get(study.name, {}).get(measure)) is not None:
            figures.append(figure_of(f"{name}, after (aim)", fmean(means), "Dice", f">= {aim}", note))
    return figures


def curve_figures(study: Study, out: Path, minutes: float, seeds: int) -> list[Figure]:
    """Every method at every count of labels; then whether adapters are at least equal with few."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for seed in range(seeds):
        for count in study.counts:
            for method in METHODS:
                outcome = outcome_of(study, Trial(method, count, seed, minutes), out)
                for measure in MEASURES:
                    value = outcome.mean(measure)
                    if value is not None:
                        found.setdefault((method, count, measure), []).append(value)
    note = f"{minutes:g} CPU minutes, {seeds} seeds"
    figures = [
        figure_of(_name(study, *key), fmean(values), "Dice", note=_spread(values, note))
        for key, values in found.items()
    ]
    return [*figures, *_comparisons(study, found)]


def _comparisons(study: Study, found: Mapping[tuple[str, int, str], Sequence[float]]) -> list[Figure]:
    figures = []
    for (method, count, measure), values in found.items():
        if method == "adapters" or count not in EQUAL_AT:
            continue
        ours = found["adapters", count, measure]
        difference = fmean(ours) - fmean(values)
        name = f"{study.name}: {count} labels, {measure}: adapters above {method}"
        figures.append(figure_of(name, difference, "Dice", f">= {EQUAL:g}", f"{len(values)} seeds"))
    return figures


def curves(figures: Iterable[Figure], study: str) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(method, measure) -> (labels, Dice), as `curve_figures` names them."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for figure in figures:
        parts = figure.name.split(": ")
        if len(parts) == 3 and parts[0] == study and parts[1] in METHODS and figure.value is not None:
            labels, measure = parts[2].split(" labels, ")
            found.setdefault((parts[1], measure), []).append((int(labels), figure.value))
    return found


def plot(figures: Sequence[Figure], studies: Iterable[str], target: Path) -> None:
    """The learning curves, a picture a study and measure."""
    from matplotlib import pyplot

    shown = [(study, measure) for study in studies for measure in MEASURES if curves(figures, study)]
    drawing, axes = pyplot.subplots(
        1, max(1, len(shown)), figsize=(4.5 * max(1, len(shown)), 3.6), squeeze=False
    )
    for place, (study, measure) in zip(axes[0], shown, strict=True):
        for (method, of), points in curves(figures, study).items():
            if of == measure:
                place.plot(*zip(*sorted(points), strict=True), marker="o", label=method)
        place.set_title(f"{study}, {measure}")
        place.set_xlabel("labelled")
        place.set_ylabel("volume Dice")
        place.grid(alpha=0.3)
        place.legend()
    drawing.tight_layout()
    drawing.savefig(target, dpi=80)
    pyplot.close(drawing)


def _name(study: Study, method: str, count: int, measure: str) -> str:
    return f"{study.name}: {method}: {count} labels, {measure}"


def _spread(values: Sequence[float], note: str) -> str:
    each = ", ".join(f"{value:.3f}" for value in values)
    return f"{note}: {each}" + (f", SD {stdev(values):.3f}" if len(values) > 1 else "")
