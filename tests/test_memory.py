"""How much memory there is, read from a made-up /proc and /sys, and what is given back of it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lib.memory import (
    FURTHER_TIMES,
    GROWTH_BYTES,
    TRIM_SECONDS,
    GrowthLimiter,
    available_bytes,
    resident_bytes,
)

CPU = torch.device("cpu")
GB = 1 << 30
APP = Path(__file__).parents[1] / "apps/medsa"

Limit = Callable[..., None]


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 8 GB to spare, and no control groups."""
    write(
        tmp_path / "proc/meminfo",
        f"MemTotal: {16 << 20} kB\nMemAvailable:    {8 << 20} kB\nHugePages_Total: 0",
    )
    return tmp_path


def limit_v2(root: Path, group: str, limit: str | int, used: int, cached: int = 0) -> None:
    write(root / "proc/self/cgroup", "0::/batch/job")
    folder = root / "sys/fs/cgroup" / group
    write(folder / "memory.max", limit)
    write(folder / "memory.current", used)
    write(folder / "memory.stat", f"anon 5\ninactive_file {cached}")


def limit_v1(root: Path, group: str, limit: int, used: int, cached: int = 0) -> None:
    write(root / "proc/self/cgroup", "5:cpu,cpuacct:/job\n4:memory:/job\n0::/")
    folder = root / "sys/fs/cgroup/memory" / group
    write(folder / "memory.limit_in_bytes", limit)
    write(folder / "memory.usage_in_bytes", used)
    write(folder / "memory.stat", f"inactive_file 1\ntotal_inactive_file {cached}")


def test_what_the_machine_has_to_spare(root: Path) -> None:
    assert available_bytes(CPU, root) == 8 * GB


def test_it_is_unknown_where_there_is_no_proc(tmp_path: Path) -> None:
    assert available_bytes(CPU, tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "group"),
    [(limit_v1, ""), (limit_v1, "job"), (limit_v2, ""), (limit_v2, "batch"), (limit_v2, "batch/job")],
)
def test_a_control_group_leaves_less(root: Path, limit: Limit, group: str) -> None:
    limit(root, group, 4 * GB, 3 * GB)
    assert available_bytes(CPU, root) == GB


def test_the_narrowest_of_nested_groups_counts(root: Path) -> None:
    limit_v2(root, "batch", 3 * GB, GB)
    limit_v2(root, "batch/job", 6 * GB, GB)
    assert available_bytes(CPU, root) == 2 * GB


@pytest.mark.parametrize("limit", [limit_v1, limit_v2])
def test_cached_files_make_room(root: Path, limit: Limit) -> None:
    limit(root, "", 4 * GB, 3 * GB, cached=GB)
    assert available_bytes(CPU, root) == 2 * GB


def test_a_group_without_a_limit_or_of_others_changes_nothing(root: Path) -> None:
    limit_v2(root, "batch/job", "max", 3 * GB)
    limit_v2(root, "other", GB, GB)
    assert available_bytes(CPU, root) == 8 * GB


def test_a_wide_limit_does_not_make_the_machine_larger(root: Path) -> None:
    limit_v1(root, "job", 1 << 62, GB)
    assert available_bytes(CPU, root) == 8 * GB


def test_beyond_its_limit_nothing_is_left(root: Path) -> None:
    limit_v2(root, "batch/job", GB, 2 * GB)
    assert available_bytes(CPU, root) == 0


def test_this_machine_has_some() -> None:
    found = available_bytes(CPU)
    assert found is None or found > 0


def test_on_a_gpu_what_torch_holds_unused_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GB, 16 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * GB)
    assert available_bytes(torch.device("cuda")) == 6 * GB


def test_what_a_process_holds_is_read_in_pages(root: Path) -> None:
    write(root / "proc/self/statm", "900 70 20 1 0 50 0")
    assert resident_bytes(root) == 70 * os.sysconf("SC_PAGE_SIZE")
    assert resident_bytes(root / "nowhere") == 0


class Process:
    """One whose size and time are what a test says."""

    def __init__(self) -> None:
        self.resident, self.time, self.given_back = GB, 0.0, 0
        self.limiter = GrowthLimiter(lambda: self.resident, self._give_back, lambda: self.time)

    def _give_back(self) -> None:
        self.given_back += 1
        self.resident -= GROWTH_BYTES // 2

    def look(self, grown: int, after: float) -> int:
        self.resident += grown
        self.time += after
        self.limiter.look()
        return self.given_back


def test_memory_is_given_back_once_the_process_has_grown() -> None:
    process = Process()
    assert process.look(GROWTH_BYTES - 1, 10 * TRIM_SECONDS) == 0
    assert process.look(1, 1.0) == 1
    for number in range(FURTHER_TIMES):
        assert process.look(0, TRIM_SECONDS) == 2 + number, "again: what was in use at the first time"
    assert process.look(GROWTH_BYTES - 1, 10 * TRIM_SECONDS) == 1 + FURTHER_TIMES, (
        "counted from what was left over"
    )
    assert process.look(1, 1.0) == 2 + FURTHER_TIMES


def test_memory_is_not_given_back_for_ever() -> None:
    process = Process()
    for _ in range(10 * FURTHER_TIMES):
        process.look(GROWTH_BYTES if process.time == 0.0 else 0, TRIM_SECONDS)
    assert process.given_back == 1 + FURTHER_TIMES


def test_memory_is_given_back_so_often_at_the_most() -> None:
    process = Process()
    assert process.look(GROWTH_BYTES, TRIM_SECONDS - 0.5) == 0
    assert process.look(0, 0.5) == 1
    assert process.look(10 * GROWTH_BYTES, TRIM_SECONDS - 0.5) == 1
    assert process.look(0, 0.5) == 2
    assert process.look(10 * GROWTH_BYTES, TRIM_SECONDS - 0.5) == 2


FRAGMENTED = """
import ctypes, psutil
from lib.memory import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = libc.free.argtypes = None
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def taken(size):
    block = libc.malloc(ctypes.c_size_t(size))
    libc.memset(block, 1, size)
    return block
def resident():
    return psutil.Process().memory_info().rss >> 20
large, small = [], []
for _ in range(100):
    large.append(taken(2 << 20))
    small.append(taken(64))
for block in large:
    libc.free(ctypes.c_void_p(block))
kept = resident()
give_back_freed_memory()
print(kept - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can give memory back")
def test_freed_memory_between_blocks_in_use_is_given_back() -> None:
    environment = {**os.environ, "PYTHONPATH": str(APP)}
    ran = subprocess.run(
        [sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True, env=environment
    )
    assert int(ran.stdout) > 150, "MB of 200 that were freed"
