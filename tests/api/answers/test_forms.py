"""Every answer, chunk and error has exactly the form that OpenAI's own types describe."""

import json
from typing import Any

import httpx
import pytest
from openai.types import Completion, Model, chat, completion_create_params, responses
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.api.responses.schema import ResponseBody
from server.api.schema.base import Body
from server.api.schema.generation import ChatBody, CompletionBody
from tests.api.strict import check

USER = [{"role": "user", "content": "hi"}]
CHAT = {"model": "tiny", "messages": USER, "max_tokens": 8, "seed": 3}
TEXT = {"model": "tiny", "prompt": "hi", "max_tokens": 8, "seed": 3}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def post(base_url: str, path: str, **body: Any) -> httpx.Response:
    response = httpx.post(base_url + path, json=body)
    assert response.status_code == 200, response.text
    return response


def events(response: httpx.Response) -> list[Any]:
    """The data of each event of a stream that ended as it should."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, last = [line for line in response.text.splitlines() if line]
    assert last == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("changes", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}])
def test_chat_whole_and_streamed(base_url: str, changes: dict[str, Any]) -> None:
    answer = check(post(base_url, "/v1/chat/completions", **CHAT, **changes).json(), ChatCompletion)
    assert (answer.choices[0].logprobs is not None) == ("logprobs" in changes)
    for options in ({"stream": True}, USAGE):
        chunks = events(post(base_url, "/v1/chat/completions", **CHAT, **changes, **options))
        for chunk in chunks:
            check(chunk, ChatCompletionChunk)
            assert ("usage" in chunk) == (options is USAGE)
            assert all(set(choice) == {"index", "delta", "logprobs", "finish_reason"} for choice in chunk["choices"])
        assert [chunk["usage"] is not None for chunk in chunks[:-1] if options is USAGE].count(True) == 0


@pytest.mark.parametrize("changes", [{}, {"n": 2, "echo": True}, {"logprobs": 2}])
def test_text_whole_and_streamed(base_url: str, changes: dict[str, Any]) -> None:
    check(post(base_url, "/v1/completions", **TEXT, **changes).json(), Completion)
    for chunk in events(post(base_url, "/v1/completions", **TEXT, **changes, **USAGE)):
        for choice in chunk["choices"]:
            # OpenAI's type of a chunk is that of a whole answer; its own chunks have null before the end.
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        check(chunk, Completion)


@pytest.mark.parametrize(
    ("body", "params"),
    [
        (ChatBody, chat.completion_create_params.CompletionCreateParamsStreaming),
        (CompletionBody, completion_create_params.CompletionCreateParamsStreaming),
        (ResponseBody, responses.response_create_params.ResponseCreateParamsStreaming),
    ],
)
def test_every_field_of_openai_is_honoured_or_refused_by_name(body: type[Body], params: Any) -> None:
    named = params.__required_keys__ | params.__optional_keys__
    assert len(named) > 15
    assert named <= body.model_fields.keys() | body.not_honoured.keys()


def test_models(base_url: str) -> None:
    listed = httpx.get(f"{base_url}/v1/models").json()
    assert set(listed) == {"object", "data"}
    for card in (*listed["data"], httpx.get(f"{base_url}/v1/models/tiny").json()):
        assert check(card, Model).id == "tiny"


@pytest.mark.parametrize("num_prompts", [1, 2])
def test_no_new_token_scores_the_prompt(base_url: str, num_prompts: int) -> None:
    options = {"model": "tiny", "prompt": ["a small boat"] * num_prompts, "echo": True, "logprobs": 1}
    answer = post(base_url, "/v1/completions", **options, max_tokens=0).json()
    longer = post(base_url, "/v1/completions", **options, max_tokens=3, temperature=0).json()
    for scored, further in zip(answer["choices"], longer["choices"], strict=True):
        assert (scored["text"], scored["finish_reason"]) == ("a small boat", "length")
        num_tokens = len(scored["logprobs"]["tokens"])
        assert "".join(scored["logprobs"]["tokens"]).endswith("a small boat")
        assert scored["logprobs"]["token_logprobs"][0] is None
        assert scored["logprobs"]["token_logprobs"][1:] == pytest.approx(
            further["logprobs"]["token_logprobs"][1:num_tokens], abs=1e-4
        )
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] == longer["usage"]["prompt_tokens"]


def test_no_new_token_streamed_without_echo_and_at_the_contexts_end(base_url: str) -> None:
    (chunk,) = events(post(base_url, "/v1/completions", **TEXT | {"max_tokens": 0}, stream=True))
    assert (chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) == ("", "length")
    whole_context = {"model": "tiny", "prompt": [9] * 256, "echo": True, "logprobs": 0}
    scored = post(base_url, "/v1/completions", **whole_context, max_tokens=0).json()
    assert len(scored["choices"][0]["logprobs"]["tokens"]) == 256
    assert httpx.post(f"{base_url}/v1/completions", json=whole_context | {"max_tokens": 1}).status_code == 400
