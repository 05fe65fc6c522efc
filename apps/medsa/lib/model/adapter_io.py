"""An adapter on disk: a folder in PEFT's manner, without pickle.

`adapter_config.json` says what it is for, `adapter_model.safetensors` holds exactly the trained tensors, `README.md`
is its card.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lib.errors import AdapterError
from lib.files import flush
from lib.model.medsa import MedSA

FORMAT_VERSION = 1
_WAY_OUT = "use another state folder (--conf state DIR) or go back to the base with cli.py rollback 0"
CONFIG_NAME, TENSORS_NAME, CARD_NAME = "adapter_config.json", "adapter_model.safetensors", "README.md"


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter was made for. `labels` maps name to value in a label; `intensity` is the window used."""

    base_name: str
    base_sha256: str
    dims: dict[str, int]
    labels: dict[str, int]
    intensity: dict[str, Any]
    code_version: str
    format_version: int = field(default=FORMAT_VERSION)


def save_adapter(folder: Path, model: MedSA, config: AdapterConfig, card: str) -> None:
    """Writes the adapter of `model` into an existing folder and flushes each file to the disk."""
    save_file(model.adapter_state(), folder / TENSORS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    (folder / CARD_NAME).write_text(card)
    for name in (TENSORS_NAME, CONFIG_NAME, CARD_NAME):
        flush(folder / name)
    flush(folder)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Raises AdapterError when the file is absent, damaged or of a newer format."""
    path = folder / CONFIG_NAME
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AdapterError(f"adapter {folder.name}: {CONFIG_NAME} cannot be read ({error})") from error
    found = stored.get("format_version") if isinstance(stored, dict) else None
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise AdapterError(
            f"adapter {folder.name}: format {found!r}, this version reads up to {FORMAT_VERSION}"
        )
    try:
        return AdapterConfig(**stored)
    except TypeError as error:
        raise AdapterError(f"adapter {folder.name}: {CONFIG_NAME} does not fit ({error})") from error


def load_adapter(folder: Path, model: MedSA, base_sha256: str, labels: Mapping[str, int]) -> AdapterConfig:
    """Puts the adapter in `folder` into `model`.

    Raises AdapterError, naming what differs, for another base, other labels, a newer format or damaged files; then
    the model is as it was.
    """
    config = read_adapter_config(folder)
    if config.base_sha256 != base_sha256:
        raise AdapterError(
            f"adapter {folder.name}: made for base {config.base_name} (sha256 {config.base_sha256}), "
            f"not for {model.spec.name} (sha256 {base_sha256}); {_WAY_OUT}"
        )
    if dict(config.labels) != dict(labels):
        raise AdapterError(
            f"adapter {folder.name}: made for labels {config.labels}, not for {dict(labels)}; {_WAY_OUT}"
        )
    try:
        tensors = load_file(folder / TENSORS_NAME)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"adapter {folder.name}: {TENSORS_NAME} cannot be read ({error})") from error
    model.load_adapter_state(tensors)
    return config
