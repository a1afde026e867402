"""Haystack's generator for OpenAI's chats, with messages that have a name."""

import openai
import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, SUNNY, WEATHER, WRONG, Boat, get_weather

pytest.importorskip("haystack")


def ask(served: Served, *turns, model: str | None = None, callback=None, tools=None, **options):
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.utils import Secret

    generator = OpenAIChatGenerator(
        model=model or served.model,
        api_base_url=served.v1,
        api_key=Secret.from_token("none"),
        generation_kwargs={"temperature": 0, "max_tokens": 200, **options},
        streaming_callback=callback,
        tools=tools,
        tools_strict=True,
        max_retries=0,
    )
    return generator.run(list(turns))["replies"][0]


def user(text: str):
    from haystack.dataclasses import ChatMessage

    return ChatMessage.from_user(text, name="Ann")


def test_plain_and_streamed(served: Served) -> None:
    seen = []
    whole = ask(served, user(GREETING)).text
    ask(served, user(GREETING), callback=lambda chunk: seen.append(chunk.content))
    assert whole and "".join(seen) == whole


def test_a_tool_over_two_turns(served: Served) -> None:
    from haystack.dataclasses import ChatMessage
    from haystack.tools import create_tool_from_function

    tools = [create_tool_from_function(get_weather)]
    called = ask(served, user(WEATHER), tools=tools, tool_choice="required", parallel_tool_calls=False)
    results = [ChatMessage.from_tool(SUNNY, origin=call) for call in called.tool_calls]
    assert results and ask(served, user(WEATHER), called, *results)


def test_an_object(served: Served) -> None:
    Boat.model_validate_json(ask(served, user(BOAT), response_format=Boat).text)


def test_fields_beyond_openais_and_errors(served: Served) -> None:
    assert ask(served, user(GREETING), extra_body=PLAIN).text
    with pytest.raises(openai.BadRequestError, match=REFUSED):
        ask(served, user(GREETING), extra_body=WRONG)
    with pytest.raises(openai.NotFoundError):
        ask(served, user(GREETING), model="absent")
