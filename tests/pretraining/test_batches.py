"""The first prompts and the corrective clicks."""

import numpy as np
import torch

from lib.model.decoder import BOX_START, NEGATIVE, PADDING, POSITIVE
from lib.pretraining.batches import BOX, CARRIED, POINT, SyntheticBatches, correct, perturbed

SIZE, MASK = 64, 16


def batches() -> list:
    data = SyntheticBatches(seed=3, length=8, size=SIZE, mask_size=MASK, images=2, objects=3)
    return [data[index] for index in range(8)]


def test_a_batch_depends_on_its_seed_and_number_alone() -> None:
    first, second = batches()[5], batches()[5]
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.points_xy, second.points_xy)
    assert not torch.equal(first.images, batches()[6].images)


def test_every_kind_of_prompt_points_at_its_object() -> None:
    seen = {POINT: 0, BOX: 0, CARRIED: 0}
    for batch in batches():
        for index, kind in enumerate(batch.kinds.tolist()):
            seen[kind] += 1
            target = batch.targets[index]
            if kind == BOX:
                assert batch.point_labels[index].tolist() == [BOX_START, BOX_START + 1]
                assert (batch.points_xy[index, 1] > batch.points_xy[index, 0]).all()
                continue
            assert batch.point_labels[index].tolist() == [POSITIVE, PADDING]
            column, row = (batch.points_xy[index, 0] * MASK / SIZE).long().tolist()
            if kind == POINT:
                assert target[row, column] > 0
            else:
                assert batch.masks[index, 0, row, column] > 0
    assert min(seen.values()) > 3


def test_the_corrective_click_lies_in_the_largest_error() -> None:
    target = torch.zeros(3, MASK, MASK)
    target[:, 2:10, 2:10] = 1
    logits = torch.full((3, MASK, MASK), -5.0)
    logits[1, :, :] = 5.0
    logits[2, 2:10, 2:10] = 5.0
    points, signs = correct(logits, target, SIZE // MASK)
    assert signs.flatten().tolist() == [POSITIVE, NEGATIVE, PADDING]
    rows, columns = (points[:2, 0, 1] / 4).long(), (points[:2, 0, 0] / 4).long()
    assert target[0, rows[0], columns[0]] == 1
    assert target[1, rows[1], columns[1]] == 0


def test_a_perturbed_mask_resembles_the_mask() -> None:
    mask = np.zeros((32, 32), dtype=np.float32)
    mask[8:22, 10:24] = 1
    overlaps, rng = [], np.random.default_rng(0)
    for _ in range(30):
        other = perturbed(rng, mask)
        overlaps.append(2 * (other * mask).sum() / (other.sum() + mask.sum()))
    assert 0.6 < np.mean(overlaps) < 0.98
    assert min(overlaps) > 0.3
