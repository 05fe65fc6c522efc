"""The model that answers: the base, loaded once, with whichever adapter version is published.

Concurrency. Shared between requests: `_served`, an immutable bundle that is only ever replaced, so reading
it needs no lock, and `_lock`, held while the base or an adapter is loaded. A new version becomes a new set
of adapters over the same frozen base; a request that has taken a bundle keeps it to its end, so it is
answered by exactly one version. Order: this lock, then (inside a predictor) the device's turn and the cache's.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lib.embeddings import EmbeddingCache
from lib.errors import AdapterError
from lib.model.adapter_io import adapted, tensors_sha256
from lib.model.medsa import MedSA
from lib.predictor import Predictor
from lib.settings import IntensitySettings
from lib.training.releases import Releases
from lib.transforms.geometry import AxisChoice
from lib.turns import DeviceTurns

log = logging.getLogger(__name__)

NO_ADAPTER = "no adapter"
UNREADABLE = -1  # the version of a pointer that cannot be read


@dataclass(frozen=True)
class OpenBase:
    """A loaded base with fresh adapters; `reason` says why this base."""

    name: str
    reason: str
    sha256: str
    model: MedSA


@dataclass(frozen=True)
class Served:
    """What answers one request."""

    base: str
    reason: str
    adapter_version: int
    predictor: Predictor
    base_sha256: str = ""


@dataclass(frozen=True)
class View:
    """How images are shown to the model, and where it runs."""

    intensity: IntensitySettings
    slice_axis: AxisChoice
    device: str


class ServingModel:
    """Follows the published version; `open_base` is called once, at the first need, `on_click` at every click."""

    def __init__(
        self,
        open_base: Callable[[], OpenBase],
        releases: Releases,
        labels: Mapping[str, int],
        view: View,
        cache: EmbeddingCache,
        on_click: Callable[[], None] = lambda: None,
    ) -> None:
        self._open_base, self._releases = open_base, releases
        self._labels, self._view, self.cache = dict(labels), view, cache
        self.turns = DeviceTurns(on_click=on_click)
        self._lock = threading.Lock()
        self._base: OpenBase | None = None
        self._served: Served | None = None
        self._failed: tuple[int, str] | None = None

    def current(self) -> Served:
        """The bundle of the version that is published now.

        A version that cannot be loaded is logged once and the one before it keeps answering. Raises
        CheckpointError when the base itself cannot be loaded.
        """
        version = self._published()
        served = self._served
        if served is None or self._is_outdated(served, version):
            with self._lock:
                if self._served is None or self._is_outdated(self._served, version):
                    self._served = self._load()
                served = self._served
        return served

    @property
    def served(self) -> Served | None:
        """What answered last, without loading anything."""
        return self._served

    @property
    def problem(self) -> str | None:
        """Why the published version does not serve; None when it does, or when nothing was asked yet."""
        failed, served = self._failed, self._served
        return failed[1] if failed and served and failed[0] != served.adapter_version else None

    def _is_outdated(self, served: Served, version: int) -> bool:
        failed = self._failed is not None and self._failed[0] == version
        return served.adapter_version != version and not failed

    def _published(self) -> int:
        try:
            return self._releases.champion_version()
        except AdapterError as error:
            self._note_failure(UNREADABLE, str(error))
            return UNREADABLE

    def _load(self) -> Served:
        """The bundle of the published version, else the one before it; the caller holds the lock."""
        if self._base is None:
            self._base = self._open_base()
            log.info("base %s: %s", self._base.name, self._base.reason)
        version = self._published()
        try:
            model, adapter = self._adapted(self._base, version)
        except AdapterError as error:
            self._note_failure(version, str(error))
            return self._served or self._bundle(self._base, self._base.model, NO_ADAPTER, 0)
        self._failed = None
        return self._bundle(self._base, model, adapter, version)

    def _adapted(self, base: OpenBase, version: int) -> tuple[MedSA, str]:
        """The model with that version's adapter, and the name of its weights: version numbers begin anew."""
        if version == 0:
            return base.model, NO_ADAPTER
        release = self._releases.champion()
        if release is None or release.version != version:
            raise AdapterError(f"version {version} was replaced while it was loaded")
        # The frozen base is shared, and nothing writes to it; only the adapters are new.
        model = adapted(release.folder, base.model, base.sha256, self._labels)
        return model, tensors_sha256(release.folder)

    def _bundle(self, base: OpenBase, model: MedSA, adapter: str, version: int) -> Served:
        key = f"base {base.sha256} adapter {adapter}"
        view = self._view
        predictor = Predictor(
            model, key, view.intensity, view.slice_axis, self.cache, view.device, self.turns
        )
        log.info("adapter version %d answers now", version)
        return Served(base.name, base.reason, version, predictor, base.sha256)

    def _note_failure(self, version: int, text: str) -> None:
        if self._failed != (version, text):
            log.error("the published adapter cannot serve: %s", text)
        self._failed = (version, text)
