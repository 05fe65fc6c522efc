"""What an annotator meets click by click: corrections, masks, several labels, colleagues. A rule is the model."""

import threading
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from lib.embeddings import EmbeddingCache
from lib.errors import BusyError, ClientGoneError, NotFoundError
from lib.model.base import BaseSpec, build_sam
from lib.model.decoder import BOX_START, BOX_STOP, NEGATIVE, POSITIVE
from lib.model.medsa import Masks, MedSA, PlanePrompts
from lib.predictor import LabelPrediction, Prediction, Predictor
from lib.prompts.promptset import Box, MaskPrompt, PromptSet, Voxel
from lib.prompts.simulate import interior_depth
from lib.settings import IntensitySettings
from lib.turns import Asker, DeviceTurns
from lib.volume import Volume

WINDOW = IntensitySettings(kind="window", window_hu=(0.0, 255.0))
SPEC = BaseSpec("rule", 128, 16, 16, 1, 1, (0,), 2)
SIDE = SPEC.mask_size  # of the slices here: a voxel is a pixel of the mask, unless a test says otherwise
SLICE_BYTES = 256 * SPEC.grid**2 * 2
FAR = 10  # slices
PATIENCE_S = 30.0


class Rules(MedSA):
    """Segments what is brighter than its label's level and connected to a positive click, or lies in the box.

    A negative click takes a square of 9 mask pixels away. What it says is as sure as its label's `logits`. An embedding
    is the image itself, rearranged; `encoded` counts slices, `sizes` those decoded together.
    """

    def __init__(
        self,
        labels: tuple[str, ...] = ("object",),
        levels: tuple[float, ...] = (127.0,),
        logits: tuple[float, ...] = (6.0,),
    ) -> None:
        super().__init__(build_sam(SPEC), SPEC, None, labels)
        self.trained = True
        self.levels, self.logit_of = levels, logits
        self.encoded = 0
        self.sizes: list[int] = []

    def encode(self, planes: Tensor, depths: object = None) -> Tensor:
        self.encoded += len(planes)
        return torch.nn.functional.pixel_unshuffle(planes[:, :1].float(), self.spec.patch_size)

    def decode(self, embeddings: Tensor, prompts: PlanePrompts) -> Masks:
        self.sizes.append(len(prompts))
        assert prompts.label_ids is not None
        images = torch.nn.functional.pixel_shuffle(embeddings, self.spec.patch_size)
        shades = torch.nn.functional.avg_pool2d(images, 4)[:, 0].numpy()
        planes = []
        for row, label in enumerate(prompts.label_ids.tolist()):
            inside = self._inside(shades[row] > self.levels[label], prompts, row)
            planes.append(np.where(inside, self.logit_of[label], -self.logit_of[label]))
        logits = torch.from_numpy(np.stack(planes).astype(np.float32))
        return Masks(logits[:, None].repeat(1, 4, 1, 1), torch.full((len(planes), 4), 0.9))

    def _inside(self, bright: np.ndarray, prompts: PlanePrompts, row: int) -> np.ndarray:
        pixels = ((prompts.points_xy[row].numpy() + 0.5) / 4).astype(int)
        labels = prompts.point_labels[row].tolist()
        inside = bright.copy()
        clicked = [(x, y) for (x, y), label in zip(pixels, labels, strict=True) if label == POSITIVE]
        if BOX_START in labels:
            (x0, y0), (x1, y1) = pixels[labels.index(BOX_START)], pixels[labels.index(BOX_STOP)]
            inside[:] = False
            inside[y0:y1, x0:x1] = bright[y0:y1, x0:x1]
        elif clicked:
            regions, _ = ndimage.label(bright)
            inside = np.isin(regions, [regions[y, x] for x, y in clicked if regions[y, x]])
        for (x, y), label in zip(pixels, labels, strict=True):
            if label == NEGATIVE:
                inside[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = False
        return inside


def predictor_of(
    model: MedSA | None = None,
    axis: str = "k",
    cache: EmbeddingCache | None = None,
    turns: DeviceTurns | None = None,
) -> Predictor:
    cache = EmbeddingCache(1 << 26) if cache is None else cache
    return Predictor(model or Rules(), "key", WINDOW, axis, cache, turns=turns)  # type: ignore[arg-type]


def volume_of(array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Volume:
    return Volume(array.astype(np.float32), np.diag([*spacing, 1.0]))


def column(radius: float, slices: range, x: float = 16.0, y: float = 16.0, count: int = 40) -> np.ndarray:
    """(SIDE, SIDE, count) bool: a disc on each of `slices`."""
    i, j, k = np.ogrid[:SIDE, :SIDE, :count]
    return ((i - x) ** 2 + (j - y) ** 2 <= radius**2) & (k >= slices.start) & (k < slices.stop)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    both = np.count_nonzero((first > 0) & (second > 0))
    return 2 * both / max(1, np.count_nonzero(first) + np.count_nonzero(second))


def filled(mask: np.ndarray, axis: int = 2) -> list[int]:
    return np.flatnonzero(np.moveaxis(mask, axis, 0).any(axis=(1, 2))).tolist()


def differing(first: np.ndarray, second: np.ndarray, axis: int = 2) -> list[int]:
    return filled(first != second, axis)


def same(first: Prediction | LabelPrediction, second: Prediction | LabelPrediction) -> bool:
    if isinstance(first, Prediction) and isinstance(second, Prediction):
        return np.array_equal(first.mask, second.mask) and first.quality == second.quality
    return np.array_equal(first.mask, second.mask)


OBJECT = range(4, 36)
BODY, LEAK = column(7.0, OBJECT), column(5.5, range(12, 27), x=26.0)
LEAKY = volume_of(200.0 * (BODY | LEAK))
START: Voxel = (16, 16, 20)
IN_LEAK: Voxel = (28, 16, 20)
# A first click, a wrong one that is taken back, and corrections of both signs.
CONVERSATION = (
    PromptSet((START,)),
    PromptSet((START,), (IN_LEAK,)),
    PromptSet((START,), (IN_LEAK, (12, 11, 33))),
    PromptSet((START,), (IN_LEAK,)),
    PromptSet((START, (27, 16, 24)), (IN_LEAK,)),
)


def converse(predictor: Predictor, asker: Asker | None = None) -> list[Prediction]:
    return [predictor.predict(LEAKY, prompts, asker=asker) for prompts in CONVERSATION]


# Conversations


def test_the_same_conversation_gives_the_same_answers() -> None:
    predictor = predictor_of()
    first = converse(predictor)
    assert all(map(same, first, converse(predictor)))
    assert all(map(same, first, converse(predictor_of())))
    assert len({answer.mask.tobytes() for answer in first}) == 4


def test_the_same_prompts_again_give_the_same_mask_without_the_model() -> None:
    model = Rules()
    predictor = predictor_of(model)
    predictor.predict(LEAKY, CONVERSATION[0])
    first = predictor.predict(LEAKY, CONVERSATION[1])
    calls = len(model.sizes)
    assert same(predictor.predict(LEAKY, CONVERSATION[1]), first)
    assert len(model.sizes) == calls


def test_taking_a_click_back_gives_the_mask_from_before_it() -> None:
    answers = converse(predictor_of())
    assert same(answers[3], answers[1])
    assert not same(answers[2], answers[1])


def test_a_correction_reaches_the_neighbours_that_make_the_same_error() -> None:
    before, after = (answer.mask for answer in converse(predictor_of())[:2])
    assert before[IN_LEAK] == 1
    changed = differing(before, after)
    assert changed == list(range(14, 27))
    assert not after[28, 16, 14:27].any()
    assert np.array_equal(after[:22], BODY[:22] | LEAK[:22])


def test_a_correction_after_an_answer_with_nothing_is_like_a_first_click() -> None:
    predictor = predictor_of()
    away = (2, 2, 22)
    empty = predictor.predict(LEAKY, PromptSet((), (away,)))
    assert not empty.mask.any()
    assert same(
        predictor.predict(LEAKY, PromptSet((START,), (away,))),
        predictor_of().predict(LEAKY, PromptSet((START,), (away,))),
    )


def test_clients_do_not_share_conversations() -> None:
    shared = predictor_of()
    ann, bob = Asker("ann"), Asker("bob")
    shared.predict(LEAKY, CONVERSATION[0], asker=ann)
    corrected = shared.predict(LEAKY, CONVERSATION[1], asker=ann)
    fresh = predictor_of().predict(LEAKY, CONVERSATION[1])
    assert not same(corrected, fresh), (
        "without an earlier answer only the clicked slice hears a negative click"
    )
    assert same(shared.predict(LEAKY, CONVERSATION[1], asker=bob), fresh)
    assert same(shared.predict(LEAKY, CONVERSATION[1], asker=ann), corrected)


def test_volumes_and_labels_do_not_share_conversations() -> None:
    shared = predictor_of(Rules(("a", "b"), (127.0, 127.0), (6.0, 6.0)))
    other = volume_of(200.0 * column(6.0, OBJECT))
    shared.predict(LEAKY, PromptSet((START,), label="a"))
    shared.predict(other, PromptSet((START,), label="a"))
    asked = PromptSet((START,), (IN_LEAK,), label="b")
    fresh = predictor_of(Rules(("a", "b"), (127.0, 127.0), (6.0, 6.0))).predict(LEAKY, asked)
    assert same(shared.predict(LEAKY, asked), fresh)


# Far slices


PLACES = st.tuples(st.integers(0, SIDE - 1), st.integers(0, SIDE - 1), st.integers(0, 39))
FIRST_ANSWER = predictor_of().predict(LEAKY, PromptSet((START,))).mask


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(PLACES, st.booleans()), min_size=1, max_size=4))
def test_a_correction_leaves_far_slices_as_they_were(clicks: list[tuple[Voxel, bool]]) -> None:
    """Wherever it is; unless it says that the object ends on its slice, which is another test's."""
    predictor = predictor_of(cache=SHARED_CACHE)
    positive, negative = [START], []
    before = predictor.predict(LEAKY, PromptSet((START,))).mask
    assert np.array_equal(before, FIRST_ANSWER)
    for place, is_positive in clicks:
        (positive if is_positive else negative).append(place)
        after = predictor.predict(LEAKY, PromptSet(tuple(positive), tuple(negative))).mask
        k = place[2]
        if before[..., k].any() and not after[..., k].any():
            return
        shown = [index for index in filled(before) if abs(index - k) > FAR]
        assert np.array_equal(after[..., shown], before[..., shown])
        before = after


SHARED_CACHE = EmbeddingCache(1 << 26)


@pytest.mark.parametrize("k", [4, 6, 13, 20, 27, 35])
@pytest.mark.parametrize("is_positive", [True, False])
def test_a_correction_anywhere_changes_its_own_slice_and_no_far_one(k: int, is_positive: bool) -> None:
    predictor = predictor_of()
    before = predictor.predict(LEAKY, PromptSet((START,))).mask
    place = (25, 24, k) if is_positive else (12, 11, k)
    after = predictor.predict(
        LEAKY, PromptSet((START, place), ()) if is_positive else PromptSet((START,), (place,))
    ).mask
    assert (before[place], after[place]) == (not is_positive, is_positive)
    changed = differing(before, after)
    assert k in changed
    assert max(abs(index - k) for index in changed) <= FAR


def test_a_slice_with_a_spot_alone_outlives_corrections_far_away() -> None:
    """A click where the model sees nothing is a pixel or so; a later correction elsewhere must not sweep it away."""
    predictor = predictor_of()
    spots = ((3, 3, 38), (3, 28, 2))
    positive = (START, *spots)
    predictor.predict(LEAKY, PromptSet((START,)))
    for negative in ((), (IN_LEAK,), (IN_LEAK, (12, 11, 30))):
        mask = predictor.predict(LEAKY, PromptSet(positive, negative)).mask
        assert all(mask[spot] for spot in spots)


# Negative clicks


@pytest.mark.parametrize("k", [10, 30])
def test_a_click_deep_in_the_object_ends_it_on_its_slice(k: int) -> None:
    predictor = predictor_of()
    before = predictor.predict(LEAKY, PromptSet((START,))).mask
    after = predictor.predict(LEAKY, PromptSet((START,), ((16, 16, k),))).mask
    kept = list(range(k + 1, 36)) if k < START[2] else list(range(4, k))
    assert filled(after) == kept
    far = [index for index in kept if abs(index - k) > FAR]
    assert np.array_equal(after[..., far], before[..., far])


@pytest.mark.parametrize("k", [10, 30])
def test_a_shallow_click_trims(k: int) -> None:
    place = (11, 12, k)
    inside = BODY[..., k]
    depth = interior_depth(inside)
    assert 0 < depth[place[:2]] < 0.5 * depth.max()
    predictor = predictor_of()
    before = predictor.predict(LEAKY, PromptSet((START,))).mask
    after = predictor.predict(LEAKY, PromptSet((START,), (place,))).mask
    assert filled(after) == filled(before)
    assert after[place] == 0
    assert 0.5 < dice(after[..., k], before[..., k]) < 1


def test_a_negative_click_beside_a_positive_one_never_ends_the_object() -> None:
    predictor = predictor_of()
    predictor.predict(LEAKY, PromptSet((START,)))
    after = predictor.predict(LEAKY, PromptSet((START,), ((17, 17, 20),))).mask
    assert (after[START], after[17, 17, 20]) == (1, 0)
    assert filled(after) == list(OBJECT)


# Masks


SENT = column(8.0, range(6, 38))  # one voxel too wide everywhere, and two slices longer than what can be seen
PLAIN = volume_of(200.0 * BODY)


def test_a_mask_alone_is_refined_and_keeps_what_the_model_would_lose() -> None:
    answer = predictor_of().predict(PLAIN, PromptSet(mask=MaskPrompt(SENT)))
    assert answer.slices == tuple(range(6, 38))
    for k in range(6, 36):
        assert np.array_equal(answer.mask[..., k], BODY[..., k])
        assert dice(answer.mask[..., k], SENT[..., k]) >= 0.5
    assert np.array_equal(answer.mask[..., 36:], SENT[..., 36:])


def test_a_slice_that_the_model_sees_quite_differently_stays_as_it_was_sent() -> None:
    """Far larger than the bright object: the model's own answer would be another object."""
    sent = column(14.0, range(6, 9))
    answer = predictor_of().predict(PLAIN, PromptSet(mask=MaskPrompt(sent)))
    assert np.array_equal(answer.mask, sent)


@pytest.mark.parametrize("k", [8, 20, 34])
@pytest.mark.parametrize("is_positive", [True, False])
def test_with_a_click_a_mask_stays_to_the_voxel_far_from_it(k: int, is_positive: bool) -> None:
    place = (16, 27, k) if is_positive else (11, 11, k)
    prompts = PromptSet(*(((place,), ()) if is_positive else ((), (place,))), mask=MaskPrompt(SENT))
    answer = predictor_of().predict(PLAIN, prompts).mask
    assert bool(answer[place]) is is_positive
    changed = differing(answer, SENT)
    assert k in changed
    assert max(abs(index - k) for index in changed) <= FAR


def test_clicks_add_up_on_a_mask_too() -> None:
    predictor, mask = predictor_of(), MaskPrompt(SENT)
    first, second = (11, 11, 9), (16, 27, 33)
    before = predictor.predict(PLAIN, PromptSet((), (first,), mask=mask)).mask
    after = predictor.predict(PLAIN, PromptSet((second,), (first,), mask=MaskPrompt(SENT.copy()))).mask
    assert (after[first], after[second]) == (0, 1)
    assert min(differing(before, after)) > 33 - FAR


def test_a_deep_negative_click_empties_the_masks_slice_and_no_other() -> None:
    answer = predictor_of().predict(PLAIN, PromptSet((), ((16, 16, 20),), mask=MaskPrompt(SENT))).mask
    assert not answer[..., 20].any()
    assert differing(answer, SENT) == [20]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_on_an_anisotropic_grid_along_any_axis(axis: int) -> None:
    spacing = tuple(3.0 if other == axis else 1.0 for other in range(3))
    body, sent = (np.moveaxis(array, 2, axis) for array in (BODY, SENT))
    volume = volume_of(200.0 * body, spacing)
    point = np.insert([11, 11], axis, 9).tolist()
    refined = predictor_of(axis="auto").predict(volume, PromptSet(mask=MaskPrompt(sent))).mask
    expected = np.moveaxis(np.concatenate([BODY[..., :36], SENT[..., 36:]], axis=2), 2, axis).copy()
    np.moveaxis(expected, axis, 2)[..., :6] = False
    assert np.array_equal(refined, expected)
    clicked = predictor_of(axis="auto").predict(volume, PromptSet((), (tuple(point),), mask=MaskPrompt(sent)))
    changed = differing(clicked.mask, sent, axis)
    assert 9 in changed
    assert max(changed) <= 9 + FAR


FINE = np.zeros((128, 128, 24), dtype=bool)  # four voxels to a pixel of the mask along both sides
FINE[64, 20:100, :12] = True  # a vessel, a voxel wide
FINE[70, 70, 12:] = True  # its end, a voxel a slice
FINE_VOLUME = volume_of(np.zeros(FINE.shape))


def test_a_mask_too_fine_for_the_model_survives_alone() -> None:
    assert np.array_equal(predictor_of().predict(FINE_VOLUME, PromptSet(mask=MaskPrompt(FINE))).mask, FINE)


@pytest.mark.parametrize("k", [3, 14])
@pytest.mark.parametrize("is_positive", [True, False])
def test_a_mask_too_fine_for_the_model_survives_a_click(k: int, is_positive: bool) -> None:
    place = (100, 100, k) if is_positive else ((64, 22, k) if k < 12 else (70, 70, k))
    prompts = PromptSet(*(((place,), ()) if is_positive else ((), (place,))), mask=MaskPrompt(FINE))
    answer = predictor_of().predict(FINE_VOLUME, prompts).mask
    assert bool(answer[place]) is is_positive
    assert all(abs(index - k) <= FAR for index in differing(answer, FINE))
    assert set(filled(FINE)) - set(filled(answer)) <= {k}


def test_a_mask_and_a_box_the_box_is_asked_and_bounds_the_mask() -> None:
    box = Box((10, 6, 10), (30, 26, 31))
    answer = predictor_of().predict(PLAIN, PromptSet(boxes=(box,), mask=MaskPrompt(SENT)))
    window = np.zeros(SENT.shape, dtype=bool)
    window[8:32, 4:28, 10:31] = True
    middle = 20
    assert answer.slices == tuple(range(10, 31))
    assert np.array_equal(answer.mask[10:30, 6:26, middle], BODY[10:30, 6:26, middle]), "asked anew"
    others = [k for k in range(40) if k != middle]
    assert np.array_equal(answer.mask[..., others], (SENT & window)[..., others])


# One slice


@pytest.mark.parametrize(
    "prompts",
    [
        PromptSet((START, (16, 16, 10)), ((11, 11, 20), (11, 11, 30))),
        PromptSet((START,), boxes=(Box((5, 5, 3), (28, 28, 30)),)),
        PromptSet(mask=MaskPrompt(SENT)),
        PromptSet((START, (16, 16, 10)), mask=MaskPrompt(SENT)),
        PromptSet((), ((11, 11, 20), (11, 11, 30)), mask=MaskPrompt(SENT)),
        PromptSet((START,), boxes=(Box((5, 5, 3), (28, 28, 30)),), mask=MaskPrompt(SENT)),
    ],
    ids=["clicks", "box", "mask", "mask and clicks", "mask and negatives", "everything"],
)
def test_only_the_wanted_slice_is_answered(prompts: PromptSet) -> None:
    answer = predictor_of().predict(PLAIN, prompts, whole_object=False, only_slice=20)
    assert answer.slices == (20,)
    assert filled(answer.mask) == [20]
    assert dice(answer.mask[..., 20], BODY[..., 20]) > 0.7


def test_nothing_is_answered_on_a_slice_without_marks() -> None:
    answer = predictor_of().predict(PLAIN, PromptSet((START,)), whole_object=False, only_slice=21)
    assert answer.slices == ()
    assert not answer.mask.any()


def test_slices_and_objects_are_different_conversations() -> None:
    predictor = predictor_of()
    predictor.predict(PLAIN, PromptSet((START,)), whole_object=False, only_slice=20)
    assert filled(predictor.predict(PLAIN, PromptSet((START,))).mask) == list(OBJECT)
    assert filled(predictor.predict(PLAIN, PromptSet((START,)), whole_object=False, only_slice=20).mask) == [
        20
    ]


def test_clicks_on_one_slice_correct_it() -> None:
    predictor = predictor_of()
    positive, negative = (START,), (IN_LEAK,)
    predictor.predict(LEAKY, PromptSet(positive), whole_object=False, only_slice=20)
    answer = predictor.predict(LEAKY, PromptSet(positive, negative), whole_object=False, only_slice=20)
    assert (answer.mask[START], answer.mask[IN_LEAK]) == (1, 0)
    assert answer.slices == (20,)


# Several labels


INNER, OUTER = column(3.0, range(12, 29)), column(9.0, OBJECT)
NESTED = volume_of(np.where(INNER, 220.0, np.where(OUTER, 110.0, 0.0)))
RING: Voxel = (8, 16, 22)
NAMES = ("organ", "tumour")


def nested(organ: float = 4.0, tumour: float = 7.0) -> Rules:
    return Rules(NAMES, (70.0, 165.0), (organ, tumour))


def labelled(positive: dict[str, Sequence[Voxel]]) -> dict[str, PromptSet]:
    """As the parser gives them: what is marked as one label is none of the others."""
    return {
        name: PromptSet(
            tuple(points),
            tuple(p for other in positive if other != name for p in positive[other]),
            label=name,
        )
        for name, points in positive.items()
    }


def test_of_two_labels_the_surer_one_gets_the_voxel() -> None:
    marked = labelled({"organ": [RING], "tumour": [START]})
    answer = predictor_of(nested()).predict_labels(NESTED, marked)
    assert answer.mask.dtype == np.uint8
    assert set(np.unique(answer.mask)) == {0, 1, 2}
    assert np.array_equal(answer.mask == 2, INNER)
    assert dice(answer.mask == 1, OUTER & ~INNER) > 0.97
    other = predictor_of(nested(organ=7.0, tumour=4.0)).predict_labels(NESTED, marked)
    elsewhere = [k for k in range(40) if k != START[2]]
    assert not (other.mask[..., elsewhere] == 2).any()
    assert np.array_equal(other.mask[..., elsewhere] > 0, OUTER[..., elsewhere])


@pytest.mark.parametrize("logits", [(4.0, 7.0), (7.0, 4.0), (5.0, 5.0), (30.0, 2.0), (2.0, 30.0)])
def test_every_click_is_in_its_own_label(logits: tuple[float, float]) -> None:
    clicks = {"organ": [RING, (16, 16, 14), (16, 24, 30)], "tumour": [START, (16, 18, 25), (9, 17, 22)]}
    answer = predictor_of(nested(*logits)).predict_labels(NESTED, labelled(clicks))
    for value, name in enumerate(NAMES, start=1):
        assert [int(answer.mask[point]) for point in clicks[name]] == [value] * 3


def test_another_labels_click_in_the_middle_of_an_object_does_not_end_it() -> None:
    answer = predictor_of(nested()).predict_labels(
        NESTED, labelled({"organ": [(16, 24, 8)], "tumour": [START]})
    )
    assert filled(answer.mask == 1) == list(OBJECT)
    later = predictor_of(nested())
    later.predict_labels(NESTED, labelled({"organ": [(16, 24, 8)]}))
    answer = later.predict_labels(NESTED, labelled({"organ": [(16, 24, 8)], "tumour": [START]}))
    assert filled(answer.mask == 1) == list(OBJECT)


def test_a_click_on_background_still_ends_an_object_among_several() -> None:
    marked = labelled({"organ": [(16, 24, 8)], "tumour": [START]})
    marked["organ"] = PromptSet(
        marked["organ"].positive_ijk, (*marked["organ"].negative_ijk, (16, 16, 32)), label="organ"
    )
    answer = predictor_of(nested()).predict_labels(NESTED, marked)
    assert filled(answer.mask == 1) == list(range(4, 32))


def test_values_follow_the_order_of_the_labels() -> None:
    marked = labelled({"organ": [RING], "tumour": [START]})
    forth = predictor_of(nested()).predict_labels(NESTED, marked)
    back = predictor_of(nested()).predict_labels(NESTED, {name: marked[name] for name in reversed(NAMES)})
    assert list(forth.objects) == ["organ", "tumour"]
    assert list(back.objects) == ["tumour", "organ"]
    assert np.array_equal(np.array([0, 2, 1], dtype=np.uint8)[back.mask], forth.mask)
    assert forth.objects["tumour"].slices == tuple(range(12, 29))
    assert forth.objects["organ"].quality == dict.fromkeys(OBJECT, pytest.approx(0.9))


def test_labels_without_clicks() -> None:
    model = nested()
    answer = predictor_of(model).automatic_labels(NESTED, NAMES)
    assert np.array_equal(answer.mask == 2, INNER)
    assert np.array_equal(answer.mask > 0, OUTER)
    assert answer.objects["organ"].slices == tuple(OBJECT)
    assert answer.objects["tumour"].slices == tuple(range(12, 29))
    assert answer.seconds.keys() == {"wait", "encode", "decode", "total"}
    assert max(model.sizes) <= 8
    alone = predictor_of(nested()).automatic_labels(NESTED, ["tumour"])
    assert np.array_equal(alone.mask == 1, INNER)


def test_labels_that_nobody_knows_are_refused_without_clicks_too() -> None:
    predictor = predictor_of(nested())
    with pytest.raises(NotFoundError, match=r"label: 'heart' .* organ, tumour"):
        predictor.automatic_labels(NESTED, ["organ", "heart"])
    assert predictor.automatic_labels(NESTED, ["organ"]).mask.any()


# Warming


def test_warming_begins_at_the_slice_that_is_looked_at() -> None:
    predictor = predictor_of()
    embeddings = predictor._encoder.open(PLAIN, "k")
    missing: list[set[int]] = []

    def still() -> bool:
        missing.append(set(embeddings.missing(range(40))))
        return True

    predictor.warm(PLAIN, 22, Asker("warm", background=True), still)
    missing.append(set(embeddings.missing(range(40))))
    order = [sorted(before - after) for before, after in pairwise(missing)]
    assert order == [list(range(first, first + 8)) for first in (16, 24, 8, 32, 0)]


@pytest.mark.parametrize(("near", "first"), [(None, 16), (0, 0), (39, 32)])
def test_warming_ends_when_it_is_not_wanted_any_more(near: int | None, first: int) -> None:
    model = Rules()
    predictor = predictor_of(model)
    answers = iter([True, False])
    predictor.warm(PLAIN, near, Asker("warm", background=True), lambda: next(answers))
    assert predictor.warmed(PLAIN) == (8, 40)
    assert not predictor._encoder.open(PLAIN, "k").missing(range(first, first + 8))
    assert model.encoded == 8


def test_on_a_warm_volume_a_click_encodes_nothing() -> None:
    model = Rules()
    predictor = predictor_of(model)
    assert predictor.warmed(PLAIN) == (0, 40)
    predictor.warm(PLAIN, None, Asker("warm", background=True))
    assert predictor.warmed(PLAIN) == (40, 40)
    assert model.encoded == 40
    answer = predictor.predict(PLAIN, PromptSet((START,)))
    assert model.encoded == 40
    assert answer.seconds["encode"] == 0
    assert same(answer, predictor_of().predict(PLAIN, PromptSet((START,))))
    predictor.warm(PLAIN, 3, Asker("warm", background=True))
    assert model.encoded == 40


def test_a_cache_that_is_too_small_keeps_the_nearest_slices() -> None:
    model = Rules()
    predictor = predictor_of(model, cache=EmbeddingCache(16 * SLICE_BYTES))
    predictor.warm(PLAIN, 22, Asker("warm", background=True))
    assert model.encoded <= 24
    assert predictor.warmed(PLAIN) == (16, 40)
    off = Rules()
    predictor_of(off, cache=EmbeddingCache(0)).warm(PLAIN, 22, Asker("warm", background=True))
    assert off.encoded <= 8


def test_clicks_come_between_the_chunks_of_warming() -> None:
    model, turns = Rules(), DeviceTurns()
    predictor = predictor_of(model, turns=turns)
    found: list[Prediction] = []

    def click() -> bool:
        if not found:
            found.append(predictor.predict(PLAIN, PromptSet((START,)), whole_object=False, only_slice=20))
        return True

    predictor.warm(PLAIN, 0, Asker("warm", background=True), click)
    assert filled(found[0].mask) == [20]
    assert model.encoded == 40


# On the voxels


@pytest.mark.parametrize(
    ("positive", "negative"),
    [((40, 40), (41, 40)), ((41, 41), (40, 41)), ((90, 20), (90, 21)), ((127, 127), (126, 127))],
)
def test_clicks_closer_than_a_pixel_of_the_mask_are_both_honoured(
    positive: tuple[int, int], negative: tuple[int, int]
) -> None:
    volume = volume_of(200.0 * np.pad(np.ones((60, 60, 5)), ((10, 58), (10, 58), (0, 0))))
    predictor = predictor_of()
    for prompts in (
        PromptSet(((*positive, 2),), ((*negative, 2),)),
        PromptSet(((*positive, 2), (30, 30, 1)), ((*negative, 2),)),
    ):
        mask = predictor.predict(volume, prompts).mask
        assert (mask[(*positive, 2)], mask[(*negative, 2)]) == (1, 0)


def test_contradicting_clicks_in_one_place_stay_so_when_corrections_come() -> None:
    """A positive click that the mask's pixels cannot show is still there after a correction elsewhere."""
    volume = volume_of(np.zeros((128, 128, 12)))
    predictor = predictor_of()
    for extra in ((), ((5, 5, 2),), ((5, 5, 2), (90, 90, 10))):
        mask = predictor.predict(volume, PromptSet(((64, 64, 6), *extra), ((65, 64, 6),))).mask
        assert (mask[64, 64, 6], mask[65, 64, 6]) == (1, 0)
        assert all(mask[point] for point in extra)


def test_a_box_cuts_to_the_voxel() -> None:
    """Everything is bright: the mask of every slice that the box covers is the box and its margin."""
    volume = volume_of(np.full((100, 77, 12), 200.0))
    box = Box((11, 10, 3), (84, 61, 9))
    mask = predictor_of().predict(volume, PromptSet(((40, 30, 4),), boxes=(box,))).mask
    expected = np.zeros(mask.shape, dtype=np.uint8)
    expected[4:91, 5:66, 3:9] = 1
    # On slice 5 the box itself is asked, and answered without its margin.
    carried = [3, 4, 6, 7, 8]
    assert np.array_equal(mask[..., carried], expected[..., carried])
    assert not mask[expected == 0].any()


# Several at once


def test_a_deadline_that_passes_is_said_and_the_next_request_is_answered() -> None:
    turns = DeviceTurns()
    predictor = predictor_of(turns=turns)
    with turns.turn(Asker("somebody else")), pytest.raises(BusyError) as caught:
        predictor.predict(PLAIN, PromptSet((START,)), asker=Asker("ann", deadline=time.monotonic() + 0.05))
    assert caught.value.retry_after_s >= 1
    assert same(
        predictor.predict(PLAIN, PromptSet((START,)), asker=Asker("ann")),
        predictor_of().predict(PLAIN, PromptSet((START,))),
    )


@pytest.mark.parametrize("ask", ["predict", "predict_labels", "automatic_labels"])
def test_who_has_left_is_not_answered_and_holds_nobody_up(ask: str) -> None:
    predictor = predictor_of(nested())
    asker = Asker("ann")
    asker.gone.set()
    arguments = {
        "predict": PromptSet((START,), label="organ"),
        "predict_labels": labelled({"organ": [RING]}),
        "automatic_labels": ["organ"],
    }
    with pytest.raises(ClientGoneError):
        getattr(predictor, ask)(NESTED, arguments[ask], asker=asker)
    assert getattr(predictor, ask)(NESTED, arguments[ask], asker=Asker("ann")).mask.any()


class Leaving(Rules):
    """Its client leaves while the first chunk is encoded."""

    def __init__(self, asker: Asker) -> None:
        super().__init__()
        self.asker = asker

    def encode(self, planes: Tensor, depths: object = None) -> Tensor:
        self.asker.gone.set()
        return super().encode(planes, depths)


def test_who_leaves_in_the_middle_frees_the_device_and_leaves_no_answer() -> None:
    asker = Asker("ann")
    model = Leaving(asker)
    predictor = predictor_of(model)
    with pytest.raises(ClientGoneError):
        predictor.predict(LEAKY, CONVERSATION[1], asker=asker)
    assert model.encoded == 8
    predictor.predict(LEAKY, CONVERSATION[0], asker=Asker("ann"))
    corrected = predictor.predict(LEAKY, CONVERSATION[1], asker=Asker("ann"))
    assert same(corrected, converse(predictor_of())[1])


def test_eight_colleagues_get_what_each_would_get_alone() -> None:
    volumes = [volume_of(200.0 * (column(5.0 + number, OBJECT) | LEAK)) for number in range(4)]

    def answers(predictor: Predictor, number: int) -> list[Prediction]:
        asker = Asker(f"client {number}")
        middle = (16, 16, 14 + 2 * number)
        steps = [PromptSet((middle,)), PromptSet((middle,), (IN_LEAK,)), PromptSet((middle,))]
        return [predictor.predict(volumes[number % 4], prompts, asker=asker) for prompts in steps]

    alone = [answers(predictor_of(), number) for number in range(8)]
    # Room for one volume of the four: slices are pushed out while others still use them.
    shared = predictor_of(cache=EmbeddingCache(40 * SLICE_BYTES))
    together: dict[int, list[Prediction]] = {}

    def work(number: int) -> None:
        together[number] = answers(shared, number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(together) == list(range(8))
    for number in range(8):
        assert all(map(same, together[number], alone[number]))
    assert len({answer.mask.tobytes() for steps in alone for answer in steps}) > 8
