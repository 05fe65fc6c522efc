"""The queue, computed from what is on disk."""

import os
from pathlib import Path
from typing import Any

import pytest

from lib.server import parts as parts_module
from lib.server import queue_view
from lib.server.parts import Parts, build_parts
from lib.server.queue_view import QueueView
from lib.training import releases
from lib.training.account import explain

APP = Path(parts_module.__file__).resolve().parents[2]


class Store:
    """A datastore whose labels are files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.away: set[str] = set()
        self.of: dict[str, str] = {}

    def patients(self) -> dict[str, str]:
        return self.of

    def is_available(self, image_id: str) -> bool:
        return image_id not in self.away

    def get_labeled_images(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]

    def get_unlabeled_images(self) -> list[str]:
        return ["x"]

    def get_image_uri(self, image_id: str) -> str:
        return f"/studies/{image_id}"

    def get_label_uri(self, label_id: str, tag: str) -> str:
        return str(self.folder / label_id)


def test_the_newest_label_is_found_by_its_file(parts: Parts, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    for name, moment in (("a", 1000.0), ("b", 3000.0), ("c", 2000.0)):
        (folder / name).write_text(name)
        os.utime(folder / name, (moment, moment))
    queue = QueueView(parts, Store(folder))
    assert queue.newest(["a", "c"]) == 2000.0
    assert queue.newest(["a", "gone"]) == 1000.0
    assert queue.newest([]) is None


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return build_parts(APP, {"task": "object", "state": str(tmp_path / "state")})


@pytest.fixture
def store(tmp_path: Path) -> Any:
    (tmp_path / "labels").mkdir()
    return Store(tmp_path / "labels")


def test_new_and_changed_labels_wait(parts: Parts, store: Any) -> None:
    queue = QueueView(parts, store)
    (store.folder / "a").write_bytes(b"1")
    (store.folder / "b").write_bytes(b"2")
    waiting = queue.pending()
    assert set(waiting) == {"a", "b"}
    parts.releases.record({"decision": "refused", "label_digests": waiting})
    assert queue.pending() == {}
    (store.folder / "b").write_bytes(b"changed")
    assert set(queue.pending()) == {"b"}
    assert set(QueueView(parts, store).pending()) == {"b"}


def test_a_failed_run_leaves_the_queue(parts: Parts, store: Any) -> None:
    (store.folder / "a").write_bytes(b"1")
    queue = QueueView(parts, store)
    parts.releases.record({"decision": "failed", "label_digests": queue.pending()})
    assert set(queue.pending()) == {"a"}


def test_a_label_whose_image_is_away_starts_nothing_until_it_is_back(parts: Parts, store: Any) -> None:
    for name in ("a", "b"):
        (store.folder / name).write_bytes(b"1")
    store.away = {"a"}
    queue = QueueView(parts, store)
    assert set(queue.pending()) == {"b"}
    store.away = set()
    assert set(queue.pending()) == {"a", "b"}


def test_the_records_are_parsed_again_only_when_there_are_more(
    parts: Parts, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(queue_view, "explain", lambda record: told.append(record) or explain(record))
    parsed: list[str] = []
    parse = releases._parse
    monkeypatch.setattr(releases, "_parse", lambda line: parsed.append(line) or parse(line))
    queue = QueueView(parts, store)
    for count in (1, 2):
        parts.releases.record({"decision": "failed", "number": count})
        parsed.clear()
        told.clear()
        for _ in range(3):
            queue.pending()
            assert [record["number"] for record in queue.records()] == [1, 2][:count]
            assert len(queue.entries()) == count
        assert (len(parsed), len(told)) == (count, count)


def test_labelled_images_are_counted(parts: Parts, store: Any) -> None:
    (store.folder / "a").write_bytes(b"1")
    assert QueueView(parts, store).labelled() == 1


def test_what_stands_in_the_way_of_a_training_counts_patients_and_what_serves_has_seen(
    parts: Parts, store: Any
) -> None:
    queue = QueueView(parts, store)
    assert (queue.obstacle() or "").startswith("no labels")
    for name in "abeghi":  # by their hashes all of them are to be trained on
        (store.folder / name).write_bytes(b"1")
    assert queue.obstacle() is None
    store.of = dict.fromkeys("abeghi", "x") | {"b": "y"}
    assert (queue.obstacle() or "").endswith("found 2"), "patients"
    store.of = {"a": "x", "b": "y"}
    run = {"decision": "published", "version": 1, "trained": ["gone", "e", "g"], "patients": {"gone": "y"}}
    with parts.releases.writing():
        parts.releases.record(run)
    assert queue.obstacle() is None, "the base serves"
    parts.releases.champion_version = lambda: 1  # type: ignore[method-assign]
    assert queue.obstacle() is None, "a, h and i are left"
    (store.folder / "i").unlink()
    expected = (
        "2 of at least 3 patients or cases to compare by: the serving version was trained on the others"
    )
    assert (queue.obstacle() or "").startswith(expected), "of b's patient another series was trained on"


def test_a_label_that_vanishes_is_no_error(parts: Parts, store: Any) -> None:
    queue = QueueView(parts, store)
    store.get_labeled_images = lambda: ["gone"]
    assert queue.pending() == {}


def test_nothing_is_unscored_before_a_model_serves(parts: Parts, store: Any) -> None:
    assert QueueView(parts, store).unscored() == ()
