"""The real server as a child process, on small volumes made here and an untrained base."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

from lib.bases import catalog, choose_base
from lib.model.adapter_io import AdapterConfig, save_adapter
from lib.model.base import build_sam
from lib.model.catalog import build_model
from lib.settings import load_settings
from lib.training.releases import Releases
from lib.volume import Volume, load_volume, save_mask

APP = Path(__file__).resolve().parents[2] / "apps" / "medsa"
PATIENCE_S = 600.0


@dataclass
class Server:
    """One `monailabel start_server` on `studies`; its state is in `state`."""

    studies: Path | str
    state: Path
    checkpoint: Path
    conf: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    url: str = ""

    def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with (self.state.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                start_command(self.studies, port, self.full_conf()),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
            )
        poll(self._answers, "the server to answer /info/")

    def full_conf(self) -> dict[str, str]:
        own = {
            "task": "object",
            "base": "vit_t",
            "checkpoint": str(self.checkpoint),
            "state": str(self.state),
        }
        return {**own, "train_after": "3", "train_minutes": "0.2", **self.conf}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends this server and the children it has now, by their ids."""
        if self.process is None or self.process.poll() is not None:
            return
        children = self.children() if number == signal.SIGTERM else []
        self.process.send_signal(number)
        self.process.wait(timeout=PATIENCE_S)
        for child in children:
            if child.is_running():
                child.kill()
        self.process = None

    def children(self, method: str | None = None) -> list[psutil.Process]:
        """The server's child processes; with `method` ("train", "scoring") those of that kind."""
        assert self.process is not None
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if method is None or f"-m {method}" in command_of(child)]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def get(self, path: str, **params: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path, params=params)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=dict(body or {}))

    def status(self) -> dict[str, Any]:
        return self.get("/medsa/status").json()

    def infer(self, params: Mapping[str, Any] | str, model: str = "medsa", **query: str) -> httpx.Response:
        text = params if isinstance(params, str) else json.dumps(params)
        with self.client() as client:
            return client.post(f"/infer/{model}", params=query, files={"params": (None, text)})

    def save(
        self, image: str, label: Path, params: Mapping[str, Any] | None = None, **query: str
    ) -> httpx.Response:
        files = {
            "params": (None, json.dumps(params or {})),
            "label": (label.name, label.read_bytes(), "application/octet-stream"),
        }
        with self.client() as client:
            return client.put("/datastore/label", params={"image": image, **query}, files=files)

    def version_of_answer(self, image: str) -> int:
        answer = self.infer({"foreground": [[20, 18, 10]]}, image=image, output="json")
        assert answer.status_code == 200, answer.text
        return int(answer.json()["version"])

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended; see {self.state.parent / 'server.log'}"
        try:
            return httpx.get(f"{self.url}/info/", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


def command_of(process: psutil.Process) -> str:
    """Its command line; empty for one that has ended, which the server may not have noticed yet."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie is one, too
        return ""


def poll(holds: Callable[[], bool], what: str) -> None:
    """Polls until `holds()`; patience is for slow machines, no test is about it."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # As the Makefile has it: page faults are dear.
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def start_command(studies: Path | str, port: int, conf: Mapping[str, str]) -> list[str]:
    command = [str(Path(sys.executable).parent / "monailabel"), "start_server", "--app", str(APP)]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    return command + [part for key, value in conf.items() for part in ("--conf", key, value)]


def ellipsoid(seed: int) -> tuple[Volume, np.ndarray]:
    """A bright ellipsoid around voxel (20, 18, 10) of a 40x36x20 volume, and its mask."""
    rng = np.random.default_rng(seed)
    grid = np.indices((40, 36, 20)) - np.reshape([20, 18, 10], (3, 1, 1, 1))
    radii = np.reshape(np.array([9, 8, 5]) + rng.uniform(-1, 1, 3), (3, 1, 1, 1))
    inside = ((grid / radii) ** 2).sum(axis=0) < 1
    image = (100 * inside + rng.normal(0, 10, inside.shape)).astype(np.float32)
    affine = np.diag([-1.0, 1.25, 2.5, 1.0])
    affine[:3, 3] = (30, -20, 7)
    return Volume(image, affine), inside.astype(np.uint8)


def write_studies(folder: Path, count: int) -> None:
    """case0.nii.gz, case1.nii.gz, ... and one NRRD, `nrrdcase.nrrd`."""
    folder.mkdir()
    for number in range(count):
        volume, _ = ellipsoid(number)
        nibabel.save(nibabel.Nifti1Image(volume.array, volume.affine), folder / f"case{number}.nii.gz")
    volume, _ = ellipsoid(99)
    save_mask(np.clip(volume.array, 0, 255).astype(np.uint8), volume, folder / "nrrdcase.nrrd")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained vit_t: what these tests are about does not depend on how good it is."""
    spec = catalog(load_settings(APP / "configs", {"task": "object"}), APP).entries["vit_t"].spec
    path = tmp_path_factory.mktemp("base") / "vit_t.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = build_sam(spec).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture(scope="session")
def label_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Path]:
    """label_of(studies, image id) -> a file with the true label of an image that write_studies made."""
    folder = tmp_path_factory.mktemp("labels")

    def write(studies: Path, image_id: str) -> Path:
        source = next(studies.glob(f"{image_id}.n*"))
        seed = 99 if image_id == "nrrdcase" else int(image_id.removeprefix("case"))
        path = folder / f"{image_id}.nii.gz"
        save_mask(ellipsoid(seed)[1], load_volume(source), path)
        return path

    return write


@pytest.fixture(scope="module")
def make_server(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> Iterator[Callable[..., Server]]:
    """make_server(cases=4, **conf) -> a server that answers; it is stopped after the module's tests."""
    started: list[Server] = []

    def make(cases: int = 4, **conf: str) -> Server:
        folder = tmp_path_factory.mktemp("server")
        write_studies(folder / "studies", cases)
        server = Server(folder / "studies", folder / "state", checkpoint, conf)
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.stop()


@pytest.fixture
def serve(checkpoint: Path) -> Iterator[Callable[..., Server]]:
    """serve(studies, folder, **conf) -> a server on any studies, its state in `folder`; stopped after the test."""
    started: list[Server] = []

    def start(studies: Path | str, folder: Path, **conf: str) -> Server:
        server = Server(studies, folder / "state", checkpoint, conf)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool], str], None]:
    """wait_until(holds, what): polls until `holds()`, and fails after minutes."""
    return poll


@pytest.fixture(scope="session")
def app_dir() -> Path:
    """The app's folder, as it is given to `monailabel start_server`."""
    return APP


@pytest.fixture(scope="session")
def publish_adapter() -> Callable[..., None]:
    """publish_adapter(server, labels, record): one whose trained tensors are not the fresh ones, as after training."""

    def publish(
        server: Server, labels: Mapping[str, int] | None = None, record: Mapping[str, Any] | None = None
    ) -> None:
        labels = dict(labels or {"object": 1})
        settings = load_settings(
            APP / "configs", {"task": "object", "base": "vit_t", "checkpoint": str(server.checkpoint)}
        )
        model, sha256 = build_model(choose_base(settings, APP, None), list(labels))
        with torch.no_grad():
            for parameter in model.adapters.parameters():
                parameter.add_(0.01)
        config = AdapterConfig("vit_t", sha256, vars(model.dims), labels, {}, "test")
        run = {"decision": "published", "reasons": ["a test"], "label_digests": {}, **(record or {})}
        Releases(server.state).publish(lambda folder: save_adapter(folder, model, config, "card"), run)

    return publish


@pytest.fixture
def try_start(checkpoint: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """try_start(studies, conf) -> how a server ended that was not expected to start."""

    def run(studies: Path | str, conf: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        full = {
            "task": "object",
            "base": "vit_t",
            "checkpoint": str(checkpoint),
            "state": str(tmp_path / "state"),
        }
        command = start_command(studies, free_port(), {**full, **conf})
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment(), check=False
        )

    return run
