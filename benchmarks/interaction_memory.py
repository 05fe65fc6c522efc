"""What the server holds after two hundred different volumes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from base_figures import figure_of
from interaction_clicks import scaled
from interaction_server import Clicker, fresh_server, wait_until
from interaction_volumes import made_volume
from network import Figure

CACHE_MB, ALLOWED_MB, VOLUMES, SHAPE, OBJECT_SLICES = 512, 1536, 200, (96, 96, 24), 12
# The server and a scoring process share the folder, and each may be over by a 32nd (lib/embeddings/disk.py).
DISK_MB, DISK_ALLOWED_MB = 512, 512 + 2 * 512 / 32
MIB = 1 << 20


def memory_figures(work: Path, share: float) -> list[Figure]:
    """One 3D click on each of many volumes, with a small cache in memory and on disk."""
    points = _save_cases(work / "studies", scaled(VOLUMES, share))
    conf = {"embedding_cache_mb": str(CACHE_MB), "embedding_disk_mb": str(DISK_MB)}
    held: list[float] = []
    with fresh_server(work, work / "studies", **conf) as url, Clicker(url) as clicker:
        process = server_process(url)
        before = process.memory_info().rss / MIB
        for case, point in points.items():
            clicker.seconds("medsa", case, [point])
            held.append(process.memory_info().rss / MIB)
        wait_until(lambda: not _cache(clicker)["disk"]["pending"], "the disk")
        used = _cache(clicker)["used_bytes"] / MIB
        # At its highest between two clicks too.
        highest = max(*held, peak_mib(process.pid))
        on_disk = size_of(work / "state" / "embeddings") / MIB
    return figures_of([before, *held], highest, used, on_disk)


def figures_of(held: Sequence[float], highest: float, cached: float, on_disk: float) -> list[Figure]:
    """In MiB: what the server held before the first volume and after each, at its highest, and its caches."""
    count = len(held) - 1
    steps = [count * part // 4 for part in (0, 1, 2, 3, 4)]
    course = ", ".join(f"{held[step]:.0f} after {step}" for step in steps)
    through = f"{count} volumes through a {CACHE_MB} MB cache"
    return [
        figure_of(f"memory, highest, {through}", highest, "MiB", f"<= {CACHE_MB + ALLOWED_MB}", course),
        figure_of("memory, growth over the second half", held[-1] - held[count // 2], "MiB"),
        figure_of("embeddings in memory", cached, "MiB", f"<= {CACHE_MB}"),
        figure_of("embeddings on disk", on_disk, "MiB", f"<= {DISK_ALLOWED_MB:g}", f"set to {DISK_MB}"),
    ]


def _save_cases(studies: Path, count: int) -> Mapping[str, list[int]]:
    """A voxel to click on, by case."""
    studies.mkdir(parents=True, exist_ok=True)
    points = {}
    for number in range(count):
        volume = made_volume(number, SHAPE, (1.0, 1.0, 2.0), OBJECT_SLICES)
        volume.save(studies / f"case{number:03d}.nii.gz")
        points[f"case{number:03d}"] = volume.clicks(1)[0]
    return points


def _cache(clicker: Clicker) -> dict[str, dict[str, float]]:
    return dict(clicker.status()["embedding_cache"])


def server_process(url: str) -> psutil.Process:
    """The server at `url`, a child of this process: the one that listens. Raises LookupError."""
    port = int(url.rsplit(":", 1)[1])
    for process in psutil.Process().children(recursive=True):
        if any(
            one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in process.net_connections()
        ):
            return process
    raise LookupError(f"no child listens on port {port}")


def peak_mib(pid: int) -> float:
    """The most that the process has held since its start, as Linux counts it; 0 on another system."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def size_of(folder: Path) -> int:
    """Bytes of all files in `folder`; those that go meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
