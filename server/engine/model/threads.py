"""How many threads compute: as many as this process may use, not as many as the machine has.

A container sees every processor of its machine; what it may use of them is in its affinity and in the quota of its
cgroup. Threads beyond that wait for each other more than they compute. torch holds the number, and decoders take it
from there when they are made.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from server.engine.cgroups import PROCESS, cgroup_folders, read

MAX_THREADS = 1024
"""More than any machine has processors; a mistyped number is refused instead of exhausting the system's threads."""
PROCESSORS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class ThreadCount:
    """A number of threads, and in a few words why not more."""

    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.count} ({self.reason})"


def use_threads(asked: int | None) -> ThreadCount:
    """Has torch, and the decoders made from now on, compute with `asked` threads; None takes `usable_threads`."""
    usable = usable_threads(own_cpus(), os.environ)
    chosen = usable if asked is None else ThreadCount(asked, f"--threads; without it {usable}")
    torch.set_num_threads(chosen.count)
    return chosen


def own_cpus() -> Collection[int]:
    """The CPUs of this process's affinity; where the system has no such thing, all."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def usable_threads(
    cpus: Collection[int], environment: Mapping[str, str], process: Path = PROCESS, processors: Path = PROCESSORS
) -> ThreadCount:
    """The smallest of: the cores of these CPUs, the cgroups' quotas, OMP_NUM_THREADS; the folders are the kernel's."""
    num_cores = count_cores(cpus, processors)
    cores = ThreadCount(num_cores, f"cores that this process may run on: {num_cores}")
    return min([cores, *quotas(process), *openmp_threads(environment)], key=lambda limit: limit.count)


def count_cores(cpus: Collection[int], processors: Path) -> int:
    """Two CPUs may be the hardware threads of one core, and share what multiplies; unknown ones count as cores."""
    return len({read(processors / f"cpu{cpu}" / "topology" / "thread_siblings_list") or cpu for cpu in cpus})


def openmp_threads(environment: Mapping[str, str]) -> Iterator[ThreadCount]:
    """OMP_NUM_THREADS as OpenMP reads it: a list has a number for each level of nesting, else it means nothing."""
    number = re.match(r"\s*([1-9][0-9]{0,8})\s*(,|$)", environment.get("OMP_NUM_THREADS", ""), re.ASCII)
    if number:
        yield ThreadCount(int(number[1]), f"OMP_NUM_THREADS: {number[1]}")


def quotas(process: Path) -> Iterator[ThreadCount]:
    """The threads for each quota of the process's cgroups: rounded down, to 1 at least.

    Once a quota is spent, all threads stand still for the rest of its period (mostly 100 ms), in the middle of a pass.
    So 1.5 CPUs are one thread that decodes without a stop, and half a CPU for tokenising and HTTP; with two threads
    decoding alone is faster, and decoding beside tokenising slower (figures in offline/LOG.md).
    """
    for folder in cgroup_folders(process, "cpu"):
        cpus = quota(folder)
        if cpus is not None:
            yield ThreadCount(max(1, int(cpus)), f"quota of {folder}: {cpus:g} CPUs")


def quota(folder: Path) -> float | None:
    """The CPUs that a cgroup's quota allows: 1.5 for 150 ms of each 100 ms; None where it has none."""
    limit, _, period = read(folder / "cpu.max").partition(" ")
    if not limit:
        limit, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
    try:
        cpus = int(limit) / int(period)
    except (ValueError, ArithmeticError):
        # No such file, or `max`.
        return None
    # In v1, -1 is no quota.
    return cpus if cpus > 0 else None
