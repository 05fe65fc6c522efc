"""Model intensities do not depend on a scanner's units."""

import numpy as np
import pytest

from lib.settings import IntensitySettings
from lib.transforms.intensity import intensity_window, to_model_range

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


def before_windows(array: np.ndarray, settings: IntensitySettings) -> np.ndarray:
    """The whole volume in one go, with NumPy's percentiles."""
    values = np.asarray(array, dtype=np.float32)
    low, high = (float(value) for value in np.percentile(values, settings.percentiles))
    if settings.window_hu is not None:
        low, high = settings.window_hu
    elif not low < high:
        low, high = float(values.min()), float(values.max())
    if not high > low:
        return np.zeros_like(values)
    share = (values - np.float32(low)) / np.float32(high - low)
    return np.clip(share, 0.0, 1.0) * np.float32(255)


@pytest.mark.parametrize("settings", [PERCENTILE, WINDOW, IntensitySettings(percentiles=(0, 100))])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_a_part_with_the_volumes_window_is_the_volumes_part_to_the_bit(
    image: np.ndarray, settings: IntensitySettings, kind: type
) -> None:
    volume = (image / 3).astype(kind)
    window = intensity_window(volume, settings)
    expected = before_windows(volume, settings)
    assert np.array_equal(to_model_range(volume, settings), expected)
    for index in range(volume.shape[2]):
        assert np.array_equal(to_model_range(volume[..., index], settings, window), expected[..., index])


def test_a_window_of_no_width_gives_zeros(image: np.ndarray) -> None:
    assert intensity_window(np.full((3, 3, 3), 7.5), PERCENTILE) == (7.5, 7.5)
    assert not to_model_range(image, PERCENTILE, (7.5, 7.5)).any()


def test_the_window_falls_back_to_the_extremes() -> None:
    image = np.zeros((20, 20, 20), dtype=np.int16)
    image[3, 4, 5] = 9
    assert intensity_window(image, PERCENTILE) == (0.0, 9.0)


def test_the_values_of_all_colours_count_together(image: np.ndarray) -> None:
    colour = np.stack([image, 2 * image, 3 * image], axis=-1)
    assert intensity_window(colour, PERCENTILE) == intensity_window(colour.reshape(12, -1), PERCENTILE)
    assert intensity_window(colour, PERCENTILE)[1] > intensity_window(image, PERCENTILE)[1]
    assert np.array_equal(to_model_range(colour, PERCENTILE), before_windows(colour, PERCENTILE))
