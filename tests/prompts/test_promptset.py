"""A PromptSet is a frozen value."""

from dataclasses import FrozenInstanceError

import pytest

from lib.prompts.promptset import Box, PromptSet


def test_a_label_alone_points_at_nothing() -> None:
    assert PromptSet(label="liver").is_empty


@pytest.mark.parametrize(
    "prompts",
    [
        PromptSet(positive_ijk=((1, 2, 3),)),
        PromptSet(negative_ijk=((1, 2, 3),)),
        PromptSet(boxes=(Box((0, 0, 0), (1, 1, 1)),)),
    ],
)
def test_any_prompt_counts(prompts: PromptSet) -> None:
    assert not prompts.is_empty


def test_it_cannot_be_changed() -> None:
    prompts = PromptSet()
    with pytest.raises(FrozenInstanceError):
        prompts.label = "liver"  # type: ignore[misc]
    assert hash(prompts) == hash(PromptSet())
