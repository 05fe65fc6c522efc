"""Which base model serves, from which file, and the network built on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lib.errors import CheckpointError
from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec, load_base
from lib.model.medsa import MedSA, Precision

AUTO = "auto"
FRESH_ADAPTER_SEED = 0
LARGE, SMALL = "vit_b", "vit_t"  # what `auto` chooses between: with a GPU, and without one


@dataclass(frozen=True)
class BaseEntry:
    """One base that can serve.

    `shipped` is its file's name among the app's own weights, or None; else it is fetched from `url`. `sha256` is
    None only where the file is the project's own and lies beside the code.
    """

    spec: BaseSpec
    dims: AdapterDims
    shipped: str | None = None
    url: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class BaseChoice:
    """The base that serves, its file, and why this one. `sha256` is checked when the file is read."""

    entry: BaseEntry
    path: Path
    sha256: str | None
    reason: str

    @property
    def name(self) -> str:
        return self.entry.spec.name


@dataclass(frozen=True)
class BaseRequest:
    """What was asked for: a base or `auto`, perhaps a checkpoint of one's own, on which kind of machine.

    `published_on` is the base of the adapter that serves now, if there is one, `served_on` that of the server.
    """

    base: str = AUTO
    checkpoint: Path | None = None
    has_gpu: bool = False
    published_on: str | None = None
    served_on: str | None = None


@dataclass(frozen=True)
class BaseCatalog:
    """The bases there are, the folder of shipped weights, the folder downloads go to, and how they get there.

    `fetch_file(url, target, sha256, size_bytes)` returns the target; it raises CheckpointError when it can't.
    """

    entries: Mapping[str, BaseEntry]
    weights: Path
    downloads: Path
    fetch_file: Callable[[str, Path, str, int], Path]

    def choose(self, request: BaseRequest) -> BaseChoice:
        """Resolves `request` to a file that is there, downloading an official checkpoint where that is needed.

        With `auto`: the base an adapter was published on, or that the server uses; else vit_b with a GPU, if its
        checkpoint is there or can be fetched; else vit_t. Raises CheckpointError when the base asked for can't be had.
        """
        if request.base != AUTO:
            return self._named(request.base, "asked for", request.checkpoint)
        if request.published_on is not None:
            return self._named(
                request.published_on, "auto: an adapter was published on it", request.checkpoint
            )
        if request.served_on is not None:
            return self._named(request.served_on, "auto: the server here uses it", request.checkpoint)
        if not request.has_gpu:
            return self._named(SMALL, "auto: this machine has no GPU", request.checkpoint)
        try:
            return self._named(LARGE, "auto: this machine has a GPU", request.checkpoint)
        except CheckpointError as error:
            return self._named(SMALL, f"auto: this machine has a GPU, but {error}", request.checkpoint)

    def _named(self, name: str, reason: str, checkpoint: Path | None) -> BaseChoice:
        entry = self.entries[name]
        if checkpoint is not None:
            return BaseChoice(entry, checkpoint, None, f"{reason}; weights from {checkpoint.name}")
        if entry.shipped is not None:
            return BaseChoice(entry, self.weights / entry.shipped, entry.sha256, reason)
        if entry.url is None or entry.sha256 is None or entry.size_bytes is None:
            raise CheckpointError(f"base {name}: the catalogue names no file for it")
        target = self.downloads / entry.url.rsplit("/", 1)[-1]
        return BaseChoice(
            entry, self.fetch_file(entry.url, target, entry.sha256, entry.size_bytes), entry.sha256, reason
        )


def build_model(
    choice: BaseChoice, labels: Sequence[str], precision: Precision = "float32"
) -> tuple[MedSA, str]:
    """The chosen base with fresh adapters, in evaluation mode, and the SHA-256 of the base's file.

    `precision` is what the frozen encoder computes in.
    """
    sam, sha256 = load_base(choice.entry.spec, choice.path, choice.sha256)
    # Only the adapters' last layers begin at zero; the others are drawn, the same for everyone who starts afresh.
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(FRESH_ADAPTER_SEED)
        model = MedSA(sam, choice.entry.spec, choice.entry.dims, labels).eval()
    if precision == "bfloat16":
        model.use_bfloat16()
    return model, sha256
