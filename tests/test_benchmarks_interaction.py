"""The parts of benchmarks/interaction.py that need no server, and a trial run of what needs one."""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import interaction  # noqa: E402 (a folder, not a package)
import interaction_load  # noqa: E402
import interaction_memory  # noqa: E402
from interaction_annotator import (  # noqa: E402
    TASK_OF,
    Track,
    all_figures,
    far_slices,
    honoured_clicks,
    mean_dice,
    set_figures,
    treatment_figures,
)
from interaction_kept import KeptParts  # noqa: E402
from interaction_server import (  # noqa: E402
    WrongMaskError,
    check_mask,
    kept_memory_variables,
    memory_as_make_serve,
)
from interaction_volumes import big_volume, made_volume  # noqa: E402
from network import Figure  # noqa: E402

from lib.evaluation.simulated_user import ClickResult  # noqa: E402
from lib.prompts.promptset import PromptSet  # noqa: E402
from lib.volume import Volume, save_mask  # noqa: E402


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
    clicks = volume.clicks(100)
    assert len({tuple(click) for click in clicks}) == 100
    assert all(volume.truth[tuple(click)] for click in clicks)


@pytest.mark.parametrize("seed", [0, 1, 57])
def test_other_seeds_have_as_many_slices_and_other_images(seed: int) -> None:
    volume = made_volume(seed, (64, 64, 24), (1.0, 1.0, 2.0), 12)
    assert np.count_nonzero(volume.truth.any(axis=(0, 1))) == 12
    assert not np.array_equal(volume.image, made_volume(seed + 1, (64, 64, 24), (1.0, 1.0, 2.0), 12).image)


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


def track(*dice: float) -> Track:
    return Track("a", "o", list(dice), [1.0] * len(dice), 10, 10, 10, 0)


def test_the_mean_over_the_sets_counts_every_set_the_same() -> None:
    rising = {
        "hippocampus_mr": [track(0.1, 0.5)] * 3,
        "cardiac_lv_mr": [track(0.3, 0.5)],
        "abdomen_ct": [track(0.5)],
    }
    found = {figure.name: figure for figure in all_figures(rising, {})}
    assert found["mean over the sets: volume Dice, 1 click"].value == pytest.approx(0.3)
    assert found["mean over the sets: 5 clicks above 1"].value == pytest.approx(0.2)
    assert found["mean over the sets: 5 clicks above 1"].holds is True
    assert found["abdomen_ct: 5 clicks above 1"].holds is False
    assert found["all sets: clicks honoured in the 3D answer"].holds is True


def test_a_missing_set_takes_no_other_along_but_what_is_of_all() -> None:
    tracks = {name: [track(0.1, 0.5)] for name in TASK_OF if name != "abdomen_ct"}
    found = {figure.name: figure for figure in all_figures(tracks, {"abdomen_ct": "no such file: x"})}
    assert found.keys() == {figure.name for figure in all_figures({}, dict.fromkeys(TASK_OF, "-"))}
    assert found["hippocampus_mr: 5 clicks above 1"].holds is True
    assert found["abdomen_ct: 5 clicks above 1"].value is None
    assert found["abdomen_ct: 5 clicks above 1"].note == "no such file: x"
    assert found["all sets: clicks honoured in the 3D answer"].holds is None


def test_without_data_every_figure_has_an_entry_without_value(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    asked = ["--part", "annotator", "--data", str(tmp_path), "--out", str(tmp_path / "work")]
    assert interaction.main([*asked, "--json", str(target)]) == 0
    entries = json.loads(target.read_text())["figures"]
    assert len(entries) == len(all_figures({}, dict.fromkeys(TASK_OF, "-")))
    assert all(entry["value"] is None and entry["holds"] is None and entry["note"] for entry in entries)


# --- what is kept of a run ---


def counted(values: list[float]) -> interaction.Part:
    """A part that gives the number of its runs, which it also notes."""

    def measure(work: Path) -> list[Figure]:
        work.mkdir(exist_ok=True)
        values.append(len(values))
        return [Figure("runs", len(values), "runs", "-", True)]

    return interaction.Part(measure, {})


def test_a_part_is_measured_once_for_the_same_options(tmp_path: Path) -> None:
    runs: list[float] = []
    measure = counted(runs).measure
    for _ in range(2):
        (figure,) = KeptParts(tmp_path).figures("load", {"minutes": 10.0}, measure)
    assert (figure.value, len(runs)) == (1, 1)


def test_a_trial_run_does_not_pass_for_a_whole_one(tmp_path: Path) -> None:
    measure = counted([]).measure
    KeptParts(tmp_path).figures("load", {"minutes": 0.1}, measure)
    (figure,) = KeptParts(tmp_path).figures("load", {"minutes": 10.0}, measure)
    assert figure.value == 2


def test_a_file_of_an_older_format_is_measured_again(tmp_path: Path) -> None:
    (tmp_path / "load.json").write_text("[]")
    assert KeptParts(tmp_path).figures("load", {}, counted([]).measure)


def test_only_what_belongs_to_the_part_is_forgotten(tmp_path: Path) -> None:
    kept = KeptParts(tmp_path)
    for part in ("load", "click"):
        kept.figures(part, {}, counted([]).measure)
    (tmp_path / "mine.txt").write_text("not the benchmark's")
    kept.forget("load")
    assert {path.name for path in tmp_path.iterdir()} == {"click", "click.json", "mine.txt"}


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "ten"])
def test_minutes_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        interaction.options_of_this_run(["--minutes", text])
    assert "allowed: a number above 0" in capsys.readouterr().err


# --- what is sent, and what comes back ---


@pytest.fixture
def nrrd_of_one_voxel(tmp_path: Path) -> bytes:
    """A mask (4, 5, 6) with the voxel (1, 2, 3)."""
    mask = np.zeros((4, 5, 6), dtype=np.uint8)
    mask[1, 2, 3] = 1
    path = tmp_path / "mask.nrrd"
    save_mask(mask, Volume(mask.astype(np.float32), np.eye(4)), path, compress=False)
    return path.read_bytes()


def test_a_mask_has_to_hold_the_click(nrrd_of_one_voxel: bytes) -> None:
    check_mask(nrrd_of_one_voxel, (1, 2, 3))
    with pytest.raises(WrongMaskError, match="outside"):
        check_mask(nrrd_of_one_voxel, (1, 2, 2))


@pytest.mark.parametrize("kept", [0, 20, -1])
def test_half_an_answer_is_no_mask(nrrd_of_one_voxel: bytes, kept: int) -> None:
    with pytest.raises(WrongMaskError, match="no whole mask"):
        check_mask(nrrd_of_one_voxel[:kept], (1, 2, 3))


def test_the_server_gets_its_memory_settings_from_the_makefile() -> None:
    wanted = kept_memory_variables((ROOT / "Makefile").read_text())
    assert set(wanted) == {"MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    before = dict(os.environ)
    with memory_as_make_serve():
        assert wanted.items() <= os.environ.items()
    assert dict(os.environ) == before


def test_a_makefile_without_memory_settings_is_noticed() -> None:
    with pytest.raises(LookupError):
        kept_memory_variables("KEEP = 1\n")


# --- load and memory ---


PLACES = {f"case{number}": [[number, 0, k] for k in range(100)] for number in range(4)}


def test_a_client_adds_click_after_click_on_one_case_after_another() -> None:
    clicks = list(itertools.islice(interaction_load.conversations(3, PLACES), 400))
    assert {click.model for click in clicks} == {"medsa", "medsa_2d"}
    for start in range(0, len(clicks), 5):
        talk = clicks[start : start + 5]
        assert len({(click.model, click.image) for click in talk}) == 1
        assert [click.points for click in talk] == [talk[-1].points[: count + 1] for count in range(5)]
    assert [click.image for click in clicks[::5]][:5] == ["case0", "case1", "case2", "case3", "case0"]
    other = itertools.islice(interaction_load.conversations(4, PLACES), 400)
    assert [click.points for click in other] != [click.points for click in clicks]


def test_what_the_load_figures_say() -> None:
    answers = np.array([[0.01, 0]] * 98 + [[0.2, 0], [0.3, 1]])
    tally = interaction_load.Tally([1.0, 2.0, 3.0], ["HTTPStatusError: 503"])
    found = {figure.name: figure for figure in interaction_load.figures_of(answers, tally, 1.0)}
    assert found["/info/ while 8 clients click, p95"].value == pytest.approx(10)
    assert found["/info/ while 8 clients click, longest"].value == pytest.approx(300)
    failed = found["failed requests while 8 clients click"]
    assert (failed.value, failed.holds) == (2, False)
    assert failed.note == "HTTPStatusError: 503; /info/ failed"


def test_a_server_that_hangs_is_slow_for_all_who_would_have_asked_meanwhile() -> None:
    with slow_server(first_answer_s=1.0) as url:
        answers = interaction_load.probe(url, 0.9)
    assert len(answers) == 5
    assert not answers[:, 1].any()
    # The first took a second; those due 0.2, 0.4, 0.6 and 0.8 s later came after it. A busy machine only adds to it.
    assert (answers[:, 0] > np.array([1.0, 0.8, 0.6, 0.4, 0.2]) - 0.05).all()


def test_answers_that_are_errors_are_failures() -> None:
    with slow_server(status=503) as url:
        assert interaction_load.probe(url, 0.3)[:, 1].all()
    # Nobody listens there any more.
    assert interaction_load.probe(url, 0.3)[:, 1].all()


@contextmanager
def slow_server(first_answer_s: float = 0.0, status: int = 200) -> Iterator[str]:
    waits = iter([first_answer_s])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(next(waits, 0.0))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("highest", "holds"), [(2048.0, True), (2049.0, False)])
def test_memory_is_judged_by_its_highest(highest: float, holds: bool) -> None:
    held = [900.0, *np.linspace(1000.0, 1199.0, 200)]
    found = interaction_memory.figures_of(held, highest, 500.0, 544.5)
    assert [figure.holds for figure in found] == [holds, True, True, False]
    assert "900 after 0, 1049 after 50, 1099 after 100" in found[0].note
    assert found[1].value == pytest.approx(100)


def test_the_peak_of_a_process_is_at_least_what_it_holds() -> None:
    assert interaction_memory.peak_mib(os.getpid()) >= psutil.Process().memory_info().rss / (1 << 20) - 1


def test_files_in_folders_below_count() -> None:
    assert interaction_memory.size_of(ROOT / "apps" / "medsa" / "weights") > 10 << 20


# --- the whole ---


@pytest.mark.server
@pytest.mark.timeout(1800)
def test_a_trial_run_has_an_entry_for_every_figure(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    asked = [word for part in ("click", "cold", "load", "memory", "gpu") for word in ("--part", part)]
    assert interaction.main([*asked, "--quick", "--out", str(tmp_path / "work"), "--json", str(target)]) == 0
    content = json.loads(target.read_text())
    entries = {entry["name"]: entry for entry in content["figures"]}
    assert all({"name", "value", "unit", "bar", "holds"} <= set(entry) for entry in entries.values())
    assert len([entry for entry in entries.values() if entry["bar"] is not None]) == 14
    assert entries["failed requests while 8 clients click"]["value"] == 0
    assert "40 slices answered" in entries["warm 3D click, 256 x 256 x 100, median"]["note"]
    assert content["machine"]


@pytest.mark.server
@pytest.mark.data
@pytest.mark.timeout(1800)
def test_a_trial_annotation_of_every_set(tmp_path: Path, data_dir: Path) -> None:
    target, picture = tmp_path / "out.json", tmp_path / "curves.png"
    asked = ["--part", "annotator", "--quick", "--data", str(data_dir), "--out", str(tmp_path / "work")]
    assert interaction.main([*asked, "--json", str(target), "--plot", str(picture)]) == 0
    entries = json.loads(target.read_text())["figures"]
    dice = [entry["value"] for entry in entries if "volume Dice" in entry["name"]]
    assert len(dice) == 16
    assert all(0 < value <= 1 for value in dice)
    assert picture.stat().st_size > 0
