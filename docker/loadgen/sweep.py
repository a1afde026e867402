"""Loads servers with 1, 2, 4 ... clients at once and says what they feel; a JSON line for each number of clients.

At the end comes a table (stderr). `goodput` is what met both `--goal-first` and `--goal-further`, see `goodput.py`.

Each client asks for one answer after the other without a pause. Lengths are drawn as those of conversations: prompts
and answers of lognormal lengths, whose means, 161 and 338 tokens, are those of ShareGPT in the vLLM paper (arXiv
2309.06180, section 6.1); the spreads, sigma 1.2 and 0.9, are ours: half of the prompts are shorter than 78 tokens, and
one in twenty is longer than 560. Lengths end at `--longest`. With `--scale 0.25` means are a quarter.

With `--against`, a second server gets the same requests after the first one, for each number of clients: llama.cpp's,
for instance, over the same file (`python -m llama_cpp.server --model FILE --n_threads 2`).
"""

import argparse
import json
import math
import queue
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from goodput import FIRST, FURTHER, Goal, goodput, table
from stream import Answer, Server, ServerError, ask, model_name, quantiles, text

PROMPT_MEAN, PROMPT_SIGMA = 161, 1.2
ANSWER_MEAN, ANSWER_SIGMA = 338, 0.9
SHORTEST = 4


class Job(NamedTuple):
    """A request: words of its prompt, tokens of its answer at most, and what its text is made from."""

    num_words: int
    max_tokens: int
    seed: int


def jobs(count: int, seed: int, scale: float, longest: int) -> list[Job]:
    """The same ones for the same seed."""
    rng = random.Random(seed)

    def job() -> Job:
        num_words = length(rng, scale * PROMPT_MEAN, PROMPT_SIGMA, longest)
        return Job(num_words, length(rng, scale * ANSWER_MEAN, ANSWER_SIGMA, longest), rng.getrandbits(62))

    return [job() for _ in range(count)]


def length(rng: random.Random, mean: float, sigma: float, longest: int) -> int:
    """Drawn by the lognormal law of this mean, between bounds."""
    drawn = rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)
    return min(max(round(drawn), SHORTEST), longest)


def load(server: Server, num_clients: int, todo: list[Job], goal: Goal) -> dict[str, Any]:
    """The figures of one server and number of clients, which share the jobs."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in todo:
        waiting.put(job)
    started = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        clients = [pool.submit(work, server, waiting) for _ in range(num_clients)]
    seconds = time.perf_counter() - started
    answers = [answer for client in clients for answer in client.result()]
    gaps = [gap for answer in answers for gap in answer.gaps]
    return {
        "server": server.url,
        "model": server.model,
        "clients": num_clients,
        "answers": len(answers),
        "failures": len(todo) - len(answers),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "tokens": sum(answer.tokens for answer in answers),
        "tokens_per_second": round(sum(answer.tokens for answer in answers) / seconds, 1),
        "first_token": quantiles([answer.first for answer in answers]),
        "between_pieces": quantiles(gaps),
        "goodput": goodput(answers, seconds, goal),
    }


def work(server: Server, waiting: "queue.SimpleQueue[Job]") -> list[Answer]:
    """One client: it takes jobs until none is left, and says what was not answered."""
    answers: list[Answer] = []
    while True:
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return answers
        try:
            answers.append(ask(server, text(job.num_words, job.seed), job.max_tokens))
        except ServerError as error:
            print(error, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the server's base URL")
    parser.add_argument("--against", help="base URL of another server that gets the same requests")
    parser.add_argument("--api-key-file", type=Path, help="file with a key, where the servers ask for one")
    parser.add_argument("--clients", default="1,2,4,8,16", help="how many ask at once, one after the other")
    parser.add_argument("--answers", type=int, default=4, help="answers for each client, in the mean")
    parser.add_argument("--scale", type=float, default=1.0, help="of the mean lengths")
    parser.add_argument("--longest", type=int, default=1024, help="most words of a prompt, and tokens of an answer")
    parser.add_argument("--method", help="how this server drafts tokens; without it its own; not for --against")
    parser.add_argument("--ignore-eos", action="store_true", help="answers have the lengths that are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goal-first", type=float, default=FIRST, help="seconds to the first token (%(default)s)")
    parser.add_argument("--goal-further", type=float, default=FURTHER, help="mean seconds for a further (%(default)s)")
    parser.add_argument("--table", type=Path, nargs="+", help="asks nobody: the table of lines that were kept in files")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(line) for path in options.table for line in path.read_text().splitlines()))
        return
    try:
        sweep(options)
    except ServerError as error:
        parser.exit(1, f"{error}\n")


def sweep(options: argparse.Namespace) -> None:
    """Raises `ServerError` where a server does not say what model it has."""
    key = options.api_key_file.read_text().strip() if options.api_key_file else None
    extra = {"ignore_eos": True} if options.ignore_eos else {}
    own = {"speculation": {"method": options.method}} if options.method else {}
    servers = [Server(options.url, model_name(options.url, key), key, {**extra, **own})]
    servers += [Server(url, model_name(url, key), key, extra) for url in [options.against] if url]
    goal, lines = Goal(options.goal_first, options.goal_further), []
    for number in map(int, options.clients.split(",")):
        todo = jobs(number * options.answers, options.seed + number, options.scale, options.longest)
        for server in servers:
            lines.append(load(server, number, todo, goal))
            print(json.dumps(lines[-1]), flush=True)
    print(table(lines), file=sys.stderr)


if __name__ == "__main__":
    main()
