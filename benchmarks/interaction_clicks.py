"""How long single clicks take: warm, cold, warmed in the background, and without any cache."""

from collections.abc import Iterable
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from base_figures import figure_of
from interaction_server import Clicker, fresh_server, wait_until
from interaction_volumes import MadeVolume, big_volume
from network import Figure

WARM_2D, WARM_3D, UNCACHED = 100, 20, 5
NAME = "big"
OFF = {"embedding_cache_mb": "0", "embedding_disk_mb": "0", "warm": "false"}


def click_figures(work: Path, share: float) -> list[Figure]:
    """Everything about single clicks; `share` of the clicks, to try it out quickly."""
    volume = big_volume()
    studies = work / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    volume.save(studies / f"{NAME}.nii.gz")
    with fresh_server(work / "cold", studies, warm="false") as url:
        clicker = Clicker(url)
        cold = clicker.seconds("medsa", NAME, volume.clicks(1)[0])
        warm_3d = _seconds(clicker, "medsa", volume.clicks(scaled(WARM_3D, share)))
        warm_2d = _seconds(clicker, "medsa_2d", volume.clicks(scaled(WARM_2D, share)))
        slices = len(clicker.params("medsa", NAME, volume.clicks(1)[0])["slices"])
    warmed = _first_click_after_opening(work / "warmed", studies, volume)
    with fresh_server(work / "off", studies, **OFF) as url:
        clicker = Clicker(url)
        off_3d = _seconds(clicker, "medsa", volume.clicks(scaled(UNCACHED, share)))
        off_2d = _seconds(clicker, "medsa_2d", volume.clicks(scaled(UNCACHED, share)))
    over = f"{slices} slices answered, object over 40"
    ratio_2d, ratio_3d = median(off_2d) / median(warm_2d), median(off_3d) / median(warm_3d)
    return [
        figure_of("warm 2D click, median", 1000 * median(warm_2d), "ms", "<= 150", f"{len(warm_2d)} clicks"),
        figure_of("warm 2D click, p95", 1000 * float(np.percentile(warm_2d, 95)), "ms", "<= 300"),
        figure_of("warm 3D click, 256 x 256 x 100, median", median(warm_3d), "s", "<= 1.5", over),
        figure_of("cold first 3D click, the same volume", cold, "s", "<= 10"),
        figure_of("first 3D click after warming in the background", warmed, "s", "<= 1.5"),
        figure_of("the same as a multiple of the warm click", warmed / median(warm_3d), "times", "<= 1.5"),
        figure_of("2D click with the cache off, times the warm one", ratio_2d, "times", ">= 10"),
        figure_of("3D click with the cache off, times the warm one", ratio_3d, "times"),
    ]  # fmt: skip


def scaled(count: int, share: float) -> int:
    """A part of `count`, at least two."""
    return max(2, round(count * share))


def _seconds(clicker: Clicker, model: str, points: Iterable[list[int]]) -> list[float]:
    return [clicker.seconds(model, NAME, point) for point in points]


def _first_click_after_opening(work: Path, studies: Path, volume: MadeVolume) -> float:
    """The case is opened as a viewer does, and clicked on when the server says that it is warm."""
    with fresh_server(work, studies) as url:
        clicker = Clicker(url)
        httpx.get(f"{url}/datastore/image/info", params={"image": NAME}, timeout=60).raise_for_status()

        def whole() -> bool:
            warming = clicker.status()["warming"]
            return bool(warming["of"]) and warming["done"] == warming["of"]

        wait_until(whole, "the volume to be warm")
        return clicker.seconds("medsa", NAME, volume.clicks(1)[0])
