"""Before training the network is SAM: to the bit against itself without adapters, to rounding against SAM's code."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from lib.bases import catalog
from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec, build_sam, load_base
from lib.model.medsa import MedSA, PlanePrompts, SinglePrompt
from lib.settings import load_settings

APP = Path(__file__).parents[2] / "apps" / "medsa"
RELATIVE = 1e-5
DEPTHS = [1, 3, 8]


@pytest.fixture(scope="module", params=["vit_t", "vit_b"])
def base(request: pytest.FixtureRequest) -> tuple[Sam, BaseSpec, AdapterDims]:
    """vit_t as it is shipped; vit_b with random weights, at 256 pixels: its windows of 14 need padding there."""
    entry = catalog(load_settings(APP / "configs", {}), APP).entries[request.param]
    if entry.shipped is not None:
        sam, _ = load_base(entry.spec, APP / "weights" / entry.shipped)
        return sam.eval(), entry.spec, entry.dims
    spec = dataclasses.replace(entry.spec, image_size=256)
    torch.manual_seed(0)
    sam = build_sam(spec).eval()
    with torch.no_grad():
        for parameter in sam.parameters():  # position tables start at zero: make every tensor count
            parameter.add_(0.02 * torch.randn_like(parameter))
    return sam, spec, entry.dims


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    torch.manual_seed(1)
    with torch.inference_mode():
        yield


def slices(spec: BaseSpec, count: int) -> tuple[Tensor, PlanePrompts]:
    planes = 255 * torch.rand(count, 3, spec.image_size, spec.image_size)
    prompt = SinglePrompt([(100.0, 60.0, 1), (20.0, 200.0, 0)], (30.0, 20.0, 180.0, 150.0))
    # No label tokens: they are new words of the prompt, which SAM has none of.
    return planes, dataclasses.replace(PlanePrompts.stack([prompt] * count), label_ids=None)


def with_zero_adapters(sam: Sam, spec: BaseSpec, dims: AdapterDims) -> MedSA:
    """As loaded from a file that holds zeros: the depth branch runs, and its adapter adds zero."""
    model = MedSA(sam, spec, dims, ("organ",)).eval()
    model.trained = True
    return model


@pytest.mark.parametrize("depth", DEPTHS)
def test_fresh_adapters_change_no_bit(base: tuple[Sam, BaseSpec, AdapterDims], depth: int) -> None:
    sam, spec, dims = base
    planes, prompts = slices(spec, depth)
    bare = MedSA(sam, spec, None).eval()
    expected = bare.encode(planes)
    for model in (MedSA(sam, spec, dims, ("organ",)).eval(), with_zero_adapters(sam, spec, dims)):
        embeddings = model.encode(planes, [depth])
        assert torch.equal(embeddings, expected)
        answer, plain = model.decode(embeddings, prompts), bare.decode(expected, prompts)
        assert torch.equal(answer.logits, plain.logits)
        assert torch.equal(answer.iou, plain.iou)


@pytest.mark.parametrize("depth", DEPTHS)
def test_it_is_segment_anything(base: tuple[Sam, BaseSpec, AdapterDims], depth: int) -> None:
    sam, spec, dims = base
    planes, prompts = slices(spec, depth)
    model = with_zero_adapters(sam, spec, dims)
    expected = torch.cat([sam.image_encoder(sam.preprocess(plane[None])) for plane in planes])
    embeddings = model.encode(planes, [depth])
    assert (embeddings - expected).abs().max() <= RELATIVE * expected.abs().max()
    sparse, dense = sam.prompt_encoder(
        points=(prompts.points_xy[:1, :2], prompts.point_labels[:1, :2]),
        boxes=prompts.points_xy[:1, 2:].reshape(1, 4),
        masks=None,
    )
    answer = model.decode(embeddings, prompts)
    for row in range(depth):
        masks, iou = sam.mask_decoder.predict_masks(
            image_embeddings=expected[row : row + 1],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
        assert (answer.logits[row] - masks[0]).abs().max() <= RELATIVE * masks.abs().max()
        torch.testing.assert_close(answer.iou[row], iou[0], rtol=RELATIVE, atol=RELATIVE)
