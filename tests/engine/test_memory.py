"""What this process may take: the least of what is free and of its control groups' limits."""

from pathlib import Path

import pytest
import torch

from server.engine.memory import UNKNOWN, available_memory
from tests.tiny import CPU


def process_in(folder: Path, cgroup: str, mounts: str) -> Path:
    """A process's folder in /proc."""
    process = folder / "process"
    process.mkdir()
    (process / "cgroup").write_text(cgroup)
    (process / "mountinfo").write_text(mounts)
    return process


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_of_nested_limits_counts(tmp_path: Path, version: int) -> None:
    name, root = {1: "memory.limit_in_bytes", 2: "memory.max"}[version], tmp_path / "groups"
    mounts = {
        1: f"35 31 0:32 / {root} rw - cgroup cgroup rw,memory\n36 31 0:33 / /other rw - cgroup cgroup rw,cpu",
        2: f"41 31 0:38 / {root} rw - cgroup2 cgroup2 rw",
    }[version]
    process = process_in(tmp_path, {1: "4:memory:/a/b\n3:cpu:/", 2: "0::/a/b"}[version], mounts)
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:       9000 kB\nMemFree: 10 kB\nMemAvailable:   4000 kB\n")
    assert available_memory(CPU, process, machine) == 4_096_000
    none = {1: "9223372036854771712\n", 2: "max\n"}[version]
    for folder in (root, root / "a", root / "a" / "b"):
        written(folder / name, none)
    assert available_memory(CPU, process, machine) == 4_096_000
    written(root / "a" / name, "3000000\n")
    assert available_memory(CPU, process, machine) == 3_000_000
    written(root / "a" / "b" / name, "2000000\n")
    assert available_memory(CPU, process, machine) == 2_000_000


def test_without_any_of_it_nothing_is_known(tmp_path: Path) -> None:
    assert available_memory(CPU, tmp_path, tmp_path / "none") == UNKNOWN
    assert 0 < available_memory(CPU) < UNKNOWN


def test_on_a_gpu_what_is_free_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 9))
    assert available_memory(torch.device("cuda")) == 5
