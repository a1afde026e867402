"""langchain-openai, over chats and over responses."""

import openai
import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, SUNNY, WEATHER, WRONG, Boat, get_weather

langchain = pytest.importorskip("langchain_openai")
messages = pytest.importorskip("langchain_core.messages")


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def chat(request, served: Served):
    return langchain.ChatOpenAI(
        base_url=served.v1,
        api_key="none",
        model=served.model,
        temperature=0,
        max_tokens=60,
        use_responses_api=request.param,
    )


def test_plain_and_streamed(chat) -> None:
    whole = chat.invoke([messages.HumanMessage(GREETING, name="Ann")])
    assert whole.text and whole.usage_metadata["output_tokens"]
    assert "".join(chunk.text for chunk in chat.stream([messages.HumanMessage(GREETING, name="Ann")])) == whole.text


def test_a_tool_over_two_turns(chat) -> None:
    bound = chat.bind_tools([get_weather], tool_choice="required", strict=True)
    asked = messages.HumanMessage(WEATHER)
    called = bound.invoke([asked])
    (call,) = called.tool_calls[:1]
    assert call["name"] == "get_weather" and "city" in call["args"]
    results = [messages.ToolMessage(SUNNY, tool_call_id=each["id"]) for each in called.tool_calls]
    assert chat.bind_tools([get_weather], tool_choice="none").invoke([asked, called, *results]).text


def test_an_object(chat) -> None:
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Boat, method=method).invoke(BOAT), Boat)


def test_fields_beyond_openais(chat) -> None:
    assert chat.model_copy(update={"extra_body": PLAIN}).invoke(GREETING).text
    with pytest.raises(openai.BadRequestError, match=REFUSED):
        chat.model_copy(update={"extra_body": WRONG}).invoke(GREETING)


def test_an_error(served: Served) -> None:
    with pytest.raises(openai.NotFoundError):
        langchain.ChatOpenAI(base_url=served.v1, api_key="none", model="absent", max_retries=0).invoke("hi")
