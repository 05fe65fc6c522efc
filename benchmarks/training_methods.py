"""What is compared in benchmarks/training.py: three ways to learn from the same labels in the same CPU time.

Adapters are medsa's own training. Full fine-tuning trains all weights of the same base with the same prompts and
losses. The UNet is MONAI's, from random weights; it takes no clicks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from monai.losses.dice import DiceCELoss
from monai.networks.nets.unet import UNet
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import RandCropByPosNegLabeld, SpatialPadd
from monai.transforms.intensity.dictionary import RandAdjustContrastd, RandGaussianNoised, RandScaleIntensityd
from monai.transforms.spatial.dictionary import RandAffined
from numpy.typing import NDArray
from torch import Tensor

from lib.bases import choose_base, encoder_precision
from lib.embeddings import EmbeddingCache
from lib.evaluation.metrics import volume_dice
from lib.evaluation.simulated_user import annotate
from lib.model.catalog import build_model
from lib.model.medsa import MedSA, Precision
from lib.model.precision import has_fast_bfloat16
from lib.predictor import Predictor
from lib.settings import Settings, load_settings
from lib.training.cases import Case
from lib.training.image_size import fitting_size
from lib.training.loop import TrainOptions, train
from lib.training.optimizer import Optimizer
from lib.training.slabs import TrainingCase, prepare_case
from lib.training.viewpoint import Viewpoint
from lib.transforms.geometry import slice_axis
from lib.transforms.intensity import to_model_range

APP = Path(__file__).resolve().parent.parent / "apps" / "medsa"
CACHE_BYTES = 1 << 28
# The best of 1e-4, 3e-4, 1e-3 and 3e-3, and of 1e-3, 2e-3 and 5e-3, on ten of the development volumes in two minutes.
FULL_LEARNING_RATE = 1e-3
UNET_LEARNING_RATE = 5e-3
UNET_CHANNELS = (16, 32, 64, 128)
WHITE = 255.0

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Trained:
    """Something that segments. `clicked` answers one click of the simulated annotator, None where it takes none."""

    automatic: Callable[[Case], Mask]
    clicked: Callable[[Case], float] | None
    steps: int


Method = Callable[[Settings, Sequence[Case], float, int], Trained]


def settings_of(task: str) -> Settings:
    """The shipped settings of a task, on vit_t."""
    return load_settings(APP / "configs", {"task": task, "base": "vit_t"})


def untrained(settings: Settings) -> Trained:
    """The base as it is shipped."""
    return answering(settings, fresh_base(settings), 0)


def adapters(settings: Settings, cases: Sequence[Case], seconds: float, seed: int) -> Trained:
    """medsa's training, from fresh adapters."""
    model, prepared = at_fitting_size(fresh_base(settings), settings, cases)
    result = train(model, prepared, options_of(settings, seconds, seed), clock=cpu_seconds)
    return answering(settings, model, result.steps)


def full_fine_tuning(settings: Settings, cases: Sequence[Case], seconds: float, seed: int) -> Trained:
    """All weights of the base and the label tokens; no adapters. With AdamW: docs/decisions.md, 2026-12-01."""
    base = fresh_base(settings, "float32")
    whole = _WholeNetwork(base.sam, base.spec, base.dims, base.labels)
    whole.adapters.requires_grad_(False)
    model, prepared = at_fitting_size(whole, settings, cases)
    tokens = model.adapters["labels"].requires_grad_(True)
    trained = [*model.sam.requires_grad_(True).parameters(), *tokens.parameters()]
    # Half-size images need positions of their own, which would be trained apart; there is no depth branch for slabs.
    options = replace(
        options_of(settings, seconds, seed),
        learning_rate=FULL_LEARNING_RATE,
        small_share=0.0,
        single_share=1.0,
    )
    result = train(
        model, prepared, options, clock=cpu_seconds, parameters=trained, make_optimizer=Optimizer.adamw
    )
    return answering(settings, model, result.steps)


def unet(settings: Settings, cases: Sequence[Case], seconds: float, seed: int) -> Trained:
    """MONAI's 3D UNet on patches of the same intensities, Dice and cross-entropy."""
    shape, strides = _unet_shape(cases)
    torch.manual_seed(seed)
    network = UNet(3, 1, 2, UNET_CHANNELS, strides, num_res_units=2, norm="instance")
    optimizer = torch.optim.AdamW(network.parameters(), lr=UNET_LEARNING_RATE)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    volumes = [_unet_volume(settings, case, shape) for case in cases]
    draw, rng = _unet_transform(shape).set_random_state(seed), np.random.default_rng(seed)
    started, steps = cpu_seconds(), 0
    while (gone := (cpu_seconds() - started) / seconds) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = UNET_LEARNING_RATE * (1.0 - gone) ** 0.9
        patches = [draw(volumes[rng.integers(len(volumes))])[0] for _ in range(2)]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=_rounds()):
            logits = network(torch.stack([torch.as_tensor(patch["image"]) for patch in patches]))
        loss_of(
            logits.float(), torch.stack([torch.as_tensor(patch["label"]) for patch in patches])
        ).backward()
        optimizer.step()
        steps += 1
    network.eval()
    return Trained(lambda case: _unet_mask(network, settings, case, shape), None, steps)


def answering(settings: Settings, model: MedSA, steps: int) -> Trained:
    """`model` as a server answers with it."""
    view, (label,) = view_of(settings), settings.task.labels
    predictor = Predictor(model, "benchmark", view.intensity, view.slice_axis, EmbeddingCache(CACHE_BYTES))

    def clicked(case: Case) -> float:
        axis = slice_axis(case.volume.spacing_mm, view.slice_axis, case.volume.shape_ijk)
        found = annotate(
            lambda prompts: predictor.predict(case.volume, prompts).mask,
            case.label > 0,
            1,
            axis,
            case.volume.spacing_mm,
            label,
        )
        return found[0].dice

    return Trained(lambda case: predictor.automatic_mask(case.volume, label) > 0, clicked, steps)


METHODS: dict[str, Method] = {"adapters": adapters, "full fine-tuning": full_fine_tuning, "UNet": unet}


def scores(trained: Trained, cases: Sequence[Case]) -> dict[str, list[float]]:
    """Volume Dice of every case, after one click and without any."""
    found: dict[str, list[float]] = {"no clicks": []}
    for case in cases:  # a case's slices are encoded once, for both
        found["no clicks"].append(volume_dice(trained.automatic(case), case.label > 0))
        if trained.clicked is not None:
            found.setdefault("1 click", []).append(trained.clicked(case))
    return found


def options_of(settings: Settings, seconds: float, seed: int) -> TrainOptions:
    """The shipped settings of a training, for so many seconds."""
    training = settings.training
    return TrainOptions(
        seconds,
        training.learning_rate,
        training.batch_slices,
        training.prompts_per_slice,
        seed,
        small_share=training.small_share,
        single_share=training.single_share,
    )


def cpu_seconds() -> float:
    """The time that all threads of this process have computed: what else runs on the machine does not count."""
    return time.process_time()


class _WholeNetwork(MedSA):
    """Trained as a whole, multiplying in bfloat16 where the frozen one does: without that it would be far slower.

    Its own weights stay float32, as an optimizer needs them.
    """

    @property
    def precision(self) -> Precision:
        return "bfloat16" if _rounds() else "float32"

    def encode(self, planes: Tensor, depths: Sequence[int] | None = None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=_rounds()):
            return super().encode(planes, None).float()

    def at_size(self, image_size: int) -> MedSA:
        other = super().at_size(image_size)
        other.__class__ = _WholeNetwork
        return other

    def _part(self, name: str) -> Any:
        return None


def _rounds() -> bool:
    """Whether this machine multiplies faster in bfloat16: all methods do, or none."""
    return has_fast_bfloat16(torch.device("cpu"))


def fresh_base(settings: Settings, precision: Precision | None = None) -> MedSA:
    choice = choose_base(settings, APP, None)
    labels = list(settings.task.labels)
    return build_model(choice, labels, precision or encoder_precision(settings.serving))[0]


def view_of(settings: Settings) -> Viewpoint:
    task = settings.task
    return Viewpoint(task.labels, task.intensity, task.slice_axis, "cpu", task.flips)


def at_fitting_size(
    base: MedSA, settings: Settings, cases: Sequence[Case]
) -> tuple[MedSA, list[TrainingCase]]:
    spec = base.spec
    prepared = [prepare_case(case, view_of(settings), spec.image_size, spec.mask_size) for case in cases]
    size = fitting_size(spec, [case.geometry for case in prepared])
    model = base if size == spec.image_size else base.at_size(size)
    return model, [case.at_size(size, model.spec.mask_size) for case in prepared]


def _unet_shape(cases: Sequence[Case]) -> tuple[tuple[int, int, int], tuple[Any, ...]]:
    """Patch (i, j, k) and strides: whole small volumes; of large, thick-sliced ones a part, halved along k later."""
    shapes = np.array([case.volume.shape_ijk for case in cases])
    if shapes.max() <= 64:
        i, j, k = (int(-(-side // 8) * 8) for side in shapes.max(axis=0))
        return (i, j, k), (2, 2, 2)
    return (128, 128, 16), ((2, 2, 1), (2, 2, 2), (2, 2, 2))


def _unet_volume(settings: Settings, case: Case, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    image = to_model_range(case.volume.array, settings.task.intensity) / WHITE
    content = {
        "image": torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None],
        "label": torch.from_numpy(case.label.astype(np.float32))[None],
    }
    padded: dict[str, Tensor] = SpatialPadd(("image", "label"), shape)(content)
    return padded


def _unet_transform(shape: tuple[int, int, int]) -> Compose:
    keys = ("image", "label")
    return Compose(
        [
            RandCropByPosNegLabeld(keys, "label", shape, pos=2, neg=1, num_samples=1),
            RandAffined(
                keys,
                prob=0.5,
                rotate_range=(0.0, 0.0, 0.25),
                scale_range=(0.15, 0.15, 0.15),
                translate_range=(3, 3, 2),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandScaleIntensityd("image", factors=0.2, prob=0.5),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            RandGaussianNoised("image", prob=0.3, std=0.03),
        ]
    )


def _unet_mask(network: UNet, settings: Settings, case: Case, shape: tuple[int, int, int]) -> Mask:
    padded = _unet_volume(settings, case, shape)["image"]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=_rounds()):
        logits = sliding_window_inference(padded[None].as_tensor(), shape, 2, network, overlap=0.5)
    inside = logits[0].float().argmax(dim=0).numpy() > 0
    before = [(full - size) // 2 for full, size in zip(inside.shape, case.label.shape, strict=True)]
    cut = tuple(slice(start, start + size) for start, size in zip(before, case.label.shape, strict=True))
    return inside[cut]
