"""compose.yaml and what it builds: checked as far as that goes without a container engine."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import cli
from lib.dicom.orthanc import INSTALL, Orthanc
from lib.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def dockerfile(service: str) -> str:
    return (ROOT / SERVICES[service]["build"]["dockerfile"]).read_text()


@pytest.mark.parametrize("service", ["pacs", "medsa"])
def test_each_service_has_its_health_checked_and_is_open_to_this_machine_only(service: str) -> None:
    described = SERVICES[service]
    assert described["healthcheck"]["test"]
    assert [port for port in described["ports"] if not port.startswith("127.0.0.1:")] == []
    assert described["volumes"]


def test_medsa_waits_for_a_pacs_that_answers() -> None:
    assert SERVICES["medsa"]["depends_on"] == {"pacs": {"condition": "service_healthy"}}


@pytest.mark.parametrize("service", ["pacs", "medsa"])
def test_what_is_copied_into_an_image_is_there(service: str) -> None:
    sources = re.findall(r"^COPY (\S+) ", dockerfile(service), re.MULTILINE)
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_server_is_started_with_settings_that_exist() -> None:
    command = json.loads(
        re.search(r"^CMD (\[.*\])", dockerfile("medsa").replace("\\\n", ""), re.MULTILINE)[1]
    )
    assert command[:4] == ["monailabel", "start_server", "--app", "apps/medsa"]
    where = [at for at, part in enumerate(command) if part == "--conf"]
    conf = {command[at + 1]: command[at + 2] for at in where}
    assert load_settings(cli.APP_DIR / "configs", conf).serving.state == Path("/state")
    assert any(volume.endswith(":/state") for volume in SERVICES["medsa"]["volumes"])


@pytest.mark.server
@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")])
def test_compose_accepts_the_files_and_asks_for_a_password(files: tuple[str, ...]) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("no docker-compose here: apt-get install docker-compose")
    command = [
        "docker-compose",
        *(part for file in files for part in ("-f", str(ROOT / file))),
        "config",
        "--quiet",
    ]
    without = {key: value for key, value in os.environ.items() if key != "PACS_PASSWORD"}
    refused = subprocess.run(command, capture_output=True, text=True, env=without, check=False)
    assert refused.returncode != 0
    assert "set a password for the PACS" in refused.stderr
    accepted = subprocess.run(
        command, capture_output=True, text=True, env={**without, "PACS_PASSWORD": "x"}, check=False
    )
    assert (accepted.returncode, accepted.stderr) == (0, "")


@pytest.mark.server
def test_the_pacs_of_the_container_takes_its_password_from_the_environment(tmp_path: Path) -> None:
    if not Orthanc.is_installed():
        pytest.skip(f"no Orthanc with DICOMweb here: {INSTALL}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config: dict[str, Any] = json.loads((ROOT / "docker" / "orthanc.json").read_text())
    config |= {"StorageDirectory": str(tmp_path), "IndexDirectory": str(tmp_path), "HttpPort": port}
    (tmp_path / "orthanc.json").write_text(json.dumps(config))
    environment = {**os.environ, "LC_ALL": "C", "PACS_PASSWORD": "from-outside"}
    process = subprocess.Popen(
        ["Orthanc", str(tmp_path / "orthanc.json")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}/dicom-web/series"
        deadline = time.monotonic() + 600
        while True:
            try:
                without = httpx.get(url, timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert without.status_code == 401
        assert httpx.get(url, auth=("medsa", "from-outside"), timeout=600).json() == []
    finally:
        process.terminate()
        process.wait(timeout=60)
