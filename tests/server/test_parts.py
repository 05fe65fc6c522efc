"""The app's parts, built from settings."""

from pathlib import Path

import pytest

from lib.errors import SettingsError
from lib.server import parts as parts_module
from lib.server.parts import build_parts, describe_base

APP = Path(parts_module.__file__).resolve().parents[2]


def test_nothing_is_loaded_or_written(tmp_path: Path) -> None:
    parts = build_parts(APP, str(tmp_path), {"task": "object", "state": str(tmp_path / "state")})
    assert describe_base(parts.serving) == {
        "base": None,
        "base_reason": None,
        "version": None,
        "problem": None,
    }
    assert parts.serving_version() is None
    assert list(tmp_path.iterdir()) == []


def test_the_state_lies_in_the_app_unless_told_otherwise(tmp_path: Path) -> None:
    assert build_parts(APP, str(tmp_path), {"task": "hippocampus"}).state == APP / "model" / "hippocampus"
    assert (
        build_parts(APP, str(tmp_path), {"state": str(tmp_path / "s")}).scores_file
        == tmp_path / "s" / "scores.json"
    )


@pytest.mark.parametrize("studies", ["http://pacs/dicom-web", "https://pacs/dicom-web"])
def test_dicomweb_is_refused_for_now(studies: str) -> None:
    with pytest.raises(SettingsError, match="DICOMweb"):
        build_parts(APP, studies, {})


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="train_afer"):
        build_parts(APP, str(tmp_path), {"train_afer": "3"})
