"""How much memory a training step keeps, to know beforehand whether activations have to be computed twice."""

from lib.model.base import BaseSpec
from lib.model.medsa import Precision

# What the encoder keeps for the backward pass, in bytes per token, block and channel: what enters the two norms and
# the three adapters, q, k, v and their relative scores, and the four times wider activation of the MLP; then what the
# depth branch adds. Counted with saved-tensor hooks on vit_t and vit_b.
KEPT_BYTES: dict[Precision, int] = {"float32": 58, "bfloat16": 34}
KEPT_BYTES_DEPTH: dict[Precision, int] = {"float32": 20, "bfloat16": 12}
SCORE_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
# On the CPU what is kept lies scattered, and the C library's heap grows by the holes between (measured on vit_t).
HEAP_SPREAD = 1.6
# Of the available memory; the rest is for the decoder, which needs up to as much, and for other programs.
MEMORY_SHARE = 0.5


def activation_bytes(
    spec: BaseSpec, slices: int, *, with_depth: bool, precision: Precision, on_gpu: bool
) -> int:
    """Bytes the encoder keeps for the backward pass of one step of `slices` slices; an estimate within a factor of 2.

    On the CPU attention also keeps its scores, heads x keys a token (`lib.model.attention`).
    """
    tokens = spec.grid**2
    kept = KEPT_BYTES[precision] + (KEPT_BYTES_DEPTH[precision] if with_depth else 0)
    total = spec.encoder_depth * spec.encoder_width * kept
    if not on_gpu:
        everywhere = len(spec.global_blocks)
        keys = everywhere * tokens + (spec.encoder_depth - everywhere) * spec.window_size**2
        total += spec.encoder_heads * keys * SCORE_BYTES[precision]
        total = round(HEAP_SPREAD * total)
    return slices * tokens * total


def needs_checkpointing(activations: int, available: int | None) -> bool:
    """Whether so many bytes are too many of those available; not where it's unknown how many those are (None)."""
    return available is not None and activations > MEMORY_SHARE * available
