"""What the next case costs: scoring of a case that is encoded, and offers of the real server with 10,000 cases."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from active_learning_data import PoolStudy
from base_figures import figure_of
from interaction_server import BASE, stamp_by, started
from interaction_volumes import made_volume
from network import Figure
from training_methods import at_fitting_size, cpu_seconds, fresh_base, options_of, settings_of

from lib.embeddings import EmbeddingCache
from lib.files import file_signature
from lib.infers.serving import Served
from lib.model.medsa import MedSA
from lib.predictor import Predictor
from lib.scoring.scores import CaseScore, LabelScore, ScoreFolder, Stamp
from lib.scoring.survey import Surveyor
from lib.scoring.sweep import sweep
from lib.training.cases import Case
from lib.training.loop import train
from lib.volume import Volume, load_volume, save_mask

STORE_CASES, ANNOTATORS, OFFERS, LABELS, TRIES = 10_000, 50, 20, 8, 5
TRAIN_SECONDS = 20.0  # CPU; only so that adapters are there, as they are in use
LARGE_SHAPE, LARGE_SPACING_MM, OBJECT_SLICES = (256, 256, 100), (0.8, 0.8, 2.5), 40
LINEAR_COUNTS = (10, 20, 40)
PATIENCE_S = 120.0


def scoring_figures(study: PoolStudy, work: Path) -> list[Figure]:
    """Seconds to score a case whose slices are encoded, trained and not; and how the cost grows with the cases."""
    settings = settings_of(study.study.task)
    cases = study.study.load(study.pool[: LINEAR_COUNTS[-1]])
    model, prepared = at_fitting_size(fresh_base(settings), settings, cases[:4])
    large_volume = made_volume(7, LARGE_SHAPE, LARGE_SPACING_MM, OBJECT_SLICES)
    large = Volume(large_volume.image, np.diag([*LARGE_SPACING_MM, 1.0]))
    # As it is first offered: the base, at its own image size; and large images are served at that size for good.
    base, large_model = fresh_base(settings), fresh_base(settings)
    train(model, prepared, options_of(settings, TRAIN_SECONDS, 0), clock=cpu_seconds)
    large_model.load_adapter_state(model.adapter_state())
    rows = (
        ("hippocampus, trained", model, cases[0].volume, 0.3),
        ("hippocampus, base alone", base, cases[0].volume, 0.3),
        ("256 x 256 x 100, trained", large_model, large, 3.0),
    )
    figures = [
        figure_of(
            f"scoring a case that is encoded: {name}", _seconds(one, volume, settings), "s", f"<= {bar:g}"
        )
        for name, one, volume, bar in rows
    ]
    return [*figures, _growth(model, settings, cases, work)]


def store_figures(work: Path) -> list[Figure]:
    """Offers with 10,000 cases: right after the start, after each of some labels, while scores come in; 50 at once."""
    studies, state = work / "studies", work / "state"
    scored_alike = _many_cases(studies, state, stamp_by(work, warm="false"))
    with started(work, studies, warm="false") as url:
        first = _offer(url, "first")[1]
        if unscored := httpx.get(f"{url}/medsa/status", timeout=PATIENCE_S).json()["unscored_cases"]:
            raise RuntimeError(f"the server scores {unscored} cases that have a score")
        usual = [_offer(url, f"client {number}") for number in range(OFFERS)]
        labelled = [_after_label(url, studies, case) for case, _ in usual[:LABELS]]
        scored = [_after_score(url, state, number, scored_alike) for number in range(OFFERS)]
        with ThreadPoolExecutor(ANNOTATORS) as pool:
            together = list(pool.map(lambda number: _offer(url, f"together {number}"), range(ANNOTATORS)))
    title = f"next sample, {STORE_CASES:,} cases in the store"
    rows = (
        (title, [seconds for _, seconds in usual]),
        (f"{title}, right after a label", labelled),
        (f"{title}, while scores come in", scored),
    )
    return [
        *(figure_of(name, 1000 * median(taken), "ms", "< 200", _slowest(taken)) for name, taken in rows),
        figure_of(f"{title}, the first after the start", 1000 * first, "ms", "< 200"),
        figure_of(
            f"different cases for {ANNOTATORS} annotators who ask at once",
            len({case for case, _ in together}),
            "cases",
            f">= {ANNOTATORS}",
            f"slowest answer {max(taken for _, taken in together):.2f} s",
        ),
    ]


def _slowest(seconds: Sequence[float]) -> str:
    return f"slowest of {len(seconds)}: {1000 * max(seconds):.0f} ms"


def _after_label(url: str, studies: Path, case: str) -> float:
    """Seconds that an offer takes right after `case` was labelled."""
    _save_label(url, studies, case)
    return _offer(url, f"after {case}")[1]


def _after_score(url: str, state: Path, number: int, alike: CaseScore) -> float:
    """The same right after a new score, of which there is one a second while scoring runs."""
    labels = {"object": LabelScore(0.5, 0.5, 0.5, 900.0)}
    score = replace(alike, labels=labels, embedding=np.full(256, 0.1, np.float32), time=1.0)
    ScoreFolder(state / "scores", shard=1).append(f"case{STORE_CASES - 1 - number:05d}", score)
    time.sleep(1.0)
    return _offer(url, f"scored {number}")[1]


def _seconds(model: MedSA, volume: Volume, settings: object) -> float:
    surveyor = _surveyor(model, settings)
    surveyor.survey(volume)  # encodes
    taken = []
    for _ in range(TRIES):
        started_at = time.perf_counter()
        surveyor.survey(volume)
        taken.append(time.perf_counter() - started_at)
    return median(taken)


def _surveyor(model: MedSA, settings: object) -> Surveyor:
    task = settings.task  # type: ignore[attr-defined]
    predictor = Predictor(model, "benchmark", task.intensity, task.slice_axis, EmbeddingCache(1 << 30))
    return Surveyor(Served(BASE, "", int(model.trained), predictor), tuple(task.labels))


def _growth(model: MedSA, settings: object, cases: Sequence[Case], work: Path) -> Figure:
    """Whether forty cases cost four times what ten do."""
    taken = []
    for count in LINEAR_COUNTS:
        folder = work / f"linear-{count}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for case in cases[:count]:
            save_mask(case.volume.array.astype(np.uint8), case.volume, folder / f"{case.case_id}.nii.gz")
        began = time.perf_counter()
        steps = list(sweep(_Folder(folder), ScoreFolder(folder / "scores"), _surveyor(model, settings)))
        taken.append((time.perf_counter() - began) / len(steps))
    each = ", ".join(f"{count}: {seconds:.3f} s" for count, seconds in zip(LINEAR_COUNTS, taken, strict=True))
    return figure_of(
        f"seconds a case, {LINEAR_COUNTS[-1]} cases against {LINEAR_COUNTS[0]}",
        taken[-1] / taken[0],
        "times",
        "<= 1.2",
        each,
    )


class _Folder:
    """Images of a folder, as a datastore of unlabelled ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list_images(self) -> list[str]:
        return [path.name.removesuffix(".nii.gz") for path in sorted(self.folder.glob("*.nii.gz"))]

    get_unlabeled_images = list_images

    def image_path(self, image_id: str) -> Path:
        return self.folder / f"{image_id}.nii.gz"

    def image_signature(self, image_id: str) -> str:
        return file_signature(self.image_path(image_id))

    def image_signatures(self) -> dict[str, str]:
        return {image_id: self.image_signature(image_id) for image_id in self.list_images()}


def _many_cases(studies: Path, state: Path, stamp: Stamp) -> CaseScore:
    """One small image under ten thousand names, all of which are scored; one of the scores."""
    shutil.rmtree(studies.parent, ignore_errors=True)
    studies.mkdir(parents=True)
    values = np.arange(16 * 16 * 4, dtype=np.uint8).reshape(16, 16, 4)
    first = studies / "case00000.nii.gz"
    save_mask(values, Volume(values, np.eye(4)), first)
    rng, scores, lines = np.random.default_rng(0), ScoreFolder(state / "scores"), []
    for number in range(STORE_CASES):
        case = f"case{number:05d}"
        if number:
            os.link(first, studies / f"{case}.nii.gz")
        labels = {"object": LabelScore(*rng.uniform(0, 1, 3).tolist(), 1000.0)}
        entry = CaseScore(
            BASE,
            0,
            labels,
            rng.normal(size=256).astype(np.float32),
            time=0.0,
            image=file_signature(first),  # they are one file
            model=stamp.model,
            view=stamp.view,
        )
        lines.append(entry.to_json(case))
    scores.path.mkdir(parents=True)
    (scores.path / "part-000.jsonl").write_text("\n".join(lines) + "\n")
    return entry


def _offer(url: str, client: str) -> tuple[str, float]:
    began = time.perf_counter()
    answer = httpx.post(f"{url}/activelearning/medsa", json={"client_id": client}, timeout=PATIENCE_S)
    return str(answer.raise_for_status().json()["id"]), time.perf_counter() - began


def _save_label(url: str, studies: Path, case: str) -> None:
    shape = load_volume(studies / f"{case}.nii.gz").shape_ijk
    info = [{"name": "object", "idx": 1}]
    files = {
        "params": (None, json.dumps({"label_info": info, "client_id": "client 0"})),
        "label": ("label.bin", np.ones(shape, np.uint8).tobytes()),
    }
    httpx.put(
        f"{url}/datastore/label", params={"image": case}, files=files, timeout=PATIENCE_S
    ).raise_for_status()
