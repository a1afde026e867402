"""The control groups of this process, whose limits hold beside those of the machine."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROCESS = Path("/proc/self")


def cgroup_folders(process: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's cgroup and of its parents as far as they are mounted, of v2 and of v1's controller.

    `cgroup` of the process names its groups (proc(5), cgroups(7)), `mountinfo` says which part of the tree is where.
    """
    own = dict(own_cgroups(read(process / "cgroup"), controller))
    for line in read(process / "mountinfo").split("\n"):
        # 32 31 0:29 ROOT MOUNT_POINT rw,relatime ... - TYPE SOURCE OPTIONS
        place, _, kind = line.partition(" - ")
        match place.split(" "), kind.split(" "):
            case [_, _, _, root, mount_point, *_], ["cgroup2", *_]:
                hierarchy = "v2"
            case [_, _, _, root, mount_point, *_], ["cgroup", _, options] if controller in options.split(","):
                hierarchy = "v1"
            case _:
                continue
        group, top = own.get(hierarchy), PurePosixPath(unescaped(root))
        # A group outside of what is mounted there cannot be found below it.
        if group is None or ".." in group.parts or not group.is_relative_to(top):
            continue
        inside = group.relative_to(top)
        yield from (Path(unescaped(mount_point)) / part for part in (inside, *inside.parents))


def own_cgroups(text: str, controller: str) -> Iterator[tuple[str, PurePosixPath]]:
    """`v1` or `v2` and the path, from lines as `0::/docker/1f` (v2) and `4:cpu,cpuacct:/docker/1f` (v1)."""
    for line in text.split("\n"):
        match line.split(":", 2):
            case ["0", "", path]:
                yield "v2", PurePosixPath(path)
            case [_, controllers, path] if controller in controllers.split(","):
                yield "v1", PurePosixPath(path)


def unescaped(path: str) -> str:
    """Mountinfo writes a blank as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def read(path: Path) -> str:
    """The file's text, empty where it cannot be read: then there is nothing that it limits."""
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""
