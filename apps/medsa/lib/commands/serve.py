"""`cli.py serve`: all that annotating needs on this machine: a PACS with demo series, the server on it, OHIF's address.

`make serve` runs it. With `--studies` there is a PACS or a folder already, and only the server is started.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import httpx

from lib.dicom.orthanc import INSTALL, PACKAGES, Orthanc, tied_to_starter
from lib.dicom.pacs import Pacs
from lib.dicom.upload import upload_folder
from lib.errors import InputError, PacsError

PACS_PORT, PACS_PORTS = 8042, 20
DEMO_CASES = 8
POLL_S, PATIENCE_S = 0.5, 30.0
SCHEMES = ("http://", "https://")
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; without any, everything is made here."""
    parser.add_argument(
        "--studies", default="", metavar="ADDRESS", help="a DICOMweb address, or a folder of images"
    )
    parser.add_argument(
        "--demo",
        type=Path,
        metavar="DIR",
        help="DICOM files to put into the PACS that is started, instead of made series",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="gets demo series and the PACS's data"
    )
    parser.add_argument("--task", default="demo", help="name of a file in configs/tasks (%(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    parser.add_argument(
        "--conf",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="any setting; may be repeated",
    )


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Serves until Ctrl-C or SIGTERM, then stops what it started; the server's exit code."""
    # Also where it was started in the background, which has Ctrl-C ignored.
    for number in ENDINGS:
        signal.signal(number, _interrupt)
    check_port(arguments.host, arguments.port)
    if arguments.studies and arguments.demo is not None:
        raise InputError("--demo", arguments.demo, "none beside --studies: no PACS is started then")
    if arguments.studies:
        return _serve(arguments, arguments.studies, app_dir)
    if not Orthanc.is_installed():
        install_orthanc()
    with own_pacs(arguments.data / "pacs") as orthanc:
        say(f"PACS: Orthanc at {orthanc.url}, on this machine only; its data in {orthanc.folder}")
        fill(orthanc, arguments.data / "demo-dicom", arguments.demo, app_dir)
        return _serve(arguments, orthanc.url, app_dir)


def install_orthanc() -> None:
    """By apt, as root or with a sudo that does not ask. Raises PacsError with the one command where it cannot."""
    say(f"Orthanc is not here; installing {' '.join(PACKAGES)}")
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive"]
    commands = (
        [*environment, "apt-get", "update", "-q"],
        [*environment, "apt-get", "install", "-q", "-y", "--no-install-recommends", *PACKAGES],
    )
    if shutil.which("apt-get") and (not sudo or shutil.which("sudo")):
        for command in commands:
            subprocess.run(command, check=False)
    if not Orthanc.is_installed():
        raise PacsError(
            f"Orthanc could not be installed; run: sudo {INSTALL}   or name a PACS or a folder: make serve STUDIES=..."
        )


def fill(orthanc: Orthanc, demo: Path, further: Path | None, app_dir: Path) -> None:
    """Puts the DICOM files of `further` into the PACS; without them the made series, into one that has none."""
    pacs = Pacs(orthanc.url)
    if further is None and not pacs.find(("CT", "MR")):
        # In a process of its own: what draws phantoms takes half a GB, which this one would keep while it serves.
        making = [sys.executable, str(app_dir / "cli.py"), "demo", "--dicom", "--cases", str(DEMO_CASES)]
        if subprocess.run([*making, "--out", str(demo)], check=False).returncode:
            raise PacsError(f"no demo series could be made in {demo}; see above")
        say(
            f"{upload_folder(pacs, demo / 'dicom').stored} instances of {DEMO_CASES} made series are in the PACS"
        )
    if further is not None:
        found = upload_folder(pacs, further)
        say(
            f"{found.stored} instances of {further} are in the PACS; {found.others} other files were left out"
        )
        for name, reason in found.refused.items():
            say(f"refused: {name}: {reason}")


@contextmanager
def own_pacs(folder: Path) -> Iterator[Orthanc]:
    """Orthanc on a free port, and on another one where a program has taken that before it did."""
    port = free_port(PACS_PORT)
    while True:
        orthanc = Orthanc(folder, port)
        try:
            orthanc.start()
            break
        except PacsError:
            taken, port = port, free_port(port)
            if port == taken:
                raise
    try:
        yield orthanc
    finally:
        orthanc.stop()


def free_port(first: int) -> int:
    """The first port from `first` on that nothing on this machine uses. Raises PacsError where all are taken."""
    for port in range(first, first + PACS_PORTS):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise PacsError(f"ports {first} to {first + PACS_PORTS - 1} are all in use")


def check_port(host: str, port: int) -> None:
    """Raises InputError for a port that another program has: that one would be asked whether we are there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError("port", port, f"one that is free at {host} ({error.strerror})") from error


def start_command(arguments: argparse.Namespace, studies: str, app_dir: Path) -> list[str]:
    """MONAI Label's own command."""
    command = [
        *tied_to_starter(),
        sys.executable,
        "-m",
        "monailabel.main",
        "start_server",
        "--app",
        str(app_dir),
    ]
    command += ["--studies", studies, "--host", arguments.host, "--port", str(arguments.port)]
    conf = [["task", arguments.task], *arguments.conf]
    return command + [part for key, value in conf for part in ("--conf", key, value)]


def addresses(arguments: argparse.Namespace, studies: str) -> list[str]:
    """What a person needs to know once the server answers."""
    url = server_url(arguments)
    lines = [
        f"3D Slicer: extension MONAILabel, module 'MONAI Label', server {url}",
        f"overview: {url}/medsa/",
    ]
    if studies.startswith(SCHEMES):
        lines.insert(
            0, f"OHIF: {url}/ohif/   open a study with 'MONAI Label', click, Submit label, Next sample"
        )
    truth = arguments.data / "demo-dicom" / "truth"
    if not arguments.studies and truth.is_dir():
        lines.append(
            f"simulated annotator: .venv/bin/python apps/medsa/cli.py simulate --server {url} --truth {truth}"
        )
    return [*lines, "Ctrl-C stops everything"]


def server_url(arguments: argparse.Namespace) -> str:
    """Where this machine reaches the server, whichever addresses it listens on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(arguments.host, arguments.host)
    return f"http://[{host}]:{arguments.port}" if ":" in host else f"http://{host}:{arguments.port}"


def say(text: str) -> None:
    """Beside the server's own output, which goes on for ever."""
    print(f"medsa: {text}", flush=True)


def _serve(arguments: argparse.Namespace, studies: str, app_dir: Path) -> int:
    say(f"serving {studies} as task {arguments.task}")
    # A session of its own: Ctrl-C reaches it through us, so that it ends before the PACS does.
    with _running(start_command(arguments, studies, app_dir)) as server:
        try:
            if _answers(server, f"{server_url(arguments)}/info/"):
                for line in addresses(arguments, studies):
                    say(line)
            return server.wait()
        except KeyboardInterrupt:
            say("stopping")
            return 0


@contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    server = subprocess.Popen(command, start_new_session=True)
    try:
        yield server
    finally:
        for number in ENDINGS:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        if server.poll() is None:
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """With its children; by force where it waits for a client that does not go."""
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(server: subprocess.Popen[bytes], url: str) -> bool:
    """Waits until it does; False when it ends instead."""
    while server.poll() is None:
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code < 500:
                return True
        except httpx.TransportError:
            time.sleep(POLL_S)
    return False


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
