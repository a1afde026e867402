"""Three situations in which clients get into each other's way, and a chat that grows; a JSON line for each.

behind    a prompt of 30 tokens arrives just after one of 6,000: how soon is its first token
beside    a prompt of 3,000 tokens arrives while an answer is streamed: the longest gap in it over its usual gap
together  eight prompts of about 280 tokens at once: tokens a second of all over those of one alone
chat      ten turns that add about 187 tokens each: first token of each, and of the last prompt sent again

Each is repeated, and figures are medians over the repetitions. Prompts are new each time, so that nothing is reused.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stream import Answer, Server, ServerError, ask, model_name, text

Probe = Callable[[Server, ThreadPoolExecutor], dict[str, float]]
seeds = itertools.count(time.time_ns())
WORDS_A_TOKEN = 0.97
SOON, LATER = 0.05, 1.0
"""Seconds after which the other prompt arrives."""
TURNS, TURN_TOKENS, REPLY_TOKENS, MARK_TOKENS = 10, 187, 8, 6
"""Of a chat: its turns, what each adds, and of that its answer and the template's marks, about."""


def send(server: Server, num_tokens: int, max_tokens: int) -> Answer:
    return ask(server, text(round(WORDS_A_TOKEN * num_tokens), next(seeds)), max_tokens)


def behind(server: Server, pool: ThreadPoolExecutor) -> dict[str, float]:
    alone = send(server, 30, 4)
    long = pool.submit(send, server, 6000, 4)
    time.sleep(SOON)
    short = send(server, 30, 4)
    return {"alone": alone.first, "first": short.first, "long": long.result().first}


def beside(server: Server, pool: ThreadPoolExecutor) -> dict[str, float]:
    stream = pool.submit(send, server, 30, 1500)
    time.sleep(LATER)
    arrived = send(server, 3000, 4)
    times = stream.result().times
    usual = [after - before for before, after in itertools.pairwise(times) if after < arrived.asked_at] or [0.0]
    reading = [after - before for before, after in itertools.pairwise(times) if is_within(arrived, before, after)]
    usual_gap = statistics.median(usual)
    longest, middle = max(reading, default=0.0), statistics.median(reading or [0.0])
    own = {"usual": usual_gap, "longest_usual": max(usual), "longest": longest, "median": middle}
    return {**own, "ratio": longest / usual_gap if usual_gap else 0.0, "first": arrived.first}


def is_within(arrived: Answer, before: float, after: float) -> bool:
    """Whether a gap lies, in part, between the arrival of a prompt and its first token."""
    return arrived.asked_at < after and before < arrived.asked_at + arrived.first


def together(server: Server, pool: ThreadPoolExecutor) -> dict[str, float]:
    alone, eight = speed(server, pool, 1), speed(server, pool, 8)
    return {"alone": alone, "eight": eight, "ratio": eight / alone}


def speed(server: Server, pool: ThreadPoolExecutor, count: int) -> float:
    """Tokens a second of so many requests, from the first one's arrival to the last token."""
    asked = [pool.submit(send, server, 282, 128) for _ in range(count)]
    answers = [each.result() for each in asked]
    started, ended = min(a.asked_at for a in answers), max(a.times[-1] for a in answers)
    return sum(answer.tokens for answer in answers) / (ended - started)


def chat(server: Server, pool: ThreadPoolExecutor) -> dict[str, float]:
    """The prompt grows by `added` tokens a turn, in the mean; it is that of a chat, so the template counts."""
    num_words = round(WORDS_A_TOKEN * (TURN_TOKENS - REPLY_TOKENS - MARK_TOKENS))
    messages, answers = list[dict[str, str]](), list[Answer]()
    for _ in range(TURNS):
        messages.append({"role": "user", "content": text(num_words, next(seeds))})
        answers.append(ask(server, messages, REPLY_TOKENS))
        messages.append({"role": "assistant", "content": answers[-1].text})
    again = ask(server, messages[:-1], REPLY_TOKENS)
    added = (answers[-1].prompt_tokens - answers[0].prompt_tokens) / (TURNS - 1)
    return {"added": added, **{f"turn_{i}": each.first for i, each in enumerate(answers, 1)}, "again": again.first}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the server's base URL")
    parser.add_argument("--api-key-file", type=Path, help="file with a key, where the server asks for one")
    parser.add_argument("--method", help="how tokens are drafted; without it the server's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["behind", "beside", "together", "chat"])
    options = parser.parse_args(arguments)
    try:
        run(options)
    except ServerError as error:
        parser.exit(1, f"{error}\n")


def run(options: argparse.Namespace) -> None:
    """Raises `ServerError` where the server does not say what model it has, or does not answer."""
    key = options.api_key_file.read_text().strip() if options.api_key_file else None
    extra = {"ignore_eos": True, **({"speculation": {"method": options.method}} if options.method else {})}
    server = Server(options.url, model_name(options.url, key), key, extra)
    probes: list[Probe] = [behind, beside, together, chat]
    with ThreadPoolExecutor(8) as pool:
        send(server, 30, 4)
        for probe in probes:
            if options.only in (None, probe.__name__):
                figures = repeated(probe, server, pool, options.repeats)
                print(json.dumps({"probe": probe.__name__, **figures}), flush=True)


def repeated(probe: Probe, server: Server, pool: ThreadPoolExecutor, count: int) -> dict[str, float]:
    runs = [probe(server, pool) for _ in range(count)]
    return {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}


if __name__ == "__main__":
    main()
