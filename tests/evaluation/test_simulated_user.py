"""The simulated annotator corrects what the model got wrong."""

import numpy as np
import pytest

from lib.errors import InputError
from lib.evaluation.simulated_user import Predict, annotate
from lib.prompts.promptset import PromptSet

ISOTROPIC = (1.0, 1.0, 1.0)


@pytest.fixture
def truth() -> np.ndarray:
    mask = np.zeros((24, 20, 12), dtype=bool)
    mask[4:16, 5:15, 2:10] = True
    return mask


def painter(within: np.ndarray, radius: int) -> Predict:
    """A model that paints a cube, `within` a mask, at each positive click and clears one at others."""

    def predict(prompts: PromptSet) -> np.ndarray:
        mask = np.zeros(within.shape, dtype=np.uint8)
        for value, points in ((1, prompts.positive_ijk), (0, prompts.negative_ijk)):
            for point in points:
                window = tuple(slice(max(0, index - radius), index + radius + 1) for index in point)
                mask[window] = value
        return mask * within

    return predict


def test_every_click_is_recorded_and_they_help(truth: np.ndarray) -> None:
    results = annotate(painter(truth, 3), truth, 5, 2, ISOTROPIC, "object")
    assert [len(r.prompts.positive_ijk) + len(r.prompts.negative_ijk) for r in results] == [1, 2, 3, 4, 5]
    dices = [r.dice for r in results]
    assert dices == sorted(dices)
    assert dices[-1] > dices[0] + 0.1
    assert {r.prompts.label for r in results} == {"object"}


def test_too_much_is_taken_away(truth: np.ndarray) -> None:
    results = annotate(painter(np.ones_like(truth), 11), truth, 2, 2, ISOTROPIC)
    assert len(results[1].prompts.negative_ijk) == 1
    assert not truth[results[1].prompts.negative_ijk[0]]


def test_a_perfect_answer_ends_it(truth: np.ndarray) -> None:
    results = annotate(lambda prompts: truth, truth, 5, 2, ISOTROPIC)
    assert [r.dice for r in results] == [1.0]


def test_the_model_is_asked_once_per_click(truth: np.ndarray) -> None:
    asked: list[PromptSet] = []

    def predict(prompts: PromptSet) -> np.ndarray:
        asked.append(prompts)
        return np.zeros_like(truth)

    results = annotate(predict, truth, 3, 2, ISOTROPIC)
    assert asked == [r.prompts for r in results]
    assert len(asked) == 3


def test_without_an_object_there_is_nothing_to_click(truth: np.ndarray) -> None:
    with pytest.raises(InputError):
        annotate(lambda prompts: truth, np.zeros_like(truth), 3, 2, ISOTROPIC)
