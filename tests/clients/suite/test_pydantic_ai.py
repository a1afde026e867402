"""pydantic-ai, over chats and responses."""

import asyncio
from typing import Any

import openai
import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, WEATHER, WRONG, Boat, get_weather

pydantic_ai = pytest.importorskip("pydantic_ai")
SETTINGS = {"temperature": 0, "max_tokens": 200}
KINDS = pytest.mark.parametrize("kind", ["chat", "responses"])


def run(served: Served, kind: str, question: str, *, name: str | None = None, extra: Any = None, check=None, **options):
    """What an agent answers, whole and, but for objects and tools, streamed; its connections are closed at the end."""
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    form = OpenAIChatModel if kind == "chat" else OpenAIResponsesModel
    settings = SETTINGS | ({"extra_body": extra} if extra else {})

    async def ask():
        async with openai.AsyncOpenAI(base_url=served.v1, api_key="none", max_retries=0) as client:
            model = form(name or served.model, provider=OpenAIProvider(openai_client=client))
            agent = pydantic_ai.Agent(model, model_settings=settings, **options)
            if check:
                agent.output_validator(check)
            whole = (await agent.run(question)).output
            if not options:
                async with agent.run_stream(question) as streamed:
                    assert await streamed.get_output() == whole
            return whole

    return asyncio.run(ask())


@KINDS
def test_plain_and_streamed(served: Served, kind: str) -> None:
    assert run(served, kind, GREETING)


@KINDS
def test_a_tool_over_two_turns(served: Served, kind: str) -> None:
    assert run(served, kind, WEATHER, tools=[get_weather])


@KINDS
def test_an_object(served: Served, kind: str) -> None:
    """As a call of a tool, which must be made."""
    assert isinstance(run(served, kind, BOAT, output_type=Boat), Boat)


@KINDS
def test_a_retry(served: Served, kind: str) -> None:
    """An object that the agent's own check refuses is sent back with the reason, and asked for again."""
    seen = []

    def check(boat: Boat) -> Boat:
        seen.append(boat)
        if len(seen) < 2:
            raise pydantic_ai.ModelRetry("once more, please")
        return boat

    assert isinstance(run(served, kind, BOAT, output_type=Boat, check=check), Boat) and len(seen) == 2


@KINDS
def test_fields_beyond_openais(served: Served, kind: str) -> None:
    assert run(served, kind, GREETING, extra=PLAIN)
    with pytest.raises(pydantic_ai.exceptions.ModelHTTPError, match=REFUSED):
        run(served, kind, GREETING, extra=WRONG)


@KINDS
def test_an_error(served: Served, kind: str) -> None:
    with pytest.raises(pydantic_ai.exceptions.ModelHTTPError) as caught:
        run(served, kind, GREETING, name="absent")
    assert caught.value.status_code == 404
