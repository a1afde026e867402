"""Grammars: what they allow equals brute force, drafts change nothing, and what cannot be had is refused."""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from transformers import AutoModelForCausalLM

from server.engine import (
    Adjustments,
    CompiledGrammar,
    Decoder,
    DraftModel,
    Engine,
    EngineConfig,
    FinishReason,
    GenerationRequest,
    Grammar,
    GrammarCompiler,
    GrammarError,
    Route,
    SamplingParams,
    SkipMask,
    StopConditions,
    TextCodec,
    Vocabulary,
)
from server.engine.sampling.distribution import draw_tokens, probabilities
from server.engine.sampling.draw import Draw
from server.engine.sampling.grammar_matcher import GrammarMatcher
from tests.tiny import byte_tokenizer

END = 2
STOP = StopConditions(40, frozenset({END}))
WORDS = ["red", "read", "ready", "r", "blue", "blueish", "</s>", "äh"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SAMPLINGS = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(0.7, seed=3),
    "top-p": SamplingParams(1.2, top_p=0.9, seed=4),
}
COMPILER = GrammarCompiler(Vocabulary(byte_tokenizer()), 262, frozenset({END}))
ONE_WORD = COMPILER.compile(Grammar.of_lark("start: " + " | ".join(json.dumps(word) for word in WORDS)))
RECORD = COMPILER.compile(Grammar.of_schema(SCHEMA))


def allowed_by_brute_force(codec: TextCodec, ids: list[int]) -> set[int]:
    """Tokens after which some word still begins with the text; the end after a whole word."""
    text = b"".join(codec.vocabulary[i].content for i in ids)
    words = [word.encode() for word in WORDS]
    letters = {i for i in range(6, 262) if any(word.startswith(text + codec.vocabulary[i].content) for word in words)}
    return letters | ({END} if text in words else set())


def prompts(count: int) -> list[list[int]]:
    """Prompts that say everything twice, so that prompt lookup finds something to draft."""
    rng = random.Random(4)
    texts = [[rng.randrange(6, 262) for _ in range(rng.randrange(4, 20))] for _ in range(count)]
    return [[1, *text, *text] for text in texts]


def random_route(rng: random.Random) -> Route:
    def part() -> frozenset[int]:
        return frozenset(i for i in range(4) if rng.random() < 0.4)

    return Route("test", DraftModel(SkipMask(part() | {1}, part())))


def plain(grammar: CompiledGrammar, sampling: SamplingParams, stop: StopConditions = STOP) -> list[GenerationRequest]:
    return [GenerationRequest(ids, sampling, stop, "plain", grammar=grammar) for ids in prompts(8)]


def run_all(model: Decoder, asked: list[GenerationRequest], max_batch: int) -> list[Any]:
    return Engine(model, EngineConfig(max_batch=max_batch, confidence=0.0, prefill_chunk=9)).generate(asked)


def check_lossless(model: Decoder, requests: list[GenerationRequest]) -> list[list[int]]:
    """Any method alone and any mask and method in a batch of eight yields what plain decoding yields."""
    rng = random.Random(9)
    alone = [run_all(model, [one], 1)[0].output_ids for one in requests]
    for method in ("skip", "lookup", "cascade"):
        drafted = [replace(one, method=method, route=random_route(rng), max_draft=5) for one in requests]
        together = run_all(model, drafted, 8)
        assert [sequence.output_ids for sequence in together] == alone
        assert run_all(model, drafted[:1], 1)[0].output_ids == alone[0]
        assert method == "lookup" or sum(sequence.stats.num_drafted for sequence in together)
    return alone


@pytest.mark.parametrize("name", SAMPLINGS)
def test_records_are_lossless_under_speculation_and_valid(model: Decoder, codec: TextCodec, name: str) -> None:
    stop = StopConditions(60, frozenset({END}))
    for ids in check_lossless(model, plain(RECORD, SAMPLINGS[name], stop)):
        if ids[-1] == END:
            record = json.loads(codec.decode(ids))
            assert {"name", "age"} <= record.keys() <= {"name", "age", "tags"}
            assert len(record["name"]) <= 8 and 0 <= record["age"] <= 120
        else:
            assert len(ids) == 60


def test_greedy_equals_transformers_with_brute_force_masks(
    model: Decoder, codec: TextCodec, tiny_checkpoint: Path
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    outputs = check_lossless(model, plain(ONE_WORD, SamplingParams()))
    for prompt, output in zip(prompts(8), outputs, strict=True):
        ids = torch.tensor([prompt])

        def allowed(batch: int, so_far: torch.Tensor, length: int = len(prompt)) -> list[int]:
            return sorted(allowed_by_brute_force(codec, so_far.tolist()[length:]))

        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            prefix_allowed_tokens_fn=allowed,
            pad_token_id=0,
        )
        assert output == out[0, len(prompt) :].tolist()
    assert len({tuple(ids) for ids in outputs}) > 2


def brute_force(
    tiny_checkpoint: Path, codec: TextCodec, prompt: list[int]
) -> Callable[[list[int], SamplingParams], torch.Tensor]:
    """The model's logits after some output with everything forbidden that brute force does not allow."""
    reference = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def row(output: list[int], sampling: SamplingParams) -> torch.Tensor:
        if tuple(output) not in known:
            with torch.inference_mode():
                known[tuple(output)] = reference(torch.tensor([prompt + output])).logits[0, -1:]
        logits = torch.full((1, 262), float("-inf"))
        allowed = sorted(allowed_by_brute_force(codec, output))
        logits[0, allowed] = known[tuple(output)][0, allowed]
        return logits

    return row


def test_sampling_equals_slow_decoding_with_brute_force_masks(
    model: Decoder, codec: TextCodec, tiny_checkpoint: Path
) -> None:
    prompt = prompts(1)[0]
    row = brute_force(tiny_checkpoint, codec, prompt)
    expected, requests = [], []
    for seed in range(24):
        sampling, output = SamplingParams(1.2, seed=seed), list[int]()
        while not output or output[-1] != END:
            output += draw_tokens(row(output, sampling), [Draw(sampling, seed, len(prompt) + len(output))])
        expected.append(output)
        requests.append(GenerationRequest(prompt, sampling, STOP, "plain", grammar=ONE_WORD))
    assert check_lossless(model, requests) == expected
    assert len({tuple(output) for output in expected}) > 2


def test_words_follow_the_exact_distribution(model: Decoder, codec: TextCodec, tiny_checkpoint: Path) -> None:
    """Chi-squared over 300 skipping generations, against the product of the tokens' probabilities."""
    prompt, sampling = prompts(2)[1], SamplingParams(1.5)
    row = brute_force(tiny_checkpoint, codec, prompt)
    expected = {}
    for word in WORDS:
        ids, share = [*codec.encode(word, False), END], 1.0
        ids = ids if word != "</s>" else [*(codec.encode(letter, False)[0] for letter in word), END]
        for i, token in enumerate(ids):
            share *= probabilities(row(ids[:i], sampling), sampling)[0, token].item()
        expected[tuple(ids)] = share
    assert sum(expected.values()) == pytest.approx(1)
    route = Route("test", DraftModel(SkipMask(frozenset({1, 3}), frozenset({2}))))
    asked = [
        GenerationRequest(prompt, replace(sampling, seed=seed), STOP, "skip", route, max_draft=4, grammar=ONE_WORD)
        for seed in range(300)
    ]
    counts = Counter(tuple(sequence.output_ids) for sequence in run_all(model, asked, 8))
    assert counts.keys() <= expected.keys()
    likely = {ids: 300 * share for ids, share in expected.items() if 300 * share >= 5}
    assert len(likely) > 2
    assert sum((counts[ids] - mean) ** 2 / mean for ids, mean in likely.items()) < 30


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([ONE_WORD, RECORD]))
def test_rows_allow_what_a_fresh_walk_allows(rng: random.Random, grammar: CompiledGrammar) -> None:
    """Whatever was drafted and taken back before; rows after a refused token are left alone."""

    def fresh(ids: list[int]) -> list[int]:
        logits = torch.zeros(1, 262)
        GrammarMatcher(grammar, 1, STOP.token_ids).restrict(logits, [1, *ids], [])
        return [i for i, value in enumerate(logits[0].tolist()) if value == 0]

    walk, ids = GrammarMatcher(grammar, 1, STOP.token_ids), list[int]()
    for _ in range(12):
        drafted, is_refused = list[int](), False
        logits_rows = [fresh(ids)]
        for _ in range(rng.randrange(5)):
            any_token = rng.random() < 0.2
            drafted.append(rng.randrange(262) if any_token else rng.choice(logits_rows[-1]))
            is_refused = is_refused or drafted[-1] == END or drafted[-1] not in logits_rows[-1]
            logits_rows.append(list(range(262)) if is_refused else fresh(ids + drafted))
        assert walk.forced([1, *ids], 3) == walk.forced([1, *ids], 3)
        num_rows = rng.randrange(len(drafted) + 1) + 1
        logits = torch.zeros(num_rows, 262)
        walk.restrict(logits, [1, *ids], drafted)
        rows = [[i for i, value in enumerate(row.tolist()) if value == 0] for row in logits]
        assert rows == logits_rows[-num_rows:]
        chosen = rng.choice(logits_rows[0])
        if chosen == END:
            return
        ids.append(chosen)


def test_what_is_forced_is_drafted_and_accepted(model: Decoder, codec: TextCodec) -> None:
    fixed = COMPILER.compile(Grammar.of_lark('start: "the one and only answer" /[0-9]/'))
    asked = GenerationRequest(prompts(1)[0], SamplingParams(), STOP, "lookup", max_draft=7, grammar=fixed)
    engine = Engine(model, EngineConfig(max_batch=1, is_adaptive=False, baseline_share=0))
    (sequence,) = engine.generate([asked])
    assert codec.decode(sequence.output_ids).startswith("the one and only answer")
    assert sequence.stats.num_accepted >= 18
    assert sequence.stats.num_steps <= 8
    check_lossless(model, plain(fixed, SAMPLINGS["sampled"]))


def test_forced_text_leaves_the_tokenizer_of_prompts_alone() -> None:
    """Both are tokenised at the same time, and whether special tokens are split is a state of the tokenizer."""
    vocabulary = Vocabulary(byte_tokenizer())
    fixed = GrammarCompiler(vocabulary, 262, frozenset({END})).compile(Grammar.of_lark('start: "forced" /[0-9]/'))
    assert GrammarMatcher(fixed, 1, frozenset({END})).forced([3], 4)
    assert vocabulary.tokenizer.backend_tokenizer.encode_special_tokens is False


@pytest.mark.parametrize("name", SAMPLINGS)
def test_grammars_combine_with_the_other_fields(model: Decoder, name: str) -> None:
    """The grammar's end wins over `min_tokens` where nothing else may follow, and over any bias."""
    asked = Adjustments(((70, 50.0), (END, 40.0)), repetition_penalty=1.3, presence_penalty=0.5)
    sampling = replace(SAMPLINGS[name], adjustments=asked)
    unhurried = StopConditions(40, frozenset({END, 300}), min_tokens=5)
    for ids in check_lossless(model, plain(ONE_WORD, sampling, unhurried)):
        text = bytes(b for i in ids[:-1] for b in COMPILER.vocabulary[i].content).decode()
        assert ids[-1] == END and text in WORDS
        assert len(ids) > 5 or not any(word != text and word.startswith(text) for word in WORDS)
    letter = COMPILER.vocabulary.tokenizer.convert_tokens_to_ids("e")
    for ids in check_lossless(model, plain(ONE_WORD, sampling, StopConditions(40, frozenset({END, letter})))):
        assert ids[-1] in (END, letter) and letter not in ids[:-1]


class ExhaustedMatcher:
    """A real matcher but for its limits, which five tokens exceed; it stays failed, as the real one does."""

    def __init__(self) -> None:
        source = Grammar.of_lark("start: /[a-z]{60}/").source
        self.real = LLMatcher(COMPILER.tokens, source, log_level=0)
        self.walked = 0
        self.has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def deep_copy(self) -> "ExhaustedMatcher":
        return ExhaustedMatcher()

    def compute_logit_bias(self) -> bytes:
        self.has_failed = self.has_failed or self.walked >= 5
        return self.real.compute_logit_bias()

    def consume_tokens(self, tokens: list[int]) -> bool:
        self.walked += len(tokens)
        return self.real.consume_tokens(tokens)

    def try_consume_tokens(self, tokens: list[int]) -> int:
        num_walked = self.real.try_consume_tokens(tokens)
        self.walked += num_walked
        return num_walked

    def rollback(self, num_tokens: int) -> bool:
        self.walked -= num_tokens
        return not self.has_failed and self.real.rollback(num_tokens)

    def get_error(self) -> str:
        return "too many states" if self.has_failed else ""


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_a_grammar_that_grows_too_complex_ends_in_an_error(model: Decoder, name: str) -> None:
    grammar = CompiledGrammar(cast(Any, ExhaustedMatcher), 262, [END])
    outputs = check_lossless(model, plain(grammar, SAMPLINGS[name]))
    assert all(len(ids) == 6 and ids[-1] == END for ids in outputs)
    for sequence in run_all(model, plain(grammar, SAMPLINGS[name]), 8):
        assert sequence.finish_reason is FinishReason.ERROR


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "strin"}, "Invalid type"),
        ({"$ref": "#"}, "no JSON fits it"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"enum": [str(i) for i in range(20_000)]}, "too big"),
    ],
)
def test_what_cannot_be_compiled_is_refused(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        COMPILER.compile(Grammar.of_schema(schema))


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(200):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError, match="recursion"):
        Grammar.of_schema(schema)


def test_a_grammar_is_compiled_once() -> None:
    assert COMPILER.compile(Grammar.of_schema(SCHEMA)) is RECORD


def test_a_grammar_without_an_end_token_is_refused(model: Decoder) -> None:
    for ends in (frozenset[int](), frozenset({300})):
        request = GenerationRequest([1], SamplingParams(), StopConditions(4, ends), grammar=ONE_WORD)
        with pytest.raises(ValueError, match="end token"):
            Engine(model, EngineConfig()).add(request)
