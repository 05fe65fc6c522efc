"""The network: it is SAM before training, and the published modules after."""

import dataclasses

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional

from lib.errors import AdapterError
from lib.model.adapters import AdapterDims, HyperAdapter
from lib.model.base import BaseSpec, build_sam
from lib.model.medsa import Masks, MedSA, PlanePrompts, SinglePrompt, expected_iou

DIMS = AdapterDims(encoder_width=4, decoder_width=4, hyper_width=4, prompt_rank=2, hyper_layers=2)


@pytest.fixture
def sam(tiny_spec: BaseSpec) -> Sam:
    torch.manual_seed(0)
    sam = build_sam(tiny_spec).eval()
    with torch.no_grad():
        for (
            parameter
        ) in sam.parameters():  # SAM starts with zeros in its position tables: make every tensor count
            parameter.add_(0.02 * torch.randn_like(parameter))
    return sam


def with_adapters(sam: Sam, spec: BaseSpec, labels: tuple[str, ...] = ("a", "b")) -> MedSA:
    return MedSA(sam, spec, DIMS, labels).eval()


def randomised(model: MedSA) -> MedSA:
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.trained = True
    return model


def mixed_prompt(spec: BaseSpec) -> SinglePrompt:
    return SinglePrompt(
        [(30.0, 20.0, 1), (5.0, 50.0, 0)], (3.0, 4.0, 40.0, 50.0), torch.randn(spec.mask_size, spec.mask_size)
    )


def reference(sam: Sam, planes: Tensor, prompt: SinglePrompt) -> tuple[Tensor, Tensor]:
    """segment_anything's own modules, called as its authors do."""
    points = (
        torch.tensor([[point[:2] for point in prompt.points]]),
        torch.tensor([[p[2] for p in prompt.points]]),
    )
    box = None if prompt.box_xyxy is None else torch.tensor([prompt.box_xyxy])
    mask = None if prompt.mask_logits is None else prompt.mask_logits[None, None]
    sparse, dense = sam.prompt_encoder(points=points, boxes=box, masks=mask)
    return sam.mask_decoder.predict_masks(
        image_embeddings=sam.image_encoder(sam.preprocess(planes)),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )


@pytest.mark.parametrize("kind", ["click", "box", "clicks, box and mask"])
@torch.no_grad()
def test_a_fresh_adapter_gives_sams_own_answer(sam: Sam, tiny_spec: BaseSpec, kind: str) -> None:
    prompt = {
        "click": SinglePrompt([(30.0, 20.0, 1)]),
        "box": SinglePrompt([(9.0, 9.0, 1)], (3.0, 4.0, 40.0, 50.0)),
        "clicks, box and mask": mixed_prompt(tiny_spec),
    }[kind]
    planes = 255 * torch.rand(1, 3, 64, 64)
    expected_masks, expected_iou = reference(sam, planes, prompt)
    model = with_adapters(sam, tiny_spec)
    answer = model.decode(model.encode(planes), PlanePrompts.stack([prompt]))
    torch.testing.assert_close(answer.logits, expected_masks, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer.iou, expected_iou, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_fresh_adapter_changes_not_one_bit(sam: Sam, tiny_spec: BaseSpec) -> None:
    planes = 255 * torch.rand(2, 3, 64, 64)
    prompts = PlanePrompts.stack([mixed_prompt(tiny_spec), SinglePrompt([(8.0, 9.0, 1)])])
    bare, adapted = MedSA(sam, tiny_spec, None).eval(), with_adapters(sam, tiny_spec)
    embeddings = adapted.encode(planes)
    assert torch.equal(embeddings, bare.encode(planes))
    assert torch.equal(adapted.decode(embeddings, prompts).logits, bare.decode(embeddings, prompts).logits)


@torch.no_grad()
def test_trained_adapters_change_encoder_and_decoder(sam: Sam, tiny_spec: BaseSpec) -> None:
    planes = 255 * torch.rand(1, 3, 64, 64)
    prompts = PlanePrompts.stack([SinglePrompt([(8.0, 9.0, 1)])])
    bare, adapted = MedSA(sam, tiny_spec, None).eval(), randomised(with_adapters(sam, tiny_spec))
    embeddings = bare.encode(planes)
    assert not torch.allclose(adapted.encode(planes), embeddings)
    assert not torch.allclose(
        adapted.decode(embeddings, prompts).logits, bare.decode(embeddings, prompts).logits
    )


@pytest.mark.parametrize(
    "part", ["encoder.0.space", "encoder.1.mlp", "decoder.0.prompt", "decoder.1.mlp", "decoder.1.image"]
)
@torch.no_grad()
def test_each_adapter_reaches_the_masks(sam: Sam, tiny_spec: BaseSpec, part: str) -> None:
    planes = 255 * torch.rand(1, 3, 64, 64)
    prompts = PlanePrompts.stack([SinglePrompt([(8.0, 9.0, 1)])])
    model = with_adapters(sam, tiny_spec)
    model.trained = True
    before = model.decode(model.encode(planes), prompts).logits
    nn.init.normal_(model.adapters.get_submodule(part).up.weight)
    assert not torch.allclose(before, model.decode(model.encode(planes), prompts).logits)


def test_only_the_adapters_learn_and_are_saved(sam: Sam, tiny_spec: BaseSpec) -> None:
    model = randomised(with_adapters(sam, tiny_spec)).train()
    prompts = PlanePrompts.stack([dataclasses.replace(mixed_prompt(tiny_spec), label_id=1)])
    answer = model.decode(model.encode(255 * torch.rand(1, 3, 64, 64)), prompts)
    (answer.logits.sum() + answer.iou.sum()).backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {f"adapters.{key}" for key in model.adapter_state()}
    assert len(learned) > 20


def test_hyper_adapter_is_the_published_formula() -> None:
    torch.manual_seed(1)
    adapter = HyperAdapter(channels=6, width=3, rank=2, layers=2)
    nn.init.normal_(adapter.up.weight)
    tokens, prompt = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    for batch in range(2):
        for token in range(4):
            e = adapter.down(tokens[batch, token])
            p = adapter.down_prompt(prompt[batch, token])
            for writer, norm in zip(adapter.writers, adapter.norms, strict=True):
                weights = (writer.weight @ p + writer.bias).view(3, 3)
                e = functional.relu(
                    norm(torch.stack([sum(e[i] * weights[i, o] for i in range(3)) for o in range(3)]))
                )
            torch.testing.assert_close(adapter(tokens, prompt)[batch, token], adapter.up(e))


def test_generated_weights_start_near_the_identity() -> None:
    adapter = HyperAdapter(channels=6, width=3, rank=2, layers=1)
    weights = adapter.writers[0](torch.randn(5, 2)).view(5, 3, 3)
    torch.testing.assert_close(weights, torch.eye(3).expand(5, 3, 3), rtol=0, atol=0.1)


@torch.no_grad()
def test_labels_count_only_once_trained(sam: Sam, tiny_spec: BaseSpec) -> None:
    model = with_adapters(sam, tiny_spec)
    embeddings = model.encode(255 * torch.rand(1, 3, 64, 64))

    def ask(label_id: int) -> Tensor:
        return model.decode(
            embeddings, PlanePrompts.stack([SinglePrompt([(8.0, 9.0, 1)], label_id=label_id)])
        ).logits

    assert torch.equal(ask(0), ask(1))
    model.trained = True
    assert not torch.allclose(ask(0), ask(1))
    assert not torch.allclose(ask(0), ask(-1))


@torch.no_grad()
def test_prompts_of_a_batch_do_not_mix(sam: Sam, tiny_spec: BaseSpec) -> None:
    model = randomised(with_adapters(sam, tiny_spec))
    embeddings = model.encode(255 * torch.rand(2, 3, 64, 64))
    first, second = SinglePrompt([(8.0, 9.0, 1)]), SinglePrompt([(50.0, 60.0, 1)])
    together = model.decode(embeddings, PlanePrompts.stack([first, second])).logits
    alone = model.decode(embeddings[1:], PlanePrompts.stack([second])).logits
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_mask_counts_only_for_the_prompt_that_has_one(sam: Sam, tiny_spec: BaseSpec) -> None:
    model = with_adapters(sam, tiny_spec)
    embeddings = model.encode(255 * torch.rand(1, 3, 64, 64)).expand(2, -1, -1, -1)
    click = SinglePrompt([(8.0, 9.0, 1)])
    shown = dataclasses.replace(
        click, mask_logits=torch.full((tiny_spec.mask_size, tiny_spec.mask_size), 5.0)
    )
    answer = model.decode(embeddings, PlanePrompts.stack([click, shown])).logits
    torch.testing.assert_close(answer[0], model.decode(embeddings[:1], PlanePrompts.stack([click])).logits[0])
    assert not torch.allclose(answer[0], answer[1])


def test_choose_takes_the_best_of_three_only_where_ambiguous() -> None:
    logits = torch.arange(8.0).view(2, 4, 1, 1)
    masks = Masks(logits, torch.tensor([[0.9, 0.1, 0.8, 0.3], [0.2, 0.1, 0.8, 0.3]]))
    chosen, iou = masks.choose(torch.tensor([True, False]))
    assert chosen.flatten().tolist() == [2.0, 4.0]
    torch.testing.assert_close(iou, torch.tensor([0.8, 0.2]))


def test_of_two_guesses_of_one_quality_the_sharper_one_is_chosen() -> None:
    shape = torch.full((1, 4, 8, 8), -20.0)
    shape[:, :, 2:6, 2:6] = 20.0
    shape[:, 1, 2:6, 2:6] = 0.2  # unsure of all of it
    masks = Masks(shape, torch.tensor([[0.9, 0.62, 0.6, 0.1]]))
    _, iou = masks.choose(torch.tensor([True]))
    assert iou.tolist() == pytest.approx([0.6])


def test_the_expected_iou_of_a_mask() -> None:
    logits = torch.full((3, 4, 4), -50.0)
    logits[0, :2] = 50.0  # sure
    logits[1, :2] = 1.0986123  # 0.75 inside, 0 outside
    assert expected_iou(logits).tolist() == pytest.approx([1.0, 0.75, 0.0], abs=1e-4)
    spread = torch.full((1, 4, 4), -1.0986123)  # 0.25 outside
    spread[0, :2] = 50.0
    assert expected_iou(spread).item() == pytest.approx(8 / (8 + 2))


def test_adapter_state_goes_round(sam: Sam, tiny_spec: BaseSpec) -> None:
    source, target = randomised(with_adapters(sam, tiny_spec)), with_adapters(sam, tiny_spec)
    target.load_adapter_state(source.adapter_state())
    assert target.trained
    assert all(
        torch.equal(value, target.adapter_state()[key]) for key, value in source.adapter_state().items()
    )


def test_a_sibling_has_the_same_base_and_adapters_of_its_own(sam: Sam, tiny_spec: BaseSpec) -> None:
    model = randomised(with_adapters(sam, tiny_spec))
    other = model.sibling()
    assert other.sam is model.sam
    assert not other.trained
    assert not other.training
    key = "decoder.0.mlp.up.weight"
    assert other.adapter_state()[key].abs().max() == 0
    assert model.adapter_state()[key].abs().max() > 0


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_an_adapter_that_does_not_fit_is_named_and_changes_nothing(
    sam: Sam, tiny_spec: BaseSpec, damage: str
) -> None:
    model = with_adapters(sam, tiny_spec)
    before, tensors = model.adapter_state(), randomised(with_adapters(sam, tiny_spec)).adapter_state()
    key = "encoder.0.space.up.weight"
    if damage == "missing":
        del tensors[key]
    elif damage == "unexpected":
        key, tensors["surplus"] = "surplus", torch.zeros(1)
    else:
        tensors[key] = torch.zeros(2, 2)
    with pytest.raises(AdapterError, match=key):
        model.load_adapter_state(tensors)
    assert all(torch.equal(value, before[name]) for name, value in model.adapter_state().items())


def test_a_large_map_is_decoded_in_bfloat16_where_it_serves(tiny_spec: BaseSpec) -> None:
    spec = dataclasses.replace(tiny_spec, image_size=128, patch_size=4)
    torch.manual_seed(0)
    model = MedSA(build_sam(spec), spec, None).eval()
    embeddings = torch.randn(2, 256, spec.grid, spec.grid)
    prompts = PlanePrompts.stack([SinglePrompt([(20.0, 30.0, 1)]), SinglePrompt(box_xyxy=(8, 8, 90, 70))])
    with torch.inference_mode():
        exact = model.decode(embeddings, prompts)
        model.use_bfloat16()
        rounded = model.decode(embeddings, prompts)
    assert rounded.logits.dtype == rounded.iou.dtype == torch.float32
    assert not torch.equal(rounded.logits, exact.logits)
    assert (rounded.logits - exact.logits).abs().max() < 0.05 * exact.logits.std() + 0.02
    # With gradients the caller says what it multiplies in.
    torch.testing.assert_close(model.decode(embeddings, prompts).logits, exact.logits)


def test_a_small_map_is_decoded_in_float32(tiny_spec: BaseSpec) -> None:
    torch.manual_seed(0)
    model = MedSA(build_sam(tiny_spec), tiny_spec, None).eval()
    embeddings = torch.randn(1, 256, tiny_spec.grid, tiny_spec.grid)
    prompts = PlanePrompts.stack([SinglePrompt([(20.0, 30.0, 1)])])
    with torch.inference_mode():
        exact = model.decode(embeddings, prompts)
        model.use_bfloat16()
        assert torch.equal(model.decode(embeddings, prompts).logits, exact.logits)


def test_the_network_at_another_size_shares_weights_and_adapters(tiny_model):
    other = tiny_model.at_size(128)
    assert (other.spec.image_size, other.spec.grid) == (128, 8)
    assert other.adapters is tiny_model.adapters
    own = {key: value.data_ptr() for key, value in tiny_model.sam.state_dict().items()}
    moved = [key for key, value in other.sam.state_dict().items() if value.data_ptr() != own[key]]
    assert moved
    assert all("pos_embed" in key or "rel_pos" in key or "pixel_" in key for key in moved)
    assert other.encode(torch.rand(1, 3, 128, 128) * 255).shape == (1, 256, 8, 8)
    tiny_model.use_bfloat16()
    assert tiny_model.at_size(128).precision == "bfloat16"
