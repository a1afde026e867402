"""/v1/messages through Anthropic's own SDK: the same text as the chat that it stands for, in Anthropic's form."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import anthropic
import httpx
import openai
import pytest
import torch
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent

from server.app import AppConfig
from server.engine import Checkpoint, RoutingArtifact, load_checkpoint
from tests.api.answers.test_thinking import LETTERS, TEMPLATE
from tests.api.answers.test_tools import TOOLS as CHAT_TOOLS
from tests.api.live import make_worker, serve, serve_full
from tests.api.prepare.test_structured import NO_BLANKS
from tests.tiny import CPU

USER: dict[str, Any] = {"role": "user", "content": "Go"}
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 24, "messages": [USER]}
SEED: dict[str, Any] = {"seed": 7, "temperature": 1.2}
TOOLS: list[Any] = [
    {
        "name": tool["function"]["name"],
        "description": tool["function"].get("description", "Stays"),
        "input_schema": tool["function"].get("parameters", {"type": "object"}),
    }
    for tool in CHAT_TOOLS
]
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "t1"}
CALLED = {"seed": 5, "temperature": 0.7, **NO_BLANKS}
EVENTS: dict[str, Any] = {
    get_args(event.model_fields["type"].annotation)[0]: event for event in get_args(get_args(RawMessageStreamEvent)[0])
}
EXTENSIONS = {"metrics"}


def checked(data: Any, form: Any) -> Any:
    """The data as Anthropic's type; asserts that no part of it has a field that the type does not know."""
    answer = form.model_validate(data, strict=True)
    assert not set(answer.model_extra or {}) - EXTENSIONS
    for part in [*getattr(answer, "content", ()), getattr(answer, "delta", None), getattr(answer, "usage", None)]:
        assert part is None or not part.model_extra, part
    return answer


@pytest.fixture(scope="module")
def thinking_url(roomy_folder: Path, tiny_artifact: RoutingArtifact) -> Iterator[str]:
    checkpoint = load_checkpoint(str(roomy_folder), torch.float32, CPU)
    checkpoint.tokenizer.chat_template = TEMPLATE.replace("OPENING", "<think>\n")
    worker, _ = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url:
        yield url


@pytest.fixture(scope="module")
def client(roomy_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=roomy_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def post(url: str, **body: Any) -> Any:
    response = httpx.post(f"{url}/v1/messages", json=ASKED | body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def events(url: str, **body: Any) -> list[dict[str, Any]]:
    response = httpx.post(f"{url}/v1/messages", json=ASKED | body | {"stream": True}, timeout=60)
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        checked(found[-1], EVENTS[found[-1]["type"]])
    return found


def test_it_is_the_chats_answer(roomy_url: str) -> None:
    answer = checked(post(roomy_url, system="Be brief", **SEED), Message)
    with openai.OpenAI(base_url=f"{roomy_url}/v1", api_key="none") as other:
        chat = other.chat.completions.create(
            model="tiny",
            messages=[{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Go"}],
            max_tokens=24,
            seed=7,
            temperature=1.2,
        )
    assert [block.type for block in answer.content] == ["text"]
    assert answer.content[0].text == chat.choices[0].message.content
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    usage = answer.usage
    assert chat.usage and usage.output_tokens == 24
    assert usage.input_tokens + usage.cache_read_input_tokens == chat.usage.prompt_tokens


def test_events_build_up_the_whole_answer(roomy_url: str) -> None:
    whole, found = post(roomy_url, **SEED), events(roomy_url, **SEED)
    kinds = [kind for kind, _ in itertools.groupby(event["type"] for event in found)]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert kinds == ["message_start", *block, "message_delta", "message_stop"]
    assert "".join(event["delta"]["text"] for event in found[2:-3]) == whole["content"][0]["text"]
    assert found[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == 24 and found[-1]["metrics"]


def test_the_sdks_own_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ASKED, extra_body=SEED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = client.messages.create(**ASKED, extra_body=SEED)
    assert [block.text for block in whole.content if block.type == "text"] == [text]
    assert [block.text for block in final.content if block.type == "text"] == [text]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_a_stop_sequence_is_named(roomy_url: str) -> None:
    text = post(roomy_url, **SEED)["content"][0]["text"]
    stop = text[3:5]
    answer = post(roomy_url, **SEED, stop_sequences=["absent", stop])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
    assert answer["content"][0]["text"] == text[: text.index(stop)]
    ended = post(roomy_url, logit_bias={"2": 100})
    assert (ended["stop_reason"], ended["content"]) == ("end_turn", [])


def test_calls_of_tools_and_the_turn_after_them(client: anthropic.Anthropic) -> None:
    asked: Any = ASKED | {"tools": TOOLS, "max_tokens": 150}
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    first = client.messages.create(**asked, tool_choice=choice, extra_body=CALLED)
    (call,) = first.content
    assert call.type == "tool_use" and call.name in {"move", "stay"} and isinstance(call.input, dict)
    assert first.stop_reason == "tool_use"
    with client.messages.stream(**asked, tool_choice=choice, extra_body=CALLED) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.type == "tool_use" and (streamed.name, streamed.input) == (call.name, call.input)
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "done"}]}
    turns: Any = [USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(**(asked | {"messages": turns, "max_tokens": 8}), tool_choice={"type": "none"})
    assert [block.type for block in second.content] == ["text"]


def test_the_prompt_is_the_chats(roomy_url: str) -> None:
    blocks = [
        {"type": "redacted_thinking", "data": "x"},
        {"type": "thinking", "thinking": "Hm", "signature": ""},
        {"type": "text", "text": "Yes", "cache_control": {"type": "ephemeral"}},
        {"type": "tool_use", "id": "t1", "name": "move", "input": {"x": 1, "y": 2}},
    ]
    results = [{"type": "tool_result", "tool_use_id": "t1", "content": "done"}, {"type": "text", "text": "Go on"}]
    turns = [USER, {"role": "assistant", "content": blocks}, {"role": "user", "content": results}]
    counted = httpx.post(
        f"{roomy_url}/v1/messages/count_tokens", json={"model": "tiny", "messages": turns, "tools": TOOLS}
    )
    call = {"id": "t1", "type": "function", "function": {"name": "move", "arguments": '{"x": 1, "y": 2}'}}
    messages = [
        USER,
        {"role": "assistant", "content": "Yes", "reasoning_content": "Hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "done"},
        {"role": "user", "content": "Go on"},
    ]
    functions: list[dict[str, Any]] = [{**tool, "parameters": tool["input_schema"]} for tool in map(dict, TOOLS)]
    for function in functions:
        del function["input_schema"]
    tools = [{"type": "function", "function": function} for function in functions]
    same = httpx.post(f"{roomy_url}/tokenize", json={"messages": messages, "tools": tools})
    assert checked(counted.json(), MessageTokensCount).input_tokens == same.json()["count"]


def test_thoughts_are_a_block(thinking_url: str) -> None:
    asked = {"max_tokens": 60, "thinking": {"type": "enabled", "budget_tokens": 10}, "logit_bias": LETTERS, **SEED}
    answer = checked(post(thinking_url, **asked), Message)
    thoughts, text = answer.content
    assert (thoughts.type, len(thoughts.thinking), text.type, len(text.text)) == ("thinking", 10, "text", 39)
    found = events(thinking_url, **asked)
    deltas = [event["delta"] for event in found if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == thoughts.thinking
    assert "".join(delta.get("text", "") for delta in deltas) == text.text
    assert [event["index"] for event in found if event["type"] == "content_block_stop"] == [0, 1]
    off = post(thinking_url, **(asked | {"thinking": {"type": "disabled"}}))
    assert [block["type"] for block in off["content"]] == ["text"]


def test_an_answer_that_was_begun_goes_on(roomy_url: str) -> None:
    begun = {"role": "assistant", "content": "Well, "}
    answer = post(roomy_url, messages=[USER, begun], temperature=0)
    chat = {
        "model": "tiny",
        "messages": [USER, begun],
        "max_tokens": 24,
        "temperature": 0,
        "continue_final_message": True,
    }
    other = httpx.post(f"{roomy_url}/v1/chat/completions", json=chat, timeout=60).json()
    assert answer["content"][0]["text"] == other["choices"][0]["message"]["content"]


def test_json_of_a_schema(roomy_url: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "boolean"}}
    answer = post(roomy_url, output_config={"format": form})
    assert json.loads(answer["content"][0]["text"]) in (True, False)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"sped": 1}, "sped"),
        ({"stop": "a"}, "stop"),
        ({"container": "c"}, "container"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tool_choice": {"type": "tool"}, "tools": TOOLS}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "go"}, "tools": TOOLS}, "tool_choice.name"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "text only"),
        (
            {"messages": [{"role": "user", "content": [RESULT | {"content": [{"type": "image", "source": {}}]}]}]},
            "text only",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "a"}]}]}, "input"),
        ({"messages": [USER | {"content": "x" * 3000}]}, "context length"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "'not'"),
    ],
)
def test_what_is_refused_has_anthropics_form(roomy_url: str, changes: dict[str, Any], field: str) -> None:
    body = {name: value for name, value in (ASKED | changes).items() if value is not None}
    for stream in (False, True):
        response = httpx.post(f"{roomy_url}/v1/messages", json=body | {"stream": stream})
        assert response.status_code == 400, response.text
        told = response.json()
        assert told["type"] == "error" and told["error"]["type"] == "invalid_request_error"
        assert field in told["error"]["message"] and told["request_id"] == response.headers["request-id"]


def test_errors_are_the_sdks_own(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    with serve(worker, AppConfig(api_keys=("first",), max_body_bytes=2000)) as url:
        with (
            anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError),
        ):
            client.messages.create(**ASKED)
        with anthropic.Anthropic(base_url=url, api_key="first", max_retries=0) as client:
            assert client.messages.create(**ASKED).type == "message"
            assert client.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "Go"}]).input_tokens
            with pytest.raises(anthropic.NotFoundError):
                client.messages.create(**(ASKED | {"model": "absent"}))
            with pytest.raises(anthropic.NotFoundError):
                client.messages.count_tokens(model="absent", messages=[{"role": "user", "content": "Go"}])
            with pytest.raises(anthropic.APIStatusError) as caught:
                client.messages.create(**(ASKED | {"system": "x" * 3000}))
            assert caught.value.status_code == 413
        with anthropic.Anthropic(base_url=url, auth_token="first", max_retries=0) as client:
            assert client.messages.create(**ASKED).type == "message"
    with (
        serve_full(checkpoint) as url,
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
        pytest.raises(anthropic.RateLimitError),
    ):
        client.messages.create(**ASKED)


def test_death_in_the_middle_of_a_stream(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    engine.fatal_step = 20
    long = {"ignore_eos": True, "temperature": 0, "speculation": {"method": "plain"}}
    with (
        serve(worker) as url,
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError, match="The engine"),
    ):
        list(client.messages.create(**(ASKED | {"max_tokens": 100}), stream=True, extra_body=long))
