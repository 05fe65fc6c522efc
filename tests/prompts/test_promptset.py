"""A PromptSet is a frozen value."""

from dataclasses import FrozenInstanceError

import pytest

from lib.prompts.promptset import PromptSet


def test_it_cannot_be_changed() -> None:
    prompts = PromptSet()
    with pytest.raises(FrozenInstanceError):
        prompts.label = "liver"  # type: ignore[misc]
    assert hash(prompts) == hash(PromptSet())
