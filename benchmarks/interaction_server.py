"""The real server for benchmarks/interaction.py, and clicks sent to it as OHIF sends them."""

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import nrrd
import numpy as np
from loop import ROOT, server
from numpy.typing import NDArray

from lib.files import file_signature
from lib.scoring.scores import CaseScore, ScoreFolder, Stamp
from lib.scoring.survey import stamp_of
from lib.server.parts import build_parts

BASE, PATIENCE_S = "vit_t", 600.0
OHIF = {
    "result_extension": ".nrrd",
    "result_dtype": "uint8",
    "result_compress": False,
    "restore_label_idx": False,
}


class WrongMaskError(Exception):
    """An answer that came as a success, and is not the mask that was asked for."""


class Clicker:
    """One annotator's connection to the server at `url`; every click is a first one, unless a `client` is named."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=PATIENCE_S)
        self._count = 0

    def __enter__(self) -> "Clicker":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def seconds(
        self, model: str, image: str, points: Sequence[Sequence[int]], client: str | None = None
    ) -> float:
        """From the request with the positive `points` [i, j, k] to the whole mask.

        Raises httpx.HTTPError for an answer that is none, WrongMaskError for one without the last point.
        """
        params = {**self._prompts(points, client), **OHIF}
        started = time.perf_counter()
        answer = self._post(model, image, params, "image")
        seconds = time.perf_counter() - started
        check_mask(answer.content, points[-1])
        return seconds

    def params(self, model: str, image: str, points: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What the answer says beside the mask."""
        return dict(self._post(model, image, self._prompts(points, None), "json").json())

    def open(self, image: str) -> None:
        """Asks about the image, as a viewer does before anybody clicks."""
        self._http.get("/datastore/image/info", params={"image": image}).raise_for_status()

    def status(self) -> dict[str, Any]:
        """The server's own account."""
        return dict(self._http.get("/medsa/status").raise_for_status().json())

    def _prompts(self, points: Sequence[Sequence[int]], client: str | None) -> dict[str, Any]:
        self._count += 1
        return {
            "foreground": [list(point) for point in points],
            "background": [],
            "client_id": client or f"{id(self)}-{self._count}",
        }

    def _post(self, model: str, image: str, params: Mapping[str, Any], output: str) -> httpx.Response:
        query = {"image": image, "output": output}
        answer = self._http.post(
            f"/infer/{model}", params=query, files={"params": (None, json.dumps(params))}
        )
        return answer.raise_for_status()


def check_mask(content: bytes, point: Sequence[int]) -> None:
    """Raises WrongMaskError unless `content` is an NRRD file whose mask holds the voxel `point`."""
    try:
        mask = _read_nrrd(content)
        inside = bool(mask[tuple(point)])
    except (nrrd.NRRDError, ValueError, IndexError, StopIteration) as error:
        raise WrongMaskError(f"no whole mask: {str(error) or 'nothing came'}") from error
    if not inside:
        raise WrongMaskError(f"the click at {list(point)} lies outside its mask")


def _read_nrrd(content: bytes) -> NDArray[np.uint8]:
    stream = io.BytesIO(content)
    return np.asarray(nrrd.read_data(nrrd.read_header(stream), stream))


@contextmanager
def fresh_server(work: Path, studies: Path, **conf: str) -> Iterator[str]:
    """The address of a server on `studies` with an empty state, as `make serve` starts it; it never trains."""
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "state", ignore_errors=True)  # an interrupted run may have left its embeddings
    with started(work, studies, **conf) as url:
        yield url


@contextmanager
def still_server(work: Path, studies: Path, case: str, **conf: str) -> Iterator[str]:
    """As `fresh_server`, on `studies` with one `case`, that has nothing to do but what it is asked.

    Scoring would compete for the processor with the clicks that are timed, and it leaves embeddings on the disk, so
    that no first click beside it or after it is cold. Here the case has a score already. Raises RuntimeError when the
    server does not take it for one.
    """
    state = work / "state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    (image,) = studies.glob(f"{case}.*")
    stamp = stamp_by(work, **conf)
    score = CaseScore(BASE, 0, image=file_signature(image), model=stamp.model, view=stamp.view)
    ScoreFolder(state / "scores").append(case, score)
    with started(work, studies, **conf) as url, Clicker(url) as clicker:
        # Without a model nothing counts as unscored.
        wait_until(lambda: clicker.status()["version"] is not None, "the model")
        status = clicker.status()
        if status["scoring"] or status["unscored_cases"]:
            raise RuntimeError(f"the server scores what has a score: {status}")
        yield url


@contextmanager
def started(work: Path, studies: Path, **conf: str) -> Iterator[str]:
    """A server with whatever state `work` holds."""
    with memory_as_make_serve(), server(studies, _conf(work, conf), work / "server.log") as url:
        yield url


def stamp_by(work: Path, **conf: str) -> Stamp:
    """What such a server, with nothing published, puts on scores: those that have it are not made anew."""
    parts = build_parts(ROOT / "apps" / "medsa", _conf(work, conf))
    return stamp_of(parts.serving.current(), tuple(parts.settings.task.labels))


def _conf(work: Path, conf: Mapping[str, str]) -> dict[str, str]:
    own = {"task": "object", "base": BASE, "auto_train": "false", "state": str(work / "state")}
    return {**own, **conf}


@contextmanager
def memory_as_make_serve(makefile: Path = ROOT / "Makefile") -> Iterator[None]:
    """How glibc keeps freed memory, which changes both the time of a click and what the server holds."""
    before = dict(os.environ)
    os.environ.update(kept_memory_variables(makefile.read_text()))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def kept_memory_variables(makefile: str) -> dict[str, str]:
    """The environment that the text of the Makefile gives the server; raises LookupError where it gives none."""
    for line in makefile.splitlines():
        name, _, value = line.partition(":=")
        if name.strip() == "KEEP_FREED":
            return dict(part.split("=", 1) for part in value.split())
    raise LookupError("the Makefile sets no KEEP_FREED")


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Raises TimeoutError when it takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.1)
