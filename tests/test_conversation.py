"""Answers are remembered for those who asked, for as long as there is room."""

import random
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.conversation import KEPT_ANSWERS, Conversations, Earlier, Topic, adds_to, bytes_of
from lib.prompts.promptset import Box, MaskPrompt, PromptSet, Voxel
from lib.propagation import PlaneMask

TOPIC = Topic("ann", "volume", "model 1", 2, "liver", "object")
ONE, TWO, THREE, FOUR = (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)
BOX = Box((0, 0, 0), (5, 5, 1))
SIDE = 8
PLANE_BYTES = SIDE * SIDE * (4 + 1)


def plane() -> PlaneMask:
    return PlaneMask(torch.ones(SIDE, SIDE), 0.9)


def answer(prompts: PromptSet, slices: int = 1) -> Earlier:
    return Earlier(prompts, {index: plane() for index in range(slices)})


def mask_of(*voxels: Voxel) -> MaskPrompt:
    inside = np.zeros((6, 6, 6), dtype=bool)
    for voxel in voxels:
        inside[voxel] = True
    return MaskPrompt(inside)


def room_for(planes: int) -> Conversations:
    return Conversations(planes * PLANE_BYTES)


def test_nothing_is_recalled_of_nothing() -> None:
    assert Conversations().recall(TOPIC, PromptSet((ONE,))) is None


def test_the_answer_to_the_same_prompts_comes_back() -> None:
    memory, known = Conversations(), answer(PromptSet((ONE, TWO), (THREE,)))
    memory.remember(TOPIC, known)
    assert memory.recall(TOPIC, PromptSet((TWO, ONE), (THREE,))) is known


def test_of_several_the_answer_to_most_of_the_prompts_is_recalled() -> None:
    memory = Conversations()
    answers = [
        answer(PromptSet((ONE,))),
        answer(PromptSet((ONE, TWO), (THREE,))),
        answer(PromptSet((ONE,), (THREE,))),
    ]
    for one in answers:
        memory.remember(TOPIC, one)
    assert memory.recall(TOPIC, PromptSet((ONE, TWO, FOUR), (THREE,))) is answers[1]


def test_of_equal_ones_the_newest_is_recalled() -> None:
    memory, second = Conversations(), answer(PromptSet((TWO,)))
    memory.remember(TOPIC, answer(PromptSet((ONE,))))
    memory.remember(TOPIC, second)
    assert memory.recall(TOPIC, PromptSet((ONE, TWO))) is second


def test_undoing_a_click_gives_the_answer_from_before_it() -> None:
    memory, first = Conversations(), answer(PromptSet((ONE,)))
    memory.remember(TOPIC, first)
    memory.remember(TOPIC, answer(PromptSet((ONE,), (TWO,))))
    assert memory.recall(TOPIC, PromptSet((ONE,))) is first
    assert memory.recall(TOPIC, PromptSet((ONE, THREE))) is first


def test_a_click_that_changed_its_sign_is_another_click() -> None:
    memory = Conversations()
    memory.remember(TOPIC, answer(PromptSet((ONE,), (TWO,))))
    assert memory.recall(TOPIC, PromptSet((ONE, TWO))) is None


def test_a_second_answer_to_the_same_prompts_takes_the_place_of_the_first() -> None:
    memory, second = room_for(2), answer(PromptSet((ONE,)), slices=2)
    memory.remember(TOPIC, answer(PromptSet((ONE,)), slices=2))
    memory.remember(TOPIC, second)
    assert memory.recall(TOPIC, PromptSet((ONE,))) is second


@pytest.mark.parametrize(
    "other",
    [
        {"client": "bob"},
        {"volume": "another"},
        {"model": "model 2"},
        {"axis": 1},
        {"label": "spleen"},
        {"label": None},
        {"scope": "slice 3"},
    ],
    ids=str,
)
def test_what_somebody_else_or_something_else_was_answered_does_not_count(other: dict[str, object]) -> None:
    memory = Conversations()
    memory.remember(TOPIC, answer(PromptSet((ONE,))))
    assert memory.recall(replace(TOPIC, **other), PromptSet((ONE,))) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (PromptSet((ONE,)), PromptSet((ONE,), boxes=(BOX,))),
        (PromptSet((ONE,), boxes=(BOX,)), PromptSet((ONE,))),
        (PromptSet((ONE,), boxes=(BOX,)), PromptSet((ONE,), boxes=(Box((0, 0, 0), (5, 6, 1)),))),
        (PromptSet((ONE,), mask=mask_of(ONE)), PromptSet((ONE,))),
        (PromptSet((ONE,)), PromptSet((ONE,), mask=mask_of(ONE))),
        (PromptSet((ONE,), mask=mask_of(ONE)), PromptSet((ONE,), mask=mask_of(ONE, TWO))),
        (PromptSet((ONE,), label="liver"), PromptSet((ONE,), label="spleen")),
    ],
    ids=["box added", "box removed", "box moved", "mask removed", "mask added", "mask changed", "label"],
)
def test_boxes_mask_and_label_have_to_be_the_same(before: PromptSet, now: PromptSet) -> None:
    memory = Conversations()
    memory.remember(TOPIC, answer(before))
    assert memory.recall(TOPIC, now) is None


def test_a_mask_is_the_same_by_its_voxels_and_kept_once() -> None:
    memory = Conversations()
    memory.remember(TOPIC, answer(PromptSet(mask=mask_of(ONE))))
    memory.remember(TOPIC, answer(PromptSet((TWO,), mask=mask_of(ONE))))
    first = memory.recall(TOPIC, PromptSet(mask=mask_of(ONE)))
    second = memory.recall(TOPIC, PromptSet((TWO, THREE), mask=mask_of(ONE)))
    assert first is not None
    assert second is not None
    assert second.prompts.positive_ijk == (TWO,)
    assert second.prompts.mask is first.prompts.mask


points = st.sampled_from([(number, 0, 0) for number in range(4)])
prompt_sets = st.builds(
    PromptSet, st.lists(points, max_size=3).map(tuple), st.lists(points, max_size=3).map(tuple)
)


@settings(deadline=None)
@given(st.lists(prompt_sets, max_size=KEPT_ANSWERS), prompt_sets)
def test_recall_gives_the_largest_part_of_what_is_asked(before: list[PromptSet], now: PromptSet) -> None:
    memory = Conversations()
    for prompts in before:
        memory.remember(TOPIC, answer(prompts))
    recalled = memory.recall(TOPIC, now)

    def size(prompts: PromptSet) -> int:
        return len({*prompts.positive_ijk}) + len({*prompts.negative_ijk})

    fitting = [prompts for prompts in before if adds_to(now, prompts)]
    if recalled is None:
        assert not fitting
    else:
        assert adds_to(now, recalled.prompts)
        assert size(recalled.prompts) == max(map(size, fitting))


def test_only_the_last_answers_of_a_conversation_are_kept() -> None:
    memory = Conversations()
    for number in range(KEPT_ANSWERS + 1):
        memory.remember(TOPIC, answer(PromptSet(((number, 0, 0),))))
    assert memory.recall(TOPIC, PromptSet(((0, 0, 0),))) is None
    assert all(memory.recall(TOPIC, PromptSet(((number, 0, 0),))) for number in range(1, KEPT_ANSWERS + 1))


def test_the_conversation_that_rested_longest_goes_first() -> None:
    memory = room_for(3)
    topics = [replace(TOPIC, client=name) for name in ("ann", "bob", "cem", "dan")]
    for topic in topics[:3]:
        memory.remember(topic, answer(PromptSet((ONE,))))
    memory.remember(topics[0], answer(PromptSet((ONE,))))  # ann is back
    memory.remember(topics[3], answer(PromptSet((ONE,))))
    known = [memory.recall(topic, PromptSet((ONE,))) is not None for topic in topics]
    assert known == [True, False, True, True]


def test_a_conversation_that_fills_the_memory_alone_loses_its_oldest_answers_only() -> None:
    memory = room_for(5)
    prompts = [PromptSet(((number, 0, 0),)) for number in range(4)]
    memory.remember(replace(TOPIC, client="bob"), answer(prompts[0]))
    for one in prompts:
        memory.remember(TOPIC, answer(one, slices=2))
    assert [memory.recall(TOPIC, one) is not None for one in prompts] == [False, False, True, True]
    assert memory.recall(replace(TOPIC, client="bob"), prompts[0]) is not None


def test_an_answer_larger_than_the_memory_is_not_kept_and_disturbs_nothing() -> None:
    memory = room_for(3)
    memory.remember(TOPIC, answer(PromptSet((ONE,))))
    memory.remember(TOPIC, answer(PromptSet((TWO,)), slices=4))
    assert memory.recall(TOPIC, PromptSet((TWO,))) is None
    assert memory.recall(TOPIC, PromptSet((ONE,))) is not None


def test_slices_that_answers_share_count_once() -> None:
    memory = room_for(4)
    shared = {index: plane() for index in range(3)}
    memory.remember(TOPIC, Earlier(PromptSet((ONE,)), shared))
    memory.remember(TOPIC, Earlier(PromptSet((ONE, TWO)), {**shared, 1: plane()}))
    assert memory.recall(TOPIC, PromptSet((ONE,))) is not None
    assert memory.recall(TOPIC, PromptSet((ONE, TWO))) is not None


def test_masks_that_were_sent_and_voxels_that_are_given_count_too() -> None:
    sent = mask_of(ONE)
    given_plane = PlaneMask(torch.ones(SIDE, SIDE), 1.0, sent.inside[1])
    known = Earlier(PromptSet(mask=sent), {1: given_plane})
    assert bytes_of([known]) == PLANE_BYTES + 6 * 6 + 6**3
    memory = Conversations(PLANE_BYTES + 6 * 6 + 6**3 - 1)
    memory.remember(TOPIC, known)
    assert memory.recall(TOPIC, known.prompts) is None


def test_threads_get_their_own_answers_and_the_bound_holds() -> None:
    memory = room_for(40)
    topics = [replace(TOPIC, client=str(number)) for number in range(8)]
    wrong: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            number = chance.randrange(8)
            prompts = PromptSet(((chance.randrange(6), number, 0),))
            memory.remember(topics[number], answer(prompts, slices=chance.randrange(1, 4)))
            recalled = memory.recall(topics[number], PromptSet((*prompts.positive_ijk, (9, 9, 9))))
            if recalled is not None and recalled.prompts != prompts:
                wrong.append(recalled)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert memory._used == sum(map(bytes_of, memory._answers.values())) <= 40 * PLANE_BYTES
