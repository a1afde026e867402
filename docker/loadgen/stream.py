"""One streamed answer and when its pieces came; what `sweep.py` and `probes.py` measure with.

The lines of a stream are only noted as they come, and read after its end: the client shares the server's processors.
"""

import http.client
import json
import random
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

WORDS = [
    "time",
    "people",
    "way",
    "water",
    "day",
    "man",
    "work",
    "word",
    "house",
    "world",
    "school",
    "state",
    "family",
    "city",
    "group",
    "country",
    "point",
    "place",
    "book",
    "story",
    "car",
    "home",
    "hand",
    "money",
    "music",
    "night",
    "side",
    "friend",
    "door",
    "table",
    "morning",
    "river",
    "street",
    "child",
    "town",
    "paper",
]
"""Each is one token of most vocabularies."""
TIMEOUT = 600.0
Prompt = str | list[dict[str, str]]
"""A text to go on with, or the messages of a chat."""


class ServerError(Exception):
    """A request that was not answered; the message is one line."""


@dataclass(frozen=True)
class Server:
    """A server's base URL with its `/v1`, its model's name, and what each request has beside the usual fields."""

    url: str
    model: str
    key: str | None
    extra: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """Times on one clock, in seconds: when it was asked for, and when each piece of text came."""

    asked_at: float
    times: list[float]
    prompt_tokens: int
    tokens: int
    text: str = ""

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.times[0] - self.asked_at

    @property
    def further(self) -> float:
        """Seconds for each token after the first, in the mean."""
        return (self.times[-1] - self.times[0]) / max(self.tokens - 1, 1)

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def text(num_words: int, seed: int) -> str:
    """A prompt of about so many tokens, which begins as no other one."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(num_words))


def ask(server: Server, prompt: Prompt, max_tokens: int) -> Answer:
    """Streams one answer; raises `ServerError`."""
    asked_at, lines = time.perf_counter(), []
    try:
        with closing(connected(server.url)) as connection:
            response = post(connection, server, prompt, max_tokens)
            while line := response.readline():
                lines.append((time.perf_counter(), line))
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"no answer from {server.url}: {error}") from error
    return read(asked_at, [(at, json.loads(line[5:])) for at, line in lines if line.startswith(b"data: {")])


def connected(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.netloc, timeout=TIMEOUT)


def post(
    connection: http.client.HTTPConnection, server: Server, prompt: Prompt, max_tokens: int
) -> http.client.HTTPResponse:
    path, field = ("completions", "prompt") if isinstance(prompt, str) else ("chat/completions", "messages")
    asked = {"model": server.model, field: prompt, "max_tokens": max_tokens, "temperature": 0, **server.extra}
    body = json.dumps({**asked, "stream": True, "stream_options": {"include_usage": True}})
    headers = {"content-type": "application/json", **authorization(server.key)}
    connection.request("POST", f"{urlsplit(server.url).path}/{path}", body, headers)
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise ServerError(f"{server.url} answers {response.status}: {response.read(400).decode(errors='replace')}")
    return response


def authorization(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def read(asked_at: float, events: list[tuple[float, dict[str, Any]]]) -> Answer:
    """The pieces of a stream; a server that counts no usage is taken to send a token in each."""
    times, pieces, usage = list[float](), list[str](), dict[str, int]()
    for at, event in events:
        if "error" in event:
            raise ServerError(f"the stream ended with {event['error']}")
        if piece := "".join(map(written, event.get("choices", []))):
            times.append(at)
            pieces.append(piece)
        usage = event.get("usage") or usage
    if not times:
        raise ServerError("the answer has no text")
    counts = usage.get("prompt_tokens", 0), usage.get("completion_tokens", len(times))
    return Answer(asked_at, times, *counts, "".join(pieces))


def written(choice: dict[str, Any]) -> str:
    """The text in a choice of a stream; in a chat, thoughts too."""
    delta = choice.get("delta", {})
    return choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""


def model_name(url: str, key: str | None) -> str:
    """The first model that the server has; raises `ServerError`."""
    try:
        with closing(connected(url)) as connection:
            connection.request("GET", f"{urlsplit(url).path}/models", headers=authorization(key))
            return str(json.load(connection.getresponse())["data"][0]["id"])
    except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
        raise ServerError(f"no models at {url}: {error!r}") from error


def quantiles(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and largest, to a tenth of a millisecond."""
    if not values:
        return {}
    ordered = sorted(values)
    at_95 = ordered[min(round(0.95 * len(ordered)), len(ordered) - 1)]
    named = {"p50": statistics.median(ordered), "p95": at_95, "max": ordered[-1]}
    return {name: round(value, 4) for name, value in named.items()}
