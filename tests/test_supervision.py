"""The server under a process manager that starts it again whenever it has ended, as Compose's restart policy does."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.live import wait_until

SERVER = """
import ctypes, os, signal, time
from server.__main__ import main
from server.engine import Engine

FAULTS = {
    11: lambda: time.sleep(1000),
    12: lambda: os.kill(os.getpid(), signal.SIGKILL),
    13: lambda: ctypes.string_at(0),
}
step = Engine.step

def faulty(self):
    for sequence in self.scheduler.running:
        FAULTS.get(sequence.seed, lambda: None)()
    return step(self)

Engine.step = faulty
main()
"""
"""The server, with a step that hangs, is killed or reads where nothing is for requests of certain seeds."""


class Supervisor:
    """Runs a command again and again; `codes` are those with which it ended."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.codes: list[int] = []
        self.is_stopping = False
        self.process: subprocess.Popen[bytes]
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.is_stopping:
            self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
            self.codes.append(self.process.wait())

    def stop(self) -> None:
        self.is_stopping = True
        self.process.kill()
        self.thread.join()


@contextmanager
def supervised(*arguments: str) -> Iterator[tuple[Supervisor, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    supervisor = Supervisor([sys.executable, "-c", SERVER, "--port", port, *arguments])
    supervisor.thread.start()
    try:
        yield supervisor, f"http://127.0.0.1:{port}"
    finally:
        supervisor.stop()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


def post(url: str, seed: int) -> httpx.Response:
    body: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 5, "seed": seed}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


@pytest.mark.parametrize(
    ("seed", "code", "answer"),
    [
        pytest.param(11, 1, "The engine has stopped", id="a step hangs"),
        pytest.param(12, -signal.SIGKILL, None, id="the process is killed"),
        pytest.param(13, -signal.SIGSEGV, None, id="a kernel reads where nothing is"),
    ],
)
def test_a_process_that_ends_is_started_again(tiny_checkpoint: Path, seed: int, code: int, answer: str | None) -> None:
    arguments = ("--model", str(tiny_checkpoint), "--served-model-name", "tiny", "--step-timeout", "1")
    with supervised(*arguments) as (supervisor, url):
        wait_until(lambda: is_ready(url))
        before = post(url, seed=1).json()["choices"]
        if answer:
            response = post(url, seed)
            assert response.status_code == 503 and answer in response.text
        else:
            with pytest.raises(httpx.HTTPError):
                post(url, seed)
        wait_until(lambda: bool(supervisor.codes) and is_ready(url))
        assert supervisor.codes == [code]
        assert post(url, seed=1).json()["choices"] == before
