"""Eight annotators at once: whether the server still answers everybody else."""

import itertools
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from base_figures import figure_of
from interaction_server import Clicker, WrongMaskError, fresh_server
from interaction_volumes import made_volume
from network import Figure

CLIENTS, VOLUMES, SHAPE, OBJECT_SLICES = 8, 4, (128, 128, 40), 20
PLACES, CONVERSATION = 100, 5  # different clicks on a volume, and how many an object gets
PROBE_SECONDS = 0.2

# A process of its own: eight threads that click share one interpreter lock, which would be measured too. Each request
# is timed from when it was due: one that hangs also delays those after it, and they would have waited as well.
PROBE = """
import sys, time, httpx
url, seconds, pause = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
due = time.perf_counter()
end = due + seconds
with httpx.Client(timeout=60) as client:
    while due < end:
        time.sleep(max(0.0, due - time.perf_counter()))
        try:
            failed = client.get(url + "/info/").status_code != 200
        except httpx.HTTPError:
            failed = True
        print(time.perf_counter() - due, int(failed), flush=True)
        due += pause
"""

Places = Mapping[str, Sequence[Sequence[int]]]  # voxels inside the object, by case


@dataclass
class Tally:
    """What the clicking threads did; each appends only."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Click:
    """One request: all clicks so far on an object of `image`."""

    model: str
    image: str
    points: Sequence[Sequence[int]]


def load_figures(work: Path, minutes: float) -> list[Figure]:
    """`/info/` while eight clients click without pause."""
    places, tally = _save_cases(work / "studies"), Tally()
    with fresh_server(work, work / "studies") as url:
        ended = time.monotonic() + 60 * minutes
        arguments = (url, places, ended, tally)
        threads = [
            threading.Thread(target=_click_until, args=(number, *arguments)) for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        answers = probe(url, 60 * minutes)
        for thread in threads:
            thread.join()
    return figures_of(answers, tally, minutes)


def _save_cases(studies: Path) -> Places:
    studies.mkdir(parents=True, exist_ok=True)
    places = {}
    for number in range(VOLUMES):
        volume = made_volume(number, SHAPE, (1.0, 1.0, 2.5), OBJECT_SLICES)
        volume.save(studies / f"case{number}.nii.gz")
        places[f"case{number}"] = volume.clicks(PLACES)
    return places


def conversations(number: int, places: Places) -> Iterator[Click]:
    """What client `number` asks, for ever: up to five clicks on an object of one case after another, in 3D or 2D.

    Drawn at random: to prompts that it has answered before the server would have nothing to do.
    """
    drawn = random.Random(number)
    for case in itertools.cycle(places):
        model, chosen = drawn.choice(("medsa", "medsa_2d")), drawn.sample(places[case], CONVERSATION)
        for count in range(1, CONVERSATION + 1):
            yield Click(model, case, chosen[:count])


def _click_until(number: int, url: str, places: Places, ended: float, tally: Tally) -> None:
    with Clicker(url) as clicker:
        for click in conversations(number, places):
            if time.monotonic() > ended:
                return
            try:
                spent = clicker.seconds(click.model, click.image, click.points, f"client{number}")
            except (httpx.HTTPError, WrongMaskError) as error:
                tally.failures.append(f"{type(error).__name__}: {error}")
            else:
                tally.seconds.append(spent)


def probe(url: str, seconds: float) -> np.ndarray:
    """(N, 2): how long each answer of /info/ took in seconds, and 1 where it failed."""
    command = [sys.executable, "-c", PROBE, url, str(seconds), str(PROBE_SECONDS)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return np.array([[float(part) for part in line.split()] for line in ended.stdout.splitlines()])


def figures_of(answers: np.ndarray, tally: Tally, minutes: float) -> list[Figure]:
    """From the answers (N, 2) of /info/ and the clicks beside them."""
    middle, high, longest = 1000 * np.percentile(answers[:, 0], [50, 95, 100])
    failures = [*tally.failures, *["/info/ failed"] * int(answers[:, 1].sum())]
    over = f"over {minutes:g} minutes, {len(answers)} requests"
    clicks = tally.seconds
    click, high_click = np.percentile(clicks, [50, 95]).tolist() if clicks else (None, None)
    return [
        figure_of("/info/ while 8 clients click, p95", float(high), "ms", "<= 100", over),
        figure_of("/info/ while 8 clients click, median", float(middle), "ms"),
        figure_of("/info/ while 8 clients click, longest", float(longest), "ms"),
        figure_of("failed requests while 8 clients click", len(failures), "requests", "<= 0", "; ".join(failures[:3])),
        figure_of("clicks answered while 8 clients click", len(clicks), "clicks", note=over),
        figure_of("click while 7 others click, median", click, "s"),
        figure_of("click while 7 others click, p95", high_click, "s"),
    ]  # fmt: skip
