"""All that an annotator's machine runs, started as `make serve` starts it: Orthanc, demo series and the server."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "apps" / "medsa"
sys.path[:0] = [str(APP)]

from lib.dicom.orthanc import tied_to_starter  # noqa: E402 (a folder, not a package)

PATIENCE_S = 600.0
_PACS, _READY = re.compile(r"medsa: PACS: Orthanc at (\S+),"), "medsa: OHIF: "


@dataclass(frozen=True)
class Station:
    """`url` of the server and `pacs_url` of the PACS; their data lies in `folder`, with the demo series' truth."""

    url: str
    pacs_url: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def truth(self) -> Path:
        """One file a series, named by SeriesInstanceUID."""
        return self.folder / "demo-dicom" / "truth"

    def get(self, path: str, **params: str) -> Any:
        """JSON of the server; raises httpx.HTTPStatusError."""
        return httpx.get(f"{self.url}{path}", params=params, timeout=PATIENCE_S).raise_for_status().json()

    def status(self) -> dict[str, Any]:
        """GET /medsa/status."""
        return dict(self.get("/medsa/status"))

    def wait_for_images(self, count: int) -> None:
        """Until the server lists so many; raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE_S
        while self.get("/info/")["datastore"]["total"] < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server did not list {count} images")
            time.sleep(0.2)


@contextmanager
def station(folder: Path, options: Sequence[str] = (), **conf: str) -> Iterator[Station]:
    """`cli.py serve` with its data in `folder`, until the block ends. Raises RuntimeError when it ends before."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = _free_port(), folder / "serve.log"
    settings = {"base": "vit_t", "state": str(folder / "state"), "pacs_seconds": "1", **conf}
    command = [
        *tied_to_starter(),
        sys.executable,
        str(APP / "cli.py"),
        "serve",
        "--data",
        str(folder),
        "--port",
        str(port),
        *options,
    ]
    command += [part for key, value in settings.items() for part in ("--conf", key, value)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=_environment())
    try:
        _wait(process, log)
        found = _PACS.search(log.read_text(errors="replace"))
        yield Station(f"http://127.0.0.1:{port}", found[1] if found else "", folder, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=PATIENCE_S)


def _environment() -> dict[str, str]:
    """As the Makefile has it: page faults are dear, and threads that wait must not spin."""
    large = str(1 << 30)
    own = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_ARENA_MAX": "2"}
    own |= {"MALLOC_MMAP_THRESHOLD_": large, "MALLOC_TRIM_THRESHOLD_": large}
    return {**os.environ, **own, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while _READY not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            said = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
            raise RuntimeError(f"cli.py serve did not get ready: {said}")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
