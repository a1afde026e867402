"""/v1/responses through the official SDK: the same text as the chat it stands for, in OpenAI's newer form."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from openai.types.responses import Response, ResponseStreamEvent

from server.engine import Checkpoint, RoutingArtifact
from tests.api.live import make_worker, serve
from tests.api.prepare.test_fields import ASCII, PLAIN, SKIP
from tests.api.strict import check, check_event

QUESTION = "Once upon a time"
SAMPLED: dict[str, Any] = {"model": "tiny", "temperature": 1.2, "extra_body": {"seed": 7}}
LONG = {"temperature": 0, "ignore_eos": True, **PLAIN}
END = {"logit_bias": {"2": 100}}


def respond(client: openai.OpenAI, **options: Any) -> Response:
    answer = client.responses.create(**{"input": QUESTION, "max_output_tokens": 24, **SAMPLED, **options})
    assert isinstance(answer, Response)
    return answer


def chat_text(client: openai.OpenAI, *messages: ChatCompletionMessageParam) -> str:
    answer = client.chat.completions.create(messages=messages, max_tokens=24, **SAMPLED)
    assert isinstance(answer, ChatCompletion)
    return answer.choices[0].message.content or ""


def events(base_url: str, **body: Any) -> list[dict[str, Any]]:
    response = httpx.post(f"{base_url}/v1/responses", json={"model": "tiny", "input": QUESTION, "stream": True} | body)
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_it_is_the_chats_answer(client: openai.OpenAI) -> None:
    answer = respond(client, metadata={"a": "b"}, user="me", store=True)
    assert answer.output_text == chat_text(client, {"role": "user", "content": QUESTION})
    assert (answer.status, answer.incomplete_details and answer.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert answer.usage and (answer.usage.output_tokens, answer.usage.total_tokens) == (
        24,
        24 + answer.usage.input_tokens,
    )
    assert (answer.metadata, answer.user, answer.temperature) == ({"a": "b"}, "me", 1.2)
    assert (answer.model_extra or {})["metrics"]["speculative_decoding"]["num_spec_steps"] > 0


def test_nothing_is_stored(client: openai.OpenAI) -> None:
    answer = respond(client, store=True)
    assert (answer.model_extra or {})["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        respond(client, previous_response_id=answer.id)
    assert caught.value.param == "previous_response_id" and "send the turns so far" in caught.value.message


def test_turns_so_far_are_sent_again(client: openai.OpenAI) -> None:
    first = respond(client)
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        *(item.model_dump() for item in first.output),
        {"type": "message", "role": "user", "content": "Go on"},
    ]
    expected = chat_text(
        client,
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Go on"},
    )
    assert respond(client, input=turns, instructions="Be brief").output_text == expected


def test_an_answer_that_ends_by_itself_is_completed(client: openai.OpenAI, base_url: str) -> None:
    answer = respond(client, extra_body={"seed": 7, **END})
    assert (answer.status, answer.incomplete_details, answer.output_text) == ("completed", None, "")
    assert answer.completed_at and answer.completed_at >= answer.created_at
    assert events(base_url, **END)[-1]["type"] == "response.completed"


@pytest.mark.parametrize("extra", [PLAIN, SKIP], ids=["plain", "skip"])
def test_events_build_up_the_whole_answer(base_url: str, extra: dict[str, Any]) -> None:
    body = {"temperature": 1.2, "seed": 7, "max_output_tokens": 24, "include": ["message.output_text.logprobs"]}
    found = events(base_url, **body, **extra, **ASCII, top_logprobs=2)
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [event["type"].removeprefix("response.") for event in found if event not in deltas] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    for event in found:
        check_event(event)
    body |= {"model": "tiny", "input": QUESTION, "top_logprobs": 2, **extra, **ASCII}
    whole = httpx.post(f"{base_url}/v1/responses", json=body).json()
    text = check(whole, Response).output_text
    content = whole["output"][0]["content"][0]
    last = found[-1]["response"]
    assert (last["usage"], last["output"][0]["content"][0]["text"]) == (whole["usage"], text)
    assert "".join(event["delta"] for event in deltas) == text
    tokens = [entry["token"] for event in deltas for entry in event["logprobs"]]
    assert tokens == [entry["token"] for entry in content["logprobs"]] and len(tokens) == 24
    assert found[-1]["response"]["output"][0] == found[-2]["item"]


def test_the_sdks_own_stream_and_the_async_client(client: openai.OpenAI, base_url: str) -> None:
    with client.responses.stream(input=QUESTION, max_output_tokens=24, **SAMPLED) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")

    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as other:
            whole = await other.responses.create(input=QUESTION, max_output_tokens=24, **SAMPLED)
            parts = await other.responses.create(input=QUESTION, max_output_tokens=24, stream=True, **SAMPLED)
            deltas = [event.delta async for event in parts if event.type == "response.output_text.delta"]
        return whole.output_text, "".join(deltas)

    assert asyncio.run(ask()) == (text, text)
    assert text == respond(client).output_text


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"input": []}, "input", "invalid_value"),
        ({"input": 5}, "input", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "unsupported_parameter"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
            "unsupported_parameter",
        ),
        ({"instructions": "\ud800"}, "instructions", "invalid_value"),
        ({"metadata": {"a": "\ud800"}}, "metadata.a", "invalid_value"),
        ({"user": "\ud800"}, "user", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"min_tokens": 3, "max_output_tokens": 2}, "min_tokens", "invalid_value"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "unsupported_parameter"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "x"}}}},
            "text.format.schema",
            "invalid_value",
        ),
        ({"text": {"verbosity": "loud"}}, "text.verbosity", "invalid_value"),
        ({"include": ["file_search_call.results"]}, "include[0]", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"n": 2}, "n", "unknown_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"input": "x" * 300}, None, "context_length_exceeded"),
    ],
)
def test_refusals(base_url: str, changes: dict[str, Any], param: str | None, code: str) -> None:
    body = json.dumps({"model": "tiny", "input": "hi", "stream": True} | changes)
    response = httpx.post(f"{base_url}/v1/responses", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_fields_without_effect_are_accepted(base_url: str) -> None:
    body = {
        "model": "tiny",
        "input": "hi",
        "max_output_tokens": 2,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"effort": "none", "summary": None},
        "include": ["reasoning.encrypted_content"],
        "stream_options": {"include_obfuscation": False},
        "previous_response_id": None,
        "truncation": "disabled",
        "tools": [],
        "service_tier": "auto",
        "prompt_cache_key": "key",
    }
    response = httpx.post(f"{base_url}/v1/responses", json=body)
    assert response.status_code == 200, response.text
    assert check(response.json(), Response).prompt_cache_key == "key"


def test_death_in_the_middle_of_a_stream(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    engine.fatal_step = 20
    seen: list[ResponseStreamEvent] = []
    with serve(worker) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = client.responses.create(model="tiny", input="hi", stream=True, extra_body=LONG)
        with pytest.raises(openai.APIError, match="The engine failed"):
            seen.extend(stream)
    failed = seen[-1]
    assert failed.type == "response.failed" and failed.response.error
    assert failed.response.error.code == "server_error"
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
