"""Records in the form in which people are told of them: the one view of the command line, HTTP and the page.

Records are read tolerantly: those of older medsa lack fields, and what is not of the expected kind counts as absent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from statistics import fmean
from typing import Any, Literal

from lib.errors import AdapterError, NotFoundError
from lib.training.lineage import is_whole, made_versions, numbers_of, pruned_versions, publishes
from lib.training.releases import Release, Releases

Weights = Literal["kept", "pruned", "missing", "none"]


@dataclass(frozen=True)
class Figures:
    """Mean Dice of one label over the validation cases that have it: after each click, and without any."""

    label: str
    cases: int
    clicks: tuple[float, ...]
    automatic: float | None


@dataclass(frozen=True)
class Entry:
    """One record: a training run, a rollback or a pruning.

    `parent` is the version that served when it began. `labels` counts the labels that were offered, `before` and
    `after` are the figures of that version and of the candidate, `dice_before` and `dice_after` their means over
    objects and clicks. `left_out` were judged by models trained without them. `versions` are those that a pruning
    removed. None and empty: the record does not say.
    """

    decision: str
    time: str
    version: int | None
    parent: int | None
    kind: str | None
    trigger: str | None
    start: str | None
    resumed: Any
    by: str | None
    labels: int | None
    trained: tuple[str, ...]
    validated: tuple[str, ...]
    trained_labels: tuple[str, ...]
    skipped: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...]
    method: str | None
    before: tuple[Figures, ...]
    after: tuple[Figures, ...]
    dice_before: float | None
    dice_after: float | None
    reasons: tuple[str, ...]
    suspicious: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    events: tuple[Any, ...]
    half_way: bool
    steps: int | None
    loss: float | None
    seconds: dict[str, float]
    versions: tuple[int, ...]
    makes_version: bool

    @property
    def label_count(self) -> int:
        """How many labels the version knows: also those that it learned before, and was not shown again."""
        used = len({*self.trained, *self.validated})
        return used if not used or self.labels is None else max(used, self.labels - len(self.skipped))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was not as planned, in words: notes, cases that were skipped, events."""
        skipped = (f"{row.get('case_id')} was skipped: {row.get('reason')}" for row in self.skipped)
        return (*self.notes, *skipped, *map(str, self.events))


@dataclass(frozen=True)
class VersionAccount:
    """All that is known of one version; `digests` are the SHA-256 of the label files that it was made from."""

    version: int
    serving: bool
    weights: Weights
    pruned: str | None
    run: Entry | None
    digests: dict[str, str] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None
    problem: str | None = None


def explain(record: Mapping[str, Any]) -> Entry:
    """`record` as an Entry; nothing in it makes this fail."""
    scores = _table(record.get("scores"))
    before, after = _rows(scores.get("champion")), _rows(scores.get("candidate"))
    digests = record.get("label_digests")
    return Entry(
        decision=_text(record.get("decision")) or "",
        time=_text(record.get("time")) or "",
        version=_whole(record.get("version")),
        parent=_whole(record.get("champion")),
        kind=_text(record.get("kind")),
        trigger=_text(record.get("trigger")),
        start=_text(record.get("start")),
        resumed=plain(record.get("resumed")),
        by=_text(record.get("by")),
        labels=len(digests) if isinstance(digests, Mapping) else None,
        trained=_texts(record.get("trained")),
        validated=_texts(record.get("validated")),
        trained_labels=_texts(record.get("trained_labels")),
        skipped=tuple(plain(row) for row in _rows(record.get("skipped"))),
        left_out=tuple(case for fold in _listed(record.get("left_out")) for case in _texts(fold)),
        method=_text(record.get("method")),
        before=_figures(before),
        after=_figures(after),
        dice_before=_overall(before),
        dice_after=_overall(after),
        reasons=_texts(record.get("reasons")),
        suspicious=tuple(plain(row) for row in _rows(record.get("suspicious"))),
        notes=_texts(record.get("notes")),
        events=tuple(plain(event) for event in _listed(record.get("events"))),
        half_way=record.get("half_way") is True,
        steps=_whole(record.get("steps")),
        loss=_number(record.get("loss")),
        seconds=_numbers(record.get("seconds")),
        versions=tuple(numbers_of({"versions": record.get("versions")})),
        makes_version=publishes(record),
    )


def overview(releases: Releases) -> dict[str, Any]:
    """The same as `standing`, and all records, oldest first."""
    return {
        **standing(releases),
        "records": [asdict(explain(record)) for record in releases.records()],
    }


def standing(releases: Releases) -> dict[str, Any]:
    """What serves, where a rollback would go, and which versions there are; `problem`: why nothing serves, if so."""
    records = releases.records()
    serving, problem = _serving(releases)
    return {
        "serving": serving,
        "problem": problem,
        "rollback_to": releases.rollback_target() if serving else None,
        "versions": releases.versions(),
        "pruned": sorted(pruned_versions(records)),
    }


def account_of(releases: Releases, version: int) -> VersionAccount:
    """All about `version`; raises NotFoundError for one that there never was."""
    records, versions = releases.records(), releases.versions()
    known = sorted({*versions, *made_versions(records)})
    if version not in known:
        raise NotFoundError("version", version, f"one of {known}")
    record = releases.record_of(version) if version else None
    pruned = pruned_versions(records).get(version)
    there = version in versions
    adapter, problem = _adapter(releases.release(version)) if there else (None, None)
    return VersionAccount(
        version=version,
        serving=_serving(releases)[0] == version,
        weights="none" if version == 0 else "kept" if there else "missing" if pruned is None else "pruned",
        pruned=None if there else pruned,
        run=None if record is None else explain(record),
        digests={} if record is None else _digests(record.get("label_digests")),
        adapter=adapter,
        problem=problem,
    )


def plain(value: Any) -> Any:
    """`value` as strict JSON can hold it: a number that is none becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [plain(content) for content in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _serving(releases: Releases) -> tuple[int | None, str | None]:
    try:
        return releases.champion_version(), None
    except AdapterError as error:
        return None, str(error)


def _adapter(release: Release | None) -> tuple[dict[str, Any] | None, str | None]:
    if release is None:
        return None, None
    try:
        return asdict(release.config), None
    except AdapterError as error:
        return None, str(error)


def _figures(objects: Sequence[Mapping[str, Any]]) -> tuple[Figures, ...]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for found in objects:
        groups.setdefault(_text(found.get("label")) or "", []).append(found)
    return tuple(_mean_figures(label, group) for label, group in groups.items())


def _mean_figures(label: str, objects: Sequence[Mapping[str, Any]]) -> Figures:
    by_click = zip_longest(*(_dice(found.get("clicks")) for found in objects))
    clicks = tuple(fmean(value for value in values if value is not None) for values in by_click)
    automatic = [value for found in objects if (value := _number(found.get("automatic"))) is not None]
    return Figures(label, len(objects), clicks, fmean(automatic) if automatic else None)


def _overall(objects: Sequence[Mapping[str, Any]]) -> float | None:
    values = [value for found in objects for value in _dice(found.get("clicks"))]
    return fmean(values) if values else None


def _dice(value: Any) -> list[float]:
    return [number for found in _listed(value) if (number := _number(found)) is not None]


def _digests(value: Any) -> dict[str, str]:
    return {str(case): str(digest) for case, digest in _table(value).items()}


def _numbers(value: Any) -> dict[str, float]:
    found = {str(key): _number(content) for key, content in _table(value).items()}
    return {key: number for key, number in found.items() if number is not None}


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _whole(value: Any) -> int | None:
    return value if is_whole(value) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(content) for content in _listed(value))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in _listed(value) if isinstance(row, Mapping)]


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
