"""Who made something, when, and with which weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from lib.errors import InputError


@dataclass(frozen=True)
class Weights:
    """A base, by name and by its file's SHA-256, and an adapter version (0: none)."""

    base: str
    base_sha256: str
    adapter_version: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Weights":
        """The inverse of `to_json`; raises InputError when a key is missing or of another type."""
        return cls(
            _typed(content, "base", str),
            _typed(content, "base_sha256", str),
            _typed(content, "adapter_version", int),
        )


@dataclass(frozen=True)
class Provenance:
    """`author` is a name or account, `time` has a time zone, `weights` is None where no model took part."""

    author: str
    time: datetime
    weights: Weights | None = None

    def __post_init__(self) -> None:
        if self.time.tzinfo is None:
            raise InputError("time", self.time.isoformat(), "a time with a time zone")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, the time in ISO 8601."""
        weights = None if self.weights is None else self.weights.to_json()
        return {"author": self.author, "time": self.time.isoformat(), "weights": weights}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Provenance":
        """The inverse of `to_json`; raises InputError when a key is missing or of another type."""
        text = _typed(content, "time", str)
        try:
            time = datetime.fromisoformat(text)
        except ValueError as error:
            raise InputError("time", text, "a time in ISO 8601") from error
        weights = content.get("weights")
        return cls(
            _typed(content, "author", str), time, None if weights is None else Weights.from_json(weights)
        )


def _typed(content: Mapping[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(key, value, f"a value of type {kind.__name__}")
    return value
