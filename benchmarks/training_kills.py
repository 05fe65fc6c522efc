"""A hundred SIGKILLs at random moments of training and publishing: what serves stays whole, nothing is left behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from base_figures import figure_of
from interaction_volumes import made_volume
from network import Figure
from scipy import ndimage

from lib.bases import choose_base
from lib.errors import MedsaError
from lib.model.adapter_io import adapted
from lib.model.catalog import build_model
from lib.model.medsa import MedSA
from lib.settings import load_settings
from lib.training.progress_file import read_progress
from lib.training.releases import Releases
from lib.volume import Volume, save_mask

APP = Path(__file__).resolve().parent.parent / "apps" / "medsa"
# By the hash of their names the first three validate and the others are trained on.
CASES = ("case2", "case5", "case8", "case0", "case1", "case3")
SHAPE, SPACING_MM, OBJECT_SLICES = (48, 48, 6), (1.0, 1.0, 2.0), 4
TRAIN_MINUTES, SEED = 0.1, 0
# What is labelled has a rim that nothing shows but labels: the base does not find it, and a few seconds teach it. Runs
# that are always refused would publish nothing to be killed at.
RIM = 4
GATE_MARGIN = 0.9
TASK = "object"
PATIENCE_S = 600.0
TAKEN_BACK, NEWEST = 4, 2
LAST_STAGE = "looking for labels that do not fit"  # the last one that a run names; publishing comes after it


@dataclass
class Kills:
    """What was seen: `broken` versions, `resumed` runs, `stray` files; `stages` has what each kill interrupted.

    `serving` counts the kills after which a version served, `looked_at` the versions that were loaded.
    """

    kills: int = 0
    serving: int = 0
    looked_at: int = 0
    broken: list[str] = field(default_factory=list)
    runs: int = 0
    resumed: int = 0
    published: int = 0
    stray: list[str] = field(default_factory=list)
    stages: Counter[str] = field(default_factory=Counter)


Wait = Callable[["subprocess.Popen[bytes]", Path], None]


def kill_figures(work: Path, kills: int) -> list[Figure]:
    """Trains again and again, killed each time; looks at all versions after each kill.

    A third of the kills come at any time, a third near the end, a third while a version is published. A version that
    serves is taken back after every fourth kill, so that later runs have something to publish. The last run is left
    alone.
    """
    studies, state = work / "studies", work / "state"
    make_studies(studies)
    base, sha256 = _base()
    rng, seen = random.Random(SEED), Kills()
    waits: tuple[Wait, ...] = (_wait_not_at_all, _wait_for_the_end, _wait_for_publishing)
    moments = [(wait, _length(studies, state, wait)) for wait in waits]
    while seen.kills < kills:
        process = start(studies, state)
        wait, length = moments[seen.kills % len(moments)]
        wait(process, state)
        try:
            process.wait(timeout=rng.uniform(0.0, 1.1 * length))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            seen.kills += 1
            seen.stages[_stage(process, state, wait is _wait_for_publishing)] += 1
        _look(seen, state, base, sha256)
        if seen.kills % TAKEN_BACK == 0:
            _take_back(state)
    _length(studies, state, _wait_not_at_all)
    _look(seen, state, base, sha256)
    seen.stray = [path.name for path in strays(state)]
    _count(seen, state)
    return figures_of(seen)


def figures_of(seen: Kills) -> list[Figure]:
    """The three bars, and what they rest on."""
    note = (
        f"{seen.runs} runs came to an end, {seen.published} published; {seen.looked_at} times a version was loaded, "
        f"after {seen.serving} kills one served"
    )
    where = ", ".join(f"{count} at {stage}" for stage, count in seen.stages.most_common())
    return [
        figure_of("kills at random moments", float(seen.kills), "kills", note=where),
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
    for seed, name in enumerate(CASES):
        volume = made_volume(seed, SHAPE, SPACING_MM, OBJECT_SLICES)
        volume.save(studies / f"{name}.nii.gz")
        grid = Volume(volume.image.astype(np.float32), np.diag([*SPACING_MM, 1.0]))
        disc = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])
        labelled = ndimage.binary_dilation(volume.truth, disc, iterations=RIM)
        save_mask(labelled.astype(np.uint8), grid, final / f"{name}.nii.gz")


def start(studies: Path, state: Path, conf: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """`cli.py train` in a process group of its own."""
    settings = {
        "train_minutes": str(TRAIN_MINUTES),
        "checkpoint_seconds": "0.5",
        "gate_margin": str(GATE_MARGIN),
        # Many small steps: seconds have to teach something.
        "batch_slices": "2",
        "prompts_per_slice": "2",
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
    for record in (state / "releases").glob("v*.json"):
        if not record.with_suffix("").is_dir():
            yield record
    yield from (state / "checkpoints").glob("*")


def _length(studies: Path, state: Path, wait: Wait) -> float:
    """How many seconds a run that nobody kills takes from `wait` to its decision. Raises RuntimeError when it fails."""
    _take_back(state)
    process = start(studies, state)
    wait(process, state)
    begun = time.monotonic()
    _wait_until(process, lambda: _stage(process, state) in ("published", "refused"))
    length = time.monotonic() - begun
    if process.wait(timeout=PATIENCE_S) != 0:
        raise RuntimeError(f"a training that nobody killed ended with {process.returncode}")
    return length


def _take_back(state: Path) -> None:
    Releases(state).rollback(0, datetime.now(UTC).isoformat(timespec="seconds"), "benchmark")


def _wait_for_the_end(process: "subprocess.Popen[bytes]", state: Path) -> None:
    """Until `process` is at what comes before publishing, or over."""
    _wait_until(process, lambda: _stage(process, state) == LAST_STAGE)


def _wait_for_publishing(process: "subprocess.Popen[bytes]", state: Path) -> None:
    """Until the version's folder is being written, or the run is over."""
    # What an earlier kill left there is removed when a run begins.
    writes = (state / "releases").glob
    _wait_until(process, lambda: _stage(process, state) == LAST_STAGE and any(writes(".tmp-*")))


def _wait_not_at_all(process: "subprocess.Popen[bytes]", state: Path) -> None:
    """A kill may come at once."""


def _wait_until(process: "subprocess.Popen[bytes]", holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline and not holds():
        time.sleep(0.001)


def _stage(process: "subprocess.Popen[bytes]", state: Path, publishes: bool = False) -> str:
    """What `process` was at, or just over with; after the last stage that has a name it `publishes`."""
    progress = read_progress(state)
    if progress.get("pid") != process.pid:
        return "starting"
    if publishes and progress.get("status") == LAST_STAGE:
        return "publishing"
    return str(progress.get("status")).split(":")[0].split(";")[0]


def _look(seen: Kills, state: Path, base: MedSA, sha256: str) -> None:
    """Loads the newest versions and the one that serves: what a server would load, and what it could go back to."""
    releases = Releases(state)
    try:
        champion = releases.champion_version()
        seen.serving += champion > 0
        for version in {champion, *releases.versions()[-NEWEST:]} - {0}:
            release = releases.release(version)
            assert release is not None
            adapted(release.folder, base, sha256, dict(release.config.labels))
            seen.looked_at += 1
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
