"""Memory of this process and of the machine, in bytes."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")


def resident_bytes(field: str) -> int | None:
    """Return this process's resident memory, current ("VmRSS") or peak ("VmHWM"), or None.

    The resource module's peak would include that of the process which started this one.
    """
    match = None
    if STATUS.is_file():
        match = re.search(rf"{field}:\s*(\d+) kB", STATUS.read_text())
    return int(match[1]) * 1024 if match else None


def peak_memory() -> int:
    """Return the most resident bytes of this process, where the kernel tells, else getrusage's."""
    peak = resident_bytes("VmHWM")
    if peak is not None:
        return peak

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Let the peak begin anew; where a container forbids it, it stays that of the whole process."""
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5")


def free_memory(device: torch.device) -> float:
    """Return the free bytes of a GPU, or of the machine within the limit of its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free

    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    numbers = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(numbers["MemAvailable"].split()[0]) * 1024

    # Version 2 of control groups, then version 1. Cached files give way to a process.
    for folder, limit, usage in (
        (CGROUP, "memory.max", "memory.current"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        if not (folder / limit).is_file():
            continue

        most = (folder / limit).read_text().strip()
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
        if most.isdigit():
            cached = int(statistics.get("inactive_file", 0))
            free = min(free, int(most) - int((folder / usage).read_text()) + cached)
    return free
