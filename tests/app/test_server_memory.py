"""The real server gives back what a large request took, although glibc is told to keep it, as by `make serve`."""

import gzip
import json
import time
from collections.abc import Callable, Mapping
from itertools import count
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
# It looks every five seconds, and for half a minute after it has grown.
IDLE_S = 45.0


def large_request(seed: int) -> Mapping[str, Any]:
    """A click into a volume that the server has not seen."""
    noise = np.random.default_rng(seed).normal(0, 1, (320, 320, 200)).astype(np.float32)
    return {
        "params": (None, json.dumps({"foreground": [[160, 160, 100]]})),
        "file": ("big.nii.gz", gzip.compress(nibabel.Nifti1Image(noise, np.eye(4)).to_bytes(), 1)),
    }


def shrinks_when_idle(process: psutil.Process) -> bool:
    """Whether it comes to hold less although nothing is asked of it; what it is not told to give back it keeps."""
    most, deadline = 0, time.monotonic() + IDLE_S
    while time.monotonic() < deadline:
        now = process.memory_info().rss
        most = max(most, now)
        if most - now > 25 * MB:
            return True
        time.sleep(0.2)
    return False


def test_what_a_large_request_took_goes_back_to_the_system(
    make_server: Callable[..., Any],
    wait_until: Callable[[Callable[[], bool], str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in KEEP_FREED.items():
        monkeypatch.setenv(name, value)
    server = make_server(cases=1, auto_train="false", warm="false")
    process, seeds = psutil.Process(server.process.pid), count()

    def gives_back() -> bool:
        # Where it has looked in the middle of a request little is left to see: the next one shows it.
        with server.client() as client:
            assert client.post("/infer/medsa_2d", files=large_request(next(seeds))).status_code == 200
        return shrinks_when_idle(process)

    wait_until(gives_back, "the memory to come back")
