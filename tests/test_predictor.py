"""The predictor: a rule in the model's place where the answer must be known, real networks elsewhere."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

import lib
from lib.bases import catalog
from lib.embeddings import EmbeddingCache
from lib.errors import NotFoundError
from lib.model.base import BaseSpec, build_sam, load_base
from lib.model.decoder import BOX_START, BOX_STOP, NEGATIVE, POSITIVE
from lib.model.medsa import Masks, MedSA, PlanePrompts
from lib.predictor import DECODE_BATCH, Prediction, Predictor
from lib.prompts.promptset import Box, MaskPrompt, PromptSet
from lib.prompts.simulate import interior_point
from lib.settings import IntensitySettings, load_settings
from lib.turns import Asker
from lib.volume import Volume

WINDOW = IntensitySettings(kind="window", window_hu=(0.0, 255.0))
SHIPPED = Path(lib.__file__).parents[1] / "weights" / "vit_t.safetensors"
SPEC = BaseSpec("rule", 128, 16, 16, 1, 1, (0,), 2)


class RegionModel(MedSA):
    """Segments the bright region under a positive click, or in the box, less what is near a negative click.

    Its embedding is the image itself, rearranged. Entry 2 of its masks, the one it believes most, is the
    click's own spot alone: what an ambiguous prompt gets. It keeps all prompts it was asked.
    """

    def __init__(self, spec: BaseSpec = SPEC, labels: tuple[str, ...] = ("object",)) -> None:
        super().__init__(build_sam(spec), spec, None, labels)
        self.trained = True
        self.asked: list[PlanePrompts] = []
        self.encoded = 0

    def encode(self, planes: Tensor, depths: object = None) -> Tensor:
        self.encoded += len(planes)
        return torch.nn.functional.pixel_unshuffle(planes[:, :1].float(), self.spec.patch_size)

    def decode(self, embeddings: Tensor, prompts: PlanePrompts) -> Masks:
        self.asked.append(prompts)
        images = torch.nn.functional.pixel_shuffle(embeddings, self.spec.patch_size)
        bright = (torch.nn.functional.avg_pool2d(images, 4)[:, 0] > 127).numpy()
        masks = [self._masks(bright[row], prompts, row) for row in range(len(prompts))]
        logits = torch.from_numpy(np.where(np.stack(masks), 6.0, -6.0).astype(np.float32))
        return Masks(logits, torch.tensor([[0.9, 0.5, 0.95, 0.5]]).repeat(len(masks), 1))

    def _masks(self, bright: np.ndarray, prompts: PlanePrompts, row: int) -> np.ndarray:
        pixels = ((prompts.points_xy[row].numpy() + 0.5) / 4).astype(int)
        labels = prompts.point_labels[row].tolist()
        clicked = [tuple(pixel) for pixel, label in zip(pixels, labels, strict=True) if label == POSITIVE]
        inside = bright.copy()
        if BOX_START in labels:
            (x0, y0), (x1, y1) = pixels[labels.index(BOX_START)], pixels[labels.index(BOX_STOP)]
            inside[:] = False
            inside[y0 : y1 + 1, x0 : x1 + 1] = bright[y0 : y1 + 1, x0 : x1 + 1]
        elif clicked:
            regions, _ = ndimage.label(bright)
            inside = np.isin(regions, [regions[y, x] for x, y in clicked if regions[y, x]])
        for (x, y), label in zip(pixels, labels, strict=True):
            if label == NEGATIVE:
                inside[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = False
        spot = np.zeros_like(inside)
        for x, y in clicked:
            spot[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
        return np.stack([inside, inside, spot, inside])


def predictor_of(model: MedSA, axis: str = "k", cache: EmbeddingCache | None = None) -> Predictor:
    cache = EmbeddingCache(1 << 26) if cache is None else cache
    return Predictor(model, "key", WINDOW, axis, cache)  # type: ignore[arg-type]


def volume_of(array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    return Volume(array.astype(np.float32), np.diag([*spacing, 1.0]))


def ellipsoid(shape: tuple[int, int, int], centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    grid = np.indices(shape)
    return sum(((grid[axis] - centre[axis]) / radii[axis]) ** 2 for axis in range(3)) <= 1


BODY = ellipsoid((28, 24, 20), (13, 12, 9), (10, 7, 7))
BODY_VOLUME = volume_of(BODY * 200.0)
MIDDLE = (13, 12, 9)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return (
        2
        * np.count_nonzero((first > 0) & (second > 0))
        / (np.count_nonzero(first) + np.count_nonzero(second))
    )


def filled_slices(mask: np.ndarray, axis: int = 2) -> list[int]:
    return np.flatnonzero(np.moveaxis(mask, axis, 0).any(axis=(1, 2))).tolist()


def test_one_click_gives_the_whole_object_on_the_voxel_grid() -> None:
    prediction = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet((MIDDLE,)))
    assert prediction.mask.dtype == np.uint8
    assert prediction.mask.shape == BODY.shape
    assert set(np.unique(prediction.mask)) == {0, 1}
    assert dice(prediction.mask, BODY) > 0.9
    assert set(filled_slices(prediction.mask)) <= set(prediction.slices)
    assert prediction.slices == tuple(range(prediction.slices[0], prediction.slices[-1] + 1))
    assert prediction.quality == dict.fromkeys(prediction.slices, pytest.approx(0.9))


def test_what_is_decoded_at_once_is_bounded_whatever_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = RegionModel(), []
    decode = model.decode

    def counted(embeddings: Tensor, prompts: PlanePrompts) -> Masks:
        sizes.append(len(prompts))
        return decode(embeddings, prompts)

    monkeypatch.setattr(model, "decode", counted)
    predictor = predictor_of(model)
    inside = [(13, 12, index) for index in range(3, 16)]
    for prompts in (PromptSet(mask=MaskPrompt(BODY)), PromptSet(tuple(inside))):
        sizes.clear()
        prediction = predictor.predict(BODY_VOLUME, prompts)
        assert len(prediction.slices) >= len(inside)
        assert max(sizes) <= DECODE_BATCH
        assert sum(sizes) >= len(inside)
        assert dice(prediction.mask, BODY) > 0.9


def test_seconds_add_up() -> None:
    seconds = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet((MIDDLE,))).seconds
    assert seconds.keys() == {"wait", "encode", "decode", "total"}
    assert min(seconds[stage] for stage in ("encode", "decode", "total")) > 0
    assert seconds["encode"] + seconds["decode"] <= seconds["total"]


@pytest.mark.parametrize(("axis", "number"), [("i", 0), ("j", 1), ("k", 2)])
def test_any_axis_may_be_sliced(axis: str, number: int) -> None:
    model = RegionModel()
    prediction = predictor_of(model, axis).predict(BODY_VOLUME, PromptSet((MIDDLE,)))
    assert dice(prediction.mask, BODY) > 0.9
    assert MIDDLE[number] in prediction.slices
    assert model.encoded <= BODY.shape[number]


def test_auto_slices_along_the_largest_spacing() -> None:
    volume = volume_of(BODY * 200.0, (1.0, 3.0, 1.0))
    prediction = predictor_of(RegionModel(), "auto").predict(volume, PromptSet((MIDDLE,)), whole_object=False)
    assert prediction.slices == (MIDDLE[1],)
    assert filled_slices(prediction.mask, axis=1) == [MIDDLE[1]]


def test_without_the_whole_object_only_prompted_slices_are_answered() -> None:
    model = RegionModel()
    prompts = PromptSet((MIDDLE, (13, 12, 5)), negative_ijk=((13, 12, 3),))
    prediction = predictor_of(model).predict(BODY_VOLUME, prompts, whole_object=False)
    assert prediction.slices == (5, 9)
    assert filled_slices(prediction.mask) == [5, 9]
    assert [len(prompts) for prompts in model.asked] == [2]


def test_two_seeds_meet_and_every_slice_is_decoded_once() -> None:
    model = RegionModel()
    prediction = predictor_of(model).predict(BODY_VOLUME, PromptSet(((13, 12, 5), (13, 12, 12))))
    assert dice(prediction.mask, BODY) > 0.9
    # One slice at each end says that the object has ended.
    assert sum(map(len, model.asked)) <= len(prediction.slices) + 2
    assert len(model.asked) < len(prediction.slices)


def test_all_prompts_of_a_slice_go_into_one_decode_together() -> None:
    model = RegionModel()
    prompts = PromptSet((MIDDLE, (10, 12, 9)), ((13, 8, 9),), (Box((3, 4, 3), (24, 20, 16)),), "object")
    predictor_of(model).predict(BODY_VOLUME, prompts, whole_object=False)
    assert len(model.asked) == 1
    geometry = predictor_of(model)._encoder.open(BODY_VOLUME, "k").geometry
    asked = model.asked[0]
    points = geometry.points_to_model(np.array([(13, 12), (10, 12), (13, 8)]))
    corners = geometry.boxes_to_model(np.array([(3, 4, 24, 20)])).reshape(2, 2)
    assert asked.point_labels.tolist() == [[POSITIVE, POSITIVE, NEGATIVE, BOX_START, BOX_STOP]]
    np.testing.assert_allclose(asked.points_xy[0], np.concatenate([points, corners]), atol=1e-4)


def test_a_box_marks_its_middle_slice_and_bounds_the_object() -> None:
    box = Box((5, 7, 6), (20, 18, 12))
    prediction = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet(boxes=(box,)))
    assert prediction.slices == tuple(range(6, 12))
    margin_u, margin_v = 2, 1
    outside = prediction.mask.copy()
    outside[5 - margin_u : 20 + margin_u, 7 - margin_v : 18 + margin_v] = 0
    assert not outside.any()
    inner = BODY[5:20, 7:18, 6:12]
    assert dice(prediction.mask[5:20, 7:18, 6:12], inner) > 0.9


def test_a_flat_box_does_not_bound_the_object_along_the_axis() -> None:
    box = Box((2, 4, 9), (25, 20, 10))
    prediction = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet(boxes=(box,)))
    assert dice(prediction.mask, BODY) > 0.9


def test_a_click_outside_a_deep_box_still_gets_its_slice_but_is_not_carried() -> None:
    prompts = PromptSet(((13, 12, 13),), boxes=(Box((2, 4, 6), (25, 20, 10)),))
    prediction = predictor_of(RegionModel()).predict(BODY_VOLUME, prompts)
    assert prediction.slices == (6, 7, 8, 9, 13)


def test_a_negative_click_counts_on_its_slice_while_the_object_is_carried() -> None:
    unwanted = (20, 12, 11)
    plain = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet((MIDDLE,)))
    corrected = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet((MIDDLE,), (unwanted,)))
    assert plain.mask[unwanted] == 1
    assert corrected.mask[unwanted] == 0
    assert np.array_equal(plain.mask[..., :11], corrected.mask[..., :11])
    assert corrected.mask[..., 11].any()


def test_a_negative_click_in_the_middle_of_the_object_ends_it_there() -> None:
    plain = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet((MIDDLE,)))
    ended = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet((MIDDLE,), ((13, 12, 12),)))
    assert filled_slices(plain.mask)[-1] > 12
    assert filled_slices(ended.mask)[-1] == 11
    assert np.array_equal(plain.mask[..., :12], ended.mask[..., :12])


def test_the_carried_point_keeps_away_from_a_negative_click() -> None:
    model = RegionModel()
    predictor_of(model).predict(BODY_VOLUME, PromptSet((MIDDLE,), ((20, 12, 10),)))
    rows = [
        (points, labels)
        for prompts in model.asked
        for points, labels in zip(prompts.points_xy, prompts.point_labels.tolist(), strict=True)
        if NEGATIVE in labels
    ]
    assert len(rows) == 1
    points, labels = rows[0]
    without = interior_x_of(
        predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet((MIDDLE,))).mask[..., 9]
    )
    positive = points[labels.index(POSITIVE)]
    assert positive[0] < without - 2, "away from the click, in model pixels"


def interior_x_of(plane: np.ndarray) -> float:
    """Where the most interior voxel of `plane` (u, v) is, in model pixels along x."""
    u, _ = interior_point(plane > 0)
    geometry = predictor_of(RegionModel())._encoder.open(BODY_VOLUME, "k").geometry
    return float(geometry.points_to_model(np.array([(u, 0)]))[0, 0])


def test_carrying_prompts_with_the_most_interior_point_of_the_neighbours_mask() -> None:
    model = RegionModel()
    prediction = predictor_of(model).predict(BODY_VOLUME, PromptSet((MIDDLE,)))
    first = model.asked[1]
    assert len(first) == 2
    assert first.masks is None
    geometry = predictor_of(model)._encoder.open(BODY_VOLUME, "k").geometry
    inside = prediction.mask[..., MIDDLE[2]].T > 0
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    for point, labels in zip(first.points_xy, first.point_labels.tolist(), strict=True):
        u, v = np.rint(geometry.points_to_voxel(point[labels.index(POSITIVE)].numpy())[0]).astype(int)
        assert depth[v, u] > depth.max() - 1.5


def test_an_untrained_model_carries_the_mask_that_is_most_like_the_neighbours() -> None:
    """The lone click gets its own spot alone (entry 2); so do the slices that it is carried to."""
    model = RegionModel()
    model.trained = False
    prediction = predictor_of(model).predict(BODY_VOLUME, PromptSet((MIDDLE,)))
    areas = np.count_nonzero(prediction.mask, axis=(0, 1))
    assert len(prediction.slices) > 3
    assert max(areas) < 10


@pytest.mark.parametrize(
    ("trained", "prompts", "spot_only"),
    [
        (False, PromptSet((MIDDLE,)), True),
        (True, PromptSet((MIDDLE,)), False),
        (False, PromptSet((MIDDLE, (10, 12, 9))), False),
        (False, PromptSet((MIDDLE,), boxes=(Box((3, 4, 9), (24, 20, 10)),)), False),
    ],
    ids=["one click, untrained", "one click, trained", "two clicks", "click and box"],
)
def test_only_a_lone_click_on_an_untrained_model_is_ambiguous(
    trained: bool, prompts: PromptSet, spot_only: bool
) -> None:
    model = RegionModel()
    model.trained = trained
    mask = predictor_of(model).predict(BODY_VOLUME, prompts, whole_object=False).mask
    assert (np.count_nonzero(mask) < 10) is spot_only
    assert mask[MIDDLE] == 1


def test_an_empty_answer_is_legal() -> None:
    prediction = predictor_of(RegionModel()).predict(
        BODY_VOLUME, PromptSet(boxes=(Box((0, 0, 9), (2, 2, 10)),))
    )
    assert not prediction.mask.any()
    assert prediction.slices == (9,)


def test_a_click_where_the_network_sees_nothing_gives_a_spot_on_that_slice() -> None:
    """The annotator sees that the click arrived; nothing is made up on other slices."""
    prediction = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet(((1, 1, 9),)))
    assert prediction.mask[1, 1, 9] == 1
    assert prediction.slices == (9,)
    assert prediction.mask.sum() < 10


class Deaf(RegionModel):
    """Answers as if there were no negative clicks, and no positive ones but the first."""

    def _masks(self, bright: np.ndarray, prompts: PlanePrompts, row: int) -> np.ndarray:
        first = PlanePrompts(prompts.points_xy[row : row + 1, :1], prompts.point_labels[row : row + 1, :1])
        return super()._masks(bright, first, 0)


def test_a_positive_click_outside_a_box_is_honoured_too() -> None:
    box = Box((5, 7, 6), (20, 18, 12))
    plain = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet((MIDDLE,), boxes=(box,))).mask
    answer = (
        predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet((MIDDLE, (1, 1, 9)), boxes=(box,))).mask
    )
    assert (plain[1, 1, 9], answer[1, 1, 9]) == (0, 1)
    assert not answer[:3, :3, :9].any()


def test_clicks_are_honoured_by_a_network_that_does_not_hear_them() -> None:
    added, removed, carried = (24, 2, 9), (20, 12, 9), (20, 12, 11)
    prompts = PromptSet((MIDDLE, added), (removed, carried))
    plain = predictor_of(Deaf()).predict(BODY_VOLUME, PromptSet((MIDDLE,))).mask
    answer = predictor_of(Deaf()).predict(BODY_VOLUME, prompts).mask
    assert [plain[place] for place in (added, removed, carried)] == [0, 1, 1]
    assert [answer[place] for place in (added, removed, carried)] == [1, 0, 0]
    assert dice(answer, plain) > 0.85
    assert np.array_equal(plain[..., :9], answer[..., :9])


def test_negative_clicks_alone_give_nothing() -> None:
    prediction = predictor_of(RegionModel()).predict(BODY_VOLUME, PromptSet((), (MIDDLE,)))
    assert not prediction.mask.any()
    assert prediction.slices == ()


def test_an_object_that_reaches_the_edge_of_the_slice_is_not_shaved() -> None:
    """The slice is not square: beyond its edge the model's image is padding."""
    body = np.zeros((30, 17, 3))
    body[10:, 8:] = 200
    mask = predictor_of(RegionModel()).predict(volume_of(body), PromptSet(((20, 12, 1),))).mask
    assert mask[12:, 10:].all()
    assert not mask[:9].any()


def test_one_slice_is_a_volume_too() -> None:
    volume = volume_of(BODY[:, :, 9:10] * 200.0)
    prediction = predictor_of(RegionModel()).predict(volume, PromptSet(((13, 12, 0),)))
    assert prediction.slices == (0,)
    assert dice(prediction.mask[..., 0], BODY[..., 9]) > 0.9


@pytest.mark.parametrize(("label", "expected"), [("b", 1), ("a", 0), (None, -1)])
def test_the_label_meant_reaches_the_model(label: str | None, expected: int) -> None:
    model = RegionModel(labels=("a", "b"))
    predictor_of(model).predict(BODY_VOLUME, PromptSet((MIDDLE,), label=label))
    ids = [
        index
        for prompts in model.asked
        if prompts.label_ids is not None
        for index in prompts.label_ids.tolist()
    ]
    assert len(ids) > 2
    assert set(ids) == {expected}


def test_the_only_label_is_meant_when_none_is_named() -> None:
    model = RegionModel()
    predictor_of(model).predict(BODY_VOLUME, PromptSet((MIDDLE,)), whole_object=False)
    assert model.asked[0].label_ids is not None
    assert model.asked[0].label_ids.tolist() == [0]


def test_an_unknown_label_is_refused_by_name() -> None:
    predictor = predictor_of(RegionModel(labels=("liver", "spleen")))
    with pytest.raises(NotFoundError, match=r"label: 'heart' .* liver, spleen"):
        predictor.predict(BODY_VOLUME, PromptSet((MIDDLE,), label="heart"))
    with pytest.raises(NotFoundError, match=r"label: 'heart' .* liver, spleen"):
        predictor.automatic_prompt("heart")


def test_a_study_gives_probabilities_of_every_nth_slice() -> None:
    model = RegionModel()
    predictor, pauses = predictor_of(model), []
    with predictor.study(BODY_VOLUME, 3, Asker("test"), lambda: pauses.append(1)) as study:
        prompt = predictor.automatic_prompt("object")
        probability = study.probability(study.features, [prompt] * len(study.slices))
    assert study.slices == tuple(range(0, 20, 3))
    assert pauses == [1]
    assert probability.shape == (7, SPEC.mask_size, SPEC.mask_size)
    assert probability.dtype == np.float32
    assert probability[3, 13 * 32 // 28 - 2, 13 * 32 // 28] > 0.99
    assert probability[3, 0, 0] < 0.01
    for prompts in model.asked:
        assert set(prompts.point_labels.flatten().tolist()) == {-1}
        assert prompts.label_ids is not None
        assert set(prompts.label_ids.tolist()) == {0}


def test_automatic_mask_is_on_the_voxel_grid() -> None:
    mask = predictor_of(RegionModel()).automatic_mask(BODY_VOLUME, "object")
    assert mask.dtype == np.uint8
    assert dice(mask, BODY) > 0.9


def test_a_second_request_encodes_nothing(tiny_model: MedSA) -> None:
    calls: list[int] = []
    hook = tiny_model.sam.image_encoder.patch_embed.register_forward_hook(
        lambda module, inputs, output: calls.append(len(output))
    )
    predictor = predictor_of(tiny_model)
    first = predictor.predict(BODY_VOLUME, PromptSet((MIDDLE,)), whole_object=False)
    encoded = list(calls)
    second = predictor.predict(BODY_VOLUME, PromptSet(((10, 12, 9),)), whole_object=False)
    hook.remove()
    assert encoded == [8]
    assert calls == encoded
    assert first.seconds["encode"] > 0
    assert second.seconds["encode"] == 0


def confident(model: MedSA) -> MedSA:
    """The untrained network with a predicted IoU of 0.9 for everything, so that its masks are carried on."""
    head = model.sam.mask_decoder.iou_prediction_head.layers[-1]
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, 0.9)
    return model


def noise_volume(seed: int) -> Volume:
    noise = np.random.default_rng(seed).normal(0, 1, (20, 18, 11))
    smooth = ndimage.gaussian_filter(noise, 2)
    return volume_of(128 + 60 * smooth / smooth.std())


def same(first: Prediction, second: Prediction) -> bool:
    return np.array_equal(first.mask, second.mask) and first.quality == second.quality


def test_threads_get_what_they_would_get_one_after_the_other(tiny_model: MedSA) -> None:
    confident(tiny_model)
    requests = [
        (noise_volume(number % 2), PromptSet(((4 + number, 9, number % 11), (10, 5, 10 - number % 4))))
        for number in range(8)
    ]
    alone = [predictor_of(tiny_model).predict(*request) for request in requests]
    together: dict[int, Prediction] = {}
    # Small enough that slices are evicted while others still use them.
    shared = predictor_of(tiny_model, cache=EmbeddingCache(12 * 256 * 4 * 4 * 2))

    def work(first: int) -> None:
        for number in range(first, len(requests), 4):
            together[number] = shared.predict(*requests[number])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(together) == list(range(8))
    assert all(same(together[number], alone[number]) for number in range(8))
    assert any(len(prediction.slices) > 2 for prediction in alone)


def test_an_answer_does_not_depend_on_earlier_requests(tiny_model: MedSA) -> None:
    confident(tiny_model)
    volume = noise_volume(3)
    prompts = PromptSet(((9, 9, 6),))
    fresh = predictor_of(tiny_model).predict(volume, prompts)
    used = predictor_of(tiny_model)
    used.predict(volume, PromptSet(((3, 3, 0), (15, 15, 10))))
    with used.study(volume, 4, Asker("test")) as study:
        study.probability(study.features, [used.automatic_prompt("object")] * len(study.slices))
    assert same(used.predict(volume, prompts), fresh)
    assert same(used.predict(volume, prompts), fresh)


def test_threads_of_the_network_are_not_touched(tiny_model: MedSA) -> None:
    """A prediction leaves no autograd graph behind and does not turn autograd off for others."""
    predictor_of(tiny_model).predict(noise_volume(1), PromptSet(((9, 9, 6),)))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.skipif(not SHIPPED.is_file(), reason=f"no {SHIPPED.name} in apps/medsa/weights")
@pytest.mark.parametrize("shape", [(40, 36, 24), (64, 64, 12)])
@pytest.mark.parametrize("half_axes", [0.12, 0.3])
def test_the_shipped_base_finds_a_bright_ellipsoid_from_one_click(
    shape: tuple[int, int, int], half_axes: float
) -> None:
    app = SHIPPED.parents[1]
    spec = catalog(load_settings(app / "configs", {}), app).entries["vit_t"].spec
    sam, _ = load_base(spec, SHIPPED)
    middle = tuple(size // 2 for size in shape)
    body = ellipsoid(shape, middle, (shape[0] * half_axes, shape[1] * half_axes, shape[2] * 0.3))
    noise = np.random.default_rng(0).normal(0, 12, shape)
    volume = volume_of(ndimage.gaussian_filter(60 + 120.0 * body, 0.7) + noise)
    prediction = predictor_of(MedSA(sam, spec, None, ("object",))).predict(volume, PromptSet((middle,)))  # type: ignore[arg-type]
    assert dice(prediction.mask, body) > 0.6
