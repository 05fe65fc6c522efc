"""The folder of scores: any number of writers, one reader, and kills."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from lib.scoring.scores import (
    MOST_TRIES,
    CaseScore,
    LabelScore,
    ScoreFolder,
    ScoreTable,
    in_shard,
    progress_of,
)

LABEL = LabelScore(entropy=0.3, border=0.6, disagreement=0.0, volume_mm3=1234.5)


def score(version: int = 2, value: float = 0.3, when: float = 1.0, **more: object) -> CaseScore:
    labels = {"liver": LabelScore(value, value, value, 10.0)}
    return CaseScore("vit_t", version, labels, time=when, model=f"model {version}", **more)  # type: ignore[arg-type]


def failure(version: int, **more: object) -> CaseScore:
    return CaseScore("vit_t", version, error="bad", model=f"model {version}", **more)  # type: ignore[arg-type]


def images(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "")


@pytest.fixture
def folder(tmp_path: Path) -> ScoreFolder:
    return ScoreFolder(tmp_path / "scores")


def test_what_was_written_is_read(folder: ScoreFolder, tmp_path: Path) -> None:
    written = CaseScore("vit_t", 3, {"liver": LABEL}, np.arange(4, dtype=np.float32) / 8, 7, 0.25)
    folder.append("a", written)
    found = ScoreFolder(tmp_path / "scores").table().cases["a"]
    assert found.labels == {"liver": LABEL}
    assert np.array_equal(found.embedding, written.embedding)
    assert (found.base, found.adapter_version, found.slice_index, found.seconds) == ("vit_t", 3, 7, 0.25)
    assert found.time == written.time
    assert found.uncertainty == pytest.approx(0.3)


def test_the_newest_line_of_a_case_counts_whichever_file_it_is_in(folder: ScoreFolder) -> None:
    ScoreFolder(folder.path, shard=1).append("a", score(value=0.9, when=3.0))
    (folder.path / "part-000.jsonl").write_text(score(value=0.1, when=2.0).to_json("a") + "\n")
    assert folder.table().cases["a"].uncertainty == pytest.approx(0.9)


def test_the_table_is_the_same_object_until_something_is_added(folder: ScoreFolder) -> None:
    assert folder.table().cases == {}
    folder.append("a", score())
    table = folder.table()
    assert folder.table() is table
    folder.append("b", score())
    assert set(folder.table().cases) == {"a", "b"}
    assert set(table.cases) == {"a"}


def test_a_line_that_a_kill_cut_off_costs_that_line_only(folder: ScoreFolder) -> None:
    folder.append("a", score())
    file = folder.path / "part-000.jsonl"
    file.write_bytes(file.read_bytes() + b'{"case": "b", "ba')
    table = folder.table()
    assert set(table.cases) == {"a"}
    assert folder.table() is table
    folder.append("c", score())
    assert set(folder.table().cases) == {"a", "c"}


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"case": "b"}', '{"case": "b", "labels": {"x": {"mark": 1}}}', "\x00"]
)
def test_a_line_that_is_something_else_is_passed_over(folder: ScoreFolder, line: str) -> None:
    folder.append("a", score())
    with (folder.path / "part-000.jsonl").open("a") as stream:
        stream.write(line + "\n")
    folder.append("c", score())
    assert set(folder.table().cases) == {"a", "c"}


def test_tidying_keeps_the_newest_of_known_cases_in_one_file(folder: ScoreFolder) -> None:
    for shard in range(3):
        own = ScoreFolder(folder.path, shard)
        own.append("a", score(value=0.1 * shard, when=shard))
        own.append(f"only{shard}", score())
    folder.pictures.mkdir()
    for case in ("a", "only2"):
        folder.picture(case).write_bytes(b"x")
    reader = ScoreFolder(folder.path)
    reader.table()
    folder.tidy(lambda: {"a", "only0"})
    assert [path.name for path in folder.path.glob("*.jsonl")] == ["part-000.jsonl"]
    assert len((folder.path / "part-000.jsonl").read_text().splitlines()) == 2
    for one in (folder, reader):
        assert set(one.table().cases) == {"a", "only0"}
        assert one.table().cases["a"].uncertainty == pytest.approx(0.2)
    assert [folder.picture("a")] == list(folder.pictures.iterdir())
    ScoreFolder(folder.path, 1).append("later", score())
    assert set(reader.table().cases) == {"a", "only0", "later"}


def test_tidying_nothing(folder: ScoreFolder) -> None:
    folder.tidy(lambda: {"a"})
    assert not folder.path.exists()


def _append_many(path: Path, shard: int) -> None:
    own = ScoreFolder(path, shard % 2)  # two of them share a file
    for number in range(20):
        own.append(f"case{shard}-{number}", score())
        if shard == 0 and number % 5 == 0:
            own.tidy(lambda: {f"case{one}-{other}" for one in range(4) for other in range(20)})


def test_processes_that_write_at_once_lose_nothing(folder: ScoreFolder) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(folder.path, shard)) for shard in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    assert len(folder.table().cases) == 80


def test_due_are_those_of_other_models_and_not_the_failed_the_most_promising_first() -> None:
    table = ScoreTable(
        {
            "sure": score(1, 0.1),
            "unsure": score(1, 0.8),
            "done": score(2),
            "failed": failure(2, unreadable=True),
            "unlucky": failure(2, tries=MOST_TRIES - 1),
            "hopeless": failure(2, tries=MOST_TRIES),
            "middle": score(1, 0.4),
        }
    )
    names = images("new", "sure", "failed", "unlucky", "hopeless", "unsure", "done", "middle")
    assert table.due(names, "model 2")[0] == "unsure"
    assert table.due(names, "model 2")[-1] == "sure"
    assert set(table.due(names, "model 2")) == {"unsure", "middle", "sure", "new", "unlucky"}
    assert set(table.due(names, "model 3")) == set(names)
    assert set(table.due(dict.fromkeys(names, "another file"), "model 2")) == set(names)


def test_what_is_known_of_an_image_is_of_its_file() -> None:
    embedding = np.ones(4, np.float32)
    table = ScoreTable(
        {
            "a": score(embedding=embedding, view="v", image="1"),
            "bad": failure(2, view="v", image="1", unreadable=True),
            "unlucky": failure(2, view="v", image="1", tries=1),
        }
    )
    assert table.is_described("a", "v", "1")
    assert not table.is_described("a", "v", "2")
    assert not table.is_described("a", "w", "1")
    assert table.is_described("bad", "w", "1"), "it would fail again"
    assert not table.is_described("bad", "w", "2")
    assert not table.is_described("unlucky", "v", "1")
    assert table.unreadable == {"bad": "1"}


def test_due_without_any_score_has_an_order_of_its_own() -> None:
    names = [f"case{number}" for number in range(20)]
    due = ScoreTable({}).due(images(*reversed(names)), "model 0")
    assert due == ScoreTable({}).due(images(*names), "model 0")
    assert due != names
    assert sorted(due) == sorted(names)


def test_shards_share_all_cases() -> None:
    names = [f"case{number}" for number in range(200)]
    shares = [[name for name in names if in_shard(name, shard, 3)] for shard in range(3)]
    assert sorted(case for share in shares for case in share) == sorted(names)
    assert all(40 < len(share) < 95 for share in shares)


def test_progress_names_the_first_that_failed() -> None:
    failed = {f"bad{number}": failure(2, unreadable=True) for number in range(5)}
    table = ScoreTable({"a": score(), "c": score(1), **failed})
    assert progress_of(table, images("a", "c", "d", *failed), "model 2") == {
        "scored": 1,
        "of": 8,
        "failed": 5,
        "examples": {"bad0": "bad", "bad1": "bad", "bad2": "bad"},
    }


def test_a_clock_that_was_set_back_makes_no_new_score_an_old_one(folder: ScoreFolder) -> None:
    folder.append("a", score(value=0.1, when=1000.0))
    folder.append("a", score(value=0.9, when=10.0))
    assert folder.table().cases["a"].uncertainty == pytest.approx(0.9)
    assert ScoreFolder(folder.path).table().cases["a"].uncertainty == pytest.approx(0.9)


def test_a_file_that_goes_while_it_is_looked_at_costs_nothing(
    folder: ScoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard, case in enumerate("abc"):
        ScoreFolder(folder.path, shard).append(case, score())
    reader, stat = ScoreFolder(folder.path), Path.stat
    assert len(reader.table().cases) == 3

    def tidied_meanwhile(path: Path, **named: bool) -> object:
        if path.name == "part-001.jsonl":
            monkeypatch.undo()
            folder.tidy(lambda: set("abc"))
        return stat(path, **named)

    monkeypatch.setattr(Path, "stat", tidied_meanwhile)
    assert set(reader.table().cases) == set("abc")
    assert set(reader.table().cases) == set("abc")


def test_a_case_that_could_not_be_scored_has_no_uncertainty() -> None:
    assert CaseScore("vit_t", 0, error="bad").uncertainty is None
