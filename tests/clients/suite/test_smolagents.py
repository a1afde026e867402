"""smolagents' model for OpenAI's chats; a result of a tool goes back in a role of its own."""

import openai
import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, SUNNY, WEATHER, WRONG, Boat, get_weather

smolagents = pytest.importorskip("smolagents")


def model_of(served: Served, **options):
    told = {"model_id": served.model, "api_base": served.v1, "api_key": "none", "max_tokens": 60, "temperature": 0}
    return smolagents.OpenAIModel(**(told | options))


def turn(text: str, role: str = "user"):
    return {"role": role, "content": [{"type": "text", "text": text}]}


def test_plain_and_streamed(served: Served) -> None:
    text = model_of(served).generate([turn(GREETING)]).content
    streamed = model_of(served).generate_stream([turn(GREETING)])
    assert text and "".join(delta.content or "" for delta in streamed) == text


def test_a_tool_over_two_turns(served: Served) -> None:
    model, tool = model_of(served), smolagents.tool(get_weather)
    (call, *_) = model.generate([turn(WEATHER)], tools_to_call_from=[tool]).tool_calls
    assert call.function.name == "get_weather"
    told = [turn(WEATHER), turn(str(call.function), "assistant"), turn(SUNNY, "tool-response")]
    assert model.generate(told).content


def test_an_object(served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "boat", "schema": Boat.model_json_schema()}}
    Boat.model_validate_json(model_of(served).generate([turn(BOAT)], response_format=form).content)


def test_fields_beyond_openais_and_errors(served: Served) -> None:
    assert model_of(served, extra_body=PLAIN).generate([turn(GREETING)]).content
    with pytest.raises(openai.BadRequestError, match=REFUSED):
        model_of(served, extra_body=WRONG).generate([turn(GREETING)])
    with pytest.raises(openai.NotFoundError):
        model_of(served, model_id="absent").generate([turn(GREETING)])
