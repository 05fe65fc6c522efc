"""The record of a training run, and the card of the adapter it made."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lib.model.adapter_io import AdapterConfig
from lib.training.cases import Skipped
from lib.training.gate import MEASURES
from lib.training.suspicion import Suspicion
from lib.training.validation import ObjectScore, as_scores

HALF_WAY = " (the mean of the weights before and after them)"


@dataclass(frozen=True)
class RunRecord:
    """What one run did; a line of `runs.jsonl`. `decision` is "published", "refused", "stopped" or "failed".

    `champion` served when the run began, `kind`, `trigger`, `start` and `minutes` are those of its RunRequest,
    `version` is the published one. `label_digests` has every label that was offered, skipped ones too, `image_digests`
    those of the images of `validated`. `trained_labels` are the labels in the cases of `trained`, `patients` whom
    these are of, as far as the datastore knows. Of the cases that decided `validated` were never trained on, and each
    part of `left_out` was judged by a model trained without it (`method` "leave one out"); `held_back` are of patients
    who validate, and were not needed; `not_replayed` counts labels that an incremental run did not look at. `scores`
    has one entry per object of those, before and after. `suspicious` labels, of the cases that were `looked_at` for it,
    were used, and should be looked at again. `half_way`: what was published is the mean of the weights before and after
    training. `trained_minutes` are those of `minutes` that it trained, the ones before the checkpoint that it went on
    from included; `resumed` is the step of that (0: none), `events` are what was not planned. `view` says how cases
    were shown, `scoring` what else the scores depend on.
    """

    decision: str
    reasons: tuple[str, ...]
    time: str
    champion: int
    kind: str = "incremental"
    trigger: str = "person"
    start: str = "champion"
    minutes: float | None = None
    version: int | None = None
    label_digests: Mapping[str, str] = field(default_factory=dict)
    image_digests: Mapping[str, str] = field(default_factory=dict)
    trained: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()
    left_out: tuple[tuple[str, ...], ...] = ()
    held_back: tuple[str, ...] = ()
    not_replayed: int = 0
    method: str = "held out"
    trained_labels: tuple[str, ...] = ()
    patients: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    scores: Mapping[str, tuple[ObjectScore, ...]] = field(default_factory=dict)
    steps: int = 0
    trained_minutes: float | None = None
    loss: float | None = None
    suspicious: tuple[Suspicion, ...] = ()
    looked_at: tuple[str, ...] = ()
    resumed: int = 0
    events: tuple[str, ...] = ()
    half_way: bool = False
    code_version: str = ""
    view: str = ""
    scoring: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `runs.jsonl`."""
        return asdict(self)


def write_card(config: AdapterConfig, record: RunRecord) -> str:
    """The adapter's README: what it was made from and how it did. Names no case: adapters travel."""
    rows = "\n".join(
        f"| {label} | {measure} | {_mean(record, 'champion', label, measure)} | "
        f"{_mean(record, 'candidate', label, measure)} |"
        for label in config.labels
        for measure in MEASURES
    )
    return f"""---
base_model: {config.base_name}
library_name: medsa
---
# Adapter for {", ".join(config.labels)}

Made {record.time} on top of version {0 if record.start == "base" else record.champion} (0: the base alone),
from {len(record.trained)} training cases in {record.steps} steps{HALF_WAY if record.half_way else ""}; compared
with version {record.champion} on {_compared(record)}.

| label | asked with | Dice before | Dice after |
|---|---|---|---|
{rows}

Dice over whole volumes; clicks are simulated. Base file: sha256 `{config.base_sha256}`.
"""


def _compared(record: RunRecord) -> str:
    validated, left_out = len(record.validated), sum(map(len, record.left_out))
    if not left_out:
        return f"{validated} cases never trained on"
    return f"{left_out} cases by models trained without them (leave one out) and {validated} never trained on"


def _mean(record: RunRecord, who: str, label: str, measure: str) -> str:
    mean = as_scores(record.scores.get(who, ()), [label], {}).mean(label, measure)
    return "-" if math.isnan(mean) else f"{mean:.3f}"
