"""Padding of a stream's events: without it their lengths tell an eavesdropper the lengths of the tokens."""

import secrets

STEP = 64
"""Padded events are a multiple of so many bytes long."""
FIELD = ',"obfuscation":""'


def padded(event: str) -> str:
    """The JSON object with one more field, `obfuscation`, whose random text makes up the length."""
    missing = -(len(event.encode()) + len(FIELD)) % STEP
    return f'{event[:-1]}{FIELD[:-1]}{secrets.token_hex(STEP // 2)[:missing]}"}}'
