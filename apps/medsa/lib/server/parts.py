"""Everything the app is made of, built from its settings; nothing is loaded or started here."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib.activelearning.chooser import Chooser
from lib.activelearning.leases import Leases
from lib.bases import choose_base, encoder_precision, torch_device
from lib.embeddings import DiskCache, EmbeddingCache
from lib.errors import AdapterError
from lib.files import read_json, write_json
from lib.infers.serving import OpenBase, ServingModel, View
from lib.infers.volumes import VolumeCache
from lib.infers.warming import Warmer
from lib.model.catalog import BaseChoice, build_model
from lib.model.medsa import MedSA
from lib.scoring.scores import ScoreFolder
from lib.settings import ServingSettings, Settings, load_settings
from lib.trainers.children import announced_base, is_server
from lib.training import tracking
from lib.training.cases import CaseFile
from lib.training.clicks_first import ClickSign
from lib.training.record import RunRecord
from lib.training.releases import Release, Releases
from lib.training.request import RunRequest
from lib.training.run import run_training
from lib.training.world import ALONE, World

BASE = "base.json"  # {"base": name}, what the server on this state folder chose last


@dataclass(frozen=True)
class Parts:
    """The app's parts. `state` is the folder of all that outlives the server but the studies themselves."""

    settings: Settings
    app_dir: Path
    state: Path
    releases: Releases
    serving: ServingModel
    volumes: VolumeCache
    leases: Leases
    warmer: Warmer
    scores: ScoreFolder
    chooser: Chooser

    def serving_version(self) -> int | None:
        """The version that answers; None while no model is loaded, as in a child process."""
        served = self.serving.served
        return None if served is None else served.adapter_version

    def train(
        self,
        files: list[CaseFile],
        request: RunRequest,
        should_stop: Callable[[], bool] = lambda: False,
        world: World = ALONE,
    ) -> RunRecord:
        """One training run on `files`; raises TrainingError when it cannot start."""
        device = torch_device(self.settings.serving)
        return run_training(
            self.state,
            files,
            self.settings,
            self.build_model,
            request=request,
            device=device,
            track=tracking.run,
            should_stop=should_stop,
            world=world,
        )

    def build_model(self) -> tuple[MedSA, str]:
        """The base with fresh adapters and the SHA-256 of its file; raises CheckpointError."""
        choice = _choice(self.settings, self.app_dir, self.state, self.releases)
        precision = encoder_precision(self.settings.serving)
        return build_model(choice, list(self.settings.task.labels), precision)


def build_parts(app_dir: Path, conf: Mapping[str, str]) -> Parts:
    """Raises SettingsError for a setting that does not fit."""
    settings = load_settings(app_dir / "configs", conf)
    state = settings.serving.state or app_dir / "model" / settings.task.name
    releases, volumes = Releases(state), VolumeCache()
    serving = _serving_model(settings, app_dir, state, releases)
    scores = ScoreFolder(state / "scores")
    leases = Leases(state / "leases.json", settings.serving.lease_minutes)
    chooser = Chooser(
        scores,
        tuple(settings.task.labels),
        settings.training.seed,
        held=lambda: leases.held(time.time()),
    )
    return Parts(
        settings,
        app_dir,
        state,
        releases,
        serving,
        volumes,
        leases,
        Warmer(serving, volumes),
        scores,
        chooser,
    )


def _serving_model(settings: Settings, app_dir: Path, state: Path, releases: Releases) -> ServingModel:
    task, serving = settings.task, settings.serving

    def open_base() -> OpenBase:
        choice = _choice(settings, app_dir, state, releases)
        model, sha256 = build_model(choice, list(task.labels), encoder_precision(serving))
        if serving.compile:
            model.use_compile()
        return OpenBase(choice.name, choice.reason, sha256, model)

    view = View(task.intensity, task.slice_axis, torch_device(serving))
    return ServingModel(
        open_base, releases, task.labels, view, _embedding_cache(serving, state), ClickSign(state).touch
    )


def _embedding_cache(serving: ServingSettings, state: Path) -> EmbeddingCache:
    disk = (
        DiskCache(state / "embeddings", serving.embedding_disk_mb << 20)
        if serving.embedding_disk_mb
        else None
    )
    return EmbeddingCache(serving.embedding_cache_mb << 20, disk)


def note_base(state: Path, name: str) -> None:
    """For commands that run without the server, on another machine perhaps: what they publish has to fit its base."""
    write_json(state / BASE, {"base": name})


def _noted_base(state: Path, known: Collection[str]) -> str | None:
    name = read_json(state / BASE).get("base")
    return name if isinstance(name, str) and name in known else None


def _choice(settings: Settings, app_dir: Path, state: Path, releases: Releases) -> BaseChoice:
    base = announced_base()
    if base in settings.bases:
        # What `auto` means may have changed since the server chose: a download, a publication.
        settings = settings.model_copy(update={"serving": settings.serving.model_copy(update={"base": base})})
    noted = None if is_server() else _noted_base(state, settings.bases)
    return choose_base(settings, app_dir, _published_base(releases, settings.bases), noted)


def _published_base(releases: Releases, known: Collection[str]) -> str | None:
    """The base of the serving adapter, else of the newest one that can be read; None when none was published.

    After a rollback to the base alone, or with a serving adapter that is damaged (the serving model says so), the
    others could not be served again if `auto` now took another base.
    """
    for release in _champion_then_newest(releases):
        try:
            name = release.config.base_name
        except AdapterError:
            continue
        if name in known:
            return name
    return None


def _champion_then_newest(releases: Releases) -> Iterator[Release]:
    try:
        champion = releases.champion()
    except AdapterError:
        champion = None
    if champion is not None:
        yield champion
    for version in reversed(releases.versions()):
        release = releases.release(version)
        if release is not None:
            yield release


def describe_base(serving: ServingModel) -> dict[str, Any]:
    """The base and the version that answer, and how the embedding cache does, for people."""
    served = serving.served
    return {
        "base": served and served.base,
        "base_reason": served and served.reason,
        "version": served and served.adapter_version,
        "problem": serving.problem,
        "embedding_cache": "off" if serving.cache.is_off else asdict(serving.cache.stats()),
    }
