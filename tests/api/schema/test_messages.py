"""Messages as clients send them back: names, and what they keep beside an earlier answer."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.engine import Checkpoint
from tests.api.live import make_worker, serve
from tests.tiny import byte_tokenizer

USER: dict[str, Any] = {"role": "user", "content": "hi"}
NAMING = (
    "{% for m in messages %}{{ m['role'] }}{% if m.name is defined %}({{ m.name }}){% endif %}"
    ": {{ m['content'] }};{% endfor %}"
)
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def prompt_of(url: str, messages: list[dict[str, Any]]) -> str:
    response = httpx.post(f"{url}/tokenize", json={"messages": messages})
    assert response.status_code == 200, response.text
    prompt = httpx.post(f"{url}/detokenize", json={"tokens": response.json()["tokens"]}).json()["prompt"]
    return str(prompt)


def test_a_template_that_uses_names_gets_them(checkpoint: Checkpoint) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = NAMING
    worker, _ = make_worker(replace(checkpoint, tokenizer=tokenizer), None)
    with serve(worker) as url:
        assert prompt_of(url, [USER | {"name": "Ann"}, USER]) == "user(Ann): hi;user: hi;"
        answered = {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": "3"}
        turns = [USER, {"role": "assistant", "name": "Bob", "tool_calls": [CALL]}, answered]
        assert "assistant(Bob): <tool_call>" in prompt_of(url, turns)


@pytest.mark.parametrize(
    "echoed",
    [
        {"name": "Ann"},
        {"id": "msg_1", "refusal": None, "annotations": [], "audio": None, "function_call": None},
        {"reasoning_content": None, "reasoning": None, "provider_specific_fields": {"refusal": None}},
        {"cache_control": {"type": "ephemeral"}, "thinking_blocks": [], "reasoning_details": [], "images": None},
        {"content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "annotations": []}]},
        {"role": "assistant", "tool_calls": None},
    ],
)
def test_what_clients_keep_beside_a_message_changes_nothing(base_url: str, echoed: dict[str, Any]) -> None:
    plain = {"role": echoed.get("role", "user"), "content": "hi"}
    assert prompt_of(base_url, [USER, plain | echoed]) == prompt_of(base_url, [USER, plain])


def test_a_call_may_come_back_with_its_place_in_the_stream_or_without_arguments(base_url: str) -> None:
    called: dict[str, Any] = {"role": "assistant", "content": None}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "3"}
    calls = (CALL, CALL | {"index": 0}, CALL | {"function": {"name": "add", "arguments": ""}})
    assert len({prompt_of(base_url, [USER, called | {"tool_calls": [call]}, result]) for call in calls}) == 1


def test_a_call_that_was_cut_short_may_come_back(base_url: str) -> None:
    """The model sees what it wrote."""
    for written, shown in (('{"a": "Par', r'"{\"a\": \"Par"'), ("7", "7"), ("", "{}")):
        call = CALL | {"function": {"name": "add", "arguments": written}}
        prompt = prompt_of(base_url, [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, USER])
        assert f'<tool_call>\n{{"name": "add", "arguments": {shown}}}\n</tool_call>' in prompt
