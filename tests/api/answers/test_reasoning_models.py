"""Thinking under the chat templates of reasoning models.

What such a template opens, closes, shows and forgets differs; where thoughts, text, calls and JSON are found does not.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from anthropic.types import Message
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from server.engine import load_checkpoint
from tests.api.answers.reasoning_templates import QWEN3, R1, SMOLLM3
from tests.api.live import make_worker, sent_events, serve
from tests.api.messages.test_messages_api import EVENTS, checked
from tests.api.strict import check, check_event
from tests.scripted import Script, save_scripted_model
from tests.tiny import CPU

SCRIPT: Script = {
    "\n": {"<think>": 9, "A": 8},
    "<think>": {"A": 9},
    "A": {"B": 9},
    "B": {"</think>": 9},
    "</think>": {"C": 3, "<tool_call>": 2},
    "C": {"D": 9},
    "D": {"</s>": 9},
}
"""Thinks AB, answers CD; or, with a little help, with a call."""
OPEN: Script = SCRIPT | {"\n": {"A": 9}}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "parameters": CITY}
TOOLS = [{"type": "function", "function": FUNCTION}]
USER = {"role": "user", "content": "Go"}
ASKED: dict[str, Any] = {"model": "tiny", "temperature": 0}
TO_CALL = {"logit_bias": {"264": 40}}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes"]}}}


@pytest.fixture(scope="module", params=["qwen3", "smollm3", "r1"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    template, script = {"qwen3": (QWEN3, SCRIPT), "smollm3": (SMOLLM3, SCRIPT), "r1": (R1, OPEN)}[request.param]
    folder = save_scripted_model(tmp_path_factory.mktemp(request.param), template, script)
    worker, _ = make_worker(load_checkpoint(str(folder), torch.float32, CPU), None)
    with serve(worker) as url:
        yield url


def post(url: str, path: str, **body: Any) -> httpx.Response:
    response = httpx.post(f"{url}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response


def chat(url: str, **body: Any) -> Any:
    """The message of an answer; whole, streamed and without drafts it has the same thoughts, content and arguments."""
    asked = {"messages": [USER]} | ASKED | body
    whole, plain = (
        post(url, "/v1/chat/completions", **asked, speculation={"method": method}).json()
        for method in ("cascade", "plain")
    )
    chunks = sent_events(post(url, "/v1/chat/completions", **asked, stream=True))
    for chunk in chunks:
        check(chunk, ChatCompletionChunk)
    check(whole, ChatCompletion)
    message: dict[str, Any] = whole["choices"][0]["message"]
    streamed = texts_of(*(chunk["choices"][0]["delta"] for chunk in chunks))
    assert texts_of(message) == texts_of(plain["choices"][0]["message"]) == streamed
    return message


def texts_of(*parts: dict[str, Any]) -> list[str]:
    """Thoughts, content and arguments of a message, whole or in parts."""
    calls = [call["function"]["arguments"] for part in parts for call in part.get("tool_calls") or ()]
    shown = ["".join(part.get(name) or "" for part in parts) for name in ("reasoning_content", "content")]
    return [*shown, "".join(calls)]


def prompt(url: str, **body: Any) -> str:
    tokens = post(url, "/tokenize", **{"messages": [USER], **body}).json()["tokens"]
    return str(post(url, "/detokenize", tokens=tokens).json()["prompt"])


def test_thoughts_come_apart(url: str) -> None:
    message = chat(url)
    assert (message["reasoning_content"], message["content"]) == ("AB", "CD")


@pytest.mark.parametrize(
    "off",
    [
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [{"role": "system", "content": "/no_think"}, USER]},
    ],
    ids=["effort", "variable", "words"],
)
def test_thinking_is_turned_off(url: str, off: dict[str, Any]) -> None:
    """Where the template knows this way to; the effort closes the thinking of any."""
    knows = "enable_thinking" in off.get("chat_template_kwargs", {}) and "Assistant" not in prompt(url)
    knows |= "messages" in off and "Reasoning Mode" in prompt(url)
    knows |= "reasoning_effort" in off
    message = chat(url, **off, max_tokens=30, logit_bias={"263": -100} if knows else {})
    assert ("reasoning_content" in message) != knows


def test_a_call_after_the_thoughts(url: str) -> None:
    for choice in ("auto", "required"):
        message = chat(url, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, **TO_CALL)
        assert message["reasoning_content"] == "AB" and message["content"] is None
        (call,) = message["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"city": "Paris"})
    message = chat(url, tools=TOOLS)
    assert (message["reasoning_content"], message["content"]) == ("AB", "CD")


def test_a_form_after_the_thoughts_and_a_budget_before(url: str) -> None:
    message = chat(url, response_format=FORM)
    assert (message["reasoning_content"], json.loads(message["content"])) == ("AB", "yes")
    message = chat(url, response_format=FORM, thinking_budget=1)
    assert (message["reasoning_content"], json.loads(message["content"])) == ("A", "yes")
    message = chat(url, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, thinking_budget=1)
    assert (message["reasoning_content"], len(message["tool_calls"])) == ("A", 1)
    message = chat(url, structured_outputs={"choice": ["yes"]}, reasoning_effort="none")
    assert (message.get("reasoning_content"), message["content"]) == (None, "yes")


def test_items_of_a_response(url: str) -> None:
    asked = {"input": "Go", "tools": [{"type": "function", "strict": None, **FUNCTION}]} | ASKED | TO_CALL
    whole = check(post(url, "/v1/responses", **asked, parallel_tool_calls=False).json(), Response)
    thoughts, call = whole.output
    assert thoughts.type == "reasoning" and thoughts.content and thoughts.content[0].text == "AB"
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Paris"}
    events = sent_events(post(url, "/v1/responses", **asked, parallel_tool_calls=False, stream=True))
    for event in events:
        check_event(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    added = [event["item"]["type"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert added == ["reasoning", "function_call"] and events[-1]["response"]["output"] == done
    assert [item.get("arguments") for item in done] == [None, call.arguments]


def test_blocks_of_a_message(url: str) -> None:
    tools = [{"name": "weather", "input_schema": CITY}]
    asked = {"messages": [USER], "tools": tools, "max_tokens": 200} | ASKED | TO_CALL
    asked["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
    thoughts, call = checked(post(url, "/v1/messages", **asked).json(), Message).content
    assert (thoughts.thinking, call.input) == ("AB", {"city": "Paris"})
    events = sent_events(post(url, "/v1/messages", **asked, stream=True))
    for event in events:
        checked(event, EVENTS[event["type"]])
    begun = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert begun == ["thinking", "tool_use"] and events[-2]["delta"]["stop_reason"] == "tool_use"


def test_thoughts_that_come_back(url: str) -> None:
    """Qwen3's template shows those since the user's last question, the others none."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    called = {"role": "assistant", "content": "", "reasoning_content": "Hm", "tool_calls": [call]}
    turns = [USER, called, {"role": "tool", "tool_call_id": "c1", "content": "sunny"}]
    is_qwen = "Reasoning Mode" not in prompt(url) and "Assistant" not in prompt(url)
    assert ("<think>\nHm\n</think>" in prompt(url, messages=turns)) == is_qwen
    later = prompt(url, messages=[*turns, {"role": "assistant", "content": "Sun"}, USER])
    assert "Hm" not in later and "sunny" in later
    assert chat(url, messages=turns, tools=TOOLS)["content"] == "CD"
