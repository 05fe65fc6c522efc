"""A server in memory that speaks as MONAI Label does, and knows the truth."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from requests_toolbelt import MultipartDecoder, MultipartEncoder

from lib.volume import Volume, load_volume, save_mask

AFFINE = np.diag([-1.0, 1.25, 2.5, 1.0])


@dataclass
class FakeServer:
    """Answers a first click with half the object, later ones with all of it. What it was sent is kept.

    `offers` are its unlabelled cases, the best first. As at the real server a client is given the case that it
    has on lease, else the first that nobody has, and saving ends the lease; without `keeps_leases` always the first.
    """

    folder: Path
    truth: dict[str, np.ndarray]
    labels: Any = field(default_factory=lambda: {"object": 1, "other": 2})
    offers: list[str] = field(default_factory=list)
    leases: dict[str, str] = field(default_factory=dict)
    keeps_leases: bool = True
    statuses: list[dict[str, Any]] = field(default_factory=list)
    broken_cases: tuple[str, ...] = ()
    interrupted_at: str | None = None  # a click in this case is where the annotator presses Ctrl-C
    version: int = 0
    clicks: list[dict[str, Any]] = field(default_factory=list)
    saved: dict[str, tuple[dict[str, Any], np.ndarray]] = field(default_factory=dict)
    requests: list[httpx.Request] = field(default_factory=list)

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(self.answer), base_url="http://server")

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path = request.url.path
        if path == "/info/":
            return httpx.Response(200, json={"models": {"medsa": {"labels": self.labels}}})
        if path == "/medsa/status":
            return httpx.Response(200, json=self._status())
        if path.startswith("/activelearning/"):
            offered = self._offer(json.loads(request.read())["client_id"])
            return httpx.Response(200, json={"id": offered} if offered else {})
        if path == "/datastore/label":
            return self._save(request)
        return self._infer(request)

    def _offer(self, client: str) -> str | None:
        own = [case for case in self.offers if self.leases.get(case) == client]
        free = [case for case in self.offers if not self.keeps_leases or case not in self.leases]
        case = next(iter(own + free), None)
        if case is not None:
            self.leases[case] = client
        return case

    def _status(self) -> dict[str, Any]:
        idle = {"training": False, "training_due": False, "last_run": None}
        return {**idle, **(self.statuses.pop(0) if self.statuses else {})}

    def _infer(self, request: httpx.Request) -> httpx.Response:
        case = request.url.params["image"]
        if case == self.interrupted_at:
            raise KeyboardInterrupt
        if case in self.broken_cases:
            return httpx.Response(422, json={"detail": f"image {case}: cannot be read"})
        params = json.loads(fields_of(request)["params"])
        self.clicks.append(params)
        value = self.labels[params["label"]]
        mask = (self.truth[case] == value).astype(np.uint8)
        if len(params["foreground"]) + len(params["background"]) == 1:
            mask[: mask.shape[0] // 2] = 0
        return multipart(self.folder, mask, {"version": self.version})

    def _save(self, request: httpx.Request) -> httpx.Response:
        found = fields_of(request)
        path = self.folder / "saved.nii.gz"
        path.write_bytes(found["label"])
        case = request.url.params["image"]
        self.saved[case] = (json.loads(found["params"]), load_volume(path).array)
        self.offers = [other for other in self.offers if other != case]
        return httpx.Response(200, json={"label": "saved"})


def fields_of(request: httpx.Request) -> dict[str, bytes]:
    """The multipart fields of a request by name."""
    parts = MultipartDecoder(request.read(), request.headers["Content-Type"]).parts
    names = [part.headers[b"Content-Disposition"].decode().split('name="')[1].split('"')[0] for part in parts]
    return {name: part.content for name, part in zip(names, parts, strict=True)}


def multipart(folder: Path, mask: np.ndarray, params: dict[str, Any]) -> httpx.Response:
    """An answer of /infer, encoded by the class that MONAI Label uses."""
    path = folder / "answer.nrrd"
    save_mask(mask, Volume(mask, AFFINE), path)
    body = MultipartEncoder(
        {
            "params": (None, json.dumps(params), "application/json"),
            "image": ("answer.nrrd", path.read_bytes(), "application/octet-stream"),
        }
    )
    return httpx.Response(200, content=body.to_string(), headers={"Content-Type": body.content_type})


def two_objects(shift: int) -> np.ndarray:
    """Label 1 and label 2 as boxes in a 12x11x8 volume."""
    label = np.zeros((12, 11, 8), np.uint8)
    label[2 + shift : 9 + shift, 1:6, 2:6] = 1
    label[3:6, 7:10, 1:4] = 2
    return label


@pytest.fixture
def truth_files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "truth"
    folder.mkdir()
    for number in range(3):
        label = two_objects(number)
        save_mask(label, Volume(label, AFFINE), folder / f"case{number}.nii.gz")
    return {f"case{number}": folder / f"case{number}.nii.gz" for number in range(3)}


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    folder = tmp_path / "server"
    folder.mkdir()
    return FakeServer(folder, {f"case{number}": two_objects(number) for number in range(3)})


@pytest.fixture
def http(server: FakeServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def sent_fields() -> Callable[[httpx.Request], dict[str, bytes]]:
    """sent_fields(request) -> its multipart fields by name."""
    return fields_of
