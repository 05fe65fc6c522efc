"""The parts of benchmarks/interaction.py that need no server, and a trial run of what needs one."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import interaction  # noqa: E402 (a folder, not a package)
from interaction_annotator import (  # noqa: E402
    Track,
    far_slices,
    honoured_clicks,
    mean_dice,
    set_figures,
    treatment_figures,
)
from interaction_volumes import big_volume, made_volume  # noqa: E402

from lib.evaluation.simulated_user import ClickResult  # noqa: E402
from lib.prompts.promptset import PromptSet  # noqa: E402


def masks(*filled: list[int]) -> list[np.ndarray]:
    """(2, 2, 30) each, with the slices named filled."""
    found = []
    for slices in filled:
        mask = np.zeros((2, 2, 30), dtype=bool)
        mask[..., slices] = True
        found.append(mask)
    return found


def results(*prompts: PromptSet) -> list[ClickResult]:
    return [ClickResult(one, 0.5) for one in prompts]


FIRST = PromptSet(((0, 0, 5),))
SECOND = PromptSet(((0, 0, 5), (1, 1, 6)))
DENIED = PromptSet(((0, 0, 5),), ((1, 1, 20),))


def test_the_big_volume_is_as_the_issue_wants_it() -> None:
    volume = big_volume()
    assert volume.image.shape == (256, 256, 100)
    assert np.count_nonzero(volume.truth.any(axis=(0, 1))) == 40
    assert volume.axis == 2
    assert np.array_equal(volume.image, big_volume().image)


def test_clicks_are_inside_and_differ() -> None:
    volume = made_volume(3, (64, 64, 24), (1.0, 1.0, 2.0), 12)
    clicks = volume.clicks(10)
    assert len({tuple(click) for click in clicks}) == 10
    assert all(volume.truth[tuple(click)] for click in clicks)


def test_clicks_of_every_answer_are_counted() -> None:
    answers = masks([5], [5])
    assert honoured_clicks(results(FIRST, SECOND), answers) == (3, 2)
    assert honoured_clicks(results(FIRST, DENIED), answers) == (3, 3)
    assert honoured_clicks(results(DENIED), masks([5, 20])) == (2, 1)


def test_a_far_slice_that_gets_worse_is_damaged() -> None:
    truth = masks([5, 6, 25])[0]
    # Slice 25 is lost and slice 28 appears; 26 shows nothing, before or after.
    assert far_slices(results(FIRST, SECOND), masks([5, 25], [5, 6, 28]), truth, 2) == (2, 2)
    assert far_slices(results(FIRST, SECOND), masks([5, 25], [5, 6, 25]), truth, 2) == (1, 0)


def test_near_slices_and_improvements_are_no_damage() -> None:
    truth = masks([5, 6, 25])[0]
    assert far_slices(results(FIRST, SECOND), masks([5, 16], [5, 6]), truth, 2)[1] == 0
    assert far_slices(results(FIRST, DENIED), masks([5, 20], [5]), truth, 2) == (2, 0)


def test_an_object_without_error_left_keeps_its_last_dice() -> None:
    tracks = [
        Track("a", "o", [0.5, 1.0], [1, 1], 3, 3, 0, 0),
        Track("b", "o", [0.2, 0.4, 0.6], [1, 1, 1], 6, 6, 0, 0),
    ]
    assert mean_dice(tracks, 1) == pytest.approx(0.35)
    assert mean_dice(tracks, 10) == pytest.approx(0.8)


@pytest.mark.parametrize(("last", "holds"), [(0.9, True), (0.7, False)])
def test_a_curve_that_falls_does_not_rise(last: float, holds: bool) -> None:
    track = Track("a", "o", [0.5, 0.55, 0.6, 0.65, 0.7, 0.7, 0.7, 0.7, 0.7, last], [1.0] * 10, 1, 1, 0, 0)
    figures = {figure.name: figure for figure in set_figures("set", [track])}
    assert figures["set: rises from 1 to 3 to 5 to 10 clicks"].holds is holds
    assert figures["set: 5 clicks above 1"].value == pytest.approx(0.2)


def test_bars_of_clicks_and_damage() -> None:
    good = Track("a", "o", [0.5], [1], 100, 99, 1000, 10)
    bad = Track("a", "o", [0.5], [1], 100, 98, 1000, 11)
    assert [figure.holds for figure in treatment_figures("all", [good], judge=True)] == [True, True]
    assert [figure.holds for figure in treatment_figures("all", [bad], judge=True)] == [False, False]


def test_a_missing_set_is_an_entry_without_value(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    arguments = [
        "--part",
        "annotator",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "work"),
        "--json",
        str(target),
    ]
    assert interaction.main(arguments) == 0
    (entry,) = json.loads(target.read_text())["figures"]
    assert (entry["value"], entry["holds"]) == (None, None)


@pytest.mark.server
@pytest.mark.timeout(1800)
def test_a_trial_run_has_an_entry_for_every_figure(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    parts = [word for part in ("click", "load", "memory", "gpu") for word in ("--part", part)]
    assert interaction.main([*parts, "--quick", "--out", str(tmp_path / "work"), "--json", str(target)]) == 0
    content = json.loads(target.read_text())
    entries = {entry["name"]: entry for entry in content["figures"]}
    assert {"name", "value", "unit", "bar", "holds"} <= set(next(iter(entries.values())))
    assert len([entry for entry in entries.values() if entry["bar"] is not None]) >= 11
    assert entries["failed requests"]["value"] == 0
    assert content["machine"]
