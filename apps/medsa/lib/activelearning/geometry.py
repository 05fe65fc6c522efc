"""Distances between embeddings (n, d) of images: how typical one is of all, and how unlike some it is."""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

NEIGHBOURS = 20  # after TypiClust (Hacohen et al., arXiv 2202.02794)
MOST_REFERENCES = 1000  # images that stand for all, where there are more
KMEANS_STEPS = 20

Rows = NDArray[np.float32]
Distances = NDArray[np.float32]


def typicality(rows: Rows, rng: np.random.Generator) -> Distances:
    """(n,): the inverse of the mean distance to the nearest 20 others, or to all where there are fewer.

    With more than a thousand images, to the nearest of a thousand that are drawn: the order hardly depends on which.
    """
    if len(rows) < 2:
        return np.ones(len(rows), np.float32)
    references = _references(len(rows), rng)
    found = distances(rows, rows[references])
    found[references, np.arange(len(references))] = np.inf  # an image is no neighbour of its own
    near = min(NEIGHBOURS, len(references) - 1)
    nearest = np.partition(found, near - 1, axis=1)[:, :near]
    return 1.0 / np.maximum(nearest.mean(axis=1), 1e-6)


def clusters(rows: Rows, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """(n,): which of at most `count` clusters each image is in, by k-means; of many a thousand make the clusters."""
    if len(rows) == 0:
        return np.zeros(0, np.intp)
    drawn = rows[_references(len(rows), rng)]
    count = min(count, len(np.unique(drawn, axis=0)))  # images may be the same
    if count < 2:
        return np.zeros(len(rows), np.intp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a cluster that runs empty stays so, which is no harm
        centres, _ = kmeans2(drawn, count, iter=KMEANS_STEPS, minit="++", seed=rng)
    return distances(rows, centres.astype(np.float32)).argmin(axis=1)


def distance_to_nearest(rows: Rows, among: Rows) -> Distances:
    """(n,): to the nearest of `among` (m, d); infinite where there is none."""
    nearest = np.full(len(rows), np.inf, np.float32)
    for start in range(0, len(among), MOST_REFERENCES):  # so that memory does not grow with both
        found = distances(rows, among[start : start + MOST_REFERENCES]).min(axis=1)
        nearest = np.minimum(nearest, found)
    return nearest


def distances(rows: Rows, others: Rows) -> Distances:
    """(n, m), Euclidean; by a product of matrices, which is many times as fast as one pair after the other."""
    squares = (rows * rows).sum(axis=1)[:, None] + (others * others).sum(axis=1) - 2.0 * (rows @ others.T)
    return np.sqrt(np.maximum(squares, 0.0))


def _references(count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Places of the images that stand for all."""
    if count <= MOST_REFERENCES:
        return np.arange(count)
    return np.sort(rng.choice(count, MOST_REFERENCES, replace=False))
