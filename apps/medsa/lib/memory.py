"""How this process uses memory, and how much there is for it."""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

# How much a process may grow before it looks for what it can give back, and how often it does at the most.
GROWTH_BYTES, TRIM_SECONDS = 64 << 20, 5.0
# Grown in the middle of a request, a process gets back only later what that still held; so often it is tried again.
FURTHER_TIMES = 6
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's mallopt parameters
_LARGE = 1 << 30


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks for the next step: a training loop otherwise spends its time in page faults.

    Does nothing where the C library is another one.
    """
    mallopt = _c_function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)


def give_back_freed_memory() -> None:
    """Returns all freed pages to the system, also those between blocks in use. Takes about 10 ms.

    Does nothing where the C library is another one than glibc.
    """
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


def resident_bytes(root: Path = Path("/")) -> int:
    """What this process holds in memory; 0 where the system does not say."""
    pages = " ".join(_lines(root / "proc/self/statm")).split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


class GrowthLimiter:
    """Gives freed memory back when this process has grown, not before: what is kept is soon used again.

    Small blocks that stay lie between the large ones that every request takes and frees, so that freed memory comes to
    be in pieces too small for the next request: measured, 800 MB of them after 80 volumes. Used by one thread.
    """

    def __init__(
        self,
        resident: Callable[[], int] = resident_bytes,
        give_back: Callable[[], None] = give_back_freed_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resident, self._give_back, self._clock = resident, give_back, clock
        self._before, self._at = resident(), clock()
        self._further = 0

    def look(self) -> None:
        """To be called every now and then."""
        if self._clock() - self._at < TRIM_SECONDS:
            return
        grown = self._resident() - self._before >= GROWTH_BYTES
        if not grown and not self._further:
            return
        self._give_back()
        self._further = FURTHER_TIMES if grown else self._further - 1
        self._before, self._at = self._resident(), self._clock()


def _c_function(name: str) -> Callable[..., object] | None:
    """A function of the C library; None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def available_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take on `device`, of the GPU's memory or of the machine's; None if unknown.

    On the CPU the least of what Linux estimates to be available and what the control groups of this process (of
    version 1 or 2: a container, a batch job) leave it. `root` is the file system in which /proc and /sys are read.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has taken and doesn't use counts as used there, but it's there for the next tensor.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    machine = _table(root / "proc/meminfo").get("MemAvailable:")
    if machine is None:
        return None
    return min([machine << 10, *_group_bytes(root)])


def _group_bytes(root: Path) -> list[int]:
    """What each control group around this process leaves it, in bytes; those without a limit are left out."""
    mount = root / "sys/fs/cgroup"
    found: list[int] = []
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, own = line.split(":", 2)
        if number == "0":
            found += _left(mount, own, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _left(mount / "memory", own, *names)
    return found


def _left(top: Path, own: str, limit_name: str, used_name: str, cache_name: str) -> list[int]:
    """Of the group `own` below `top`, a path as /proc names it, and of all groups that it's in."""
    # In a container the own group may be mounted as the top: what isn't there is passed over.
    parts = [part for part in own.split("/") if part not in ("", "..")]
    found = []
    for end in range(len(parts) + 1):
        group = top.joinpath(*parts[:end])
        limit, used = _number(group / limit_name), _number(group / used_name)
        if limit is not None and used is not None:
            # Cached files count as used, and go when memory is asked for.
            found.append(max(0, limit - used + _table(group / "memory.stat").get(cache_name, 0)))
    return found


def _number(path: Path) -> int | None:
    """The number in `path`; None where there is no such file or it says "max"."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _table(path: Path) -> dict[str, int]:
    """The lines "name number ..." of `path`."""
    rows = (line.split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
