"""Fields of a request that shape, end or explain its answer, through the official SDK."""

from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from server.engine import TextCodec

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 24}
SAMPLED: dict[str, Any] = {"model": "tiny", "temperature": 1.2, "seed": 7, "max_tokens": 24}
SKIP = {"speculation": {"method": "skip", "domain": "sql", "max_draft": 3}}
PLAIN = {"speculation": {"method": "plain"}}
ASCII = {"logit_bias": {str(i): -100 for i in (*range(6), *range(100, 262))}}
"""Leaves the tokens that are one printable letter each, and no end of sequence."""


def chat(client: openai.OpenAI, **options: Any) -> ChatCompletion:
    answer = client.chat.completions.create(messages=[{"role": "user", "content": "Once upon a time"}], **options)
    assert isinstance(answer, ChatCompletion)
    return answer


def complete(client: openai.OpenAI, prompt: Any = "Once upon a time", **options: Any) -> Completion:
    answer = client.completions.create(prompt=prompt, **options)
    assert isinstance(answer, Completion)
    return answer


def text_of(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize("base", [GREEDY, SAMPLED | {"temperature": 0.5, "max_tokens": 64}], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"logit_bias": {"70": 9, "80": 9.5}}, {}),
        ({"presence_penalty": 2}, {}),
        ({"frequency_penalty": 1.5}, {}),
        ({}, {"repetition_penalty": 1.8}),
        ({"frequency_penalty": -1, "logit_bias": {"75": -100}}, {"repetition_penalty": 0.9, "min_p": 0.01}),
    ],
)
def test_adjustments_change_the_text_and_speculation_does_not(
    client: openai.OpenAI, base: dict[str, Any], options: dict[str, Any], extra: dict[str, Any]
) -> None:
    plain = text_of(chat(client, **base, **options, extra_body=extra | PLAIN))
    assert text_of(chat(client, **base, **options, extra_body=extra | SKIP)) == plain
    assert plain != text_of(chat(client, **base))


def test_a_bias_of_100_all_but_decides(client: openai.OpenAI, codec: TextCodec) -> None:
    (token_id,) = codec.encode("x", False)
    assert text_of(chat(client, **SAMPLED, logit_bias={str(token_id): 100})) == "x" * 24


def test_ends_ids_and_strings_wait_for_the_minimum(client: openai.OpenAI, codec: TextCodec) -> None:
    options = SAMPLED | ASCII
    free = text_of(chat(client, **options))
    ids = codec.encode(free, False)
    assert len(ids) == 24
    stopped = chat(client, **options, extra_body={"stop_token_ids": [ids[5]]})
    at = ids.index(ids[5])
    assert (text_of(stopped), stopped.choices[0].finish_reason) == (free[:at], "stop")
    assert stopped.usage and stopped.usage.completion_tokens == at + 1
    later = chat(client, **options, extra_body={"stop_token_ids": [ids[5]], "min_tokens": 12})
    assert later.usage and later.usage.completion_tokens > 12
    strings = chat(client, **options, stop=free[3], extra_body={"min_tokens": 4})
    assert text_of(strings).startswith(free[:4])


def test_the_end_of_sequence_can_be_ignored(client: openai.OpenAI) -> None:
    wanted = GREEDY | {"logit_bias": {"2": 100}}
    ended = chat(client, **wanted)
    assert (text_of(ended), ended.choices[0].finish_reason) == ("", "stop")
    ignored = chat(client, **wanted, extra_body={"ignore_eos": True})
    assert ignored.choices[0].finish_reason == "length"
    assert ignored.usage and ignored.usage.completion_tokens == 24
    forced = chat(client, **wanted, extra_body={"min_tokens": 9})
    assert forced.usage and forced.usage.completion_tokens == 10


@pytest.mark.parametrize("extra", [PLAIN, SKIP], ids=["plain", "skip"])
def test_chat_logprobs_whole_and_streamed(client: openai.OpenAI, extra: dict[str, Any]) -> None:
    options = SAMPLED | ASCII | {"logprobs": True, "top_logprobs": 3, "extra_body": extra}
    whole = chat(client, **options)
    logprobs = whole.choices[0].logprobs
    assert logprobs and logprobs.content and logprobs.refusal is None
    assert len(logprobs.content) == 24
    content = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert content.decode() == text_of(whole)
    for entry in logprobs.content:
        best = [top.logprob for top in entry.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True)
        assert entry.logprob <= best[0] <= 0
    streamed: list[Any] = []
    stream = client.chat.completions.create(
        messages=[{"role": "user", "content": "Once upon a time"}], stream=True, **options
    )
    for chunk in stream:
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content or []
    assert [(e.token, e.bytes) for e in streamed] == [(e.token, e.bytes) for e in logprobs.content]
    assert [e.logprob for e in streamed] == pytest.approx([e.logprob for e in logprobs.content], abs=1e-4)
    again = chat(client, **SAMPLED, **ASCII, logprobs=True, extra_body=PLAIN).choices[0].logprobs
    assert again and again.content
    assert [e.logprob for e in again.content] == pytest.approx([e.logprob for e in logprobs.content], abs=1e-4)
    assert all(entry.top_logprobs == [] for entry in again.content)


def test_logprobs_end_at_the_stop_string(client: openai.OpenAI) -> None:
    options = SAMPLED | ASCII
    full = text_of(chat(client, **options))
    stop = full[6:8]
    answer = chat(client, **options, stop=stop, logprobs=True, extra_body=SKIP)
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == text_of(answer) == full.split(stop)[0]
    text = complete(client, **options, stop=stop, logprobs=1).choices[0]
    assert text.logprobs and "".join(text.logprobs.tokens or []) == text.text


def test_chat_logprobs_have_openais_keys(base_url: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 1, **GREEDY}
    choice = httpx.post(f"{base_url}/v1/chat/completions", json=body).json()["choices"][0]
    assert set(choice["logprobs"]) == {"content", "refusal"}
    entry = choice["logprobs"]["content"][0]
    assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
    assert set(entry["top_logprobs"][0]) == {"token", "logprob", "bytes"}
    assert entry["top_logprobs"][0]["bytes"] == entry["bytes"]


def test_text_logprobs_and_echo(client: openai.OpenAI, codec: TextCodec) -> None:
    options = SAMPLED | ASCII
    plain = complete(client, **options, logprobs=2).choices[0]
    echoed = complete(client, **options, logprobs=2, echo=True, extra_body=SKIP).choices[0]
    assert echoed.text == "Once upon a time" + plain.text
    own, both = plain.logprobs, echoed.logprobs
    assert own and both and own.tokens and both.tokens and both.token_logprobs and both.top_logprobs
    assert both.text_offset and own.text_offset == list(range(24))
    num_prompt = len(codec.encode_text("Once upon a time"))
    assert both.tokens[num_prompt:] == own.tokens
    assert both.text_offset[num_prompt:] == [16 + offset for offset in own.text_offset]
    assert both.token_logprobs[num_prompt:] == pytest.approx(own.token_logprobs, abs=1e-4)
    assert both.token_logprobs[0] is None and both.top_logprobs[0] is None
    assert all(value is not None and value <= 0 for value in both.token_logprobs[1:])
    for token, logprob, top in list(zip(both.tokens, both.token_logprobs, both.top_logprobs, strict=True))[1:]:
        assert top[token] >= logprob - 1e-6 and len(top) in (1, 2, 3)


def test_echo_without_logprobs_streamed_and_of_ids(client: openai.OpenAI, codec: TextCodec) -> None:
    prompts = [codec.encode("Hi", False), codec.encode("you", False)]
    whole = complete(client, prompts, echo=True, **GREEDY)
    assert [choice.text[: len(text)] for choice, text in zip(whole.choices, ("Hi", "you"), strict=True)] == [
        "Hi",
        "you",
    ]
    assert whole.choices[0].logprobs is None
    texts = ["", ""]
    for chunk in client.completions.create(prompt=prompts, echo=True, stream=True, **GREEDY):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_streamed_text_logprobs_join_to_the_whole(client: openai.OpenAI) -> None:
    whole = complete(client, **SAMPLED, logprobs=0, echo=True).choices[0].logprobs
    tokens: list[str] = []
    offsets: list[int] = []
    for chunk in client.completions.create(prompt="Once upon a time", logprobs=0, echo=True, stream=True, **SAMPLED):
        if part := chunk.choices[0].logprobs:
            tokens += part.tokens or []
            offsets += part.text_offset or []
    assert whole and (tokens, offsets) == (whole.tokens, whole.text_offset)


def test_tokenize_and_detokenize(base_url: str, codec: TextCodec) -> None:
    def post(path: str, **body: Any) -> Any:
        response = httpx.post(base_url + path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    text = "naïve 🙂"
    answer = post("/tokenize", prompt=text, model="tiny")
    ids = codec.encode_text(text)
    assert answer == {"count": len(ids), "max_model_len": 256, "tokens": ids}
    assert post("/tokenize", prompt=text, add_special_tokens=False)["tokens"] == codec.encode(text, False)
    assert post("/detokenize", tokens=codec.encode(text, False)) == {"prompt": text}
    messages = [{"role": "user", "content": "hi"}]
    chat_ids = post("/tokenize", messages=messages)["tokens"]
    assert chat_ids == codec.encode_chat(messages)
    assert post("/detokenize", tokens=chat_ids)["prompt"] == "<s><|user|>hi</s><|assistant|>"
    assert post("/detokenize", tokens=[]) == {"prompt": ""}
