"""What the hop through Ray Serve costs: `PYTHONPATH=. python tests/cluster/cost.py --alone URL --cluster URL`.

Both serve the same model with as many threads, the cluster with one replica. Requests go to the one and the other in
turns. The first token's time is that of a streamed chat whose prompt is cached; throughput is the tokens a second of
`--clients` streams at once. Medians over rounds.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

QUESTION = "Write a long story about a lighthouse keeper and a storm."


def first_token(http: httpx.Client, model: str) -> float:
    """Milliseconds from sending a request to the first event of its answer."""
    started = time.perf_counter()
    with http.stream("POST", "/v1/chat/completions", json=body(model, 2)) as response:
        response.raise_for_status()
        next(response.iter_raw())
        taken = time.perf_counter() - started
    return taken * 1000


def rate(http: httpx.Client, model: str, num_clients: int, num_tokens: int) -> float:
    """Tokens a second of all streams together."""

    def answer(_: int) -> None:
        with http.stream("POST", "/v1/chat/completions", json=body(model, num_tokens)) as response:
            response.raise_for_status()
            response.read()

    started = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(answer, range(num_clients)))
    return num_clients * num_tokens / (time.perf_counter() - started)


def body(model: str, num_tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "speculation": {"method": "plain"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", required=True)
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--tokens", type=int, default=100)
    given = parser.parse_args()
    servers = {name: httpx.Client(base_url=getattr(given, name), timeout=120) for name in ("alone", "cluster")}
    model = servers["alone"].get("/v1/models").json()["data"][0]["id"]
    first: dict[str, list[float]] = {name: [] for name in servers}
    for http in servers.values():
        first_token(http, model)
    for _ in range(given.rounds):
        for name, http in servers.items():
            first[name].append(first_token(http, model))
    shown = {name: round(statistics.median(times), 2) for name, times in first.items()}
    print(json.dumps({"first_token_ms": shown, "added_ms": round(shown["cluster"] - shown["alone"], 2)}), flush=True)
    for num_clients in given.clients:
        rates: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(3):
            for name, http in servers.items():
                rates[name].append(rate(http, model, num_clients, given.tokens))
        told = {name: round(statistics.median(each), 1) for name, each in rates.items()}
        ratio = statistics.median(b / a for a, b in zip(rates["alone"], rates["cluster"], strict=True))
        print(json.dumps({"clients": num_clients, "tokens_per_second": told, "ratio": round(ratio, 3)}), flush=True)


if __name__ == "__main__":
    main()
