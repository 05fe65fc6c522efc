"""A server that cannot start says why in one line and ends with a code that is not 0."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

TryStart = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("conf", "named"),
    [
        ({"task": "nope"}, "--conf task: 'nope' is not accepted; allowed: cardiac_lv, demo"),
        ({"train_afer": "3"}, "--conf train_afer"),
        ({"train_after": "many"}, "--conf train_after: 'many'"),
        ({"base": "vit_x"}, "--conf base: 'vit_x'"),
    ],
)
def test_a_wrong_setting_is_named(
    try_start: TryStart, tmp_path: Path, conf: dict[str, str], named: str
) -> None:
    ended = try_start(tmp_path, conf)
    assert_one_line(ended, named)


def test_a_truncated_checkpoint_is_named(try_start: TryStart, tmp_path: Path, checkpoint: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    assert_one_line(try_start(tmp_path, {"checkpoint": str(cut)}), "cut.safetensors")


def test_a_checkpoint_of_another_architecture_is_named(
    try_start: TryStart, tmp_path: Path, checkpoint: Path
) -> None:
    ended = try_start(tmp_path, {"base": "vit_b", "checkpoint": str(checkpoint)})
    assert_one_line(ended, "vit_b")


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("https:///dicom-web", "allowed: a folder, or the address of a DICOMweb service"),
        ("http://ann:word@127.0.0.1:9/dicom-web", "allowed: an address without; set them in the environment"),
    ],
)
def test_an_address_that_is_none_is_named_without_its_password(
    try_start: TryStart, address: str, named: str
) -> None:
    ended = try_start(address, {})
    assert_one_line(ended, named)
    assert "word@" not in next(line for line in ended.stderr.splitlines() if "cannot start" in line)


def assert_one_line(ended: subprocess.CompletedProcess[str], named: str) -> None:
    said = [line for line in ended.stderr.splitlines() if line.startswith("medsa: cannot start: ")]
    assert ended.returncode == 2
    assert len(said) == 1
    assert named in said[0]
    assert "Traceback" not in ended.stderr + ended.stdout
