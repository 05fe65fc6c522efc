"""What an annotator meets in OHIF: series of any direction, each task, colleagues, and mistakes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from browser_loop import LABELS, SAVED, answer_of, labels_in_pacs, middle, submit_over_http

from lib.dicom.image import load_series
from lib.dicom.pacs import Pacs
from lib.dicom.series_writer import SeriesNames, write_series
from lib.dicom.upload import upload_folder
from lib.volume import Volume

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

SHAPE, CENTRE = (40, 36, 20), (20, 18, 10)
SPACING_MM = (1.0, 1.25, 2.5)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def at(start_station: Callable[..., Any]) -> Any:
    return start_station(auto_train="false", warm="false")


@pytest.fixture
def put_series(at: Any, tmp_path: Path) -> Callable[..., tuple[str, str, Path]]:
    """put_series(directions, descending, name) -> (study, series, folder) of a bright ellipsoid in the PACS."""

    def put(directions: np.ndarray, descending: bool, name: str) -> tuple[str, str, Path]:
        place = np.indices(SHAPE) - np.reshape(CENTRE, (3, 1, 1, 1))
        inside = ((place / np.reshape([9, 8, 5], (3, 1, 1, 1))) ** 2).sum(axis=0) < 1
        noise = np.random.default_rng(3).normal(0, 10, SHAPE)
        lps = np.eye(4)
        lps[:3, :3], lps[:3, 3] = directions * SPACING_MM, (-31.5, 12.25, 103.0)
        volume = Volume((100 * inside + noise).astype(np.int16), _LPS_TO_RAS @ lps)
        names = SeriesNames(name, name, f"browser {name}")
        numbers = list(range(1, SHAPE[2] + 1))
        folder = tmp_path / "series"
        write_series(volume, names, folder, numbers[::-1] if descending else None)
        upload_folder(Pacs(at.pacs_url), folder)
        return names.uid("study"), names.series, folder

    return put


@pytest.fixture
def two_series(at: Any, tmp_path: Path) -> tuple[str, list[str]]:
    """A study with two series of the same size: (study, [series, series])."""
    found: list[str] = []
    for number in range(2):
        noise = np.random.default_rng(number).normal(0, 10, SHAPE)
        volume = Volume(noise.astype(np.int16), _LPS_TO_RAS @ np.diag([*SPACING_MM, 1.0]))
        names = SeriesNames("TWO-SERIES", f"series {number}", f"browser two series {number}")
        for file in write_series(volume, names, tmp_path / str(number)):
            header = pydicom.dcmread(file)
            header.StudyInstanceUID = SeriesNames("", "", "browser two series").uid("study")
            header.SeriesNumber = number + 1
            header.save_as(file)
        upload_folder(Pacs(at.pacs_url), tmp_path / str(number))
        found.append(names.series)
        wait_listed(at, names.series)
    return str(header.StudyInstanceUID), found


@pytest.fixture
def opened(
    at: Any, put_series: Callable[..., tuple[str, str, Path]], open_viewer: Callable[..., Any]
) -> Callable[..., tuple[Any, str]]:
    """opened(name) -> OHIF with a new axial series open, and its SeriesInstanceUID."""

    def start(name: str) -> tuple[Any, str]:
        study, series, _ = put_series(np.eye(3), False, name)
        wait_listed(at, series)
        viewer = open_viewer(at)
        viewer.open(study, series)
        return viewer, series

    return start


def wait_listed(at: Any, series: str) -> None:
    count = at.get("/info/")["datastore"]["total"]
    while series not in at.get("/datastore/", output="all")["objects"]:
        at.wait_for_images(count)


def test_a_click_and_a_label_are_where_the_voxels_are(
    at: Any,
    put_series: Callable[..., tuple[str, str, Path]],
    open_viewer: Callable[..., Any],
    geometries: dict[str, tuple[np.ndarray, bool]],
    geometry: str,
    tmp_path: Path,
) -> None:
    directions, descending = geometries[geometry]
    study, series, folder = put_series(directions, descending, f"GEOMETRY-{geometry}")
    # The object's voxel as the series' own slices are ordered, whichever way they were written.
    volume, _ = load_series(sorted(folder.iterdir()))
    voxel = middle(volume.array > 50)
    wait_listed(at, series)
    viewer = open_viewer(at)
    viewer.open(study, series)
    viewer.choose("spleen")
    asked = viewer.click(voxel)
    viewer.shot(geometry)
    assert asked["foreground"] == [voxel]
    mask = answer_of(at, series, "medsa", asked) > 0
    assert mask[tuple(voxel)]
    assert np.array_equal(viewer.mask("spleen"), mask)
    assert SAVED.fullmatch(viewer.submit())
    (stored,) = labels_in_pacs(at, series, tmp_path / "cold")
    assert np.array_equal(stored, mask * np.uint8(LABELS["spleen"]))


@pytest.mark.parametrize("model", ["medsa_2d", "medsa_multi"])
def test_each_task_for_clicks_shows_what_it_answers(
    at: Any, opened: Callable[..., tuple[Any, str]], model: str
) -> None:
    viewer, series = opened(f"TASK-{model}")
    viewer.choose("kidney", model)
    asked = viewer.click(CENTRE)
    mask = answer_of(at, series, model, asked) > 0
    shown = viewer.mask("kidney")
    assert shown.any()
    if model == "medsa_2d":
        assert np.flatnonzero(shown.any(axis=(0, 1))).tolist() == [CENTRE[2]]
        assert np.array_equal(shown[:, :, CENTRE[2]], mask[:, :, CENTRE[2]])
    else:
        assert np.array_equal(shown, mask)


def test_a_click_outside_takes_away_without_another_press(opened: Callable[..., tuple[Any, str]]) -> None:
    viewer, _ = opened("BACKGROUND")
    viewer.choose("liver")
    viewer.click(CENTRE)
    inside = viewer.mask("liver")
    edge = [int(np.flatnonzero(inside[:, CENTRE[1], CENTRE[2]])[-1]), CENTRE[1], CENTRE[2]]
    viewer.choose("background")
    asked = viewer.click(edge)
    assert (asked["foreground"], asked["background"], asked["label"]) == ([list(CENTRE)], [edge], "liver")
    assert not viewer.mask("liver")[tuple(edge)]


def test_clicks_outside_are_of_the_label_that_they_were_made_for(
    opened: Callable[..., tuple[Any, str]],
) -> None:
    viewer, _ = opened("OUTSIDE")
    viewer.choose("liver")
    viewer.click(CENTRE)
    viewer.choose("background")
    outside = [CENTRE[0] + 6, CENTRE[1], CENTRE[2]]
    viewer.click(outside)
    viewer.choose("spleen")
    asked = viewer.click([CENTRE[0] - 15, CENTRE[1], CENTRE[2]])
    assert (asked["label"], asked["background"]) == ("spleen", [])
    viewer.choose("liver")
    asked = viewer.click([CENTRE[0] - 3, CENTRE[1], CENTRE[2]])
    assert (asked["label"], asked["background"]) == ("liver", [outside])


def test_an_answer_can_be_undone(opened: Callable[..., tuple[Any, str]]) -> None:
    viewer, _ = opened("UNDO")
    viewer.choose("liver")
    viewer.click(CENTRE)
    before = viewer.labelmap()
    viewer.click([CENTRE[0] + 14, CENTRE[1], CENTRE[2]])
    assert not np.array_equal(viewer.labelmap(), before)
    viewer.page.get_by_role("button", name="Undo answer").click()
    assert np.array_equal(viewer.labelmap(), before)


def test_a_case_can_be_skipped_and_is_offered_to_others_then(
    at: Any, opened: Callable[..., tuple[Any, str]]
) -> None:
    viewer, _ = opened("SKIPPED")
    viewer.next_sample()
    offered = viewer.series()
    assert viewer.page.locator("#medsa-offer").inner_text().startswith("Case ")
    viewer.shot("offered")
    with viewer.page.expect_navigation():
        viewer.page.locator("#medsa-skip").click()
    viewer.wait_ready()
    assert viewer.series() != offered
    others: set[str] = set()

    def offer() -> dict[str, Any]:
        body = {"client_id": f"client {len(others)}"}
        return dict(httpx.post(f"{at.url}/activelearning/first", json=body, timeout=600).json())

    while "id" in (found := offer()):
        others.add(found["id"])
    assert offered in others
    assert viewer.series() not in others


def test_a_click_keeps_what_was_painted_of_its_label(opened: Callable[..., tuple[Any, str]]) -> None:
    viewer, _ = opened("PAINTED")
    viewer.choose("liver")
    viewer.click(CENTRE)
    answered = viewer.mask("liver")
    last = int(np.flatnonzero(answered.any(axis=(0, 1)))[-1])
    far = (5, 5, SHAPE[2] - 1)
    assert last < far[2]
    viewer.paint("liver", far)
    painted = viewer.mask("liver") & ~answered
    assert painted[far]
    viewer.choose("liver")
    edge = [int(np.flatnonzero(answered[:, CENTRE[1], CENTRE[2]])[-1]) + 1, CENTRE[1], CENTRE[2]]
    asked = viewer.click(edge)
    assert (asked["label_as"], asked["foreground"]) == (
        "mask",
        [edge],
    )  # the first click is in the mask already
    corrected = viewer.mask("liver")
    assert corrected[tuple(edge)]
    assert corrected[painted].all()
    # And so does one more, without anything painted since.
    asked = viewer.click([edge[0], edge[1], CENTRE[2] + 1])
    assert len(asked["foreground"]) == 2
    assert viewer.mask("liver")[painted].all()


def test_of_two_labels_that_touch_a_further_click_keeps_the_first_ones(
    opened: Callable[..., tuple[Any, str]],
) -> None:
    viewer, _ = opened("TOUCHING")
    viewer.choose("liver")
    viewer.click(CENTRE)
    viewer.choose("kidney")
    beside = (CENTRE[0] + 5, CENTRE[1], CENTRE[2])
    viewer.click(beside)  # the same bright object: the two answers share voxels
    asked = viewer.click((beside[0] + 2, CENTRE[1] + 2, CENTRE[2]))
    assert "label_as" not in asked, "nobody has painted"
    assert list(beside) in asked["foreground"]


def test_a_click_corrects_a_label_that_was_saved_before(
    at: Any, opened: Callable[..., tuple[Any, str]]
) -> None:
    viewer, series = opened("CORRECT-SAVED")
    values = np.zeros(SHAPE, np.uint8)
    values[3:8, 3:8, 15:18] = LABELS["spleen"]
    submit_over_http(at, series, values, "bob")
    viewer.page.reload()
    viewer.wait_ready()
    viewer.choose("spleen")
    viewer.click([*CENTRE[:2], 2])
    assert viewer.mask("spleen")[*CENTRE[:2], 2]
    assert viewer.mask("spleen")[values > 0].all()


def test_run_works_after_another_tab_was_used_and_in_2d_says_what_it_needs(
    opened: Callable[..., tuple[Any, str]],
) -> None:
    viewer, _ = opened("TABS")
    viewer.choose("liver")
    viewer.page.locator("label.tab-label", has_text="Auto-Segmentation").click()
    viewer.page.locator("label.tab-label", has_text="Point Prompts").click()
    viewer.page.wait_for_timeout(300)
    asked = viewer.click(CENTRE)  # the panel has forgotten the row; it is chosen again
    assert (asked["label"], asked["foreground"]) == ("liver", [list(CENTRE)])
    assert viewer.segments().keys() == {"kidney", "liver", "spleen"}

    viewer.choose("spleen", "medsa_2d")
    viewer.choose("background")
    viewer.press([CENTRE[0] + 3, CENTRE[1], CENTRE[2]])
    viewer.page.get_by_text("Click inside spleen first.").wait_for()
    viewer.choose("spleen")
    assert viewer.click(CENTRE)["foreground"] == [list(CENTRE)]


def test_another_series_of_the_study_is_opened_as_a_case_of_its_own(
    at: Any, open_viewer: Callable[..., Any], two_series: tuple[str, list[str]]
) -> None:
    study, series = two_series
    viewer = open_viewer(at)
    viewer.page.goto(f"{at.url}/ohif/monai-label?StudyInstanceUIDs={study}", wait_until="load")
    viewer.wait_ready()
    first = viewer.series()
    (other,) = set(series) - {first}
    viewer.choose("liver")
    viewer.click(CENTRE)
    asked: list[str] = []
    viewer.page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    with viewer.page.expect_navigation(url=f"**SeriesInstanceUIDs={other}*"):
        viewer.page.get_by_text(f"series {series.index(other)}", exact=True).first.dblclick()
    viewer.wait_ready()
    assert asked == ["What you changed is not submitted, and would be lost. Go on?"]
    assert viewer.series() == other
    assert not viewer.labelmap().any()
    assert at.get(f"/medsa/cases/{first}")["labels"] == at.get(f"/medsa/cases/{other}")["labels"] == []


def test_work_is_not_left_for_the_study_list_without_a_question(
    opened: Callable[..., tuple[Any, str]],
) -> None:
    viewer, series = opened("LEAVING")
    viewer.choose("liver")
    viewer.click(CENTRE)
    before = viewer.labelmap()
    asked: list[str] = []
    viewer.page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    viewer.page.locator('[data-cy="return-to-work-list"]').click()
    assert len(asked) == 1
    assert viewer.series() == series
    assert np.array_equal(viewer.labelmap(), before)
    assert SAVED.fullmatch(viewer.submit())
    viewer.page.locator('[data-cy="return-to-work-list"]').click()
    viewer.page.get_by_text("LEAVING", exact=True).first.wait_for()
    assert len(asked) == 1


def test_a_saved_label_is_shown_when_its_case_is_opened_again(
    at: Any, opened: Callable[..., tuple[Any, str]]
) -> None:
    viewer, series = opened("AGAIN")
    values = np.zeros(SHAPE, np.uint8)
    values[5:9, 4:8, 3:6] = LABELS["kidney"]
    submit_over_http(at, series, values, "bob")
    viewer.page.reload()
    viewer.wait_ready()
    assert np.array_equal(viewer.mask("kidney"), values > 0)
    assert viewer.message() == "Shown: version 1, saved by bob."


def test_two_people_at_one_case_are_both_told_and_nothing_is_lost(
    at: Any, opened: Callable[..., tuple[Any, str]], tmp_path: Path
) -> None:
    viewer, series = opened("TOGETHER")
    viewer.page.evaluate("clearTimeout(window.medsa.polling)")  # so that it has not heard of the other yet
    viewer.choose("liver")
    viewer.click(CENTRE)
    theirs = np.zeros(SHAPE, np.uint8)
    theirs[5:9, 4:8, 3:6] = LABELS["kidney"]
    submit_over_http(at, series, theirs, "bob")
    said = viewer.submit()
    assert "Saved as version 2" in said
    assert "Meanwhile saved by bob (version 1): all versions are kept, yours is the newest." in said
    own = viewer.mask("liver") * np.uint8(1)
    first, second = labels_in_pacs(at, series, tmp_path / "cold")
    assert np.array_equal(first, theirs)
    assert np.array_equal(second, own)

    submit_over_http(at, series, theirs, "carol")
    viewer.page.get_by_text("carol has submitted this case too, as version 3").wait_for()
    viewer.shot("another-submitted")
    viewer.page.get_by_role("button", name="Show newest label").click()
    viewer.page.get_by_text("Shown: version 3, saved by carol.").wait_for()
    assert np.array_equal(viewer.mask("kidney"), theirs > 0)


def test_mistakes_are_answered_with_what_is_wrong(at: Any, opened: Callable[..., tuple[Any, str]]) -> None:
    viewer, series = opened("MISTAKES")
    assert viewer.submit() == "There is nothing to submit: no voxel has a label."
    viewer.page.evaluate(
        "() => { const labels = window.medsa.labels; delete labels.kidney;"
        " const volume = window.services.segmentationService.getLabelmapVolume('1');"
        " const found = volume.voxelManager.getCompleteScalarDataArray(); found[0] = 1;"
        " volume.voxelManager.setCompleteScalarDataArray(found); }"
    )
    assert viewer.submit().startswith("Not a label of this task: kidney. Its labels are liver, spleen")
    assert at.get(f"/medsa/cases/{series}")["labels"] == []


def test_the_page_asks_for_nothing_from_elsewhere(at: Any, open_viewer: Callable[..., Any]) -> None:
    viewer = open_viewer(at)
    asked: list[str] = []
    viewer.page.on("request", lambda request: asked.append(request.url))
    viewer.study_list("PHANTOM-001")
    viewer.open_from_list("PHANTOM-001")
    assert asked
    assert [url for url in asked if not url.startswith((at.url, "data:", "blob:"))] == []


def test_a_search_in_the_study_list_finds_what_was_asked_for(
    at: Any, open_viewer: Callable[..., Any]
) -> None:
    viewer = open_viewer(at)
    viewer.study_list("PHANTOM-001", "PHANTOM-002")
    viewer.page.locator("input[type=text]").nth(1).fill("PHANTOM-002")  # by MRN; the first is by name
    viewer.page.get_by_text("PHANTOM-001", exact=True).first.wait_for(state="detached")
    viewer.page.get_by_text("PHANTOM-002", exact=True).first.wait_for()
    assert viewer.page.get_by_text("PHANTOM-001", exact=True).count() == 0
