"""`response_format` through the official SDK: answers that always parse, and schemas that are refused by name."""

import json
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import openai
import pytest
import torch
from annotated_types import Ge, Le, MaxLen
from pydantic import BaseModel

from server.api.schema.json_schema import num_repeats, num_units
from server.engine import load_checkpoint
from tests.api.live import make_worker, serve
from tests.api.schema.test_refusals import CHAT, TEXT, USER, check_error
from tests.tiny import CPU, save_random_model, tiny_config

NO_BLANKS = {"logit_bias": {str(i): -100 for i in (203, 204, 207, 226)}}
"""Keeps a random model from filling its context with blanks between the parts of its JSON."""
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 150, **NO_BLANKS}
SAMPLED: dict[str, Any] = {"model": "tiny", "temperature": 0.7, "seed": 5, "max_tokens": 150, **NO_BLANKS}


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Boat(BaseModel):
    name: Annotated[str, MaxLen(6)]
    length: Annotated[int, Ge(1), Le(99)]
    colour: Colour
    kind: Literal["sail", "steam"] | None


def ask(client: openai.OpenAI, **options: Any) -> str:
    answer = client.chat.completions.create(messages=[{"role": "user", "content": "A boat"}], **options)
    return str(answer.choices[0].message.content)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("method", ["plain", "skip", "lookup", "cascade"])
def test_the_sdk_parses_a_pydantic_model(client: openai.OpenAI, options: dict[str, Any], method: str) -> None:
    answers = [
        client.chat.completions.parse(
            messages=[{"role": "user", "content": "A boat"}],
            response_format=Boat,
            extra_body={"speculation": {"method": chosen, "domain": "sql"}},
            **options,
        )
        for chosen in ("plain", method)
    ]
    plain, drafted = (answer.choices[0] for answer in answers)
    assert isinstance(drafted.message.parsed, Boat)
    assert drafted.message.content == plain.message.content
    assert drafted.finish_reason == "stop"


def test_a_stream_and_the_whole_have_the_same_json(client: openai.OpenAI) -> None:
    schema = {"name": "boat", "schema": {**Boat.model_json_schema(), "additionalProperties": False}, "strict": True}
    options: dict[str, Any] = {**SAMPLED, "response_format": {"type": "json_schema", "json_schema": schema}}
    stream = client.chat.completions.create(
        messages=[{"role": "user", "content": "A boat"}], stream=True, logprobs=True, **options
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ask(client, **options)
    completion = client.completions.create(
        prompt="A boat", extra_body={"response_format": options.pop("response_format")}, **options
    )
    Boat.model_validate_json(completion.choices[0].text)


def test_responses_parse_a_pydantic_model_too(client: openai.OpenAI) -> None:
    bias = {"seed": SAMPLED.get("seed"), "logit_bias": SAMPLED.get("logit_bias")}
    answer = client.responses.parse(
        model="tiny", input="A boat", text_format=Boat, temperature=SAMPLED["temperature"], extra_body=bias
    )
    assert isinstance(answer.output_parsed, Boat)
    assert answer.text and answer.text.format and answer.text.format.type == "json_schema"
    plain = client.responses.create(
        model="tiny", input="A boat", text={"format": {"type": "json_object"}}, max_output_tokens=4
    )
    assert plain.output_text.startswith("{")


def test_any_json_object(client: openai.OpenAI) -> None:
    for seed in range(4):
        options = SAMPLED | {"seed": seed, "logit_bias": {**NO_BLANKS["logit_bias"], "98": 8, "7": 4}}
        text = ask(client, response_format={"type": "json_object"}, **options)
        assert text.startswith("{")
        assert not text.endswith("}") or isinstance(json.loads(text), dict)


def test_choices_of_one_request_all_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        messages=[{"role": "user", "content": "Boats"}], response_format=Boat, n=3, **SAMPLED
    )
    assert all(isinstance(choice.message.parsed, Boat) for choice in answer.choices)
    assert len({choice.message.content for choice in answer.choices}) > 1


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "place", "code", "hint"),
    [
        ({"not": {}}, "", "unsupported_parameter", "'not'"),
        ({"x-guidance": {"lenient": True}}, "", "unsupported_parameter", "'x-guidance'"),
        ({"properties": {"a": {"if": {}, "then": {}}}}, ".properties.a", "unsupported_parameter", "'if', 'then'"),
        ({"anyOf": [{}, {"uniqueItems": True}]}, ".anyOf[1]", "unsupported_parameter", "'uniqueItems'"),
        ({"properties": {"a": 5}}, ".properties.a", "invalid_value", "object or a boolean"),
        ({"type": "strin"}, "", "invalid_value", "strin"),
        ({"properties": []}, "", "invalid_value", "properties"),
        ({"$ref": "#/$defs/none"}, "", "invalid_value", "none"),
        ({"$ref": "http://127.0.0.1/schema"}, "", "invalid_value", "retriev"),
        ({"$ref": "#"}, "", "invalid_value", "no JSON fits it"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 5}]}, "", "invalid_value", "anyOf may be"),
        ({"enum": []}, "", "invalid_value", "nsatisfiable"),
        ({"type": "string", "format": "regex"}, "", "invalid_value", "format"),
        ({"type": "string", "pattern": "(?=a)b"}, "", "invalid_value", "look-around"),
        ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "", "invalid_value", "repetitions"),
        ({"type": "string", "pattern": "a" * 2000}, "", "invalid_value", "1,024 characters"),
        ({"patternProperties": {"((a{99}){99}){99}": {}}}, "", "invalid_value", "repetitions"),
        ({"type": "integer", "multipleOf": 999_983}, ".multipleOf", "invalid_value", "10,000"),
        ({"type": "number", "multipleOf": True}, ".multipleOf", "invalid_value", "above 0"),
        ({"anyOf": [{"pattern": "a{9000}"}, {"pattern": "b{9000}"}]}, ".anyOf[1]", "invalid_value", "repetitions"),
        ({"type": "number", "multipleOf": -1}, ".multipleOf", "invalid_value", "above 0"),
        ({"enum": ["x" * 140_000]}, "", "invalid_value", "131,072 characters"),
        (
            {"type": "object", "properties": {f"p{i}": {} for i in range(502)}, "required": ["p0"]},
            ".properties",
            "invalid_value",
            "More than 500 properties",
        ),
        (nested(70), "", "invalid_value", "64 levels"),
    ],
)
def test_schemas_are_refused_with_their_place(
    base_url: str, schema: dict[str, Any], place: str, code: str, hint: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for path, body in (("chat/completions", CHAT), ("completions", TEXT)):
        response = httpx.post(f"{base_url}/v1/{path}", json=body | {"response_format": form})
        error = check_error(response, 400, f"response_format.json_schema.schema{place}", code)
        assert hint in error["message"]


@pytest.mark.parametrize(
    ("form", "param", "code"),
    [
        ("json", "response_format", "invalid_value"),
        ({}, "response_format.type", "missing_required_parameter"),
        ({"type": "xml"}, "response_format.type", "invalid_value"),
        ({"type": "json_schema"}, "response_format.json_schema", "missing_required_parameter"),
        ({"type": "text", "json_schema": {"name": "a", "schema": {}}}, "response_format.json_schema", None),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name", None),
        (
            {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
            "response_format.json_schema.name",
            None,
        ),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema.schema", None),
    ],
)
def test_formats_that_are_none(base_url: str, form: Any, param: str, code: str | None) -> None:
    response = httpx.post(f"{base_url}/v1/chat/completions", json=CHAT | {"response_format": form})
    check_error(response, 400, param, code or response.json()["error"]["code"])


def test_an_answer_that_could_not_end_is_refused(base_url: str) -> None:
    body = CHAT | {"response_format": {"type": "json_object"}, "ignore_eos": True}
    check_error(httpx.post(f"{base_url}/v1/chat/completions", json=body), 400, "ignore_eos", "unsupported_parameter")
    response = httpx.post(f"{base_url}/v1/chat/completions", json=body | {"stop_token_ids": [2]})
    assert response.status_code == 200
    body = {"model": "tiny", "input": "hi", "text": {"format": {"type": "json_object"}}, "ignore_eos": True}
    check_error(httpx.post(f"{base_url}/v1/responses", json=body), 400, "ignore_eos", "unsupported_parameter")


def test_without_any_end_token_json_is_refused(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, tiny_config())
    checkpoint = replace(load_checkpoint(str(folder), torch.float32, CPU), eos_ids=frozenset())
    worker, _ = make_worker(checkpoint, None)
    body = CHAT | {"response_format": {"type": "json_object"}}
    with serve(worker) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json=body)
        check_error(response, 400, "stop_token_ids", "missing_required_parameter")
        response = httpx.post(f"{url}/v1/chat/completions", json=body | {"stop_token_ids": [2]})
        assert response.json()["choices"][0]["message"]["content"].startswith("{")


def test_text_is_not_constrained(client: openai.OpenAI) -> None:
    assert ask(client, response_format={"type": "text"}, **GREEDY) == ask(client, **GREEDY)


def test_a_body_with_the_deepest_braces_that_json_takes(base_url: str) -> None:
    schema: Any = {}
    for _ in range(180):
        schema = {"items": schema}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {"model": "tiny", "messages": [USER], "response_format": form}
    check_error(
        httpx.post(f"{base_url}/v1/chat/completions", json=body),
        400,
        "response_format.json_schema.schema",
        "invalid_value",
    )


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("abc", 1),
        ("a{3}", 3),
        ("(a{2}b){3}", 6),
        ("a{2}b{5}", 5),
        ("[{9}(]{4}", 4),
        (r"\{9}", 1),
        ("(a|b{7}){0,5}", 35),
        ("((", 1),
    ],
)
def test_repetitions_are_counted(pattern: str, count: int) -> None:
    assert num_repeats(pattern) == count


@pytest.mark.parametrize(("value", "units"), [(5, 5), (0.25, 25), (0.01, 1), (1e-7, 1), (1e300, 10_001), (2.0, 20)])
def test_divisors_are_counted_without_their_point(value: float, units: int) -> None:
    assert num_units(value) == units
