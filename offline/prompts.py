"""Prompt files: one JSON object a line with `prompt` or `messages`, and optionally `domain` and `completion`.

A completion is checked for its type and not used: calibration scores masks on the model's own text.
"""

import gzip
import hashlib
import json
import random
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

MIXED = "mixed"
"""The mask that is searched over the prompts of all domains together goes by this name; no domain may."""
RESERVED_DOMAINS = frozenset({"other", MIXED, "none", "mean"})
MAX_DOMAIN_LENGTH = 64


class PromptError(Exception):
    """A prompt file is missing or broken; the message names the file and the line."""


@dataclass(frozen=True)
class Prompt:
    """One conversation to answer; `domain` is None where the file does not say."""

    messages: tuple[dict[str, str], ...]
    domain: str | None = None

    @property
    def text(self) -> str:
        return "\n".join(message["content"] for message in self.messages)

    @property
    def key(self) -> str:
        return json.dumps(self.messages, sort_keys=True)


@dataclass(frozen=True)
class PromptSet:
    """The distinct prompts of some files in their order, and how many repeated ones were dropped."""

    prompts: tuple[Prompt, ...]
    num_duplicates: int

    @property
    def is_labelled(self) -> bool:
        return self.prompts[0].domain is not None

    @property
    def digest(self) -> str:
        lines = (f"{prompt.domain} {prompt.key}\n" for prompt in self.prompts)
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]

    def limited(self, per_domain: int, seed: int) -> Self:
        """A seeded sample of at most `per_domain` prompts of each domain (ten times as many if unlabelled)."""
        groups: dict[str | None, list[Prompt]] = defaultdict(list)
        for prompt in self.prompts:
            groups[prompt.domain].append(prompt)
        kept: list[Prompt] = []
        for domain, group in groups.items():
            random.Random(f"{seed} {domain}").shuffle(group)
            kept.extend(group[: per_domain if domain is not None else 10 * per_domain])
        return type(self)(tuple(kept), self.num_duplicates)


def read_prompts(paths: Iterable[Path]) -> PromptSet:
    """Reads and checks prompt files; raises `PromptError` at the first bad line."""
    found: dict[str, Prompt] = {}
    num_read = 0
    for path in paths:
        before = num_read
        for number, prompt in read_file(path):
            num_read += 1
            first = next(iter(found.values()), prompt)
            if (prompt.domain is None) != (first.domain is None):
                raise PromptError(f"{path}:{number}: give a `domain` on every line or on none")
            found.setdefault(prompt.key, prompt)
        if num_read == before:
            raise PromptError(f"{path} holds no prompts")
    return PromptSet(tuple(found.values()), num_read - len(found))


def read_file(path: Path) -> Iterator[tuple[int, Prompt]]:
    """(line number, prompt) of one file; blank lines are passed over."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise PromptError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise PromptError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_line(line)
            except ValueError as error:
                raise PromptError(f"{path}:{number}: {error}") from error


def parse_line(line: str) -> Prompt:
    """One prompt; raises `ValueError` with what is wrong."""
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"must be a JSON object, is a {type(record).__name__}")
    domain = checked_domain(record.get("domain"))
    if not isinstance(record.get("completion", ""), str):
        raise ValueError("`completion` must be text")
    if ("prompt" in record) == ("messages" in record):
        raise ValueError("needs either `prompt` or `messages`")
    messages = [{"role": "user", "content": record["prompt"]}] if "prompt" in record else record["messages"]
    return Prompt(checked_messages(messages), domain)


def checked_domain(domain: Any) -> str | None:
    if domain is None:
        return None
    if not isinstance(domain, str) or not 0 < len(domain.strip()) <= MAX_DOMAIN_LENGTH:
        raise ValueError(f"`domain` must be a text of 1 to {MAX_DOMAIN_LENGTH} characters")
    if not domain.strip().isprintable():
        raise ValueError("`domain` must be of printable characters, without line breaks")
    if domain.strip() in RESERVED_DOMAINS:
        raise ValueError(f"`domain` cannot be {domain.strip()!r}, the router uses that name")
    return domain.strip()


def checked_messages(messages: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise ValueError("`messages` must be a list with at least one message")
    checked = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError("each message must be an object with a `role`")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise ValueError(f"{'`prompt`' if len(messages) == 1 else 'a message'} must be text that is not blank")
        if not is_text(message["content"]) or not is_text(message["role"]):
            raise ValueError("a message holds half a surrogate pair (\\ud800 to \\udfff), which is no text")
        checked.append({"role": message["role"], "content": message["content"]})
    return tuple(checked)


def is_text(value: str) -> bool:
    """JSON can escape halves of surrogate pairs, which no encoding of text has."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)
