"""The score file."""

from pathlib import Path

import pytest

from lib.scoring.scores import CaseScore, ScoreTable, read_scores, write_scores

TABLE = ScoreTable(
    {
        "a": CaseScore(0.5, "vit_t", 2),
        "b": CaseScore(0.7, "vit_t", 1),
        "c": CaseScore(None, "vit_t", 2, "bad"),
    }
)


def test_round_trip(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.json", TABLE)
    assert read_scores(tmp_path / "scores.json") == TABLE


def test_missing_are_those_of_other_models_and_not_the_failed() -> None:
    assert TABLE.missing(["d", "c", "b", "a"], "vit_t", 2) == ["b", "d"]
    assert TABLE.missing(["a", "b"], "vit_b", 2) == ["a", "b"]


def test_a_score_of_an_earlier_version_is_better_than_none() -> None:
    assert TABLE.values_by_case() == {"a": 0.5, "b": 0.7}


def test_no_file_yet(tmp_path: Path) -> None:
    assert read_scores(tmp_path / "scores.json") == ScoreTable({})


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": {"mark": 1}}'])
def test_an_unreadable_file_means_scoring_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    assert read_scores(tmp_path / "scores.json") == ScoreTable({})
