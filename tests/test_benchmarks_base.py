"""What of benchmarks/base.py can be wrong without anybody seeing it in a table."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
import torch

from lib.model.medsa import Masks, MedSA, PlanePrompts
from lib.transforms.geometry import PlaneGeometry
from lib.volume import Volume, save_mask

REPOSITORY = Path(__file__).resolve().parent.parent


def load_base() -> ModuleType:
    """The program as a module: benchmarks is no package."""
    found = importlib.util.spec_from_file_location("benchmarks_base", REPOSITORY / "benchmarks/base.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


base = load_base()
import base_data  # noqa: E402 (benchmarks/ is on the path since base was loaded)
import base_figures  # noqa: E402
import base_user  # noqa: E402
import base_walker  # noqa: E402

LOGITS = torch.full((4, 4), 50.0)


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: float) -> np.ndarray:
    u, v = np.ogrid[: shape[0], : shape[1]]
    return (u - centre[0]) ** 2 + (v - centre[1]) ** 2 <= radius**2


def target_of(truth: np.ndarray, row: int = 0) -> base_data.Target:
    plane = np.where(truth, 200.0, 50.0).astype(np.float32)
    return base_data.Target("made", row, plane, truth)


class Scripted:
    """Answers every query with the mask made for its number of clicks, or for the box; keeps the queries."""

    def __init__(self, masks: Sequence[np.ndarray], boxed: np.ndarray) -> None:
        self.masks, self.boxed = masks, boxed
        self.queries: list[base_user.Query] = []

    def __call__(self, queries: Sequence[base_user.Query]) -> list[base_user.Reply]:
        self.queries += queries
        masks = [self._mask(query) for query in queries]
        return [base_user.Reply(mask, 0.5, LOGITS, ~mask) for mask in masks]

    def _mask(self, query: base_user.Query) -> np.ndarray:
        if query.box_uv is not None:
            return self.boxed
        return self.masks[min(len(query.clicks), len(self.masks)) - 1]


TRUTH = disc((20, 24), (9, 12), 5)
HALF = TRUTH & (np.arange(24) < 12)[None, :]
NOTHING = np.zeros_like(TRUTH)


# --- the user ---


def test_clicks_go_where_the_error_is() -> None:
    ask = Scripted([NOTHING, np.ones_like(TRUTH), TRUTH], TRUTH)
    (record,) = base_user.annotate(ask, [target_of(TRUTH)], "none")
    first, second, third = record.clicks
    assert first == base_user.Click((9, 12), True)
    assert second == base_user.Click((9, 12), True)  # all of it is still missing
    assert not third.positive
    assert not TRUTH[third.uv]


def test_a_slice_without_error_keeps_its_dice_and_is_not_asked_again() -> None:
    ask = Scripted([HALF, TRUTH], HALF)
    (record,) = base_user.annotate(ask, [target_of(TRUTH)], "none")
    half = 2 * HALF.sum() / (HALF.sum() + TRUTH.sum())
    assert record.click_dice == pytest.approx((half, *[1.0] * 9))
    assert record.box_dice == pytest.approx(half)
    assert len(record.clicks) == 2
    # Two answers to clicks, one to the box: each (predicted, true).
    share = HALF.sum() / TRUTH.sum()
    assert np.array(record.ious) == pytest.approx(np.array([(0.5, share), (0.5, 1.0), (0.5, share)]))


def test_the_box_is_exact_and_half_open() -> None:
    mask = np.zeros((10, 12), dtype=bool)
    mask[2:5, 7:12] = True
    assert base_user.exact_box(mask) == (2, 7, 5, 12)
    ask = Scripted([TRUTH], TRUTH)
    base_user.annotate(ask, [target_of(TRUTH)], "none")
    assert [query.box_uv for query in ask.queries] == [None, (4, 7, 15, 18)]


@pytest.mark.parametrize(
    ("feedback", "clicks", "with_mask"),
    [
        ("none", [1, 2, 3], [False, False, False]),
        ("previous", [1, 2, 3], [False, True, True]),
        ("again", [1, 2, 2, 3, 3], [False, False, True, False, True]),
    ],
)
def test_feedback(feedback: str, clicks: list[int], with_mask: list[bool]) -> None:
    ask = Scripted([NOTHING, HALF, TRUTH], TRUTH)
    base_user.annotate(ask, [target_of(TRUTH)], feedback)
    asked = [query for query in ask.queries if query.box_uv is None]
    assert [len(query.clicks) for query in asked] == clicks
    assert [query.mask_logits is not None for query in asked] == with_mask
    given = [query.mask_logits for query in asked if query.mask_logits is not None]
    assert all(float(logits.max()) == base_user.LOGIT_LIMIT for logits in given)


def test_honoured_clicks_are_those_of_the_fifth_answer() -> None:
    clicks = [base_user.Click(uv, positive) for uv, positive in (((9, 12), True), ((0, 0), True))]
    clicks += [base_user.Click(uv, False) for uv in ((1, 1), (9, 11), (0, 23))]
    assert base_user.honoured(clicks, TRUTH) == base_user.Honoured(1, 2, 2, 3)
    ask = Scripted([NOTHING] * 5 + [TRUTH], TRUTH)
    (record,) = base_user.annotate(ask, [target_of(TRUTH)], "none")
    assert record.honoured == base_user.Honoured(0, 5, 0, 0)
    assert record.honoured_by_network == base_user.Honoured(5, 5, 0, 0)


class Chooses(MedSA):
    """Answers always the same: entry n is positive everywhere, with n in the logits and n / 10 as IoU."""

    def decode(self, embeddings: torch.Tensor, prompts: PlanePrompts) -> Masks:
        count, size = len(prompts), self.spec.mask_size
        entries = torch.arange(4.0).view(1, 4, 1, 1)
        return Masks((entries + 0.5).expand(count, 4, size, size), (entries / 10).view(1, 4).expand(count, 4))


def made_slices(model: MedSA) -> base_data.Slices:
    """Two planes of 20x24 with one disc each."""
    spec = model.spec
    geometry = PlaneGeometry((20, 24), (1.0, 1.0), spec.image_size, spec.mask_size)
    targets = [target_of(TRUTH, 0), target_of(disc((20, 24), (8, 8), 4), 1)]
    return base_data.Slices(np.stack([target.plane for target in targets]), geometry, targets)


def test_a_lone_click_gets_the_best_of_three_and_all_else_the_first(tiny_model: MedSA) -> None:
    tiny_model.__class__ = Chooses
    network = base_user.Network(tiny_model, made_slices(tiny_model))
    one = base_user.Query(0, (base_user.Click((3, 4), True),))
    two = replace(one, clicks=(*one.clicks, base_user.Click((8, 2), False)))
    boxed = base_user.Query(1, box_uv=(2, 3, 9, 9))
    assert [reply.predicted_iou for reply in network([one, two, boxed])] == pytest.approx([0.3, 0.0, 0.0])


def test_the_network_is_made_to_honour_clicks(tiny_model: MedSA) -> None:
    tiny_model.__class__ = Chooses
    network = base_user.Network(tiny_model, made_slices(tiny_model))
    away = base_user.Click((8, 2), False)
    corrected, plain = network(
        [
            base_user.Query(0, (base_user.Click((3, 4), True), click))
            for click in (away, replace(away, positive=True))
        ]
    )
    assert corrected.decoded.all()
    assert not corrected.mask[8, 2]
    assert corrected.mask[3, 4]
    assert plain.mask.all()


def test_the_network_gets_clicks_and_boxes_in_its_own_pixels() -> None:
    geometry = PlaneGeometry((20, 40), (1.0, 1.0), 80, 20)  # two model pixels a voxel
    query = base_user.Query(0, (base_user.Click((3, 5), True), base_user.Click((0, 9), False)), (1, 2, 4, 6))
    prompt = base_user.model_prompt(query, geometry)
    assert prompt.points == [(6.5, 10.5, 1), (0.5, 18.5, 0)]
    assert prompt.box_xyxy == pytest.approx([1.5, 3.5, 7.5, 11.5])


@pytest.mark.parametrize("feedback", ["previous", "none", "again"])
def test_the_user_works_with_a_model(tiny_model: MedSA, feedback: str) -> None:
    slices = made_slices(tiny_model)
    records = base_user.annotate(base_user.Network(tiny_model, slices), slices.targets, feedback)
    assert [len(record.click_dice) for record in records] == [10, 10]
    assert [len(record.ious) for record in records] == [len(record.clicks) + 1 for record in records]
    assert not tiny_model.trained


def test_batches_give_what_single_queries_give(tiny_model: MedSA, monkeypatch: pytest.MonkeyPatch) -> None:
    network = base_user.Network(tiny_model, made_slices(tiny_model))
    queries = [base_user.Query(row, (base_user.Click((8, 8), True),)) for row in (1, 0, 1)]
    monkeypatch.setattr(base_user, "DECODED_AT_ONCE", 2)
    together = network(queries)
    alone = [network([query])[0] for query in queries]
    for first, second in zip(together, alone, strict=True):
        assert first.logits == pytest.approx(second.logits, abs=1e-4)
    assert together[0].logits.sub(together[1].logits).abs().max() > 1e-4  # another plane


# --- the data ---


def test_object_slices_have_30_voxels_and_each_label_is_its_own_object() -> None:
    label = np.zeros((3, 10, 10), dtype=np.uint8)
    label[0, :5, :6] = 1  # 30 voxels
    label[1, :5, :6] = 2
    label[2, :, 0] = 1  # 10 voxels
    found = base_data.objects_in_slices(label, {"first": 1, "second": 2, "third": 7})
    assert [(name, index, int(mask.sum())) for name, index, mask in found] == [
        ("first", 0, 30),
        ("second", 1, 30),
    ]
    merged = base_data.objects_in_slices(label, {"all": base_data.ANYTHING})
    assert [(name, index) for name, index, _ in merged] == [("all", 0), ("all", 1)]


def test_planes_and_truth_of_a_volume_belong_together(tmp_path: Path) -> None:
    truth = np.zeros((12, 6, 10), dtype=np.uint8)
    truth[2:9, 3, 1:8] = 1  # slices are along j, which has the largest spacing
    like = Volume(truth * 100, np.diag([1.0, 4.0, 1.5, 1.0]))
    for name, array in (("image", truth * 100), ("label", truth)):
        save_mask(array, like, tmp_path / f"{name}.nii.gz")
    member = base_data.Member(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", {"object": 1})
    slices = base_data.load_slices(member, 64, 16)
    assert slices.planes.shape == (1, 12, 10)
    (target,) = slices.targets
    assert target.row == 0
    assert target.spacing_uv == (1.0, 1.5)
    assert np.array_equal(target.plane > 127, target.truth)
    assert int(target.truth.sum()) == 49


def test_cases_are_evenly_spaced() -> None:
    assert base_data.evenly(list(range(12)), 3) == [2, 6, 10]
    assert base_data.evenly([1, 2], 5) == [1, 2]
    assert len(set(base_data.evenly(list(range(188)), 48))) == 48


@pytest.mark.parametrize("name", list(base_data.SETS))
def test_a_missing_set_says_where_it_was_looked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(base_data.MissingSetError, match=str(tmp_path / name)):
        base_data.SETS[name](tmp_path)


@pytest.mark.parametrize("change", ["shape", "affine"])
def test_a_label_on_another_grid_is_refused(change: str, tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    image, label = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((20, 24, 4)), affine), image)
    shape = (20, 24, 5) if change == "shape" else (20, 24, 4)
    turned = affine * [[-1], [1], [1], [1]] if change == "affine" else affine
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, dtype=np.uint8), turned), label)
    with pytest.raises(base_data.MissingSetError, match="not on the grid"):
        base_data.load_slices(base_data.Member(image, label, {"object": 1}), 64, 16)


@pytest.mark.parametrize("value", ["0", "-3", "some"])
def test_counts_have_to_be_above_0(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        base.options_of_this_run(["--cases", value])
    assert f"{value!r} is not accepted; allowed: a whole number above 0" in capsys.readouterr().err


# --- the walker ---


@pytest.mark.parametrize("shape", [(60, 50), (300, 200)])
def test_the_walker_finds_a_bright_disc_from_a_click_and_from_a_box(shape: tuple[int, int]) -> None:
    target = target_of(disc(shape, (shape[0] // 2, shape[1] // 3), shape[1] / 6))
    record = base_user.Record(
        target,
        (base_user.Click((shape[0] // 2, shape[1] // 3), True),),
        (0.0,) * 10,
        0.0,
        (),
        base_user.Honoured(0, 0, 0, 0),
        base_user.Honoured(0, 0, 0, 0),
    )
    dice = base_walker.walker_dice(record, (1, 10))
    assert set(dice) == {"1", "10", "box"}
    assert min(dice.values()) > 0.9


def test_the_walker_is_led_by_negative_clicks() -> None:
    plane = disc((40, 60), (20, 15), 8) | disc((40, 60), (20, 45), 8)
    bridge = np.zeros_like(plane)
    bridge[18:23, 15:45] = True
    wanted = disc((40, 60), (20, 15), 8)
    bright = np.where(plane | bridge, 200.0, 50.0).astype(np.float32)
    target = replace(target_of(wanted), plane=bright)
    click = base_user.Click((20, 15), True)
    one = base_walker.from_clicks(target, [click])
    two = base_walker.from_clicks(target, [click, base_user.Click((20, 45), False)])
    assert one[20, 45]
    assert not two[20, 45]
    assert two[20, 15]


def test_a_slice_of_one_value_does_not_stop_the_walker() -> None:
    target = replace(target_of(TRUTH), plane=np.zeros(TRUTH.shape, dtype=np.float32))
    mask = base_walker.from_clicks(target, [base_user.Click((9, 12), True)])
    assert mask[9, 12]


# --- the figures ---


def record_of(dice: Sequence[float], box: float = 0.5) -> base_user.Record:
    ious = ((0.2, 0.3), (0.95, 0.75))
    counts = base_user.Honoured(3, 4, 1, 1), base_user.Honoured(2, 4, 0, 1)
    return base_user.Record(target_of(TRUTH), (), tuple(dice), box, ious, *counts)


RISING = [0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.4, 0.4, 0.4, 0.5]


def found_of(*records: base_user.Record) -> base_figures.Found:
    row = base_figures.dice_row(records)
    return base_figures.Found(records, row, row, len(records))


def test_rows_are_plain_means_over_slices() -> None:
    row = base_figures.set_row([record_of(RISING, 0.4), record_of([1.0] * 10, 0.8)])
    expected = {"1": 0.55, "3": 0.6, "5": 0.65, "10": 0.75, "box": 0.6}
    assert {prompt: row[prompt] for prompt in expected} == pytest.approx(expected)
    assert row["iou error"] == pytest.approx(0.15)
    assert row["iou correlation"] == pytest.approx(1.0)
    assert (row["clicks"], row["inside"], row["outside"]) == (0.8, 0.75, 1.0)
    network = [row[name] for name in base_figures.BY_NETWORK.values()]
    assert network == [0.4, 0.5, 0.0]


def test_sets_count_the_same_and_what_is_not_there_not_at_all() -> None:
    mean = base_figures.mean_row([{"1": 0.2, "outside": None}, {"1": 0.6, "outside": 0.9}])
    assert mean == pytest.approx({"1": 0.4, "outside": 0.9})


def by_name(figures: Sequence[base.Figure]) -> dict[str, base.Figure]:
    named = {figure.name: figure for figure in figures}
    assert len(named) == len(figures)
    return named


def test_a_missed_bar_does_not_hold() -> None:
    low = by_name(base_figures.all_figures({"made": found_of(record_of(RISING))}))
    high = by_name(base_figures.all_figures({"made": found_of(record_of([0.8] * 10, 0.8))}))
    assert low["mean over sets: Dice, box"].holds is False
    assert high["mean over sets: Dice, box"].holds is True
    assert high["mean over sets: Dice, box (aim)"].holds is False
    assert low["mean over sets: Dice, 1 click"].holds is False
    assert high["mean over sets: Dice, 1 click (aim)"].holds is True
    assert high["mean over sets: Dice, 5 clicks"].holds is True
    assert low[f"mean over sets: {base_figures.HONOURED['clicks']}"].holds is False
    assert low[f"mean over sets: {base_figures.HONOURED['outside']} (aim)"].holds is True


def test_every_extra_click_has_to_help_on_every_set() -> None:
    rises, stays = found_of(record_of(RISING)), found_of(record_of([0.8] * 10))
    name = "every extra click helps on every set"
    assert by_name(base_figures.all_figures({"a": rises}))[name].holds is True
    figures = by_name(base_figures.all_figures({"a": rises, "b": stays}))
    assert figures[name].holds is False
    assert figures["a: every extra click helps"].holds is True
    assert figures["b: every extra click helps"].holds is False
    assert figures["a: every extra click helps"].note == "0.100, 0.200, 0.300, 0.500"


def test_means_without_some_sets_are_not_judged() -> None:
    figures = by_name(
        base_figures.all_figures({"made": found_of(record_of([0.9] * 10, 0.9))}, "without other")
    )
    figure = figures["mean over sets: Dice, box"]
    assert (figure.value, figure.holds, figure.note) == (pytest.approx(0.9), None, "without other")
    assert figures["made: every extra click helps"].holds is False


def test_what_has_no_bar_has_no_verdict_in_the_file() -> None:
    figures = by_name(base_figures.all_figures({"made": found_of(record_of(RISING))}))
    entry = base_figures.json_entry(figures["mean over sets: random walker, box"])
    assert (entry["value"], entry["bar"], entry["holds"]) == (0.5, None, None)
    judged = base_figures.json_entry(figures["mean over sets: Dice, box"])
    assert (judged["bar"], judged["holds"]) == (">= 0.75", False)


def test_calibration_has_every_answer_in_its_tenth() -> None:
    bins = base_figures.calibration([record_of(RISING), replace(record_of(RISING), ious=((1.2, 0.65),))])
    filled = {entry["from"]: (entry["answers"], entry["mean_true_iou"]) for entry in bins if entry["answers"]}
    assert filled == {0.2: (1, pytest.approx(0.3)), 0.9: (2, pytest.approx(0.7))}


def test_without_data_it_says_so_and_still_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "encode_milliseconds", lambda model: 61.0)  # slow beside other work
    target = tmp_path / "figures.json"
    assert base.main(["--data", str(tmp_path), "--json", str(target)]) == 1
    assert "cardiac_lv_mr is missing" in capsys.readouterr().out
    content = json.loads(target.read_text())
    assert content["missing"] == list(base_data.SETS)
    entries = {entry["name"]: entry for entry in content["figures"]}
    assert entries["mean over sets: Dice, box"]["holds"] is None
    assert entries["parameters"]["holds"] is True
    timed = [entry for name, entry in entries.items() if name.startswith("encoding of one slice")]
    assert [entry["holds"] for entry in timed] in ([False], [None])  # None without bfloat16 in hardware


def test_monailabel_is_not_needed() -> None:
    code = "import sys; sys.modules['monailabel'] = None; import base; print('imported')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / "benchmarks", capture_output=True, text=True
    )
    assert done.stdout.strip() == "imported", done.stderr
