"""One scale for images, points, boxes and masks; nothing swapped, nothing shifted."""

import numpy as np
import pytest
import torch

from lib.transforms.geometry import (
    PlaneGeometry,
    in_plane_axes,
    plane_geometry,
    put_planes,
    slice_axis,
    split_point,
    take_planes,
)

# size_uv, spacing_uv, image_size: enlarging, shrinking, odd sizes, either side longer, strong anisotropy
PLANES = [
    ((35, 50), (1.0, 1.0), 256),
    ((50, 35), (1.0, 1.0), 256),
    ((37, 51), (0.9, 1.3), 64),
    ((256, 256), (1.37, 1.37), 256),
    ((301, 217), (0.7, 0.7), 128),
    ((40, 12), (1.0, 6.5), 256),
    ((9, 64), (8.0, 0.5), 64),
    ((1, 7), (1.0, 1.0), 64),
]


def geometry_of(plane: tuple[tuple[int, int], tuple[float, float], int]) -> PlaneGeometry:
    size_uv, spacing_uv, image_size = plane
    return PlaneGeometry(size_uv, spacing_uv, image_size, image_size // 4)


@pytest.fixture(params=PLANES, ids=str)
def geometry(request: pytest.FixtureRequest) -> PlaneGeometry:
    return geometry_of(request.param)


def blob(geometry: PlaneGeometry, centre_uv: tuple[float, float], sigma: float) -> torch.Tensor:
    u = torch.arange(geometry.size_uv[0])[:, None] - centre_uv[0]
    v = torch.arange(geometry.size_uv[1])[None, :] - centre_uv[1]
    return torch.exp(-(u**2 + v**2) / (2 * sigma**2))[None]


def centre_of_mass_xy(image: torch.Tensor) -> list[float]:
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in image.shape), indexing="ij")
    weights = image.double() / image.double().sum()
    return [float((weights * x).sum()), float((weights * y).sum())]


class TestSliceAxis:
    @pytest.mark.parametrize(
        ("spacing_mm", "axis"),
        [((1, 1, 1), 2), ((1, 1, 5), 2), ((5, 1, 1), 0), ((1, 5, 1), 1), ((3, 3, 1), 1)],
    )
    def test_takes_the_largest_spacing_and_the_last_of_equal_ones(
        self, spacing_mm: tuple[float, float, float], axis: int
    ) -> None:
        assert slice_axis(spacing_mm) == axis

    def test_noise_of_an_oblique_affine_decides_nothing(self) -> None:
        assert slice_axis((0.9 + 1e-9, 0.9, 0.9 - 1e-9)) == 2

    @pytest.mark.parametrize(("choice", "axis"), [("i", 0), ("j", 1), ("k", 2)])
    def test_a_choice_wins(self, choice: str, axis: int) -> None:
        assert slice_axis((1.0, 7.0, 2.0), choice) == axis  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("shape_ijk", "axis"),
        [((7, 5, 1), 2), ((7, 1, 5), 1), ((1, 7, 5), 0), ((7, 5, 2), 0), ((7, 1, 1), 2), (None, 0)],
    )
    def test_a_lone_slice_is_looked_at_from_the_front(
        self, shape_ijk: tuple[int, int, int] | None, axis: int
    ) -> None:
        """Large pixels of a picture do not make lines of it."""
        assert slice_axis((3.0, 2.0, 2.0), "auto", shape_ijk) == axis
        assert slice_axis((3.0, 2.0, 2.0), "j", shape_ijk) == 1


class TestPlanes:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_colours_stay_behind(self, axis: int) -> None:
        array = np.arange(3 * 4 * 5 * 3).reshape(3, 4, 5, 3)
        planes = take_planes(array, axis, [2, 0])
        for channel in range(3):
            assert np.array_equal(planes[..., channel], take_planes(array[..., channel], axis, [2, 0]))

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_take_and_put_are_inverse(self, axis: int) -> None:
        array = np.arange(3 * 4 * 5).reshape(3, 4, 5)
        order = list(range(array.shape[axis]))[::-1]
        planes = take_planes(array, axis, order)
        u, v = in_plane_axes(axis)
        assert planes.shape == (array.shape[axis], array.shape[u], array.shape[v])
        target = np.zeros_like(array)
        put_planes(target, planes, axis, order)
        assert np.array_equal(target, array)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_voxel_is_found_in_its_slice(self, axis: int) -> None:
        array = np.zeros((3, 4, 5))
        array[2, 3, 1] = 1
        index, (u, v) = split_point((2, 3, 1), axis)
        assert take_planes(array, axis, [index])[0, u, v] == 1

    def test_only_the_named_slices_are_written(self) -> None:
        target = np.zeros((2, 2, 4))
        put_planes(target, np.ones((1, 2, 2)), 2, [3])
        assert target.sum() == 4
        assert target[..., 3].all()

    def test_a_copy_is_taken(self) -> None:
        array = np.zeros((2, 2, 2))
        take_planes(array, 0, [0])[:] = 1
        assert array.sum() == 0


class TestPoints:
    def test_round_trip(self, geometry: PlaneGeometry) -> None:
        points = np.random.default_rng(0).uniform(0, 1, (50, 2)) * (np.array(geometry.size_uv) - 1)
        assert np.allclose(geometry.points_to_voxel(geometry.points_to_model(points)), points, atol=1e-9)

    def test_physical_aspect_is_kept_to_half_a_pixel(self, geometry: PlaneGeometry) -> None:
        width, height = geometry.content_xy
        assert max(width, height) == geometry.image_size
        extent_u, extent_v = np.array(geometry.size_uv) * geometry.spacing_uv
        longest = max(extent_u, extent_v)
        assert abs(width - geometry.image_size * extent_u / longest) <= 0.5
        assert abs(height - geometry.image_size * extent_v / longest) <= 0.5

    def test_corners_stay_inside_the_content(self, geometry: PlaneGeometry) -> None:
        corner = geometry.points_to_model(np.array(geometry.size_uv)[None] - 1)[0]
        assert (corner <= np.array(geometry.content_xy) - 0.5).all()
        assert (geometry.points_to_model(np.zeros((1, 2)))[0] >= -0.5).all()

    def test_identity_where_nothing_is_scaled(self) -> None:
        geometry = PlaneGeometry((64, 64), (2.0, 2.0), 64, 16)
        assert geometry.points_to_model(np.array([[3, 60]])).tolist() == [[3.0, 60.0]]

    def test_a_known_number(self) -> None:
        # 32x16 voxels to 64x32 pixels: voxel 3 covers the pixel edges 6 to 8, its centre is pixel index 6.5.
        geometry = PlaneGeometry((32, 16), (1.0, 1.0), 64, 16)
        assert geometry.points_to_model(np.array([[3, 0]])).tolist() == [[6.5, 0.5]]

    def test_no_points(self) -> None:
        assert PlaneGeometry((8, 8), (1.0, 1.0), 64, 16).points_to_model(np.zeros((0, 2))).shape == (0, 2)

    def test_plane_of_a_volume(self) -> None:
        geometry = plane_geometry((10, 20, 30), (1.0, 2.0, 3.0), 1, 64, 16)
        assert geometry.size_uv == (10, 30)
        assert geometry.spacing_uv == (1.0, 3.0)
        assert geometry.content_xy == (7, 64)


class TestBoxes:
    def test_the_whole_plane_is_the_whole_content(self, geometry: PlaneGeometry) -> None:
        box = geometry.boxes_to_model(np.array([[0, 0, *geometry.size_uv]]))[0]
        width, height = geometry.content_xy
        assert np.allclose(box, [-0.5, -0.5, width - 0.5, height - 0.5])

    def test_a_box_of_one_voxel_is_centred_on_it(self, geometry: PlaneGeometry) -> None:
        u, v = geometry.size_uv[0] // 2, geometry.size_uv[1] // 3
        x0, y0, x1, y1 = geometry.boxes_to_model(np.array([[u, v, u + 1, v + 1]]))[0]
        assert np.allclose([(x0 + x1) / 2, (y0 + y1) / 2], geometry.points_to_model(np.array([[u, v]]))[0])
        assert np.allclose([x1 - x0, y1 - y0], geometry.scale_xy)


class TestImages:
    @pytest.mark.parametrize("plane", PLANES[:5], ids=str)
    def test_a_blob_lands_where_its_point_lands(
        self, plane: tuple[tuple[int, int], tuple[float, float], int]
    ) -> None:
        geometry = geometry_of(plane)
        n_u, n_v = geometry.size_uv
        centre = (n_u // 3, 2 * n_v // 3)
        sigma = 1.0 + 1.5 / float(geometry.scale_xy.min())
        image = geometry.planes_to_model(blob(geometry, centre, sigma))[0, 0]
        expected = geometry.points_to_model(np.array([centre]))[0]
        assert np.allclose(centre_of_mass_xy(image), expected, atol=0.1)
        peak_y, peak_x = np.unravel_index(int(image.argmax()), image.shape)
        assert abs(peak_x - expected[0]) <= 0.5 + 1e-6
        assert abs(peak_y - expected[1]) <= 0.5 + 1e-6

    def test_padding_is_exactly_zero_and_content_keeps_its_value(self, geometry: PlaneGeometry) -> None:
        image = geometry.planes_to_model(torch.full((2, *geometry.size_uv), 200.0))
        size = geometry.image_size
        assert image.shape == (2, 3, size, size)
        width, height = geometry.content_xy
        assert torch.allclose(image[..., :height, :width], torch.tensor(200.0))
        assert torch.count_nonzero(image[..., height:, :]) == 0
        assert torch.count_nonzero(image[..., :, width:]) == 0

    def test_columns_are_u(self) -> None:
        geometry = PlaneGeometry((4, 2), (1.0, 1.0), 4, 1)
        plane = torch.arange(8.0).reshape(1, 4, 2)
        assert torch.equal(geometry.planes_to_model(plane)[0, 0, :2], plane[0].T)

    def test_colours_are_the_channels_in_their_order(self) -> None:
        geometry = PlaneGeometry((4, 2), (1.0, 1.0), 4, 1)
        plane = torch.arange(24.0).reshape(1, 4, 2, 3)
        image = geometry.planes_to_model(plane)
        assert image.shape == (1, 3, 4, 4)
        for channel in range(3):
            assert torch.equal(image[0, channel, :2], plane[0, ..., channel].T)
        assert torch.count_nonzero(image[..., 2:, :]) == 0

    @pytest.mark.parametrize("plane", PLANES[:7], ids=str)
    def test_grey_in_colour_is_grey(self, plane: tuple[tuple[int, int], tuple[float, float], int]) -> None:
        geometry = geometry_of(plane)
        grey = 255 * torch.rand(2, *geometry.size_uv, generator=torch.Generator().manual_seed(0))
        colour = grey[..., None].repeat(1, 1, 1, 3)
        assert torch.allclose(geometry.planes_to_model(colour), geometry.planes_to_model(grey), atol=1e-3)

    def test_an_unscaled_image_is_unchanged(self) -> None:
        geometry = PlaneGeometry((64, 64), (1.37, 1.37), 64, 16)
        plane = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(geometry.planes_to_model(plane)[0, 2], plane[0].T)


class TestMasks:
    @pytest.mark.parametrize("plane", PLANES[:7], ids=str)
    def test_a_ramp_of_pixel_numbers_gives_each_voxel_its_own_pixel(
        self, plane: tuple[tuple[int, int], tuple[float, float], int]
    ) -> None:
        geometry = geometry_of(plane)
        pixels = (torch.arange(geometry.mask_size) + 0.5) * 4 - 0.5  # of the model's image
        for axis in (0, 1):
            ramp = pixels[None, :] if axis == 0 else pixels[:, None]
            logits = ramp.expand(geometry.mask_size, geometry.mask_size)[None]
            voxels = geometry.logits_to_voxels(logits)[0]
            assert voxels.shape == geometry.size_uv
            points = np.zeros((geometry.size_uv[axis], 2))
            points[:, axis] = np.arange(geometry.size_uv[axis])
            expected = geometry.points_to_model(points)[:, axis]
            inner = (expected > 2) & (expected < geometry.content_xy[axis] - 4)  # the border is clamped
            found = voxels.select(1 - axis, 0).numpy()
            assert inner.any()
            assert np.allclose(found[inner], expected[inner], atol=1e-3)

    def test_a_mask_comes_back(self, geometry: PlaneGeometry) -> None:
        n_u, n_v = geometry.size_uv
        mask = torch.zeros(1, n_u, n_v)
        mask[:, n_u // 4 : max(n_u // 4 + 1, 3 * n_u // 4), n_v // 3 : max(n_v // 3 + 1, 2 * n_v // 3)] = 1
        logits = geometry.masks_to_logits(mask)
        assert logits.shape == (1, geometry.mask_size, geometry.mask_size)
        back = geometry.logits_to_voxels(logits) > 0
        dice = 2 * float((back * mask).sum()) / float(back.sum() + mask.sum())
        pixels_per_voxel = float(geometry.scale_xy.min()) / 4
        assert dice > (0.95 if pixels_per_voxel > 0.5 else 0.85)

    def test_padding_is_certainly_outside(self, geometry: PlaneGeometry) -> None:
        logits = geometry.masks_to_logits(torch.ones(1, *geometry.size_uv))[0]
        width, height = (-(-side // 4) for side in geometry.content_xy)  # rounded up: partly covered pixels
        assert torch.equal(logits[height:], torch.full_like(logits[height:], -8.0))
        assert torch.equal(logits[:, width:], torch.full_like(logits[:, width:], -8.0))
        full_x, full_y = (side // 4 for side in geometry.content_xy)
        assert torch.allclose(logits[:full_y, :full_x], torch.tensor(8.0), atol=1e-4)

    def test_area_is_kept(self, geometry: PlaneGeometry) -> None:
        mask = (torch.rand(1, *geometry.size_uv, generator=torch.Generator().manual_seed(1)) > 0.6).float()
        share = (geometry.masks_to_logits(mask)[0] / 8 + 1) / 2
        voxels = share.sum() * 16 / float(np.prod(geometry.scale_xy))
        assert float(voxels) == pytest.approx(float(mask.sum()), rel=1e-4)

    def test_half_covered_is_undecided(self) -> None:
        geometry = PlaneGeometry((8, 8), (1.0, 1.0), 16, 4)  # 2 voxels to a prompt pixel
        mask = torch.zeros(1, 8, 8)
        mask[0, 0, :2] = 1  # u = 0 of the first prompt pixel
        logits = geometry.masks_to_logits(mask)[0]
        assert float(logits[0, 0]) == pytest.approx(0.0, abs=1e-5)
        assert float(logits[0, 1]) == -8.0


class TestMaskPixels:
    def test_a_mask_pixel_is_a_block_of_model_pixels(self) -> None:
        geometry = PlaneGeometry((8, 8), (1.0, 1.0), 64, 16)
        centres = geometry.mask_pixels_to_model(np.array([(0, 0), (3, 15)]))
        assert centres.tolist() == [[1.5, 1.5], [13.5, 61.5]]
        assert geometry.model_to_mask_pixels(centres).tolist() == [[0.0, 0.0], [3.0, 15.0]]

    def test_every_model_pixel_rounds_to_the_mask_pixel_that_covers_it(self) -> None:
        geometry = PlaneGeometry((8, 8), (1.0, 1.0), 64, 16)
        pixels = np.arange(64)
        rounded = np.rint(geometry.model_to_mask_pixels(np.stack([pixels, pixels], axis=1)))
        assert np.array_equal(rounded[:, 0], pixels // 4)
