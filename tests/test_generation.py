"""A generation's text, counts and ending, over a real sequence and codec."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine import (
    Emission,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Sequence,
    SequenceStats,
    StopConditions,
    TextCodec,
    TokenLogprobs,
)
from server.generation import Generation, Outcome, Piece, cut

EOS = 2


def begin(codec: TextCodec, *stop: str) -> Generation:
    request = GenerationRequest([1, 9], SamplingParams(), StopConditions(100, frozenset({EOS})))
    return Generation(0, Sequence.of(0, request, "cascade", 4, 256), codec.stream(stop))


def feed(generation: Generation, ids: list[int], num_drafted: int, reason: FinishReason | None = None) -> str | Outcome:
    """One verification that emits `ids`, all but the last accepted."""
    generation.sequence.ids += ids
    generation.sequence.stats.record(num_drafted, len(ids) - 1)
    piece = generation.advance(Emission(generation.sequence, ids, reason), now=1.0)
    return piece.outcome or piece.text


def ids_of(codec: TextCodec, text: str) -> list[int]:
    return codec.encode_text(text)


def test_end_of_sequence_is_counted_but_not_shown(codec: TextCodec) -> None:
    generation = begin(codec)
    assert feed(generation, ids_of(codec, "ab"), 1) == "ab"
    generation.sequence.ids.append(EOS)
    piece = generation.advance(Emission(generation.sequence, [EOS], FinishReason.STOP), now=2.0)
    assert piece.outcome and piece.text == ""
    assert (piece.outcome.completion_tokens, piece.outcome.finish_reason) == (3, FinishReason.STOP)


def test_what_was_held_back_comes_with_the_end(codec: TextCodec) -> None:
    generation = begin(codec, "xyz")
    assert feed(generation, ids_of(codec, "axy"), 2) == "a"
    generation.sequence.ids += (ids := ids_of(codec, "w"))
    piece = generation.advance(Emission(generation.sequence, ids, FinishReason.LENGTH), now=2.0)
    assert piece.text == "xyw"
    assert piece.outcome and piece.outcome.finish_reason is FinishReason.LENGTH


def test_counts_end_at_the_stop_string(codec: TextCodec) -> None:
    generation = begin(codec, "cd")
    assert feed(generation, ids_of(codec, "ab"), 3) == "ab"
    outcome = feed(generation, ids_of(codec, "cdef"), 4)
    assert isinstance(outcome, Outcome)
    assert outcome.finish_reason is FinishReason.STOP
    assert outcome.completion_tokens == 4
    assert (outcome.stats.num_drafted, outcome.stats.num_accepted) == (3 + 2, 1 + 2)
    assert outcome.stats.accepted_per_step == {1: 1, 2: 1}


def test_nothing_is_cut_where_the_stop_string_ends_the_emission(codec: TextCodec) -> None:
    outcome = feed(begin(codec, "ab"), ids_of(codec, "ab"), 3)
    assert isinstance(outcome, Outcome)
    assert (outcome.completion_tokens, outcome.stats.num_drafted, outcome.stats.num_accepted) == (2, 3, 1)


def scored(generation: Generation, ids: list[int], reason: FinishReason | None = None) -> Piece:
    """What one emission with log-probabilities becomes; a token's is minus its id."""
    generation.sequence.ids += ids
    logprobs = [TokenLogprobs(token_id, -float(token_id)) for token_id in ids]
    return generation.advance(Emission(generation.sequence, ids, reason, logprobs), now=1.0)


def test_log_probabilities_come_with_their_text_and_not_for_the_end_of_sequence(codec: TextCodec) -> None:
    generation = begin(codec, "xyz")
    letters = ids_of(codec, "axyé")
    first = scored(generation, letters[:3])
    assert (first.text, [token.start for token in first.tokens]) == ("a", [0])
    last = scored(generation, [*letters[3:], EOS], FinishReason.STOP)
    assert (last.text, [token.start for token in last.tokens]) == ("xyé", [1, 2, 3, 3])
    shown = [*first.tokens, *last.tokens]
    assert [token.scores for token in shown] == [TokenLogprobs(i, -float(i)) for i in letters]


def test_log_probabilities_end_before_the_stop_string(codec: TextCodec) -> None:
    generation = begin(codec, "cd")
    piece = scored(generation, ids_of(codec, "abcdef"))
    assert (piece.text, len(piece.tokens)) == ("ab", 2)


def test_an_echo_puts_the_prompt_and_its_log_probabilities_first(codec: TextCodec) -> None:
    prompt = [1, *ids_of(codec, "hé")]
    request = GenerationRequest(prompt, SamplingParams(), StopConditions(100), num_logprobs=0, scores_prompt=True)
    sequence = Sequence.of(0, request, "plain", 4, 256)
    sequence.prompt_logprobs = [TokenLogprobs(token_id, None) for token_id in prompt]
    generation = Generation(0, sequence, codec.stream(), codec.stream())
    piece = scored(generation, ids_of(codec, "ab"))
    assert (piece.text, [token.start for token in piece.tokens]) == ("héab", [0, 0, 1, 1, 2, 3])
    assert [token.scores.token_id for token in piece.tokens] == sequence.ids
    assert scored(generation, ids_of(codec, "c")).text == "c"


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1), st.integers(1, 6))
def test_cutting_keeps_the_verifications_before_and_what_was_accepted_of_the_last(
    steps: list[tuple[int, int]], kept: int
) -> None:
    before = SequenceStats()
    for drafted, accepted in steps:
        before.record(drafted, min(drafted, accepted))
    untouched = before.copy()
    result = cut(before, kept)
    assert before == untouched
    assert (result.num_drafted, result.num_accepted) == (before.num_drafted + kept, before.num_accepted + kept)
    assert result.num_steps == before.num_steps + 1
    assert result.accepted_per_step - before.accepted_per_step == {kept: 1}
