"""The figures of the network by itself: `python benchmarks/network.py [--set NAME] [--json FILE]`.

Speed, memory and training on this machine, as ratios to segment_anything's own encoder, or to a plain reference
written here, measured side by side in one run. Weights are random, since neither depends on them. The sets speed,
memory, training and gpu need only torch and segment_anything; ablation needs the real data sets.

What grows a process's memory is measured in a child process of its own: `--child` is how they are started.
"""

import argparse
import copy
import ctypes
import gc
import json
import math
import operator
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Block, window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "apps" / "medsa"
sys.path.insert(0, str(APP))

from lib.memory import available_bytes, keep_freed_memory  # noqa: E402 (the app is a folder, not a package)
from lib.model.adapters import MLP_SCALE, AdapterDims  # noqa: E402
from lib.model.base import DECODER_WIDTH, BaseSpec, build_sam  # noqa: E402
from lib.model.medsa import MedSA, PlanePrompts, Precision, SinglePrompt  # noqa: E402
from lib.model.precision import has_fast_bfloat16  # noqa: E402

# As in configs/bases.yaml (a test compares them), so that a machine with torch alone can run this.
VIT_B = BaseSpec(
    name="vit_b",
    image_size=1024,
    patch_size=16,
    encoder_width=768,
    encoder_depth=12,
    encoder_heads=12,
    global_blocks=(2, 5, 8, 11),
    window_size=14,
)
VIT_B_DIMS = AdapterDims(
    encoder_width=24, decoder_width=64, hyper_width=64, prompt_rank=16, hyper_layers=2, depth=4
)
VIT_B_512 = replace(VIT_B, image_size=512)

SLICE_NAME = "vit_b, 1024 px, one slice, CPU"

CPU = torch.device("cpu")
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRODUCTS = ((4096, 768, 3072), (4096, 3072, 768), (4096, 4096, 4096))  # (m, k) times (k, n)
SLAB_SLICES = 8  # of the comparison in 3D: one slab
TRAIN_SLABS = (4, 4, 4, 4)
TRAIN_STEPS = 2  # the first one also makes the optimizer's state
GPU_BATCH, GPU_WARM_UP = 16, 3
SAME_RESULT = 1e-4  # largest difference, relative to the largest value, in float32
CHILD_MEMORY_SHARE = 0.9  # of what is available: a child fails by itself instead of having something killed
NO_BAR = "-"
UNTRAINED = "before training"
COMPARISONS = {">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt, "=": operator.eq}


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was measured, and the bar it has to reach.

    Without a value `note` says why. Then `holds` is None where the figure could not be measured here, and False
    where what was to be compared did not give the same result.
    """

    name: str
    value: float | None
    unit: str
    bar: str
    holds: bool | None
    note: str = ""


class ChildError(Exception):
    """A child process gave no result; the message says why."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    sets: str
    json: Path | None
    threads: int | None
    repeats: int
    data: Path
    work: Path | None
    child: tuple[str, ...]


def judged(name: str, value: float, unit: str, bar: str = NO_BAR, note: str = "") -> Figure:
    """A figure with the verdict on `bar`, such as ">= 2.5"; one without a bar holds."""
    if bar == NO_BAR:
        return Figure(name, value, unit, bar, True, note)
    sign, limit = bar.split()
    return Figure(name, value, unit, bar, COMPARISONS[sign](value, float(limit)), note)


def unmeasured(name: str, unit: str, bar: str, note: str) -> Figure:
    """An entry for a figure that this machine cannot give."""
    return Figure(name, None, unit, bar, None, note)


# --- models ---


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """What the encoder is measured in on `device`; the last is the best one."""
    return ("float32", "bfloat16") if has_fast_bfloat16(device) else ("float32",)


def random_sam(spec: BaseSpec) -> Sam:
    """Always the same random weights; position tables, which start as zeros, hold something too."""
    torch.manual_seed(0)
    sam = build_sam(spec).eval()
    with torch.no_grad():
        for name, parameter in sam.image_encoder.named_parameters():
            if "pos" in name:
                parameter.normal_(std=0.1)
    return sam


def adapted(sam: Sam, spec: BaseSpec, dims: AdapterDims, precision: Precision = "float32") -> MedSA:
    """Fresh adapters on `sam`, which is shared in float32 and copied for bfloat16."""
    model = MedSA(copy.deepcopy(sam) if precision == "bfloat16" else sam, spec, dims, ("object",)).eval()
    if precision == "bfloat16":
        model.use_bfloat16()
    # Adapters that add zero, but are computed: a network that was never trained would leave them out.
    model.trained = True
    return model


def pretend_trained(model: MedSA) -> MedSA:
    """Fills what starts as zeros, so that every adapter and the depth branch add something."""
    with torch.no_grad():
        for name, parameter in model.adapters.named_parameters():
            if ".up." in name or name.endswith("relative_depth"):
                parameter.normal_(std=0.05)
    return model


def random_planes(count: int, spec: BaseSpec) -> Tensor:
    """Planes (count, 3, S, S) with values 0 to 255."""
    generator = torch.Generator().manual_seed(1)
    return 255 * torch.rand(count, 3, spec.image_size, spec.image_size, generator=generator)


def encode_as_released(sam: Sam, planes: Tensor) -> Tensor:
    """segment_anything's own encoder on the same planes."""
    return sam.image_encoder(sam.preprocess(planes))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()


# --- the plain 3D network, to compare with ---


def encode_plainly(model: MedSA, planes: Tensor, depth: int) -> Tensor:
    """Med-SA's 3D encoder as the paper describes it, module by module, on slabs of `depth` slices in a row.

    Each block holds two complete attentions, as in a paper's release: LN1, q, k, v and the projection are computed
    anew for the depth branch, and the attention in space is segment_anything's own. Source: Wu et al., arXiv
    2304.12620 v7.
    """
    encoder = model.sam.image_encoder
    x = encoder.patch_embed((planes - model.sam.pixel_mean) / model.sam.pixel_std) + encoder.pos_embed
    for block, adapters in zip(encoder.blocks, model.adapters["encoder"], strict=True):
        in_space = _plain_space(block, x)
        in_depth = _plain_depth(block, x, adapters.relative_depth, depth)
        x = x + in_space + _plain_adapter(adapters.space, in_space) + _plain_adapter(adapters.depth, in_depth)
        normed = block.norm2(x)
        x = x + block.mlp(normed) + MLP_SCALE * _plain_adapter(adapters.mlp, normed)
    return encoder.neck(x.permute(0, 3, 1, 2))


def _plain_space(block: Block, x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H, W, C): the first half of segment_anything's block, without its skip."""
    normed, size = block.norm1(x), (x.shape[1], x.shape[2])
    if block.window_size == 0:
        return block.attn(normed)
    windows, padded = window_partition(normed, block.window_size)
    return window_unpartition(block.attn(windows), block.window_size, padded, size)


def _plain_depth(block: Block, x: Tensor, table: Tensor, depth: int) -> Tensor:
    """(B, H, W, C) -> (B, H, W, C): the same norm and attention over the slices at each position.

    `table` (2 * depth - 1, d) holds what relative depths add to the scores.
    """
    attention, (count, rows, columns, channels) = block.attn, x.shape
    positions = x.reshape(count // depth, depth, rows * columns, channels).transpose(1, 2)
    normed = block.norm1(positions.reshape(-1, depth, channels))
    qkv = attention.qkv(normed).reshape(-1, depth, 3, attention.num_heads, channels // attention.num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    steps = torch.arange(depth)
    relative = table[steps[:, None] - steps[None, :] + depth - 1]
    scores = (q * attention.scale) @ k.transpose(-2, -1) + torch.einsum("nhid,ijd->nhij", q, relative)
    attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(-1, depth, channels)
    slices = attention.proj(attended).reshape(-1, rows * columns, depth, channels).transpose(1, 2)
    return slices.reshape(count, rows, columns, channels)


def _plain_adapter(adapter: nn.Module, x: Tensor) -> Tensor:
    return adapter.up(functional.gelu(adapter.down(x)))


# --- arithmetic ---


def encoder_flops(spec: BaseSpec, adapter_width: int) -> int:
    """Floating-point operations, two a multiply-add, that the encoder needs for one slice in 2D.

    Counted are the products: patch embedding, the linear layers on the image's own tokens, q k^T, attention times v
    and the relative positions, the neck, and two adapters of `adapter_width` a block (0: none). Not counted: what
    windows are padded with, norms, activations and softmax, and any detour an implementation takes.
    """
    tokens, width = spec.grid**2, spec.encoder_width
    linear = tokens * width * (3 * width + width + 8 * width) + 4 * tokens * width * adapter_width
    everywhere = len(spec.global_blocks)
    attention = everywhere * _attention_products([spec.grid], width)
    windows = [
        min(spec.window_size, spec.grid - start) for start in range(0, spec.grid, spec.window_size or 1)
    ]
    attention += (spec.encoder_depth - everywhere) * _attention_products(windows, width)
    patches = tokens * 3 * spec.patch_size**2 * width
    neck = tokens * DECODER_WIDTH * (width + 9 * DECODER_WIDTH)
    return 2 * (patches + spec.encoder_depth * linear + attention + neck)


def _attention_products(sides: Sequence[int], width: int) -> int:
    """Multiply-adds of the attention in a grid cut into windows of `sides` tokens along both axes."""
    scores = sum((rows * columns) ** 2 for rows in sides for columns in sides)
    relative = sum(rows * columns * (rows + columns) for rows in sides for columns in sides)
    return width * (2 * scores + relative)


# --- speed ---


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> list[dict[str, float]]:
    """Seconds of each of `runs`, round by round after a warm-up: what slows the machine down meets all alike."""
    for run in runs.values():
        run()
    rounds = []
    for _ in range(repeats):
        rounds.append({name: seconds_of(run) for name, run in runs.items()})
        print("  " + "; ".join(f"{name} {value:.2f} s" for name, value in rounds[-1].items()), flush=True)
    return rounds


def seconds_of(run: Callable[[], Any]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def times_faster(rounds: Sequence[Mapping[str, float]], slow: str, fast: str) -> float:
    """The median over the rounds of how often `fast` fits into `slow`."""
    return median(measured[slow] / measured[fast] for measured in rounds)


def speed(options: Options) -> list[Figure]:
    """One slice at 1024 pixels, a slab at 512, and segment_anything in a process as others run it."""
    keep_freed_memory()
    return [
        *one_slice(options.repeats),
        *one_slab(options.repeats),
        *against_plain_process(options),
    ]


@torch.inference_mode()
def one_slice(repeats: int) -> list[Figure]:
    """vit_b at 1024 pixels with its adapters against segment_anything, and against the machine's own products."""
    sam, planes = random_sam(VIT_B), random_planes(1, VIT_B)
    kinds = precisions(CPU)
    models = {kind: adapted(sam, VIT_B, VIT_B_DIMS, kind) for kind in kinds}
    expected = encode_as_released(sam, planes)
    errors = {kind: difference(model.encode(planes), expected) for kind, model in models.items()}
    if errors["float32"] > SAME_RESULT:
        note = f"another result than segment_anything's: relative difference {errors['float32']:.1e}"
        return [Figure(f"{SLICE_NAME}: segment_anything / ours", None, "times", ">= 1.3", False, note)]
    runs: dict[str, Callable[[], Any]] = {"segment_anything": lambda: encode_as_released(sam, planes)}
    runs |= {kind: partial(model.encode, planes) for kind, model in models.items()}
    untrained = models[kinds[-1]].sibling().eval()
    runs[UNTRAINED] = lambda: untrained.encode(planes)
    runs |= {product_name(kind, shape): product(kind, shape) for kind in kinds for shape in PRODUCTS}
    rounds = interleaved(runs, repeats)
    name = f"{SLICE_NAME}: difference from segment_anything"
    return [
        *slice_figures(rounds, kinds),
        *(judged(f"{name}, {kind}", error, "of the largest value") for kind, error in errors.items()),
    ]


def slice_figures(rounds: Sequence[Mapping[str, float]], kinds: Sequence[Precision]) -> list[Figure]:
    """What the rounds of `one_slice` say; the last of `kinds` is the best precision."""
    best, flops, figures = kinds[-1], encoder_flops(VIT_B, VIT_B_DIMS.encoder_width), []
    for kind, bar in ((best, ">= 2.5"), ("float32", ">= 1.3")):
        name = f"{SLICE_NAME}: segment_anything / ours, {kind}"
        figures.append(judged(name, times_faster(rounds, "segment_anything", kind), "times", bar))
    name = f"{SLICE_NAME}: segment_anything / ours before any training, {best}"
    figures.append(judged(name, times_faster(rounds, "segment_anything", UNTRAINED), "times"))
    for kind in kinds:
        share = median(share_of_rate(measured, kind, flops) for measured in rounds)
        name = f"{SLICE_NAME}: share of the machine's rate of matrix products, {kind}"
        figures.append(judged(name, share, "of 1", ">= 0.6" if kind == best else NO_BAR))
    return figures


def product_name(precision: Precision, shape: tuple[int, int, int]) -> str:
    """What a matrix product is called in the printed times."""
    return f"{precision} {'x'.join(map(str, shape))}"


def product(precision: Precision, shape: tuple[int, int, int]) -> Callable[[], None]:
    """A matrix product (m, k) times (k, n), as often as about 4096^3 multiply-adds take."""
    rows, inner, columns = shape
    left = torch.randn(rows, inner).to(DTYPES[precision])
    right = torch.randn(inner, columns).to(DTYPES[precision])

    def run() -> None:
        for _ in range(product_calls(shape)):
            torch.mm(left, right)

    return run


def product_calls(shape: tuple[int, int, int]) -> int:
    """How often `product` computes it, so that each shape is timed over about as long."""
    return max(1, round(4096**3 / math.prod(shape)))


def share_of_rate(measured: Mapping[str, float], precision: Precision, flops: int) -> float:
    """The encoder's operations a second, as a share of the best product's in the same round."""
    rates = [
        2 * math.prod(shape) * product_calls(shape) / measured[product_name(precision, shape)]
        for shape in PRODUCTS
    ]
    return flops / measured[precision] / max(rates)


@torch.inference_mode()
def one_slab(repeats: int) -> list[Figure]:
    """vit_b in 3D with trained adapters against the plain network above, in float32."""
    dims = replace(VIT_B_DIMS, depth=SLAB_SLICES)
    model = pretend_trained(adapted(random_sam(VIT_B_512), VIT_B_512, dims))
    planes = random_planes(SLAB_SLICES, VIT_B_512)
    name, bar = f"vit_b, 512 px, 3D, {SLAB_SLICES} slices, CPU: plain network / ours in float32", ">= 1.4"
    runs = {
        "plain 3D": lambda: encode_plainly(model, planes, SLAB_SLICES),
        "ours 3D": lambda: model.encode(planes, [SLAB_SLICES]),
    }
    error = difference(runs["ours 3D"](), runs["plain 3D"]())
    if not error <= SAME_RESULT:
        note = f"not the same result: relative difference {error:.1e}"
        return [Figure(name, None, "times", bar, False, note)]
    return [judged(name, times_faster(interleaved(runs, repeats), "plain 3D", "ours 3D"), "times", bar)]


def against_plain_process(options: Options) -> list[Figure]:
    """segment_anything in a process without `keep_freed_memory`, as others run it; ours in one with it."""
    name = f"{SLICE_NAME}: segment_anything in a plain process / ours in {precisions(CPU)[-1]}"
    times: dict[str, list[float]] = {"segment_anything": [], "ours": []}
    try:
        for _ in range(2):
            for side, measured in times.items():
                measured += run_child(options, "seconds", side)["seconds"]
                print(f"  {side}, own process, median so far {median(measured):.2f} s", flush=True)
    except ChildError as error:
        return [unmeasured(name, "times", NO_BAR, str(error))]
    return [judged(name, median(times["segment_anything"]) / median(times["ours"]), "times")]


@torch.inference_mode()
def child_seconds(options: Options, side: str) -> dict[str, Any]:
    """Seconds of one slice at 1024 pixels, after a warm-up."""
    if side == "ours":
        keep_freed_memory()
    run = one_slice_of(side, precisions(CPU)[-1])
    run()
    return {"seconds": [seconds_of(run) for _ in range(options.repeats)]}


def one_slice_of(side: str, precision: Precision) -> Callable[[], Tensor]:
    """Builds one network and gives what runs it on a slice at 1024 pixels."""
    sam, planes = random_sam(VIT_B), random_planes(1, VIT_B)
    if side == "segment_anything":
        return lambda: encode_as_released(sam, planes)
    model = adapted(sam, VIT_B, VIT_B_DIMS, precision)
    return lambda: model.encode(planes)


# --- memory ---


def memory(options: Options) -> list[Figure]:
    """Peak memory of one slice at 1024 pixels: weights and activations, without interpreter and libraries."""
    name, best = f"{SLICE_NAME}: peak memory", precisions(CPU)[-1]
    ratio_name, figures = f"{name}, ours / segment_anything", []
    try:
        released = run_child(options, "memory", "segment_anything", "float32")["peak"]
        figures.append(judged(f"{name}, segment_anything", released / 1e9, "GB"))
        for kind in reversed(precisions(CPU)):
            ours = run_child(options, "memory", "ours", kind)["peak"]
            bar = "<= 0.6" if kind == best else NO_BAR
            figures.append(judged(f"{name}, ours, {kind}", ours / 1e9, "GB"))
            figures.append(judged(f"{ratio_name}, {kind}", ours / released, "of 1", bar))
    except ChildError as error:
        figures.append(unmeasured(ratio_name, "of 1", "<= 0.6", str(error)))
    return figures


@torch.inference_mode()
def child_memory(options: Options, side: str, precision: Precision) -> dict[str, Any]:
    """The highest resident memory while one slice is encoded, above that of the process after its imports.

    Weights count, as they are resident then, activations and scratch memory too; what only building the network
    took doesn't. Neither side calls `keep_freed_memory`: the server doesn't either.
    """
    before = resident("VmRSS")
    run = one_slice_of(side, precision)
    give_back_freed()
    weights = resident("VmRSS") - before
    forget_peak()
    run()
    return {"peak": resident("VmHWM") - before, "weights": weights}


def resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    # Not getrusage: its ru_maxrss also has what the parent process held when it started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise ChildError(f"/proc/self/status says nothing of {field}")


def forget_peak() -> None:
    """Lets VmHWM start again from what is in memory now, where the kernel allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back_freed() -> None:
    """Returns freed heap to the system, as far as the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# --- training ---


def training(options: Options) -> list[Figure]:
    """One training step in 3D: the configuration that training takes on this machine, and all others."""
    name = f"training step, vit_b, 512 px, {sum(TRAIN_SLABS)} slices, CPU"
    peaks: dict[tuple[str, str], Figure] = {}
    table = []
    for kind in precisions(CPU):
        for checkpointing in ("on", "off"):
            row = f"{name}: {kind}, checkpointing {checkpointing}"
            rows = training_row(row, partial(run_child, options, "train", kind, checkpointing))
            peaks[kind, checkpointing] = rows[0]
            table += rows
    best = precisions(CPU)[-1]
    title = f"{name}: peak memory as configured here"
    with_checkpointing = with_bar(
        f"{name}: peak memory with checkpointing, {best}", peaks[best, "on"], NO_BAR
    )
    try:
        chosen = run_child(options, "decide")["checkpointing"]
    except ChildError as error:
        note = f"what training would choose is unknown: {error}"
        return [unmeasured(title, "GB", "< 8", note), with_checkpointing, *table]
    figure = with_bar(f"{title} ({best}, checkpointing {chosen})", peaks[best, chosen], "< 8")
    return [figure, with_checkpointing, *table]


def with_bar(name: str, figure: Figure, bar: str) -> Figure:
    """The same measurement under another name, judged by `bar`."""
    if figure.value is None:
        return replace(figure, name=name, bar=bar)
    return judged(name, figure.value, figure.unit, bar)


def training_row(name: str, measure_row: Callable[[], Mapping[str, float]]) -> list[Figure]:
    """Peak memory and seconds of one configuration, which may need more memory than there is."""
    try:
        found = measure_row()
    except (ChildError, torch.cuda.OutOfMemoryError) as error:
        return [unmeasured(f"{name}, {what}", unit, NO_BAR, str(error)) for what, unit in ROW_UNITS]
    print(f"  {name}: {found['peak'] / 1e9:.2f} GB, {found['seconds']:.2f} s", flush=True)
    return [
        judged(f"{name}, {what}", value, unit)
        for (what, unit), value in zip(ROW_UNITS, (found["peak"] / 1e9, found["seconds"]), strict=True)
    ]


ROW_UNITS = (("peak memory", "GB"), ("time of a step", "s"))


def child_train(options: Options, precision: Precision, checkpointing: str) -> dict[str, Any]:
    """Peak resident memory of the whole process, and seconds of the last of some steps."""
    keep_freed_memory()
    limit_memory()
    step = training_step(precision, checkpointing == "on", CPU)
    seconds = [seconds_of(step) for _ in range(TRAIN_STEPS)]
    return {"peak": resident("VmHWM"), "seconds": seconds[-1]}


def limit_memory() -> None:
    """Makes this process fail by itself where it needs more memory than there is, before something is killed."""
    available = available_bytes(CPU)
    if available is not None:
        limit = int(CHILD_MEMORY_SHARE * available)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def training_step(precision: Precision, checkpointing: bool, device: torch.device) -> Callable[[], None]:
    """Builds the network in 3D and gives what runs one step: encoder and decoder, backwards, and AdamW.

    One click a slice; as in training, the decoder computes in bfloat16 where the encoder does.
    """
    model = pretend_trained(adapted(random_sam(VIT_B_512), VIT_B_512, VIT_B_DIMS, precision)).to(device)
    model.train()
    model.checkpointing = checkpointing
    slices = sum(TRAIN_SLABS)
    planes = random_planes(slices, VIT_B_512).to(device)
    middle = VIT_B_512.image_size / 2
    prompts = PlanePrompts.stack([SinglePrompt(((middle, middle, 1),), label_id=0)] * slices).to(device)
    targets = torch.zeros(slices, VIT_B_512.mask_size, VIT_B_512.mask_size, device=device)
    targets[:, 32:96, 32:96] = 1.0
    optimizer = torch.optim.AdamW(model.adapters.parameters(), lr=1e-3)

    def step() -> None:
        embeddings = model.encode(planes, TRAIN_SLABS)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            masks = model.decode(embeddings, prompts)
        loss = functional.binary_cross_entropy_with_logits(masks.logits[:, 0].float(), targets)
        loss = loss + masks.iou[:, 0].float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def child_decide(options: Options) -> dict[str, Any]:
    """What training itself would choose on this machine now; the one place here that needs MONAI."""
    try:
        from lib.training.activations import activation_bytes, needs_checkpointing
    except ImportError as error:
        raise ChildError(f"training's own choice cannot be asked here ({error})") from error
    needed = activation_bytes(
        VIT_B_512, sum(TRAIN_SLABS), with_depth=True, precision=precisions(CPU)[-1], on_gpu=False
    )
    available = available_bytes(CPU)
    return {"checkpointing": "on" if needs_checkpointing(needed, available) else "off", "needed": needed}


# --- GPU ---


def gpu(options: Options) -> list[Figure]:
    """Milliseconds a slice at 1024 pixels, and the training steps."""
    title, bar = f"vit_b, 1024 px, bfloat16, batch {GPU_BATCH}, GPU: time a slice", "< 4"
    name = f"training step, vit_b, 512 px, {sum(TRAIN_SLABS)} slices, GPU"
    if not torch.cuda.is_available():
        note = "no GPU on this machine"
        return [unmeasured(title, "ms", bar, note), unmeasured(name, "GB", NO_BAR, note)]
    figures = [judged(title, gpu_milliseconds(options.repeats) / GPU_BATCH, "ms", bar)]
    for kind in ("float32", "bfloat16"):
        for checkpointing in ("on", "off"):
            row = f"{name}: {kind}, checkpointing {checkpointing}"
            figures += training_row(row, partial(gpu_training, kind, checkpointing == "on"))
    return figures


@torch.inference_mode()
def gpu_milliseconds(repeats: int) -> float:
    """Median of one batch, planes already on the GPU."""
    device = torch.device("cuda")
    model = adapted(random_sam(VIT_B), VIT_B, VIT_B_DIMS, "bfloat16").to(device)
    planes = random_planes(GPU_BATCH, VIT_B).to(device)
    times = [gpu_time(lambda: model.encode(planes)) for _ in range(GPU_WARM_UP + repeats)][GPU_WARM_UP:]
    print("  GPU, one batch: " + " ".join(f"{value:.1f}" for value in times) + " ms", flush=True)
    return median(times)


def gpu_training(precision: Precision, checkpointing: bool) -> dict[str, float]:
    """Peak of the memory that tensors take, weights included, and seconds of a step."""
    gc.collect()
    torch.cuda.empty_cache()
    step = training_step(precision, checkpointing, torch.device("cuda"))
    torch.cuda.reset_peak_memory_stats()
    times = [gpu_time(step) for _ in range(GPU_WARM_UP + TRAIN_STEPS)][GPU_WARM_UP:]
    return {"peak": float(torch.cuda.max_memory_allocated()), "seconds": median(times) / 1e3}


def gpu_time(run: Callable[[], Any]) -> float:
    """Milliseconds of one call, by the GPU's own clock."""
    started, stopped = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    run()
    stopped.record()
    stopped.synchronize()
    return started.elapsed_time(stopped)


# --- ablation ---


def ablation(options: Options) -> list[Figure]:
    """The parts of the network left out one by one, trained on real data: benchmarks/ablation.py."""
    name = "ablation"
    if not (options.data / "MANIFEST.md").is_file():
        note = f"no real data in {options.data}; set MEDSA_DATA"
        return [unmeasured(name, "Dice", NO_BAR, note)]
    try:
        from ablation import figures
    except ImportError as error:
        return [unmeasured(name, "Dice", NO_BAR, f"benchmarks/ablation.py cannot run here ({error})")]
    try:
        found = figures(options.data, options.work)
    except RuntimeError as error:
        return [unmeasured(name, "Dice", NO_BAR, f"a run failed: {error}")]
    return [Figure(**asdict(entry)) for entry in found]


# --- the run ---

SETS: dict[str, Callable[[Options], list[Figure]]] = {
    "speed": speed,
    "memory": memory,
    "training": training,
    "gpu": gpu,
    "ablation": ablation,
}
CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "seconds": child_seconds,
    "memory": child_memory,
    "train": child_train,
    "decide": child_decide,
}


def run_child(options: Options, *job: str) -> dict[str, Any]:
    """What a child process measured. Raises ChildError when it gave nothing."""
    command = [sys.executable, str(Path(__file__).resolve()), "--repeats", str(options.repeats)]
    if options.threads is not None:
        command += ["--threads", str(options.threads)]
    done = subprocess.run([*command, "--child", *job], capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ChildError(f"{' '.join(job)}: child process ended with {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line for line in lines if line.startswith("model name")]
    return {
        "platform": platform.platform(),
        "cpu": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precisions": precisions(CPU),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def described(figure: Figure) -> str:
    """One line of the printed table."""
    value = "not measured" if figure.value is None else f"{figure.value:.4g} {figure.unit}"
    verdict = {True: "holds", False: "MISSED", None: "unknown"}[figure.holds]
    mark = "" if figure.bar == NO_BAR else f" (bar {figure.bar}: {verdict})"
    return f"{figure.name}: {value}{mark}{f' [{figure.note}]' if figure.note else ''}"


def entry_of(figure: Figure) -> dict[str, Any]:
    """A figure as the JSON file has it: with a note only where there is one."""
    return {key: value for key, value in asdict(figure).items() if key != "note" or value}


def options_of_this_run() -> Options:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("MEDSA_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument("--set", dest="sets", default="all", choices=["all", *SETS])
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written too")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--repeats", type=int, default=4, metavar="N", help="timed rounds after a warm-up")
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets, for ablation")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where ablation keeps its runs")
    parser.add_argument("--child", nargs="+", default=(), help=argparse.SUPPRESS)
    return Options(**vars(parser.parse_args()))


def main() -> int:
    """Measures, prints and writes; a missed bar is a result, an encoder with another result is an error."""
    options = options_of_this_run()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.child:
        job, *arguments = options.child
        print(json.dumps(CHILDREN[job](options, *arguments)))
        return 0
    figures: list[Figure] = []
    for name, measure in SETS.items():
        if options.sets in (name, "all"):
            print(f"{name}:", flush=True)
            figures += measure(options)
    print("\n".join(map(described, figures)))
    if options.json is not None:
        content = {"machine": machine(), "figures": [entry_of(figure) for figure in figures]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return int(any(figure.value is None and figure.holds is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
