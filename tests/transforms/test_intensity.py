"""Model intensities do not depend on a scanner's units."""

import numpy as np
import pytest

from lib.settings import IntensitySettings
from lib.transforms.intensity import to_model_range

PERCENTILE = IntensitySettings()
WINDOW = IntensitySettings(kind="window", window_hu=(-160, 240))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).gamma(2.0, 50.0, (12, 10, 8)).astype(np.float32)


def test_range_and_type(image: np.ndarray) -> None:
    result = to_model_range(image, PERCENTILE)
    assert result.dtype == np.float32
    assert result.shape == image.shape
    assert (result.min(), result.max()) == (0.0, 255.0)


def test_a_factor_and_an_offset_change_nothing(image: np.ndarray) -> None:
    expected = to_model_range(image, PERCENTILE)
    assert np.allclose(to_model_range(image * 6800 + 1e5, PERCENTILE), expected, atol=0.1)


def test_outliers_are_clipped(image: np.ndarray) -> None:
    spoiled = image.copy()
    spoiled[0, 0, 0] = 1e9
    found, expected = to_model_range(spoiled, PERCENTILE), to_model_range(image, PERCENTILE)
    assert found[0, 0, 0] == 255
    assert np.allclose(found.ravel()[1:], expected.ravel()[1:], atol=8)


def test_statistics_are_those_of_the_whole_volume(image: np.ndarray) -> None:
    slice_alone = to_model_range(image[..., :1], PERCENTILE)
    assert not np.allclose(to_model_range(image, PERCENTILE)[..., :1], slice_alone)


@pytest.mark.parametrize("value", [0.0, 7.5, -1e6])
def test_a_constant_volume_gives_zeros(value: float) -> None:
    assert not to_model_range(np.full((3, 3, 3), value), PERCENTILE).any()


def test_a_small_object_in_an_empty_field_is_seen() -> None:
    image = np.zeros((20, 20, 20))
    image[3, 4, 5] = 9
    result = to_model_range(image, PERCENTILE)
    assert result[3, 4, 5] == 255
    assert result.sum() == 255


def test_a_window_maps_its_ends() -> None:
    values = np.array([-1000, -160, 40, 240, 3000], dtype=np.int16)
    assert to_model_range(values, WINDOW).tolist() == [0.0, 0.0, 127.5, 255.0, 255.0]


def test_the_input_is_left_alone(image: np.ndarray) -> None:
    before = image.copy()
    to_model_range(image, PERCENTILE)
    assert np.array_equal(image, before)
