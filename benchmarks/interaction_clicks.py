"""How long single clicks take once the volume is encoded."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from base_figures import figure_of
from interaction_server import Clicker, still_server
from interaction_volumes import OBJECT_SLICES, MadeVolume, big_volume
from network import Figure

WARM_2D, WARM_3D, GROWING = 100, 20, 5
NAME = "big"


def click_figures(work: Path, share: float) -> list[Figure]:
    """Warm clicks on the large volume; `share` of the clicks, to try it out quickly."""
    volume, studies = save_big_volume(work)
    # All is encoded by the first clicks, so nothing goes on in the background.
    with still_server(work / "server", studies, NAME, warm="false") as url, Clicker(url) as clicker:
        slices = len(clicker.params("medsa", NAME, volume.clicks(1))["slices"])
        warm_2d = times(clicker, "medsa_2d", volume.clicks(scaled(WARM_2D, share)))
        warm_3d = times(clicker, "medsa", volume.clicks(scaled(WARM_3D, share)))
        corrected_2d, corrected_3d = (
            corrections(clicker, model, volume.clicks(scaled(GROWING, share)), f"grows-{model}")
            for model in ("medsa_2d", "medsa")
        )
    of_2d, of_3d = (
        f"{len(warm_2d)} clicks",
        f"{len(warm_3d)} clicks, {slices} slices answered of {OBJECT_SLICES}",
    )
    grown = f"2nd to {len(corrected_3d) + 1}th click of one client"
    high_2d, high_3d = (float(np.percentile(found, 95)) for found in (warm_2d, warm_3d))
    return [
        figure_of("warm 2D click, median", 1000 * median(warm_2d), "ms", "<= 150", of_2d),
        figure_of("warm 2D click, p95", 1000 * high_2d, "ms", "<= 300", of_2d),
        figure_of("warm 3D click, 256 x 256 x 100, median", median(warm_3d), "s", "<= 1.5", of_3d),
        figure_of("warm 3D click, 256 x 256 x 100, p95", high_3d, "s", note=of_3d),
        figure_of("one more 2D click, median", 1000 * median(corrected_2d), "ms", note=grown),
        figure_of("one more 3D click, median", median(corrected_3d), "s", note=grown),
    ]  # fmt: skip


def save_big_volume(work: Path) -> tuple[MadeVolume, Path]:
    """The volume, and the folder of studies in `work` that holds it as NAME."""
    volume, studies = big_volume(), work / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    volume.save(studies / f"{NAME}.nii.gz")
    return volume, studies


def scaled(count: int, share: float) -> int:
    """A part of `count`, at least two."""
    return max(2, round(count * share))


def times(clicker: Clicker, model: str, points: Iterable[Sequence[int]]) -> list[float]:
    """Seconds of each of `points` as a first click."""
    return [clicker.seconds(model, NAME, [point]) for point in points]


def corrections(clicker: Clicker, model: str, points: Sequence[Sequence[int]], client: str) -> list[float]:
    """Seconds of each click but the first, each sent with those before it."""
    spent = [clicker.seconds(model, NAME, points[: count + 1], client) for count in range(len(points))]
    return spent[1:]
