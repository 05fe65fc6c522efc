"""Med-SA: SAM, frozen, with adapters in its encoder and decoder and one learned prompt token per label.

The model is a pure function of planes, prompts and adapter. Everything trained lives in `MedSA.adapters`, and exactly
that is saved; everything else is the base and never changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from segment_anything.modeling import MaskDecoder, Sam
from torch import Tensor, nn

from lib.errors import AdapterError, CheckpointError
from lib.model import decoder, encoder
from lib.model.adapters import AdapterDims
from lib.model.base import DECODER_BLOCKS, DECODER_WIDTH, BaseSpec, at_size, check_fit
from lib.model.compiled import Compiled
from lib.model.depth import Slabs
from lib.model.encoder import RunBlock

Precision = Literal["float32", "bfloat16"]
# Image tokens from which on the decoder, too, is quicker in bfloat16.
ROUNDED_DECODER_TOKENS = 1024


@dataclass(frozen=True)
class SinglePrompt:
    """What is asked of one plane, in model pixels (x along columns, y along rows; a pixel's centre is whole).

    `points` are (x, y, label) with label 1 positive, 0 negative; `box_xyxy` the box's edges; `mask_logits` (m, m);
    `label_id` the index of the label meant, -1 for none.
    """

    points: Sequence[tuple[float, float, int]] = ()
    box_xyxy: Sequence[float] | None = None
    mask_logits: Tensor | None = None
    label_id: int = -1

    @property
    def is_ambiguous(self) -> bool:
        """One lone click: it may mean a part or the whole."""
        return len(self.points) == 1 and self.box_xyxy is None and self.mask_logits is None


@dataclass(frozen=True)
class PlanePrompts:
    """P prompts, one plane each.

    points_xy (P, N, 2) in model pixels; point_labels (P, N): 1 positive, 0 negative, 2 and 3 a box's corners, -1
    padding; masks (P, 1, m, m) logits, used where has_mask (P,); label_ids (P,), -1 for none.
    """

    points_xy: Tensor
    point_labels: Tensor
    masks: Tensor | None = None
    has_mask: Tensor | None = None
    label_ids: Tensor | None = None

    def __len__(self) -> int:
        return self.points_xy.shape[0]

    def to(self, device: torch.device | str) -> "PlanePrompts":
        """The same prompts on `device`."""
        optional = (self.masks, self.has_mask, self.label_ids)
        moved = (None if tensor is None else tensor.to(device) for tensor in optional)
        return PlanePrompts(self.points_xy.to(device), self.point_labels.to(device), *moved)

    @classmethod
    def stack(cls, prompts: Sequence[SinglePrompt]) -> "PlanePrompts":
        """Pads the prompts to one length, with SAM's padding token where there is no box, as SAM does."""
        rows = [_point_row(prompt) for prompt in prompts]
        length = max(len(row) for row in rows)
        padded = [row + [(0.0, 0.0, decoder.PADDING)] * (length - len(row)) for row in rows]
        table = torch.tensor(padded, dtype=torch.float32)
        masks, has_mask = _stack_masks([prompt.mask_logits for prompt in prompts])
        label_ids = torch.tensor([prompt.label_id for prompt in prompts])
        return cls(table[..., :2], table[..., 2].long(), masks, has_mask, label_ids)


@dataclass(frozen=True)
class Masks:
    """Logits (P, 4, m, m) and predicted IoU (P, 4): entry 0 answers a clear prompt, 1 to 3 an ambiguous one."""

    logits: Tensor
    iou: Tensor

    def choose(self, ambiguous: Tensor) -> tuple[Tensor, Tensor]:
        """One mask a prompt: logits (P, m, m), IoU (P,).

        Where `ambiguous` (P,) it is the best of entries 1 to 3 by predicted IoU, as in SAM, times the IoU that the
        mask expects of itself: a guess with a blurred outline is a worse one. Else it is entry 0.
        """
        score = self.iou[:, 1:].clamp(min=1e-6) * expected_iou(self.logits[:, 1:].float())
        best = score.argmax(dim=1) + 1
        index = torch.where(ambiguous, best, torch.zeros_like(best))
        rows = torch.arange(len(index), device=index.device)
        return self.logits[rows, index], self.iou[rows, index]


def expected_iou(logits: Tensor) -> Tensor:
    """The IoU that masks (..., m, m) have by their own probabilities, about: (...,), 1 where all pixels are sure.

    Expected overlap over expected union, with the pixels taken as independent; 0 for an empty mask.
    """
    probability = logits.sigmoid()
    inside = probability > 0.5
    common = (probability * inside).sum((-2, -1))
    union = inside.sum((-2, -1)) + (probability * ~inside).sum((-2, -1))
    return common / union.clamp(min=1)


class MedSA(nn.Module):
    """SAM with adapters. With `dims` None it is the base alone, which is what pretraining trains.

    `trained` is False while the adapters still add zero: then they, labels and depth are left out, and the output is
    the base's, to the bit and at its price. With `checkpointing` training computes a block's activations twice instead
    of keeping them.
    """

    def __init__(
        self, sam: Sam, spec: BaseSpec, dims: AdapterDims | None, labels: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.sam, self.spec, self.dims, self.labels = sam, spec, dims, tuple(labels)
        self.trained = False
        self.checkpointing = False
        self._run_block: RunBlock = encoder.run_block
        self._rounded_decoder: MaskDecoder | None = None
        self.adapters = _new_adapters(spec, dims, len(self.labels))
        if dims is not None:
            self.sam.requires_grad_(False)

    @property
    def slab(self) -> int:
        """How many neighbouring slices are to be encoded together; 1 where the network has no use for depth."""
        return self.dims.depth if self.dims is not None and self.trained else 1

    @property
    def precision(self) -> Precision:
        """What the encoder computes in."""
        dtype = self.sam.image_encoder.patch_embed.proj.weight.dtype
        return "bfloat16" if dtype == torch.bfloat16 else "float32"

    def use_bfloat16(self) -> None:
        """Rounds the frozen encoder for good: half of the memory, and several times faster where it is native.

        The decoder's weights stay float32, which is what training goes through; without gradients and on maps of 1024
        tokens or more a rounded copy of it answers.
        """
        encoder.to_bfloat16(self.sam.image_encoder)
        if self.spec.grid**2 >= ROUNDED_DECODER_TOKENS:
            self._rounded_decoder = decoder.rounded_to_bfloat16(self.sam.mask_decoder)

    def use_compile(self) -> None:
        """Has torch.compile fuse each block of the encoder: half a minute at the first slice of each kind."""
        self._run_block = Compiled(encoder.run_block)

    def encode(self, planes: Tensor, depths: Sequence[int] | None = None) -> Tensor:
        """Planes (B, 3, S, S) with values 0 to 255 -> embeddings (B, 256, g, g).

        `depths` are the lengths of the slabs (neighbouring slices of one volume, in order) that follow one another in
        the batch; None: every plane by itself. Raises ValueError when they don't add up to B.
        """
        if depths is not None and sum(depths) != len(planes):
            raise ValueError(
                f"depths {tuple(depths)}: they add up to {sum(depths)}, not to {len(planes)} planes"
            )
        pixels = (planes - self.sam.pixel_mean) / self.sam.pixel_std
        slabs = None
        if depths is not None and self.slab > 1 and max(depths) > 1:
            slabs = Slabs.of(depths, planes.device)
        return encoder.encode(
            self.sam.image_encoder,
            pixels,
            self._part("encoder"),
            slabs,
            recompute=self.checkpointing,
            run=self._run_block,
        )

    def decode(self, embeddings: Tensor, prompts: PlanePrompts) -> Masks:
        """Embeddings (P, 256, g, g), one a prompt, and P prompts -> P mask sets."""
        if self._rounded_decoder is None or torch.is_grad_enabled():
            return self._decode(self.sam.mask_decoder, embeddings, prompts)
        with torch.autocast(embeddings.device.type, torch.bfloat16):
            masks = self._decode(self._rounded_decoder, embeddings, prompts)
        return Masks(masks.logits.float(), masks.iou.float())

    def _decode(self, mask_decoder: MaskDecoder, embeddings: Tensor, prompts: PlanePrompts) -> Masks:
        prompt_encoder = self.sam.prompt_encoder
        tokens = decoder.embed_points(prompt_encoder, prompts.points_xy, prompts.point_labels)
        if self.trained and prompts.label_ids is not None:
            tokens = torch.cat([tokens, self._label_tokens(prompts.label_ids)], dim=1)
        dense = decoder.embed_masks(prompt_encoder, prompts.masks, prompts.has_mask, len(prompts))
        with torch.autocast(embeddings.device.type, enabled=False):
            positions = prompt_encoder.get_dense_pe()
        logits, iou = decoder.decode(
            mask_decoder, embeddings, positions, tokens, dense, self._part("decoder")
        )
        return Masks(logits, iou)

    def adapter_state(self) -> dict[str, Tensor]:
        """Copies of exactly the trained tensors, on the CPU."""
        return {key: value.detach().cpu().clone() for key, value in self.adapters.state_dict().items()}

    def load_adapter_state(self, tensors: Mapping[str, Tensor], dims: AdapterDims | None = None) -> None:
        """Takes over trained tensors, of adapters with `dims` where those differ from the model's.

        Raises AdapterError naming every key that does not fit; then the model is as it was.
        """
        dims = dims or self.dims
        try:
            # Without memory, until it is known that they fit: the widths come from a file.
            with torch.device("meta"):
                adapters = _new_adapters(self.spec, dims, len(self.labels))
            check_fit(adapters, tensors, "adapter")
        except (CheckpointError, RuntimeError) as error:
            raise AdapterError(str(error)) from error
        adapters = adapters.to_empty(device=self.sam.device)
        adapters.load_state_dict(tensors)
        self.adapters, self.dims = adapters, dims
        self.trained = True

    def sibling(self) -> "MedSA":
        """Another network over the same frozen base, run in the same way, with fresh adapters; not trained."""
        other = MedSA(self.sam, self.spec, self.dims, self.labels)
        other._run_block, other._rounded_decoder = self._run_block, self._rounded_decoder
        return other.to(self.sam.device).train(self.training)

    def at_size(self, image_size: int) -> "MedSA":
        """This network for images of another size: the same frozen weights and the same adapters, trained together.

        Raises ValueError for a size that is not made of whole patches.
        """
        if image_size % self.spec.patch_size or image_size < self.spec.patch_size:
            raise ValueError(f"image_size {image_size}: a multiple of {self.spec.patch_size}")
        spec = replace(self.spec, image_size=image_size)
        other = MedSA(at_size(self.sam, spec), spec, self.dims, self.labels)
        other.adapters, other.trained = self.adapters, self.trained
        other._run_block = self._run_block
        if other.precision == "bfloat16" and spec.grid**2 >= ROUNDED_DECODER_TOKENS:
            other._rounded_decoder = self._rounded_decoder or decoder.rounded_to_bfloat16(
                self.sam.mask_decoder
            )
        return other.train(self.training)

    def _part(self, name: str) -> nn.ModuleList | None:
        """The adapters of encoder or decoder; None where they would add zero."""
        return cast(nn.ModuleList, self.adapters[name]) if self.dims is not None and self.trained else None

    def _label_tokens(self, label_ids: Tensor) -> Tensor:
        """(P,) -> (P, 1, 256): the label's token, or SAM's padding token where no label is meant."""
        labels = cast(nn.Embedding, self.adapters["labels"])
        table = torch.cat([self.sam.prompt_encoder.not_a_point_embed.weight, labels.weight])
        return table[label_ids + 1].unsqueeze(1)


def _new_adapters(spec: BaseSpec, dims: AdapterDims | None, label_count: int) -> nn.ModuleDict:
    if dims is None:
        return nn.ModuleDict()
    blocks = [
        encoder.BlockAdapters(spec.encoder_width, spec.encoder_heads, dims.encoder_width, dims.depth)
        for _ in range(spec.encoder_depth)
    ]
    labels = nn.Embedding(label_count, DECODER_WIDTH)
    return nn.ModuleDict(
        {
            "encoder": nn.ModuleList(blocks),
            "decoder": nn.ModuleList(
                decoder.TwoWayAdapters(DECODER_WIDTH, dims) for _ in range(DECODER_BLOCKS)
            ),
            "labels": labels,
        }
    )


def _point_row(prompt: SinglePrompt) -> list[tuple[float, float, int]]:
    row = list(prompt.points)
    if prompt.box_xyxy is None:
        return [*row, (0.0, 0.0, decoder.PADDING)]
    x0, y0, x1, y1 = prompt.box_xyxy
    return [*row, (x0, y0, decoder.BOX_START), (x1, y1, decoder.BOX_STOP)]


def _stack_masks(masks: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """Masks (m, m) or None -> (P, 1, m, m) with zeros where there is none, and which there are (P,)."""
    present = [mask for mask in masks if mask is not None]
    if not present:
        return None, None
    blank = torch.zeros_like(present[0])
    stacked = torch.stack([blank if mask is None else mask for mask in masks]).unsqueeze(1)
    return stacked, torch.tensor([mask is not None for mask in masks], device=stacked.device)
