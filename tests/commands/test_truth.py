"""Folders of true labels."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from lib.commands.truth import find_cases, load_truth
from lib.errors import InputError, LabelError, NotFoundError
from lib.volume import Volume, save_mask

LABELS = {"anterior": 1, "posterior": 2}


@pytest.fixture
def truth_file(tmp_path: Path) -> Path:
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1, 2, 3], mask[2, 2, 2:4] = 1, 2
    path = tmp_path / "case.one.nii.gz"
    save_mask(mask, Volume(mask, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


def test_case_ids_are_the_names_without_the_ending(truth_file: Path) -> None:
    (truth_file.parent / "b.nrrd").touch()
    (truth_file.parent / "a.nii").touch()
    (truth_file.parent / "notes.txt").touch()
    assert list(find_cases(truth_file.parent)) == ["a", "b", "case.one"]


def test_an_empty_or_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        find_cases(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"nii\.gz"):
        find_cases(tmp_path)


def test_each_label_that_is_present_is_an_object(truth_file: Path) -> None:
    truth = load_truth(truth_file, LABELS)
    objects = truth.objects({**LABELS, "absent": 3})
    assert {name: int(mask.sum()) for name, mask in objects.items()} == {"anterior": 1, "posterior": 2}
    assert list(truth.objects(LABELS, only="posterior")) == ["posterior"]


def test_merging_makes_one_object_with_that_labels_value(truth_file: Path) -> None:
    truth = load_truth(truth_file, LABELS, merge="posterior")
    assert np.unique(truth.label).tolist() == [0, 2]
    assert int(truth.objects(LABELS)["posterior"].sum()) == 3


@pytest.mark.parametrize("merge", [None, "posterior"])
def test_colours_are_no_label(tmp_path: Path, merge: str | None) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6, 3), np.uint8), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(LabelError, match=r"a\.nii: shape \(4, 5, 6, 3\) is in colour; allowed: one value"):
        load_truth(tmp_path / "a.nii", LABELS, merge)


def test_merging_into_an_unknown_label_is_refused(truth_file: Path) -> None:
    with pytest.raises(InputError, match="'whole' is not accepted; allowed: one of anterior, posterior"):
        load_truth(truth_file, LABELS, merge="whole")
