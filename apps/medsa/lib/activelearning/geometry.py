"""Distances between embeddings (n, d) of images: how typical one is of all, and how unlike some it is."""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

NEIGHBOURS = 20  # after TypiClust (Hacohen et al., arXiv 2202.02794)
MOST_REFERENCES = 1000  # images that stand for all, where there are more
KMEANS_STEPS = 20

Rows = NDArray[np.float32]
Distances = NDArray[np.float64]


def typicality(rows: Rows, rng: np.random.Generator) -> Distances:
    """(n,): the inverse of the mean distance to the nearest 20 others, or to all where there are fewer.

    With more than a thousand images, to the nearest of a thousand that are drawn: in as many as there are the order
    hardly depends on which.
    """
    count = len(rows)
    if count < 2:
        return np.ones(count)
    references = np.arange(count)
    if count > MOST_REFERENCES:
        references = np.sort(rng.choice(count, MOST_REFERENCES, replace=False))
    distances = cdist(rows, rows[references])
    distances[references, np.arange(len(references))] = np.inf  # an image is no neighbour of its own
    near = min(NEIGHBOURS, len(references) - 1)
    nearest = np.partition(distances, near - 1, axis=1)[:, :near]
    return 1.0 / np.maximum(nearest.mean(axis=1), 1e-12)


def clusters(rows: Rows, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """(n,): which of at most `count` clusters each image is in, by k-means."""
    count = min(count, len(rows))
    if count < 2:
        return np.zeros(len(rows), np.intp)
    count = min(count, len(np.unique(rows, axis=0)))  # images may be the same
    if count < 2:
        return np.zeros(len(rows), np.intp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a cluster that runs empty stays so, which is no harm
        _, places = kmeans2(rows, count, iter=KMEANS_STEPS, minit="++", seed=rng)
    return np.asarray(places, np.intp)


def distance_to_nearest(rows: Rows, among: Rows) -> Distances:
    """(n,): to the nearest of `among` (m, d); infinite where there is none."""
    if len(among) == 0:
        return np.full(len(rows), np.inf)
    return np.asarray(cdist(rows, among).min(axis=1))
