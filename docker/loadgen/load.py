"""Keeps a server busy with prompts of all domains, so that dashboards have something to show.

Each simulated user streams one answer after another, pauses, and prints a line per answer.
"""

import argparse
import contextlib
import json
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI, OpenAIError

PROMPTS = Path(__file__).with_name("prompts.jsonl")


@dataclass(frozen=True)
class Prompt:
    domain: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Prompt(record["domain"], record["prompt"]) for record in records]


def ask(client: OpenAI, model: str, prompt: Prompt, max_tokens: int) -> str:
    """Streams one answer; returns a line that says what came of it."""
    start = time.perf_counter()
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt.text}],
        max_completion_tokens=max_tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    num_tokens = 0
    for chunk in stream:
        if chunk.usage is not None:
            num_tokens = chunk.usage.completion_tokens
    seconds = time.perf_counter() - start
    return f"{prompt.domain:<14} {num_tokens:4d} tokens {num_tokens / seconds:7.1f} tokens/s"


def keep_asking(client: OpenAI, options: argparse.Namespace, seed: int) -> None:
    """One user: `options.requests` answers, or answers without end where that is 0."""
    rng = random.Random(seed)
    prompts = read_prompts(options.prompts)
    remaining = options.requests or float("inf")
    while remaining > 0:
        remaining -= 1
        try:
            model = client.models.list().data[0].id
            print(ask(client, model, rng.choice(prompts), options.max_tokens), flush=True)
        except OpenAIError as error:
            print(f"no answer from {options.url}: {error}", flush=True)
        time.sleep(rng.expovariate(1 / options.pause) if options.pause else 0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the server's base URL")
    parser.add_argument("--api-key-file", type=Path, help="file with a key, where the server asks for one")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="JSON lines with `domain` and `prompt`")
    parser.add_argument("--users", type=int, default=2, help="how many ask at the same time")
    parser.add_argument("--requests", type=int, default=0, help="answers per user; 0: until stopped")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between a user's requests")
    options = parser.parse_args(arguments)
    # Without retries, so that each failure is a line.
    api_key = options.api_key_file.read_text().strip() if options.api_key_file else "none"
    client = OpenAI(base_url=options.url, api_key=api_key, max_retries=0)
    users = [
        threading.Thread(target=keep_asking, args=(client, options, seed), daemon=True) for seed in range(options.users)
    ]
    for user in users:
        user.start()
    with contextlib.suppress(KeyboardInterrupt):
        for user in users:
            user.join()


if __name__ == "__main__":
    main()
