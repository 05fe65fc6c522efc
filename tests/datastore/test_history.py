"""Every version of a label is kept."""

from pathlib import Path

from lib.datastore.history import LabelHistory


def add(history: LabelHistory, image_id: str, content: bytes, suffix: str = ".nii.gz") -> int:
    staged = history.stage(image_id, suffix)
    staged.write_bytes(content)
    return history.commit(image_id, staged, suffix, {"sha256": content.hex()})


def test_versions_count_up_and_keep_their_files(tmp_path: Path) -> None:
    history = LabelHistory(tmp_path)
    assert [add(history, "a", b"1"), add(history, "a", b"2", ".nrrd"), add(history, "b", b"3")] == [1, 2, 1]
    records = history.versions("a")
    assert [(record["version"], record["file"]) for record in records] == [
        (1, "0001.nii.gz"),
        (2, "0002.nrrd"),
    ]
    folder = tmp_path / ".medsa" / "history" / "a"
    assert [(folder / record["file"]).read_bytes() for record in records] == [b"1", b"2"]


def test_a_staged_file_is_no_version(tmp_path: Path) -> None:
    history = LabelHistory(tmp_path)
    history.stage("a", ".nii.gz").write_bytes(b"x")
    assert history.versions("a") == []
    assert add(history, "a", b"1") == 1


def test_a_file_whose_record_a_kill_prevented_is_not_overwritten(tmp_path: Path) -> None:
    history = LabelHistory(tmp_path)
    add(history, "a", b"1")
    folder = tmp_path / ".medsa" / "history" / "a"
    (folder / "0002.nii.gz").write_bytes(b"orphan")
    assert add(history, "a", b"3") == 3
    assert (folder / "0002.nii.gz").read_bytes() == b"orphan"


def test_knows_the_contents_it_holds(tmp_path: Path) -> None:
    history = LabelHistory(tmp_path)
    add(history, "a", b"1")
    assert history.holds("a", b"1".hex())
    assert not history.holds("a", b"2".hex())
    assert not history.holds("b", b"1".hex())
