"""The record of a training run, and the card of the adapter it made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lib.model.adapter_io import AdapterConfig
from lib.training.cases import Skipped
from lib.training.validation import ObjectScore

HALF_WAY = " (the mean of the weights before and after them)"


@dataclass(frozen=True)
class RunRecord:
    """What one run did; a line of `runs.jsonl`. `decision` is "published", "refused", "stopped" or "failed".

    `champion` served when the run began, `kind`, `trigger` and `start` are those of its RunRequest, `version` is the
    published one. `label_digests` has every label that
    was offered, skipped ones too. `trained_labels` are the labels in the cases of `trained`. `scores` has one entry
    per validation object, before and after. `half_way`: what was published is the mean of the serving and the trained
    weights. `resumed` is the step of the checkpoint that it went on from (0: none), `events` are what was not planned.
    """

    decision: str
    reasons: tuple[str, ...]
    time: str
    champion: int
    kind: str = "incremental"
    trigger: str = "person"
    start: str = "champion"
    version: int | None = None
    label_digests: Mapping[str, str] = field(default_factory=dict)
    trained: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()
    trained_labels: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    scores: Mapping[str, tuple[ObjectScore, ...]] = field(default_factory=dict)
    steps: int = 0
    loss: float | None = None
    resumed: int = 0
    events: tuple[str, ...] = ()
    half_way: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `runs.jsonl`."""
        return asdict(self)


def write_card(config: AdapterConfig, record: RunRecord) -> str:
    """The adapter's README: what it was made from and how it did. Names no case: adapters travel."""
    rows = "\n".join(
        f"| {label} | {_mean(record, 'champion', label)} | {_mean(record, 'candidate', label)} |"
        for label in config.labels
    )
    return f"""---
base_model: {config.base_name}
library_name: medsa
---
# Adapter for {", ".join(config.labels)}

Made {record.time} on top of version {record.champion} (0: the base alone), from {len(record.trained)}
training cases in {record.steps} steps{HALF_WAY if record.half_way else ""}; compared on
{len(record.validated)} cases never trained on.

| label | Dice before | Dice after |
|---|---|---|
{rows}

Dice over whole volumes, mean over one and two simulated clicks. Base file: sha256 `{config.base_sha256}`.
"""


def _mean(record: RunRecord, who: str, label: str) -> str:
    values = [value for found in record.scores.get(who, ()) if found.label == label for value in found.clicks]
    return f"{sum(values) / len(values):.3f}" if values else "-"
