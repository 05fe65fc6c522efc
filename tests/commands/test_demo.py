"""The demo folders: both formats, labels that fit, nothing overwritten."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from lib.commands.demo import write_demo, write_demo_series
from lib.commands.phantom import LABELS, make_phantom
from lib.commands.truth import find_cases
from lib.dicom.image import load_series
from lib.errors import InputError
from lib.volume import load_label, load_volume


def test_images_and_labels_fit_and_come_in_both_formats(tmp_path: Path) -> None:
    assert write_demo(tmp_path, cases=2, seed=5)
    studies, truth = find_cases(tmp_path / "studies"), find_cases(tmp_path / "truth")
    assert list(studies) == list(truth) == ["phantom_001", "phantom_002"]
    assert [path.name for path in studies.values()] == ["phantom_001.nii.gz", "phantom_002.nrrd"]
    for number, case in enumerate(studies):
        volume = load_volume(studies[case])
        made = make_phantom(np.random.default_rng((5, number)))
        assert np.array_equal(volume.array, made.image.array)
        assert np.abs(volume.affine - made.image.affine).max() < 1e-3
        assert np.array_equal(load_label(truth[case], volume, LABELS), made.label)


def test_studies_that_are_there_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.nii.gz").write_bytes(b"work")
    assert not write_demo(tmp_path, cases=1, seed=0)
    assert [path.name for path in tmp_path.rglob("*")] == ["studies", "mine.nii.gz"]


def test_no_case_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cases: 0"):
        write_demo(tmp_path / "demo", cases=0, seed=0)
    assert not (tmp_path / "demo").exists()


def test_series_and_labels_fit_and_keep_their_names(tmp_path: Path) -> None:
    assert write_demo_series(tmp_path / "one", cases=4, seed=5)
    folders = sorted((tmp_path / "one" / "dicom").iterdir())
    truth = find_cases(tmp_path / "one" / "truth")
    assert len(folders) == len(truth) == 4
    for number, folder in enumerate(folders):
        files = sorted(folder.iterdir())
        volume, _ = load_series(files)
        series = str(pydicom.dcmread(files[0]).SeriesInstanceUID)
        label = load_label(truth[series], volume, LABELS)
        made = make_phantom(np.random.default_rng((5, number)))
        for value in LABELS.values():
            # The same voxels, whichever way the slices run: as many, and as bright.
            before, after = made.image.array[made.label == value], volume.array[label == value]
            assert np.array_equal(np.sort(before), np.sort(after))
    write_demo_series(tmp_path / "two", cases=4, seed=5)
    assert list(find_cases(tmp_path / "two" / "truth")) == list(truth)
