"""What the worst client costs the others: the delay of /health and of a short chat while an attack goes on.

python tests/attacks.py [--seconds 12] [--only unread,tokenize] [flags of the server]

A table in Markdown on standard output: each attack with the longest delay of /health, the median and longest of chats
of 16 tokens, and how many of these were refused or failed. Speed depends on the machine, so no test asserts any of it.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 16, "seed": 1}
NOBODY = {"role": "user", "content": ""}
FILES = 256
"""Files that the server may open, which is what some systems give a process."""


def request(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(content)}"
    return "\r\n".join((*head, "", "")).encode() + content


def hold(url: str, content: bytes, count: int, seconds: float) -> None:
    """Connections that send so much, and then neither send nor read."""
    host, port = url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(OSError):
                connection.sendall(content)
        time.sleep(seconds)


def flood(url: str, path: str, body: dict[str, Any], count: int, seconds: float) -> None:
    """So many clients that send the same body again and again."""
    content, end = json.dumps(body), time.monotonic() + seconds

    def one(_: int) -> None:
        with httpx.Client(base_url=url, timeout=seconds) as client:
            while time.monotonic() < end:
                with contextlib.suppress(httpx.HTTPError):
                    client.post(path, content=content, headers={"content-type": "application/json"})
                time.sleep(0.1)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))


def attacks(model: str) -> dict[str, Callable[[str, float], None]]:
    chat = {"model": model, **CHAT}
    long = chat | {"max_tokens": 1000, "min_tokens": 1000, "n": 8, "logprobs": True, "top_logprobs": 20}
    unread = request("/v1/chat/completions", long | {"n": 4, "stream": True})
    many = {"model": model, "prompt": ["Hello"] * 128, "n": 8, "max_tokens": 16}
    parts = {"role": "user", "content": [{"type": "text", "text": ""}] * 161_000}
    half = request("/v1/chat/completions", chat)[:-5]

    def flooding(path: str, body: dict[str, Any], count: int) -> Callable[[str, float], None]:
        return lambda url, seconds: flood(url, path, body, count, seconds)

    return {
        "none": lambda url, seconds: None,
        "unread": lambda url, seconds: hold(url, unread, 2, seconds),
        "sequences": flooding("/v1/completions", many, 1),
        "tokenize": flooding("/tokenize", {"prompt": "hello world, how are you? " * 40_000}, 8),
        "long": flooding("/v1/chat/completions", chat | {"messages": [NOBODY | {"content": "word " * 800_000}]}, 2),
        "idle": lambda url, seconds: hold(url, b"", 300, seconds),
        "half": lambda url, seconds: hold(url, half, 300, seconds),
        "logprobs": flooding("/v1/chat/completions", long, 1),
        "messages": flooding("/v1/chat/completions", chat | {"messages": [NOBODY] * 90_000}, 1),
        "parts": flooding("/v1/chat/completions", chat | {"messages": [parts]}, 1),
        "ids": flooding("/detokenize", {"tokens": [1] * 2_000_000}, 1),
    }


@contextlib.contextmanager
def server(flags: list[str]) -> Iterator[tuple[str, str]]:
    """Its URL and its model's name, once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = f'ulimit -n {FILES}; exec "$0" -m server --port {url.rpartition(":")[2]} "$@"'
    process = subprocess.Popen(["bash", "-c", command, sys.executable, *flags], stderr=subprocess.DEVNULL)
    try:
        while not delay(f"{url}/ready")[1]:
            time.sleep(0.2)
        yield url, httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    finally:
        process.kill()
        process.wait()


def delay(url: str, body: dict[str, Any] | None = None) -> tuple[float, bool]:
    """Seconds that a request takes on a connection of its own, and whether it is answered with 200.

    The client does next to nothing, since it shares the processors with the server.
    """
    host, _, path = url.removeprefix("http://").partition("/")
    content = json.dumps(body) if body else None
    began = time.monotonic()
    with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as connection:
        try:
            connection.request("POST" if body else "GET", f"/{path}", content, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            return time.monotonic() - began, response.status == 200
        except (OSError, http.client.HTTPException):
            return time.monotonic() - began, False


def measure(url: str, model: str, seconds: float) -> tuple[list[tuple[float, bool]], list[tuple[float, bool]]]:
    """Delays of /health and of chats during so many seconds."""
    end = time.monotonic() + seconds

    def again(pause: float, path: str, body: dict[str, Any] | None) -> list[tuple[float, bool]]:
        delays = []
        while time.monotonic() < end:
            delays.append(delay(url + path, body))
            time.sleep(pause)
        return delays

    with ThreadPoolExecutor(2) as pool:
        health = pool.submit(again, 0.03, "/health", None)
        chats = pool.submit(again, 0.1, "/v1/chat/completions", {"model": model, **CHAT})
        return health.result(), chats.result()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--only", default="")
    options, flags = parser.parse_known_args()
    print(
        "| attack | /health, longest | chat, median | chat, longest | not answered |\n|---|---|---|---|---|", flush=True
    )
    for name in filter(None, options.only.split(",")) if options.only else attacks(""):
        with server(flags) as (url, model):
            delay(f"{url}/v1/chat/completions", {"model": model, **CHAT})
            attack = multiprocessing.Process(target=attacks(model)[name], args=(url, options.seconds), daemon=True)
            attack.start()
            health, chats = measure(url, model, options.seconds)
            attack.kill()
        worst, times = max(seconds for seconds, _ in health), [seconds for seconds, _ in chats]
        failed = sum(not is_answered for _, is_answered in (*health, *chats))
        print(
            f"| {name} | {worst * 1000:.0f} ms | {statistics.median(times) * 1000:.0f} ms | {max(times) * 1000:.0f} ms "
            f"| {failed} of {len(health) + len(chats)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
