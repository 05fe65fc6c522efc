"""The simulated conversation."""

from collections import Counter

import pytest
import torch

from lib.model.base import BaseSpec, build_sam
from lib.model.decoder import BOX_START, BOX_STOP, PADDING, POSITIVE
from lib.model.medsa import Masks, MedSA
from lib.pretraining.batches import BOX, CARRIED, POINT, Batch, SyntheticBatches
from lib.pretraining.rounds import Conversation, Dialogue, talk

SIZE, MASK = 64, 16


def batch() -> Batch:
    """Three prompts, one of each kind, for one object in one image."""
    target = torch.zeros(MASK, MASK)
    target[4:12, 4:12] = 1
    return Batch(
        images=200 * target.repeat_interleave(4, 0).repeat_interleave(4, 1)[None, None],
        targets=target.expand(3, -1, -1).clone(),
        owners=torch.zeros(3, dtype=torch.long),
        kinds=torch.tensor([POINT, BOX, CARRIED]),
        points_xy=torch.tensor([[[30.0, 30], [0, 0]], [[16.0, 16], [48, 48]], [[30.0, 30], [0, 0]]]),
        point_labels=torch.tensor([[POSITIVE, PADDING], [BOX_START, BOX_STOP], [POSITIVE, PADDING]]),
        masks=torch.zeros(3, 1, MASK, MASK),
    )


def nothing_found() -> Masks:
    return Masks(torch.full((3, 4, MASK, MASK), -5.0), torch.zeros(3, 4))


def test_the_plan_of_a_step_is_always_the_same_and_its_lengths_have_their_shares() -> None:
    plans = [Conversation.draw(0, step, (0.5, 0.25, 0.25)) for step in range(400)]
    assert plans == [Conversation.draw(0, step, (0.5, 0.25, 0.25)) for step in range(400)]
    counted = Counter(plan.rounds for plan in plans)
    assert set(counted) == {1, 2, 3}
    assert 160 < counted[1] < 240
    assert Conversation.draw(0, 0, (0.0, 0.0, 1.0)).learned in ((0, 2), (2, 0))
    assert all(set(plan.learned) == {0, plan.rounds - 1} for plan in plans)


def test_each_answer_adds_a_click_and_keeps_what_was_said() -> None:
    dialogue = Dialogue(batch(), SIZE, torch.Generator().manual_seed(0), "cpu")
    assert dialogue.ambiguous.tolist() == [True, False, False]
    assert dialogue.prompts.has_mask.tolist() == [False, False, True]
    for turn in range(1, 4):
        dice = dialogue.take(nothing_found())
        assert dice.tolist() == [0, 0, 0]
        assert not dialogue.ambiguous.any()
        labels = [sorted(row) for row in dialogue.labels.tolist()]
        assert labels[0] == labels[2] == sorted([POSITIVE] * (turn + 1) + [PADDING])
        assert labels[1] == sorted([POSITIVE] * turn + [BOX_START, BOX_STOP])
    for row in (0, 2):
        assert dialogue.points[row, 0].tolist() == [30, 30]
        assert dialogue.labels[row, -1] == PADDING
    box = dialogue.points[1][dialogue.labels[1] >= BOX_START]
    assert box.tolist() == [[16, 16], [48, 48]]


def test_the_last_answer_is_shown_to_some_of_the_next_prompts() -> None:
    dialogue = Dialogue(batch(), SIZE, torch.Generator().manual_seed(0), "cpu")
    shown = []
    for _ in range(40):
        dialogue.take(nothing_found())
        shown += dialogue.has_mask.tolist()
        assert (dialogue.masks == -5).all()
    assert 0.5 < sum(shown) / len(shown) < 0.8


def test_gradients_come_from_the_learned_rounds(tiny_spec: BaseSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = MedSA(build_sam(tiny_spec), tiny_spec, None).train()
    data = SyntheticBatches(0, 1, tiny_spec.image_size, tiny_spec.mask_size, images=1, objects=2)[0]
    decode, learned = model.decode, []

    def watched(*arguments: torch.Tensor) -> Masks:
        learned.append(torch.is_grad_enabled())
        return decode(*arguments)

    monkeypatch.setattr(model, "decode", watched)
    loss, dices = talk(model, data, Conversation(4, (0, 3)), 0.5, torch.Generator().manual_seed(0), "cpu")
    loss.backward()
    assert learned == [True, False, False, True]
    assert len(dices) == 4
    assert all(0 <= dice <= 1 for dice in dices)
    for part in (model.sam.image_encoder, model.sam.mask_decoder):
        assert all(parameter.grad is not None for parameter in part.parameters())
