"""Thoughts before an answer: found in any pieces, limited by a budget, and out of reach of grammars."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from server.api.answers.thinking import ThoughtReader
from server.engine import RoutingArtifact, Thinking, load_checkpoint
from tests.api.answers.test_tools import TOOLS
from tests.api.live import make_worker, sent_events, serve
from tests.api.prepare.test_structured import NO_BLANKS
from tests.api.schema.test_refusals import check_error
from tests.api.strict import check, check_event
from tests.tiny import CPU

TEMPLATE = (
    "<s>{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}</s>{% endfor %}"
    "{% if reasoning_effort is defined %}({{ reasoning_effort }}){% endif %}"
    "{% if verbosity is defined %}({{ verbosity }}){% endif %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}OPENING{% endif %}"
)
USER: Any = {"role": "user", "content": "hi"}
LETTERS = {str(i): -100 for i in [*range(6), *range(6, 262)] if not 38 <= i < 92}
"""Keeps a random model at capital letters and digits: it writes no blanks and no markers."""
ASKED: dict[str, Any] = {"model": "tiny", "messages": [USER], "temperature": 1, "seed": 3, "max_tokens": 60}
PLAIN, CASCADE = ({"speculation": {"method": method}} for method in ("plain", "cascade"))


@pytest.fixture(scope="module")
def urls(roomy_folder: Path, tiny_artifact: RoutingArtifact) -> Iterator[dict[str, str]]:
    """Servers of a model whose template opens the thinking, and of one that leaves it to the model."""
    checkpoint = load_checkpoint(str(roomy_folder), torch.float32, CPU)
    workers = {}
    for name, opening in (("open", "<think>\n"), ("possible", "")):
        tokenizer = type(checkpoint.tokenizer).from_pretrained(roomy_folder)
        tokenizer.chat_template = TEMPLATE.replace("OPENING", opening)
        workers[name], _ = make_worker(replace(checkpoint, tokenizer=tokenizer), tiny_artifact)
    with serve(workers["open"]) as first, serve(workers["possible"]) as second:
        yield {"open": first, "possible": second}


def post(url: str, path: str = "chat/completions", /, **body: Any) -> Any:
    response = httpx.post(f"{url}/v1/{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def pieces_of(text: str) -> Iterator[list[str]]:
    """The text in two pieces, cut at each place, and letter by letter."""
    yield from ([text[:i], text[i:]] for i in range(len(text)))
    yield list(text)


@pytest.mark.parametrize(
    ("thinking", "text", "thought", "content"),
    [
        (Thinking.POSSIBLE, "<think>\nHm <b> </th\n</think>\n\nParis </think>", "Hm <b> </th", "Paris </think>"),
        (Thinking.POSSIBLE, "\n<think>Hm</think>Paris", "Hm", "Paris"),
        (Thinking.POSSIBLE, "Paris <think>x</think>", "", "Paris <think>x</think>"),
        (Thinking.POSSIBLE, " <thin", "", " <thin"),
        (Thinking.POSSIBLE, "<think>Hm", "Hm", ""),
        (Thinking.POSSIBLE, "", "", ""),
        (Thinking.OPEN, "Hm\n</think>\n\nParis", "Hm", "Paris"),
        (Thinking.OPEN, "</think>Paris", "", "Paris"),
        (Thinking.OPEN, "Hm </thi", "Hm </thi", ""),
        (Thinking.OPEN, "Hm</think>\n\n", "Hm", ""),
        (Thinking.NONE, "<think>Hm</think>", "", "<think>Hm</think>"),
    ],
)
def test_thoughts_are_found_in_any_pieces(thinking: Thinking, text: str, thought: str, content: str) -> None:
    for pieces in pieces_of(text):
        reader = ThoughtReader(thinking)
        parts = [*(reader.push(piece) for piece in pieces), reader.flush()]
        assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == (thought, content), pieces
        end = text.find(content) if content and thinking is not Thinking.NONE and thought else reader.num_characters
        assert reader.num_characters == end


@pytest.mark.parametrize("method", [PLAIN, CASCADE], ids=["plain", "cascade"])
def test_a_budget_ends_the_thinking(urls: dict[str, str], method: Any) -> None:
    asked = ASKED | {"logit_bias": LETTERS} | method
    answer = check(post(urls["open"], **asked, thinking_budget=10), ChatCompletion)
    message = answer.choices[0].message
    assert len((message.model_extra or {})["reasoning_content"]) == 10
    # 11 more tokens close it: a line break, the marker, and two line breaks.
    assert message.content and len(message.content) == 60 - 10 - 11
    assert answer.usage and answer.usage.completion_tokens_details
    assert answer.usage.completion_tokens_details.reasoning_tokens == 21
    plain = post(urls["open"], **(asked | PLAIN), thinking_budget=10)
    assert plain["choices"] == answer.model_dump(exclude_unset=True)["choices"]
    free = post(urls["open"], **asked)["choices"][0]["message"]
    assert len(free["reasoning_content"]) == 60 and not free["content"]
    assert free["reasoning_content"].startswith((message.model_extra or {})["reasoning_content"])


def test_a_budget_is_for_models_that_think(urls: dict[str, str], base_url: str) -> None:
    for url in (urls["possible"], base_url):
        texts = [post(url, **(ASKED | more))["choices"] for more in (PLAIN, PLAIN | {"thinking_budget": 0})]
        assert texts[0] == texts[1]


def test_thinking_is_turned_off(urls: dict[str, str]) -> None:
    """Where the template knows how to, by either name; where it does not, the thinking is closed at once."""
    off: list[Any] = [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}]
    messages = [post(urls["open"], **ASKED, **more)["choices"][0]["message"] for more in off]
    assert messages[0] == messages[1] and "reasoning_content" not in messages[0] and messages[0]["content"]
    kept: Any = {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}
    (choice,) = post(urls["open"], **ASKED, **kept)["choices"]
    assert "reasoning_content" not in choice["message"]


def test_variables_reach_the_template(urls: dict[str, str]) -> None:
    def prompt(**options: Any) -> str:
        ids = httpx.post(f"{urls['open']}/tokenize", json={"messages": [USER], **options}).json()["tokens"]
        return str(httpx.post(f"{urls['open']}/detokenize", json={"tokens": ids}).json()["prompt"])

    assert "(high)(low)<|assistant|><think>" in prompt(reasoning_effort="high", verbosity="low")
    assert "(minimal)" in prompt(chat_template_kwargs={"reasoning_effort": "minimal"}, reasoning_effort="high")
    assert prompt(reasoning_effort="none").endswith("</think>\n\n")
    thought: Any = {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}
    assert "<think>Hm</think>Yes" in prompt(messages=[USER, thought, USER])
    assert "<think>Hm</think>" in prompt(messages=[USER, {"role": "assistant", "reasoning": "Hm"}, USER])


@pytest.mark.parametrize("method", [PLAIN, CASCADE], ids=["plain", "cascade"])
@pytest.mark.parametrize("model", ["open", "possible"])
def test_json_and_calls_begin_after_the_thinking(urls: dict[str, str], model: str, method: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}}}
    asked = ASKED | NO_BLANKS | method | {"max_tokens": 200, "thinking_budget": 5}
    message = post(urls[model], **asked, response_format=form)["choices"][0]["message"]
    assert json.loads(message["content"]) in (True, False)
    assert ("reasoning_content" in message) == (model == "open")
    (choice,) = post(urls[model], **asked, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)["choices"]
    assert choice["finish_reason"] == "tool_calls", choice
    assert isinstance(json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]), dict)
    assert ("reasoning_content" in choice["message"]) == (model == "open")


def test_a_stream_has_the_same_thoughts(urls: dict[str, str]) -> None:
    asked = ASKED | {"logit_bias": LETTERS, "thinking_budget": 10, "n": 2}
    whole = post(urls["open"], **asked)["choices"]
    response = httpx.post(f"{urls['open']}/v1/chat/completions", json=asked | {"stream": True}, timeout=60)
    chunks = [check(event, ChatCompletionChunk) for event in sent_events(response)]
    for index, name in itertools.product((0, 1), ("reasoning_content", "content")):
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices[0].index == index]
        text = "".join(delta.to_dict().get(name, "") for delta in deltas)  # type: ignore[misc]
        assert text == whole[index]["message"][name]


def test_responses_have_an_item_of_thoughts(urls: dict[str, str]) -> None:
    body = {"model": "tiny", "input": "hi", "max_output_tokens": 60, "temperature": 1, "seed": 3}
    body |= {"thinking_budget": 10, "logit_bias": LETTERS}
    whole = check(post(urls["open"], "responses", **body), Response)
    thoughts, message = whole.output
    assert thoughts.type == "reasoning" and thoughts.content and len(thoughts.content[0].text) == 10
    assert message.type == "message" and len(whole.output_text) == 39
    assert whole.usage and whole.usage.output_tokens_details.reasoning_tokens == 21
    response = httpx.post(f"{urls['open']}/v1/responses", json=body | {"stream": True}, timeout=60)
    events = sent_events(response)
    for event in events:
        check_event(event)
    kinds = [kind for kind, _ in itertools.groupby(event["type"].removeprefix("response.") for event in events)]
    part = [
        "output_item.added",
        "content_part.added",
        "TEXT.delta",
        "TEXT.done",
        "content_part.done",
        "output_item.done",
    ]
    both = [kind.replace("TEXT", text) for text in ("reasoning_text", "output_text") for kind in part]
    assert kinds == ["created", "in_progress", *both, "incomplete"]
    texts = [
        "".join(event["delta"] for event in events if event["type"] == f"response.{text}.delta")
        for text in ("reasoning_text", "output_text")
    ]
    assert texts == [thoughts.content[0].text, whole.output_text]
    off = post(urls["open"], "responses", **body, reasoning={"effort": "none"})
    assert [item["type"] for item in off["output"]] == ["message"] and off["reasoning"]["effort"] == "none"


def test_the_sdk_reads_thoughts(urls: dict[str, str]) -> None:
    with openai.OpenAI(base_url=f"{urls['open']}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            **(ASKED | {"max_tokens": 5}), reasoning_effort="high", stream=True, extra_body={"logit_bias": LETTERS}
        )
        thoughts = [(chunk.choices[0].delta.model_extra or {}).get("reasoning_content") for chunk in stream]
    assert len("".join(filter(None, thoughts))) == 5


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize", "unsupported_parameter"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools", "unsupported_parameter"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "invalid_value"),
        ({"chat_template_kwargs": {"a": "\ud800"}}, "chat_template_kwargs", "invalid_value"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
        ({"verbosity": "loud"}, "verbosity", "invalid_value"),
        ({"thinking_budget": -1}, "thinking_budget", "invalid_value"),
        ({"messages": [USER | {"reasoning_content": "Hm"}]}, "messages[0].reasoning_content", "unsupported_parameter"),
    ],
)
def test_what_is_refused(urls: dict[str, str], changes: dict[str, Any], param: str, code: str) -> None:
    response = httpx.post(
        f"{urls['open']}/v1/chat/completions",
        content=json.dumps(ASKED | changes),
        headers={"content-type": "application/json"},
    )
    check_error(response, 400, param, code)
