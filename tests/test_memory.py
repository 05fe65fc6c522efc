"""How much memory there is, read from a made-up /proc and /sys."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lib.memory import available_bytes

CPU = torch.device("cpu")
GB = 1 << 30

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
