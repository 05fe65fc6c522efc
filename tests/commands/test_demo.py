"""The demo folders: both formats, labels that fit, nothing overwritten."""

from pathlib import Path

import numpy as np
import pytest

from lib.commands.demo import write_demo
from lib.commands.phantom import LABELS, make_phantom
from lib.commands.truth import find_cases
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
