"""Small files appear whole or not at all."""

import json
from pathlib import Path

import pytest

from lib.files import copy_beside, part_beside, write_json, write_text


def test_writes_and_makes_the_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"path": Path("x"), "n": 1})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"path": "x", "n": 1}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(TypeError):
        write_text(path, 7)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_waits_beside_its_target(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    target = tmp_path / "folder" / "image.nii.gz"
    part = copy_beside(tmp_path / "source", target)
    assert part.parent == target.parent
    assert part.read_bytes() == b"content"
    assert not target.exists()


def test_part_names_are_hidden_and_differ(tmp_path: Path) -> None:
    first, second = part_beside(tmp_path / "a.nii.gz"), part_beside(tmp_path / "a.nii.gz")
    assert first != second
    assert first.name.startswith(".")
    assert not first.match("*.nii.gz")
