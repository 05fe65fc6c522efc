"""A hundred SIGKILLs at random moments of training and publishing: what serves stays whole, nothing is left behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from base_figures import figure_of
from interaction_volumes import made_volume
from network import Figure

from lib.bases import choose_base
from lib.errors import MedsaError
from lib.model.adapter_io import adapted
from lib.model.catalog import build_model
from lib.model.medsa import MedSA
from lib.settings import load_settings
from lib.training.releases import Releases
from lib.volume import Volume, save_mask

APP = Path(__file__).resolve().parent.parent / "apps" / "medsa"
CASES, SHAPE, SPACING_MM, OBJECT_SLICES = 6, (48, 48, 12), (1.0, 1.0, 2.0), 6
TRAIN_MINUTES, SEED = 0.1, 0
TASK = "object"
PATIENCE_S = 600.0


@dataclass
class Kills:
    """What was seen: `broken` versions, `resumed` runs, `stray` files, kills while something was being published."""

    kills: int = 0
    broken: list[str] = field(default_factory=list)
    runs: int = 0
    resumed: int = 0
    published: int = 0
    stray: list[str] = field(default_factory=list)


def kill_figures(work: Path, kills: int) -> list[Figure]:
    """Trains again and again, killed each time; looks at what serves after each; then lets one run end."""
    studies, state = work / "studies", work / "state"
    make_studies(studies)
    base, sha256 = _base()
    rng, seen = random.Random(SEED), Kills()
    lasts = _seconds(studies, state)  # one that nobody kills, to know how long there is to kill it
    for _ in range(kills):
        process = start(studies, state)
        try:
            process.wait(timeout=rng.uniform(0.3 * lasts, 1.1 * lasts))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            seen.kills += 1
        _look(seen, state, base, sha256)
    _seconds(studies, state)
    _look(seen, state, base, sha256)
    seen.stray = [path.name for path in strays(state)]
    _count(seen, state)
    return figures_of(seen)


def figures_of(seen: Kills) -> list[Figure]:
    """The three bars, and what they rest on."""
    note = f"{seen.kills} kills, {seen.runs} runs came to an end, {seen.published} published"
    return [
        figure_of("kills at random moments", float(seen.kills), "kills", note=note),
        figure_of(
            "versions that did not load after a kill", float(len(seen.broken)), "versions", "<= 0", note
        ),
        figure_of("runs that went on from a killed one", float(seen.resumed), "runs", ">= 1", note),
        figure_of(
            "stray files after the last run", float(len(seen.stray)), "files", "<= 0", ", ".join(seen.stray)
        ),
    ]


def make_studies(studies: Path) -> None:
    """Small made volumes with their labels, where a server would have put them."""
    final = studies / "labels" / "final"
    final.mkdir(parents=True, exist_ok=True)
    for seed in range(CASES):
        volume = made_volume(seed, SHAPE, SPACING_MM, OBJECT_SLICES)
        volume.save(studies / f"case{seed}.nii.gz")
        grid = Volume(volume.image.astype(np.float32), np.diag([*SPACING_MM, 1.0]))
        save_mask(volume.truth.astype(np.uint8), grid, final / f"case{seed}.nii.gz")


def start(studies: Path, state: Path, conf: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """`cli.py train` in a process group of its own."""
    settings = {
        "train_minutes": str(TRAIN_MINUTES),
        "checkpoint_seconds": "0.5",
        "base": "vit_t",
        **(conf or {}),
    }
    command = [sys.executable, str(APP / "cli.py"), "train", "--task", TASK, "--studies", str(studies)]
    command += ["--state", str(state), *(part for pair in settings.items() for part in ("--conf", *pair))]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def strays(state: Path) -> Iterator[Path]:
    """What only a run that was killed would leave."""
    for path in state.rglob("*"):
        if path.name.endswith(".part") or path.name.startswith(".tmp-"):
            yield path
    yield from (state / "checkpoints").glob("*")


def _seconds(studies: Path, state: Path) -> float:
    """How long a run takes that nobody kills. Raises RuntimeError when it fails."""
    started = time.monotonic()
    process = start(studies, state)
    if process.wait(timeout=PATIENCE_S) != 0:
        raise RuntimeError(f"a training that nobody killed ended with {process.returncode}")
    return time.monotonic() - started


def _look(seen: Kills, state: Path, base: MedSA, sha256: str) -> None:
    try:
        champion = Releases(state).champion()
        if champion is not None:
            adapted(champion.folder, base, sha256, dict(champion.config.labels))
    except MedsaError as error:
        seen.broken.append(str(error))


def _count(seen: Kills, state: Path) -> None:
    records = Releases(state).records()
    seen.runs = sum(record.get("decision") in ("published", "refused") for record in records)
    seen.published = sum(record.get("decision") == "published" for record in records)
    seen.resumed = sum(bool(record.get("resumed")) for record in records)
    (state / "seen.json").write_text(json.dumps({"broken": seen.broken, "stray": seen.stray}))


def _base() -> tuple[MedSA, str]:
    settings = load_settings(APP / "configs", {"task": TASK, "base": "vit_t"})
    return build_model(choose_base(settings, APP, None), list(settings.task.labels))
