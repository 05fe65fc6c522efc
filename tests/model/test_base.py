"""Loading a base: strict, checked, and clear about what is wrong."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling.image_encoder import get_rel_pos

from lib.errors import CheckpointError
from lib.model.base import BaseSpec, build_sam, file_sha256, load_base, resize_positions

POSITIONS = "image_encoder.pos_embed"
WINDOWED = "image_encoder.blocks.0.attn.rel_pos_h"
GLOBAL = tuple(f"image_encoder.blocks.1.attn.rel_pos_{axis}" for axis in "hw")


@pytest.fixture
def tensors(tiny_spec: BaseSpec) -> dict[str, torch.Tensor]:
    """Of a SAM whose positions are not zero, as they are before training."""
    torch.manual_seed(0)
    found = build_sam(tiny_spec).state_dict()
    for key in (POSITIONS, WINDOWED, *GLOBAL):
        found[key].normal_()
    return found


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_formats_load_every_tensor(
    tiny_spec: BaseSpec, tensors: dict, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"sam{suffix}"
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    sam, sha256 = load_base(tiny_spec, path, file_sha256(path))
    assert sha256 == file_sha256(path)
    assert all(torch.equal(value, sam.state_dict()[key]) for key, value in tensors.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_loaded_is_ordinary_and_outlives_its_file(
    tiny_spec: BaseSpec, tensors: dict, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"sam{suffix}"
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    sam, _ = load_base(tiny_spec, path)
    path.write_bytes(bytes(path.stat().st_size))  # a view of the file would be zeros now
    assert all(torch.equal(value, sam.state_dict()[key]) for key, value in tensors.items())
    assert all(parameter.requires_grad for parameter in sam.parameters())
    everything = [*sam.parameters(), *sam.buffers()]
    assert {(value.device.type, value.dtype) for value in everything} == {("cpu", torch.float32)}
    assert all(value.is_contiguous() for value in everything)
    assert len({value.untyped_storage().data_ptr() for value in everything}) == len(everything)


def test_transposed_tensors_in_a_file_become_contiguous(
    tiny_spec: BaseSpec, tensors: dict, tmp_path: Path
) -> None:
    tensors[WINDOWED] = tensors[WINDOWED].T.contiguous().T
    assert not tensors[WINDOWED].is_contiguous()
    torch.save(tensors, tmp_path / "sam.pth")
    for spec in (tiny_spec, replace(tiny_spec, image_size=96)):
        loaded = load_base(spec, tmp_path / "sam.pth")[0].state_dict()
        assert torch.equal(loaded[WINDOWED], tensors[WINDOWED])
        assert all(value.is_contiguous() for value in loaded.values())


def test_it_is_the_network_that_would_have_been_built(
    tiny_spec: BaseSpec, tensors: dict, tmp_path: Path
) -> None:
    built = build_sam(tiny_spec)
    built.load_state_dict(tensors)
    save_file(tensors, tmp_path / "sam.safetensors")
    loaded, _ = load_base(tiny_spec, tmp_path / "sam.safetensors")
    buffers = dict(built.named_buffers())
    assert {"pixel_mean", "pixel_std"} < set(buffers)  # in no checkpoint
    assert dict(loaded.named_buffers()).keys() == buffers.keys()
    assert all(torch.equal(value, buffers[name]) for name, value in loaded.named_buffers())
    assert loaded.state_dict().keys() == built.state_dict().keys()
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.image_encoder(pixels), built.image_encoder(pixels))


def test_loading_draws_no_random_number(tiny_spec: BaseSpec, tensors: dict, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "sam.safetensors")
    before = torch.random.get_rng_state()
    load_base(tiny_spec, tmp_path / "sam.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        OrderedDict,
        lambda tensors: {"model": tensors, "optimizer": {"state": {0: {"step": 3}}}, "epoch": 7},
        lambda tensors: {"epoch": 7, "state_dict": OrderedDict(tensors)},
        lambda tensors: {f"module.{key}": value for key, value in tensors.items()},
        lambda tensors: {"model": {f"module.{key}": value for key, value in tensors.items()}, "loss": 0.5},
    ],
    ids=["plain", "model", "state_dict", "module.", "model, module."],
)
def test_the_layouts_of_training_scripts_load(
    tiny_spec: BaseSpec, tensors: dict, tmp_path: Path, wrap: Callable, zipped: bool
) -> None:
    torch.save(wrap(tensors), tmp_path / "sam.pth", _use_new_zipfile_serialization=zipped)
    sam, _ = load_base(tiny_spec, tmp_path / "sam.pth")
    assert all(torch.equal(value, sam.state_dict()[key]) for key, value in tensors.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"model": {**tensors, "surplus": torch.zeros(1)}},
        lambda tensors: {
            **{f"module.{key}": value for key, value in tensors.items()},
            "module.surplus": torch.zeros(1),
        },
    ],
    ids=["model", "module."],
)
def test_other_layouts_are_as_strict(
    tiny_spec: BaseSpec, tensors: dict, tmp_path: Path, wrap: Callable
) -> None:
    torch.save(wrap(tensors), tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=r"unexpected surplus$"):
        load_base(tiny_spec, tmp_path / "sam.pth")


def test_a_prefix_on_some_keys_only_is_no_layout(tiny_spec: BaseSpec, tensors: dict, tmp_path: Path) -> None:
    tensors[f"module.{POSITIONS}"] = tensors.pop(POSITIONS)
    torch.save(tensors, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=f"missing {POSITIONS}; unexpected module.{POSITIONS}"):
        load_base(tiny_spec, tmp_path / "sam.pth")


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


def test_code_beside_the_tensors_is_refused_and_not_run(
    tiny_spec: BaseSpec, tensors: dict, tmp_path: Path
) -> None:
    torch.save({"model": tensors, "args": _Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_base(tiny_spec, tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": 3},
        {},
        {"model": {}},
        {"model": {"layer": [1.0]}},
        {"weights": {"layer": torch.zeros(1)}},
        {1: torch.zeros(1)},
        [torch.zeros(1)],
    ],
)
def test_a_file_without_a_table_of_tensors_is_refused(
    tiny_spec: BaseSpec, tmp_path: Path, content: object
) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"no table of tensors, .* under 'model' or 'state_dict'"):
        load_base(tiny_spec, tmp_path / "other.pth")


class TestImageSize:
    @pytest.fixture
    def larger(self, tiny_spec: BaseSpec) -> BaseSpec:
        """A grid of 6 tokens instead of 4."""
        return replace(tiny_spec, image_size=96)

    def test_the_same_size_changes_no_bit(self, tiny_spec: BaseSpec, tensors: dict) -> None:
        same = resize_positions(tensors, tiny_spec)
        assert same.keys() == tensors.keys()
        assert all(same[key] is value for key, value in tensors.items())

    @pytest.mark.parametrize("size", [32, 48, 96, 160])
    def test_only_the_positions_change(self, tiny_spec: BaseSpec, tensors: dict, size: int) -> None:
        spec = replace(tiny_spec, image_size=size)
        resized = resize_positions(tensors, spec)
        changed = {key for key, value in tensors.items() if resized[key] is not value}
        assert changed == {POSITIONS, *GLOBAL}
        assert resized[POSITIONS].shape == (1, spec.grid, spec.grid, 32)
        assert all(resized[key].shape == (2 * spec.grid - 1, 16) for key in GLOBAL)

    @pytest.mark.parametrize("size", [32, 96])
    def test_the_tables_are_those_that_segment_anything_interpolates(
        self, tiny_spec: BaseSpec, tensors: dict, size: int
    ) -> None:
        grid = size // 16
        resized = resize_positions(tensors, replace(tiny_spec, image_size=size))
        for key in GLOBAL:
            assert torch.equal(get_rel_pos(grid, grid, resized[key]), get_rel_pos(grid, grid, tensors[key]))

    def test_the_encoder_answers_as_segment_anything_does_with_the_tables_as_they_were(
        self, larger: BaseSpec, tensors: dict, tmp_path: Path
    ) -> None:
        save_file(tensors, tmp_path / "sam.safetensors")
        encoder = load_base(larger, tmp_path / "sam.safetensors")[0].image_encoder
        pixels = torch.randn(1, 3, 96, 96)
        with torch.no_grad():
            ours = encoder(pixels)
            for key, axis in zip(GLOBAL, "hw", strict=True):
                setattr(encoder.blocks[1].attn, f"rel_pos_{axis}", torch.nn.Parameter(tensors[key]))
            assert encoder.blocks[1].attn.rel_pos_h.shape[0] == 7  # resized at run time from here on
            assert torch.equal(ours, encoder(pixels))
            encoder.blocks[1].attn.rel_pos_w.mul_(1.1)
            assert not torch.equal(ours, encoder(pixels))

    def test_rows_stay_rows_and_a_ramp_a_ramp(self, tiny_spec: BaseSpec, tensors: dict) -> None:
        grid, doubled = 8, 16
        start, end = (replace(tiny_spec, image_size=16 * side) for side in (grid, doubled))
        found = build_sam(start).state_dict()
        found[POSITIONS] = torch.arange(float(grid)).view(1, grid, 1, 1).expand(1, grid, grid, 32)
        resized = resize_positions(found, end)[POSITIONS]
        assert torch.allclose(resized, resized[:, :, :1, :1].expand_as(resized))
        # The centre of new row n lies at (n + 0.5) / 2 - 0.5 old rows. Torch's cubic (a = -0.75) keeps a line to 0.05.
        expected = (torch.arange(float(doubled)) + 0.5) / 2 - 0.5
        assert torch.allclose(resized[0, 4:-4, 0, 0], expected[4:-4], atol=0.05)

    def test_positions_are_resized_bicubically(self, tiny_spec: BaseSpec, tensors: dict) -> None:
        tensors[POSITIONS] = (torch.arange(4.0) >= 2).float().view(1, 1, 4, 1).expand(1, 4, 4, 32)
        resized = resize_positions(tensors, replace(tiny_spec, image_size=128))[POSITIONS]
        assert resized.max() > 1.01  # a cubic goes beyond a step's ends, nothing simpler does
        assert resized.min() < -0.01

    def test_half_precision_is_resized_in_float32(self, larger: BaseSpec, tensors: dict) -> None:
        rounded = {key: value.half() for key, value in tensors.items()}
        resized = resize_positions(rounded, larger)
        exact = resize_positions({key: value.float() for key, value in rounded.items()}, larger)
        assert all(torch.equal(resized[key], exact[key]) for key in (POSITIONS, *GLOBAL))

    @pytest.mark.parametrize(
        ("key", "shape"),
        [
            (POSITIONS, (1, 4, 4, 48)),
            (POSITIONS, (1, 4, 5, 32)),
            (POSITIONS, (2, 4, 4, 32)),
            (POSITIONS, (4, 4, 32)),
            (GLOBAL[0], (9, 16)),
            (GLOBAL[1], (7, 8)),
            (WINDOWED, (7, 16)),
            ("image_encoder.neck.0.weight", (256, 16, 1, 1)),
        ],
    )
    def test_any_other_shape_is_an_error_with_both_shapes(
        self, larger: BaseSpec, tensors: dict, tmp_path: Path, key: str, shape: tuple[int, ...]
    ) -> None:
        own = tuple(build_sam(larger).state_dict()[key].shape)
        tensors[key] = torch.zeros(shape)
        save_file(tensors, tmp_path / "sam.safetensors")
        with pytest.raises(CheckpointError, match=re.escape(f"{key} has shape {shape}, needed {own}")):
            load_base(larger, tmp_path / "sam.safetensors")


@pytest.mark.data
def test_a_real_truncated_checkpoint_is_refused(tiny_spec: BaseSpec, data_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mobile_sam\.trunc\.pt"):
        load_base(tiny_spec, data_dir / "truncated_checkpoint" / "mobile_sam.trunc.pt")
