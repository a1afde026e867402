"""pydantic-ai, over chats and responses."""

import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, WEATHER, WRONG, Boat, get_weather

pydantic_ai = pytest.importorskip("pydantic_ai")


def model_of(served: Served, kind: str, name: str | None = None):
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    form = OpenAIChatModel if kind == "chat" else OpenAIResponsesModel
    return form(name or served.model, provider=OpenAIProvider(base_url=served.v1, api_key="none"))


KINDS = pytest.mark.parametrize("kind", ["chat", "responses"])
SETTINGS = {"temperature": 0, "max_tokens": 200}


@KINDS
def test_plain_and_streamed(served: Served, kind: str) -> None:
    agent = pydantic_ai.Agent(model_of(served, kind), model_settings=SETTINGS)
    whole = agent.run_sync(GREETING).output
    assert whole and agent.run_stream_sync(GREETING).get_output() == whole


@KINDS
def test_a_tool_over_two_turns(served: Served, kind: str) -> None:
    agent = pydantic_ai.Agent(model_of(served, kind), model_settings=SETTINGS, tools=[get_weather])
    assert agent.run_sync(WEATHER).output


@KINDS
def test_an_object(served: Served, kind: str) -> None:
    """As a call of a tool, which must be made."""
    agent = pydantic_ai.Agent(model_of(served, kind), model_settings=SETTINGS, output_type=Boat)
    assert isinstance(agent.run_sync(BOAT).output, Boat)


@KINDS
def test_a_retry(served: Served, kind: str) -> None:
    """An object that the agent's own check refuses is sent back with the reason, and asked for again."""
    seen = []
    agent = pydantic_ai.Agent(model_of(served, kind), model_settings=SETTINGS, output_type=Boat)

    @agent.output_validator
    def check(boat: Boat) -> Boat:
        seen.append(boat)
        if len(seen) < 2:
            raise pydantic_ai.ModelRetry("once more, please")
        return boat

    assert isinstance(agent.run_sync(BOAT).output, Boat) and len(seen) == 2


@KINDS
def test_fields_beyond_openais(served: Served, kind: str) -> None:
    agent = pydantic_ai.Agent(model_of(served, kind))
    assert agent.run_sync(GREETING, model_settings=SETTINGS | {"extra_body": PLAIN}).output
    with pytest.raises(pydantic_ai.exceptions.ModelHTTPError, match=REFUSED):
        agent.run_sync(GREETING, model_settings=SETTINGS | {"extra_body": WRONG})


@KINDS
def test_an_error(served: Served, kind: str) -> None:
    with pytest.raises(pydantic_ai.exceptions.ModelHTTPError) as caught:
        pydantic_ai.Agent(model_of(served, kind, "absent")).run_sync(GREETING)
    assert caught.value.status_code == 404
