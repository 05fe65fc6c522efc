"""What is remembered of a conversation, for whom, and for how long."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.conversation import KEPT_ANSWERS, Conversations, Earlier, Topic, adds_to
from lib.prompts.promptset import Box, MaskPrompt, PromptSet
from lib.propagation import PlaneMask

TOPIC = Topic("ann", "volume", "model", 2, "liver", "object")
A, B, C = (1, 1, 1), (2, 2, 2), (3, 3, 3)
ONE = PromptSet((A,))
TWO = PromptSet((A, B))
THREE = PromptSet((A, B), (C,))


def answer(prompts: PromptSet, size: int = 4) -> Earlier:
    return Earlier(prompts, {0: PlaneMask(torch.zeros(size, size), 1.0)})


def filled(*prompts: PromptSet, max_bytes: int = 1 << 20) -> Conversations:
    conversations = Conversations(max_bytes)
    for one in prompts:
        conversations.remember(TOPIC, answer(one))
    return conversations


def recalled(conversations: Conversations, prompts: PromptSet, topic: Topic = TOPIC) -> PromptSet | None:
    found = conversations.recall(topic, prompts)
    return None if found is None else found.prompts


def test_the_answer_to_most_of_the_prompts_is_recalled() -> None:
    conversations = filled(TWO, ONE)
    assert recalled(conversations, THREE) == TWO
    assert recalled(conversations, TWO) == TWO
    assert recalled(conversations, PromptSet((A, C))) == ONE
    assert recalled(conversations, PromptSet((B,))) is None


def test_a_click_that_is_taken_back_gives_what_was_before_it() -> None:
    conversations = filled(ONE, TWO, THREE)
    assert recalled(conversations, TWO) == TWO
    assert recalled(conversations, ONE) == ONE


@pytest.mark.parametrize(
    "other",
    [
        {"client": "bob"},
        {"volume": "another"},
        {"model": "another"},
        {"axis": 1},
        {"label": "spleen"},
        {"scope": "slice 3"},
    ],
)
def test_another_topic_is_another_conversation(other: dict[str, object]) -> None:
    assert recalled(filled(ONE), ONE, replace(TOPIC, **other)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        PromptSet((A,), label="liver"),
        PromptSet((A,), boxes=(Box(A, C),)),
        PromptSet((A,), mask=MaskPrompt(np.ones((2, 2, 2), dtype=bool))),
        PromptSet((), (A,)),
    ],
)
def test_what_is_more_than_further_points_begins_anew(changed: PromptSet) -> None:
    assert not adds_to(changed, ONE)
    assert not adds_to(ONE, changed)


def test_masks_are_equal_by_content() -> None:
    first, second = (PromptSet((A,), mask=MaskPrompt(np.eye(3, dtype=bool)[None])) for _ in range(2))
    assert adds_to(first, second)
    assert not adds_to(first, PromptSet((A,), mask=MaskPrompt(np.eye(3, dtype=bool)[:, None])))


def test_the_last_answers_of_a_conversation_are_kept() -> None:
    steps = [PromptSet(tuple((n, n, n) for n in range(count))) for count in range(1, KEPT_ANSWERS + 4)]
    conversations = filled(*steps)
    assert recalled(conversations, steps[-1]) == steps[-1]
    assert recalled(conversations, steps[3]) == steps[3]
    assert recalled(conversations, steps[2]) is None


def test_an_answer_to_the_same_prompts_replaces_the_one_before() -> None:
    conversations = filled(ONE)
    newer = answer(ONE)
    conversations.remember(TOPIC, newer)
    assert conversations.recall(TOPIC, ONE) is newer


def test_beyond_the_bound_the_conversation_that_rested_longest_goes() -> None:
    size = answer(ONE).nbytes
    conversations = Conversations(2 * size)
    topics = [replace(TOPIC, client=name) for name in ("ann", "bob", "cid")]
    conversations.remember(topics[0], answer(ONE))
    conversations.remember(topics[1], answer(ONE))
    conversations.remember(topics[0], answer(ONE))
    conversations.remember(topics[2], answer(ONE))
    assert [recalled(conversations, ONE, topic) is not None for topic in topics] == [True, False, True]


def test_an_answer_beyond_the_bound_is_not_kept() -> None:
    conversations = filled(ONE, max_bytes=answer(ONE).nbytes - 1)
    assert recalled(conversations, ONE) is None


def test_many_threads_may_talk_at_once() -> None:
    conversations = Conversations(40 * answer(ONE).nbytes)
    wrong: list[str] = []

    def talk(name: str) -> None:
        topic = replace(TOPIC, client=name)
        for _ in range(200):
            for prompts in (ONE, TWO, THREE):
                conversations.remember(topic, answer(prompts))
                if recalled(conversations, prompts, topic) not in (prompts, None):
                    wrong.append(name)

    threads = [threading.Thread(target=talk, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
