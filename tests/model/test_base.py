"""Loading a base: strict, checked, and clear about what is wrong."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib.errors import CheckpointError
from lib.model.base import BaseSpec, build_sam, file_sha256, load_base


@pytest.fixture
def tensors(tiny_spec: BaseSpec) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_sam(tiny_spec).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_formats_load_every_tensor(
    tiny_spec: BaseSpec, tensors: dict, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"sam{suffix}"
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    sam, sha256 = load_base(tiny_spec, path, file_sha256(path))
    assert sha256 == file_sha256(path)
    assert all(torch.equal(value, sam.state_dict()[key]) for key, value in tensors.items())


def test_half_precision_files_give_float32_models(tiny_spec: BaseSpec, tensors: dict, tmp_path: Path) -> None:
    save_file({key: value.half() for key, value in tensors.items()}, tmp_path / "sam.safetensors")
    sam, _ = load_base(tiny_spec, tmp_path / "sam.safetensors")
    assert {parameter.dtype for parameter in sam.parameters()} == {torch.float32}


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_each_key_that_does_not_fit_is_named(
    tiny_spec: BaseSpec, tensors: dict, tmp_path: Path, damage: str
) -> None:
    key = "image_encoder.blocks.0.attn.rel_pos_h"
    if damage == "missing":
        del tensors[key]
    elif damage == "misshapen":
        tensors[key] = torch.zeros(7, 7)
    else:
        key, tensors["surplus"] = "surplus", torch.zeros(1)
    save_file(tensors, tmp_path / "sam.safetensors")
    with pytest.raises(CheckpointError, match=key):
        load_base(tiny_spec, tmp_path / "sam.safetensors")


def test_another_hash_is_refused(tiny_spec: BaseSpec, tensors: dict, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "sam.safetensors")
    with pytest.raises(CheckpointError, match="sha256"):
        load_base(tiny_spec, tmp_path / "sam.safetensors", "0" * 64)


def test_an_absent_file_is_named(tiny_spec: BaseSpec, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        load_base(tiny_spec, tmp_path / "absent.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(tiny_spec: BaseSpec, tensors: dict, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sam{suffix}"
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_base(tiny_spec, path)


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


def test_a_pickle_with_code_is_refused_and_not_run(tiny_spec: BaseSpec, tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"x": _Payload(tmp_path / "ran")}))
    with pytest.raises(CheckpointError):
        load_base(tiny_spec, tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_file_without_tensors_is_refused(tiny_spec: BaseSpec, tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no table of tensors"):
        load_base(tiny_spec, tmp_path / "other.pth")


@pytest.mark.data
def test_a_real_truncated_checkpoint_is_refused(tiny_spec: BaseSpec, data_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mobile_sam\.trunc\.pt"):
        load_base(tiny_spec, data_dir / "truncated_checkpoint" / "mobile_sam.trunc.pt")
