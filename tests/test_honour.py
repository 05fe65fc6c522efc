"""Clicks end up on their side of the outline, and little else moves."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from lib.honour import honour_clicks
from lib.transforms.geometry import PlaneGeometry

SIDE, IMAGE = 32, 64
GRID = PlaneGeometry((IMAGE, IMAGE), (1.0, 1.0), IMAGE, SIDE)


def disc_logits(radius: float, x: float = 16.0, y: float = 16.0, slope: float = 0.8) -> Tensor:
    """Logits that fall off evenly, 0 at the disc's outline."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return slope * (radius - torch.hypot(columns - x, rows - y))


def click(x: float, y: float, label: int) -> tuple[float, float, int]:
    """At a pixel of the mask, as model pixels."""
    return (x + 0.5) * IMAGE / SIDE - 0.5, (y + 0.5) * IMAGE / SIDE - 0.5, label


def test_clicks_on_their_side_change_nothing() -> None:
    logits = disc_logits(8)
    assert honour_clicks(logits, [click(16, 16, 1), click(2, 2, 0)], GRID) is logits
    assert honour_clicks(logits, [], GRID) is logits


@pytest.mark.parametrize(
    ("place", "label"), [((16, 16), 0), ((20, 14), 0), ((28, 5), 1), ((0, 0), 1), ((31, 31), 1)]
)
def test_a_click_on_the_wrong_side_is_honoured_with_what_is_around_it(
    place: tuple[int, int], label: int
) -> None:
    logits = disc_logits(8)
    kept = logits.clone()
    answer = honour_clicks(logits, [click(*place, label)], GRID)
    changed = (answer > 0) != (logits > 0)
    x, y = place
    assert (answer[y, x] > 0) == bool(label)
    rows, columns = np.nonzero(changed.numpy())
    assert len(rows) > 4
    assert np.hypot(columns - x, rows - y).max() < 14
    far = torch.from_numpy(np.hypot(*(np.indices((SIDE, SIDE)) - np.array([y, x])[:, None, None]))) > 14
    assert torch.equal(answer[far], logits[far])
    assert torch.equal(logits, kept)
    assert answer.dtype == logits.dtype


def test_only_the_error_s_own_place_moves() -> None:
    """A bump of 3 pixels has grown onto the disc: a click in it takes it away and leaves the disc as it was."""
    logits = torch.maximum(disc_logits(8), disc_logits(3, x=26))
    answer = honour_clicks(logits, [click(16, 16, 1), click(27, 16, 0)], GRID)
    assert answer[16, 27] < 0
    far = disc_logits(8) > 1
    assert ((answer > 0) == (logits > 0))[far].all()
    assert ((answer > 0) & ~(disc_logits(8) > 0)).sum() < ((logits > 0) & ~(disc_logits(8) > 0)).sum() / 2


def test_neighbouring_clicks_of_both_sides_are_both_honoured() -> None:
    logits = disc_logits(8)
    clicks = [
        click(16, 16, 0),
        click(17, 16, 1),
        click(16, 18, 0),
        click(15, 16, 1),
        click(23, 16, 0),
        click(26, 16, 1),
    ]
    answer = honour_clicks(logits, clicks, GRID)
    found = [
        bool(answer[round((y + 0.5) * SIDE / IMAGE - 0.5), round((x + 0.5) * SIDE / IMAGE - 0.5)] > 0)
        for x, y, _ in clicks
    ]
    assert found == [bool(label) for *_, label in clicks]


def test_of_two_clicks_in_one_place_the_last_one_counts() -> None:
    logits = disc_logits(8)
    assert honour_clicks(logits, [click(16, 16, 1), click(16, 16, 0)], GRID)[16, 16] < 0
    assert honour_clicks(logits, [click(16, 16, 0), click(16, 16, 1)], GRID)[16, 16] > 0


@pytest.mark.parametrize("logits", [torch.full((SIDE, SIDE), -50.0), torch.full((SIDE, SIDE), 50.0)])
def test_an_empty_and_a_full_mask_obey_too(logits: Tensor) -> None:
    wanted = int(logits[0, 0] < 0)
    answer = honour_clicks(logits, [click(4, 9, wanted)], GRID)
    assert (answer[9, 4] > 0) == bool(wanted)
    assert 0 < ((answer > 0) != (logits > 0)).sum() < 0.15 * SIDE**2


@pytest.mark.parametrize("size_uv", [(20, 40), (64, 48), (300, 512), (512, 256), (1, 9)])
def test_it_holds_on_the_voxel_grid(size_uv: tuple[int, int]) -> None:
    """Also where a voxel is smaller or larger than a pixel of the mask."""
    geometry = PlaneGeometry(size_uv, (1.0, 1.0), IMAGE, SIDE)
    rng = np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 1.0)
    logits = torch.from_numpy((20 * smooth).astype(np.float32))
    voxels = rng.integers(0, size_uv, (400, 2))
    voxels[:100, 0] = size_uv[0] - 1  # beside the padding
    voxels[100:200, 1] = size_uv[1] - 1
    wrong = 0
    for uv in voxels:
        label = int(rng.integers(2))
        ((x, y),) = geometry.points_to_model(uv[None])
        answer = honour_clicks(logits, [(float(x), float(y), label)], geometry)
        mask = geometry.logits_to_voxels(answer[None])[0] > 0
        wrong += bool(mask[tuple(uv)]) != bool(label)
    assert wrong == 0
