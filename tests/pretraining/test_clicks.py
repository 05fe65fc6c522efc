"""Simulated prompts on one slice."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lib.model.decoder import NEGATIVE, PADDING, POSITIVE
from lib.pretraining.clicks import correct, erosion_depth, inner_point, rough_box
from lib.prompts.simulate import interior_depth

MASK, FACTOR = 32, 4


def square() -> np.ndarray:
    mask = np.zeros((MASK, MASK), dtype=bool)
    mask[8:22, 10:24] = True
    return mask


def click(logits: torch.Tensor, targets: torch.Tensor, careless: float = 0.0, seed: int = 0) -> tuple:
    points, labels = correct(logits, targets, FACTOR, careless, torch.Generator().manual_seed(seed))
    columns, rows = ((points[:, 0] + 0.5) / FACTOR).long().unbind(1)
    return labels[:, 0].tolist(), rows.tolist(), columns.tolist()


def test_the_first_click_lies_inside_and_often_in_the_middle() -> None:
    rng, mask = np.random.default_rng(0), square()
    depths = []
    for _ in range(200):
        x, y = inner_point(rng, mask, FACTOR)
        column, row = int((x + 0.5) // FACTOR), int((y + 0.5) // FACTOR)
        assert mask[row, column]
        depths.append(interior_depth(mask)[row, column])
    assert max(depths) == 7
    assert min(depths) == 1
    assert np.mean(depths) > interior_depth(mask)[mask].mean()


def test_a_box_is_near_the_objects_bounds_in_model_pixels() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([rough_box(rng, square(), FACTOR) for _ in range(200)])
    exact = np.array([[10, 8], [24, 22]]) * FACTOR - 0.5
    np.testing.assert_allclose(boxes.mean(0), exact, atol=1.5)
    assert (np.abs(boxes - exact) <= 0.2 * 14 * FACTOR + 1e-3).all()
    assert boxes.std(0).min() > 1


def test_the_corrective_click_lies_in_the_deepest_error() -> None:
    target = torch.from_numpy(square()).float().expand(4, -1, -1)
    logits = torch.where(target > 0, 5.0, -5.0).clone()
    logits[0, 8:22, 10:24] = -5.0  # all of it missing
    logits[1, 24:31, 2:20] = 5.0  # too much below, and
    logits[1, 8:10, 10:24] = -5.0  # less deep, some of it missing
    logits[2, 0, 0] = 5.0  # a single pixel
    labels, rows, columns = click(logits, target)
    assert labels == [POSITIVE, NEGATIVE, NEGATIVE, PADDING]
    assert 13 <= rows[0] <= 16
    assert 15 <= columns[0] <= 18
    assert (rows[1], rows[2], columns[2]) == (27, 0, 0)


def test_a_careless_click_is_still_on_an_error() -> None:
    target = torch.from_numpy(square()).float()[None]
    logits = torch.full((1, MASK, MASK), -5.0)
    places = set()
    for seed in range(30):
        labels, rows, columns = click(logits, target, careless=1.0, seed=seed)
        assert labels == [POSITIVE]
        assert target[0, rows[0], columns[0]] == 1
        places.add((rows[0], columns[0]))
    assert len(places) > 20


@pytest.mark.parametrize("seed", range(3))
def test_erosion_depth_is_nearly_the_distance_to_the_border(seed: int) -> None:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((64, 64)), 6) > 0
    depth = erosion_depth(torch.from_numpy(smooth).float()[None, None])[0, 0].numpy()
    true = ndimage.distance_transform_edt(np.pad(smooth, 1))[1:-1, 1:-1]
    assert not depth[~smooth].any()
    assert np.abs(depth - true)[smooth].max() <= 0.25 * true.max() + 1
