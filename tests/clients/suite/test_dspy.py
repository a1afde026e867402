"""DSPy, whose JSON adapter asks for an object in every answer."""

import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, SUNNY, WEATHER, WRONG, Boat, get_weather

dspy = pytest.importorskip("dspy")


def model_of(served: Served, name: str | None = None, **options):
    told = {"api_base": served.v1, "api_key": "none", "temperature": 0, "max_tokens": 200, "cache": False}
    return dspy.LM(f"openai/{name or served.model}", num_retries=0, **told, **options)


def test_plain_and_streamed(served: Served) -> None:
    with dspy.context(lm=model_of(served), adapter=dspy.JSONAdapter()):
        program = dspy.Predict("question -> answer: str")
        whole = program(question=GREETING).answer
        listener = dspy.streaming.StreamListener("answer")
        streamed = dspy.streamify(program, stream_listeners=[listener], async_streaming=False)
        parts = list(streamed(question=GREETING))
    assert whole and parts[-1].answer == whole
    assert any(isinstance(part, dspy.streaming.StreamResponse) for part in parts)


def test_a_tool_over_two_turns(served: Served) -> None:
    """As its agents do it; a small model would not follow their instructions."""
    model, asked = model_of(served), [{"role": "user", "content": WEATHER}]
    tools = [dspy.Tool(get_weather).format_as_litellm_function_call()]
    (found,) = model(messages=asked, tools=tools, tool_choice="required", parallel_tool_calls=False)
    (call,) = found["tool_calls"]
    assert call.function.name == "get_weather"
    turns = [*asked, {"role": "assistant", "tool_calls": [call.model_dump()]}]
    turns += [{"role": "tool", "tool_call_id": call.id, "content": SUNNY}]
    assert model(messages=turns)


def test_an_object(served: Served) -> None:
    (found,) = model_of(served)(BOAT, response_format=Boat)
    Boat.model_validate_json(found if isinstance(found, str) else found["text"])


def test_fields_beyond_openais_and_errors(served: Served) -> None:
    assert model_of(served, extra_body=PLAIN)(GREETING)
    with pytest.raises(Exception, match=REFUSED):
        model_of(served, extra_body=WRONG)(GREETING)
    with pytest.raises(Exception, match="does not exist"):
        model_of(served, "absent")(GREETING)
