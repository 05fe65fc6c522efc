"""The requests that a viewer sends to a medsa server, as 3D Slicer's plugin sends them."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from requests_toolbelt import MultipartDecoder

from lib.errors import MedsaError
from lib.prompts.promptset import PromptSet
from lib.volume import load_volume

# A first click may have to encode the whole volume on a CPU.
TIMEOUT = httpx.Timeout(600.0, connect=10.0)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a click gave: `mask` (i, j, k), the answer's `params`, and the seconds from request to answer."""

    mask: np.ndarray
    params: dict[str, Any]
    seconds: float


class MedsaClient:
    """One annotator at one server. Every method raises MedsaError when a request fails."""

    def __init__(self, http: httpx.Client, client_id: str, clock: Callable[[], float] = time.perf_counter):
        self._http = http
        self.client_id = client_id
        self._clock = clock

    def under(self, client_id: str) -> "MedsaClient":
        """The same connection for another client id, to whom no case is on lease yet."""
        return MedsaClient(self._http, client_id, self._clock)

    def labels(self, model: str) -> dict[str, int]:
        """Names and values of the labels that `model` answers."""
        models = _json(self._request("GET", "/info/")).get("models", {})
        if model not in models:
            raise MedsaError(f"the server has no model {model!r}; it has {', '.join(models) or 'none'}")
        labels = models[model]["labels"]
        if isinstance(labels, dict):
            return {str(name): int(value) for name, value in labels.items()}
        return {str(name): value for value, name in enumerate(labels, start=1)}

    def next_case(self, strategy: str) -> str | None:
        """The id of the case that is offered; None when none is left."""
        offered = _json(
            self._request("POST", f"/activelearning/{strategy}", json={"client_id": self.client_id})
        )
        return str(offered["id"]) if "id" in offered else None

    def infer(self, model: str, case_id: str, prompts: PromptSet) -> Answer:
        """The mask for `prompts`, which hold points and no boxes."""
        params = {
            "label": prompts.label,
            "foreground": [list(point) for point in prompts.positive_ijk],
            "background": [list(point) for point in prompts.negative_ijk],
            "client_id": self.client_id,
            "result_extension": ".nrrd",
            "result_dtype": "uint8",
        }
        started = self._clock()
        response = self._request(
            "POST", f"/infer/{model}", params={"image": case_id}, files=[_field("params", params)]
        )
        seconds = self._clock() - started
        return _answer(response, seconds)

    def save_label(self, case_id: str, file: Path, labels: Mapping[str, int]) -> None:
        """Saves `file` as the label of the case, with the names and values of all its segments."""
        params = {"label_info": [{"name": name, "idx": value} for name, value in labels.items()]}
        with file.open("rb") as stream:
            upload = ("label", (file.name, stream, "application/octet-stream"))
            self._request(
                "PUT",
                "/datastore/label",
                params={"image": case_id},
                files=[_field("params", {**params, "client_id": self.client_id}), upload],
            )

    def status(self) -> dict[str, Any]:
        """The server's own account of version, queue and trainings."""
        return _json(self._request("GET", "/medsa/status"))

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, timeout=TIMEOUT, **arguments)
        # A host name that cannot be encoded is a UnicodeError.
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise MedsaError(f"{method} {path}: {str(error) or type(error).__name__}") from error
        if not response.is_success:
            text = " ".join(response.text.split())[:300]
            raise MedsaError(f"{method} {path}: {response.status_code} {text}")
        return response


def _field(name: str, value: Mapping[str, Any]) -> tuple[str, tuple[None, str]]:
    """A multipart form field without a file name, which is how both viewers send `params`."""
    return name, (None, json.dumps(value))


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError as error:
        raise MedsaError(f"{response.request.url.path}: the answer is no JSON ({error})") from error
    return content if isinstance(content, dict) else {"content": content}


def _answer(response: httpx.Response, seconds: float) -> Answer:
    kind = response.headers.get("Content-Type", "")
    if not kind.startswith("multipart/"):
        raise MedsaError(f"{response.request.url.path}: the answer is {kind or 'untyped'}, not multipart")
    params: dict[str, Any] = {}
    mask: np.ndarray | None = None
    for part in MultipartDecoder(response.content, kind).parts:
        disposition = part.headers.get(b"Content-Disposition", b"")
        if b'name="params"' in disposition:
            params = json.loads(part.content)
        elif b'name="image"' in disposition:
            mask = _read_mask(part.content)
    if mask is None:
        raise MedsaError(f"{response.request.url.path}: the answer holds no image")
    return Answer(mask, params, seconds)


def _read_mask(content: bytes) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.nrrd"
        path.write_bytes(content)
        return load_volume(path).array
