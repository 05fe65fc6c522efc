import pytest

from lib.prompts.promptset import Box, PromptSet
from lib.prompts.recorded import recorded_prompts

GIVEN = PromptSet(((1, 2, 3), (4, 5, 6)), ((7, 8, 9),), (Box((0, 0, 2), (5, 6, 3)),), "liver")


def test_what_was_kept_comes_back():
    kept = {"prompts": {"liver": {"prompts": GIVEN.describe(), "author": "anna"}}}
    assert recorded_prompts(kept) == {"liver": GIVEN}


def test_a_prompt_without_a_name_has_none():
    kept = {"prompts": {"": {"prompts": PromptSet(((1, 2, 3),)).describe()}}}
    assert recorded_prompts(kept) == {"": PromptSet(((1, 2, 3),))}


@pytest.mark.parametrize("record", [{}, {"prompts": None}, {"prompts": {}}])
def test_a_label_without_prompts_has_none(record):
    assert recorded_prompts(record) == {}


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {"prompts": None},
        {"prompts": {**GIVEN.describe(), "positive_ijk": [[1, 2]]}},
        {"prompts": {**GIVEN.describe(), "positive_ijk": "here"}},
        {"prompts": {**GIVEN.describe(), "boxes": [{}]}},
        {"prompts": PromptSet(negative_ijk=((1, 2, 3),)).describe()},
    ],
)
def test_what_cannot_be_read_or_says_nothing_is_left_out(said):
    kept = {"prompts": {"spleen": said, "liver": {"prompts": GIVEN.describe()}}}
    assert recorded_prompts(kept) == {"liver": GIVEN}
