"""LiteLLM, over OpenAI's chats and over Anthropic's messages."""

import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, SUNNY, WEATHER, WRONG, Boat

litellm = pytest.importorskip("litellm")
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(params=["openai", "anthropic"])
def asked(request, served: Served):
    base = served.v1 if request.param == "openai" else served.url
    return {
        "model": f"{request.param}/{served.model}",
        "api_base": base,
        "api_key": "none",
        "temperature": 0,
        "max_tokens": 200,
    }


def test_plain_and_streamed(asked) -> None:
    turns = [{"role": "user", "content": GREETING}]
    text = litellm.completion(messages=turns, **asked).choices[0].message.content
    chunks = litellm.completion(messages=turns, stream=True, **asked)
    assert text and "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


def test_a_tool_over_two_turns(asked) -> None:
    turns = [{"role": "user", "content": WEATHER}]
    message = litellm.completion(messages=turns, tools=[TOOL], tool_choice="required", **asked).choices[0].message
    turns.append(message.model_dump())
    for call in message.tool_calls:
        assert call.function.name == "get_weather"
        turns.append({"role": "tool", "tool_call_id": call.id, "content": SUNNY})
    assert litellm.completion(messages=turns, tools=[TOOL], **asked).choices[0].finish_reason


def test_an_object(asked) -> None:
    if asked["model"].startswith("anthropic"):
        pytest.skip("LiteLLM writes the schema of Anthropic's models as a tool")
    answer = litellm.completion(messages=[{"role": "user", "content": BOAT}], response_format=Boat, **asked)
    Boat.model_validate_json(answer.choices[0].message.content)


def test_fields_beyond_openais(asked) -> None:
    """OpenAI's go as `extra_body`, Anthropic's as they are."""

    def ask(extra):
        told = extra if asked["model"].startswith("anthropic") else {"extra_body": extra}
        return litellm.completion(messages=[{"role": "user", "content": GREETING}], **told, **asked)

    assert ask(PLAIN).choices[0].message.content
    with pytest.raises(litellm.exceptions.BadRequestError, match=REFUSED):
        ask(WRONG)


def test_an_error(asked) -> None:
    turns = [{"role": "user", "content": GREETING}]
    with pytest.raises(litellm.exceptions.NotFoundError):
        litellm.completion(messages=turns, **(asked | {"model": asked["model"].split("/")[0] + "/absent"}))
    with pytest.raises(litellm.exceptions.BadRequestError):
        litellm.completion(messages=[{"role": "user", "content": "hi " * 200_000}], **asked)
