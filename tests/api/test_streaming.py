"""What a stream's events carry beside the answer: usage so far, and padding that hides their lengths."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from server.engine import TextCodec
from tests.api.strict import check

PLAIN: Any = {"speculation": {"method": "plain"}}
USER: Any = {"role": "user", "content": "hi"}
BODY: Any = {"messages": [USER], "prompt": "hi", "model": "tiny", "max_tokens": 12, "seed": 1, "stream": True, **PLAIN}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds numbers"}}


def events(base_url: str, path: str, **body: Any) -> list[str]:
    unknown = "prompt" if path == "chat/completions" else "messages"
    sent = {name: value for name, value in (BODY | body).items() if name != unknown}
    response = httpx.post(f"{base_url}/v1/{path}", json=sent, timeout=30)
    assert response.status_code == 200, response.text
    found = [line.removeprefix("data: ") for line in response.text.split("\n") if line]
    assert found.pop() == "[DONE]"
    return found


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_usage_so_far_is_in_each_chunk(base_url: str, path: str) -> None:
    both = {"include_usage": True, "continuous_usage_stats": True}
    chunks = [json.loads(event) for event in events(base_url, path, stream_options=both, n=2)]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and 0 < counts[0] < counts[-1]
    for chunk in chunks:
        usage = chunk["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert chunks[-1]["choices"] == [] and "completion_tokens_details" in chunks[-1]["usage"]


def test_without_usage_there_is_none_so_far(base_url: str) -> None:
    found = events(base_url, "chat/completions", stream_options={"continuous_usage_stats": True})
    assert not any("usage" in json.loads(event) for event in found)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_padded_events_do_not_tell_the_lengths_of_tokens(base_url: str, path: str) -> None:
    bare = events(base_url, path)
    padded = events(base_url, path, stream_options={"include_obfuscation": True})
    assert len({len(event.encode()) % 64 for event in bare}) > 1
    assert {len(event.encode()) % 64 for event in padded} == {0}
    choices = [[json.loads(event)["choices"] for event in found] for found in (bare, padded)]
    assert choices[0] == choices[1]
    if path == "chat/completions":
        for event in padded:
            check(json.loads(event), ChatCompletionChunk)


def test_the_sdk_reads_both(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": True}
    stream = client.chat.completions.create(
        model="tiny", messages=[USER], max_tokens=4, stream=True, stream_options=options
    )
    assert all(chunk.usage and chunk.usage.prompt_tokens for chunk in stream)


def test_options_of_a_stream_need_one(base_url: str) -> None:
    for name in ("include_usage", "continuous_usage_stats", "include_obfuscation"):
        body = {"model": "tiny", "messages": [USER], "stream_options": {name: True}}
        response = httpx.post(f"{base_url}/v1/chat/completions", json=body)
        assert response.status_code == 400 and response.json()["error"]["param"] == "stream_options"


def test_tokens_of_messages_with_tools(base_url: str, codec: TextCodec) -> None:
    response = httpx.post(f"{base_url}/tokenize", json={"messages": [USER], "tools": [TOOL]})
    assert "Adds numbers" in codec.vocabulary.decode(response.json()["tokens"])
    for body, param in (
        ({"prompt": "a", "tools": [TOOL]}, "tools"),
        ({"messages": [USER], "tools": [TOOL] * 2}, "tools"),
    ):
        refused = httpx.post(f"{base_url}/tokenize", json=body)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param
