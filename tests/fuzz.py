"""Hostile requests without an end: from the OpenAPI document, from `test_hostile.py`, and from clients that leave.

python tests/fuzz.py [--minutes 60] [--default-model] [flags of the server]

The server runs a tiny model, or the default one, in a process of its own. The end is a JSON line: requests by status,
answers whose status is not documented, and the server's memory (RSS in MB) at each twelfth of the time. Exit code 1
where there was such an answer, or the server ended.
"""

import argparse
import contextlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.api.http.test_hostile import BODIES, broken, content_types, fields
from tests.tiny import save_random_model, tiny_config

ENDLESS = settings(
    max_examples=1_000_000_000,
    deadline=None,
    phases=[Phase.generate],
    database=None,
    suppress_health_check=list(HealthCheck),
)
DOCUMENTED = {200, 400, 401, 404, 405, 413, 429, 503, 504}
MODES = list(schemathesis.GenerationMode)


class TimeUp(KeyboardInterrupt):
    """Ends a run of Hypothesis at once."""


class Fuzzing:
    """What was sent to one server, and what came back."""

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.end = time.monotonic() + seconds
        self.statuses: Counter[str] = Counter()
        self.wrong: list[str] = []

    def note(self, status: int, text: str) -> None:
        self.statuses[str(status)] += 1
        if status not in DOCUMENTED:
            self.wrong.append(f"{status}: {text[:500]}")
        if time.monotonic() > self.end:
            raise TimeUp

    def hostile(self, path: str) -> None:
        # A connection for each request: the server may close an idle one while a request is on its way.
        client = httpx.Client(base_url=self.url, timeout=120, limits=httpx.Limits(max_keepalive_connections=0))

        @ENDLESS
        @given(fields(path) | broken(path), content_types)
        def run(body: bytes, content_type: str) -> None:
            response = client.post(path, content=body, headers={"content-type": content_type})
            self.note(response.status_code, response.text)

        run()

    def documented(self) -> None:
        schema = schemathesis.openapi.from_url(f"{self.url}/openapi.json")
        documented = schema.raw_schema["paths"]
        operations = [schema[path][method] for path in documented for method in documented[path]]
        cases = st.one_of(*(each.as_strategy(generation_mode=mode) for each in operations for mode in MODES))

        @ENDLESS
        @given(cases)
        def run(case: schemathesis.Case[Any]) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body = case.body | {"model": "tiny"}
            response = case.call(base_url=self.url, timeout=120)
            self.note(response.status_code, response.text)

        run()

    def leaving(self) -> None:
        """Clients that send a part of a request, or all of it, read some of the answer, and go."""
        chance = random.Random(0)
        host, port = self.url.removeprefix("http://").split(":")
        while time.monotonic() < self.end:
            path, body = chance.choice(list(BODIES.items()))
            content = json.dumps(body | ({"stream": True} if path.startswith("/v1") else {})).encode()
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            whole = head.encode() + f"content-length: {len(content)}\r\n\r\n".encode() + content
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
                connection.settimeout(chance.random() / 10)
                connection.recv(chance.choice([1, 500, 100_000]))
            self.statuses["left"] += 1


@contextlib.contextmanager
def server(is_default: bool, flags: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        model = [] if is_default else ["--model", str(save_random_model(Path(folder), tiny_config()))]
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-m", "server", "--port", str(port), "--served-model-name", "tiny", *model, *flags]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def wait_for(url: str) -> None:
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        time.sleep(0.2)


def megabytes(process: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 // 1_000_000


def until_time_is_up(work: Callable[[], None], fuzzing: Fuzzing) -> None:
    """A request without an answer counts as wrong, and the work begins anew."""
    while time.monotonic() < fuzzing.end:
        try:
            work()
        except TimeUp:
            return
        except Exception as error:
            traceback.print_exc()
            fuzzing.wrong.append(f"no answer: {error}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--default-model", action="store_true")
    options, flags = parser.parse_known_args()
    with server(options.default_model, flags) as (process, url):
        wait_for(url)
        fuzzing = Fuzzing(url, options.minutes * 60)
        kinds: list[Callable[[], None]] = [fuzzing.documented, fuzzing.leaving]
        kinds += [lambda path=path: fuzzing.hostile(path) for path in BODIES]  # type: ignore[misc]
        threads = [threading.Thread(target=until_time_is_up, args=(kind, fuzzing), daemon=True) for kind in kinds]
        for thread in threads:
            thread.start()
        memory = []
        for _ in range(12):
            time.sleep(options.minutes * 5)
            memory.append(megabytes(process) if process.poll() is None else 0)
        for thread in threads:
            thread.join(150)
        is_well = process.poll() is None and httpx.get(f"{url}/ready").status_code == 200
    print(json.dumps({"statuses": fuzzing.statuses, "wrong": fuzzing.wrong, "memory": memory, "is_well": is_well}))
    sys.exit(0 if is_well and not fuzzing.wrong else 1)


if __name__ == "__main__":
    main()
