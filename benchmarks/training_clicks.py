"""Clicks at the real server while it trains, beside the same clicks while it does not."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
from base_figures import figure_of
from interaction_server import Clicker, started, wait_until
from interaction_volumes import MadeVolume, made_volume
from network import Figure
from training_kills import make_studies

NAME, SHAPE, SPACING_MM, OBJECT_SLICES = "clicked", (256, 256, 40), (0.8, 0.8, 2.5), 20
CLICKS, PAUSE_S = 30, 1.5
TRAIN_MINUTES = 10.0
STOP_S = 30.0  # a training is stopped within 10 s


def click_figures(work: Path, share: float) -> list[Figure]:
    """Median 2D and 3D click, with pauses as a person makes them and without, at rest and while training runs."""
    studies, volume = work / "studies", made_volume(100, SHAPE, SPACING_MM, OBJECT_SLICES)
    make_studies(studies)
    volume.save(studies / f"{NAME}.nii.gz")
    clicks = max(3, round(share * CLICKS))
    with _server(work, studies) as url, Clicker(url) as clicker:
        clicker.params("medsa", NAME, volume.clicks(1))
        at_rest = _all_medians(clicker, volume, clicks)
        httpx.post(f"{url}/train/medsa", json={}, timeout=STOP_S).raise_for_status()
        wait_until(lambda: _steps(url) > 0, "the first step")
        training = _all_medians(clicker, volume, clicks)
        still = _steps(url) > 0 and clicker.status()["training"]
        httpx.delete(f"{url}/train/", timeout=STOP_S).raise_for_status()
    if not still:
        raise RuntimeError("training was over before the clicks were")
    return [
        figure_of(
            f"median click while training runs, times that without: {kind}",
            training[kind] / at_rest[kind],
            "times",
            "< 2",
            f"{1000 * at_rest[kind]:.0f} and {1000 * training[kind]:.0f} ms, {clicks} clicks",
        )
        for kind in at_rest
    ]


def _all_medians(clicker: Clicker, volume: MadeVolume, clicks: int) -> dict[str, float]:
    return {
        f"{name}, {rhythm}": median(_times(clicker, model, volume, clicks, pause))
        for name, model in (("2D", "medsa_2d"), ("3D", "medsa"))
        for rhythm, pause in (("a pause between clicks", PAUSE_S), ("no pause", 0.0))
    }


def _times(clicker: Clicker, model: str, volume: MadeVolume, clicks: int, pause: float) -> list[float]:
    found = []
    for point in volume.clicks(clicks):
        time.sleep(pause)
        found.append(clicker.seconds(model, NAME, [point]))
    return found


def _steps(url: str) -> int:
    """Steps of the running training, 0 before the first."""
    status = str(httpx.get(f"{url}/info/").json()["train_stats"]["medsa"].get("status", ""))
    words = status.replace(",", "").split()
    return int(words[words.index("step") + 1]) if "step" in words else 0


@contextmanager
def _server(work: Path, studies: Path) -> Iterator[str]:
    conf = {"train_minutes": str(TRAIN_MINUTES), "embedding_cache_mb": "1024"}
    with started(work, studies, **conf) as url:
        with Clicker(url) as clicker:
            wait_until(lambda: clicker.status()["version"] is not None, "the model")
            # Scoring would compete with the clicks at rest.
            wait_until(lambda: not clicker.status()["unscored_cases"], "scoring")
        yield url
