"""Simulated annotators click where a person would."""

import numpy as np
import pytest

from lib.errors import InputError
from lib.prompts.simulate import (
    first_click,
    interior_point,
    jittered_box,
    next_click,
    perturbed_mask,
    random_click,
)

ISOTROPIC = (1.0, 1.0, 1.0)


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    u, v = np.ogrid[: shape[0], : shape[1]]
    return (u - centre[0]) ** 2 + (v - centre[1]) ** 2 <= radius**2


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


class TestInteriorPoint:
    def test_centre_of_a_disc(self) -> None:
        assert interior_point(disc((40, 30), (17, 12), 7)) == (17, 12)

    def test_the_fat_end_of_a_pear(self) -> None:
        mask = disc((40, 40), (12, 12), 8)
        mask[12, 12:38] = True
        assert interior_point(mask) == (12, 12)

    def test_the_edge_of_the_array_is_a_border(self) -> None:
        assert interior_point(np.ones((9, 7), dtype=bool)) == (3, 3)

    def test_three_axes(self) -> None:
        mask = np.zeros((10, 11, 12), dtype=bool)
        mask[2:7, 3:8, 4:9] = True
        assert interior_point(mask) == (4, 5, 6)

    def test_a_ring_is_clicked_on_itself(self) -> None:
        ring = disc((40, 40), (20, 20), 15) & ~disc((40, 40), (20, 20), 9)
        assert ring[interior_point(ring)]

    def test_nothing_to_click(self) -> None:
        with pytest.raises(InputError, match="at least one voxel"):
            interior_point(np.zeros((3, 3), dtype=bool))


class TestFirstClick:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_the_middle_of_an_ellipsoid(self, axis: int) -> None:
        i, j, k = np.ogrid[:24, :20, :16]
        truth = ((i - 13) / 7) ** 2 + ((j - 8) / 5) ** 2 + ((k - 6) / 4) ** 2 <= 1
        click = first_click(truth, axis)
        assert np.abs(np.array(click) - (13, 8, 6)).max() <= 2
        assert click[axis] == (13, 8, 6)[axis]

    def test_a_large_slice_at_the_end_is_not_the_middle(self) -> None:
        truth = np.zeros((20, 20, 12), dtype=bool)
        truth[8:12, 8:12, :] = True
        truth[:, :, 11] = True
        assert 4 <= first_click(truth, 2)[2] <= 7

    def test_two_far_parts_with_nothing_between(self) -> None:
        truth = np.zeros((9, 9, 20), dtype=bool)
        truth[2:5, 2:5, 0] = truth[2:7, 2:7, 19] = True
        assert first_click(truth, 2) == (4, 4, 19)

    def test_one_voxel(self) -> None:
        truth = np.zeros((5, 6, 7), dtype=bool)
        truth[1, 2, 3] = True
        assert first_click(truth, 0) == (1, 2, 3)

    def test_no_object(self) -> None:
        with pytest.raises(InputError, match="at least one voxel"):
            first_click(np.zeros((3, 3, 3), dtype=bool), 2)


class TestNextClick:
    @pytest.fixture
    def truth(self) -> np.ndarray:
        truth = np.zeros((30, 30, 10), dtype=bool)
        truth[5:16, 5:16, 2:9] = True
        return truth

    def test_nothing_wrong(self, truth: np.ndarray) -> None:
        assert next_click(truth, truth.copy(), 2, ISOTROPIC) is None

    def test_an_empty_answer_gets_a_click_in_the_middle(self, truth: np.ndarray) -> None:
        assert next_click(truth, np.zeros_like(truth), 2, ISOTROPIC) == ((8, 8, 5), True)

    def test_in_thick_slices_the_depth_counts_in_mm(self, truth: np.ndarray) -> None:
        click = next_click(truth, np.zeros_like(truth), 2, (1.0, 1.0, 8.0))
        assert click is not None
        assert click[0][:2] == (10, 10)

    def test_the_largest_error_is_clicked_first(self, truth: np.ndarray) -> None:
        prediction = truth.copy()
        prediction[5:8, 5:8, 2:5] = False  # 27 voxels missing
        prediction[20:25, 20:25, 3:8] = True  # 125 voxels too many
        assert next_click(truth, prediction, 2, ISOTROPIC) == ((22, 22, 5), False)
        prediction[20:25, 20:25, 3:8] = False
        assert next_click(truth, prediction, 2, ISOTROPIC) == ((6, 6, 3), True)

    def test_touching_errors_of_both_kinds_are_two_regions(self) -> None:
        truth = np.zeros((20, 9, 9), dtype=bool)
        truth[2:8] = True
        prediction = np.zeros_like(truth)
        prediction[8:17] = True  # beside it, so that missing and too much share a face
        click = next_click(truth, prediction, 2, ISOTROPIC)
        assert click == ((12, 4, 4), False)

    def test_many_small_errors_do_not_add_up(self, truth: np.ndarray) -> None:
        prediction = truth.copy()
        prediction[::2, 28, ::2] = True  # 75 single voxels
        prediction[5:8, 5:8, 2:5] = False
        assert next_click(truth, prediction, 2, ISOTROPIC) == ((6, 6, 3), True)

    def test_equally_deep_voxels_are_clicked_in_the_fullest_slice(self) -> None:
        truth = np.zeros((10, 10, 6), dtype=bool)
        truth[3, 3:6, 1:5] = True  # one voxel thick: all are equally deep
        truth[3, 2:9, 4] = True
        click = next_click(truth, np.zeros_like(truth), 2, ISOTROPIC)
        assert click is not None
        assert click[0][2] == 4

    @pytest.mark.parametrize("seed", range(5))
    def test_the_click_is_on_an_error_of_its_kind(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        truth, prediction = rng.random((2, 12, 13, 7)) > 0.5
        click = next_click(truth, prediction, 2, (1.0, 2.0, 3.0))
        assert click is not None
        point, positive = click
        assert truth[point] == positive
        assert prediction[point] != positive

    def test_shapes_must_agree(self, truth: np.ndarray) -> None:
        with pytest.raises(InputError, match=r"\(30, 30, 10\)"):
            next_click(truth, truth[:-1], 2, ISOTROPIC)


class TestRandomPrompts:
    @pytest.fixture
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(0)

    def test_clicks_are_inside_and_spread(self, rng: np.random.Generator) -> None:
        mask = disc((50, 40), (20, 25), 12)
        clicks = [random_click(mask, rng) for _ in range(200)]
        assert all(mask[click] for click in clicks)
        assert len(set(clicks)) > 50
        distances = [np.hypot(u - 20, v - 25) for u, v in clicks]
        assert np.mean(distances) < 7  # uniform would be 8

    def test_one_pixel_at_the_corner(self, rng: np.random.Generator) -> None:
        mask = np.zeros((5, 6), dtype=bool)
        mask[4, 5] = True
        assert random_click(mask, rng) == (4, 5)

    def test_the_same_seed_gives_the_same_prompts(self) -> None:
        mask = disc((50, 40), (20, 25), 12)
        first, second = (np.random.default_rng(7) for _ in range(2))
        assert random_click(mask, first) == random_click(mask, second)
        assert jittered_box(mask, first, 0.2) == jittered_box(mask, second, 0.2)
        assert np.array_equal(perturbed_mask(mask, first), perturbed_mask(mask, second))

    def test_a_box_without_jitter_is_tight(self, rng: np.random.Generator) -> None:
        mask = np.zeros((20, 30), dtype=bool)
        mask[3:8, 10:26] = True
        assert jittered_box(mask, rng, 0.0) == (3, 10, 8, 26)

    def test_jittered_boxes_stay_near_and_inside_the_plane(self, rng: np.random.Generator) -> None:
        mask = np.zeros((20, 30), dtype=bool)
        mask[0:10, 10:30] = True
        boxes = np.array([jittered_box(mask, rng, 0.1) for _ in range(100)])
        assert (boxes.min(axis=0) == (0, 8, 9, 28)).all()
        assert (boxes.max(axis=0) == (1, 12, 11, 30)).all()

    def test_a_box_around_one_pixel_keeps_it(self, rng: np.random.Generator) -> None:
        mask = np.zeros((4, 4), dtype=bool)
        mask[3, 3] = True
        for _ in range(20):
            u0, v0, u1, v1 = jittered_box(mask, rng, 1.0)
            assert 0 <= u0 < u1 <= 4
            assert 0 <= v0 < v1 <= 4

    def test_perturbed_masks_are_wrong_but_not_hopeless(self, rng: np.random.Generator) -> None:
        mask = disc((64, 64), (30, 33), 14)
        values = [dice(perturbed_mask(mask, rng), mask) for _ in range(40)]
        assert min(values) > 0.3
        assert max(values) < 1.0
        assert 0.65 < float(np.mean(values)) < 0.95

    def test_both_too_small_and_too_large_occur(self, rng: np.random.Generator) -> None:
        mask = disc((64, 64), (30, 33), 14)
        areas = [int(perturbed_mask(mask, rng).sum()) for _ in range(40)]
        assert min(areas) < mask.sum() < max(areas)

    @pytest.mark.parametrize("where", [(0, 0), (7, 8)])
    def test_a_perturbed_pixel_is_never_nothing(
        self, rng: np.random.Generator, where: tuple[int, int]
    ) -> None:
        mask = np.zeros((8, 9), dtype=bool)
        mask[where] = True
        assert all(perturbed_mask(mask, rng).any() for _ in range(20))

    def test_a_mask_that_fills_the_plane(self, rng: np.random.Generator) -> None:
        result = perturbed_mask(np.ones((16, 12), dtype=bool), rng)
        assert result.shape == (16, 12)
        assert result.any()

    def test_an_empty_mask_is_refused(self, rng: np.random.Generator) -> None:
        empty = np.zeros((4, 4), dtype=bool)
        with pytest.raises(InputError):
            random_click(empty, rng)
        with pytest.raises(InputError):
            jittered_box(empty, rng, 0.1)
        with pytest.raises(InputError):
            perturbed_mask(empty, rng)
