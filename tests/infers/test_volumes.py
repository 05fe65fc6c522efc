"""The kept volumes."""

import os
from pathlib import Path
from typing import Any

import pytest

from lib.errors import VolumeError
from lib.infers.volumes import VolumeCache
from lib.volume import save_mask


def test_a_volume_is_read_once(tmp_path: Path, ellipsoid_case: Any) -> None:
    path = tmp_path / "a.nii.gz"
    save_mask(ellipsoid_case.label, ellipsoid_case.volume, path)
    cache = VolumeCache()
    assert cache.load(path) is cache.load(path)


def test_a_changed_file_is_read_again(tmp_path: Path, ellipsoid_case: Any) -> None:
    path = tmp_path / "a.nii.gz"
    save_mask(ellipsoid_case.label, ellipsoid_case.volume, path)
    cache = VolumeCache()
    before = cache.load(path)
    save_mask(1 - ellipsoid_case.label, ellipsoid_case.volume, path)
    os.utime(path, ns=(1, 1))
    assert cache.load(path).array[0, 0, 0] != before.array[0, 0, 0]


def test_only_a_few_are_kept(tmp_path: Path, ellipsoid_case: Any) -> None:
    paths = [tmp_path / f"{name}.nii.gz" for name in "abc"]
    for path in paths:
        save_mask(ellipsoid_case.label, ellipsoid_case.volume, path)
    cache = VolumeCache(keep=2)
    first, second = cache.load(paths[0]), cache.load(paths[1])
    assert cache.load(paths[0]) is first
    cache.load(paths[2])
    assert cache.load(paths[0]) is first
    assert cache.load(paths[1]) is not second


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="gone"):
        VolumeCache().load(tmp_path / "gone.nii.gz")
