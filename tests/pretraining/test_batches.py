"""What a batch holds, and that it depends on its seed and number alone."""

import numpy as np
import torch
from scipy import ndimage

from lib.model.decoder import BOX_START, BOX_STOP, PADDING, POSITIVE
from lib.pretraining.batches import BOX, CARRIED, POINT, Batch, SyntheticBatches, Target, _add, draw_slice

SIZE, MASK = 64, 32


def batches(count: int = 8) -> list[Batch]:
    data = SyntheticBatches(seed=3, length=count, size=SIZE, mask_size=MASK, images=2, objects=3)
    assert len(data) == count
    return [data[index] for index in range(count)]


def test_a_batch_depends_on_its_seed_and_number_alone() -> None:
    first, second = batches()[5], batches()[5]
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.points_xy, second.points_xy)
    assert not torch.equal(first.images, batches()[6].images)


def test_every_kind_of_prompt_points_at_its_object() -> None:
    seen = {POINT: 0, BOX: 0, CARRIED: 0}
    carried_inside = []
    for batch in batches(24):
        assert batch.owners.tolist() == [0, 0, 0, 1, 1, 1]
        for index, kind in enumerate(batch.kinds.tolist()):
            seen[kind] += 1
            target, labels = batch.targets[index], batch.point_labels[index].tolist()
            if kind == BOX:
                assert labels == [BOX_START, BOX_STOP]
                assert (batch.points_xy[index, 1] > batch.points_xy[index, 0]).all()
                continue
            assert labels == [POSITIVE, PADDING]
            column, row = ((batch.points_xy[index, 0] + 0.5) * MASK / SIZE).long().tolist()
            if kind == POINT:
                assert target[row, column] >= 0.5
                assert not batch.masks[index].any()
            else:
                assert batch.masks[index, 0, row, column] >= 0
                carried_inside.append(float(target[row, column] > 0))
                # What is carried is near the object: it never frames the slice.
                near = ndimage.binary_dilation(target.numpy() > 0, iterations=MASK // 3)
                carried = batch.masks[index, 0].numpy() > 0
                assert (carried & near).sum() > 0.7 * carried.sum()
    assert min(seen.values()) > 3
    assert np.mean(carried_inside) > 0.8


def test_objects_are_neither_too_small_nor_all_of_the_slice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(15):
        made = draw_slice(rng, SIZE, MASK, 4)
        assert made.image.shape == (SIZE, SIZE)
        assert len(made.targets) == 4
        for target in made.targets:
            assert target.filled.shape == (MASK, MASK)
            assert 6 <= target.mask.sum() <= 0.62 * MASK * MASK


def test_wide_objects_are_asked_for_as_well() -> None:
    """Of too few of them the base learned to answer a lone click with a part."""
    rng, widths = np.random.default_rng(2), []
    for _ in range(60):
        for target in draw_slice(rng, SIZE, MASK, 4).targets:
            rows, columns = np.nonzero(target.mask)
            widths.append(max(np.ptp(rows), np.ptp(columns)) / MASK)
    assert 0.15 < np.mean(np.array(widths) > 0.4) < 0.5
    assert np.mean(np.array(widths) < 0.2) > 0.2


def test_padding_holds_no_object() -> None:
    rng, padded = np.random.default_rng(1), 0
    for _ in range(30):
        made = draw_slice(rng, SIZE, MASK, 2)
        empty_rows = ~made.image.any(axis=1)
        if empty_rows[-1]:
            padded += 1
            below = int(np.flatnonzero(~empty_rows)[-1]) + 2
            assert all(not target.filled[below // 2 + 1 :].any() for target in made.targets)
            beside = [target.neighbour for target in made.targets if target.neighbour is not None]
            assert all(not neighbour[below // 2 + 1 :].any() for neighbour in beside)
    assert padded > 3


def test_the_neighbour_shows_the_same_part_of_an_object() -> None:
    """Where an object has several parts, one is asked for, and the next slice shows that one."""
    here = np.zeros((SIZE, SIZE), dtype=bool)
    here[4:24, 4:24] = here[40:50, 40:50] = True
    away = np.zeros((SIZE, SIZE), dtype=bool)
    away[6:26, 4:24] = away[41:51, 41:51] = True
    targets: list[Target] = []
    _add(targets, here, away, np.ones_like(here), MASK)
    (target,) = targets
    assert target.filled.sum() == 100
    assert target.neighbour is not None
    assert target.neighbour.sum() == 100
    assert not target.neighbour[18:, 18:].any()
