"""Routing by domain and beginning against load alone: `PYTHONPATH=. python tests/cluster/contest.py --prompts FILE`.

Starts two replicas for each kind of routing, one after the other, and lets clients hold the same conversations: each
begins with a prompt of the file (JSON lines with `prompt`), domains mixed, and goes on for some turns. One JSON line
for each: the share of prompt tokens that were not read again, of drafted tokens that were accepted, the time to the
first token, and tokens a second.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

FURTHER = ("Go on.", "Say that in other words.", "Now shorter, please.", "Give me another one.")
KINDS = ("load", "prefix", "domain")
PORT = 8131
URL = f"http://127.0.0.1:{PORT}"


def held(open_ones: "deque[list[dict[str, str]]]", num_turns: int, num_tokens: int) -> list[dict[str, Any]]:
    """What one client sees of the answers: it takes the conversation that has waited longest, for one turn.

    So a conversation goes on after others were answered, as it does while somebody reads and types.
    """
    seen: list[dict[str, Any]] = []
    with httpx.Client(base_url=URL, timeout=300) as http:
        model = http.get("/v1/models").json()["data"][0]["id"]
        while True:
            try:
                messages = open_ones.popleft()
            except IndexError:
                return seen
            turn = len(messages) // 2
            answer = ask(http, {"model": model, "messages": messages, "max_tokens": num_tokens})
            seen.append(answer | {"turn": turn})
            if turn + 1 < num_turns:
                further = FURTHER[turn % len(FURTHER)]
                said = {"role": "assistant", "content": answer["text"]}
                open_ones.append([*messages, said, {"role": "user", "content": further}])


def ask(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """The text of a streamed answer, its usage and metrics, and the seconds to its first event."""
    fields = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    started, first, text, last = time.perf_counter(), 0.0, "", {}
    with http.stream("POST", "/v1/chat/completions", json=body | fields) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            first = first or time.perf_counter() - started
            if line.startswith("data: {"):
                last = json.loads(line.removeprefix("data: "))
                text += "".join(choice["delta"].get("content") or "" for choice in last["choices"])
    return {"text": text, "first": first, "usage": last["usage"], **last["metrics"]["speculative_decoding"]}


def figures(seen: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Of all answers; the first token's time of later turns is apart, for there the beginning may be known."""
    prompt, cached = (sum(field(each["usage"]) for each in seen) for field in (prompt_tokens, cached_tokens))
    drafted, accepted = (sum(each[name] for each in seen) for name in ("num_draft_tokens", "num_accepted_draft_tokens"))
    tokens = sum(each["usage"]["completion_tokens"] for each in seen)
    first = {
        name: round(1000 * statistics.median(each["first"] for each in seen if bool(each["turn"]) is is_later))
        for name, is_later in (("first_turn", False), ("later_turns", True))
    }
    return {
        "answers": len(seen),
        "cached": round(cached / prompt, 3),
        "acceptance": round(accepted / drafted, 3),
        "accepted_per_token": round(accepted / tokens, 3),
        "first_token_ms": first,
        "tokens_per_second": round(tokens / seconds, 1),
    }


def prompt_tokens(usage: dict[str, Any]) -> int:
    return int(usage["prompt_tokens"])


def cached_tokens(usage: dict[str, Any]) -> int:
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def run(kind: str, given: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "server", "--replicas", str(given.replicas), "--routing", kind]
    options = ["--port", str(PORT), "--threads", "1", "--drain-seconds", "2", "--log-level", "warning"]
    server = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_server(server)
        prompts = [json.loads(line)["prompt"] for line in Path(given.prompts).read_text().splitlines()]
        random.Random(given.seed).shuffle(prompts)
        todo = deque([{"role": "user", "content": prompt}] for prompt in prompts[: given.conversations])
        started = time.perf_counter()
        with ThreadPoolExecutor(given.clients) as pool:
            each = list(pool.map(lambda _: held(todo, given.turns, given.tokens), range(given.clients)))
        seconds = time.perf_counter() - started
        reasons: Counter[str] = Counter()
        for line in httpx.get(f"{URL}/metrics").text.splitlines():
            if line.startswith("knnssd_ingress_routed_total"):
                reasons[line.partition('reason="')[2].partition('"')[0]] += round(float(line.rpartition(" ")[2]))
        return {"routing": kind, **figures([one for some in each for one in some], seconds), "chosen_by": reasons}
    finally:
        server.terminate()
        server.wait()


def wait_for_server(server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        try:
            if httpx.get(f"{URL}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit("the server has not started")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for kind in given.kinds:
        print(json.dumps(run(kind, given)), flush=True)


if __name__ == "__main__":
    main()
