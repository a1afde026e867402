"""The number of threads: cores, cgroup quotas of both versions, OMP_NUM_THREADS, and what is broken or missing."""

import os
import string
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engine.model import threads
from server.engine.model.threads import ThreadCount, count_cores, openmp_threads, quotas, usable_threads, use_threads

NAMES = st.text(string.ascii_lowercase + string.digits + "-_.:\\ ", min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)


class System:
    """A folder in place of `/proc/self`, and below it what is mounted."""

    def __init__(self, folder: Path) -> None:
        self.process = folder / "self"
        self.mounts = folder / "sys fs"
        self.process.mkdir(parents=True)
        self.cgroups: list[str] = ["1:name=systemd:/"]
        self.mountinfo: list[str] = [
            "22 1 8:1 / / rw shared:1 - ext4 /dev/vda rw",
            "23 22 0:5 / /proc rw - proc proc rw",
        ]
        self.write()

    def write(self) -> None:
        (self.process / "cgroup").write_text("".join(f"{line}\n" for line in self.cgroups))
        (self.process / "mountinfo").write_text("".join(f"{line}\n" for line in self.mountinfo))

    def mount(self, name: str, kind: str, root: str = "/") -> Path:
        """A mounted hierarchy; `kind` is the end of its line in mountinfo."""
        folder = self.mounts / name
        folder.mkdir(parents=True)
        paths = [path.replace("\\", r"\134").replace(" ", r"\040") for path in (root, str(folder))]
        self.mountinfo.append(f"31 23 0:28 {' '.join(paths)} rw,relatime shared:9 - {kind}")
        self.write()
        return folder

    def v2(self, group: str, root: str = "/") -> Path:
        self.cgroups.append(f"0::{group}")
        return self.mount("unified", "cgroup2 cgroup2 rw,nsdelegate", root)

    def v1(self, group: str, root: str = "/") -> Path:
        self.cgroups += [f"7:cpuset:{group}/other", f"4:cpu,cpuacct:{group}"]
        self.mount("cpuset", "cgroup cgroup rw,cpuset", root)
        return self.mount("cpu", "cgroup cgroup rw,cpu,cpuacct", root)

    @property
    def counts(self) -> list[int]:
        return [limit.count for limit in quotas(self.process)]


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def limit_v1(folder: Path, quota: object, period: object = 100000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


def limit_v2(folder: Path, content: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(content)


@pytest.mark.parametrize(
    ("content", "count"),
    [("50000 100000\n", 1), ("150000 100000\n", 1), ("200000 100000\n", 2), ("799999 100000", 7), ("60000 20000", 3)],
)
def test_a_quota_is_rounded_down_to_one_at_least(content: str, count: int, system: System) -> None:
    limit_v2(system.v2("/"), content)
    assert system.counts == [count]


def test_the_reason_names_the_quota_and_whose_it_is(system: System) -> None:
    limit_v2(folder := system.v2("/"), "150000 100000\n")
    assert list(quotas(system.process)) == [ThreadCount(1, f"quota of {folder}: 1.5 CPUs")]


@pytest.mark.parametrize(
    "content", ["max 100000\n", "", "\n", "150000\n", "150000 0\n", "0 100000\n", "-1 100000\n", "a b"]
)
def test_no_quota_is_no_limit(content: str, system: System) -> None:
    limit_v2(system.v2("/"), content)
    assert system.counts == []


def test_version_1_has_two_files_and_minus_one_for_none(system: System) -> None:
    folder = system.v1("/docker/1f")
    limit_v1(folder, -1)
    limit_v1(folder / "docker", 400000)
    limit_v1(folder / "docker" / "1f", 250000)
    limit_v1(system.mounts / "cpuset" / "docker" / "1f" / "other", 100000)
    assert system.counts == [2, 4]


def test_both_versions_at_once(system: System) -> None:
    limit_v2(system.v2("/a"), "300000 100000")
    limit_v1(system.v1("/b") / "b", 200000)
    assert sorted(system.counts) == [2, 3]


def test_a_container_sees_its_own_part_as_the_top(system: System) -> None:
    """Docker with cgroup v1: the paths are those of the host, and only the container's own folder is mounted."""
    limit_v1(system.v1("/docker/1f", root="/docker/1f"), 200000)
    assert system.counts == [2]


@pytest.mark.parametrize(
    ("group", "root"), [("/docker/2e", "/docker/1f"), ("/../other", "/"), ("/docker", "/docker/1f"), ("", "/")]
)
def test_a_group_that_is_not_mounted_has_no_quota(group: str, root: str, system: System) -> None:
    limit_v2(system.v2(group, root), "100000 100000")
    assert system.counts == []


def test_files_that_are_missing_or_not_text(system: System) -> None:
    assert list(quotas(system.process / "absent")) == []
    folder = system.v2("/group")
    assert system.counts == []
    (folder / "cpu.max").mkdir()
    (folder / "group").mkdir()
    (folder / "group" / "cpu.max").write_bytes(b"\xff\xfe\x00")
    assert system.counts == []


@given(st.lists(st.tuples(NAMES, st.floats(0.1, 64)), max_size=4), st.floats(0.1, 64))
def test_the_smallest_quota_on_the_way_up_counts(below: list[tuple[str, float]], top: float) -> None:
    with TemporaryDirectory() as temporary:
        system = System(Path(temporary))
        folder = system.v2("/" + "/".join(name for name, _ in below))
        limit_v2(folder, f"{round(top * 100000)} 100000")
        for name, cpus in below:
            folder /= name
            limit_v2(folder, f"{round(cpus * 100000)} 100000")
        expected = min(max(1, round(cpus * 100000) // 100000) for cpus in (top, *(cpus for _, cpus in below)))
        assert usable_threads(range(64), {}, system.process, Path("absent")).count == expected


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=40))
def test_nothing_that_these_files_hold_is_an_error(cgroup: bytes, mountinfo: bytes, limit: bytes) -> None:
    with TemporaryDirectory() as temporary:
        system = System(Path(temporary))
        limit_v2(folder := system.v2("/"), "")
        (folder / "cpu.max").write_bytes(limit)
        assert all(count >= 1 for count in system.counts)
        with (system.process / "mountinfo").open("ab") as file:
            file.write(mountinfo)
        (system.process / "cgroup").write_bytes(b"0::/\n" + cgroup)
        assert usable_threads({0, 1}, {}, system.process, Path("absent")).count in (1, 2)


@given(st.text(max_size=12), st.text(max_size=12))
def test_a_quota_is_two_numbers_or_nothing(limit: str, period: str) -> None:
    with TemporaryDirectory() as temporary:
        limit_v1(Path(temporary), limit.encode(errors="replace").decode(), period.encode(errors="replace").decode())
        cpus = threads.quota(Path(temporary))
        assert cpus is None or cpus > 0


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu, siblings in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
    assert count_cores({0, 1, 2, 3}, tmp_path) == 2
    assert count_cores({0, 2}, tmp_path) == 1
    assert count_cores({0, 1, 2, 3, 8, 9}, tmp_path) == 4


@pytest.mark.parametrize(
    ("value", "count"),
    [("4", 4), (" 4 ", 4), ("4,2", 4), ("", None), ("0", None), ("-2", None), ("many", None), ("2x", None)],
)
def test_openmps_own_variable_is_a_limit(value: str, count: int | None, system: System) -> None:
    limits = list(openmp_threads({"OMP_NUM_THREADS": value}))
    assert [limit.count for limit in limits] == ([] if count is None else [count])
    usable = usable_threads(range(8), {"OMP_NUM_THREADS": value}, system.process, Path("absent"))
    assert usable.count == (count or 8)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process of two cores that nothing else limits; torch has its threads back afterwards."""
    monkeypatch.setattr(threads, "own_cpus", lambda: {0, 1})
    monkeypatch.setattr(threads, "count_cores", lambda cpus, folder: len(cpus))
    monkeypatch.setattr(threads, "quotas", lambda process: iter(()))
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
def test_torch_follows_and_the_reason_is_said() -> None:
    assert str(use_threads(None)) == "2 (cores that this process may run on: 2)"
    assert torch.get_num_threads() == 2
    assert str(use_threads(3)) == "3 (--threads; without it 2 (cores that this process may run on: 2))"
    assert torch.get_num_threads() == 3


def test_own_cpus_are_those_of_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(threads.own_cpus()) == os.sched_getaffinity(0)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert list(threads.own_cpus()) == [0]
