"""Clients with an interface of their own: DSPy, smolagents, Haystack, `llm`, LlamaIndex, AutoGen."""

import asyncio
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, WEATHER, Boat, get_weather


def needs(package: str) -> pytest.MarkDecorator:
    """A mark, for those are looked at before a server is started for the test."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


@needs("dspy")
def test_dspy(served: Served) -> None:
    import dspy

    language_model = dspy.LM(
        f"openai/{served.model}", api_base=served.v1, api_key="none", temperature=0, max_tokens=200, cache=False
    )
    assert language_model(GREETING)
    (found,) = language_model(BOAT, response_format=Boat)
    Boat.model_validate_json(found if isinstance(found, str) else found["text"])


@needs("smolagents")
def test_smolagents(served: Served) -> None:
    import smolagents

    model = smolagents.OpenAIModel(
        model_id=served.model, api_base=served.v1, api_key="none", max_tokens=60, temperature=0
    )
    asked = [{"role": "user", "content": [{"type": "text", "text": GREETING}]}]
    text = model.generate(asked).content
    assert text and "".join(delta.content or "" for delta in model.generate_stream(asked)) == text
    tool = smolagents.tool(get_weather)
    asked = [{"role": "user", "content": [{"type": "text", "text": WEATHER}]}]
    (call, *_) = model.generate(asked, tools_to_call_from=[tool]).tool_calls
    assert call.function.name == "get_weather"
    told = [*asked, {"role": "assistant", "content": [{"type": "text", "text": str(call.function)}]}]
    told += [{"role": "tool-response", "content": [{"type": "text", "text": "It is sunny."}]}]
    assert model.generate(told).content


@needs("haystack")
def test_haystack(served: Served) -> None:
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage
    from haystack.tools import create_tool_from_function
    from haystack.utils import Secret

    def generator(**options):
        return OpenAIChatGenerator(
            model=served.model,
            api_base_url=served.v1,
            api_key=Secret.from_token("none"),
            generation_kwargs={"temperature": 0, "max_tokens": 200},
            tools_strict=True,
            **options,
        )

    asked = ChatMessage.from_user(GREETING, name="Ann")
    whole = generator().run([asked])["replies"][0].text
    seen = []
    generator(streaming_callback=lambda chunk: seen.append(chunk.content)).run([asked])
    assert whole and "".join(seen) == whole
    tool = create_tool_from_function(get_weather)
    asked = ChatMessage.from_user(WEATHER)
    called = generator(tools=[tool]).run([asked], generation_kwargs={"tool_choice": "required"})["replies"][0]
    results = [ChatMessage.from_tool("It is sunny.", origin=call) for call in called.tool_calls]
    assert results and generator().run([asked, called, *results])["replies"]
    found = generator().run([ChatMessage.from_user(BOAT)], generation_kwargs={"response_format": Boat})
    Boat.model_validate_json(found["replies"][0].text)


@needs("llm")
def test_llm(served: Served, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: own\n  model_name: {served.model}\n  api_base: {served.v1}\n  supports_schema: true\n"
        "  supports_tools: true\n"
    )
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "llm",
            "-m",
            "own",
            "-o",
            "temperature",
            "0",
            "-o",
            "max_tokens",
            "60",
            *arguments,
        ]
        return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    streamed, whole = run(GREETING), run("--no-stream", GREETING)
    assert streamed.stdout.strip() and streamed.stdout == whole.stdout, streamed.stderr
    Boat.model_validate_json(run("--schema", Boat.model_json_schema().__repr__().replace("'", '"'), BOAT).stdout)


@needs("llama_index")
def test_llama_index(served: Served) -> None:
    import llama_index.llms.openai_like as like
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool

    model = like.OpenAILike(
        model=served.model,
        api_base=served.v1,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0,
        max_tokens=100,
    )
    asked = [ChatMessage(role="user", content=GREETING)]
    text = model.chat(asked).message.content
    assert text and [chunk.message.content for chunk in model.stream_chat(asked)][-1] == text
    tool = FunctionTool.from_defaults(get_weather)
    answer = model.chat_with_tools([tool], user_msg=WEATHER, tool_required=True)
    calls = model.get_tool_calls_from_response(answer)
    assert calls[0].tool_name == "get_weather"
    turns = [ChatMessage(role="user", content=WEATHER), answer.message]
    for call in calls:
        known = {"tool_call_id": call.tool_id, "name": call.tool_name}
        turns.append(ChatMessage(role="tool", content="It is sunny.", additional_kwargs=known))
    assert model.chat(turns).message is not None
    assert isinstance(model.as_structured_llm(Boat).complete(BOAT).raw, Boat)


@needs("autogen_ext")
def test_autogen(served: Served) -> None:
    import autogen_ext.models.openai as openai_models
    from autogen_agentchat.agents import AssistantAgent
    from autogen_core.models import UserMessage

    known = {
        "vision": False,
        "function_calling": True,
        "json_output": True,
        "family": "unknown",
        "structured_output": True,
    }
    client = openai_models.OpenAIChatCompletionClient(
        model=served.model, base_url=served.v1, api_key="none", temperature=0, max_tokens=100, model_info=known
    )

    async def ask() -> None:
        asked = [UserMessage(content=GREETING, source="Ann")]
        whole = (await client.create(asked)).content
        streamed = [part async for part in client.create_stream(asked)]
        assert whole and "".join(streamed[:-1]) == whole
        found = await client.create([UserMessage(content=BOAT, source="Ann")], json_output=Boat)
        Boat.model_validate_json(found.content)
        agent = AssistantAgent("Bob", client, tools=[get_weather], reflect_on_tool_use=True)
        assert (await agent.run(task=WEATHER)).messages[-1].content

    asyncio.run(ask())
