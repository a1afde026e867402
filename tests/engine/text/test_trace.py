"""The law of a trace: texts of accepted and own tokens, joined, are the text, however it ends and is cut in pieces."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine import PLAIN, StepTexts, TextCodec, TextTrace, TracedStep
from tests.engine.text.test_codec import CODECS
from tests.tiny import SPECIAL_TOKENS


@pytest.fixture(scope="module", params=CODECS)
def any_codec(request: pytest.FixtureRequest) -> TextCodec:
    return CODECS[request.param]()


@dataclass(frozen=True)
class Traced:
    """What came of some steps: the pieces of text, with the steps that were told beside each."""

    pieces: list[str]
    told: list[tuple[StepTexts, ...]]

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def steps(self) -> list[StepTexts]:
        return [step for told in self.told for step in told]

    @property
    def joined(self) -> str:
        return "".join("".join(step.accepted) + step.own for step in self.steps)


def traced(
    codec: TextCodec, steps: list[tuple[TracedStep, list[int]]], stop: tuple[str, ...] = (), min_tokens: int = 0
) -> Traced:
    """The steps as a generation takes them, up to a stop string."""
    stream = codec.stream(stop, min_tokens)
    trace = TextTrace(stream)

    def run() -> Iterator[tuple[str, tuple[StepTexts, ...]]]:
        for i, (step, ids) in enumerate(steps, 1):
            text = stream.push(ids)
            trace.add(step, ids)
            is_end = stream.is_stopped or i == len(steps)
            text += stream.flush() if is_end else ""
            yield text, trace.take(text, is_end)
            if is_end:
                return

    pieces = list(run())
    return Traced([text for text, _ in pieces], [told for _, told in pieces])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(data=st.data())
def test_the_texts_of_all_tokens_are_the_text(any_codec: TextCodec, data: st.DataObject) -> None:
    ids = st.integers(len(SPECIAL_TOKENS) - 3, len(any_codec.tokenizer) - 1)
    parts = data.draw(st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=8))
    whole = any_codec.decode([token for part in parts for token in part])
    places = st.integers(0, max(len(whole) - 1, 0))
    stop = tuple(
        whole[at : at + data.draw(st.integers(1, 3))] for at in data.draw(st.lists(places, max_size=2)) if whole[at:]
    )
    steps = [
        (TracedStep("skip", data.draw(st.integers(0, len(part))), tuple(data.draw(st.lists(ids, max_size=3)))), part)
        for part in parts
    ]
    min_tokens = data.draw(st.integers(0, 6))
    result = traced(any_codec, steps, stop, min_tokens)
    assert result.joined == result.text
    told = 0
    for i, part in enumerate(result.told):
        told += sum(len("".join(step.accepted) + step.own) for step in part)
        assert told <= len("".join(result.pieces[: i + 1]))
    if not stop:
        assert [len(step.accepted) for step in result.steps] == [step.num_accepted for step, _ in steps]
        assert [len(step.rejected) for step in result.steps] == [len(step.rejected) for step, _ in steps]


def ids_of(codec: TextCodec, text: str) -> list[int]:
    return codec.encode(text, False)


def test_a_character_comes_with_its_last_token(codec: TextCodec) -> None:
    a, *parts = ids_of(codec, "a\N{EURO SIGN}")
    steps = [(TracedStep(), [a]), (TracedStep("suffix", 1), parts[:2]), (TracedStep(), parts[2:])]
    result = traced(codec, steps)
    assert result.pieces == ["a", "", "\N{EURO SIGN}"]
    assert result.told[1] == ()
    assert result.steps[1] == StepTexts("suffix", ("",), "", ())
    assert result.steps[2] == StepTexts(PLAIN, (), "\N{EURO SIGN}", ())


def test_rejected_tokens_may_end_a_character_that_the_text_begins(codec: TextCodec) -> None:
    first, *rest = ids_of(codec, "\N{EURO SIGN}")
    result = traced(codec, [(TracedStep("skip", 1, tuple(rest)), [first, *ids_of(codec, "b")])])
    assert result.steps[0].rejected == ("", "\N{EURO SIGN}")
    assert result.joined == result.text


def test_a_stop_string_cuts_its_step(codec: TextCodec) -> None:
    ids, rejected = ids_of(codec, "abcdef"), tuple(ids_of(codec, "xy"))
    (step,) = traced(codec, [(TracedStep("skip", 5, rejected), ids)], ("cd",)).steps
    assert step == StepTexts("skip", ("a", "b", "", ""), "", ())
    (step,) = traced(codec, [(TracedStep("skip", 5, rejected), ids)], ("ef",)).steps
    assert step == StepTexts("skip", ("a", "b", "c", "d", ""), "", ("x", "y"))


def test_what_a_stop_string_may_begin_with_is_told_once_it_is_certain(codec: TextCodec) -> None:
    steps = [(TracedStep(), [token]) for token in ids_of(codec, "acb")]
    result = traced(codec, steps, ("cd",))
    assert result.pieces == ["a", "", "cb"]
    assert [len(told) for told in result.told] == [1, 0, 2]


def test_an_end_token_has_no_text_and_rejected_ones_are_written_out(codec: TextCodec) -> None:
    eos = codec.tokenizer.eos_token_id
    stream = codec.stream()
    trace = TextTrace(stream)
    text = stream.push(ids_of(codec, "ab"))
    trace.add(TracedStep("skip", 2, (eos,)), [*ids_of(codec, "ab"), eos])
    assert trace.take(text, is_end=True) == (StepTexts("skip", ("a", "b"), "", ("</s>",)),)
