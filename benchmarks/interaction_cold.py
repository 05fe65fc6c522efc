"""How long the first click on a volume takes: cold, warmed in the background, and without any cache."""

from pathlib import Path
from statistics import median

from base_figures import figure_of
from interaction_clicks import NAME, save_big_volume, scaled, times
from interaction_server import Clicker, still_server, wait_until
from interaction_volumes import MadeVolume
from network import Figure

COLD_STARTS, WARM_2D, WARM_3D, UNCACHED = 3, 20, 10, 5
OFF = {"embedding_cache_mb": "0", "embedding_disk_mb": "0", "warm": "false"}


def cold_figures(work: Path, share: float) -> list[Figure]:
    """First clicks on the large volume, each at a server that has just been started with an empty state."""
    volume, studies = save_big_volume(work)
    places = volume.clicks(scaled(WARM_2D, share))
    first: list[float] = []
    warm_3d: list[float] = []
    warm_2d: list[float] = []
    for _ in range(max(1, round(COLD_STARTS * share))):
        with still_server(work / "server", studies, NAME, warm="false") as url, Clicker(url) as clicker:
            first.append(clicker.seconds("medsa", NAME, places[:1]))
            warm_3d += times(clicker, "medsa", places[: scaled(WARM_3D, share)])
            warm_2d += times(clicker, "medsa_2d", places)
    warmed = _first_after_opening(work / "warmed", studies, volume)
    with still_server(work / "off", studies, NAME, **OFF) as url, Clicker(url) as clicker:
        times(clicker, "medsa_2d", places[:1])  # reads the volume, which no cache of embeddings spares
        off_3d, off_2d = (times(clicker, m, places[: scaled(UNCACHED, share)]) for m in ("medsa", "medsa_2d"))
    alike = f"warm in the same run: {median(warm_3d):.3f} s"
    slower_2d, slower_3d = median(off_2d) / median(warm_2d), median(off_3d) / median(warm_3d)
    in_2d = f"{1000 * median(off_2d):.0f} ms and {1000 * median(warm_2d):.0f} ms"
    in_3d = f"{median(off_3d):.2f} s and {median(warm_3d):.2f} s"
    starts = f"median of {len(first)} servers"
    return [
        figure_of("cold first 3D click, 256 x 256 x 100", median(first), "s", "<= 10", starts),
        figure_of("first 3D click after warming in the background", warmed, "s", "<= 1.5", alike),
        figure_of("the same as a multiple of the warm click", warmed / median(warm_3d), "times", "<= 1.5"),
        figure_of("2D click with caches off, times the warm one", slower_2d, "times", ">= 10", in_2d),
        figure_of("3D click with caches off, times the warm one", slower_3d, "times", note=in_3d),
    ]  # fmt: skip


def _first_after_opening(work: Path, studies: Path, volume: MadeVolume) -> float:
    """The case is opened as a viewer does, and clicked on when the server says that it is warm."""
    with still_server(work, studies, NAME) as url, Clicker(url) as clicker:
        clicker.open(NAME)

        def whole() -> bool:
            warming = clicker.status()["warming"]
            return warming["case"] == NAME and warming["of"] > 0 and warming["done"] == warming["of"]

        wait_until(whole, "the volume to be warm")
        return clicker.seconds("medsa", NAME, volume.clicks(1))
