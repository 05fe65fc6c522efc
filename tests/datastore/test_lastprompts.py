"""The last prompts of each image."""

import logging
import os
import threading
from pathlib import Path

import pytest

from lib.datastore.lastprompts import LastPrompts

FIRST, SECOND = {"prompts": {"positive_ijk": [[1, 2, 3]]}}, {"prompts": {"positive_ijk": [[4, 5, 6]]}}


def test_the_last_of_each_label_is_kept_and_survives_a_restart(tmp_path: Path) -> None:
    last = LastPrompts(tmp_path / "state")
    assert last.of("a") == {}
    last.note("a", {"liver": FIRST})
    last.note("a", {"liver": SECOND})
    last.note("a", {"": FIRST})
    last.note("b", {"spleen": FIRST})
    assert LastPrompts(tmp_path / "state").of("a") == {"liver": SECOND, "": FIRST}


def test_what_is_saved_is_forgotten_and_what_came_since_stays(tmp_path: Path) -> None:
    last = LastPrompts(tmp_path)
    last.note("a", {"liver": FIRST, "spleen": FIRST})
    saved = last.of("a")
    last.note("a", {"spleen": SECOND})
    last.clear("a", saved)
    assert last.of("a") == {"spleen": SECOND}
    last.clear("a", last.of("a"))
    assert list(tmp_path.iterdir()) == []
    last.clear("a", {})


@pytest.mark.parametrize("image_id", ["../x", "a" * 250, "ä b:c", "."])
def test_any_id_is_one_file_of_the_folder(tmp_path: Path, image_id: str) -> None:
    last = LastPrompts(tmp_path / "state")
    last.note(image_id, {"": FIRST})
    assert last.of(image_id) == {"": FIRST}
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "state"]


@pytest.mark.parametrize("content", ["{", "[]", '{"labels": [1]}', '{"labels": {"a": 1}}', "\xff"])
def test_a_damaged_file_is_forgotten(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    last = LastPrompts(tmp_path)
    last.note("a", {"": FIRST})
    (file,) = tmp_path.glob("*.json")
    file.write_text(content, "latin-1")
    with caplog.at_level(logging.WARNING):
        assert last.of("a") == {}
    assert file.name in caplog.text
    last.note("a", {"": SECOND})
    assert last.of("a") == {"": SECOND}


def test_the_images_longest_not_asked_about_make_room(tmp_path: Path) -> None:
    last = LastPrompts(tmp_path, keep=3)
    for age, image_id in enumerate(("c", "b", "a")):
        last.note(image_id, {"": FIRST})
        os.utime(last._path(image_id), ns=(age, age))
    last.note("c", {"": SECOND})
    last.note("d", {"": FIRST})
    assert [image_id for image_id in "abcd" if last.of(image_id)] == ["a", "c", "d"]


def test_threads_lose_nothing(tmp_path: Path) -> None:
    last = LastPrompts(tmp_path)
    threads = [
        threading.Thread(target=lambda name=str(number): [last.note("a", {name: FIRST}) for _ in range(20)])
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(last.of("a")) == list("012345")
    assert len(list(tmp_path.iterdir())) == 1
