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

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from lib.errors import CheckpointError

DECODER_WIDTH = 256
DECODER_BLOCKS = 2
SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)


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
    """The base in `path` (.safetensors, or an official .pth), strictly, and the file's SHA-256.

    Raises CheckpointError when the file is absent, damaged, has another hash than `sha256`, or when any key is
    missing, unexpected or misshapen; the message names the keys.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file")
    found = file_sha256(path)
    if sha256 is not None and found != sha256:
        raise CheckpointError(f"checkpoint {path}: sha256 is {found}, {spec.name} needs {sha256}")
    sam = build_sam(spec)
    load_strictly(sam, _read_tensors(path), f"checkpoint {path} as {spec.name}")
    return sam, found


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copies `tensors` into `module`; raises CheckpointError naming every key that does not fit."""
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
    module.load_state_dict(tensors)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: a checkpoint from elsewhere must not run code when it is read.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read, it may be truncated ({error})") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"checkpoint {path}: holds no table of tensors")
    return loaded
