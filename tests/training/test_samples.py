import dataclasses

import numpy as np
import pytest
import torch

from lib.prompts.promptset import Box, PromptSet
from lib.training.augmentation import Augmentation
from lib.training.samples import corrective_prompts, draw_batch, draw_prompts
from lib.training.slabs import draw_slab, prepare_case
from lib.volume import Volume

IMAGE, MASK = 64, 16


def draw_one(cases, rng):
    """A slice by itself, as it is drawn where there is no depth branch."""
    (found,) = draw_slab(cases, 1, rng)
    return found


def places_of(slab, prepared):
    """The case a slab that was not augmented is from, and the indices of its slices there."""
    case = next(
        case for case in prepared if any(np.array_equal(slab[0].plane, plane) for plane in case.planes)
    )
    return case, [
        next(k for k, plane in enumerate(case.planes) if np.array_equal(plane, found.plane)) for found in slab
    ]


@pytest.fixture
def prepared(cases, view):
    return [prepare_case(case, view, IMAGE, MASK) for case in cases]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def sample(prepared, rng):
    """A slice that holds the object, with a neighbour that does."""
    return next(
        found for _ in range(100) if (found := draw_one(prepared, rng)).target.any() and found.neighbour.any()
    )


def empty(sample, *, keep_neighbour):
    nothing = np.zeros_like(sample.target)
    return dataclasses.replace(
        sample, target=nothing, neighbour=sample.neighbour if keep_neighbour else nothing
    )


def voxel(sample, prompt, number=0):
    x, y, _ = prompt.points[number]
    u, v = sample.geometry.points_to_voxel(np.array([[x, y]]))[0]
    return round(u), round(v)


def test_a_prepared_case_knows_where_its_label_is(cases, view):
    case = cases[0]
    prepared = prepare_case(case, view, IMAGE, MASK)
    filled = np.flatnonzero(case.label.any(axis=(0, 1)))
    assert prepared.filled[0].tolist() == filled.tolist()
    assert prepared.beyond[0].tolist() == [filled[0] - 1, filled[-1] + 1]
    assert prepared.planes.shape == prepared.labels.shape == (12, 24, 20)
    assert np.array_equal(prepared.labels[filled[0]], case.label[:, :, filled[0]])
    assert prepared.planes.min() == 0
    assert prepared.planes.max() == 255


def test_a_label_the_case_lacks_is_never_drawn(cases, view, rng):
    two = dataclasses.replace(view, labels={"other": 7, "object": 1})
    prepared = [prepare_case(cases[0], two, IMAGE, MASK)]
    assert {draw_one(prepared, rng).label_id for _ in range(20)} == {1}


def test_most_slices_hold_the_label_and_of_the_others_many_touch_it(prepared, rng):
    drawn = [draw_one(prepared, rng) for _ in range(600)]
    empties = [found for found in drawn if not found.target.any()]
    beside = [found for found in empties if found.neighbour.any()]
    assert 0.14 < len(empties) / len(drawn) < 0.26
    assert 0.45 < len(beside) / len(empties) < 0.95


def test_a_case_without_empty_slices_gives_filled_ones_only(cases, view, rng):
    full = dataclasses.replace(cases[0], label=np.ones_like(cases[0].label))
    prepared = [prepare_case(full, view, IMAGE, MASK)]
    assert all(draw_one(prepared, rng).target.all() for _ in range(40))


def test_the_neighbour_is_the_label_one_slice_away(prepared, rng):
    for _ in range(50):
        found = draw_one(prepared, rng)
        case, (index,) = places_of((found,), prepared)
        beside = [case.labels[k] == 1 for k in (index - 1, index + 1) if 0 <= k < len(case.labels)]
        assert not found.neighbour.any() or any(np.array_equal(found.neighbour, mask) for mask in beside)


def test_a_slab_is_a_run_of_one_case_with_one_label(prepared, rng):
    for _ in range(40):
        slab = draw_slab(prepared, 3, rng)
        case, places = places_of(slab, prepared)
        assert places == list(range(places[0], places[0] + 3))
        assert {found.label_id for found in slab} == {0}
        for place, found in zip(places, slab, strict=True):
            assert np.array_equal(found.target, case.labels[place] == 1)
            beside = [case.labels[k] == 1 for k in (place - 1, place + 1) if 0 <= k < len(case.labels)]
            expected = [mask for mask in beside if mask.any()]
            assert found.neighbour.any() == bool(expected)
            assert not expected or any(np.array_equal(found.neighbour, mask) for mask in expected)


def test_the_drawn_slice_may_be_anywhere_in_its_slab(prepared, rng):
    case = prepared[0]
    only = dataclasses.replace(
        case, labels=(np.arange(12) == 6).astype(np.uint8)[:, None, None] * np.ones_like(case.labels)
    )
    only = dataclasses.replace(only, filled={0: np.array([6])}, beyond={0: np.array([5, 7])})
    holding = [
        tuple(bool(found.target.any()) for found in slab)
        for slab in (draw_slab([only], 3, rng) for _ in range(300))
    ]
    shares = [sum(found[place] for found in holding) / sum(map(any, holding)) for place in range(3)]
    assert all(0.2 < share < 0.47 for share in shares)


@pytest.mark.parametrize("end", [0, 11])
def test_slabs_end_where_the_volume_ends(prepared, rng, end):
    case = dataclasses.replace(prepared[0], filled={0: np.array([end])}, beyond={0: np.array([], dtype=int)})
    found = {tuple(places_of(draw_slab([case], 4, rng), prepared)[1]) for _ in range(200)}
    assert all(min(places) >= 0 and max(places) <= 11 for places in found)
    assert any(end in places for places in found)


def test_a_volume_shorter_than_the_slab_is_one_slab(cases, view, rng):
    short = dataclasses.replace(
        cases[0],
        label=cases[0].label[:, :, 5:7],
        volume=Volume(cases[0].volume.array[:, :, 5:7], cases[0].volume.affine),
    )
    prepared = [prepare_case(short, view, IMAGE, MASK)]
    assert len(draw_slab(prepared, 5, rng)) == 2
    batch = draw_batch(prepared, 8, 4, Augmentation(0), rng, slab=5)
    assert batch.depths == (2, 2, 2)
    assert len(batch.planes) == 6


def test_a_slab_is_moved_and_recoloured_as_one(sample):
    same = tuple(dataclasses.replace(sample) for _ in range(3))
    augment = Augmentation(4)
    moved = recoloured = exact = 0
    for _ in range(60):
        first, *others = augment(same)
        moved += not np.array_equal(first.target, sample.target)
        recoloured += abs(first.plane.mean() - sample.plane.mean()) > 5
        for other in others:
            assert np.array_equal(first.target, other.target)
            assert np.array_equal(first.neighbour, other.neighbour)
            exact += np.array_equal(first.plane, other.plane)
            # Only noise may differ, whose mean over the slice is near zero.
            assert abs(first.plane.mean() - other.plane.mean()) < 1.5
    assert moved > 10
    assert recoloured > 10
    assert 60 < exact < 120


def test_augmentation_keeps_slices_masks_and_neighbours_apart(sample):
    """The three kinds of layers of a slab come back as what they were, in order."""
    levels = (40.0, 120.0, 200.0)
    slab = tuple(
        dataclasses.replace(
            sample,
            plane=np.full_like(sample.plane, level),
            target=np.full_like(sample.target, number == 1),
            neighbour=np.full_like(sample.target, number == 2),
        )
        for number, level in enumerate(levels)
    )
    augment = Augmentation(1)
    for _ in range(20):
        found = augment(slab)
        means = [one.plane[8:16, 8:12].mean() for one in found]
        assert means == sorted(means)
        assert [one.target[12, 10] for one in found] == [False, True, False]
        assert [one.neighbour[12, 10] for one in found] == [False, False, True]


def test_augmentation_moves_image_and_masks_together(sample):
    bright = dataclasses.replace(
        sample,
        plane=np.where(sample.target, 200, 20).astype(np.float32),
        neighbour=sample.target,
    )
    augment = Augmentation(3)
    changed = 0
    for _ in range(30):
        (found,) = augment((bright,))
        assert found.plane.shape == found.target.shape == bright.target.shape
        assert found.plane.dtype == np.float32
        assert 0 <= found.plane.min() <= found.plane.max() <= 255
        assert np.array_equal(found.target, found.neighbour)
        assert found.plane[found.target].mean() > found.plane[~found.target].mean() + 40
        changed += not np.array_equal(found.target, bright.target)
    assert changed > 5


def test_augmentation_keeps_colours_apart_and_moves_them_alike(sample):
    """What red says of an outline, green and blue say too, each in its own shade."""
    shades = np.array([200.0, 120.0, 60.0], np.float32)
    colour = dataclasses.replace(
        sample, plane=sample.target[..., None] * shades + np.float32(10), neighbour=sample.target
    )
    augment = Augmentation(3)
    changed = 0
    for _ in range(30):
        slab = augment((colour, colour))
        for found in slab:
            assert found.plane.shape == (*colour.target.shape, 3)
            assert found.plane.dtype == np.float32
            red, green, blue = found.plane[found.target].mean(axis=0)
            assert red > green > blue
            assert (found.plane[found.target].mean(axis=0) > found.plane[~found.target].mean(axis=0)).all()
            assert np.array_equal(found.target, found.neighbour)
        assert np.array_equal(slab[0].target, slab[1].target)
        changed += not np.array_equal(slab[0].target, colour.target)
    assert changed > 5


def test_a_batch_may_mix_colour_and_grey(cases, view, rng):
    grey = cases[0]
    array = np.stack([grey.volume.array, grey.volume.array / 2, 0 * grey.volume.array], axis=-1)
    colour = dataclasses.replace(grey, volume=Volume(array, grey.volume.affine))
    prepared = [prepare_case(case, view, IMAGE, MASK) for case in (grey, colour)]
    assert prepared[1].planes.shape == (12, 24, 20, 3)
    batch = draw_batch(prepared, 16, 4, Augmentation(0), rng, slab=2)
    assert batch.planes.shape == (16, 3, IMAGE, IMAGE)
    in_colour = [one.plane.ndim == 3 for one in batch.samples]
    assert set(in_colour) == {True, False}
    for plane, found in zip(batch.planes, in_colour, strict=True):
        assert torch.equal(plane[0], plane[1]) is not found


def test_augmentation_never_mirrors(sample):
    ramp = np.linspace(0, 255, sample.plane.shape[0], dtype=np.float32)[:, None].repeat(20, axis=1)
    slope = dataclasses.replace(sample, plane=ramp)
    augment = Augmentation(0)
    for _ in range(40):
        plane = augment((slope,))[0].plane
        assert plane[12:, 10].mean() > plane[:12, 10].mean()


def test_a_filled_slice_gets_every_kind_of_prompt(sample, rng):
    prompts = draw_prompts(sample, 4, rng)
    label, click, box, carried = prompts
    assert label.label_id == 0
    assert (len(label.points), label.box_xyxy, label.mask_logits) == (0, None, None)
    assert sample.target[voxel(sample, click)]
    assert click.points[0][2] == 1
    assert click.mask_logits is None
    assert box.box_xyxy[0] < box.box_xyxy[2]
    assert box.box_xyxy[1] < box.box_xyxy[3]
    assert len(carried.points) == 1
    assert carried.box_xyxy is None


def test_carrying_mostly_goes_by_the_point_alone(sample, rng):
    carried = [draw_prompts(sample, 4, rng)[3] for _ in range(200)]
    shown = [prompt.mask_logits for prompt in carried if prompt.mask_logits is not None]
    assert 25 < len(shown) < 80
    assert {mask.shape for mask in shown} == {(MASK, MASK)}


def test_fewer_prompts_are_a_random_choice_of_the_kinds_and_more_repeat_the_click(sample, rng):
    drawn = [draw_prompts(sample, 1, rng)[0] for _ in range(60)]
    assert {(bool(found.points), found.box_xyxy is None, found.mask_logits is None) for found in drawn} == {
        (False, True, True),
        (True, True, True),
        (False, False, True),
        (True, True, False),
    }
    assert len(draw_prompts(sample, 6, rng)) == 6


def test_past_the_end_only_carrying_and_the_label_are_asked(sample, rng):
    prompts = draw_prompts(empty(sample, keep_neighbour=True), 4, rng)
    assert [len(prompt.points) for prompt in prompts] == [0, 1]
    assert [prompt.box_xyxy for prompt in prompts] == [None, None]


def test_far_from_the_object_only_the_label_is_asked(sample, rng):
    (prompt,) = draw_prompts(empty(sample, keep_neighbour=False), 4, rng)
    assert prompt.label_id == 0
    assert not prompt.points


def test_the_label_comes_with_about_half_of_the_clicks(sample, rng):
    given = [draw_prompts(sample, 4, rng)[1].label_id == 0 for _ in range(200)]
    assert 70 < sum(given) < 130


def test_a_batch_is_consistent(prepared, rng):
    batch = draw_batch(prepared, 6, 4, Augmentation(0), rng)
    assert batch.planes.shape == (6, 3, IMAGE, IMAGE)
    assert batch.targets.shape == (6, MASK, MASK)
    assert 0 <= batch.targets.min() <= batch.targets.max() <= 1
    assert len(batch.prompts) == len(batch.owners)
    assert sorted(set(batch.owners)) == list(range(6))
    for target, found in zip(batch.targets, batch.samples, strict=True):
        # 24 voxels fill 16 mask pixels: areas keep their size under resampling.
        assert target.sum().item() == pytest.approx(found.target.sum() * (16 / 24) ** 2, rel=0.02)


@pytest.mark.parametrize(
    ("slices", "slab", "depths"),
    [(6, 1, (1,) * 6), (8, 3, (3, 3, 3)), (8, 4, (4, 4)), (7, 3, (3, 3)), (1, 2, (2,)), (2, 5, (5,))],
)
def test_a_batch_is_made_of_slabs_and_about_as_long_as_asked(prepared, rng, slices, slab, depths):
    batch = draw_batch(prepared, slices, 4, Augmentation(0), rng, slab)
    assert batch.depths == depths
    assert sum(depths) == len(batch.planes) == len(batch.targets) == len(batch.samples)
    assert sorted(set(batch.owners)) == list(range(sum(depths)))


def test_planes_and_targets_of_a_batch_are_those_of_its_samples_in_order(prepared, rng):
    batch = draw_batch(prepared, 6, 4, Augmentation(0), rng, slab=3)
    for plane, target, found in zip(batch.planes, batch.targets, batch.samples, strict=True):
        alone = found.geometry.planes_to_model(torch.from_numpy(found.plane)[None])[0]
        torch.testing.assert_close(plane, alone)
        assert target.sum().item() == pytest.approx(found.target.sum() * (16 / 24) ** 2, rel=0.02)


def test_the_same_seed_gives_the_same_batch(prepared):
    first, second = (draw_batch(prepared, 4, 4, Augmentation(1), np.random.default_rng(1)) for _ in range(2))
    other = draw_batch(prepared, 4, 4, Augmentation(2), np.random.default_rng(2))
    assert torch.equal(first.planes, second.planes)
    assert [prompt.points for prompt in first.prompts] == [prompt.points for prompt in second.prompts]
    assert not torch.equal(first.planes, other.planes)


def answers(batch, value):
    return torch.full((len(batch.prompts), MASK, MASK), value)


def test_corrections_add_where_all_is_missed_and_keep_the_first_click(prepared, rng):
    batch = draw_batch(prepared, 6, 4, Augmentation(0), rng)
    prompts, owners = corrective_prompts(batch, answers(batch, -5.0), rng)
    clicks = [
        prompt
        for prompt, owner in zip(batch.prompts, batch.owners, strict=True)
        if prompt.points and prompt.mask_logits is None and batch.samples[owner].target.any()
    ]
    assert len(prompts) == len(clicks)
    assert len(clicks) > 2
    for first, second, owner in zip(clicks, prompts, owners, strict=True):
        assert second.points[0] == first.points[0]
        assert second.points[1][2] == 1
        assert batch.samples[owner].target[voxel(batch.samples[owner], second, 1)]
        assert second.label_id == first.label_id


def test_corrections_take_away_where_all_is_marked(prepared, rng):
    batch = draw_batch(prepared, 6, 4, Augmentation(0), rng)
    prompts, owners = corrective_prompts(batch, answers(batch, 5.0), rng)
    assert {prompt.points[1][2] for prompt in prompts} == {0}
    for prompt, owner in zip(prompts, owners, strict=True):
        assert not batch.samples[owner].target[voxel(batch.samples[owner], prompt, 1)]


def test_some_corrections_see_the_answer_they_correct(prepared, rng):
    batch = draw_batch(prepared, 40, 4, Augmentation(0), rng)
    prompts, _ = corrective_prompts(batch, answers(batch, -5.0), rng)
    seen = [prompt.mask_logits is not None for prompt in prompts]
    assert 0.2 < sum(seen) / len(seen) < 0.8


def test_a_perfect_answer_is_not_corrected(prepared, rng):
    full = [
        dataclasses.replace(case, labels=np.ones_like(case.labels), beyond={0: np.array([], dtype=int)})
        for case in prepared
    ]
    full = [dataclasses.replace(case, filled={0: np.arange(12)}) for case in full]
    batch = draw_batch(full, 3, 4, lambda found: found, rng)
    assert corrective_prompts(batch, answers(batch, 5.0), rng) == ([], [])


def marked(case, prompts):
    return dataclasses.replace(case, recorded={"object": prompts})


@pytest.fixture
def marked_case(cases, view):
    """Clicks on slice 6, one inside and one outside, and a box on slice 8."""
    prompts = PromptSet(((12, 10, 6),), ((2, 3, 6),), (Box((8, 6, 8), (16, 14, 9)),), "object")
    return prepare_case(marked(cases[0], prompts), view, IMAGE, MASK)


def test_what_the_annotator_marked_is_known_by_slice(marked_case):
    marks = marked_case.recorded[0]
    assert sorted(marks) == [6, 8]
    assert marks[6].points == ((12, 10, 1), (2, 3, 0))
    assert marks[8].box == (8, 6, 16, 14)


def test_marks_without_a_labels_name_are_for_the_only_label(cases, view):
    unnamed = dataclasses.replace(cases[0], recorded={"": PromptSet(((12, 10, 6),))})
    assert sorted(prepare_case(unnamed, view, IMAGE, MASK).recorded[0]) == [6]
    two = dataclasses.replace(view, labels={"object": 1, "other": 2})
    assert prepare_case(unnamed, two, IMAGE, MASK).recorded == {}


def test_the_annotators_prompts_are_asked_again_as_often_as_told(marked_case, rng):
    shares = (0.0, 0.5, 1.0)
    drawn = [[draw_slab([marked_case], 1, rng, None, share)[0] for _ in range(200)] for share in shares]
    asked = [sum(found.recorded is not None for found in slices) / 200 for slices in drawn]
    assert asked[0] == 0.0
    assert 0.4 < asked[1] < 0.6
    assert asked[2] == 1.0


@pytest.mark.parametrize(
    "prompts",
    [
        PromptSet(((12, 10, 12),)),
        PromptSet(((12, 20, 6),)),
        PromptSet(((12, 10, 6),), ((24, 0, 0),)),
        PromptSet(boxes=(Box((2, 2, 2), (8, 8, 13)),)),
    ],
)
def test_marks_beside_the_image_were_made_on_another(cases, view, prompts):
    assert cases[0].volume.shape_ijk == (24, 20, 12)
    within = dataclasses.replace(cases[0], recorded={"object": PromptSet(((12, 10, 6),))})
    beside = dataclasses.replace(cases[0], recorded={"object": prompts})
    assert prepare_case(within, view, IMAGE, MASK).recorded
    assert prepare_case(beside, view, IMAGE, MASK).recorded == {}


def test_a_recorded_click_is_a_prompt_where_it_was(marked_case, rng):
    for _ in range(20):
        (found,) = draw_slab([marked_case], 1, rng, None, 1.0)
        given, *others = draw_prompts(found, 4, rng)
        assert len(others) == 3
        if found.recorded.box is None:
            assert [voxel(found, given, number) for number in (0, 1)] == [(12, 10), (2, 3)]
            assert [label for *_, label in given.points] == [1, 0]
        else:
            edges = found.geometry.boxes_to_model(np.array([[8, 6, 16, 14]]))[0]
            assert given.box_xyxy == pytest.approx(tuple(edges))


def test_a_slab_with_recorded_prompts_is_recoloured_but_not_moved(marked_case, rng):
    augment = Augmentation(3)
    changed = 0
    for _ in range(20):
        slab = draw_slab([marked_case], 2, rng, None, 1.0)
        seen = augment(slab)
        assert all(np.array_equal(a.target, b.target) for a, b in zip(slab, seen, strict=True))
        changed += not np.allclose(slab[0].plane, seen[0].plane)
    assert changed > 5


def test_cases_are_drawn_by_their_weights(prepared, rng):
    drawn = [draw_slab(prepared, 1, rng, (0.0, 0.0, 1.0, 0.0)) for _ in range(20)]
    assert all(places_of(slab, prepared)[0] is prepared[2] for slab in drawn)


def mirrored(view, *axes):
    return dataclasses.replace(view, flips=axes)


@pytest.mark.parametrize(
    ("axes", "expected"), [(("i",), ("u",)), (("j",), ("v",)), (("i", "j", "k"), ("u", "v")), (("k",), ())]
)
def test_only_the_axes_of_a_slice_can_be_mirrored(cases, view, axes, expected):
    assert prepare_case(cases[0], mirrored(view, *axes), IMAGE, MASK).flips == expected


def test_where_the_task_allows_it_slices_are_mirrored(cases, view, rng):
    """A ramp along u falls about as often as it rises, with its mask; along v it never does."""
    ramp = np.broadcast_to(np.linspace(0, 100, 24, dtype=np.float32)[:, None, None], (24, 20, 12)).copy()
    label = np.zeros((24, 20, 12), np.uint8)
    label[16:, :10] = 1
    case = dataclasses.replace(cases[0], volume=Volume(ramp, cases[0].volume.affine), label=label)
    prepared = prepare_case(case, mirrored(view, "i"), IMAGE, MASK)
    augment, falling = Augmentation(0), 0
    for _ in range(60):
        (found,) = augment(draw_slab([prepared], 1, rng))
        left, right = found.target[:12].sum(), found.target[12:].sum()
        falls = found.plane[6:10].mean() > found.plane[14:18].mean()
        assert (left > right) == falls
        assert found.target[:, :10].sum() > found.target[:, 10:].sum()
        falling += falls
    assert 15 < falling < 45
