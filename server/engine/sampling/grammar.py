"""Grammars say which tokens may come next, so that an answer is JSON of a schema or follows a syntax.

After `{"age": ` a schema that asks for a whole number allows tokens of digits and nothing else. A grammar
is compiled once for a tokenizer, in a thread of its own request; each sequence then follows it with a
matcher of its own (`grammar_matcher.py`). The library llguidance does the parsing.
"""

import json
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from server.engine.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

KEPT_GRAMMARS = 64
"""Compiled grammars kept for later requests, each of some kilobytes, the largest of a few megabytes."""
KEPT_PATTERNS = 1024
"""Patterns of which it is remembered whether they have a grammar."""
JSON_LAYOUT: "JsonCompileOptions" = {"whitespace_pattern": r"( |\r?\n[ \t]{0,32})"}
"""A space, or a line and its indentation: without an end of blanks small models lose themselves in them."""
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
    """A grammar before it is compiled, in the library's own serialised form."""

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


@lru_cache(KEPT_PATTERNS)
def can_enforce_pattern(pattern: str) -> bool:
    """Whether a regular expression has a grammar; those with look-around or references to groups have none.

    One that is no regular expression at all is not excused: its error is the client's to hear of.
    """
    has_look_around = re.search(r"\(\?<?[=!]|\\[bB1-9]", pattern) is not None
    schema = json.dumps({"type": "string", "pattern": pattern})
    return not has_look_around or not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))


class GrammarTokens:
    """The vocabulary in the form that the library reads: the bytes of each token, and the ids that are never text.

    It looks for these very attribute names, and calls the object to tokenise a text.
    """

    def __init__(self, vocabulary: Vocabulary, size: int, end_ids: frozenset[int]) -> None:
        # Splitting special tokens is a state of the tokenizer, and other threads encode prompts with theirs meanwhile.
        tokenizer = self.tokenizer = deepcopy(vocabulary.tokenizer)
        marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        # Rows of logits may be padded beyond the tokens that exist.
        special = marked.union(tokenizer.all_special_ids, end_ids, range(len(tokenizer), size))
        self.special_token_ids = sorted(special)
        self.tokens = [f"<|{i}|>".encode() if i in special else vocabulary[i].content for i in range(size)]
        self.eos_token_id = min(end_ids, default=self.special_token_ids[0] if special else 0)
        self.bos_token_id = None

    def __call__(self, text: str) -> list[int]:
        """The ids of text that a grammar forces; `<s>` in such text is four letters, never the special token."""
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
        """The library's view of the vocabulary, made with the first grammar: 150,000 tokens take two seconds."""
        size = max(self.size, len(self.vocabulary.tokenizer))
        wrapper = TokenizerWrapper(GrammarTokens(self.vocabulary, size, self.end_ids))
        return LLTokenizer(wrapper, n_vocab=size, eos_token=sorted(self.end_ids) or None)

    def compile_anew(self, grammar: Grammar) -> "CompiledGrammar":
        """Raises `GrammarError` with the library's reason."""
        compiled = CompiledGrammar(lambda: self.matcher(grammar), self.size, self.tokens.eos_tokens)
        # The first mask tells of what compiling does not: nothing may follow, or too much work.
        compiled.matcher.compute_logit_bias()
        if error := compiled.matcher.get_error():
            raise GrammarError(reason_in(error))
        return compiled

    def matcher(self, grammar: Grammar) -> LLMatcher:
        return LLMatcher(self.tokens, grammar.source, log_level=0, limits=LIMITS)


IN_OUR_WORDS = {
    "NoExtensionBias": "no JSON fits it",
    "coerce_one_of": "oneOf needs branches that visibly exclude each other; anyOf may be what is meant",
}
"""What the library says in its own terms, by a word of it."""


def reason_in(error: str) -> str:
    """The line that says what is wrong, without its place in the grammar; the others quote the grammar."""
    lines = error.strip().splitlines()
    line = next((line for line in lines if line.startswith("error: ")), lines[0])
    known = next((reason for word, reason in IN_OUR_WORDS.items() if word in line), None)
    return known or re.sub(r"^(error: )?(at \d+\(\d+\): failed to compile JSON schema: )?", "", line)


class CompiledGrammar:
    """A grammar over a vocabulary; every sequence that asks for it follows a copy of its `matcher`.

    Copies share the states that the lexer has built so far. That makes the second request fast, and it lets
    many requests together reach the limit on states; `renew` then starts again with none.
    """

    def __init__(self, new_matcher: Callable[[], LLMatcher], size: int, end_ids: list[int]) -> None:
        self.new_matcher = new_matcher
        self.size = size
        self.end_ids = end_ids
        self.matcher = new_matcher()

    def renew(self) -> None:
        self.matcher = self.new_matcher()
