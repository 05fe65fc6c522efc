"""Percentiles are NumPy's, to the bit."""

import numpy as np
import pytest

from lib.transforms import percentiles as module
from lib.transforms.percentiles import percentiles

SHARES = (0, 0.5, 1, 25, 33.3, 50, 75, 99.5, 99.9, 100)


def numpys(array: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(np.asarray(array, dtype=np.float32), SHARES))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000, 4097])
@pytest.mark.parametrize(
    "kind", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64, np.float32, np.float64]
)
def test_any_type_and_size(size: int, kind: type) -> None:
    values = np.random.default_rng(size).normal(40, 30, size).astype(kind)
    assert percentiles(values, SHARES) == numpys(values)


@pytest.mark.parametrize("seed", range(20))
def test_many_orders_of_magnitude_and_both_signs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=3001) * 10.0 ** rng.uniform(-30, 30, 3001)).astype(np.float32)
    assert percentiles(values, SHARES) == numpys(values)


def test_integers_beyond_what_float32_tells_apart() -> None:
    values = np.random.default_rng(0).integers(-(2**31), 2**31 - 1, 5000).astype(np.int32)
    assert percentiles(values, SHARES) == numpys(values)


def test_mostly_one_value() -> None:
    values = np.zeros(2000, dtype=np.float32)
    values[:30] = np.linspace(-3, 3, 30)
    values[40] = -0.0
    assert percentiles(values, SHARES) == numpys(values)
    assert percentiles(np.full(50, -7.25), SHARES) == (-7.25,) * len(SHARES)


def test_neighbours_that_differ_in_the_last_bit() -> None:
    values = np.nextafter(np.float32(1000), np.float32(2000)) * np.ones(999, np.float32)
    values[::2] = 1000
    assert percentiles(values, SHARES) == numpys(values)


def test_more_than_one_piece_and_any_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).gamma(2, 100, (13, 11, 9, 3)).astype(np.float32)
    monkeypatch.setattr(module, "PIECE", 100)
    assert percentiles(values, SHARES) == numpys(values)
    assert percentiles(np.moveaxis(values, 2, 0), SHARES) == numpys(values)


def test_the_input_is_left_alone() -> None:
    values = np.random.default_rng(4).normal(size=500).astype(np.float32)
    before = values.copy()
    percentiles(values, SHARES)
    assert np.array_equal(values, before)
