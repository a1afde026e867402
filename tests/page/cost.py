"""What watching costs a running server: `PYTHONPATH=. .venv/bin/python tests/page/cost.py --url http://127.0.0.1:8000`.

Streamed chats one at a time, in turns: as any client asks for them, while `/now` is asked for every two seconds as an
open page does, and with a trace as well. The figures are the tokens a second that the server itself measures and their
ratio to the first kind's, medians over rounds, with the 95 % interval of a bootstrap.
"""

import argparse
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

QUESTIONS = (
    "What is the capital of France, and what is there to see?",
    "Write a short story about a lighthouse keeper and a storm.",
    "Write a SQL query that counts the orders of each customer, and explain it.",
    "Explain to a child why the sky is blue.",
)
POLL_SECONDS = 2.0
KINDS = ("alone", "watched", "watched and traced")


@contextmanager
def watched(url: str, is_on: bool) -> Iterator[None]:
    """Asks for `/now` as an open page does."""
    ended = threading.Event()

    def poll() -> None:
        with httpx.Client(base_url=url, timeout=30) as http:
            while not ended.is_set():
                http.get("/now").raise_for_status()
                ended.wait(POLL_SECONDS)

    thread = threading.Thread(target=poll)
    if is_on:
        thread.start()
    yield
    ended.set()
    if is_on:
        thread.join()


def seconds_a_token(http: httpx.Client, model: str, method: str, is_traced: bool, num_tokens: int) -> float:
    """Of one round of chats, after their first tokens."""
    seconds = tokens = 0.0
    for question in QUESTIONS:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": num_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "speculation": {"method": method, "trace": is_traced},
        }
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            content = b"".join(response.iter_raw())
        last = json.loads(content.split(b"\n\n")[-3].removeprefix(b"data: "))
        seconds += last["metrics"]["generation_time_ms"] / 1000
        tokens += last["usage"]["completion_tokens"] - 1
    return seconds / tokens


def interval(alone: list[float], other: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median ratio of speeds, over rounds drawn anew."""
    draw, each = random.Random(0), ratios(alone, other)
    low, *_, high = statistics.quantiles(
        (statistics.median(draw.choices(each, k=len(each))) for _ in range(2000)), n=40
    )
    return low, high


def ratios(alone: list[float], other: list[float]) -> list[float]:
    return [one / two for one, two in zip(alone, other, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--methods", nargs="*", default=["plain", "cascade"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=160)
    options = parser.parse_args()
    with httpx.Client(base_url=options.url, timeout=120) as http:
        model = http.get("/v1/models").json()["data"][0]["id"]
        for method in options.methods:
            times: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for number in range(options.rounds + 1):
                # Each kind is the first one in turn; what the first round teaches, all others know.
                for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                    with watched(options.url, kind != "alone"):
                        time_each = seconds_a_token(http, model, method, kind == KINDS[2], options.tokens)
                    if number:
                        times[kind].append(time_each)
            for kind, each in times.items():
                low, high = interval(times["alone"], each)
                ratio = statistics.median(ratios(times["alone"], each))
                figures = f"{1 / statistics.median(each):.1f} tokens/s, {ratio:.3f} ({low:.3f} to {high:.3f})"
                print(f"{method}, {kind}: {figures}", flush=True)
        started = time.perf_counter()
        for _ in range(100):
            http.get("/now").raise_for_status()
        print(f"/now: {(time.perf_counter() - started) * 10:.2f} ms, client included")


if __name__ == "__main__":
    main()
