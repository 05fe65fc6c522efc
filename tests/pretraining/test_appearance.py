"""How made slices look."""

import numpy as np
import pytest

from lib.pretraining.appearance import draw_palette, paint
from lib.pretraining.scenes import draw_scene

SIZE = 96


def painted(seed: int, thick: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The image, and the label map that it shows."""
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng)
    labels = [scene.cut(height, SIZE).labels for height in ((0.0, 0.05) if thick else (0.0,))]
    return paint(rng, draw_palette(rng, scene.label_count), labels, SIZE / 256), labels[0]


@pytest.mark.parametrize("thick", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_images_are_usable(seed: int, thick: bool) -> None:
    image, _ = painted(seed, thick)
    assert image.shape == (SIZE, SIZE)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 255
    assert np.isfinite(image).all()
    assert image.std() > 1


def test_what_has_another_label_looks_different_more_often_than_not() -> None:
    """The share of an image's variance that the labels explain."""
    explained = []
    for seed in range(30):
        image, labels = painted(seed)
        means = np.array(
            [image[labels == value].mean() if (labels == value).any() else 0.0 for value in range(99)]
        )
        explained.append(means[labels].var() / image.var())
    assert np.median(explained) > 0.5
    assert min(explained) < 0.9  # and noise, blur or bias hide some of it


def test_a_thick_slice_shows_mostly_the_slice_that_is_meant() -> None:
    rng = np.random.default_rng(0)
    here, away = np.zeros((SIZE, SIZE), dtype=np.int32), np.zeros((SIZE, SIZE), dtype=np.int32)
    here[:, :48], away[:, 60:] = 1, 1
    closer = 0
    for _ in range(20):
        palette = draw_palette(rng, 2)
        image = paint(rng, palette, [here, away], SIZE / 256)
        contrasts = [abs(image[one == 1].mean() - image[one == 0].mean()) for one in (here, away)]
        closer += contrasts[0] >= contrasts[1]
    assert closer >= 15
