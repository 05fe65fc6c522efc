"""Base models: SAM's architectures in several sizes, and their strict loading.

`vit_b`, `vit_l` and `vit_h` are SAM's own (Kirillov et al., *Segment Anything*, arXiv 2304.02643); `vit_t` is the
project's small one: the same classes of the package `segment_anything`, smaller numbers.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional

from lib.errors import CheckpointError

DECODER_WIDTH = 256
DECODER_BLOCKS = 2
SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)
POSITIONS = "image_encoder.pos_embed"
NESTED_UNDER = ("model", "state_dict")
PARALLEL_PREFIX = "module."


@dataclass(frozen=True)
class BaseSpec:
    """Dimensions of one base model. Sizes in pixels, widths in channels, indices count blocks from 0."""

    name: str
    image_size: int
    patch_size: int
    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    global_blocks: tuple[int, ...]
    window_size: int

    @property
    def grid(self) -> int:
        """Tokens along one side of the embedding."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """Side of the mask logits the decoder gives, in pixels."""
        return 4 * self.grid


def build_sam(spec: BaseSpec) -> Sam:
    """An untrained `Sam` of the package segment_anything with the dimensions of `spec`."""
    encoder = ImageEncoderViT(
        img_size=spec.image_size,
        patch_size=spec.patch_size,
        embed_dim=spec.encoder_width,
        depth=spec.encoder_depth,
        num_heads=spec.encoder_heads,
        out_chans=DECODER_WIDTH,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=spec.window_size,
        global_attn_indexes=spec.global_blocks,
    )
    prompt_encoder = PromptEncoder(
        embed_dim=DECODER_WIDTH,
        image_embedding_size=(spec.grid, spec.grid),
        input_image_size=(spec.image_size, spec.image_size),
        mask_in_chans=16,
    )
    decoder = MaskDecoder(
        transformer_dim=DECODER_WIDTH,
        transformer=TwoWayTransformer(
            depth=DECODER_BLOCKS, embedding_dim=DECODER_WIDTH, num_heads=8, mlp_dim=2048
        ),
    )
    return Sam(encoder, prompt_encoder, decoder, list(SAM_PIXEL_MEAN), list(SAM_PIXEL_STD))


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def load_base(spec: BaseSpec, path: Path, sha256: str | None = None) -> tuple[Sam, str]:
    """The base in `path` (.safetensors or .pth), strictly, and the file's SHA-256.

    All of it is float32 on the CPU and independent of the file, whose positions are resized where it was made for
    another image size. A .pth holds SAM's own table of tensors, as the official ones and MedSAM's do, or has it under
    `model` or `state_dict` beside other things, as training scripts leave it.

    Raises CheckpointError when the file is absent, damaged, has another hash than `sha256`, or when any key is
    missing, unexpected or misshapen; the message names the keys.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file")
    found = file_sha256(path)
    if sha256 is not None and found != sha256:
        raise CheckpointError(f"checkpoint {path}: sha256 is {found}, {spec.name} needs {sha256}")
    sam = _sam_without_weights(spec)
    tensors = resize_positions(_read_tensors(path), spec)
    check_fit(sam, tensors, f"checkpoint {path} as {spec.name}")
    sam.load_state_dict({key: _own_copy(value) for key, value in tensors.items()}, assign=True)
    return sam, found


def resize_positions(tensors: Mapping[str, Tensor], spec: BaseSpec) -> dict[str, Tensor]:
    """`tensors` of an encoder made for a grid of g0 x g0 tokens, with its positions for the grid g of `spec`.

    `image_encoder.pos_embed` (1, g0, g0, C) -> (1, g, g, C) bicubically; `rel_pos_h` and `rel_pos_w` of each global
    block (2 g0 - 1, C / heads) -> (2 g - 1, C / heads) linearly, as segment_anything's `get_rel_pos` does at every
    run. Windows keep their size, and so do their tables. With g0 = g, and where a shape differs in anything but
    the grid, a tensor stays as it is.

    Source: Kirillov et al., arXiv 2304.02643; Li et al., *Exploring Plain Vision Transformer Backbones for Object
    Detection*, arXiv 2203.16527 (positions of a ViT trained at another size).
    """
    resized, grid = dict(tensors), _stored_grid(tensors, spec)
    if grid is None or grid == spec.grid:
        return resized
    planes = tensors[POSITIONS].float().permute(0, 3, 1, 2)
    planes = functional.interpolate(planes, size=(spec.grid, spec.grid), mode="bicubic", align_corners=False)
    resized[POSITIONS] = planes.permute(0, 2, 3, 1)
    table_shape = (2 * grid - 1, spec.encoder_width // spec.encoder_heads)
    for key in _global_tables(spec):
        if key in tensors and tensors[key].shape == table_shape:
            rows = tensors[key].float().mT.unsqueeze(0)
            rows = functional.interpolate(rows, size=2 * spec.grid - 1, mode="linear", align_corners=False)
            resized[key] = rows.squeeze(0).mT
    return resized


def at_size(sam: Sam, spec: BaseSpec) -> Sam:
    """`sam` for images of the size of `spec`: its positions are resized, all other weights are the same tensors."""
    other = _sam_without_weights(spec)
    other.load_state_dict(resize_positions(sam.state_dict(), spec), assign=True)
    return other.to(sam.device).requires_grad_(False).train(sam.training)


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copies `tensors` into `module`; raises CheckpointError naming every key that does not fit."""
    check_fit(module, tensors, what)
    module.load_state_dict(tensors)


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises CheckpointError naming every key that is missing, unexpected or misshapen."""
    own = module.state_dict()
    problems = [f"missing {key}" for key in own if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in own]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)}, needed {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{what}: {'; '.join(problems[:8])}{more}")


def _sam_without_weights(spec: BaseSpec) -> Sam:
    """The network without memory for its weights and without drawing any, since all of them are loaded."""
    with torch.device("meta"):
        sam = build_sam(spec)
    # These two are in no checkpoint.
    sam.pixel_mean = torch.tensor(SAM_PIXEL_MEAN).view(-1, 1, 1)
    sam.pixel_std = torch.tensor(SAM_PIXEL_STD).view(-1, 1, 1)
    return sam


def _own_copy(tensor: Tensor) -> Tensor:
    """Float32, contiguous, in memory of its own: what was read may be a view of the file."""
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _stored_grid(tensors: Mapping[str, Tensor], spec: BaseSpec) -> int | None:
    """Side of the grid that the file's positions are for; None where they are no such table."""
    stored = tensors.get(POSITIONS)
    if stored is None or stored.ndim != 4:
        return None
    side = stored.shape[1]
    return side if side > 0 and stored.shape == (1, side, side, spec.encoder_width) else None


def _global_tables(spec: BaseSpec) -> list[str]:
    return [
        f"image_encoder.blocks.{block}.attn.rel_pos_{axis}" for block in spec.global_blocks for axis in "hw"
    ]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The table of tensors in a checkpoint; they may be views of the file."""
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path}: cannot be read, it is damaged or holds more than tensors and plain values, "
            "which are not loaded since they could run code"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read, it may be truncated ({error})") from error
    table = _tensor_table(loaded)
    if table is None:
        allowed = " or ".join(f"{name!r}" for name in NESTED_UNDER)
        raise CheckpointError(
            f"checkpoint {path}: holds no table of tensors, neither by itself nor under {allowed}"
        )
    return _without_prefix(table)


def _unpickle(path: Path) -> Any:
    # weights_only: a checkpoint from elsewhere must not run code when it is read.
    # Only the zip format of torch >= 1.6 can be mapped, so that just what is used is read.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _tensor_table(loaded: Any) -> dict[str, Tensor] | None:
    """`loaded` itself, or what it holds under a name of NESTED_UNDER; None when neither is a table of tensors."""
    if not isinstance(loaded, dict):
        return None
    for table in (loaded, *(loaded.get(name) for name in NESTED_UNDER)):
        if isinstance(table, dict) and table and all(map(_is_named_tensor, table.items())):
            return table
    return None


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _without_prefix(table: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that torch's DistributedDataParallel puts before every key."""
    if not all(key.startswith(PARALLEL_PREFIX) for key in table):
        return table
    return {key.removeprefix(PARALLEL_PREFIX): value for key, value in table.items()}
