"""One sequence's place in its grammar: it forbids, row by row of logits, the tokens that may not follow.

A check of the draft `{ "a` has four rows: after the ids, after `{`, after ` "`, after `a`. For each row the
matcher takes the drafted tokens before it, reads what may follow, and takes them back. So a row depends on
the tokens before it alone, whoever proposed them, and drafts decide nothing.
"""

import torch
from torch import Tensor

from server.engine.sampling.grammar import CompiledGrammar


class GrammarMatcher:
    """Follows one sequence through its grammar; the answer may end with `stop_ids` wherever the grammar may end."""

    def __init__(self, grammar: CompiledGrammar, prompt_length: int, stop_ids: frozenset[int]) -> None:
        self.grammar = grammar
        self.prompt_length = self.length = prompt_length
        self.stop_ids = [end for end in stop_ids if end < grammar.size]
        self.ends = set(grammar.end_ids)
        self.matcher = grammar.matcher.deep_copy()
        self.known: dict[tuple[int, ...], Tensor | None] = {}
        """Allowed tokens by the draft before them since the ids last grew: draft and check ask for the same."""
        self.failed_at: int | None = None
        """Place of the token before which the grammar exceeded its limits; only an end is allowed there."""

    def restrict(self, logits: Tensor, ids: list[int], drafted: list[int]) -> None:
        """Forbids in place what may not follow; the last row of `logits` follows `ids` and all of `drafted`.

        Rows after a drafted token that is refused stay as they are: no such row is ever used.
        """
        self.advance(ids)
        first = len(drafted) + 1 - logits.shape[0]
        for i, row in enumerate(logits, first):
            allowed = self.after(ids, tuple(drafted[:i]))
            if allowed is None:
                return
            row.masked_fill_(~allowed.to(row.device), float("-inf"))

    def advance(self, ids: list[int]) -> None:
        if len(ids) > self.length:
            self.matcher.consume_tokens(ids[self.length :])
            self.length = len(ids)
            self.known.clear()
            self.failed_at = None

    def after(self, ids: list[int], drafted: tuple[int, ...]) -> Tensor | None:
        """Whether each token [vocabulary] may follow `ids` and `drafted`; None where a drafted one is refused."""
        if drafted not in self.known:
            self.known[drafted] = self.look(drafted)
            if self.matcher.get_error():
                # Others may have used up what the lexer may build: only what fails afresh fails.
                self.restart(ids)
                self.known[drafted] = self.look(drafted)
            if self.matcher.get_error():
                self.failed_at = self.failed_at or self.length + len(drafted)
                self.known[drafted] = self.only_ends()
                self.restart(ids)
        return self.known[drafted]

    def restart(self, ids: list[int]) -> None:
        """A failed matcher stays failed, though the draft that led there may be refused."""
        self.grammar.renew()
        self.matcher = self.grammar.matcher.deep_copy()
        self.matcher.consume_tokens(ids[self.prompt_length :])

    def look(self, drafted: tuple[int, ...]) -> Tensor | None:
        if not self.ends.isdisjoint(drafted):
            return None
        num_walked = self.matcher.try_consume_tokens(list(drafted))
        is_allowed = self.allowed() if num_walked == len(drafted) else None
        self.matcher.rollback(num_walked)
        return is_allowed

    def allowed(self) -> Tensor:
        is_allowed = torch.frombuffer(bytearray(self.matcher.compute_logit_bias()), dtype=torch.uint8) > 0
        is_allowed[self.grammar.end_ids] = False
        if self.matcher.is_accepting():
            is_allowed[self.stop_ids] = True
        return is_allowed[: self.grammar.size]

    def only_ends(self) -> Tensor:
        is_allowed = torch.zeros(self.grammar.size, dtype=torch.bool)
        is_allowed[self.stop_ids] = True
        return is_allowed

    def forced(self, ids: list[int], limit: int) -> list[int]:
        """Tokens that the grammar leaves no choice about, at most `limit`, as the tokenizer would write them."""
        self.advance(ids)
        return self.matcher.compute_ff_tokens()[:limit]
