"""What grammars enforce of schemas that say it in other words, and what is left to the model."""

import json
from typing import Annotated, Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from server.api.prepare.schemas import enforceable
from tests.api.prepare.test_structured import SAMPLED
from tests.api.schema.test_refusals import CHAT, check_error


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cat(Closed):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(Closed):
    kind: Literal["dog"] = "dog"
    good: bool


class Pet(Closed):
    animal: Annotated[Cat | Dog, Field(discriminator="kind")]


def format_of(schema: dict[str, Any], strict: bool | None) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": strict}}


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_discriminated_union_is_followed(client: openai.OpenAI, strict: bool | None) -> None:
    kinds = set()
    for seed in range(8):
        answer = client.chat.completions.create(  # type: ignore[call-overload]
            messages=[{"role": "user", "content": "A pet"}],
            response_format=format_of(Pet.model_json_schema(), strict),
            **(SAMPLED | {"seed": seed}),
        )
        kinds.add(Pet.model_validate_json(answer.choices[0].message.content or "").animal.kind)
    assert kinds == {"cat", "dog"}


def test_one_of_branches_with_distinct_constants_is_any_of() -> None:
    cat, dog = ({"properties": {"k": {"const": kind}}, "required": ["k"]} for kind in ("cat", "dog"))
    both: dict[str, Any] = {"$defs": {"a/b": cat}, "oneOf": [{"$ref": "#/$defs/a~1b"}, dog]}
    assert enforceable(both, False)["anyOf"] == both["oneOf"]
    for other in ({"properties": {"k": {"enum": ["cat", "cow"]}}, "required": ["k"]}, dog | {"required": []}, {}):
        assert "oneOf" in enforceable({"oneOf": [cat, other]}, False)
    tagged = {"oneOf": [cat, dog | {"required": []}], "discriminator": {"propertyName": "k"}}
    named = {"allOf": [dog | {"required": []}, {"required": ["k"]}]}
    assert enforceable(tagged, False) == {"anyOf": [cat, named]}


LEFT_TO_THE_MODEL: list[dict[str, Any]] = [
    {"type": "string", "pattern": "^(?=a)b"},
    {"type": "string", "pattern": "\\bword\\b"},
    {"type": "string", "pattern": "(a|b)\\1"},
    {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "propertyNames": {"pattern": "^a"}},
    {"type": "object", "patternProperties": {"^(?!x)": {"type": "integer"}}, "additionalProperties": False},
    {"type": "string", "nullable": True},
    {"type": "string", "x-order": 1},
    {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    {"type": "string", "format": "path"},
    {"type": "string", "format": "binary"},
    {"not": {"type": "string"}},
]


@pytest.mark.parametrize("part", LEFT_TO_THE_MODEL, ids=json.dumps)
def test_what_cannot_be_enforced_is_left_to_the_model(base_url: str, part: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": part}, "required": ["a"]}
    url = f"{base_url}/v1/chat/completions"
    assert httpx.post(url, json=CHAT | {"response_format": format_of(schema, False)}, timeout=30).status_code == 200
    function = {"name": "f", "parameters": schema}
    for strict in (False, None):
        tools = [{"type": "function", "function": function | {"strict": strict}}]
        response = httpx.post(
            url, json=CHAT | {"tools": tools, "tool_choice": "required", "messages": [SHORT]}, timeout=30
        )
        assert response.status_code == 200 or "context length" in response.text, response.text
    strictly = httpx.post(url, json=CHAT | {"response_format": format_of(schema, True)}, timeout=30)
    assert strictly.status_code == 400


SHORT = {"role": "user", "content": "x"}


def test_null_is_allowed_where_nullable_says_so() -> None:
    assert enforceable({"type": "string", "nullable": True}, True)["anyOf"][1] == {"type": "null"}
    assert enforceable({"type": "string", "nullable": False}, True) == {"type": "string"}


def test_what_is_wrong_is_not_excused(base_url: str) -> None:
    for part in ({"type": "string", "pattern": "("}, {"type": "strin"}, {"$ref": "#/$defs/none"}):
        body = CHAT | {"response_format": format_of({"properties": {"a": part}, "required": ["a"]}, False)}
        response = httpx.post(f"{base_url}/v1/chat/completions", json=body)
        check_error(response, 400, "response_format.json_schema.schema", "invalid_value")
