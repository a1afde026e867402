"""Traces over HTTP: the texts of a choice's trace are its text, for every method and ending, whole and streamed."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.engine import Checkpoint, RoutingArtifact, load_checkpoint, methods
from tests.api.answers.test_thinking import LETTERS, TEMPLATE
from tests.api.answers.test_tools import TOOLS
from tests.api.live import make_worker, serve
from tests.api.schema.test_refusals import check_error
from tests.api.strict import check
from tests.tiny import CPU, save_random_model, tiny_config

PROMPT = "the cat sat on the mat, the cat sat on"
TEXT: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 40,
    "temperature": 0,
}
METHODS = [name for name in methods() if name != "low-bit"]
NO_ROUTE: dict[str, Any] = {"point": None, "nearest": []}


@pytest.fixture(scope="module")
def http(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=60) as client:
        yield client


def whole(http: httpx.Client, body: dict[str, Any]) -> Any:
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chunks(http: httpx.Client, body: dict[str, Any]) -> list[Any]:
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    response = http.post(path, json=body | {"stream": True})
    assert response.status_code == 200
    # Not by `splitlines`, which takes U+0085 for an end of line too.
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def traced(body: dict[str, Any], **speculation: Any) -> dict[str, Any]:
    return body | {"speculation": {"trace": True, **speculation}}


def joined(trace: list[Any]) -> str:
    return "".join("".join(step["accepted"]) + step["own"] for step in trace)


def text_of(choice: Any) -> str:
    """The text of a whole choice, or of a chunk's."""
    if "text" in choice:
        return str(choice["text"])
    part = choice.get("message") or choice["delta"]
    return part.get("content") or ""


def assembled(parts: list[Any]) -> dict[int, tuple[str, list[Any]]]:
    """The text and the trace of each choice of a stream."""
    found: dict[int, tuple[str, list[Any]]] = {}
    for choice in itertools.chain.from_iterable(part["choices"] for part in parts):
        text, trace = found.get(choice["index"], ("", []))
        found[choice["index"]] = text + text_of(choice), trace + choice.get("trace", [])
    return found


def check_law(http: httpx.Client, body: dict[str, Any]) -> Any:
    """Whole and streamed: the traces' texts are the texts, the same steps, and their numbers those of the usage."""
    answer = whole(http, body)
    streamed = assembled(chunks(http, body))
    accepted = rejected = 0
    for choice in answer["choices"]:
        assert joined(choice["trace"]) == text_of(choice)
        text, trace = streamed[choice["index"]]
        assert joined(trace) == text == text_of(choice)
        accepted += sum(len(step["accepted"]) for step in choice["trace"])
        rejected += sum(len(step["rejected"]) for step in choice["trace"])
    details = answer["usage"]["completion_tokens_details"]
    assert (accepted, rejected) == (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"])
    return answer


@pytest.mark.parametrize("body", [TEXT, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_tells_where_its_tokens_came_from(http: httpx.Client, body: Any, method: str) -> None:
    answer = check_law(http, traced(body, method=method))
    (choice,) = answer["choices"]
    untraced = whole(http, body | {"speculation": {"method": method}})
    assert text_of(choice) == text_of(untraced["choices"][0])
    assert choice["trace"][0]["origin"] == "plain"
    assert {step["origin"] for step in choice["trace"]} <= {"plain", *methods()[method].drafters}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(data=st.data())
def test_the_law_holds_for_any_ending(http: httpx.Client, data: st.DataObject) -> None:
    """At most so many tokens, stop strings taken from the text itself, stop tokens, and several choices."""
    seed, method = data.draw(st.integers(0, 3)), data.draw(st.sampled_from(METHODS))
    sampling: dict[str, Any] = {"temperature": data.draw(st.sampled_from([0, 1])), "seed": seed}
    body = traced(data.draw(st.sampled_from([TEXT, CHAT])) | sampling, method=method)
    text = text_of(whole(http, body)["choices"][0])
    at = data.draw(st.integers(0, len(text) - 1))
    endings: list[dict[str, Any]] = [
        {"max_tokens": data.draw(st.integers(1, 40))},
        {"stop": text[at : at + data.draw(st.integers(1, 4))]},
        {"stop": [text[at : at + 2], "x"], "min_tokens": data.draw(st.integers(0, 20))},
        {"stop_token_ids": [data.draw(st.integers(6, 261))]},
        {"n": 3, "stop": text[at]},
    ]
    check_law(http, body | data.draw(st.sampled_from(endings)))


def test_a_stream_with_usage_in_each_chunk_is_traced_too(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": True}
    parts = chunks(http, traced(CHAT | {"n": 2}) | {"stream_options": options})
    assert all(joined(trace) == text for text, trace in assembled(parts).values())
    assert parts[-1]["choices"] == [] and "route" not in parts[-1]


def test_several_prompts_have_traces_and_no_route(http: httpx.Client) -> None:
    answer = check_law(http, traced(TEXT | {"prompt": [PROMPT, "hello"], "n": 2}))
    assert len(answer["choices"]) == 4 and "route" not in answer


def test_the_trace_of_an_echo_is_that_of_the_answer(http: httpx.Client) -> None:
    body = traced(TEXT | {"echo": True})
    (choice,) = whole(http, body)["choices"]
    assert "<s>" not in PROMPT and choice["text"] == PROMPT + joined(choice["trace"])
    ((text, trace),) = assembled(chunks(http, body)).values()
    assert text == PROMPT + joined(trace)


def test_a_scored_prompt_has_an_empty_trace(http: httpx.Client) -> None:
    (choice,) = whole(http, traced(TEXT | {"max_tokens": 0, "echo": True, "logprobs": 1}))["choices"]
    assert choice["trace"] == []


@pytest.mark.parametrize("body", [TEXT, CHAT], ids=["text", "chat"])
def test_the_route_comes_with_the_first_chunk(http: httpx.Client, body: Any) -> None:
    first, *rest = chunks(http, traced(body))
    answer = whole(http, traced(body))
    assert first["route"].pop("point") == pytest.approx(answer["route"].pop("point"))
    assert first["route"] == answer["route"]
    assert not any("route" in chunk for chunk in rest)
    route, figures = answer["route"], answer["metrics"]["speculative_decoding"]
    assert (route["domain"], route["similarity"]) == (figures["domain"], figures["similarity"])
    assert figures["draft"].items() <= route["draft"].items()
    assert route["nearest"][0][0] == route["domain"] and len(route["nearest"]) == 2
    found = {domain["name"]: domain for domain in http.get("/map").json()["domains"]}
    assert all(0 <= number < len(found[domain]["anchors"]) for domain, number in route["nearest"])
    assert route["draft"] == found[route["domain"]]["draft"]
    given = whole(http, traced(body, domain="sql"))["route"]
    assert (given["domain"], given["similarity"], given["draft"]) == ("sql", None, found["sql"]["draft"])
    assert given["nearest"] == route["nearest"]


def test_choices_of_one_prompt_have_its_route_once(http: httpx.Client) -> None:
    parts = chunks(http, traced(CHAT | {"n": 3}))
    assert sum("route" in part for part in parts) == 1
    assert "route" in whole(http, traced(CHAT | {"n": 3}))


def test_without_an_artifact_the_prompt_has_no_place(checkpoint: Checkpoint) -> None:
    worker, _ = make_worker(checkpoint, None)
    with serve(worker) as url, httpx.Client(base_url=url, timeout=60) as http:
        route = check_law(http, traced(TEXT))["route"]
    assert (route["domain"], route["similarity"]) == ("none", None)
    assert route.items() >= NO_ROUTE.items()
    assert (route["draft"]["attention"], route["draft"]["mlp"]) == ([], [])


@pytest.mark.parametrize("body", [TEXT, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("speculation", [None, {"trace": False}, {"trace": None, "method": "skip"}])
def test_who_does_not_ask_gets_nothing(http: httpx.Client, body: Any, speculation: Any) -> None:
    answer = whole(http, body | {"speculation": speculation})
    for part in (answer, *chunks(http, body | {"speculation": speculation})):
        assert "route" not in part and not any("trace" in choice for choice in part["choices"])


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory, tiny_artifact: RoutingArtifact) -> Iterator[httpx.Client]:
    """A model that begins with thoughts, with room for descriptions of tools."""
    folder = save_random_model(tmp_path_factory.mktemp("thinking"), tiny_config(max_position_embeddings=2048))
    checkpoint = load_checkpoint(str(folder), torch.float32, CPU)
    checkpoint.tokenizer.chat_template = TEMPLATE.replace("OPENING", "<think>\n")
    worker, _ = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("method", ["plain", "cascade"])
def test_thoughts_and_calls_are_traced_as_the_text_that_they_were(thinking: httpx.Client, method: str) -> None:
    asked = {"tools": TOOLS[1:], "tool_choice": "required", "max_tokens": 160, "thinking_budget": 8}
    body = traced(CHAT | asked | {"logit_bias": LETTERS}, method=method)
    (choice,) = whole(thinking, body)["choices"]
    message, raw = choice["message"], joined(choice["trace"])
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "stay" and message["reasoning_content"]
    thoughts, closing, answer = raw.partition("</think>")
    assert closing and message["reasoning_content"] == thoughts.strip() and '"stay"' in answer
    ((text, trace),) = assembled(chunks(thinking, body)).values()
    assert (text, joined(trace)) == ("", raw)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": "tiny", "input": "hi"}),
        ("/v1/messages", {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}),
    ],
)
def test_other_endpoints_refuse_a_trace(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    response = http.post(path, json=traced(body))
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "speculation.trace" in message and "Only in chat completions and text completions." in message
    assert http.post(path, json=body | {"speculation": {"trace": False}}).status_code == 200


def test_a_trace_is_asked_for_by_a_boolean(http: httpx.Client) -> None:
    check_error(http.post("/v1/completions", json=traced(TEXT, trace="yes")), 400, "speculation.trace", "invalid_value")


def test_openais_types_take_traced_answers(http: httpx.Client, client: openai.OpenAI) -> None:
    check(whole(http, traced(TEXT)), Completion)
    check(whole(http, traced(CHAT)), ChatCompletion)
    for chunk in chunks(http, traced(CHAT | {"n": 2})):
        check(chunk, ChatCompletionChunk)
    answer = client.chat.completions.create(**CHAT, extra_body={"speculation": {"trace": True}})
    trace = (answer.choices[0].model_extra or {})["trace"]
    assert joined(trace) == answer.choices[0].message.content


def test_the_artifacts_similarity_decides_the_route(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    """A prompt far from all domains is told as such, with its nearest anchors all the same."""
    manifest = tiny_artifact.manifest.model_copy(update={"similarity_threshold": 0.999})
    far = RoutingArtifact(manifest, tiny_artifact.anchors, tiny_artifact.centre, tiny_artifact.vocabularies)
    worker, _ = make_worker(checkpoint, far)
    with serve(worker) as url, httpx.Client(base_url=url, timeout=60) as http:
        route = whole(http, traced(TEXT))["route"]
    assert route["domain"] == "other" and len(route["nearest"]) == 2
