"""Mixed traffic for an hour: what leaves, leaves nothing behind; a JSON line each minute, and one at the end.

Of `--clients` at once, half go on with chats that grow turn by turn; others ask with a long prompt, for several
choices, with drafts of other methods, at a temperature, or leave in the middle of an answer. Each minute tells the
server's resident memory and what it holds; the last line what was answered, refused, left or lost, and whether
slots and blocks came back. It exits with 1 where something was lost.
"""

import argparse
import http.client
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

from stream import Server, ServerError, authorization, connected, model_name, post, text

METHODS = ["plain", "lookup", "suffix", "cascade", "recycling", "adaptive"]
LONGEST_CHAT = 1500
"""Words after which a client begins another chat."""
HELD = ["knnssd_num_requests_running", "knnssd_num_requests_waiting", "knnssd_kv_blocks_used"]
GAUGES = ["process_resident_memory_bytes", *HELD, "knnssd_kv_blocks_kept", "knnssd_num_preemptions_total"]
SETTLING = 30.0
"""Seconds in which the server has to notice who left last."""


class Client:
    """One client; it counts what became of its requests."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.rng = random.Random(seed)
        self.chat = ""
        self.counts: Counter[str] = Counter()

    def work(self, until: float) -> Counter[str]:
        while time.monotonic() < until:
            prompt, extra, stays = self.next_request()
            try:
                self.counts[self.ask(prompt, extra, stays)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.counts[f"lost: {error!r}"] += 1
            except ServerError as error:
                self.counts[f"refused: {str(error)[:80]}"] += 1
        return self.counts

    def next_request(self) -> tuple[str, dict[str, Any], bool]:
        rng = self.rng
        extra: dict[str, Any] = {"speculation": {"method": rng.choice(METHODS)}}
        if rng.random() < 0.3:
            extra |= {"temperature": rng.choice([0.5, 1.0]), "top_p": 0.95, "seed": rng.randrange(1000)}
        stays = rng.random() > 0.2
        if rng.random() < 0.5:
            if len(self.chat.split()) > LONGEST_CHAT:
                self.chat = ""
            self.chat += f"{text(rng.randrange(5, 80), rng.getrandbits(60))} "
            return self.chat, extra, stays
        if rng.random() < 0.2:
            return text(rng.randrange(1000, 4000), rng.getrandbits(60)), extra, stays
        if rng.random() < 0.2:
            extra["n"] = rng.randrange(2, 5)
        return text(rng.randrange(4, 300), rng.getrandbits(60)), extra, stays

    def ask(self, prompt: str, extra: dict[str, Any], stays: bool) -> str:
        """What became of it: answered, or left by a client that hangs up after a few lines."""
        server = Server(self.server.url, self.server.model, self.server.key, extra)
        leaves_after = None if stays else self.rng.randrange(20)
        with closing(connected(server.url)) as connection:
            response = post(connection, server, prompt, self.rng.randrange(1, 200))
            num_lines, last = 0, b""
            while line := response.readline():
                num_lines += 1
                if num_lines == leaves_after:
                    return "left"
                if b'"error"' in line:
                    return f"failed: {line[:80].decode(errors='replace')}"
                last = line.strip() or last
        return "answered" if last == b"data: [DONE]" else "lost: a stream without its end"


def held(server: Server) -> dict[str, float]:
    """The server's gauges."""
    with closing(connected(server.url)) as connection:
        connection.request("GET", "/metrics", headers=authorization(server.key))
        lines = connection.getresponse().read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.partition(" ")[0] in GAUGES)
    return {name: float(value) for name, value in values.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the server's base URL")
    parser.add_argument("--api-key-file", type=Path, help="file with a key, where the server asks for one")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    key = options.api_key_file.read_text().strip() if options.api_key_file else None
    try:
        server = Server(options.url, model_name(options.url, key), key, {})
    except ServerError as error:
        parser.exit(1, f"{error}\n")
    began = time.monotonic()
    until = began + 60 * options.minutes
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(options.clients) as pool:
        running = [pool.submit(Client(server, options.seed + i).work, until) for i in range(options.clients)]
        while wait(running, timeout=60).not_done:
            print(json.dumps({"minute": round((time.monotonic() - began) / 60, 1), **held(server)}), flush=True)
    for each in running:
        counts += each.result()
    settled_by = time.monotonic() + SETTLING
    while any((last := held(server))[name] for name in HELD) and time.monotonic() < settled_by:
        time.sleep(0.1)
    is_clean = not any(last[name] for name in HELD) and not any(name.startswith(("lost", "failed")) for name in counts)
    print(json.dumps({"is_clean": is_clean, "counts": counts, **last}), flush=True)
    parser.exit(0 if is_clean else 1)


if __name__ == "__main__":
    main()
