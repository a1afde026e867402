"""AutoGen, all of whose messages have a name."""

import asyncio

import openai
import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, WEATHER, WRONG, Boat, get_weather

models = pytest.importorskip("autogen_ext.models.openai")
core = pytest.importorskip("autogen_core.models")
ABLE = dict.fromkeys(("function_calling", "json_output", "structured_output"), True)


def client_of(served: Served, name: str | None = None):
    known = {"vision": False, "family": "unknown", **ABLE}
    told = {"base_url": served.v1, "api_key": "none", "temperature": 0, "max_tokens": 100, "max_retries": 0}
    return models.OpenAIChatCompletionClient(model=name or served.model, model_info=known, **told)


def user(text: str):
    return [core.UserMessage(content=text, source="Ann")]


def test_plain_and_streamed(served: Served) -> None:
    async def ask() -> None:
        client = client_of(served)
        whole = (await client.create(user(GREETING))).content
        streamed = [part async for part in client.create_stream(user(GREETING))]
        assert whole and "".join(streamed[:-1]) == whole

    asyncio.run(ask())


def test_a_tool_over_two_turns(served: Served) -> None:
    from autogen_agentchat.agents import AssistantAgent

    agent = AssistantAgent("Bob", client_of(served), tools=[get_weather], reflect_on_tool_use=True)
    assert asyncio.run(agent.run(task=WEATHER)).messages[-1].content


def test_an_object(served: Served) -> None:
    found = asyncio.run(client_of(served).create(user(BOAT), json_output=Boat))
    Boat.model_validate_json(found.content)


def test_fields_beyond_openais_and_errors(served: Served) -> None:
    def ask(extra, name: str | None = None):
        return asyncio.run(client_of(served, name).create(user(GREETING), extra_create_args={"extra_body": extra}))

    assert ask(PLAIN).content
    with pytest.raises(openai.BadRequestError, match=REFUSED):
        ask(WRONG)
    with pytest.raises(openai.NotFoundError):
        ask(PLAIN, "absent")
