"""A server for real clients: the one at CLIENTS_URL, or the default model on a free port.

SERVER_PYTHON is the interpreter of an environment that has the server, where that of the clients has not.
"""

import gc
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import pytest


class Served(NamedTuple):
    url: str
    model: str

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@pytest.fixture(autouse=True)
def connections_left_open() -> Iterator[None]:
    """Some clients leave theirs to the garbage collector, which would warn of them in the middle of another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    if url := os.environ.get("CLIENTS_URL"):
        yield Served(url, model_at(url))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    python = os.environ.get("SERVER_PYTHON", sys.executable)
    process = subprocess.Popen([python, "-m", "server", "--port", str(port), "--log-level", "warning"])
    url = f"http://127.0.0.1:{port}"
    try:
        yield Served(url, model_at(url))
    finally:
        process.terminate()
        process.wait()


def model_at(url: str) -> str:
    """The name of the model, once it is loaded."""
    for _ in range(300):
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return str(httpx.get(f"{url}/v1/models").json()["data"][0]["id"])
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("the server did not start")
