"""The datastore over a real Orthanc: nothing is lost, nothing is altered, and what others do is noticed."""

import shutil
import time

import numpy as np
import pydicom
import pytest

from lib.datastore.pacs_store import PacsDatastore
from lib.datastore.series_folder import SeriesFolder
from lib.dicom.grid import series_grid
from lib.dicom.image import read_headers
from lib.dicom.pacs import Pacs
from lib.dicom.seg_writer import SegOrigin, write_seg
from lib.errors import InputError, NotFoundError, VolumeError
from lib.server.store import look_once
from lib.volume import load_volume

pytestmark = pytest.mark.server
LABELS = {"liver": 1, "spleen": 2, "kidney": 7}
SUBSETS = [("liver",), ("kidney",), ("liver", "kidney"), ("spleen", "liver"), ("liver", "spleen", "kidney")]


@pytest.fixture
def opened(orthanc, tmp_path):
    def store(folder="cache"):
        series = SeriesFolder(tmp_path / folder, Pacs(orthanc.url), ["CT", "MR"])
        return PacsDatastore(series, LABELS, {}, lambda: "vit_t", lambda: 3)

    return store


@pytest.fixture
def one_image(orthanc, make_series, opened, upload):
    """one_image(geometry) -> a datastore that lists one series, its id, and its files."""

    def ready(geometry="axial"):
        _, files = make_series(geometry)
        upload(orthanc, files)
        store = opened()
        look(store)
        (image,) = store.list_images()
        return store, image, files

    return ready


def look(store):
    """Twice: a series is offered when two looks have found it alike."""
    store.look()
    store.look()


def mask_of(names, shape, seed=0):
    values = np.random.default_rng(seed).choice([0, *(LABELS[name] for name in names)], size=shape)
    values[:, :, 0] = 0
    return values.astype(np.uint8)


def submit(store, image, values, tmp_path, names=None):
    """As OHIF's button does: raw bytes, i fastest, and which name each value has."""
    path = tmp_path / "label.bin"
    path.write_bytes(values.tobytes(order="F"))
    known = names or LABELS
    info = [{"name": name, "idx": value} for name, value in known.items()]
    return store.save_label(image, str(path), "final", {"label_info": info, "user": "ann"})


def label_of(store, image):
    return load_volume(store.label_path(image, "final")).array


def test_the_list_is_there_before_anything_is_fetched(orthanc, make_series, opened, upload):
    for geometry in ("axial", "oblique"):
        upload(orthanc, make_series(geometry)[1])
    store = opened()
    assert store.list_images() == []
    look(store)
    images = store.list_images()
    assert len(images) == 2
    assert sorted(store.get_unlabeled_images()) == sorted(images)
    assert not list(store.series.root.glob("*.nrrd"))
    assert not (store.series.root / "dicom").exists()


def test_series_are_told_apart_by_patient_without_saying_whom(orthanc, make_series, opened, upload):
    of = {}
    for seed, patient in (("1", "DOE-1"), ("2", "DOE-1"), ("3", "ROE-2"), ("4", "")):
        files = make_series(seed=seed, patient=patient)[1]
        upload(orthanc, files)
        of[seed] = read_headers(files[:1])[0]
    store = opened()
    look(store)
    known = {seed: store.patients()[header.SeriesInstanceUID] for seed, header in of.items()}
    assert known["1"] == known["2"]
    assert len(set(known.values())) == 3
    assert known["4"] == of["4"].StudyInstanceUID
    kept = "".join(path.read_text() for path in store.series.root.glob("*.json"))
    assert "DOE" not in kept + str(known)
    assert opened().patients() == store.patients(), "another process needs not ask the PACS"


def test_a_patient_id_that_all_have_tells_nothing(orthanc, make_series, opened, upload):
    for seed in "12":
        upload(orthanc, make_series(seed=seed, patient="ANONYMOUS")[1])
    store = opened()
    look(store)
    assert len(set(store.patients().values())) == 2


def test_an_image_is_what_the_series_holds(orthanc, make_series, geometry, opened, upload):
    volume, files = make_series(geometry)
    upload(orthanc, files)
    store = opened()
    look(store)
    (image,) = store.list_images()
    assert image == read_headers(files[:1])[0].SeriesInstanceUID
    found = load_volume(store.image_path(image))
    assert np.array_equal(found.array, volume.array)
    assert np.allclose(found.affine, volume.affine, atol=1e-4)


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_a_label_comes_back_from_a_cold_cache_voxel_for_voxel(
    orthanc, geometry, opened, names, tmp_path, segmentations, one_image
):
    store, image, _ = one_image(geometry)
    values = mask_of(names, load_volume(store.image_path(image)).shape_ijk)
    submit(store, image, values, tmp_path)
    assert store.get_unlabeled_images() == []
    assert len(segmentations(orthanc)) == 1
    assert np.array_equal(label_of(store, image), values)

    cold = opened("elsewhere")
    look(cold)
    assert cold.get_labeled_images() == [image]
    assert np.array_equal(label_of(cold, image), values)
    assert cold.get_label_info(image, "final")["user"] == "ann"
    record = cold.history.versions(image)[-1]
    assert (record["adapter_version"], record["prompts"]) == (None, {}), "it was not made here"
    assert len(segmentations(orthanc)) == 1, "what came from the PACS is not sent there again"


def test_a_label_is_resubmitted_as_another_and_the_newest_counts(orthanc, tmp_path, segmentations, one_image):
    store, image, _ = one_image()
    shape = load_volume(store.image_path(image)).shape_ijk
    first, second = mask_of(("liver",), shape, 1), mask_of(("liver", "spleen"), shape, 2)
    submit(store, image, first, tmp_path)
    submit(store, image, second, tmp_path)
    assert len(segmentations(orthanc)) == 2
    look(store)
    assert np.array_equal(label_of(store, image), second)
    assert len(store.history.versions(image)) == 2, "its own segmentations are no news to it"


def test_names_and_not_places_say_what_is_what(opened, tmp_path, one_image):
    """OHIF numbers its segments by the alphabet."""
    store, image, _ = one_image()
    shape = load_volume(store.image_path(image)).shape_ijk
    sent = np.where(mask_of(("liver",), shape) > 0, 3, 0).astype(np.uint8)
    submit(store, image, sent, tmp_path, {"kidney": 1, "liver": 2, "spleen": 3})
    assert np.array_equal(label_of(store, image), np.where(sent == 3, LABELS["spleen"], 0))
    cold = opened("elsewhere")
    look(cold)
    assert np.array_equal(label_of(cold, image), np.where(sent == 3, LABELS["spleen"], 0))


def test_while_the_pacs_is_down_a_label_is_kept_and_sent_when_it_is_back(
    orthanc, opened, tmp_path, segmentations, one_image
):
    store, image, _ = one_image()
    values = mask_of(("liver",), load_volume(store.image_path(image)).shape_ijk)
    orthanc.stop()
    submit(store, image, values, tmp_path)
    assert store.pacs_status()["waiting_labels"] == [image]
    assert "cannot be reached" in store.pacs_status()["problem"]
    assert store.get_labeled_images() == [image]

    again = opened()  # the server was started anew meanwhile
    look(again)
    assert again.pacs_status()["waiting_labels"] == [image]
    assert again.list_images() == [image], "the last list counts"
    orthanc.start()
    look(again)
    assert again.pacs_status() == {
        "problem": None,
        "waiting_labels": [],
        "refused_labels": {},
        "refused_segmentations": {},
        "unusable_series": {},
    }
    assert len(segmentations(orthanc)) == 1
    look(again)
    assert len(segmentations(orthanc)) == 1


def stored_by_others(orthanc, store, files, values, series="1.9.1", change=lambda seg: None, author="Dr^Who"):
    headers = read_headers(files)
    grid = series_grid(headers)
    origin = SegOrigin(author, "another viewer", "1", series, f"{series}.1")
    seg = write_seg(values, LABELS, {}, headers, grid, origin)
    change(seg)
    Pacs(orthanc.url).store(seg)


def test_what_another_viewer_stores_becomes_a_label(orthanc, geometry, tmp_path, one_image):
    store, image, files = one_image(geometry)
    values = mask_of(("liver", "kidney"), load_volume(store.image_path(image)).shape_ijk)
    submit(store, image, mask_of(("spleen",), values.shape), tmp_path)
    time.sleep(1.1)  # times of labels are in seconds
    look(store)

    def renamed(seg):
        seg.SegmentSequence[0].SegmentLabel = "LIVER"

    stored_by_others(orthanc, store, files, values, change=renamed)
    look(store)
    assert np.array_equal(label_of(store, image), values)
    info = store.get_label_info(image, "final")
    assert (info["user"], info["arrived"]) == ("Dr Who", "segmentation 1.9.1")
    assert len(store.history.versions(image)) == 2
    look(store)
    assert len(store.history.versions(image)) == 2


def test_what_fits_no_label_is_reported_and_not_guessed(orthanc, one_image):
    store, image, files = one_image()
    values = mask_of(("liver",), load_volume(store.image_path(image)).shape_ijk)

    def tumour(seg):
        seg.SegmentSequence[0].SegmentLabel = "tumour"

    def elsewhere(seg):
        seg.FrameOfReferenceUID = "1.2.99"

    stored_by_others(orthanc, store, files, values, "1.9.1", tumour)
    stored_by_others(orthanc, store, files, values, "1.9.2", elsewhere)
    look(store)
    refused = store.pacs_status()["refused_segmentations"]
    assert "segment 'tumour' is not one of the labels" in refused["1.9.1"]
    assert "FrameOfReferenceUID" in refused["1.9.2"]
    assert store.get_labeled_images() == []


def test_a_series_that_is_no_volume_is_not_offered_again(orthanc, make_series, opened, upload):
    _, files = make_series()
    upload(orthanc, files[:4] + files[5:])
    upload(orthanc, make_series("oblique")[1])
    store = opened()
    look(store)
    broken = read_headers(files[:1])[0].SeriesInstanceUID
    with pytest.raises(VolumeError, match=r"gaps from 2\.5 to 5 mm"):
        store.image_path(broken)
    assert len(store.list_images()) == 1
    assert broken not in store.list_images()
    assert "gaps" in store.pacs_status()["unusable_series"][broken]
    with pytest.raises(NotFoundError):
        store.image_path(broken)


def test_images_are_the_pacs_own(one_image):
    store, image, _ = one_image()
    with pytest.raises(InputError, match="a series that is sent to the PACS"):
        store.add_image("new", "new.nii.gz", {})
    with pytest.raises(InputError, match="removed in the PACS"):
        store.remove_image(image)
    with pytest.raises(NotFoundError):
        store.image_path("1.2.3")


def test_an_empty_mask_is_kept_and_named_as_what_cannot_be_sent(orthanc, tmp_path, segmentations, one_image):
    store, image, _ = one_image()
    submit(store, image, np.zeros(load_volume(store.image_path(image)).shape_ijk, np.uint8), tmp_path)
    assert store.pacs_status()["waiting_labels"] == []
    (reason,) = store.pacs_status()["refused_labels"].values()
    assert "it is empty" in reason
    assert segmentations(orthanc) == []


def test_a_cache_that_is_deleted_while_it_is_used_is_filled_again(orthanc, make_series, opened, upload):
    volume, files = make_series()
    upload(orthanc, files)
    store = opened()
    look(store)
    (image,) = store.list_images()
    store.image_path(image).unlink()
    shutil.rmtree(store.series.root / "dicom")
    assert np.array_equal(load_volume(store.image_path(image)).array, volume.array)


def test_a_label_saved_since_the_last_look_is_not_replaced_by_what_that_look_had_not_seen(
    orthanc, tmp_path, one_image
):
    """Somebody stored a segmentation, then the annotator submitted, then it was looked."""
    store, image, files = one_image()
    shape = load_volume(store.image_path(image)).shape_ijk
    theirs, ours = mask_of(("liver",), shape, 1), mask_of(("kidney",), shape, 2)
    store.watched = True  # the submit does not look by itself
    stored_by_others(orthanc, store, files, theirs)
    submit(store, image, ours, tmp_path)
    look(store)
    assert np.array_equal(label_of(store, image), ours)
    kept = [load_volume(store.history.file_of(one)).array for one in store.history.versions(image)]
    assert any(np.array_equal(one, theirs) for one in kept), "nothing is lost"
    assert store.outbox.waiting() == []


def test_who_looks_once_sees_what_is_complete_and_a_series_that_grows_is_another_image(
    orthanc, make_series, opened, upload
):
    _, files = make_series()
    upload(orthanc, files[:4])
    store = opened("fresh")
    look_once(store)
    (image,) = store.list_images()
    before = store.image_signature(image)
    assert store.image_signatures() == {image: before}
    upload(orthanc, files[4:])
    look_once(store)
    assert store.list_images() == [image]
    assert store.image_signatures() == {image: store.image_signature(image)} != {image: before}


def test_a_series_that_is_still_being_sent_is_offered_when_it_is_whole(orthanc, make_series, opened, upload):
    volume, files = make_series()
    upload(orthanc, files[:4])
    store = opened()
    store.look()
    assert store.list_images() == []
    upload(orthanc, files[4:])
    store.look()
    assert store.list_images() == []
    store.look()
    (image,) = store.list_images()
    assert np.array_equal(load_volume(store.image_path(image)).array, volume.array)


def test_a_series_that_grows_later_is_fetched_anew(orthanc, make_series, opened, upload):
    volume, files = make_series()
    upload(orthanc, files[:4])
    store = opened()
    look(store)
    (image,) = store.list_images()
    assert load_volume(store.image_path(image)).shape_ijk[2] == 4
    upload(orthanc, files[4:])
    look(store)
    assert np.array_equal(load_volume(store.image_path(image)).array, volume.array)


def test_of_several_segmentations_in_one_series_each_goes_to_its_own_image(
    orthanc, make_series, opened, upload
):
    stores, masks = opened(), {}
    sent = []
    for number, seed in enumerate(("1", "2")):
        _, files = make_series("axial", seed=seed)
        for file in files:  # two reconstructions of one scan
            dataset = pydicom.dcmread(file)
            dataset.StudyInstanceUID = "1.9.9"
            dataset.save_as(file)
        upload(orthanc, files)
        headers = read_headers(files)
        grid = series_grid(headers)
        values = mask_of(("liver",), grid.shape_ijk, number)
        masks[headers[0].SeriesInstanceUID] = values
        sent.append(
            write_seg(values, LABELS, {}, headers, grid, SegOrigin("x", "y", "1", "1.9.1", f"1.9.1.{number}"))
        )
    look(stores)
    for seg in reversed(sent):
        Pacs(orthanc.url).store(seg)
    look(stores)
    for image, values in masks.items():
        assert np.array_equal(label_of(stores, image), values)


def test_what_a_kill_kept_from_being_sent_is_sent_by_the_next_server(
    orthanc, opened, tmp_path, segmentations, monkeypatch, one_image
):
    store, image, _ = one_image()
    monkeypatch.setattr(store.outbox, "put", lambda parcel: None)
    submit(store, image, mask_of(("liver",), load_volume(store.image_path(image)).shape_ijk), tmp_path)
    assert segmentations(orthanc) == []
    again = opened()
    look(again)
    assert len(segmentations(orthanc)) == 1
    look(opened())
    assert len(segmentations(orthanc)) == 1


def test_names_in_any_script_come_back(orthanc, make_series, tmp_path, upload):
    upload(orthanc, make_series()[1])
    labels = {"печень": 1, "脾臓": 2}

    def store(folder):
        series = SeriesFolder(tmp_path / folder, Pacs(orthanc.url), ["CT"])
        return PacsDatastore(series, labels, {}, lambda: "vit_t", lambda: None)

    first = store("one")
    look(first)
    (image,) = first.list_images()
    values = (mask_of(("liver",), load_volume(first.image_path(image)).shape_ijk) * 2).astype(np.uint8)
    submit(first, image, values, tmp_path, labels)
    cold = store("two")
    look(cold)
    assert np.array_equal(label_of(cold, image), values)
