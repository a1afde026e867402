"""What a request changes of its logits before temperature: bias, penalties, grammar, ends, thinking.

Draft and full model are adjusted alike, and each row by exactly the tokens before it, drafted ones
included. So a row's token is the one that plain decoding would choose there.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from server.engine.sampling.grammar import CompiledGrammar
from server.engine.sampling.grammar_matcher import GrammarMatcher
from server.engine.types import UNADJUSTED, Adjustments, StopConditions


def add_bias(logits: Tensor, token_ids: Tensor, biases: Tensor) -> None:
    """Adds to the logits [rows, vocabulary] of some tokens, in place; as the others here."""
    logits[:, token_ids] += biases


def penalize_repetition(logits: Tensor, is_seen: Tensor, penalty: float) -> None:
    """Makes seen tokens [rows, vocabulary] less likely by a factor; CTRL, Keskar et al., arXiv 1909.05858."""
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    logits.copy_(torch.where(is_seen, penalized, logits))


def penalize_counts(logits: Tensor, counts: Tensor, frequency: float, presence: float) -> None:
    """Takes `frequency` for each occurrence and `presence` once; `counts` is [rows, vocabulary]."""
    logits -= frequency * counts
    logits -= presence * (counts > 0)


def forbid(logits: Tensor, token_ids: Tensor) -> None:
    """Makes tokens impossible, but in rows where no other one is possible."""
    rest = logits.clone()
    rest[:, token_ids] = float("-inf")
    has_choice = (rest > float("-inf")).any(-1, keepdim=True)
    logits.copy_(torch.where(has_choice, rest, logits))


def force(row: Tensor, token_id: int | None) -> None:
    """Makes one token of the logits [vocabulary] the only possible one, if there is one to be forced."""
    if token_id is not None:
        row.fill_(float("-inf"))
        row[token_id] = 0


class TokenCounts:
    """How often each token stands in a sequence's output, and whether in its prompt; extended as it grows."""

    def __init__(self, prompt_ids: list[int], like: Tensor) -> None:
        size = like.shape[-1]
        self.is_prompted = torch.zeros(size, dtype=torch.bool, device=like.device)
        self.is_prompted[torch.tensor(prompt_ids, device=like.device)] = True
        self.output = torch.zeros(size, device=like.device)
        self.length = len(prompt_ids)

    def extend(self, ids: list[int]) -> None:
        for token in ids[self.length :]:
            self.output[token] += 1
        self.length = len(ids)

    def before(self, drafted: list[int], num_rows: int) -> Tensor:
        """Counts of output and drafted tokens before each of the last `num_rows` places, the last after all."""
        counts = self.output.repeat(num_rows, 1)
        num_before_all = len(drafted) + 1 - num_rows
        for i, token in enumerate(drafted, 1):
            counts[max(i - num_before_all, 0) :, token] += 1
        return counts


class LogitsProcessor:
    """The adjustments of one request, over the tokens of its own sequence.

    An error in them is kept as `failure` in place of being raised: it ends this sequence, not the step that all share.
    """

    def __init__(
        self,
        adjustments: Adjustments,
        stop: StopConditions,
        prompt_length: int,
        grammar: CompiledGrammar | None = None,
    ) -> None:
        self.grammar = GrammarMatcher(grammar, prompt_length, stop.token_ids) if grammar else None
        self.adjustments = adjustments
        self.stop = stop
        self.prompt_length = prompt_length
        self.counts: TokenCounts | None = None
        self.failure: Exception | None = None

    @classmethod
    def of(
        cls, adjustments: Adjustments, stop: StopConditions, prompt_length: int, grammar: CompiledGrammar | None
    ) -> "LogitsProcessor | None":
        """None where nothing is asked for."""
        if adjustments == UNADJUSTED and not stop.min_tokens and grammar is None:
            return None
        return cls(adjustments, stop, prompt_length, grammar)

    @property
    def is_counting(self) -> bool:
        asked = self.adjustments
        return asked.repetition_penalty != 1 or asked.presence_penalty != 0 or asked.frequency_penalty != 0

    def adjust(self, logits: Tensor, ids: list[int], drafted: list[int]) -> None:
        """Adjusts the logits [rows, vocabulary] in place; the last row follows `ids` and all of `drafted`."""
        with self.keeping_failure():
            self.apply(logits, ids, drafted)

    def forced(self, ids: list[int], limit: int) -> list[int]:
        """Tokens, at most `limit`, that the request's grammar leaves no choice about after `ids`."""
        with self.keeping_failure():
            return self.grammar.forced(ids, limit) if self.grammar else []
        return []

    @contextmanager
    def keeping_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error

    def apply(self, logits: Tensor, ids: list[int], drafted: list[int]) -> None:
        if self.adjustments.logit_bias:
            token_ids, biases = zip(*self.adjustments.logit_bias, strict=True)
            add_bias(logits, torch.tensor(token_ids, device=logits.device), torch.tensor(biases, device=logits.device))
        if self.is_counting:
            self.penalize(logits, ids, drafted)
        if self.grammar:
            self.grammar.restrict(logits, ids, drafted)
        num_before = len(ids) - self.prompt_length + len(drafted) + 1 - logits.shape[0]
        num_endless = self.stop.min_tokens - num_before
        if num_endless > 0:
            # A checkpoint may name ends that its model cannot write.
            ends = [token for token in self.stop.token_ids if token < logits.shape[-1]]
            forbid(logits[:num_endless], torch.tensor(ends, dtype=torch.long, device=logits.device))
        if budget := self.adjustments.thinking:
            for i, row in enumerate(logits):
                if num_before + i in budget.places:
                    answer = [*ids[self.prompt_length :], *drafted][: num_before + i]
                    force(row, budget.forced_after(answer))

    def penalize(self, logits: Tensor, ids: list[int], drafted: list[int]) -> None:
        if self.counts is None:
            self.counts = TokenCounts(ids[: self.prompt_length], logits)
        self.counts.extend(ids)
        counts = self.counts.before(drafted, logits.shape[0])
        asked = self.adjustments
        if asked.repetition_penalty != 1:
            penalize_repetition(logits, self.counts.is_prompted | (counts > 0), asked.repetition_penalty)
        if asked.frequency_penalty or asked.presence_penalty:
            penalize_counts(logits, counts, asked.frequency_penalty, asked.presence_penalty)
