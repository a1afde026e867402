"""Tools through the official SDK: required calls always parse, streams build the same calls, histories come back."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from server.engine import TextCodec
from tests.api.prepare.test_structured import GREEDY, SAMPLED
from tests.api.schema.test_refusals import CHAT, check_error

POINT = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/digit"}, "y": {"$ref": "#/$defs/digit"}},
    "required": ["x", "y"],
    "additionalProperties": False,
    "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "move", "description": "Goes there", "parameters": POINT, "strict": True},
    },
    {"type": "function", "function": {"name": "stay"}},
]
LONG = {"type": "object", "description": "x" * 70_000}
MESSAGES: list[Any] = [{"role": "user", "content": "Go"}]


def ask(client: openai.OpenAI, **options: Any) -> ChatCompletion:
    answer = client.chat.completions.create(messages=options.pop("messages", MESSAGES), tools=TOOLS, **options)
    assert isinstance(answer, ChatCompletion)
    return answer


def allowed(*names: str, mode: str = "auto") -> Any:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def check_calls(answer: ChatCompletion, names: set[str]) -> list[tuple[str, Any]]:
    found = []
    for call in answer.choices[0].message.tool_calls or []:
        assert call.type == "function" and call.id.startswith("call_") and call.function.name in names
        arguments = json.loads(call.function.arguments)
        assert arguments.keys() == ({"x", "y"} if call.function.name == "move" else set())
        found.append((call.function.name, arguments))
    return found


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("choice", ["required", "move", "stay"])
def test_calls_that_must_be_made_are_made(roomy_client: openai.OpenAI, options: dict[str, Any], choice: str) -> None:
    wanted: Any = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    answers = [
        ask(
            roomy_client,
            tool_choice=wanted,
            parallel_tool_calls=False,
            extra_body={"speculation": {"method": method}},
            **options,
        )
        for method in ("plain", "skip", "lookup", "cascade")
    ]
    found = [check_calls(answer, {"move", "stay"} if choice == "required" else {choice}) for answer in answers]
    assert found[0] == found[1] == found[2] == found[3] and len(found[0]) == 1
    for answer in answers:
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None


@pytest.mark.parametrize("mode", ["required", "auto"])
def test_some_of_the_tools_are_allowed(roomy_client: openai.OpenAI, mode: str) -> None:
    """The prompt shows all of them all the same, so that it stays the one that was read before."""
    answer = ask(roomy_client, tool_choice=allowed("stay", "stay", mode=mode), parallel_tool_calls=False, **GREEDY)
    assert len(check_calls(answer, {"stay"})) == (mode == "required")
    free = ask(roomy_client, tool_choice="auto", **GREEDY)
    assert answer.usage and free.usage and answer.usage.prompt_tokens == free.usage.prompt_tokens


def test_a_call_that_a_stop_string_cuts_short_is_not_to_be_made(roomy_client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "move"}}
    choice = ask(roomy_client, tool_choice=named, stop='"x"', **GREEDY).choices[0]
    assert choice.finish_reason == "stop"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.function.arguments.strip() == "{"


def test_several_calls_of_one_answer(roomy_client: openai.OpenAI) -> None:
    again = SAMPLED | {"logit_bias": {**SAMPLED["logit_bias"], "2": -100, "204": -60}}
    answer = ask(roomy_client, tool_choice="required", **(again | {"max_tokens": 180}))
    found = check_calls_before_the_cut(answer)
    assert len(found) > 1
    assert len({call.id for call in answer.choices[0].message.tool_calls or []}) == len(found)


def check_calls_before_the_cut(answer: ChatCompletion) -> list[Any]:
    calls = answer.choices[0].message.tool_calls or []
    if answer.choices[0].finish_reason == "length":
        for call in calls[:-1]:
            assert call.type == "function" and isinstance(json.loads(call.function.arguments), dict)
    return list(calls)


def test_a_stream_builds_the_calls_of_the_whole_answer(roomy_client: openai.OpenAI) -> None:
    options = SAMPLED | {"tool_choice": "required", "parallel_tool_calls": False}
    whole = ask(roomy_client, **options).choices[0]
    chunks = list(roomy_client.chat.completions.create(messages=MESSAGES, tools=TOOLS, stream=True, **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert deltas[0].id and deltas[0].type == "function" and deltas[0].function and deltas[0].function.name
    assert all(delta.id is None and delta.function and delta.function.name is None for delta in deltas[1:])
    arguments = "".join((delta.function and delta.function.arguments) or "" for delta in deltas)
    (call,) = whole.message.tool_calls or []
    assert call.type == "function"
    assert (deltas[0].function.name, arguments) == (call.function.name, call.function.arguments)
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    with roomy_client.chat.completions.stream(messages=MESSAGES, tools=TOOLS, **options) as stream:
        final = stream.get_final_completion().choices[0].message.tool_calls or []
    assert final[0].function.arguments == arguments


def test_left_to_itself_the_model_may_write_text(roomy_client: openai.OpenAI) -> None:
    answer = ask(roomy_client, tool_choice="auto", **GREEDY)
    assert answer.choices[0].message.content and answer.choices[0].message.tool_calls is None
    streamed = roomy_client.chat.completions.create(messages=MESSAGES, tools=TOOLS, stream=True, **GREEDY)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == answer.choices[0].message.content
    untold = roomy_client.chat.completions.create(messages=MESSAGES, **GREEDY).choices[0].message.content
    none = ask(roomy_client, tool_choice="none", **GREEDY).choices[0].message
    assert (none.content, none.tool_calls) == (untold, None)


def test_json_or_a_call(roomy_client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}}}
    for seed in range(4):
        message = ask(roomy_client, response_format=form, **(SAMPLED | {"seed": seed})).choices[0].message
        assert message.tool_calls or json.loads(message.content or "") in (True, False)


def test_a_conversation_with_calls_and_results_goes_on(
    roomy_client: openai.OpenAI, codec: TextCodec, roomy_url: str
) -> None:
    first = ask(roomy_client, tool_choice="required", parallel_tool_calls=False, **GREEDY).choices[0].message
    assert first.tool_calls
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "done"}
    history: list[Any] = [*MESSAGES, first, result]
    short = GREEDY | {"max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    assert roomy_client.chat.completions.create(**(short | {"messages": history})).choices[0].finish_reason
    messages = [*MESSAGES, first.model_dump(exclude_none=True), result]
    ids = httpx.post(f"{roomy_url}/tokenize", json={"messages": messages}).json()["tokens"]
    text = codec.vocabulary.decode(ids)
    assert '<tool_call>\n{"name": "' in text and text.endswith(
        "<|user|><tool_response>\ndone\n</tool_response></s><|assistant|>"
    )


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "go"}}},
            "tool_choice.function.name",
            "invalid_value",
        ),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": allowed()}, "tool_choice.allowed_tools.tools", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": allowed("go")}, "tool_choice.allowed_tools.tools", "invalid_value"),
        ({"tool_choice": allowed("stay")}, "tool_choice.allowed_tools.tools", "invalid_value"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", "invalid_value"),
        ({"tools": TOOLS * 65}, "tools", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {"name": n, "parameters": LONG}} for n in "ab"]},
            "tools",
            "invalid_value",
        ),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters.type",
            "invalid_value",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}, "strict": True}}]},
            "tools[0].function.parameters",
            "unsupported_parameter",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "a", "parameters": {"properties": {"b": {"pattern": "("}}}},
                    }
                ]
            },
            "tools",
            "invalid_value",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
            "messages[0].tool_call_id",
            "unsupported_parameter",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "x",
                        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}],
                    }
                ]
            },
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content", "missing_required_parameter"),
    ],
)
def test_what_is_refused(roomy_url: str, changes: dict[str, Any], param: str, code: str) -> None:
    check_error(httpx.post(f"{roomy_url}/v1/chat/completions", json=CHAT | changes), 400, param, code)


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("tools", {"description": "\ud800"}, "tools[0].function.parameters"),
        ("tools", {"properties": {"\udfff": {}}}, "tools[0].function.parameters"),
        ("messages", '{"a": "\\ud800"}', "messages[0].tool_calls[0].function.arguments"),
        ("messages", '{"a":' * 70 + "1" + "}" * 70, "messages[0].tool_calls[0].function.arguments"),
    ],
)
def test_what_no_template_could_show_is_refused(roomy_url: str, name: str, value: Any, param: str) -> None:
    function = {"name": "a", "arguments" if name == "messages" else "parameters": value}
    tool = {"type": "function", "function": function}
    messages = [{"role": "assistant", "tool_calls": [tool | {"id": "1"}]}]
    body = CHAT | {name: messages if name == "messages" else [tool]}
    # Written by json, for httpx sends no lone surrogates.
    response = httpx.post(
        f"{roomy_url}/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    check_error(response, 400, param, "invalid_value")


def test_tools_that_are_not_strict_may_have_what_cannot_be_enforced(roomy_url: str) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "x-guidance": {}}
    tools = [{"type": "function", "function": {"name": "a", "parameters": parameters}}]
    response = httpx.post(f"{roomy_url}/v1/chat/completions", json=CHAT | {"tools": tools, "tool_choice": "required"})
    assert response.status_code == 200, response.text
