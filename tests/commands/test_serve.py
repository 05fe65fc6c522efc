"""`cli.py serve`: what it needs it starts, what it started it stops, and what it cannot it says."""

import argparse
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from lib.commands import serve
from lib.commands.serve import (
    PACS_PORTS,
    addresses,
    fill,
    free_port,
    install_orthanc,
    server_url,
    start_command,
)
from lib.dicom.orthanc import Orthanc
from lib.dicom.pacs import Pacs
from lib.errors import PacsError

ROOT = Path(__file__).resolve().parents[2]
CLI = ROOT / "apps" / "medsa" / "cli.py"


@pytest.fixture
def arguments(tmp_path: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    options = ["--port", "8123", "--task", "object", "--conf", "base", "vit_t", "--conf", "warm", "false"]
    return parser.parse_args(["--data", str(tmp_path), *options])


def test_the_server_gets_what_was_asked_for(arguments: argparse.Namespace) -> None:
    command = start_command(arguments, "http://pacs/dicom-web", Path("app"))
    command = command[command.index("monailabel.main") :]
    assert command[1:8] == [
        "start_server",
        "--app",
        "app",
        "--studies",
        "http://pacs/dicom-web",
        "--host",
        "127.0.0.1",
    ]
    assert command[8:] == [
        *("--port", "8123", "--conf", "task", "object"),
        *("--conf", "base", "vit_t", "--conf", "warm", "false"),
    ]


def test_ohif_is_offered_for_a_pacs_only(arguments: argparse.Namespace) -> None:
    assert addresses(arguments, "http://pacs/dicom-web")[0].startswith("OHIF: http://127.0.0.1:8123/ohif/")
    arguments.studies = "/data/studies"
    assert [
        line for line in addresses(arguments, "/data/studies") if "OHIF" in line or "simulated" in line
    ] == []


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8123"),
        ("0.0.0.0", "http://127.0.0.1:8123"),
        ("::1", "http://[::1]:8123"),
        ("::", "http://[::1]:8123"),
        ("medsa.example", "http://medsa.example:8123"),
    ],
)
def test_the_address_is_one_that_can_be_opened(arguments: argparse.Namespace, host: str, url: str) -> None:
    arguments.host = host
    assert server_url(arguments) == url


def test_a_port_in_use_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        assert first < free_port(first) < first + PACS_PORTS


def test_a_pacs_that_is_there_already_gets_nothing_put_in(tmp_path: Path) -> None:
    given = ["--data", str(tmp_path / "data"), "--studies", "http://pacs/dicom-web", "--demo", "dicom"]
    command = [sys.executable, str(CLI), "serve", *given, "--port", str(free_port(18000))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, "--demo: " in ended.stderr) == (2, True), ended.stderr


def test_a_server_port_in_use_is_said_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, str(CLI), "serve", "--data", str(tmp_path / "data"), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 2
    assert f"port: {port} is not accepted; allowed: one that is free at 127.0.0.1" in ended.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.server
def test_a_killed_starter_leaves_nothing_running(tmp_path: Path) -> None:
    if not Orthanc.is_installed() or not shutil.which("setpriv"):
        pytest.skip("no Orthanc or no setpriv here")
    with started(tmp_path) as (process, _):
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=600)
        assert alive == []


def test_without_apt_the_one_command_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PacsError, match="sudo apt-get install orthanc orthanc-dicomweb"):
        install_orthanc()


def test_what_only_waits_loads_neither_torch_nor_monai() -> None:
    code = (
        "import sys, lib.commands.serve; print([name for name in ('torch', 'monai') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=CLI.parent, capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"


@pytest.mark.server
def test_demo_series_are_put_into_an_empty_pacs_only(orthanc: Orthanc, tmp_path: Path, make_series) -> None:
    fill(orthanc, tmp_path / "demo", None, CLI.parent)
    listed = {entry.series for entry in Pacs(orthanc.url).find(["CT"])}
    truth = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "demo" / "truth").iterdir()}
    assert len(truth) == serve.DEMO_CASES
    assert truth == listed
    fill(orthanc, tmp_path / "other", None, CLI.parent)
    assert not (tmp_path / "other").exists()
    _, files = make_series()
    fill(orthanc, tmp_path / "other", files[0].parent, CLI.parent)
    assert len(Pacs(orthanc.url).find(["CT"])) == serve.DEMO_CASES + 1


@pytest.mark.server
def test_a_port_that_is_taken_at_the_last_moment_is_left_to_the_other(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def just_before(first: int) -> int:
        looked.append(first)
        return orthanc.port if len(looked) == 1 else free_port(first)

    monkeypatch.setattr(serve, "free_port", just_before)
    with serve.own_pacs(tmp_path / "pacs") as pacs:
        assert pacs.port != orthanc.port
        assert Pacs(pacs.url).find(["CT"]) == []
    assert looked == [serve.PACS_PORT, orthanc.port]


@pytest.mark.server
def test_ones_own_series_are_alone_in_the_pacs(orthanc: Orthanc, tmp_path: Path, make_series) -> None:
    _, files = make_series()
    fill(orthanc, tmp_path / "demo", files[0].parent, CLI.parent)
    assert len(Pacs(orthanc.url).find(["CT", "MR"])) == 1
    assert not (tmp_path / "demo").exists()


@pytest.mark.server
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_all_is_up_with_one_command_and_gone_after_one_signal(tmp_path: Path, ending: signal.Signals) -> None:
    if not Orthanc.is_installed():
        pytest.skip("no Orthanc here")
    with started(tmp_path) as (process, port):
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("Orthanc" in " ".join(child.cmdline()) for child in children)
        answer = httpx.get(f"http://127.0.0.1:{port}/proxy/dicom/qido/studies", timeout=60)
        assert len(answer.json()) == serve.DEMO_CASES
        process.send_signal(ending)
        assert process.wait(timeout=600) == 0
        _, alive = psutil.wait_procs(children, timeout=600)
        assert alive == []


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`cli.py serve` once it is up, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "serve.log"
    command = [sys.executable, str(CLI), "serve", "--data", str(folder / "data"), "--port", str(port)]
    command += ["--conf", "base", "vit_t", "--conf", "state", str(folder / "state")]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 600
        while f"medsa: OHIF: http://127.0.0.1:{port}/ohif/" not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process, port
    finally:
        process.terminate()
        process.wait()
