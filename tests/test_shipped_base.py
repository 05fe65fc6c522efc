"""The base that is shipped: it must segment what it has never seen, far better than chance."""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lib.bases import choose_base
from lib.model.catalog import build_model
from lib.model.medsa import MedSA, PlanePrompts, SinglePrompt
from lib.model.precision import has_fast_bfloat16
from lib.pretraining.batches import draw_slice
from lib.prompts.simulate import interior_point
from lib.settings import IntensitySettings, load_settings
from lib.transforms.geometry import PlaneGeometry, plane_geometry, slice_axis, take_planes
from lib.transforms.intensity import to_model_range
from lib.volume import load_volume

APP = Path(__file__).parents[1] / "apps" / "medsa"
UNSEEN_SEED = 987_654_321
CPU = {"base": "vit_t", "device": "cpu"}


@pytest.fixture(scope="module")
def model() -> MedSA:
    torch.set_num_threads(1)
    settings = load_settings(APP / "configs", CPU)
    return build_model(choose_base(settings, APP, None), ("object",))[0]


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return 2 * (first & second).sum() / max(1, first.sum() + second.sum())


@torch.inference_mode()
def answer(
    model: MedSA, planes: torch.Tensor, prompts: Sequence[SinglePrompt], geometry: PlaneGeometry
) -> NDArray[np.bool_]:
    """Masks (B, n_u, n_v) of one prompt for each of the planes (B, n_u, n_v)."""
    stacked = PlanePrompts.stack(prompts)
    ambiguous = torch.tensor([prompt.is_ambiguous for prompt in prompts])
    logits, _ = model.decode(model.encode(geometry.planes_to_model(planes)), stacked).choose(ambiguous)
    return geometry.logits_to_voxels(logits).numpy() > 0


def box_prompt(target: NDArray[np.bool_], geometry: PlaneGeometry) -> SinglePrompt:
    u, v = np.nonzero(target)
    box = geometry.boxes_to_model(np.array([[u.min(), v.min(), u.max() + 1, v.max() + 1]], dtype=float))[0]
    return SinglePrompt(box_xyxy=tuple(float(edge) for edge in box))


def click_prompt(target: NDArray[np.bool_], geometry: PlaneGeometry) -> SinglePrompt:
    x, y = geometry.points_to_model(np.array([interior_point(target)], dtype=float))[0]
    return SinglePrompt(points=[(float(x), float(y), 1)])


def mean_dice(
    model: MedSA, planes: NDArray, targets: NDArray[np.bool_], geometry: PlaneGeometry
) -> tuple[float, float]:
    """With one box, and with one click, a plane."""
    tensor = torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32))
    return tuple(  # type: ignore[return-value]
        float(
            np.mean(
                [dice(a, b) for a, b in zip(answer(model, tensor, prompts, geometry), targets, strict=True)]
            )
        )
        for prompts in (
            [box_prompt(target, geometry) for target in targets],
            [click_prompt(target, geometry) for target in targets],
        )
    )


def test_it_segments_made_objects_it_has_not_seen(model: MedSA) -> None:
    rng, spec = np.random.default_rng(UNSEEN_SEED), model.spec
    made = [draw_slice(rng, spec.image_size, spec.mask_size, 1) for _ in range(24)]
    size = (spec.image_size, spec.image_size, 1)
    geometry = plane_geometry(size, (1.0, 1.0, 1.0), 2, spec.image_size, spec.mask_size)
    # Model planes have rows first, voxel planes columns first.
    planes = np.stack([one.image.T for one in made])
    factor = spec.image_size // spec.mask_size
    targets = np.stack([np.kron(one.targets[0].mask.T, np.ones((factor, factor))) > 0 for one in made])
    box, click = mean_dice(model, planes, targets, geometry)
    assert box > 0.6
    assert click > 0.4


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "pattern", "box_at_least", "click_at_least"),
    [("cardiac_lv_mr", "*_ED.nii.gz", 0.75, 0.6), ("hippocampus_mr", "hippocampus_0*.nii.gz", 0.7, 0.55)],
)
def test_it_segments_real_organs(
    model: MedSA, data_dir: Path, folder: str, pattern: str, box_at_least: float, click_at_least: float
) -> None:
    images = sorted((data_dir / folder / "images").glob(pattern))[:8]
    assert len(images) == 8
    figures = [mean_dice(model, *real_slices(data_dir / folder, image.name, model)) for image in images]
    box, click = np.mean(figures, axis=0)
    assert box > box_at_least
    assert click > click_at_least


def real_slices(folder: Path, name: str, model: MedSA) -> tuple[NDArray, NDArray[np.bool_], PlaneGeometry]:
    """The slices (B, n_u, n_v) of a volume that hold its organ, and the organ there."""
    volume = load_volume(folder / "images" / name)
    axis = slice_axis(volume.spacing_mm)
    label = np.asarray(nibabel.load(folder / "labels" / name).dataobj) > 0
    truth = take_planes(label, axis, range(volume.shape_ijk[axis]))
    indices = [index for index, plane in enumerate(truth) if plane.sum() >= 30]
    planes = take_planes(to_model_range(volume.array, IntensitySettings()), axis, indices)
    spec = model.spec
    geometry = plane_geometry(volume.shape_ijk, volume.spacing_mm, axis, spec.image_size, spec.mask_size)
    return planes, truth[indices], geometry


@pytest.mark.data
@pytest.mark.skipif(
    not has_fast_bfloat16(torch.device("cpu")),
    reason="no bfloat16 in hardware: it is not used here, and emulated it is far slower",
)
@pytest.mark.parametrize(
    ("folder", "pattern"), [("cardiac_lv_mr", "*_ED.nii.gz"), ("hippocampus_mr", "hippocampus_0*.nii.gz")]
)
def test_bfloat16_gives_nearly_the_same_masks(data_dir: Path, folder: str, pattern: str) -> None:
    exact, rounded = (
        build_model(choose_base(load_settings(APP / "configs", CPU), APP, None), ("object",), precision)[0]
        for precision in ("float32", "bfloat16")
    )
    overlaps: dict[str, list[float]] = {"box_prompt": [], "click_prompt": []}
    for image in sorted((data_dir / folder / "images").glob(pattern))[:4]:
        planes, targets, geometry = real_slices(data_dir / folder, image.name, exact)
        tensor = torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32))
        for prompt in (box_prompt, click_prompt):
            prompts = [prompt(target, geometry) for target in targets]
            pair = (answer(model, tensor, prompts, geometry) for model in (exact, rounded))
            overlaps[prompt.__name__] += [dice(a, b) for a, b in zip(*pair, strict=True)]
    assert len(overlaps["box_prompt"]) > 20
    assert all(np.mean(values) >= 0.995 for values in overlaps.values())
