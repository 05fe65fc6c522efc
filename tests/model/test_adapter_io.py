"""Adapters on disk."""

import json
from pathlib import Path

import pytest
import torch

from lib.errors import AdapterError
from lib.model.adapter_io import CONFIG_NAME, TENSORS_NAME, AdapterConfig, load_adapter, save_adapter
from lib.model.medsa import MedSA

LABELS = {"object": 1}
SHA = "a" * 64


@pytest.fixture
def folder(tiny_model: MedSA, tmp_path: Path) -> Path:
    with torch.no_grad():
        for parameter in tiny_model.adapters.parameters():
            parameter.normal_()
    config = AdapterConfig("tiny", SHA, {"encoder_width": 4}, LABELS, {"kind": "percentile"}, "0.1.0")
    save_adapter(tmp_path, tiny_model, config, "# A card\n")
    return tmp_path


def test_an_adapter_comes_back_to_the_bit(folder: Path, tiny_model: MedSA) -> None:
    written = tiny_model.adapter_state()
    tiny_model.reset_adapter()
    config = load_adapter(folder, tiny_model, SHA, LABELS)
    assert config.base_name == "tiny"
    assert tiny_model.trained
    assert all(torch.equal(value, written[key]) for key, value in tiny_model.adapter_state().items())
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", CONFIG_NAME, TENSORS_NAME]


def _edit(folder: Path, **changes: object) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: _edit(folder, base_sha256="b" * 64), "made for base tiny"),
        (lambda folder: _edit(folder, base_sha256="b" * 64), r"--conf state DIR\) or .* cli\.py rollback 0"),
        (lambda folder: _edit(folder, labels={"liver": 1}), r"--conf state DIR\) or .* cli\.py rollback 0"),
        (lambda folder: _edit(folder, labels={"liver": 1}), "liver"),
        (lambda folder: _edit(folder, labels={"object": 2}), "made for labels"),
        (lambda folder: _edit(folder, format_version=2), "format 2"),
        (lambda folder: _edit(folder, surprise=1), "surprise"),
        (lambda folder: (folder / CONFIG_NAME).write_text("{"), CONFIG_NAME),
        (lambda folder: (folder / CONFIG_NAME).unlink(), CONFIG_NAME),
        (lambda folder: (folder / TENSORS_NAME).write_bytes(b"\x00" * 40), TENSORS_NAME),
        (lambda folder: (folder / TENSORS_NAME).unlink(), TENSORS_NAME),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_its_reason(
    folder: Path, tiny_model: MedSA, damage: object, text: str
) -> None:
    tiny_model.reset_adapter()
    before = tiny_model.adapter_state()
    damage(folder)  # type: ignore[operator]
    with pytest.raises(AdapterError, match=text):
        load_adapter(folder, tiny_model, SHA, LABELS)
    assert not tiny_model.trained
    assert all(torch.equal(value, before[key]) for key, value in tiny_model.adapter_state().items())
