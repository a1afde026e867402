"""Predicted outputs: what a client expects of an answer is drafted from, and changes no text."""

from typing import Any

import httpx
import openai
import pytest

from server.engine.history.counts import library

MESSAGES: Any = [{"role": "user", "content": "hi"}]
ASKED: Any = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 60}
LETTERS: Any = {
    "type": "json_schema",
    "json_schema": {"name": "letters", "schema": {"type": "string", "pattern": "^[a-z]{40}$"}},
}
"""Random models write bytes that are no text, and would not come back as they were."""

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler has built the table")


def details(answer: Any) -> tuple[int, int]:
    usage = answer.usage.completion_tokens_details
    return usage.accepted_prediction_tokens, usage.rejected_prediction_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_expected_is_drafted_from(client: openai.OpenAI, stream: bool) -> None:
    """Where all is as expected half of the tokens or more are accepted drafts; in one text or in parts."""
    asked = ASKED | {"response_format": LETTERS, "seed": int(stream), "temperature": 1}
    plain = client.chat.completions.create(**asked, extra_body={"speculation": {"method": "plain"}})
    text = plain.choices[0].message.content
    assert text and details(plain) == (0, 0)
    halves = [{"type": "text", "text": part} for part in (text[: len(text) // 2], text[len(text) // 2 :])]
    for content in (text, halves):
        expected = asked | {"prediction": {"type": "content", "content": content}}
        if stream:
            options: Any = {"stream": True, "stream_options": {"include_usage": True}}
            chunks = list(client.chat.completions.create(**expected, **options))
            answer = chunks[-1]
            written = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        else:
            answer = client.chat.completions.create(**expected)
            written = answer.choices[0].message.content
        assert written == text
        assert details(answer)[0] >= 20


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ({"type": "text", "content": "x"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": 7}, "prediction.content"),
        ({"type": "content", "content": [{"type": "image_url", "image_url": "x"}]}, "prediction.content[0].type"),
        ({"type": "content", "content": "x", "weight": 2}, "prediction.weight"),
        ("x", "prediction"),
    ],
)
def test_a_wrong_prediction_is_refused_by_name(base_url: str, prediction: Any, param: str) -> None:
    answer = httpx.post(f"{base_url}/v1/chat/completions", json=ASKED | {"prediction": prediction})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_no_prediction_is_none(base_url: str) -> None:
    for prediction in (None, {"type": "content", "content": ""}, {"type": "content", "content": []}):
        answer = httpx.post(f"{base_url}/v1/chat/completions", json=ASKED | {"prediction": prediction}, timeout=30)
        assert answer.status_code == 200
