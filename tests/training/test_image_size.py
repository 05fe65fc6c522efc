import dataclasses

import pytest

from lib.training.image_size import fitting_size
from lib.transforms.geometry import plane_geometry


def slices(shape, spacing=(1.0, 1.0, 1.0)):
    return plane_geometry(shape, spacing, 2, 256, 128)


@pytest.fixture
def spec(tiny_spec):
    """32 x 32 tokens and masks of 128 pixels, as vit_t has them."""
    return dataclasses.replace(tiny_spec, image_size=256, patch_size=8)


def test_slices_that_half_of_the_pixels_resolve_get_half(spec):
    assert fitting_size(spec, [slices((35, 50, 36)), slices((64, 40, 9))]) == 128


@pytest.mark.parametrize(
    ("shape", "spacing"), [((65, 20, 9), (1, 1, 1)), ((40, 40, 9), (1, 0.5, 1)), ((256, 256, 9), (1, 1, 8))]
)
def test_one_case_that_they_do_not_resolve_decides(spec, shape, spacing):
    assert fitting_size(spec, [slices((35, 50, 36)), slices(shape, spacing)]) == 256


def test_large_bases_are_halved_more_than_once_but_never_below_16_tokens(tiny_spec):
    large = dataclasses.replace(tiny_spec, image_size=1024, patch_size=16)
    assert fitting_size(large, [slices((100, 100, 9))]) == 512
    assert fitting_size(large, [slices((35, 50, 36))]) == 256
    assert fitting_size(large, [slices((5, 5, 9))]) == 256


def test_a_grid_that_is_no_power_of_two_stays_whole(tiny_spec):
    odd = dataclasses.replace(tiny_spec, image_size=33 * 8, patch_size=8)
    assert fitting_size(odd, [slices((5, 5, 9))]) == 264
