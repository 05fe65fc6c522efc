"""The real server for benchmarks/interaction.py, and clicks sent to it as OHIF sends them."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from loop import server

PATIENCE_S = 600.0
OHIF = {
    "result_extension": ".nrrd",
    "result_dtype": "uint8",
    "result_compress": False,
    "restore_label_idx": False,
}


@dataclass
class Clicker:
    """One annotator's connection; every click is a first one, unless a `client` is named."""

    url: str
    count: int = 0

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def seconds(self, model: str, image: str, point: Sequence[int], client: str | None = None) -> float:
        """From the request to the whole mask; raises httpx.HTTPStatusError for an answer that is none."""
        self.count += 1
        params = {"foreground": [list(point)], "background": [], **OHIF}
        params["client_id"] = client or f"{id(self)}-{self.count}"
        started = time.perf_counter()
        self.post(model, image, params, "image")
        return time.perf_counter() - started

    def params(self, model: str, image: str, point: Sequence[int]) -> dict[str, Any]:
        """What the answer says beside the mask."""
        self.count += 1
        params = {"foreground": [list(point)], "client_id": f"{id(self)}-{self.count}"}
        return dict(self.post(model, image, params, "json").json())

    def post(self, model: str, image: str, params: Mapping[str, Any], output: str) -> httpx.Response:
        """One request to /infer."""
        query = {"image": image, "output": output}
        answer = self.http.post(f"/infer/{model}", params=query, files={"params": (None, json.dumps(params))})
        return answer.raise_for_status()

    def status(self) -> dict[str, Any]:
        """The server's own account."""
        return dict(self.http.get("/medsa/status").raise_for_status().json())


@contextmanager
def fresh_server(work: Path, studies: Path, **conf: str) -> Iterator[str]:
    """The address of a server on `studies` with an empty state, which never trains."""
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "state", ignore_errors=True)  # an interrupted run may have left its embeddings
    own = {"task": "object", "base": "vit_t", "auto_train": "false", "state": str(work / "state")}
    with server(studies, {**own, **conf}, work / "server.log") as url:
        yield url


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Raises TimeoutError when it takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.1)
