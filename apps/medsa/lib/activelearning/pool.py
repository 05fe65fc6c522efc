"""All cases as numbers, from which strategies choose."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lib.scoring.scores import CaseScore, ScoreTable, stable_order

Array = NDArray[np.float64]
# A label of which less than this part of the usual volume is expected is taken to be absent.
ABSENT = 0.1


@dataclass(frozen=True, eq=False)
class Pool:
    """`cases` (n) and what is known of each; `labels` (l) are names.

    `labelled` and `held` (n,) bool: the latter are unlabelled and in somebody's hands. `entropy`, `border`,
    `disagreement` and `volume_mm3` (n, l) are NaN where a case has no score.
    `embedding` (n, d) is NaN where there is none; each dimension has mean 0 and deviation 1. `trained` (n,) bool says
    whether the version that scored a case was trained at all.
    """

    cases: tuple[str, ...]
    labels: tuple[str, ...]
    labelled: NDArray[np.bool_]
    entropy: Array
    border: Array
    disagreement: Array
    volume_mm3: Array
    embedding: NDArray[np.float32]
    trained: NDArray[np.bool_]
    held: NDArray[np.bool_]

    @cached_property
    def uncertainty(self) -> Array:
        """(n, l), 0 to 1; NaN where there is no score."""
        return (self.entropy + self.border + self.disagreement) / 3.0

    @cached_property
    def expected(self) -> NDArray[np.bool_]:
        """(n, l): where the label is expected to be. Where nothing is known it may be."""
        volume = self.volume_mm3
        found = np.where(volume > 0, volume, np.nan)
        usual = [
            float(np.median(column[~np.isnan(column)])) if (~np.isnan(column)).any() else 0.0
            for column in found.T
        ]
        return np.isnan(volume) | (volume > ABSENT * np.asarray(usual))

    @property
    def unlabelled(self) -> NDArray[np.intp]:
        """Places of the cases to choose from."""
        return np.flatnonzero(~self.labelled)

    @cached_property
    def described(self) -> NDArray[np.bool_]:
        """(n,): which have an embedding."""
        return (
            ~np.isnan(self.embedding).any(axis=1) if self.embedding.size else np.zeros(len(self.cases), bool)
        )

    def with_labelled(self, labelled: Collection[str], held: Collection[str] = ()) -> "Pool":
        """The same cases, of which other ones are labelled, and others in somebody's hands."""
        return replace(
            self,
            labelled=np.array([case in labelled for case in self.cases], bool),
            held=np.array([case in held and case not in labelled for case in self.cases], bool),
        )


def pool_of(
    cases: Iterable[str], labels: Sequence[str], table: ScoreTable, labelled: Collection[str] = ()
) -> Pool:
    """The pool of `cases`, in an order that has nothing to do with their names, with what `table` says of them."""
    ordered = tuple(sorted(cases, key=stable_order))
    entries = [table.cases.get(case) for case in ordered]
    scores = np.array([_row(entry, labels) for entry in entries], dtype=np.float64).reshape(
        len(ordered), len(labels), 4
    )
    return Pool(
        ordered,
        tuple(labels),
        np.array([case in labelled for case in ordered], bool),
        scores[..., 0],
        scores[..., 1],
        scores[..., 2],
        scores[..., 3],
        _embeddings(entries),
        np.array([entry is not None and entry.adapter_version > 0 for entry in entries], bool),
        np.zeros(len(ordered), bool),
    )


def _row(entry: CaseScore | None, labels: Sequence[str]) -> list[tuple[float, ...]]:
    nothing = (np.nan,) * 4
    if entry is None:
        return [nothing] * len(labels)
    found = (entry.labels.get(label) for label in labels)
    return [
        nothing if one is None else (one.entropy, one.border, one.disagreement, one.volume_mm3)
        for one in found
    ]


def _embeddings(entries: Sequence[CaseScore | None]) -> NDArray[np.float32]:
    """(n, d), standardised; of the view that most cases were described in."""
    described = [entry for entry in entries if entry is not None and entry.embedding.size]
    kinds = Counter(_kind(entry) for entry in described)
    if not kinds:
        return np.full((len(entries), 0), np.nan, np.float32)
    ((kind, _),) = kinds.most_common(1)
    rows = np.full((len(entries), kind[2]), np.nan, np.float32)
    places = [place for place, entry in enumerate(entries) if entry is not None and _kind(entry) == kind]
    rows[places] = standardised(np.stack([entries[place].embedding for place in places]))  # type: ignore[union-attr]
    return rows


def _kind(entry: CaseScore) -> tuple[str, str, int]:
    """Embeddings of one kind can be compared."""
    return entry.base, entry.view, len(entry.embedding)


def standardised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """With mean 0 and deviation 1 in each column; 0 where a column is constant."""
    centred = rows - rows.mean(axis=0)
    deviation = centred.std(axis=0)
    return np.where(deviation > 1e-6, centred / np.maximum(deviation, 1e-6), 0.0).astype(np.float32)
