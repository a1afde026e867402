"""What a body asks about, as one text, with which the text of the conversation's next turn begins.

The ingress has no tokenizer. A text of 128 characters is about one block of 32 tokens, which is what replicas keep.
"""

import json
import re
from collections.abc import Iterator

BLOCK = 128
"""Characters for which a replica is remembered together."""
MOST_BLOCKS = 2048
"""Of a longer prompt the beginning counts."""
BEFORE = ("model", "tools", "instructions", "system")
"""Fields that a chat template puts before the messages."""
SPOKEN = ("messages", "input", "prompt")
"""The field of a body, by endpoint, that grows from turn to turn."""
WORD = re.compile(r"\w+|[^\w\s]")
MOST_WORDS = 400


def prompt_text(body: bytes) -> str:
    """Empty where the body is no JSON object, or asks about nothing; the replica will say what is wrong with it."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(fields, dict):
        return ""
    spoken = next((fields[name] for name in SPOKEN if name in fields), None)
    if spoken is None:
        return ""
    before = json.dumps([fields.get(name) for name in BEFORE])
    return before + (spoken if isinstance(spoken, str) else json.dumps(spoken)[:-1])


def blocks_of(text: str, owner: str) -> tuple[int, ...]:
    """A number for each beginning of the text, a block longer than the one before; those of another owner differ."""
    return tuple(chained(text, owner))


def chained(text: str, owner: str) -> Iterator[int]:
    # Python's own hash has a secret of the process, so nobody can make two texts meet.
    so_far = hash(owner)
    for start in range(0, min(len(text) - BLOCK + 1, BLOCK * MOST_BLOCKS), BLOCK):
        so_far = hash((so_far, text[start : start + BLOCK]))
        yield so_far


def words_of(text: str) -> set[str]:
    """Words and signs of the text's beginning and end, which say what kind of prompt it is."""
    words = WORD.findall(text)
    return {word.lower() for word in (*words[:MOST_WORDS], *words[-MOST_WORDS:])}
