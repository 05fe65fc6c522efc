import dataclasses
import itertools
import logging
import math

import numpy as np
import pytest
import torch

from lib.errors import TrainingError
from lib.model.base import build_sam
from lib.model.medsa import MedSA
from lib.training import activations, learner
from lib.training.activations import activation_bytes, needs_checkpointing
from lib.training.checkpoint import CheckpointFile
from lib.training.clicks_first import ClicksFirst
from lib.training.loop import TrainOptions, draw_weights, learning_rate_share, train
from lib.training.losses import prompt_losses, true_iou
from lib.training.slabs import prepare_case
from lib.training.validation import validate
from lib.training.world import World
from lib.volume import Volume


def ticking(step=1.0):
    """A clock that goes on by `step` seconds at every look: a time budget becomes a number of steps."""
    return itertools.count(0.0, step).__next__


def options(steps, batch_slices=4, seed=0, learning_rate=1e-2):
    return TrainOptions(float(steps), learning_rate, batch_slices, prompts_per_slice=4, seed=seed)


def train_and_stop(steps, model, cases, planned, checkpoint=None):
    """A stop is asked for once so many steps are done."""
    done = []
    return train(
        model,
        cases,
        planned,
        clock=ticking(),
        on_progress=done.append,
        should_stop=lambda: len(done) == steps,
        checkpoint=checkpoint,
    )


class Spy(World):
    """Two workers, of which the other one does alike; notes when the weights are shared."""

    def average(self, tensors):
        pass

    def agree_each(self, wishes):
        return list(wishes)

    def told(self, value):
        return value

    def share(self, tensors):
        self.shared.append(len(tensors))
        for tensor in tensors:
            tensor.fill_(0.25)


@pytest.fixture
def prepared(cases, view, tiny_spec):
    return [prepare_case(case, view, tiny_spec.image_size, tiny_spec.mask_size) for case in cases]


def test_workers_take_over_the_weights_of_the_first_one_now_and_then(tiny_model, prepared, monkeypatch):
    monkeypatch.setattr(learner, "ALIGN_STEPS", 2)
    world = Spy(0, 2)
    object.__setattr__(world, "shared", [])
    train(tiny_model, prepared, options(5), clock=ticking(), world=world)
    count = len(list(tiny_model.adapters.parameters()))
    assert world.shared == [count] * 3, "before the steps 1, 3 and 5"
    changed = [bool((parameter != 0.25).any()) for parameter in tiny_model.adapters.parameters()]
    assert any(changed)


def test_training_lowers_the_loss_and_improves_dice_on_unseen_cases(tiny_model, prepared, unseen, view):
    before = validate(tiny_model, unseen, view)
    result = train(tiny_model, prepared, options(50, batch_slices=2, learning_rate=0.03), clock=ticking())
    after = validate(tiny_model, unseen, view)
    assert result.steps == 50
    assert np.mean(result.losses[-10:]) < 0.8 * np.mean(result.losses[:10])
    for old, new in zip(before, after, strict=True):
        assert new.clicks[0] > old.clicks[0] + 0.02
        assert new.automatic > old.automatic + 0.3


def test_pictures_in_colour_are_learnt_from(tiny_model, tiny_spec, cases, view):
    """One slice each; the object differs from what surrounds it in its hue alone."""
    pictures = []
    for case in cases:
        label = case.label[:, :, 6:7]
        array = np.where(label[..., None] == 1, (180, 60, 60), (60, 60, 180)).astype(np.uint8)
        picture = dataclasses.replace(case, volume=Volume(array, case.volume.affine), label=label)
        pictures.append(prepare_case(picture, view, tiny_spec.image_size, tiny_spec.mask_size))
    result = train(tiny_model, pictures, options(30, batch_slices=2, learning_rate=0.03), clock=ticking())
    assert np.mean(result.losses[-8:]) < 0.8 * np.mean(result.losses[:8])


def test_only_the_adapters_change(tiny_model, prepared):
    frozen = {key: value.clone() for key, value in tiny_model.sam.state_dict().items()}
    before = tiny_model.adapter_state()
    train(tiny_model, prepared, options(3), clock=ticking())
    assert all(torch.equal(value, frozen[key]) for key, value in tiny_model.sam.state_dict().items())
    after = tiny_model.adapter_state()
    assert before.keys() == after.keys()
    unchanged = [key for key in before if torch.equal(before[key], after[key])]
    assert unchanged == []
    assert tiny_model.trained
    assert not tiny_model.training


def test_the_same_seed_gives_the_same_weights(tiny_model, prepared):
    start = tiny_model.adapter_state()
    states = []
    for seed in (0, 0, 1):
        tiny_model.load_adapter_state(start)
        train(tiny_model, prepared, options(2, seed=seed), clock=ticking())
        states.append(tiny_model.adapter_state())
    same, again, other = states
    assert all(torch.equal(same[key], again[key]) for key in same)
    assert any(not torch.equal(same[key], other[key]) for key in same)


def test_it_ends_with_the_time_budget(tiny_model, prepared):
    result = train(tiny_model, prepared, options(10), clock=ticking(4.0))
    assert (result.steps, result.seconds, result.stopped) == (3, 12.0, False)


def test_it_stops_when_asked(tiny_model, prepared):
    result = train_and_stop(2, tiny_model, prepared, options(10))
    assert (result.steps, result.stopped) == (2, True)


def test_progress_comes_about_once_a_second(tiny_model, prepared):
    seen = []
    train(tiny_model, prepared, options(2), clock=ticking(0.5), on_progress=seen.append)
    assert [found.fraction for found in seen] == [0.5, 1.0]
    assert [found.steps for found in seen] == [2, 4]
    assert all(math.isfinite(found.loss) for found in seen)


def test_without_cases_there_is_nothing_to_train_on(tiny_model):
    with pytest.raises(TrainingError, match="no labels"):
        train(tiny_model, [], options(1), clock=ticking())


def test_a_loss_that_is_no_number_ends_the_run(tiny_model, prepared):
    with torch.no_grad():
        next(tiny_model.adapters.parameters()).fill_(math.nan)
    with pytest.raises(TrainingError, match="the loss became nan at step 1"):
        train(tiny_model, prepared, options(3), clock=ticking())


@pytest.fixture
def deep_model(tiny_model, tiny_spec):
    """The tiny model with a depth branch over three slices."""
    dims = dataclasses.replace(tiny_model.dims, depth=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MedSA(build_sam(tiny_spec), tiny_spec, dims, ("object",)).eval()


def test_with_a_depth_branch_a_step_is_made_of_slabs(deep_model, prepared, monkeypatch):
    seen = []
    encode = deep_model.encode
    monkeypatch.setattr(
        deep_model, "encode", lambda planes, depths: seen.append(depths) or encode(planes, depths)
    )
    before = deep_model.adapter_state()
    train(deep_model, prepared, options(3, batch_slices=6), clock=ticking())
    assert seen == [(3, 3)] * 3
    after = deep_model.adapter_state()
    assert [key for key in before if torch.equal(before[key], after[key])] == []


def test_first_every_slice_is_by_itself_then_neighbours_are_together(deep_model, prepared, monkeypatch):
    seen = []
    encode = deep_model.encode
    monkeypatch.setattr(
        deep_model, "encode", lambda planes, depths: seen.append(depths) or encode(planes, depths)
    )
    alone_first = dataclasses.replace(options(4, batch_slices=6), single_share=0.5)
    train(deep_model, prepared, alone_first, clock=ticking())
    assert seen == [(1,) * 6] * 2 + [(3, 3)] * 2


def test_slices_by_themselves_leave_the_depth_branch_as_it_was(deep_model, prepared):
    before = deep_model.adapter_state()
    train(deep_model, prepared, dataclasses.replace(options(3), single_share=1.0), clock=ticking())
    after = deep_model.adapter_state()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert same == {key for key in before if "depth" in key}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_memory_is_estimated_for_what_is_drawn(deep_model, prepared, monkeypatch, share):
    asked = []
    estimate = learner.activation_bytes
    monkeypatch.setattr(
        learner,
        "activation_bytes",
        lambda *a, with_depth, **more: (
            asked.append(with_depth) or estimate(*a, with_depth=with_depth, **more)
        ),
    )
    train(deep_model, prepared, dataclasses.replace(options(2), single_share=share), clock=ticking())
    assert asked == [share == 0.0]


def test_without_one_every_slice_is_by_itself(tiny_model, prepared, monkeypatch):
    seen = []
    encode = tiny_model.encode
    monkeypatch.setattr(
        tiny_model, "encode", lambda planes, depths: seen.append(depths) or encode(planes, depths)
    )
    train(tiny_model, prepared, options(1), clock=ticking())
    assert seen == [(1, 1, 1, 1)]


def test_a_depth_branch_learns(deep_model, prepared):
    result = train(deep_model, prepared, options(40, batch_slices=3), clock=ticking())
    assert np.mean(result.losses[-10:]) < 0.85 * np.mean(result.losses[:10])


@pytest.mark.parametrize(("available", "expected"), [(1 << 40, False), (1000, True), (None, False)])
def test_activations_are_computed_twice_where_memory_is_short(
    deep_model, prepared, monkeypatch, caplog, available, expected
):
    monkeypatch.setattr(learner, "available_bytes", lambda device: available)
    deep_model.checkpointing = not expected
    with caplog.at_level(logging.INFO, "lib.training.learner"):
        train(deep_model, prepared, options(2, batch_slices=3), clock=ticking())
    assert deep_model.checkpointing is expected
    assert len(caplog.messages) == int(expected)


def test_computing_them_twice_changes_no_result(deep_model, prepared, monkeypatch):
    start, states = deep_model.adapter_state(), []
    for available in (1 << 40, 1):
        monkeypatch.setattr(learner, "available_bytes", lambda device, value=available: value)
        deep_model.load_adapter_state(start)
        train(deep_model, prepared, options(2, batch_slices=3), clock=ticking())
        states.append(deep_model.adapter_state())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, atol=1e-5, rtol=1e-4)


def test_more_than_half_of_the_memory_is_too_much():
    assert not needs_checkpointing(50, 100)
    assert needs_checkpointing(51, 100)
    assert not needs_checkpointing(1 << 60, None)


def estimate(spec, slices=8, with_depth=False, precision="float32", on_gpu=True):
    return activation_bytes(spec, slices, with_depth=with_depth, precision=precision, on_gpu=on_gpu)


def test_the_estimate_grows_with_what_is_kept(tiny_spec):
    # 16 tokens a slice, 2 blocks, 32 channels, 58 bytes for each.
    assert estimate(tiny_spec) == 8 * 16 * 2 * 32 * 58
    assert estimate(tiny_spec, slices=4) == estimate(tiny_spec) / 2
    assert estimate(tiny_spec, precision="bfloat16") < estimate(tiny_spec)
    assert estimate(tiny_spec, with_depth=True) > estimate(tiny_spec)
    assert estimate(tiny_spec, on_gpu=False) > estimate(tiny_spec)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("depth", [1, 4])
def test_the_estimate_is_near_what_autograd_keeps(tiny_model, tiny_spec, precision, depth):
    """Counted for a network wide enough that the adapters are as narrow beside it as in use."""
    spec = dataclasses.replace(
        tiny_spec, image_size=128, encoder_width=96, encoder_heads=3, encoder_depth=3, window_size=4
    )
    dims = dataclasses.replace(tiny_model.dims, encoder_width=16, depth=depth)
    model = MedSA(build_sam(spec), spec, dims, ("object",))
    model.trained = True
    if precision == "bfloat16":
        model.use_bfloat16()
    kept = kept_bytes(model, slices=4, depths=(depth,) * (4 // depth))
    assumed = activation_bytes(spec, 4, with_depth=depth > 1, precision=precision, on_gpu=False)
    assert 0.5 < assumed / activations.HEAP_SPREAD / kept < 2


def kept_bytes(model, slices, depths):
    """What the encoder's graph holds on to, the model's own weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    planes = 255 * torch.rand(slices, 3, model.spec.image_size, model.spec.image_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.encode(planes, depths)
    return sum(storage.nbytes() for storage in storages.values())


def test_the_learning_rate_rises_then_falls():
    shares = [learning_rate_share(fraction) for fraction in np.linspace(0, 1, 101)]
    top = int(np.argmax(shares))
    assert 0 < top <= 10
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert 0 < shares[-1] < 0.05
    assert shares[0] > 0
    assert max(shares) == pytest.approx(1.0, abs=0.01)


def square(size=16, half=4):
    target = torch.zeros(1, size, size)
    target[:, half:-half, half:-half] = 1.0
    return target


def test_a_better_answer_has_a_lower_loss():
    target, quality = square(), torch.ones(1)
    right, wrong = 8 * (2 * target - 1), -8 * (2 * target - 1)
    unsure = torch.zeros_like(target)
    losses = [prompt_losses(logits, quality, target).item() for logits in (right, unsure, wrong)]
    assert losses == sorted(losses)
    assert losses[0] < 0.02


def test_finding_something_where_nothing_is_costs_and_finding_nothing_does_not():
    nothing = torch.zeros(1, 16, 16)
    silent = prompt_losses(nothing - 8, torch.zeros(1), nothing).item()
    loud = prompt_losses(nothing + 8, torch.zeros(1), nothing).item()
    assert silent < 0.01
    assert loud > 1


def test_a_wrong_belief_in_the_own_quality_costs():
    target = square()
    logits = 8 * (2 * target - 1)
    honest, humble = (prompt_losses(logits, torch.tensor([quality]), target) for quality in (1.0, 0.0))
    assert humble.item() - honest.item() == pytest.approx(0.1, abs=1e-3)


def test_true_iou():
    target = torch.cat([square(), square(), torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)])
    half = target.clone()
    half[1, 8:] = 0
    logits = 2 * half - 1
    logits[2] = 1.0
    assert true_iou(logits, target).tolist() == [1.0, 0.5, 0.0, 0.0]


@pytest.fixture
def wide_spec(tiny_spec):
    """A grid of 32 x 32 tokens, so that half of it is still trained on."""
    return dataclasses.replace(tiny_spec, image_size=256, patch_size=8)


@pytest.fixture
def wide_model(wide_spec, tiny_model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MedSA(build_sam(wide_spec), wide_spec, tiny_model.dims, ("object",)).eval()


def test_the_first_part_is_learnt_from_images_of_half_the_size(
    wide_model, wide_spec, cases, view, monkeypatch
):
    prepared = [prepare_case(case, view, wide_spec.image_size, wide_spec.mask_size) for case in cases]
    seen = []
    encode = MedSA.encode
    monkeypatch.setattr(
        MedSA,
        "encode",
        lambda self, planes, depths: seen.append(planes.shape[-1]) or encode(self, planes, depths),
    )
    halves = dataclasses.replace(options(4, batch_slices=1), small_share=0.5)
    before = wide_model.adapter_state()
    train(wide_model, prepared, halves, clock=ticking())
    assert seen == [128, 128, 256, 256]
    assert wide_model.spec.image_size == 256
    assert any(not torch.equal(before[key], value) for key, value in wide_model.adapter_state().items())


def test_where_too_few_tokens_would_be_left_the_size_stays(tiny_model, prepared, monkeypatch):
    seen = []
    encode = tiny_model.encode
    monkeypatch.setattr(
        tiny_model, "encode", lambda planes, depths: seen.append(planes.shape[-1]) or encode(planes, depths)
    )
    train(tiny_model, prepared, dataclasses.replace(options(2), small_share=1.0), clock=ticking())
    assert seen == [tiny_model.spec.image_size] * 2


def test_new_cases_are_drawn_more_often():
    weights = draw_weights(["a", "b", "c", "d", "e"], {"e"}, 0.5)
    assert weights == pytest.approx((0.125, 0.125, 0.125, 0.125, 0.5))


@pytest.mark.parametrize("new", [set(), {"a", "b"}, {"gone"}])
def test_all_new_or_all_old_are_drawn_alike(new):
    assert draw_weights(["a", "b"], new, 0.5) == (0.5, 0.5)


def test_many_new_cases_are_never_drawn_less_often_than_old_ones():
    assert draw_weights(["a", "b", "c", "d"], {"a", "b", "c"}, 0.5) == pytest.approx((0.25,) * 4)


def checkpoint_at(path, identity="one", every=0.0):
    return CheckpointFile(path, {"of": identity}, every)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tiny_model, prepared, tmp_path):
    start = tiny_model.adapter_state()
    train(tiny_model, prepared, options(6), clock=ticking())
    whole = tiny_model.adapter_state()
    tiny_model.load_adapter_state(start)
    file = tmp_path / "checkpoint.pt"
    first = train_and_stop(3, tiny_model, prepared, options(6), checkpoint_at(file))
    tiny_model.load_adapter_state(start)
    second = train(tiny_model, prepared, options(6), clock=ticking(), checkpoint=checkpoint_at(file))
    assert (first.stopped, first.steps, second.resumed, second.steps) == (True, 3, 3, 6)
    for key, value in tiny_model.adapter_state().items():
        torch.testing.assert_close(value, whole[key], atol=1e-5, rtol=1e-5)


def test_it_may_be_stopped_before_the_depth_branch_has_begun(deep_model, prepared, tmp_path):
    """The optimizer knows nothing of the depth adapters then."""
    wanted = dataclasses.replace(options(6), single_share=0.5)
    start = deep_model.adapter_state()
    train(deep_model, prepared, wanted, clock=ticking())
    whole = deep_model.adapter_state()
    deep_model.load_adapter_state(start)
    file = tmp_path / "checkpoint.pt"
    train_and_stop(2, deep_model, prepared, wanted, checkpoint_at(file))
    deep_model.load_adapter_state(start)
    second = train(deep_model, prepared, wanted, clock=ticking(), checkpoint=checkpoint_at(file))
    assert (second.resumed, second.steps) == (2, 6)
    for key, value in deep_model.adapter_state().items():
        torch.testing.assert_close(value, whole[key], atol=1e-5, rtol=1e-5)


class StopAt:
    """Asked for a stop from the look number `look` on, which is in the middle of a step."""

    def __init__(self, look):
        self.look, self.looks = look, 0

    def __call__(self):
        self.looks += 1
        return self.looks > self.look


def looks_of(steps, model, cases):
    """How often a run of so many steps looks whether it should stop."""
    never = StopAt(1 << 30)
    train(model, cases, options(steps), clock=ticking(), should_stop=never)
    return never.looks


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_stop_in_the_middle_of_a_step_leaves_it_and_it_is_made_again(
    tiny_model, prepared, tmp_path, monkeypatch, checkpointing, part
):
    monkeypatch.setattr(learner, "needs_checkpointing", lambda needed, available: checkpointing)
    start = tiny_model.adapter_state()
    train(tiny_model, prepared, options(4), clock=ticking())
    whole = tiny_model.adapter_state()
    tiny_model.load_adapter_state(start)
    one, two = (looks_of(steps, tiny_model, prepared) for steps in (1, 2))
    assert two - one > 2 * tiny_model.spec.encoder_depth, "forwards and backwards, and between steps"

    tiny_model.load_adapter_state(start)
    file = tmp_path / "checkpoint.pt"
    # Beside the first look of the second step, which is between two.
    middle = StopAt(one + 1 + round(part * (two - one - 2)))
    first = train(
        tiny_model,
        prepared,
        options(4),
        clock=ticking(),
        should_stop=middle,
        checkpoint=checkpoint_at(file),
    )
    assert (first.stopped, first.steps, middle.looks) == (True, 1, middle.look + 1)
    tiny_model.load_adapter_state(start)
    second = train(tiny_model, prepared, options(4), clock=ticking(), checkpoint=checkpoint_at(file))
    assert (second.resumed, second.steps) == (1, 4)
    for key, value in tiny_model.adapter_state().items():
        torch.testing.assert_close(value, whole[key], atol=1e-5, rtol=1e-5)


def test_nothing_looks_for_a_stop_in_the_model_when_training_is_over(tiny_model, prepared):
    result = train(tiny_model, prepared, options(2), clock=ticking(), should_stop=StopAt(3))
    assert (result.stopped, result.steps) == (True, 0)
    assert not any(module._forward_hooks for module in tiny_model.modules())


@pytest.mark.parametrize(("planned", "asked", "steps"), [(2, 9, 9), (6, 6, 6), (6, 2, 4)])
def test_a_run_that_goes_on_has_the_time_that_is_asked_for_now(
    tiny_model, prepared, tmp_path, planned, asked, steps
):
    """Longer where more is asked for than was planned; else as planned, and in no more time than there is."""
    file = tmp_path / "checkpoint.pt"
    train_and_stop(2, tiny_model, prepared, options(planned), checkpoint_at(file))
    again = train(tiny_model, prepared, options(asked), clock=ticking(), checkpoint=checkpoint_at(file))
    assert (again.resumed, again.steps) == (2, steps)


def test_a_checkpoint_of_another_training_is_left_alone(tiny_model, prepared, tmp_path):
    file = tmp_path / "checkpoint.pt"
    train(tiny_model, prepared, options(2), clock=ticking(), checkpoint=checkpoint_at(file))
    other = train(tiny_model, prepared, options(2), clock=ticking(), checkpoint=checkpoint_at(file, "two"))
    assert (other.resumed, other.steps) == (0, 2)


def test_a_checkpoint_of_another_optimizer_is_no_start(tiny_model, prepared, tmp_path):
    """As medsa wrote them before 2026-12-01, with AdamW for all."""
    start, file = tiny_model.adapter_state(), tmp_path / "checkpoint.pt"
    train(tiny_model, prepared, options(2), clock=ticking(), checkpoint=checkpoint_at(file))
    stored = torch.load(file, weights_only=True)
    values = [torch.nn.Parameter(value) for value in stored["learner"]["parameters"]]
    stored["learner"]["optimizer"] = torch.optim.AdamW(values).state_dict()
    torch.save(stored, file)
    tiny_model.load_adapter_state(start)
    again = train(tiny_model, prepared, options(2), clock=ticking(), checkpoint=checkpoint_at(file))
    assert (again.resumed, again.steps, len(again.losses)) == (0, 2, 2)


def test_a_run_whose_time_was_over_has_nothing_left_to_do(tiny_model, prepared, tmp_path):
    file = tmp_path / "checkpoint.pt"
    train(tiny_model, prepared, options(2), clock=ticking(), checkpoint=checkpoint_at(file))
    weights = tiny_model.adapter_state()
    again = train(tiny_model, prepared, options(2), clock=ticking(), checkpoint=checkpoint_at(file))
    assert (again.resumed, again.steps, again.losses) == (2, 2, ())
    assert all(torch.equal(value, weights[key]) for key, value in tiny_model.adapter_state().items())


def test_where_memory_runs_out_the_step_is_done_with_half_of_the_slices(tiny_model, prepared, monkeypatch):
    seen = []
    encode = tiny_model.encode

    def small_machine(planes, depths):
        seen.append(len(planes))
        if len(planes) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return encode(planes, depths)

    monkeypatch.setattr(tiny_model, "encode", small_machine)
    result = train(tiny_model, prepared, options(2, batch_slices=8), clock=ticking())
    assert seen == [8, 4, 2, 2]
    assert result.steps == 2
    assert result.events == (
        "memory ran out at step 1: 4 slices a step instead of 8 from there on",
        "memory ran out at step 1: 2 slices a step instead of 4 from there on",
    )


def test_where_one_slice_is_too_much_the_run_ends_and_says_so(tiny_model, prepared, monkeypatch):
    def no_memory(planes, depths):
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    monkeypatch.setattr(tiny_model, "encode", no_memory)
    with pytest.raises(TrainingError, match="a single slice"):
        train(tiny_model, prepared, options(2), clock=ticking())


def test_another_error_is_not_taken_for_a_lack_of_memory(tiny_model, prepared, monkeypatch):
    def broken(planes, depths):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(tiny_model, "encode", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        train(tiny_model, prepared, options(2), clock=ticking())


def test_waiting_for_clicks_costs_no_training_but_ends_at_last(tiny_model, prepared, tmp_path):
    """A clock that only waiting and looking move: four seconds of waiting count as one of work."""
    now = [0.0]

    def look():
        now[0] += 1.0
        return now[0]

    def sleep(seconds):
        now[0] += seconds

    sign = tmp_path / "clicked"
    sign.touch()
    moment = sign.stat().st_mtime
    always = ClicksFirst(sign, now=lambda: moment, sleep=sleep)
    result = train(tiny_model, prepared, options(11), clock=look, clicks=always)
    # Each round is a second of work and twenty of waiting, which count as five.
    assert result.steps == 2
    assert result.seconds == pytest.approx(2.0, abs=0.2)


def test_when_it_is_late_it_ends_as_if_its_time_were_over(tiny_model, prepared):
    looks = itertools.count()
    result = train(tiny_model, prepared, options(50), clock=ticking(), is_late=lambda: next(looks) >= 3)
    assert (result.steps, result.stopped) == (3, False)
