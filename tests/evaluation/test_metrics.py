"""Dice and surface Dice of whole volumes."""

import numpy as np
import pytest

from lib.errors import InputError
from lib.evaluation.metrics import surface_dice, volume_dice

EMPTY = np.zeros((10, 8, 6), dtype=bool)


@pytest.fixture
def block() -> np.ndarray:
    mask = EMPTY.copy()
    mask[2:6, 2:6, 1:5] = True
    return mask


def test_dice_of_known_overlaps(block: np.ndarray) -> None:
    moved = np.roll(block, 1, axis=0)
    assert volume_dice(block, block) == 1.0
    assert volume_dice(moved, block) == pytest.approx(0.75)
    assert volume_dice(moved.astype(np.uint8), block) == pytest.approx(0.75)


def test_dice_is_that_of_the_volume_not_the_mean_of_slices() -> None:
    truth, prediction = EMPTY.copy(), EMPTY.copy()
    truth[:, :, 0] = prediction[:, :, 0] = True
    prediction[0, 0, 1] = True  # one wrong voxel in a slice of its own
    assert volume_dice(prediction, truth) == pytest.approx(160 / 161)


def test_dice_of_empty_masks(block: np.ndarray) -> None:
    assert volume_dice(EMPTY, EMPTY) == 1.0
    assert volume_dice(EMPTY, block) == 0.0
    assert volume_dice(block, EMPTY) == 0.0


def test_surface_dice_forgives_up_to_the_tolerance_in_mm(block: np.ndarray) -> None:
    moved = np.roll(block, 1, axis=0)
    assert surface_dice(block, block, (1, 1, 1), 0.5) == 1.0
    assert surface_dice(moved, block, (1, 1, 1), 1.0) == 1.0
    assert surface_dice(moved, block, (3, 1, 1), 1.0) < 1.0


def test_surface_dice_of_empty_masks(block: np.ndarray) -> None:
    assert surface_dice(EMPTY, EMPTY, (1, 1, 1), 1.0) == 1.0
    assert surface_dice(EMPTY, block, (1, 1, 1), 1.0) == 0.0
    assert surface_dice(block, EMPTY, (1, 1, 1), 1.0) == 0.0


def test_shapes_must_agree(block: np.ndarray) -> None:
    with pytest.raises(InputError):
        volume_dice(block[:1], block)
    with pytest.raises(InputError):
        surface_dice(block[:1], block, (1, 1, 1), 1.0)
