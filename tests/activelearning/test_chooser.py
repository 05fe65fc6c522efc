"""Rankings of a datastore's cases, and what is said with an offer."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lib.activelearning.chooser import DRAWN, FRESH_SECONDS, PATIENCE_SECONDS, Chooser
from lib.activelearning.pool import Pool
from lib.activelearning.ranking import STRATEGIES, Ranked
from lib.scoring.scores import CaseScore, LabelScore, ScoreFolder

CASES = [f"case{n}" for n in range(30)]
OLD = CASES[:10]


@pytest.fixture
def scores(tmp_path: Path) -> ScoreFolder:
    folder = ScoreFolder(tmp_path / "scores")
    rng = np.random.default_rng(0)
    for case in CASES:
        put(folder, case, 0.2, rng.normal(size=4))
    return folder


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def chooser(scores: ScoreFolder, clock: Clock) -> Chooser:
    return Chooser(scores, ("liver",), seed=0, clock=clock)


def put(folder: ScoreFolder, case: str, border: float, embedding: object) -> None:
    labels = {"liver": LabelScore(0.2, border, 0.2, 100.0)}
    folder.append(case, CaseScore("vit_t", 1, labels, np.asarray(embedding, np.float32)))


def put_a_group_far_away(folder: ScoreFolder) -> None:
    """Six cases that nothing labelled stands for, of which the last is very uncertain."""
    for number in range(24, 30):
        put(folder, f"case{number}", 0.95 if number == 29 else 0.2, (6, 6, 6, 6 + 0.01 * number))


def test_the_ranking_stays_until_a_label_or_a_case_is_new(chooser: Chooser) -> None:
    free = CASES[10:]
    ranking = chooser.ranking("medsa", CASES, free)
    assert chooser.ranking("medsa", CASES, list(reversed(free))) is ranking
    labelled = chooser.ranking("medsa", CASES, free[1:])
    assert free[0] not in {one.case for one in labelled.ranked}
    assert chooser.ranking("medsa", [*CASES, "new"], [*free, "new"]).ranked[-1].case == "new"
    assert chooser.ranking("medsa", CASES[1:], free) is not ranking


def test_new_scores_count_after_a_while(chooser: Chooser, scores: ScoreFolder, clock: Clock) -> None:
    ranking = chooser.ranking("medsa", CASES, CASES[10:])
    put_a_group_far_away(scores)
    clock.now = FRESH_SECONDS - 1
    assert chooser.ranking("medsa", CASES, CASES[10:]) is ranking
    clock.now = FRESH_SECONDS + 1
    later = chooser.ranking("medsa", CASES, CASES[10:])
    assert later.ranked[0].case == "case29"
    clock.now += FRESH_SECONDS + 1
    assert chooser.ranking("medsa", CASES, CASES[10:]) is later


def test_a_restart_does_not_change_it(chooser: Chooser, scores: ScoreFolder) -> None:
    # However many rankings there were before it.
    for free in (CASES[12:], CASES[11:]):
        chooser.prepare("medsa", CASES, free).result()
    again = Chooser(ScoreFolder(scores.path), ("liver",), seed=0)
    one, other = (each.prepare("medsa", CASES, CASES[10:]).result().ranked for each in (chooser, again))
    assert [found.case for found in one] == [found.case for found in other]


class Slow:
    """A strategy that takes as long as it is let; `begun` counts its calls."""

    def __init__(self) -> None:
        self.may_end, self.begun = threading.Event(), 0

    def __call__(self, pool: Pool, rng: np.random.Generator) -> list[Ranked]:
        self.begun += 1
        assert self.may_end.wait(30)
        return [Ranked(pool.cases[place], "first") for place in pool.unlabelled]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    found = Slow()
    monkeypatch.setitem(STRATEGIES, "slow", found)  # type: ignore[arg-type]
    yield found
    found.may_end.set()


def offered(chooser: Chooser, cases: list[str], free: list[str]) -> list[str]:
    return [one.case for one in chooser.ranking("slow", cases, free).ranked]


def test_nobody_waits_for_a_ranking_where_there_is_an_older_one(chooser: Chooser, slow: Slow) -> None:
    slow.may_end.set()
    before = offered(chooser, CASES, CASES)
    slow.may_end.clear()
    free = [case for case in CASES if case != before[0]]
    assert offered(chooser, [*CASES, "new"], [*free, "new"]) == [*before[1:], "new"], "less what is labelled"
    assert slow.begun == 2
    offered(chooser, [*CASES, "new"], [*free, "new"])
    assert slow.begun == 2, "computed once, however many ask"


def test_what_was_computed_behind_counts_as_soon_as_it_is_there(chooser: Chooser, slow: Slow) -> None:
    slow.may_end.set()
    before = offered(chooser, CASES, CASES)
    slow.may_end.clear()
    offered(chooser, CASES, before[1:])
    slow.may_end.set()
    until = time.monotonic() + 30
    while chooser.ranking("slow", CASES, before[1:]) is not chooser.ranking("slow", CASES, before[1:]):
        assert time.monotonic() < until
    assert slow.begun == 2


def test_of_many_rankings_that_are_asked_for_meanwhile_one_is_computed(chooser: Chooser, slow: Slow) -> None:
    slow.may_end.set()
    before = offered(chooser, CASES, CASES)
    slow.may_end.clear()
    for labelled in range(1, 9):
        assert offered(chooser, CASES, before[labelled:]) == before[labelled:]
    slow.may_end.set()
    until = time.monotonic() + 30
    while offered(chooser, CASES, before[8:]) and slow.begun < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert slow.begun == 3, "the one that was begun, and the newest"


def test_the_first_ranking_is_waited_for(chooser: Chooser, slow: Slow) -> None:
    threading.Timer(3 * PATIENCE_SECONDS, slow.may_end.set).start()
    assert sorted(offered(chooser, CASES, CASES)) == sorted(CASES)


def test_a_prepared_ranking_is_not_computed_again(chooser: Chooser, slow: Slow) -> None:
    chooser.prepare("slow", CASES, CASES)
    slow.may_end.set()
    offered(chooser, CASES, CASES)
    assert slow.begun == 1


def test_a_ranking_that_fails_is_told(
    chooser: Chooser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(pool: Pool, rng: np.random.Generator) -> list[Ranked]:
        raise ArithmeticError("not a number")

    monkeypatch.setitem(STRATEGIES, "broken", broken)  # type: ignore[arg-type]
    with pytest.raises(ArithmeticError, match="not a number"):
        chooser.ranking("broken", CASES, CASES)
    assert "could not be ranked" in caplog.text


def test_random_is_drawn_anew_for_each_request(chooser: Chooser) -> None:
    drawn = {chooser.ranking("random", CASES, CASES).ranked[0].case for _ in range(20)}
    assert len(drawn) > 5


@pytest.mark.parametrize("strategy", DRAWN)
def test_a_draw_does_not_wait_for_another_strategys_ranking(
    chooser: Chooser, slow: Slow, strategy: str
) -> None:
    begun = chooser.prepare("slow", CASES, CASES)
    drawn = {chooser.ranking(strategy, CASES, CASES).ranked[0].case for _ in range(20)}
    assert len(drawn) > 5
    assert not begun.done()


def test_why_a_case_is_offered(chooser: Chooser, scores: ScoreFolder) -> None:
    put_a_group_far_away(scores)
    ranking = chooser.ranking("medsa", CASES, CASES[10:])
    about = ranking.about("case29")
    assert about["rank"] == 1
    assert about["of"] == 20
    assert about["label"] == "liver"
    assert about["reason"].startswith("uncertain at the border of liver (more than in 97% of the cases)")
    assert about["reason"].endswith("unlike anything labelled yet")
    assert about["parts"]["border"] == pytest.approx(0.95)
    assert "no surer of liver than of others" in ranking.about("case20")["reason"]


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("foreground_random", "any case in which liver is expected"),
        ("random", "any case, all equally likely"),
        ("first", "the first by name"),
        ("entropy", "bits of entropy on average"),
        ("diversity", "farthest from all that is labelled"),
    ],
)
def test_every_strategy_says_why(chooser: Chooser, strategy: str, said: str) -> None:
    ranking = chooser.ranking(strategy, CASES, CASES[10:])
    assert said in ranking.about(ranking.ranked[0].case)["reason"]


def test_a_cold_start_says_so(chooser: Chooser) -> None:
    ranking = chooser.ranking("medsa", CASES, CASES)
    assert (
        "typical of images that no labelled one stands for" in ranking.about(ranking.ranked[0].case)["reason"]
    )


def test_without_any_score_it_says_so(tmp_path: Path) -> None:
    ranking = Chooser(ScoreFolder(tmp_path / "none"), ("liver",), 0).ranking("medsa", CASES, CASES)
    assert len(ranking.ranked) == 30
    assert ranking.about(ranking.ranked[0].case)["reason"].startswith("not scored yet")
