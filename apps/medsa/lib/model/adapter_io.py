"""An adapter on disk: a folder in PEFT's manner, without pickle.

`adapter_config.json` says what it is for, `adapter_model.safetensors` holds exactly the trained tensors, `README.md`
is its card.

Format 2 added the image size, and to the widths the prompt arm and the depth. Adapters of format 1 were all of the arm
`hyper` without a depth branch, and are still read.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.errors import AdapterError
from lib.files import flush
from lib.model.adapters import AdapterDims, PromptArm
from lib.model.medsa import MedSA

FORMAT_VERSION = 2
LARGEST_IMAGE = 1024
_WAY_OUT = "use another state folder (--conf state DIR) or go back to the base with cli.py rollback 0"
_PROMPT_ADAPTER_1 = re.compile(
    r"^(decoder\.\d+)\.hyper\."
)  # what format 1 called the decoder's first adapter
CONFIG_NAME, TENSORS_NAME, CARD_NAME = "adapter_config.json", "adapter_model.safetensors", "README.md"


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter was made for.

    `dims` are the fields of AdapterDims, `labels` maps name to value in a label, `intensity` is the window used.
    `image_size` is the side of the model's image in pixels; None in format 1, which did not say it.
    """

    base_name: str
    base_sha256: str
    dims: dict[str, Any]
    labels: dict[str, int]
    intensity: dict[str, Any]
    code_version: str
    image_size: int | None = None
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
    if type(found) is not int or not 1 <= found <= FORMAT_VERSION:
        raise AdapterError(
            f"adapter {folder.name}: format {found!r}, this version of medsa reads 1 to {FORMAT_VERSION}; use the one "
            f"that made the adapter, or {_WAY_OUT}"
        )
    try:
        config = AdapterConfig(**stored)
    except TypeError as error:
        raise AdapterError(f"adapter {folder.name}: {CONFIG_NAME} does not fit ({error})") from error
    if not isinstance(config.labels, dict):
        raise AdapterError(f"adapter {folder.name}: labels in {CONFIG_NAME}: {config.labels!r} is no table")
    return config


def load_adapter(folder: Path, model: MedSA, base_sha256: str, labels: Mapping[str, int]) -> AdapterConfig:
    """Puts the adapter in `folder` into `model`, whose adapters get its widths, prompt arm and depth.

    Raises AdapterError, naming what differs, for another base, other labels, another image size, a newer format or
    damaged files; then the model is as it was.
    """
    config = read_adapter_config(folder)
    _check_made_for(folder.name, config, model, base_sha256, labels)
    dims = _dims(folder.name, config)
    try:
        tensors = load_file(folder / TENSORS_NAME)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"adapter {folder.name}: {TENSORS_NAME} cannot be read ({error})") from error
    if config.format_version == 1:
        tensors = {_PROMPT_ADAPTER_1.sub(r"\1.prompt.", key): value for key, value in tensors.items()}
    tensors = _in_order_of(labels, config.labels, tensors)
    broken = [key for key, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise AdapterError(
            f"adapter {folder.name}: {', '.join(broken[:8])} in {TENSORS_NAME} hold what is no number"
        )
    model.load_adapter_state(tensors, dims)
    return config


def adapted(folder: Path, base: MedSA, base_sha256: str, labels: Mapping[str, int]) -> MedSA:
    """A new network over the frozen weights of `base` with the adapter in `folder`, at the image size of its training.

    Raises AdapterError like `load_adapter`, and for an image size that `base` cannot have.
    """
    size = read_adapter_config(folder).image_size
    model = base
    if size is not None and size != base.spec.image_size:
        if type(size) is not int or not 0 < size <= LARGEST_IMAGE or size % base.spec.patch_size:
            raise AdapterError(
                f"adapter {folder.name}: image_size in {CONFIG_NAME}: {size!r} is not accepted; allowed: a multiple of "
                f"{base.spec.patch_size} up to {LARGEST_IMAGE}"
            )
        model = base.at_size(size)
    model = model.sibling()
    load_adapter(folder, model, base_sha256, labels)
    return model


def tensors_sha256(folder: Path) -> str:
    """The SHA-256 of the trained tensors in `folder`: unlike a version's number, never that of another adapter.

    Raises AdapterError when they cannot be read.
    """
    try:
        return hashlib.sha256((folder / TENSORS_NAME).read_bytes()).hexdigest()
    except OSError as error:
        raise AdapterError(f"adapter {folder.name}: {TENSORS_NAME} cannot be read ({error})") from error


def _in_order_of(
    labels: Mapping[str, int], stored: Mapping[str, int], tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """With the label tokens in the order in which `labels` are named now: a token is found by its place."""
    tokens = tensors.get("labels.weight")
    if tokens is None or list(labels) == list(stored) or len(tokens) != len(stored):
        return tensors
    places = [list(stored).index(name) for name in labels]
    return {**tensors, "labels.weight": tokens[places].clone()}


def _check_made_for(
    name: str, config: AdapterConfig, model: MedSA, base_sha256: str, labels: Mapping[str, int]
) -> None:
    if config.base_sha256 != base_sha256:
        raise AdapterError(
            f"adapter {name}: made for base {config.base_name} (sha256 {config.base_sha256}), "
            f"not for {model.spec.name} (sha256 {base_sha256}); {_WAY_OUT}"
        )
    if dict(config.labels) != dict(labels):
        raise AdapterError(
            f"adapter {name}: made for labels {config.labels}, not for {dict(labels)}; {_WAY_OUT}"
        )
    if config.image_size not in (None, model.spec.image_size):
        raise AdapterError(
            f"adapter {name}: made for images of {config.image_size} pixels, not of {model.spec.image_size}"
        )


def _dims(name: str, config: AdapterConfig) -> AdapterDims:
    try:
        dims = AdapterDims(**config.dims)
    except TypeError as error:
        raise AdapterError(f"adapter {name}: dims in {CONFIG_NAME} do not fit ({error})") from error
    for key, value in vars(dims).items():
        if key == "prompt_arm":
            fits, allowed = value in get_args(PromptArm), f"one of {', '.join(get_args(PromptArm))}"
        else:
            fits, allowed = type(value) is int and value > 0, "a whole number above 0"
        if not fits:
            raise AdapterError(
                f"adapter {name}: dims.{key} in {CONFIG_NAME}: {value!r} is not accepted; allowed: {allowed}"
            )
    return dims
