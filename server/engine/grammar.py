"""Grammars: which tokens may come next, so that an answer is JSON of a schema or follows a syntax.

A grammar is compiled for a tokenizer once, away from the engine's thread, and each sequence walks a
copy of its own. Drafted tokens are walked and taken back, so a row allows what may stand after the
tokens before it, whoever proposed them. llguidance does the parsing.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from server.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

KEPT_GRAMMARS = 64
"""Compiled grammars kept for later requests, each of some kilobytes, the largest of a few megabytes."""
JSON_LAYOUT: "JsonCompileOptions" = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}
"""Room for indented JSON, but no endless blanks, in which small models lose themselves."""
LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=100_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
"""Work and memory that a grammar may take: a fifth of what the library allows by itself, or a half."""


class GrammarError(ValueError):
    """A grammar that cannot be compiled, or that grew too complex on the way; with the reason."""


@dataclass(frozen=True)
class Grammar:
    """What is asked for, before it is compiled: a grammar in the library's own serialised form."""

    source: str

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any]) -> "Grammar":
        """JSON of a JSON schema; raises `GrammarError` where it is no schema at all."""
        try:
            return cls(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_LAYOUT))
        except ValueError as error:
            raise GrammarError(str(error)) from error

    @classmethod
    def of_lark(cls, text: str) -> "Grammar":
        """A context-free grammar in the library's variant of Lark's syntax."""
        return cls(LLMatcher.grammar_from_lark(text))


def json_rule(schema: Mapping[str, Any], is_lenient: bool = False) -> str:
    """The right side of a rule in Lark's syntax; a lenient one passes over keywords that cannot be enforced."""
    return "%json " + json.dumps({**schema, "x-guidance": {**JSON_LAYOUT, "lenient": is_lenient}})


class GrammarTokens:
    """The vocabulary as the library wants it: bytes of each token, and those that are never text."""

    def __init__(self, vocabulary: Vocabulary, size: int, end_ids: frozenset[int]) -> None:
        tokenizer = self.tokenizer = vocabulary.tokenizer
        marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        # Rows of logits may be padded beyond the tokens that exist.
        special = marked.union(tokenizer.all_special_ids, end_ids, range(len(tokenizer), size))
        self.special_token_ids = sorted(special)
        self.tokens = [f"<|{i}|>".encode() if i in special else vocabulary[i].content for i in range(size)]
        self.eos_token_id = min(end_ids, default=self.special_token_ids[0] if special else 0)
        self.bos_token_id = None

    def __call__(self, text: str) -> list[int]:
        """How the model would write forced text, which is never a special token."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids


class GrammarCompiler:
    """Compiles grammars for one vocabulary; any thread may call it."""

    def __init__(self, vocabulary: Vocabulary, size: int, end_ids: frozenset[int]) -> None:
        self.vocabulary = vocabulary
        self.size = size
        self.end_ids = frozenset(end for end in end_ids if end < size)
        self.compile = lru_cache(KEPT_GRAMMARS)(self.compile_anew)

    @cached_property
    def tokens(self) -> LLTokenizer:
        """Read with the first grammar, for a large vocabulary takes seconds."""
        size = max(self.size, len(self.vocabulary.tokenizer))
        wrapper = TokenizerWrapper(GrammarTokens(self.vocabulary, size, self.end_ids))
        return LLTokenizer(wrapper, n_vocab=size, eos_token=sorted(self.end_ids) or None)

    def compile_anew(self, grammar: Grammar) -> "CompiledGrammar":
        """Raises `GrammarError` with the library's reason."""
        compiled = CompiledGrammar(lambda: self.matcher(grammar), self.size, self.tokens.eos_tokens)
        # The first mask tells of what compiling does not: nothing may follow, or too much work.
        compiled.matcher.compute_logit_bias()
        if error := compiled.matcher.get_error():
            raise GrammarError(error.partition("\n<")[0].strip())
        return compiled

    def matcher(self, grammar: Grammar) -> LLMatcher:
        return LLMatcher(self.tokens, grammar.source, log_level=0, limits=LIMITS)


class CompiledGrammar:
    """A grammar over a vocabulary; all sequences that ask for it walk copies of its `matcher`.

    Copies share the states that their lexer has built, which makes them fast, and which count against a limit.
    """

    def __init__(self, new_matcher: Callable[[], LLMatcher], size: int, end_ids: list[int]) -> None:
        self.new_matcher = new_matcher
        self.size = size
        self.end_ids = end_ids
        self.matcher = new_matcher()

    def renew(self) -> None:
        self.matcher = self.new_matcher()


class GrammarWalk:
    """One sequence's way through a grammar; it may end with `stop_ids` wherever the grammar may."""

    def __init__(self, grammar: CompiledGrammar, prompt_length: int, stop_ids: frozenset[int]) -> None:
        self.grammar = grammar
        self.prompt_length = self.length = prompt_length
        self.stop_ids = [end for end in stop_ids if end < grammar.size]
        self.ends = set(grammar.end_ids)
        self.matcher = grammar.matcher.deep_copy()
        self.known: dict[tuple[int, ...], Tensor | None] = {}
        """What may follow each draft from here; draft and check ask for the same."""
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
