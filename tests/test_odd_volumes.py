"""Volumes of every kind, from a file to a mask on the file's own grid: pictures, colours, odd axes."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

import lib
from lib.bases import catalog
from lib.embeddings import EmbeddingCache
from lib.model.base import BaseSpec, build_sam, load_base
from lib.model.decoder import POSITIVE
from lib.model.medsa import Masks, MedSA, PlanePrompts
from lib.predictor import Predictor
from lib.prompts.promptset import Box, PromptSet
from lib.settings import IntensitySettings, load_settings
from lib.turns import Asker
from lib.volume import Volume, load_label, load_volume, save_mask

WINDOW = IntensitySettings(kind="window", window_hu=(0.0, 255.0))
SHIPPED = Path(lib.__file__).parents[1] / "weights" / "vit_t.safetensors"
SPEC = BaseSpec("rule", 128, 16, 16, 1, 1, (0,), 2)
BRIGHT, REDDER_THAN_GREEN = (1.0, 0.0, 0.0), (2.0, -2.0, 0.0)


class ShadeModel(MedSA):
    """Segments the connected region under a positive click whose channels, weighted, are above 110.

    Its embedding is that weighted image, rearranged. It keeps the planes it was given.
    """

    def __init__(self, weights: tuple[float, float, float] = BRIGHT) -> None:
        super().__init__(build_sam(SPEC), SPEC, None, ("object",))
        self.trained = True
        self.channel_weights = torch.tensor(weights)[:, None, None]
        self.seen: list[Tensor] = []

    def encode(self, planes: Tensor, depths: object = None) -> Tensor:
        self.seen.append(planes)
        shade = (planes.float() * self.channel_weights).sum(dim=1, keepdim=True)
        return torch.nn.functional.pixel_unshuffle(shade, self.spec.patch_size)

    def decode(self, embeddings: Tensor, prompts: PlanePrompts) -> Masks:
        shades = torch.nn.functional.pixel_shuffle(embeddings, self.spec.patch_size)
        inside = (torch.nn.functional.avg_pool2d(shades, 4)[:, 0] > 110).numpy()
        chosen = np.stack([self._under_clicks(inside[row], prompts, row) for row in range(len(prompts))])
        logits = torch.from_numpy(np.where(chosen, 6.0, -6.0).astype(np.float32))
        return Masks(logits[:, None].repeat(1, 4, 1, 1), torch.full((len(chosen), 4), 0.9))

    def _under_clicks(self, inside: np.ndarray, prompts: PlanePrompts, row: int) -> np.ndarray:
        regions, _ = ndimage.label(inside)
        pixels = ((prompts.points_xy[row].numpy() + 0.5) / 4).astype(int)
        marked = [
            regions[y, x]
            for (x, y), label in zip(pixels, prompts.point_labels[row].tolist(), strict=True)
            if label == POSITIVE
        ]
        return np.isin(regions, [region for region in marked if region])


def predictor_of(model: MedSA, intensity: IntensitySettings = WINDOW) -> Predictor:
    return Predictor(model, "key", intensity, "auto", EmbeddingCache(1 << 26))


def ellipsoid(shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    grid = np.indices(shape)
    return sum(((grid[axis] - centre[axis]) / radii[axis]) ** 2 for axis in range(len(shape))) <= 1


def dice(first: np.ndarray, second: np.ndarray) -> float:
    both = np.count_nonzero((first > 0) & (second > 0))
    return 2 * both / (np.count_nonzero(first) + np.count_nonzero(second))


def picture(path: Path, discs: dict[tuple[int, int], tuple[int, int, int]], radius: int = 60) -> np.ndarray:
    """Writes 640 x 480 pixels with discs of the given colours at (column, row); their masks (columns, rows)."""
    pixels = np.full((480, 640, 3), 30, np.uint8)
    masks = []
    for (column, row), colour in discs.items():
        disc = ellipsoid((480, 640), (row, column), (radius, radius))
        pixels[disc] = colour
        masks.append(disc.T)
    Image.fromarray(pixels).save(path)
    return np.stack(masks)


class TestPictures:
    @pytest.mark.parametrize("name", ["a.png", "a.jpg"])
    @pytest.mark.parametrize("answer", ["m.nii.gz", "m.nrrd"])
    def test_a_click_gives_a_mask_on_the_pictures_grid(self, tmp_path: Path, name: str, answer: str) -> None:
        (disc,) = picture(tmp_path / name, {(500, 100): (200, 180, 170)})
        volume = load_volume(tmp_path / name)
        prediction = predictor_of(ShadeModel()).predict(volume, PromptSet(((500, 100, 0),)))
        assert prediction.slices == (0,)
        assert prediction.mask.shape == (640, 480, 1)
        assert dice(prediction.mask[..., 0], disc) > 0.9  # a pixel of the model's mask is 20 of the picture
        assert np.allclose(ndimage.center_of_mass(prediction.mask), (500, 100, 0), atol=5)
        save_mask(prediction.mask, volume, tmp_path / answer)
        saved, shown = (SimpleITK.ReadImage(str(tmp_path / file)) for file in (answer, name))
        assert saved.GetSize() == (640, 480, 1)
        assert np.allclose(saved.GetSpacing()[:2], shown.GetSpacing())
        place = saved.TransformIndexToPhysicalPoint((500, 100, 0))
        assert np.allclose(place[:2], shown.TransformIndexToPhysicalPoint((500, 100)), atol=1e-4)
        assert saved[500, 100, 0] == 1

    def test_the_channels_reach_the_model_as_red_green_blue(self, tmp_path: Path) -> None:
        picture(tmp_path / "a.png", {(320, 240): (200, 120, 40)})
        model = ShadeModel()
        predictor_of(model).predict(load_volume(tmp_path / "a.png"), PromptSet(((320, 240, 0),)))
        (planes,) = model.seen
        assert planes.shape == (1, 3, 128, 128)
        assert torch.allclose(planes[0, :, 48, 64], torch.tensor([200.0, 120.0, 40.0]), atol=0.01)
        assert torch.allclose(planes[0, :, 10, 10], torch.tensor(30.0), atol=0.01)

    def test_a_hue_is_told_from_another(self, tmp_path: Path) -> None:
        """In grey the two discs would be one."""
        red, green = picture(
            tmp_path / "a.png", {(280, 240): (180, 60, 60), (360, 240): (60, 180, 60)}, radius=50
        )
        volume = load_volume(tmp_path / "a.png")
        found = predictor_of(ShadeModel(REDDER_THAN_GREEN)).predict(volume, PromptSet(((270, 240, 0),))).mask
        assert dice(found[..., 0], red & ~green) > 0.85
        assert not found[400, 240, 0]

    def test_a_box_bounds_it(self, tmp_path: Path) -> None:
        picture(tmp_path / "a.png", {(320, 240): (200, 180, 170)})
        prompts = PromptSet(((320, 240, 0),), boxes=(Box((300, 200, 0), (350, 260, 1)),))
        mask = predictor_of(ShadeModel()).predict(load_volume(tmp_path / "a.png"), prompts).mask
        where = np.argwhere(mask)
        assert len(where) > 1000
        assert (np.abs(where.min(axis=0) - (300, 200, 0)) <= 10).all()  # a box is taken for a little larger
        assert (np.abs(where.max(axis=0) - (349, 259, 0)) <= 10).all()

    @pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "1"])
    def test_every_kind_of_png_with_a_real_network(
        self, tmp_path: Path, tiny_model: MedSA, mode: str
    ) -> None:
        picture(tmp_path / "a.png", {(320, 240): (200, 180, 170)})
        with Image.open(tmp_path / "a.png") as image:
            image.convert(mode).save(tmp_path / "b.png")
        volume = load_volume(tmp_path / "b.png")
        predictor = predictor_of(tiny_model, IntensitySettings())
        prediction = predictor.predict(volume, PromptSet(((320, 240, 0),)))
        assert prediction.mask.shape == (640, 480, 1)
        assert prediction.mask[320, 240, 0] == 1
        with predictor.study(volume, 1, Asker("test")) as study:
            assert study.slices == (0,)

    @pytest.mark.skipif(not SHIPPED.is_file(), reason=f"no {SHIPPED.name} in apps/medsa/weights")
    def test_the_shipped_base_finds_a_lesion_on_skin(self, tmp_path: Path) -> None:
        app = SHIPPED.parents[1]
        spec = catalog(load_settings(app / "configs", {}), app).entries["vit_t"].spec
        sam, _ = load_base(spec, SHIPPED)
        lesion = ellipsoid((240, 320), (100, 200), (35, 50))
        shades = np.where(lesion[..., None], (110, 60, 50), (220, 170, 150))
        noise = np.random.default_rng(0).normal(0, 6, shades.shape)
        pixels = ndimage.gaussian_filter(shades.astype(float), (2, 2, 0)) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "a.jpg")
        predictor = predictor_of(MedSA(sam, spec, None, ("object",)), IntensitySettings())
        mask = predictor.predict(load_volume(tmp_path / "a.jpg"), PromptSet(((200, 100, 0),))).mask
        assert mask.shape == (320, 240, 1)
        assert dice(mask[..., 0], lesion.T) > 0.8


def turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    about_z = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return about_z @ about_x


# Directions of i, j and k in RAS as columns; spacing in mm; shape; the axis that is looked along.
GRIDS = {
    "canonical": (np.eye(3), (1.0, 1.0, 3.0), (28, 24, 10), 2),
    "sagittal along i": (np.eye(3), (4.0, 0.9, 0.9), (9, 28, 24), 0),
    "sagittal along k": (np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]]), (0.9, 0.9, 4.0), (28, 24, 9), 2),
    "coronal along j": (np.eye(3), (0.9, 5.0, 0.9), (28, 9, 24), 1),
    "descending": (np.diag([1, 1, -1]), (1.0, 1.0, 3.0), (28, 24, 10), 2),
    "all flipped": (np.diag([-1, -1, -1]), (1.0, 3.0, 1.0), (28, 10, 24), 1),
    "oblique": (turned(25.0), (1.1, 1.1, 3.5), (28, 24, 10), 2),
    "oblique along i, descending": (turned(-40.0) @ np.diag([-1, 1, 1]), (3.5, 1.1, 1.1), (10, 28, 24), 0),
    "left-handed": (turned(10.0)[:, [1, 0, 2]], (1.0, 1.0, 3.0), (28, 24, 10), 2),
    "anisotropic in the plane": (np.eye(3), (0.7, 1.9, 6.0), (40, 18, 9), 2),
    "isotropic": (np.eye(3), (1.0, 1.0, 1.0), (20, 22, 18), 2),
}


@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
@pytest.mark.parametrize("grid", GRIDS)
class TestGrids:
    def test_the_object_comes_back_on_the_grid_of_the_file(
        self, tmp_path: Path, grid: str, colour: bool
    ) -> None:
        volume, body, axis = stored(tmp_path / "a.nii.gz", grid, colour)
        middle = tuple(size // 2 for size in body.shape)
        prediction = predictor_of(ShadeModel()).predict(volume, PromptSet((middle,)))  # type: ignore[arg-type]
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(prediction.mask.any(axis=others)).tolist()
        assert dice(prediction.mask, body) > 0.85
        assert len(filled) > 3
        assert set(filled) <= set(prediction.slices) <= set(range(body.shape[axis]))
        for name in ("m.nii.gz", "m.nrrd"):
            save_mask(prediction.mask, volume, tmp_path / name)
            assert np.array_equal(load_label(tmp_path / name, volume, {"object": 1}), prediction.mask)
            assert_same_grid(tmp_path / name, tmp_path / "a.nii.gz")

    def test_the_slices_run_along_the_largest_spacing(self, tmp_path: Path, grid: str, colour: bool) -> None:
        volume, body, axis = stored(tmp_path / "a.nii.gz", grid, colour)
        middle = tuple(size // 2 for size in body.shape)
        model = ShadeModel()
        prediction = predictor_of(model).predict(
            volume,
            PromptSet((middle,)),  # type: ignore[arg-type]
            whole_object=False,
        )
        assert prediction.slices == (middle[axis],)
        plane = np.take(prediction.mask, middle[axis], axis)
        assert np.count_nonzero(prediction.mask) == np.count_nonzero(plane)
        assert dice(plane, np.take(body, middle[axis], axis)) > 0.85


def stored(path: Path, grid: str, colour: bool) -> tuple[Volume, np.ndarray, int]:
    """A bright body written to `path` and read again; its mask, and the axis to look along."""
    directions, spacing, shape, axis = GRIDS[grid]
    body = ellipsoid(shape, tuple(size // 2 for size in shape), tuple(0.35 * size for size in shape))
    array = np.where(body, 200, 20).astype(np.uint8)
    if colour:
        array = np.stack([array, array // 2, array // 4], axis=-1)
    affine = np.eye(4)
    affine[:3, :3] = directions @ np.diag(spacing)
    affine[:3, 3] = (31.5, -17.25, 103.0)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return load_volume(path), body, axis


def assert_same_grid(mask: Path, image: Path) -> None:
    """As ITK, and with it 3D Slicer, sees both files."""
    first, second = (SimpleITK.ReadImage(str(path)) for path in (mask, image))
    assert first.GetSize() == second.GetSize()[:3]
    corners = [(0, 0, 0), tuple(size - 1 for size in first.GetSize())]
    for corner in corners:
        index = (*corner, *[0] * (second.GetDimension() - 3))
        place = second.TransformIndexToPhysicalPoint(index)[:3]
        assert np.allclose(first.TransformIndexToPhysicalPoint(corner), place, atol=1e-3)


class TestLoneSlices:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_one_slice_along_any_axis(self, tmp_path: Path, axis: int) -> None:
        body = ellipsoid((28, 24), (13, 12), (9, 7))
        array = np.expand_dims(np.where(body, 200, 20).astype(np.int16), axis)
        spacing = np.insert([0.8, 0.8], axis, 5.0)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), tmp_path / "a.nii")
        volume = load_volume(tmp_path / "a.nii")
        click = tuple(np.insert([13, 12], axis, 0).tolist())
        prediction = predictor_of(ShadeModel()).predict(volume, PromptSet((click,)))
        assert prediction.slices == (0,)
        assert prediction.mask.shape == volume.shape_ijk
        assert dice(prediction.mask.squeeze(axis), body) > 0.9

    def test_coarse_pixels_do_not_make_lines_of_a_slice(self, tmp_path: Path) -> None:
        """A picture of 10 dots per inch, or a NIfTI that says 1 mm where there is nothing to measure."""
        (disc,) = picture(tmp_path / "a.png", {(500, 100): (200, 180, 170)})
        with Image.open(tmp_path / "a.png") as image:
            image.save(tmp_path / "a.jpg", dpi=(10, 10), quality=95)
        volume = load_volume(tmp_path / "a.jpg")
        assert volume.spacing_mm == pytest.approx((2.54, 2.54, 1.0))
        model = ShadeModel()
        prediction = predictor_of(model).predict(volume, PromptSet(((500, 100, 0),)))
        assert prediction.slices == (0,)
        assert dice(prediction.mask[..., 0], disc) > 0.9

    def test_a_real_network_answers_a_slice_of_one_row(self, tiny_model: MedSA) -> None:
        volume = Volume(np.arange(9, dtype=np.uint8).reshape(9, 1, 1), np.eye(4))
        prediction = predictor_of(tiny_model).predict(volume, PromptSet(((4, 0, 0),)))
        assert prediction.mask.shape == (9, 1, 1)
        assert prediction.mask[4, 0, 0] == 1

    def test_one_voxel(self, tiny_model: MedSA) -> None:
        volume = Volume(np.full((1, 1, 1, 3), 200, np.uint8), np.eye(4))
        prediction = predictor_of(tiny_model, IntensitySettings()).predict(volume, PromptSet(((0, 0, 0),)))
        assert prediction.mask.tolist() == [[[1]]]
