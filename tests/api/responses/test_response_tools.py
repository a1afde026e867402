"""Tools in /v1/responses: calls as items and events, and the turns that follow them."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ToolChoiceAllowed

from tests.api.answers.test_tools import TOOLS as CHAT_TOOLS
from tests.api.live import sent_events
from tests.api.prepare.test_structured import NO_BLANKS
from tests.api.strict import check, check_event

TOOLS: list[Any] = [{"type": "function", "strict": None, **tool["function"]} for tool in CHAT_TOOLS]
ASKED: dict[str, Any] = {"model": "tiny", "input": "Go", "max_output_tokens": 150, "tools": TOOLS, "temperature": 0.7}
MUST = ASKED | {"tool_choice": "required", "parallel_tool_calls": False}
NAMED = {"type": "function", "name": "go"}
OWN = {"seed": 5, **NO_BLANKS}


def events(roomy_url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = httpx.post(f"{roomy_url}/v1/responses", json=body | OWN | {"stream": True}, timeout=60)
    assert response.status_code == 200, response.text
    return sent_events(response)


def test_a_call_is_an_item(roomy_url: str) -> None:
    whole = httpx.post(f"{roomy_url}/v1/responses", json=MUST | OWN, timeout=60).json()
    answer = check(whole, Response)
    (call,) = answer.output
    assert call.type == "function_call" and call.call_id.startswith("call_") and call.status == "completed"
    assert call.name in {"move", "stay"} and isinstance(json.loads(call.arguments), dict)
    assert [tool.name for tool in answer.tools if tool.type == "function"] == ["move", "stay"]
    assert (answer.tool_choice, answer.parallel_tool_calls, answer.status) == ("required", False, "completed")


def test_events_build_up_the_call(roomy_url: str) -> None:
    found = events(roomy_url, MUST)
    for event in found:
        check_event(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    deltas = [event for event in found if event["type"] == "response.function_call_arguments.delta"]
    assert [event["type"].removeprefix("response.") for event in found if event not in deltas] == [
        "created",
        "in_progress",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    done, item, last = found[-3:]
    assert "".join(event["delta"] for event in deltas) == done["arguments"] == item["item"]["arguments"]
    assert {event["item_id"] for event in deltas} == {item["item"]["id"]} == {found[2]["item"]["id"]}
    assert last["response"]["output"] == [item["item"]]


def test_the_sdks_own_stream_knows_the_call(roomy_client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "name": "move"}
    with roomy_client.responses.stream(**(MUST | {"tool_choice": named}), extra_body=OWN) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    (call,) = final.output
    assert call.type == "function_call" and call.name == "move"
    assert json.loads(call.arguments).keys() == {"x", "y"}


def test_text_then_a_call(roomy_url: str) -> None:
    """Left to itself a random model writes text; in a stream it is a message's."""
    found = events(roomy_url, ASKED | {"max_output_tokens": 20})
    for event in found:
        check_event(event)
    assert found[2]["item"]["type"] == "message" and found[-1]["type"] == "response.incomplete"
    assert found[-1]["response"]["output"][0]["status"] == "incomplete"


def test_the_prompt_is_the_chats(roomy_url: str, roomy_client: openai.OpenAI) -> None:
    """Thoughts, text and calls that follow each other are one message, as in the chat of the same turns."""
    call = {"name": "move", "arguments": '{"x": 1, "y": 2}'}
    items: list[Any] = [
        {"role": "user", "content": "Go"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "status": "completed", **call},
        {"type": "function_call", "call_id": "call_2", **call},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "done"}]},
    ]
    calls = [{"id": f"call_{i}", "type": "function", "function": call} for i in (1, 2)]
    messages: list[Any] = [
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": "Yes", "reasoning_content": "Hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "tool", "tool_call_id": "call_2", "content": "done"},
    ]
    told: Any = {"model": "tiny", "temperature": 0, "extra_body": NO_BLANKS}
    answer = roomy_client.responses.create(input=items, tools=TOOLS, max_output_tokens=12, **told)
    chat = roomy_client.chat.completions.create(messages=messages, tools=CHAT_TOOLS, max_tokens=12, **told)
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage and chat.usage and answer.usage.input_tokens == chat.usage.prompt_tokens


def test_some_of_the_tools_are_allowed(roomy_url: str) -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "stay"}]}
    body = MUST | OWN | {"tool_choice": allowed}
    answer = check(httpx.post(f"{roomy_url}/v1/responses", json=body, timeout=60).json(), Response)
    (call,) = answer.output
    assert call.type == "function_call" and call.name == "stay"
    assert answer.tool_choice == ToolChoiceAllowed.model_validate(allowed)


def test_the_next_turn_takes_the_output_as_it_is(roomy_client: openai.OpenAI) -> None:
    first = roomy_client.responses.create(**MUST, extra_body=OWN)
    (call,) = first.output
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    turns: Any = [{"role": "user", "content": "Go"}, *first.output, result]
    second = roomy_client.responses.create(**(ASKED | {"input": turns, "max_output_tokens": 8, "tool_choice": "none"}))
    assert [item.type for item in second.output] == ["message"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [TOOLS[0] | {"parameters": {"not": {}}, "strict": True}]}, "tools[0].parameters"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [NAMED]}}, "tool_choice.tools"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "a", "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
    ],
)
def test_what_is_refused(roomy_url: str, changes: dict[str, Any], param: str) -> None:
    response = httpx.post(f"{roomy_url}/v1/responses", json=ASKED | changes)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text
