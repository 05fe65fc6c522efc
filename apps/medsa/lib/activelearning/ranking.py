"""The order in which unlabelled cases are offered: pure functions from candidates to a list, best first."""

import hashlib
from collections.abc import Collection, Mapping

import numpy as np


def by_score(candidates: Collection[str], scores: Mapping[str, float]) -> list[str]:
    """The highest score first; cases without a score last, in an order that no listing or restart changes."""
    return sorted(candidates, key=lambda case_id: _score_key(case_id, scores.get(case_id)))


def shuffled(candidates: Collection[str], rng: np.random.Generator) -> list[str]:
    """Any order equally likely."""
    ordered = sorted(candidates)
    return [ordered[index] for index in rng.permutation(len(ordered))]


def by_name(candidates: Collection[str]) -> list[str]:
    """Alphabetical."""
    return sorted(candidates)


def _score_key(case_id: str, score: float | None) -> tuple[bool, float, str]:
    # By hash, not by name: neighbours in a listing are often the same patient.
    return score is None, -(score or 0.0), hashlib.sha256(case_id.encode()).hexdigest()
