"""LlamaIndex, through its class for servers like OpenAI's."""

import openai
import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, SUNNY, WEATHER, WRONG, Boat, get_weather

like = pytest.importorskip("llama_index.llms.openai_like")
core = pytest.importorskip("llama_index.core.llms")


def model_of(served: Served, **options):
    told = {"model": served.model, "api_base": served.v1, "api_key": "none", "temperature": 0, "max_tokens": 100}
    return like.OpenAILike(is_chat_model=True, is_function_calling_model=True, max_retries=0, **(told | options))


def user(text: str):
    return core.ChatMessage(role="user", content=text)


def test_plain_and_streamed(served: Served) -> None:
    model = model_of(served)
    text = model.chat([user(GREETING)]).message.content
    assert text and [chunk.message.content for chunk in model.stream_chat([user(GREETING)])][-1] == text


def test_a_tool_over_two_turns(served: Served) -> None:
    from llama_index.core.tools import FunctionTool

    model, tool = model_of(served), FunctionTool.from_defaults(get_weather)
    answer = model.chat_with_tools([tool], user_msg=WEATHER, tool_required=True)
    calls = model.get_tool_calls_from_response(answer)
    assert calls[0].tool_name == "get_weather"
    turns = [user(WEATHER), answer.message]
    for call in calls:
        known = {"tool_call_id": call.tool_id, "name": call.tool_name}
        turns.append(core.ChatMessage(role="tool", content=SUNNY, additional_kwargs=known))
    assert model.chat(turns).message is not None


def test_an_object(served: Served) -> None:
    assert isinstance(model_of(served).as_structured_llm(Boat).complete(BOAT).raw, Boat)


def test_fields_beyond_openais_and_errors(served: Served) -> None:
    assert model_of(served, additional_kwargs={"extra_body": PLAIN}).chat([user(GREETING)])
    with pytest.raises(openai.BadRequestError, match=REFUSED):
        model_of(served, additional_kwargs={"extra_body": WRONG}).chat([user(GREETING)])
    with pytest.raises(openai.NotFoundError):
        model_of(served, model="absent").chat([user(GREETING)])
