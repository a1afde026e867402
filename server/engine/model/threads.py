"""How many threads compute: as many as this process may use, not as many as the machine has.

A container sees every processor of its machine; what it may use of them is in its affinity and in the quota of its
cgroup. Threads beyond that wait for each other more than they compute. torch holds the number, and decoders take it
from there when they are made.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

MAX_THREADS = 1024
"""More than any machine has processors; a mistyped number is refused instead of exhausting the system's threads."""
PROCESS = Path("/proc/self")
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
    for folder in cgroup_folders(process):
        cpus = quota(folder)
        if cpus is not None:
            yield ThreadCount(max(1, int(cpus)), f"quota of {folder}: {cpus:g} CPUs")


def cgroup_folders(process: Path) -> Iterator[Path]:
    """The folders of the process's cgroup and of its parents as far as they are mounted, of v2 and of v1's `cpu`.

    `cgroup` of the process names its groups (proc(5), cgroups(7)), `mountinfo` says which part of the tree is where.
    """
    own = dict(own_cgroups(read(process / "cgroup")))
    for line in read(process / "mountinfo").split("\n"):
        # 32 31 0:29 ROOT MOUNT_POINT rw,relatime ... - TYPE SOURCE OPTIONS
        place, _, kind = line.partition(" - ")
        match place.split(" "), kind.split(" "):
            case [_, _, _, root, mount_point, *_], ["cgroup2", *_]:
                hierarchy = "v2"
            case [_, _, _, root, mount_point, *_], ["cgroup", _, options] if "cpu" in options.split(","):
                hierarchy = "v1"
            case _:
                continue
        group, top = own.get(hierarchy), PurePosixPath(unescaped(root))
        # A group outside of what is mounted there cannot be found below it.
        if group is None or ".." in group.parts or not group.is_relative_to(top):
            continue
        inside = group.relative_to(top)
        yield from (Path(unescaped(mount_point)) / part for part in (inside, *inside.parents))


def own_cgroups(text: str) -> Iterator[tuple[str, PurePosixPath]]:
    """`v1` or `v2` and the path, from lines as `0::/docker/1f` (v2) and `4:cpu,cpuacct:/docker/1f` (v1)."""
    for line in text.split("\n"):
        match line.split(":", 2):
            case ["0", "", path]:
                yield "v2", PurePosixPath(path)
            case [_, controllers, path] if "cpu" in controllers.split(","):
                yield "v1", PurePosixPath(path)


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


def unescaped(path: str) -> str:
    """Mountinfo writes a blank as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def read(path: Path) -> str:
    """The file's text, empty where it cannot be read: then there is nothing that it limits."""
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""
