"""Memory: how much of it this process may take, and how it takes it, in huge pages or in small ones."""

import mmap
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from server.engine.cgroups import PROCESS, cgroup_folders, read

MACHINE = Path("/proc/meminfo")
UNKNOWN = 1 << 62
"""Where nothing tells how much there is."""


def available_memory(device: torch.device, process: Path = PROCESS, machine: Path = MACHINE) -> int:
    """Bytes that may be taken: what is free on a GPU; on a CPU the least of what is free and of all cgroups' limits."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = re.search(r"^MemAvailable: +(\d+) kB$", read(machine), re.MULTILINE)
    return min([int(free[1]) << 10 if free else UNKNOWN, *limits(process)])


def limits(process: Path) -> Iterator[int]:
    """Of the process's cgroup and those above it: `memory.max`, in version 1 `memory.limit_in_bytes`; `max` is none."""
    for folder in cgroup_folders(process, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (text := read(folder / name).strip()).isdecimal():
                yield int(text)


def reserve(num_bytes: int, is_huge: bool) -> Tensor:
    """So many bytes, zero.

    Weights are streamed, and through pages of 2 MB a processor streams twice as fast as through pages of 4 KB. A cache
    is written here and there: a page of 2 MB for each layer, slot and head would hold a few tokens and much nothing.
    """
    if sys.platform != "linux" or num_bytes == 0:
        return torch.zeros(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without huge pages has small ones only
        memory.madvise(mmap.MADV_HUGEPAGE if is_huge else mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
