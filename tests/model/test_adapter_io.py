"""Adapters on disk."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.errors import AdapterError
from lib.model.adapter_io import (
    CONFIG_NAME,
    TENSORS_NAME,
    AdapterConfig,
    adapted,
    load_adapter,
    save_adapter,
    tensors_sha256,
)
from lib.model.medsa import MedSA

LABELS = {"object": 1}
SHA = "a" * 64


@pytest.fixture
def folder(tiny_model: MedSA, tmp_path: Path) -> Path:
    with torch.no_grad():
        for parameter in tiny_model.adapters.parameters():
            parameter.normal_()
    return save(tmp_path, tiny_model)


def save(folder: Path, model: MedSA) -> Path:
    assert model.dims is not None
    intensity = {"kind": "percentile"}
    config = AdapterConfig("tiny", SHA, asdict(model.dims), LABELS, intensity, "0.1.0", model.spec.image_size)
    save_adapter(folder, model, config, "# A card\n")
    return folder


def test_an_adapter_comes_back_to_the_bit(folder: Path, tiny_model: MedSA) -> None:
    written = tiny_model.adapter_state()
    tiny_model = tiny_model.sibling()
    config = load_adapter(folder, tiny_model, SHA, LABELS)
    assert config.base_name == "tiny"
    assert tiny_model.trained
    assert all(torch.equal(value, written[key]) for key, value in tiny_model.adapter_state().items())
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", CONFIG_NAME, TENSORS_NAME]


@pytest.mark.parametrize(("arm", "depth"), [("none", 1), ("add", 2), ("concat", 4), ("hyper", 3)])
def test_the_model_gets_the_dimensions_of_the_adapter(
    tiny_model: MedSA, tmp_path: Path, arm: Any, depth: int
) -> None:
    assert tiny_model.dims is not None
    dims = replace(tiny_model.dims, encoder_width=6, prompt_arm=arm, depth=depth)
    made = MedSA(tiny_model.sam, tiny_model.spec, dims, tiny_model.labels)
    save(tmp_path, made)
    load_adapter(tmp_path, tiny_model, SHA, LABELS)
    assert tiny_model.dims == dims
    found = tiny_model.adapter_state()
    assert found.keys() == made.adapter_state().keys()
    assert all(torch.equal(found[key], value) for key, value in made.adapter_state().items())


def test_an_adapter_of_format_1_is_read(folder: Path, tiny_model: MedSA) -> None:
    """It had no prompt arm, depth or image size, and the decoder's first adapter was called `hyper`."""
    written, path = tiny_model.adapter_state(), folder / CONFIG_NAME
    config = json.loads(path.read_text())
    for key in ("prompt_arm", "depth"):
        del config["dims"][key]
    del config["image_size"]
    path.write_text(json.dumps({**config, "format_version": 1}))
    renamed = {key.replace(".prompt.", ".hyper."): value for key, value in written.items()}
    assert renamed.keys() != written.keys()
    save_file(renamed, folder / TENSORS_NAME)
    tiny_model = tiny_model.sibling()
    found = load_adapter(folder, tiny_model, SHA, LABELS)
    assert (found.format_version, found.image_size) == (1, None)
    assert tiny_model.trained
    assert all(torch.equal(value, written[key]) for key, value in tiny_model.adapter_state().items())


def _edit(folder: Path, **changes: object) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_dims(folder: Path, without: str | None = None, **changes: object) -> None:
    dims = {**json.loads((folder / CONFIG_NAME).read_text())["dims"], **changes}
    _edit(folder, dims={key: value for key, value in dims.items() if key != without})


def _edit_tensors(folder: Path, without: str) -> None:
    found = load_file(folder / TENSORS_NAME)
    del found[without]
    save_file(found, folder / TENSORS_NAME)


def _spoil_tensor(folder: Path, key: str) -> None:
    tensors = load_file(folder / TENSORS_NAME)
    tensors[key][0, 0] = torch.nan
    save_file(tensors, folder / TENSORS_NAME)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: _edit(folder, base_sha256="b" * 64), "made for base tiny"),
        (lambda folder: _edit(folder, base_sha256="b" * 64), r"--conf state DIR\) or .* cli\.py rollback 0"),
        (lambda folder: _edit(folder, labels={"liver": 1}), r"--conf state DIR\) or .* cli\.py rollback 0"),
        (lambda folder: _edit(folder, labels={"liver": 1}), "liver"),
        (lambda folder: _edit(folder, labels={"object": 2}), "made for labels"),
        (lambda folder: _edit(folder, image_size=512), "made for images of 512 pixels, not of 64"),
        (lambda folder: _edit(folder, format_version=3), r"format 3, .* reads 1 to 2; .*rollback 0"),
        (lambda folder: _edit(folder, format_version=0), "format 0"),
        (lambda folder: _edit(folder, format_version=True), "format True"),
        (lambda folder: _edit(folder, dims=[4]), "dims in"),
        (lambda folder: _edit_dims(folder, without="hyper_width"), "dims in .*hyper_width"),
        (lambda folder: _edit_dims(folder, colour=3), "dims in .*colour"),
        (
            lambda folder: _edit_dims(folder, prompt_arm="both"),
            "dims.prompt_arm .*'both'.* none, add, concat, hyper",
        ),
        (lambda folder: _edit_dims(folder, prompt_arm=[]), r"dims.prompt_arm .*\[\]"),
        (lambda folder: _edit_dims(folder, depth=0), "dims.depth .*: 0 is not .* above 0"),
        (lambda folder: _edit_dims(folder, depth="4"), "dims.depth .*'4'"),
        (lambda folder: _edit_dims(folder, hyper_layers=True), "dims.hyper_layers .*True"),
        (lambda folder: _edit_dims(folder, encoder_width=10**12), "encoder.0.space.down.weight has shape"),
        (lambda folder: _edit(folder, labels=None), "labels in .* None is no table"),
        (lambda folder: _edit(folder, labels=["a"]), "labels in .* is no table"),
        (lambda folder: _spoil_tensor(folder, "labels.weight"), "labels.weight in .* no number"),
        (lambda folder: _edit_dims(folder, encoder_width=5), "encoder.0.space.down.weight has shape"),
        (lambda folder: _edit_dims(folder, depth=2), "missing encoder.0.depth.down.weight"),
        (lambda folder: _edit_tensors(folder, "labels.weight"), "missing labels.weight"),
        (lambda folder: _edit(folder, surprise=1), "surprise"),
        (lambda folder: (folder / CONFIG_NAME).write_text("{"), CONFIG_NAME),
        (lambda folder: (folder / CONFIG_NAME).unlink(), CONFIG_NAME),
        (lambda folder: (folder / TENSORS_NAME).write_bytes(b"\x00" * 40), TENSORS_NAME),
        (lambda folder: (folder / TENSORS_NAME).unlink(), TENSORS_NAME),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_its_reason(
    folder: Path, tiny_model: MedSA, damage: Callable[[Path], object], text: str
) -> None:
    tiny_model = tiny_model.sibling()
    before, dims = tiny_model.adapter_state(), tiny_model.dims
    damage(folder)
    with pytest.raises(AdapterError, match=text):
        load_adapter(folder, tiny_model, SHA, LABELS)
    assert not tiny_model.trained
    assert tiny_model.dims == dims
    assert tiny_model.adapter_state().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in tiny_model.adapter_state().items())


def test_the_tensors_have_a_name_by_content(folder: Path) -> None:
    before = tensors_sha256(folder)
    assert before == hashlib.sha256((folder / TENSORS_NAME).read_bytes()).hexdigest()
    content = bytearray((folder / TENSORS_NAME).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS_NAME).write_bytes(content)
    assert tensors_sha256(folder) != before


def test_tensors_that_are_gone_have_no_name(folder: Path) -> None:
    (folder / TENSORS_NAME).unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors cannot be read"):
        tensors_sha256(folder)


def test_an_adapter_brings_the_image_size_that_it_was_trained_at(tiny_model, folder):
    _edit(folder, image_size=128)
    before = {key: value.clone() for key, value in tiny_model.sam.state_dict().items()}
    model = adapted(folder, tiny_model, SHA, LABELS)
    assert (model.spec.image_size, tiny_model.spec.image_size) == (128, 64)
    assert model.trained
    assert model.adapters is not tiny_model.adapters
    assert model.encode(torch.rand(1, 3, 128, 128) * 255).shape == (1, 256, 8, 8)
    assert all(torch.equal(value, before[key]) for key, value in tiny_model.sam.state_dict().items())


@pytest.mark.parametrize("size", [0, -128, 100, 2048, "128", 128.0, True])
def test_an_image_size_that_the_base_cannot_have_is_named(tiny_model, folder, size):
    _edit(folder, image_size=size)
    with pytest.raises(AdapterError, match=f"image_size.*{size}.*multiple of 16 up to 1024"):
        adapted(folder, tiny_model, SHA, LABELS)


def test_labels_named_in_another_order_keep_their_tokens(tiny_model: MedSA, tmp_path: Path) -> None:
    """A token is found by its place, and the order in a task's file is anybody's."""
    dims, spec, sam = tiny_model.dims, tiny_model.spec, tiny_model.sam
    names = {"liver": 1, "spleen": 2, "kidney": 3}
    written = MedSA(sam, spec, dims, tuple(names))
    with torch.no_grad():
        written.adapters["labels"].weight.normal_()
    assert dims is not None
    save_adapter(tmp_path, written, AdapterConfig("tiny", SHA, asdict(dims), names, {}, "0", 64), "card")
    other = {"kidney": 3, "liver": 1, "spleen": 2}
    read = MedSA(sam, spec, dims, tuple(other))
    load_adapter(tmp_path, read, SHA, other)
    before, after = written.adapters["labels"].weight, read.adapters["labels"].weight
    for name in names:
        assert torch.equal(before[list(names).index(name)], after[list(other).index(name)])
