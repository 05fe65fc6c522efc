"""The made abdomen: what an annotator needs to see is there."""

import numpy as np
import pytest

from lib.commands.phantom import LABELS, Phantom, make_phantom


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(np.random.default_rng(3))


def test_organs_differ_from_the_fat_around_them_and_from_each_other(phantom: Phantom) -> None:
    means = {name: phantom.image.array[phantom.label == value].mean() for name, value in LABELS.items()}
    assert 80 < means["liver"] < means["spleen"] < means["kidney"] < 190
    fat = phantom.image.array[(phantom.label == 0) & (phantom.image.array < 0) & (phantom.image.array > -200)]
    assert -110 < fat.mean() < -70


def test_every_organ_is_large_enough_to_click(phantom: Phantom) -> None:
    values, counts = np.unique(phantom.label, return_counts=True)
    assert values.tolist() == [0, *LABELS.values()]
    assert counts.min() > 500


def test_the_grid_is_anisotropic_oblique_and_not_cubic(phantom: Phantom) -> None:
    i, j, k = phantom.image.shape_ijk
    spacing = phantom.image.spacing_mm
    assert len({i, j, k}) == 3
    assert spacing[2] > 1.3 * spacing[0]
    directions = np.abs(phantom.image.affine[:3, :3] / spacing)
    assert 0.9 < directions.diagonal().min() < 0.9999
    assert phantom.image.array.dtype == np.int16


def test_the_liver_is_on_the_right_whichever_way_the_axes_run() -> None:
    for seed in range(4):
        phantom = make_phantom(np.random.default_rng(seed))
        middle = np.append(np.argwhere(phantom.label == LABELS["liver"]).mean(axis=0), 1.0)
        right_mm = (phantom.image.affine @ middle)[0]
        assert right_mm > 30


def test_a_seed_always_gives_the_same_case_and_another_seed_another_one(phantom: Phantom) -> None:
    again = make_phantom(np.random.default_rng(3))
    other = make_phantom(np.random.default_rng(4))
    assert again.image.content_key == phantom.image.content_key
    assert np.array_equal(again.label, phantom.label)
    assert other.image.content_key != phantom.image.content_key
