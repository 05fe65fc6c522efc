"""Eight annotators at once, and two hundred volumes one after the other."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
from base_figures import figure_of
from interaction_clicks import scaled
from interaction_server import Clicker, fresh_server
from interaction_volumes import made_volume
from network import Figure

CLIENTS, VOLUMES, SHAPE = 8, 4, (128, 128, 40)
PROBE_SECONDS = 0.2
CACHE_MB, ALLOWED_MB, MANY, SMALL_SHAPE = 512, 1536, 200, (96, 96, 24)

# A process of its own: eight threads that click share one interpreter lock, which would be measured too.
PROBE = """
import sys, time, httpx
url, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
with httpx.Client(timeout=60) as client:
    while time.monotonic() < until:
        started = time.perf_counter()
        try:
            failed = client.get(url + "/info/").status_code != 200
        except httpx.HTTPError:
            failed = True
        print(time.perf_counter() - started, int(failed), flush=True)
        time.sleep(float(sys.argv[3]))
"""


@dataclass
class Tally:
    """What the clicking threads did; each appends only."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def load_figures(work: Path, minutes: float) -> list[Figure]:
    """`/info/` while eight clients click without pause."""
    studies = work / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    points = {}
    for number in range(VOLUMES):
        volume = made_volume(number, SHAPE, (1.0, 1.0, 2.5), 20)
        volume.save(studies / f"case{number}.nii.gz")
        points[f"case{number}"] = volume.clicks(10)
    with fresh_server(work, studies) as url:
        tally, ended = Tally(), time.monotonic() + 60 * minutes
        threads = [
            threading.Thread(target=_click_until, args=(url, number, points, ended, tally))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        arguments = [sys.executable, "-c", PROBE, url, str(60 * minutes), str(PROBE_SECONDS)]
        probe = subprocess.run(arguments, capture_output=True, text=True, check=True)
        for thread in threads:
            thread.join()
    rows = np.array([[float(part) for part in line.split()] for line in probe.stdout.splitlines()])
    failed = int(rows[:, 1].sum()) + len(tally.failures)
    over = f"over {minutes:g} minutes, {len(rows)} requests beside {len(tally.seconds)} clicks"
    middle, high = 1000 * np.percentile(rows[:, 0], [50, 95])
    return [
        figure_of("/info/ while 8 clients click, p95", float(high), "ms", "<= 100", over),
        figure_of("/info/ while 8 clients click, median", float(middle), "ms"),
        figure_of("failed requests", failed, "requests", "<= 0", "; ".join(tally.failures[:3])),
        figure_of("click while 7 others click, median", float(np.median(tally.seconds)), "s"),
        figure_of("click while 7 others click, p95", float(np.percentile(tally.seconds, 95)), "s"),
    ]  # fmt: skip


def _click_until(
    url: str, number: int, points: dict[str, list[list[int]]], ended: float, tally: Tally
) -> None:
    clicker, count = Clicker(url), 0
    while time.monotonic() < ended:
        image = f"case{(number + count) % VOLUMES}"
        model = "medsa" if (number + count) % 2 else "medsa_2d"
        point = points[image][count % len(points[image])]
        try:
            tally.seconds.append(clicker.seconds(model, image, point, f"client{number}-{count}"))
        except httpx.HTTPError as error:
            tally.failures.append(f"{type(error).__name__}: {error}")
        count += 1


def memory_figures(work: Path, share: float) -> list[Figure]:
    """The server's memory while many different volumes go through a small cache."""
    studies = work / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    count = scaled(MANY, share)
    points = {}
    for number in range(count):
        volume = made_volume(number, SMALL_SHAPE, (1.0, 1.0, 2.0), 12)
        volume.save(studies / f"case{number:03d}.nii.gz")
        points[f"case{number:03d}"] = volume.clicks(1)[0]
    conf = {"embedding_cache_mb": str(CACHE_MB), "embedding_disk_mb": str(CACHE_MB), "train_after": "999"}
    with fresh_server(work, studies, **conf) as url:
        clicker, process = Clicker(url), _process_of(url)
        used: list[float] = []
        for case, point in points.items():
            clicker.seconds("medsa", case, point)
            used.append(process.memory_info().rss / (1 << 20))
        cache = clicker.status()["embedding_cache"]
    bar, steps = f"<= {CACHE_MB + ALLOWED_MB}", [len(used) * part // 4 - 1 for part in (1, 2, 3, 4)]
    course = ", ".join(f"{used[step]:.0f} after {step + 1}" for step in steps)
    return [
        figure_of(f"memory, highest, {count} volumes through a {CACHE_MB} MB cache", max(used), "MB", bar, course),
        figure_of("memory, growth over the second half", used[-1] - used[len(used) // 2], "MB"),
        figure_of("embeddings in memory", cache["used_bytes"] / (1 << 20), "MB", f"<= {CACHE_MB}"),
        figure_of("embeddings on disk", cache["disk"]["used_bytes"] / (1 << 20), "MB", f"<= {CACHE_MB * 1.05:g}"),
    ]  # fmt: skip


def _process_of(url: str) -> psutil.Process:
    """The server's process: the one that listens."""
    port = int(url.rsplit(":", 1)[1])
    for process in psutil.Process().children(recursive=True):
        if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections()):
            return process
    raise LookupError(f"no child listens on port {port}")
