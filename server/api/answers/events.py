"""Server-sent events: their framing, and padding, without which their lengths tell an eavesdropper those of tokens."""

import secrets

STEP = 64
"""Padded events are a multiple of so many bytes long."""
FIELD = ',"obfuscation":""'


def event(data: str, name: str = "") -> str:
    """One event of a stream; those of OpenAI's chats and completions have no name."""
    return f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n"


def padded(data: str) -> str:
    """The JSON object with one more field, `obfuscation`, whose random text makes up the length."""
    missing = -(len(data.encode()) + len(FIELD)) % STEP
    return f'{data[:-1]}{FIELD[:-1]}{secrets.token_hex(STEP // 2)[:missing]}"}}'
