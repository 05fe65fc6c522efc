"""The real server gives back what a large request took, although glibc is told to keep it, as by `make serve`."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import pytest

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

KEEP_FREED = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
MB = 1 << 20


def highest(pid: int) -> int:
    """The most bytes that a process ever held, as Linux counts it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def test_what_a_large_request_took_goes_back_to_the_system(
    make_server: Callable[..., Any],
    wait_until: Callable[[Callable[[], bool], str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in KEEP_FREED.items():
        monkeypatch.setenv(name, value)
    server = make_server(cases=1, auto_train="false", warm="false")
    assert server.infer({"foreground": [[20, 18, 10]]}, image="case0").status_code == 200
    process = psutil.Process(server.process.pid)
    noise = np.random.default_rng(0).normal(0, 1, (320, 320, 200)).astype(np.float32)
    files = {
        "params": (None, json.dumps({"foreground": [[160, 160, 100]]})),
        "file": ("big.nii.gz", gzip.compress(nibabel.Nifti1Image(noise, np.eye(4)).to_bytes(), 1)),
    }
    with server.client() as client:
        assert client.post("/infer/medsa_2d", files=files).status_code == 200
    # It keeps the voxels, for the next click; not what it needed to read and rescale them.
    wait_until(lambda: highest(process.pid) - process.memory_info().rss > 50 * MB, "the memory to come back")
