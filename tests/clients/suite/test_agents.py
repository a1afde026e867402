"""openai-agents, over its default path, responses, and over chats; handoffs included."""

import asyncio

import openai
import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, WEATHER, WRONG, Boat, get_weather

agents = pytest.importorskip("agents")


@pytest.fixture(params=["responses", "chat"])
def model(request, served: Served):
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=served.v1, api_key="none", max_retries=0)
    form = agents.OpenAIResponsesModel if request.param == "responses" else agents.OpenAIChatCompletionsModel
    return form(model=served.model, openai_client=client)


ONE_CALL = {"tool_choice": "required", "parallel_tool_calls": False}
"""A small model would call on until it is cut short, which the client takes for an error."""


def settings(**changes):
    return agents.ModelSettings(temperature=0, max_tokens=400, **changes)


def test_plain_and_streamed(model) -> None:
    async def ask() -> tuple[str, str]:
        agent = agents.Agent(name="Ann", model=model, model_settings=settings())
        whole = await agents.Runner.run(agent, GREETING)
        streamed = agents.Runner.run_streamed(agent, GREETING)
        kinds = [event.type async for event in streamed.stream_events()]
        assert "raw_response_event" in kinds
        return whole.final_output, streamed.final_output

    whole, streamed = asyncio.run(ask())
    assert whole and whole == streamed


def test_a_tool_over_two_turns(model) -> None:
    async def ask():
        tool = agents.function_tool(get_weather)
        agent = agents.Agent(name="Ann", model=model, tools=[tool], model_settings=settings(**ONE_CALL))
        return await agents.Runner.run(agent, WEATHER, max_turns=4)

    result = asyncio.run(ask())
    assert "tool_call_output_item" in {item.type for item in result.new_items} and result.final_output


def test_a_handoff(model) -> None:
    """To an agent whose answer has a form, so that it ends."""

    async def ask():
        other = agents.Agent(name="Weatherman", model=model, output_type=Boat, model_settings=settings())
        agent = agents.Agent(name="Ann", model=model, handoffs=[other], model_settings=settings(**ONE_CALL))
        return await agents.Runner.run(agent, WEATHER, max_turns=4)

    assert asyncio.run(ask()).last_agent.name == "Weatherman"


def test_an_object(model) -> None:
    agent = agents.Agent(name="Ann", model=model, output_type=Boat, model_settings=settings())
    assert isinstance(agents.Runner.run_sync(agent, BOAT).final_output, Boat)


def test_fields_beyond_openais(model) -> None:
    agent = agents.Agent(name="Ann", model=model, model_settings=settings(extra_body=PLAIN))
    assert agents.Runner.run_sync(agent, GREETING).final_output
    agent = agents.Agent(name="Ann", model=model, model_settings=settings(extra_body=WRONG))
    with pytest.raises(openai.BadRequestError, match=REFUSED):
        agents.Runner.run_sync(agent, GREETING)


def test_an_error(model) -> None:
    model.model = "absent"
    with pytest.raises(openai.NotFoundError):
        agents.Runner.run_sync(agents.Agent(name="Ann", model=model), GREETING)
