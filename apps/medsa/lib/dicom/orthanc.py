"""A PACS of one's own: Debian's Orthanc with its DICOMweb plugin, on loopback, with its own data folder."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import httpx

from lib.errors import PacsError

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ROOT = "/dicom-web/"
PATIENCE_S = 120.0
PACKAGES = ("orthanc", "orthanc-dicomweb")
INSTALL = f"apt-get install {' '.join(PACKAGES)}"


def tied_to_starter() -> list[str]:
    """What goes before a command so that it does not outlive a starter that is killed (util-linux)."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


class Orthanc:
    """One server with what it stores in `folder`; `login` is the user and the password that it asks for.

    Raises PacsError where Orthanc is not installed, or does not start.
    """

    def __init__(self, folder: Path, port: int, login: tuple[str, str] | None = None) -> None:
        self.folder, self.port, self.login = folder, port, login
        self._name = f"medsa {uuid4().hex}"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_installed() -> bool:
        """Whether it can be started here."""
        return shutil.which("Orthanc") is not None and PLUGIN.is_file()

    @property
    def url(self) -> str:
        """Its DICOMweb service."""
        return f"http://127.0.0.1:{self.port}{ROOT.rstrip('/')}"

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when it answers."""
        if not self.is_installed():
            raise PacsError(f"Orthanc is not installed; allowed: {INSTALL}, or the address of another PACS")
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "orthanc.json"
        config.write_text(json.dumps(self._settings(), indent=2))
        config.chmod(0o600)  # it holds the password
        with (self.folder / "orthanc.log").open("ab") as log:
            environment = {**os.environ, "LC_ALL": "C"}
            # A session of its own, so that Ctrl-C lets those end first who use it; and yet it does not outlive a
            # starter that is killed.
            self._process = subprocess.Popen(
                [*tied_to_starter(), "Orthanc", str(config)],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._wait()

    def stop(self) -> None:
        """Ends it, and waits for that: what it stores is then on the disk."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=PATIENCE_S)
        self._process = None

    def __enter__(self) -> "Orthanc":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if not self.is_running:
                raise PacsError(f"Orthanc did not start; see {self.folder / 'orthanc.log'}")
            try:
                url = f"http://127.0.0.1:{self.port}/system"
                answer = httpx.get(url, auth=self.login, timeout=5, trust_env=False)
                # Another program's Orthanc may have taken the port a moment before: then ours is about to end.
                if answer.status_code == 200 and self._name in answer.text:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.stop()
        raise PacsError(f"Orthanc did not answer in {PATIENCE_S:g} s; see {self.folder / 'orthanc.log'}")

    def _settings(self) -> dict[str, object]:
        data = str(self.folder / "db")
        return {
            "Name": self._name,
            "StorageDirectory": data,
            "IndexDirectory": data,
            "Plugins": [str(PLUGIN)],
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": self.login is not None,
            "RegisteredUsers": dict([self.login] if self.login else []),
            "OverwriteInstances": True,
            "DicomWeb": {"Enable": True, "Root": ROOT, "Host": "127.0.0.1", "Ssl": False},
        }
