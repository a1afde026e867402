"""Text: what is streamed, joined, is the whole decode up to the stop string, for any tokenizer."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from server.engine import ChatError, TextCodec
from tests.tiny import SPECIAL_TOKENS, byte_tokenizer

CORPUS = [
    "the cat sat on the mat, don't it? ",
    "the theme of the café: naïve 你好 世界 🙂🙃 \n\n",
    "hello world hello",
] * 3


def byte_level_bpe() -> Tokenizer:
    """Merges across spaces and within characters, as GPT-2's, Llama 3's and Qwen's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def metaspace_bpe() -> Tokenizer:
    """Pieces that carry their space in front, the first of which is stripped: as sentencepiece does."""
    backend = Tokenizer(models.BPE(unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL_TOKENS, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_fallback_bpe() -> Tokenizer:
    """Characters outside the vocabulary are byte tokens that the decoder joins: Llama 2's and Mistral's kind."""
    names = ["<unk>", "</s>", *byte_tokens(bytes(range(256))), "▁Hello", "▁world"]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["</s>"])
    return backend


def byte_tokens(content: bytes) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in content]


def codec_of(backend: Tokenizer) -> TextCodec:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False)
    return TextCodec(tokenizer)


CODECS: dict[str, Callable[[], TextCodec]] = {
    "bytes": lambda: TextCodec(byte_tokenizer()),
    "byte-level BPE": lambda: codec_of(byte_level_bpe()),
    "metaspace": lambda: codec_of(metaspace_bpe()),
}


@pytest.fixture(scope="module", params=CODECS)
def any_codec(request: pytest.FixtureRequest) -> TextCodec:
    return CODECS[request.param]()


def streamed(codec: TextCodec, ids: list[int], stop: tuple[str, ...] = ()) -> str:
    stream = codec.stream(stop)
    return "".join(stream.push([token_id]) for token_id in ids) + stream.flush()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_streamed_text_of_any_ids_is_the_whole_decode(any_codec: TextCodec, data: st.DataObject) -> None:
    size = len(any_codec.tokenizer)
    ids = data.draw(st.lists(st.integers(len(SPECIAL_TOKENS), size - 1), max_size=24))
    assert streamed(any_codec, ids) == any_codec.decode(ids)


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=20))
def test_streamed_text_is_the_text(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text, add_special_tokens=False)
    assert streamed(codec, ids) == text


@pytest.mark.parametrize("text", [*CORPUS[:3], "naïve 🙂🙃 你好, 世界!", " the leading", "a  b\n\n c ", "the cat"])
def test_real_text_streams_through_merged_tokens(text: str) -> None:
    codec = CODECS["byte-level BPE"]()
    ids = codec.encode(text, add_special_tokens=False)
    assert len(ids) < len(text.encode())
    assert streamed(codec, ids) == text


def test_metaspace_text_keeps_the_spaces_between_words_only() -> None:
    codec = CODECS["metaspace"]()
    ids = codec.encode("hello world the cat", add_special_tokens=False)
    assert streamed(codec, ids) == "hello world the cat"


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        *((["▁Hello", *byte_tokens(c.encode()), "▁world"], f"Hello{c} world") for c in ("你好", "🙂🙃", "ééé")),
        (["▁Hello", "</s>", "▁world"], "Hello world"),
    ],
)
def test_byte_tokens_and_special_tokens_between_words(tokens: list[str], text: str) -> None:
    codec = codec_of(byte_fallback_bpe())
    ids = codec.tokenizer.convert_tokens_to_ids(tokens)
    assert streamed(codec, ids) == codec.decode(ids) == text


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=12))
def test_any_text_of_byte_tokens_streams(text: str) -> None:
    codec = codec_of(byte_fallback_bpe())
    ids = codec.tokenizer.convert_tokens_to_ids(byte_tokens(text.encode()))
    assert streamed(codec, ids) == codec.decode(ids)


def test_a_tokenizer_that_cleans_up_spaces_loses_no_character() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    codec, text = TextCodec(tokenizer), "I do n't know . one , two"
    ids = codec.encode(text, False)
    assert streamed(codec, ids) == codec.decode(ids) == text


def test_a_character_is_sent_when_its_last_byte_comes(codec: TextCodec) -> None:
    stream = codec.stream()
    assert [stream.push([token_id]) for token_id in codec.encode("a🙂b", False)] == ["a", "", "", "", "🙂", "b"]


def test_flush_sends_an_incomplete_character_once_as_the_decoder_does(codec: TextCodec) -> None:
    ids = codec.encode("a🙂", False)[:-1]
    stream = codec.stream()
    assert stream.push(ids) == "a"
    assert ["a" + stream.flush(), stream.flush()] == [codec.decode(ids), ""]


def test_special_tokens_give_no_text(codec: TextCodec) -> None:
    ids = [1, *codec.encode("ab", False), 2]
    assert streamed(codec, ids) == "ab"


short = st.text("ab", max_size=12)


@settings(deadline=None)
@given(text=short, stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_stop_string_that_is_completed_first(codec: TextCodec, text: str, stop: list[str]) -> None:
    ends = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    end, start = min(ends, default=(len(text), len(text)))
    ids = codec.encode(text, False)
    stream = codec.stream(stop)
    assert stream.push(ids) + stream.flush() == text[:start]
    assert stream.is_stopped == bool(ends)
    assert stream.num_tokens == end
    assert streamed(codec, ids, tuple(stop)) == text[:start]


def test_the_beginning_of_a_stop_string_is_held_back_and_given_when_it_does_not_come(codec: TextCodec) -> None:
    stream = codec.stream(["END", "Enough"])
    assert [stream.push(codec.encode(letter, False)) for letter in "xENxEn"] == ["x", "", "", "ENx", "", ""]
    assert not stream.is_stopped
    assert stream.flush() == "En"


def test_a_stop_string_inside_and_across_tokens() -> None:
    codec = CODECS["byte-level BPE"]()
    ids = codec.encode("hello the cat", False)
    pieces = [codec.decode([token_id]) for token_id in ids]
    inside = next(piece for piece in pieces if len(piece) > 2)[1:]
    assert streamed(codec, ids, (inside,)) == "hello the cat".split(inside)[0]
    across = pieces[0][-1] + pieces[1][0]
    assert streamed(codec, ids, (across,)) == "hello the cat".split(across)[0]


def test_nothing_follows_a_stop_string(codec: TextCodec) -> None:
    stream = codec.stream(["b"])
    assert stream.push(codec.encode("abab", False)) == "a"
    assert (stream.push(codec.encode("cd", False)), stream.flush(), stream.num_tokens) == ("", "", 2)


def test_an_empty_stop_string_stops_nothing(codec: TextCodec) -> None:
    assert streamed(codec, codec.encode("abc", False), ("",)) == "abc"


def test_a_chat_ends_where_the_answer_begins(codec: TextCodec) -> None:
    ids = codec.encode_chat([{"role": "user", "content": "hi"}])
    tokens = codec.tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["<s>", "<|user|>", "h", "i", "</s>", "<|assistant|>"]


def test_what_the_template_refuses_is_named(codec: TextCodec) -> None:
    with pytest.raises(ChatError, match="refuses these messages: unknown role wizard"):
        codec.encode_chat([{"role": "wizard", "content": "hi"}])


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}", "{{ messages[0].content.nothing.at_all }}", "{{ 1 + messages[0].content }}"]
)
def test_a_template_that_fails_is_a_chat_error(template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ChatError):
        TextCodec(tokenizer).encode_chat([{"role": "user", "content": "hi"}])


def test_without_a_template_the_other_endpoint_is_named() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ChatError, match="/v1/completions"):
        TextCodec(tokenizer).encode_chat([{"role": "user", "content": "hi"}])


def test_the_template_hash_tells_templates_apart(codec: TextCodec) -> None:
    other = byte_tokenizer()
    assert TextCodec(other).template_hash == codec.template_hash
    other.chat_template = "{{ messages }}"
    assert TextCodec(other).template_hash != codec.template_hash


@settings(deadline=None)
@given(text=short, stop=st.text("ab", min_size=1, max_size=3), min_tokens=st.integers(0, 12))
def test_a_stop_string_within_the_minimum_length_is_passed_over(
    codec: TextCodec, text: str, stop: str, min_tokens: int
) -> None:
    """One token is one letter here, so a stop string is completed by the token at its end."""
    starts = [at for at in range(len(text)) if text.startswith(stop, at) and at + len(stop) > min_tokens]
    stream = codec.stream([stop], min_tokens)
    shown = "".join(stream.push([token_id]) for token_id in codec.encode(text, False)) + stream.flush()
    assert (shown, stream.is_stopped) == ((text[: starts[0]], True) if starts else (text, False))
    assert stream.num_shown == len(shown) == stream.num_released


def test_ids_know_where_their_text_starts_and_whether_it_was_shown(codec: TextCodec) -> None:
    stream = codec.stream(["cd"])
    assert stream.push(codec.encode("a🙂bc", False)) == "a🙂b"
    assert (stream.starts, stream.num_shown) == ([0, 1, 1, 1, 1, 2, 3], 6)
    stream.push(codec.encode("de", False))
    assert (stream.flush(), stream.num_shown, stream.num_tokens) == ("", 6, 8)


@pytest.mark.parametrize("name", CODECS)
def test_the_bytes_of_tokens_joined_are_those_of_the_text(name: str) -> None:
    codec = CODECS[name]()
    text = "naïve café: the cat sat 你好 🙂" if name != "metaspace" else "hello world the cat"
    tokens = [codec.vocabulary[token_id] for token_id in codec.encode(text, False)]
    assert b"".join(token.content for token in tokens).decode().lstrip() == text
    assert all(token.text == token.content.decode(errors="replace") for token in tokens)


def test_the_bytes_of_byte_tokens_and_special_tokens() -> None:
    codec = codec_of(byte_fallback_bpe())
    ids = codec.tokenizer.convert_tokens_to_ids(["▁Hello", "<0xC3>", "<0xA9>", "</s>"])
    contents = [codec.vocabulary[token_id].content for token_id in ids]
    assert contents == [b" Hello", b"\xc3", b"\xa9", b"</s>"]
