"""The classical baseline of benchmarks/base.py: a random walker (Grady 2006) from the clicks or the box of the user."""

import warnings
from collections.abc import Sequence

import numpy as np
from base_data import Target
from base_user import Click, Record, exact_box, overlap
from numpy.typing import NDArray
from skimage.segmentation import random_walker
from skimage.transform import resize

LARGEST_SIDE = 128  # pixels; larger slices are made smaller, since the walker solves one equation a pixel
SEED_RADIUS = 1.5  # pixels
BOX_SEED_SHARE = 0.25  # half axes of the ellipse of seeds, as a share of the box's sides
BACKGROUND, OBJECT = 1, 2  # 0 is what the walker decides

BoolArray = NDArray[np.bool_]


def walker_dice(record: Record, at_clicks: Sequence[int]) -> dict[str, float]:
    """Dice from the first clicks of `record`, by their number, and from the exact box.

    A session that ended earlier has fewer clicks; then all of them are used.
    """
    target = record.target
    found = {str(count): from_clicks(target, record.clicks[:count]) for count in at_clicks}
    found["box"] = from_box(target, exact_box(target.truth))
    return {prompt: overlap(mask, target.truth).dice for prompt, mask in found.items()}


def from_clicks(target: Target, clicks: Sequence[Click]) -> BoolArray:
    """The mask (n_u, n_v): small discs at the clicks and the edge of the image are seeds."""
    shape = walker_shape(target.plane.shape)
    seeds = edge_seeds(shape)
    for positive in (False, True):  # positive ones last: none of them may be lost
        for click in clicks:
            if click.positive is positive:
                place = scaled(click.uv, target.plane.shape, shape)
                draw_ellipse(seeds, place, (SEED_RADIUS, SEED_RADIUS), OBJECT if positive else BACKGROUND)
    return walk(target, seeds)


def from_box(target: Target, box_uv: tuple[int, int, int, int]) -> BoolArray:
    """The mask (n_u, n_v): all outside of the box (u0, v0, u1, v1) is background, an ellipse amid it object."""
    shape = walker_shape(target.plane.shape)
    start, stop = (
        [edge * new / old for edge, new, old in zip(edges, shape, target.plane.shape, strict=True)]
        for edges in (box_uv[:2], box_uv[2:])
    )
    u, v = np.ogrid[: shape[0], : shape[1]]
    inside = (u + 0.5 > start[0]) & (u + 0.5 < stop[0]) & (v + 0.5 > start[1]) & (v + 0.5 < stop[1])
    seeds = edge_seeds(shape) if inside.all() else np.where(inside, 0, BACKGROUND)
    centre = ((start[0] + stop[0]) / 2 - 0.5, (start[1] + stop[1]) / 2 - 0.5)
    axes = ((stop[0] - start[0]) * BOX_SEED_SHARE, (stop[1] - start[1]) * BOX_SEED_SHARE)
    draw_ellipse(seeds, centre, axes, OBJECT)
    return walk(target, seeds)


def walker_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The shape the walker works in: the slice's, or a smaller one of the same proportions."""
    factor = min(1.0, LARGEST_SIDE / max(shape))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def scaled(uv: tuple[int, int], old: Sequence[int], new: Sequence[int]) -> tuple[float, float]:
    """A voxel's centre in the smaller slice, where 0 is the first pixel's centre."""
    return (uv[0] + 0.5) * new[0] / old[0] - 0.5, (uv[1] + 0.5) * new[1] / old[1] - 0.5


def edge_seeds(shape: tuple[int, int]) -> NDArray[np.int_]:
    """Seeds (n_u, n_v): background along the edge of the image, else nothing."""
    seeds = np.full(shape, BACKGROUND)
    seeds[1:-1, 1:-1] = 0
    return seeds


def draw_ellipse(
    seeds: NDArray[np.int_], centre: tuple[float, float], half_axes: tuple[float, float], value: int
) -> None:
    """Sets an ellipse (pixels) in `seeds`, in place; at least the pixel at its centre."""
    u, v = np.ogrid[: seeds.shape[0], : seeds.shape[1]]
    distance = ((u - centre[0]) / half_axes[0]) ** 2 + ((v - centre[1]) / half_axes[1]) ** 2
    seeds[distance <= 1.0] = value
    seeds[np.unravel_index(int(distance.argmin()), seeds.shape)] = value


def walk(target: Target, seeds: NDArray[np.int_]) -> BoolArray:
    """From `seeds`, in the walker's shape, to the mask (n_u, n_v) of the slice."""
    image = resize(target.plane / 255.0, seeds.shape, order=1, anti_aliasing=True)
    share = (seeds == OBJECT).astype(float)
    # A slice of one value has no edge to stop at (the walker would divide by its variation): seeds only.
    if (seeds == 0).any() and image.std() > 0:
        spacing = np.asarray(target.spacing_uv) / min(target.spacing_uv)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rounding, and of seeds that meet: neither matters here
            share = random_walker(image, seeds, mode="cg_j", return_full_prob=True, spacing=spacing)[1]
    return np.asarray(resize(share, target.plane.shape, order=1) > 0.5)
