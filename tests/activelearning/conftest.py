"""Pools as numbers, without images."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytest

from lib.activelearning.pool import Pool, pool_of
from lib.scoring.scores import CaseScore, LabelScore, ScoreTable


@pytest.fixture
def make_pool() -> Callable[..., Pool]:
    """make_pool({case: (uncertainty of each label, embedding)}, labels, labelled, version) -> a pool."""

    def make(
        cases: Mapping[str, Any],
        labels: Collection[str] = ("liver",),
        labelled: Collection[str] = (),
        version: int = 1,
        volumes: Mapping[str, Any] | None = None,
    ) -> Pool:
        table = {}
        for case, found in cases.items():
            if found is None:
                continue
            values, embedding = found
            sizes = (volumes or {}).get(case, (100.0,) * len(values))
            scores = {
                label: LabelScore(value, value, value, size)
                for label, value, size in zip(labels, values, sizes, strict=True)
            }
            table[case] = CaseScore("vit_t", version, scores, np.asarray(embedding, np.float32))
        return pool_of(cases, tuple(labels), ScoreTable(table), labelled)

    return make
