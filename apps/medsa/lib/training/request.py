"""What kind of training is asked for, by whom, and from which weights it starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from lib.errors import InputError

Kind = Literal["incremental", "full"]
Trigger = Literal["labels", "idle", "nightly", "person", "command line"]
Start = Literal["champion", "base"]


@dataclass(frozen=True)
class RunRequest:
    """One training run to come.

    An `incremental` run is short and goes on from the serving adapter, with new labels drawn more often; a `full` one
    learns from all labels alike, from `start`, for `minutes`. `trigger` says why it was started. `minutes` None:
    as long as the settings say. `until` is when it is to be over, judging included, as far as that can be: training
    takes no more than a part of the time until then, however much of it was spent waiting for clicks.
    """

    kind: Kind = "incremental"
    trigger: Trigger = "person"
    start: Start = "champion"
    minutes: float | None = None
    until: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they travel in MONAI Label's request for a training."""
        plain = {"kind": self.kind, "trigger": self.trigger, "start": self.start, "minutes": self.minutes}
        return {**plain, "until": None if self.until is None else self.until.isoformat()}

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> "RunRequest":
        """From MONAI Label's request, whose other keys are not looked at; raises InputError for a value not allowed.

        A full run starts from the base where nothing else is said.
        """
        plain = cls()
        kind = _one_of("kind", request.get("kind", plain.kind), get_args(Kind))
        trigger = _one_of("trigger", request.get("trigger", plain.trigger), get_args(Trigger))
        usual = "base" if kind == "full" else plain.start
        start = _one_of("start", request.get("start", usual), get_args(Start))
        return cls(kind, trigger, start, _minutes(request.get("minutes")), _moment(request.get("until")))


def _one_of(field: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise InputError(field, value, f"one of {', '.join(allowed)}")
    return value


def _minutes(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10_000:
        raise InputError("minutes", value, "a number of minutes above 0 and below 10000")
    return float(value)


def _moment(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InputError("until", value, "a moment with its time zone, as 2026-12-31T06:00:00+01:00")
    return moment
