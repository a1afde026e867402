"""The head that drafts of one vocabulary score: a part of the decoder's, which the texts' own words join.

The head is a fifth to a third of a small model's weights. Over 8,000 tokens of 49,000 it is a sixth of that.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from server.engine.model.decoder import Decoder
from server.engine.model.native_head import NativeHead
from server.engine.model.torch_decoder import TorchDecoder, TorchHead
from server.engine.types import DraftVocabulary

TAIL = 512
"""Rows for tokens that are not of the vocabulary."""


class DraftHead:
    """The rows of a decoder's head for a vocabulary, then a tail of those that were added; the oldest of it go."""

    def __init__(self, decoder: Decoder, vocabulary: DraftVocabulary, tail: int = TAIL) -> None:
        """Raises `ValueError` where a token is not one of the model's."""
        self.vocabulary_size = decoder.config.vocabulary_size
        self.known = set(vocabulary.token_ids)
        self.check(self.known)
        self.fixed = len(vocabulary.token_ids)
        self.tail = min(tail, self.vocabulary_size - self.fixed)
        self.turn = 0
        """The place in the tail that is filled next."""
        body, capacity = decoder.body, self.fixed + self.tail
        self.rows = TorchHead(body.head, capacity) if isinstance(body, TorchDecoder) else NativeHead(body, capacity)
        self.native = self.rows if isinstance(self.rows, NativeHead) else None
        self.rows.put(list(vocabulary.token_ids), 0)

    @property
    def token_ids(self) -> Tensor:
        """The token of each row [rows]."""
        return self.rows.token_ids

    @torch.inference_mode()
    def add(self, token_ids: Iterable[int]) -> None:
        """Puts tokens that it does not have into the tail, in the order in which they last occur; at most the last.

        Raises `ValueError` where one is not the model's.
        """
        latest = [token for token in dict.fromkeys(reversed(list(token_ids))) if token not in self.known]
        self.check(latest)
        added = latest[: self.tail][::-1]
        while added:
            first = self.fixed + self.turn
            part, added = added[: self.tail - self.turn], added[self.tail - self.turn :]
            self.known.difference_update(self.token_ids[first : first + len(part)].tolist())
            self.known.update(part)
            self.rows.put(part, first)
            self.turn = (self.turn + len(part)) % self.tail

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [tokens, vocabulary_size] in fp32, -inf where it has no row."""
        logits = torch.full((hidden.shape[0], self.vocabulary_size), float("-inf"), device=hidden.device)
        logits[:, self.token_ids] = self.rows.logits(hidden)
        return logits

    def check(self, token_ids: Iterable[int]) -> None:
        unknown = [token for token in token_ids if not 0 <= token < self.vocabulary_size]
        if unknown:
            raise ValueError(f"the model has tokens 0 to {self.vocabulary_size - 1}, a draft's vocabulary {unknown[0]}")
