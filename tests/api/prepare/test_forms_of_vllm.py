"""Fields that vLLM has beside OpenAI's: structured outputs, answers that go on, and text between two others."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.engine import Checkpoint, RoutingArtifact, TextCodec
from tests.api.live import make_worker, serve
from tests.api.prepare.test_structured import SAMPLED
from tests.api.schema.test_refusals import CHAT, TEXT, USER, check_error
from tests.tiny import byte_tokenizer

MARKS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


def text_of(base_url: str, path: str = "chat/completions", /, **body: Any) -> str:
    sent = (CHAT if path == "chat/completions" else TEXT) | SAMPLED | body
    response = httpx.post(f"{base_url}/v1/{path}", json=sent, timeout=30)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


@pytest.mark.parametrize("method", ["plain", "cascade"])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"choice": ["yes", "no", 'say "/é"']}, r'yes|no|say "/é"'),
        ({"regex": r"[ab]{3}/\d\n?"}, r"[ab]{3}/\d\n?"),
        (
            {"grammar": 'start: greeting " " name\ngreeting: "hi" | "bye"\nname: /[A-Z][a-z]{2}/'},
            r"(hi|bye) [A-Z][a-z]{2}",
        ),
        ({"json": {"type": "integer", "minimum": 1, "maximum": 9}}, r"[1-9]"),
    ],
    ids=["choice", "regex", "grammar", "json"],
)
def test_an_answer_of_a_form(base_url: str, path: str, asked: dict[str, Any], expected: str, method: str) -> None:
    body = {"structured_outputs": asked, "speculation": {"method": method}}
    assert re.fullmatch(expected, text_of(base_url, path, **body))


def test_any_object(base_url: str) -> None:
    assert text_of(base_url, structured_outputs={"json_object": True}, max_tokens=4).startswith("{")


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({}, "structured_outputs", "unsupported_parameter"),
        ({"choice": ["a"], "regex": "a"}, "structured_outputs", "unsupported_parameter"),
        ({"choice": []}, "structured_outputs.choice", "invalid_value"),
        ({"choice": [""]}, "structured_outputs.choice[0]", "invalid_value"),
        ({"regex": "("}, "structured_outputs", "invalid_value"),
        ({"regex": "(a{1000}){1000}"}, "structured_outputs.regex", "invalid_value"),
        ({"grammar": "start: nothing"}, "structured_outputs", "invalid_value"),
        ({"grammar": "root ::= x"}, "structured_outputs", "invalid_value"),
        ({"json": {"not": {}}}, "structured_outputs.json", "unsupported_parameter"),
        ({"structural_tag": "x"}, "structured_outputs.structural_tag", "unsupported_parameter"),
    ],
)
def test_forms_that_are_refused(base_url: str, asked: dict[str, Any], param: str, code: str) -> None:
    response = httpx.post(f"{base_url}/v1/chat/completions", json=CHAT | {"structured_outputs": asked})
    check_error(response, 400, param, code)


def test_one_form_at_a_time(base_url: str) -> None:
    both = {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}
    response = httpx.post(f"{base_url}/v1/chat/completions", json=CHAT | both)
    check_error(response, 400, "structured_outputs", "unsupported_parameter")
    response = httpx.post(f"{base_url}/v1/chat/completions", json=CHAT | {"guided_regex": "a"})
    assert "structured_outputs" in check_error(response, 400, "guided_regex", "unsupported_parameter")["message"]


def test_an_answer_goes_on_where_the_message_ends(base_url: str, codec: TextCodec) -> None:
    begun = [USER, {"role": "assistant", "content": "Once upon"}]
    body = {"messages": begun, "continue_final_message": True, "add_generation_prompt": False}
    ids = httpx.post(f"{base_url}/tokenize", json=body).json()["tokens"]
    assert codec.vocabulary.decode(ids).endswith("<|assistant|>Once upon")
    answer = text_of(base_url, **body, max_tokens=8)
    assert answer == text_of(base_url, "completions", prompt=ids, max_tokens=8)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_what_cannot_go_on(base_url: str, changes: dict[str, Any], param: str) -> None:
    for path in ("/v1/chat/completions", "/tokenize"):
        body = {"messages": [USER], **({"model": "tiny"} if path != "/tokenize" else {})} | changes
        check_error(httpx.post(base_url + path, json=body), 400, param, "unsupported_parameter")


@pytest.fixture(scope="module")
def infilling(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> Iterator[str]:
    """A model whose tokenizer has tokens for filling in the middle, in place of three that stand for bytes."""
    tokenizer = byte_tokenizer()
    rare = [tokenizer.convert_ids_to_tokens(i) for i in (259, 260, 261)]
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    for token, mark in zip(rare, MARKS, strict=True):
        raw["model"]["vocab"][mark] = raw["model"]["vocab"].pop(token)
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(raw))
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    worker, _ = make_worker(replace(checkpoint, tokenizer=tokenizer), tiny_artifact)
    with serve(worker) as url:
        yield url


def test_text_between_prompt_and_suffix(infilling: str) -> None:
    both = {"prompt": ["ab", "c"], "suffix": "yz", "max_tokens": 4, "temperature": 0}
    response = httpx.post(f"{infilling}/v1/completions", json=TEXT | both)
    assert response.status_code == 200, response.text
    a, b, c, y, z = (httpx.post(f"{infilling}/tokenize", json={"prompt": x}).json()["tokens"][0] for x in "abcyz")
    first, second, last = 259, 260, 261
    ids = [[first, a, b, second, y, z, last], [first, c, second, y, z, last]]
    same = httpx.post(f"{infilling}/v1/completions", json=TEXT | {"prompt": ids, "max_tokens": 4, "temperature": 0})
    assert response.json()["choices"] == same.json()["choices"]


def test_a_suffix_that_is_refused(base_url: str, infilling: str) -> None:
    response = httpx.post(f"{base_url}/v1/completions", json=TEXT | {"suffix": "end"})
    assert "filling in" in check_error(response, 400, "suffix", "unsupported_parameter")["message"]
    for changes in ({"echo": True}, {"prompt": [5]}):
        response = httpx.post(f"{infilling}/v1/completions", json=TEXT | {"suffix": "end"} | changes)
        check_error(response, 400, "suffix", "unsupported_parameter")
