"""What single tokens stand for: their text and their bytes, as log-probabilities are reported.

A byte-level token can be a part of a character: its text then has U+FFFD, its bytes are exact.
"""

import re
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What an incomplete UTF-8 sequence decodes to."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""A byte among the tokens of Llama 2's kind."""


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in tokens of GPT-2's kind, by character."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = byte_alphabet()


class TokenText(NamedTuple):
    text: str
    content: bytes


class Vocabulary:
    """The tokens of a tokenizer by id; each is decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, TokenText] = {}

    def __getitem__(self, token_id: int) -> TokenText:
        if token_id not in self.known:
            self.known[token_id] = self.read(token_id)
        return self.known[token_id]

    def read(self, token_id: int) -> TokenText:
        # Alone, a token that begins a word would lose its space: it is read after itself.
        text = self.decode([token_id, token_id])[len(self.decode([token_id])) :]
        if REPLACEMENT not in text:
            return TokenText(text, text.encode())
        piece = str(self.tokenizer.convert_ids_to_tokens(token_id))
        if byte := BYTE_TOKEN.fullmatch(piece):
            return TokenText(REPLACEMENT, bytes([int(byte[1], 16)]))
        if all(character in BYTES for character in piece):
            content = bytes(BYTES[character] for character in piece)
            return TokenText(content.decode(errors="replace"), content)
        return TokenText(text, text.encode())

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
