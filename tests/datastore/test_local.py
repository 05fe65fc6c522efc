"""The datastore keeps what MONAI Label's own would lose."""

import json
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from lib.datastore import history, local
from lib.datastore.local import MedsaDatastore
from lib.errors import InputError, LabelError, NotFoundError, VolumeError
from lib.prompts.promptset import PromptSet
from lib.volume import Volume, load_volume, save_mask

LABELS = {"object": 1, "other": 4}
SHAPE = (6, 5, 4)


def write_image(folder: Path, name: str) -> None:
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])), folder / name)


def write_label(path: Path, value: int = 1, shape: tuple[int, ...] = SHAPE) -> Path:
    voxels = np.zeros(shape, np.uint8)
    voxels[1:3, 1:3, 1] = value
    save_mask(voxels, Volume(np.zeros(shape), np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii", "c.nii.gz.d.nii.gz"):
        write_image(folder, name)
    return folder


def opened(studies: Path) -> MedsaDatastore:
    return MedsaDatastore(str(studies), LABELS, lambda: 3)


def test_lists_the_images_and_nothing_else(studies: Path) -> None:
    (studies / "notes.txt").write_text("x")
    write_image(studies, ".hidden.nii.gz")
    assert sorted(opened(studies).list_images()) == ["a", "b", "c.nii.gz.d"]
    assert Path(opened(studies).get_image_uri("c.nii.gz.d")).name == "c.nii.gz.d.nii.gz"


def test_of_two_files_with_one_id_the_first_counts(studies: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(studies, "a.nii")
    with caplog.at_level(logging.WARNING):
        store = opened(studies)
    assert store.image_path("a").name == "a.nii"
    assert "a.nii.gz is left out" in caplog.text


def test_a_saved_label_is_current_and_kept(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    info = {"user": "ann", "label_info": [{"name": "other", "idx": 1}]}
    assert store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", info) == "a"
    store.save_label("a", str(write_label(tmp_path / "l.nrrd", 4)), "final", {"user": "bob"})
    assert store.get_labeled_images() == ["a"]
    assert set(np.unique(load_volume(store.label_path("a", "final")).array)) == {0, 4}
    first, second = store.history.versions("a")
    assert (first["author"], second["author"]) == ("ann", "bob")
    assert (first["tag"], first["adapter_version"], first["params"]) == ("final", 3, info)
    assert store.get_label_info("a", "final")["version"] == 2


def test_a_label_file_put_there_by_hand_is_kept_before_it_is_replaced(studies: Path, tmp_path: Path) -> None:
    folder = studies / "labels" / "final"
    folder.mkdir(parents=True)
    by_hand = write_label(folder / "a.nrrd", 4).read_bytes()
    store = opened(studies)
    assert store.label_path("a", "final").name == "a.nrrd"
    store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {})
    assert [path.name for path in folder.iterdir()] == ["a.nii.gz"]
    kept = studies / ".medsa" / "history" / "a" / "0001.nrrd"
    assert kept.read_bytes() == by_hand
    assert [record["author"] for record in store.history.versions("a")] == ["found on disk", "unknown"]


def kept_bytes(studies: Path, image_id: str) -> set[bytes]:
    files = (studies / ".medsa" / "history" / image_id).iterdir()
    return {path.read_bytes() for path in files if path.suffix != ".json"}


def test_a_label_file_that_is_not_registered_yet_is_kept_before_it_is_replaced(
    studies: Path, tmp_path: Path
) -> None:
    store = opened(studies)
    by_hand = write_label(studies / "labels" / "final" / "a.nii.gz", 4).read_bytes()
    store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {})
    assert by_hand in kept_bytes(studies, "a")
    assert [record["author"] for record in store.history.versions("a")] == ["found on disk", "unknown"]


@pytest.mark.parametrize("remove", [True, False])
def test_of_several_label_files_of_one_image_all_are_kept(
    studies: Path, tmp_path: Path, remove: bool
) -> None:
    folder = studies / "labels" / "final"
    folder.mkdir(parents=True)
    by_hand = {write_label(folder / "a.nrrd", 4).read_bytes()}
    write_image(folder, "a.nii")
    by_hand.add((folder / "a.nii").read_bytes())
    store = opened(studies)
    if remove:
        store.remove_label("a", "final")
        assert store.get_labeled_images() == []
        assert list(folder.iterdir()) == []
    else:
        store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {})
        assert [path.name for path in folder.iterdir()] == ["a.nii.gz"]
    assert by_hand <= kept_bytes(studies, "a")
    count = len(store.history.versions("a"))
    assert count == (2 if remove else 3)


def test_names_are_on_the_disk_before_a_save_ends(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[Path, bool]] = []

    def note(path: Path) -> None:
        flushed.append((path, any(entry.name == "0001.json" for entry in path.iterdir())))

    store = opened(studies)
    monkeypatch.setattr(history, "flush", note)
    monkeypatch.setattr(local, "flush", note)
    store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {})
    # The version's file before the record that names it.
    assert (studies / ".medsa" / "history" / "a", False) in flushed
    assert studies / "labels" / "final" in [path for path, _ in flushed]


def test_a_save_that_fails_leaves_nothing_half_done(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(studies)

    def fail(*arguments: object) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(store.history, "commit", fail)
    with pytest.raises(OSError, match="disk full"):
        store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {})
    assert list((studies / ".medsa" / "history" / "a").iterdir()) == []
    assert list((studies / "labels" / "final").iterdir()) == []


def test_the_current_label_does_not_share_its_bytes_with_the_history(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {})
    store.label_path("a", "final").write_bytes(b"overwritten in place")
    kept = studies / ".medsa" / "history" / "a" / "0001.nii.gz"
    assert load_volume(kept).shape_ijk == SHAPE


@pytest.mark.parametrize("tag", ["../../x", "", "a/b"])
def test_a_tag_that_is_no_name_is_refused(studies: Path, tmp_path: Path, tag: str) -> None:
    store = opened(studies)
    with pytest.raises(InputError, match="tag"):
        store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), tag, {})
    assert store.history.versions("a") == []


def test_a_label_that_does_not_fit_is_not_stored(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    for path in (write_label(tmp_path / "s.nii.gz", shape=(6, 5, 3)), write_label(tmp_path / "v.nii.gz", 2)):
        with pytest.raises(LabelError):
            store.save_label("a", str(path), "final", {})
    assert store.get_labeled_images() == []
    assert store.history.versions("a") == []


def test_unknown_ids_are_named(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    label = str(write_label(tmp_path / "l.nii.gz"))
    for call in (
        lambda: store.image_path("/etc/hostname"),
        lambda: store.image_path(["a"]),  # type: ignore[arg-type]
        lambda: store.save_label("x", label, "final", {}),
        lambda: store.label_path("a", "final"),
        lambda: store.remove_label("a", "final"),
        lambda: store.remove_image("x"),
        lambda: store.update_image_info("x", {}),
        lambda: store.update_label_info("a", "final", {}),
    ):
        with pytest.raises(NotFoundError):
            call()


def test_a_child_that_knew_less_erases_nothing(studies: Path, tmp_path: Path) -> None:
    server = opened(studies)
    child = opened(studies)
    child.list_images()
    server.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {"user": "ann"})
    child.update_image_info("b", {"score": 1})
    fresh = opened(studies)
    assert fresh.get_label_info("a", "final")["user"] == "ann"
    assert server.get_image_info("b")["score"] == 1


def save_many(studies: Path, label: Path, image_id: str, count: int) -> None:
    store = opened(studies)
    for number in range(count):
        store.save_label(image_id, str(label), "final", {"user": str(number)})


def test_processes_and_threads_that_save_at_once_lose_nothing(studies: Path, tmp_path: Path) -> None:
    label = write_label(tmp_path / "l.nii.gz")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=save_many, args=(studies, label, name, 5)) for name in ("a", "a", "b")]
    store = opened(studies)
    threads = [threading.Thread(target=store.update_image_info, args=("b", {f"k{n}": n})) for n in range(8)]
    for worker in (*workers, *threads):
        worker.start()
    for worker in (*workers, *threads):
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [record["version"] for record in store.history.versions("a")] == list(range(1, 11))
    assert {f"k{n}" for n in range(8)} <= set(store.get_image_info("b"))
    assert sorted(store.get_labeled_images()) == ["a", "b"]


def test_what_was_read_stays_as_it_was_and_what_stays_the_same_is_shared(
    studies: Path, tmp_path: Path
) -> None:
    datastore = opened(studies)
    first, second = datastore.list_images()[:2]
    datastore.save_label(first, str(write_label(tmp_path / "label.nii.gz")), "final", {})
    before = datastore._model
    text = before.model_dump_json()
    datastore.update_label_info(first, "final", {"note": "checked"})
    datastore.update_image_info(first, {"seen": True})
    datastore.save_label(first, str(write_label(tmp_path / "label.nii.gz")), "original", {})
    datastore.remove_label(first, "final")
    after = datastore._model
    assert before.model_dump_json() == text
    assert after.objects[second] is before.objects[second]
    assert set(after.objects[first].labels) == {"original"}
    assert after.objects[first].image.info["seen"] is True


@pytest.mark.parametrize("content", [b"", b"{", b'{"objects": 7}', b"\xff\xfe"])
def test_a_broken_registry_is_put_aside_and_built_anew(
    studies: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    opened(studies).save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {})
    (studies / "datastore_v2.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        store = opened(studies)
    assert store.get_labeled_images() == ["a"]
    (aside,) = studies.glob("datastore_v2.json.broken-*")
    assert aside.read_bytes() == content
    assert "built anew" in caplog.text
    assert set(json.loads((studies / "datastore_v2.json").read_text())["objects"]) == {"a", "b", "c.nii.gz.d"}


def test_files_that_come_and_go_are_noticed(studies: Path) -> None:
    store = opened(studies)
    write_image(studies, "new.nii.gz")
    (studies / "b.nii").unlink()
    store.refresh()
    assert sorted(store.list_images()) == ["a", "c.nii.gz.d", "new"]


@pytest.fixture
def watched(studies: Path) -> Iterator[MedsaDatastore]:
    datastore = MedsaDatastore(str(studies), LABELS, lambda: 0, auto_reload=True)
    yield datastore
    datastore._observer.stop()
    datastore._observer.join()


def wait_for(datastore: MedsaDatastore, image_id: str) -> None:
    until = time.monotonic() + 20
    while image_id not in datastore.list_images():
        assert time.monotonic() < until, f"{image_id} was not noticed"
        time.sleep(0.02)


def test_many_files_that_come_at_once_are_looked_at_together(
    watched: MedsaDatastore, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    look = watched._reconcile_datastore
    monkeypatch.setattr(watched, "_reconcile_datastore", lambda: (looks.append(1), look()))
    for number in range(40):
        write_image(studies, f"new{number:02d}.nii.gz")
    wait_for(watched, "new39")
    assert {f"new{number:02d}" for number in range(40)} <= set(watched.list_images())
    assert len(looks) < 10, "each file is three events"


def test_the_watcher_outlives_a_folder_that_cannot_be_read(
    watched: MedsaDatastore, studies: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    look, failures = watched._reconcile_datastore, [OSError("the disk is away")]

    def look_or_fail() -> None:
        if failures:
            raise failures.pop()
        look()

    monkeypatch.setattr(watched, "_reconcile_datastore", look_or_fail)
    write_image(studies, "first.nii.gz")
    until = time.monotonic() + 20
    while failures and time.monotonic() < until:
        time.sleep(0.02)
    write_image(studies, "second.nii.gz")
    wait_for(watched, "second")
    assert "first" in watched.list_images()
    assert "could not be looked through" in caplog.text


def test_an_added_image_keeps_the_labels_of_others_apart(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    write_image(tmp_path, "upload.nii.gz")
    upload = str(tmp_path / "upload.nii.gz")
    assert store.add_image("case.1", upload, {"user": "ann"}) == "case.1"
    assert store.image_path("case.1").name == "case.1.nii.gz"
    assert store.add_image("", upload, None) == "upload"
    with pytest.raises(InputError, match="not in use"):
        store.add_image("a", upload, {})
    with pytest.raises(InputError, match="image"):
        store.add_image("../x", upload, {})
    (tmp_path / "bad.nii.gz").write_bytes(b"x")
    with pytest.raises(VolumeError):
        store.add_image("bad", str(tmp_path / "bad.nii.gz"), {})
    with pytest.raises(InputError, match="bmp"):
        store.add_image("x", str(tmp_path / "x.bmp"), {})
    assert not list(studies.glob(".*.part"))


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.jpeg"])
def test_a_picture_is_an_image_and_its_label_a_nifti(studies: Path, tmp_path: Path, name: str) -> None:
    Image.new("RGB", (9, 7)).save(studies / name)
    Image.new("RGB", (9, 7)).save(tmp_path / name)
    store = opened(studies)
    assert store.image_path("photo").name == name
    assert store.add_image("sent.in", str(tmp_path / name), {}) == "sent.in"
    image = load_volume(store.image_path("sent.in"))
    mask = np.zeros(image.shape_ijk, np.uint8)
    mask[8, 2] = 4
    save_mask(mask, image, tmp_path / "l.nrrd")
    store.save_label("sent.in", str(tmp_path / "l.nrrd"), "final", {})
    saved = store.label_path("sent.in", "final")
    assert saved.name == "sent.in.nii.gz"
    assert np.array_equal(load_volume(saved).array, mask)
    assert np.array_equal(load_volume(saved).affine, image.affine)
    assert store.get_labeled_images() == ["sent.in"]


def test_a_picture_is_no_label(studies: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 7)).save(studies / "photo.png")
    folder = studies / "labels" / "final"
    folder.mkdir(parents=True)
    Image.new("L", (9, 7)).save(folder / "photo.png")
    store = opened(studies)
    assert store.get_labeled_images() == []
    with pytest.raises(LabelError, match=r"photo\.png: is a picture; allowed: \.nii\.gz"):
        store.save_label("photo", str(folder / "photo.png"), "final", {})
    # What somebody put there for another purpose is not medsa's to replace.
    image = load_volume(store.image_path("photo"))
    save_mask(np.ones(image.shape_ijk, np.uint8), image, tmp_path / "l.nii.gz")
    store.save_label("photo", str(tmp_path / "l.nii.gz"), "final", {})
    assert sorted(path.name for path in folder.iterdir()) == ["photo.nii.gz", "photo.png"]


def test_removing_keeps_the_history(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {})
    store.remove_label("a", "final")
    assert store.get_labeled_images() == []
    store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {})
    store.remove_image("a")
    assert "a" not in store.list_images()
    assert len(opened(studies).history.versions("a")) == 2


def test_the_last_prompts_go_into_the_record_of_the_label(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    label = str(write_label(tmp_path / "l.nii.gz"))
    store.last_prompts.note("a", {"object": {"prompts": 1}})
    store.last_prompts.note("b", {"object": {"prompts": 2}})
    store.save_label("a", label, "original", {})
    assert store.last_prompts.of("a"), "only the final label ends the case"
    store.save_label("a", label, "final", {})
    store.save_label("a", label, "final", {})
    kept = [record["prompts"] for record in store.history.versions("a")]
    assert kept == [{"object": {"prompts": 1}}, {"object": {"prompts": 1}}, {}]
    assert (store.last_prompts.of("a"), store.last_prompts.of("b")) == ({}, {"object": {"prompts": 2}})


def test_the_prompts_of_a_label_come_back_for_training(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    label = str(write_label(tmp_path / "l.nii.gz"))
    given = PromptSet(((1, 1, 1),), ((4, 4, 1),), label="object")
    assert store.recorded_prompts("a") == {}
    store.last_prompts.note("a", {"object": {"prompts": given.describe()}})
    store.save_label("a", label, "original", {})
    assert store.recorded_prompts("a") == {}
    store.save_label("a", label, "final", {})
    assert opened(studies).recorded_prompts("a") == {"object": given}
    store.save_label("a", label, "final", {})
    assert opened(studies).recorded_prompts("a") == {"object": given}


def test_the_prompts_of_an_image_that_had_the_name_before_do_not_come_back(
    studies: Path, tmp_path: Path
) -> None:
    store = opened(studies)
    label = str(write_label(tmp_path / "l.nii.gz"))
    store.last_prompts.note("a", {"object": {"prompts": PromptSet(((1, 1, 1),), label="object").describe()}})
    store.save_label("a", label, "final", {})
    assert store.recorded_prompts("a")
    affine = load_volume(store.image_path("a")).affine
    store.remove_image("a")
    array = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "a.nii.gz")
    store.add_image("a", str(tmp_path / "a.nii.gz"), {})
    store.save_label("a", label, "final", {})
    assert store.recorded_prompts("a") == {}


def test_a_refused_label_takes_no_prompts_along(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    store.last_prompts.note("a", {"object": {"prompts": 1}})
    with pytest.raises(LabelError):
        store.save_label("a", str(write_label(tmp_path / "l.nii.gz", shape=(6, 5, 3))), "final", {})
    assert store.last_prompts.of("a")


def test_a_label_found_on_disk_has_no_prompts(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    write_label(studies / "labels" / "final" / "a.nii.gz", 4)
    store.last_prompts.note("a", {"object": {"prompts": 1}})
    store.save_label("a", str(write_label(tmp_path / "l.nii.gz")), "final", {})
    assert [record["prompts"] for record in store.history.versions("a")] == [{}, {"object": {"prompts": 1}}]


def test_a_removed_image_is_forgotten(studies: Path) -> None:
    store = opened(studies)
    store.last_prompts.note("a", {"object": {"prompts": 1}})
    store.remove_image("a")
    assert store.last_prompts.of("a") == {}


def test_one_file_of_a_name_is_told_from_another(studies: Path, tmp_path: Path) -> None:
    datastore = opened(studies)
    before = datastore.image_signature("a")
    assert before
    assert datastore.image_signatures()["a"] == before
    assert datastore.image_signature("nobody") == ""
    write_image(studies, "a.nii.gz")
    os.utime(studies / "a.nii.gz", ns=(1, 1))
    after = datastore.image_signature("a")
    assert after not in ("", before)
    assert datastore.image_signatures()["a"] == before, "as it was listed"
    datastore.refresh()
    assert datastore.image_signatures()["a"] == after
    write_image(tmp_path, "new.nii.gz")
    datastore.add_image("", str(tmp_path / "new.nii.gz"), None)
    assert datastore.image_signatures()["new"] == datastore.image_signature("new") != ""
    assert set(datastore.image_signatures()) >= set(datastore.list_images())
