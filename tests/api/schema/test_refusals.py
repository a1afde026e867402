"""Everything that is refused: status, OpenAI's error body, the field at fault."""

import hmac
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from starlette.datastructures import Headers

from server.api.http.auth import KeyGuard
from server.app import AppConfig
from server.engine import Checkpoint, RoutingArtifact
from server.tickets import QueueLimits
from tests.api.live import make_worker, serve, wait_until

USER = {"role": "user", "content": "hi"}
CHAT = {"model": "tiny", "messages": [USER], "max_tokens": 2}
TEXT = {"model": "tiny", "prompt": "hi", "max_tokens": 2}


def check_error(response: httpx.Response, status: int, param: str | None, code: str | None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code)
    assert response.headers["x-request-id"]
    assert isinstance(error, dict)
    return error


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"logprobs": 3}, "logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {"five": 1}}, "logit_bias.five", "invalid_value"),
        ({"logit_bias": {"262": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": [5]}, "logit_bias", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -2.1}, "frequency_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"min_p": 1.1}, "min_p", "invalid_value"),
        ({"min_tokens": -1}, "min_tokens", "invalid_value"),
        ({"min_tokens": 3}, "min_tokens", "invalid_value"),
        ({"stop_token_ids": [262]}, "stop_token_ids", "invalid_value"),
        ({"stop_token_ids": [3, -1]}, "stop_token_ids[1]", "invalid_value"),
        ({"ignore_eos": 1}, "ignore_eos", "invalid_value"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"priority": 1}, "priority", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"skip_special_tokens": False}, "skip_special_tokens", "unsupported_parameter"),
        ({"chat_template": "{{ messages }}"}, "chat_template", "unsupported_parameter"),
        ({"messages": [USER | {"name": 5}]}, "messages[0].name", "invalid_value"),
        ({"messages": [USER | {"audio": {"id": "a"}}]}, "messages[0].audio", "unsupported_parameter"),
        ({"messages": [USER | {"annotations": [{}]}]}, "messages[0].annotations", "unsupported_parameter"),
        ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "unsupported_parameter"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens", "unsupported_parameter"),
        ({"sped": 1}, "sped", "unknown_parameter"),
        ({"speculation": {"tree": 1}}, "speculation.tree", "unknown_parameter"),
        ({"speculation": {"domain": "law"}}, "speculation.domain", "invalid_value"),
        ({"speculation": {"method": "magic"}}, "speculation.method", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [USER, {"role": "user", "content": None}]}, "messages[1].content", "missing_required_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        ({"messages": [USER | {"tool_calls": [{}]}]}, "messages[0].tool_calls[0].id", "missing_required_parameter"),
        ({"messages": [USER | {"content": "\ud800"}]}, "messages[0].content", "invalid_value"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"temperature": float("nan")}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": True}, "max_tokens", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
        ({"messages": [USER | {"content": "x" * 300}]}, None, "context_length_exceeded"),
    ],
)
def test_chat_refuses(base_url: str, changes: dict[str, Any], param: str | None, code: str) -> None:
    # Written by json, for httpx sends neither lone surrogates nor NaN.
    content = json.dumps(CHAT | changes)
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{base_url}/v1/chat/completions", content=content, headers=headers)
    check_error(response, 400, param, code)


@pytest.mark.parametrize("field", ["model", "messages"])
def test_missing_fields_are_named(base_url: str, field: str) -> None:
    body = {name: value for name, value in CHAT.items() if name != field}
    response = httpx.post(f"{base_url}/v1/chat/completions", json=body)
    check_error(response, 400, field, "missing_required_parameter")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 262]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"max_tokens": None, "min_tokens": 17}, "min_tokens"),
    ],
)
def test_completions_refuse(base_url: str, changes: dict[str, Any], param: str) -> None:
    check_error(httpx.post(f"{base_url}/v1/completions", json=TEXT | changes), 400, param, "invalid_value")


@pytest.mark.parametrize(("field", "value", "hint"), [("best_of", 2, "with n"), ("suffix", "end", "middle")])
def test_what_completions_refuse_they_explain(base_url: str, field: str, value: Any, hint: str) -> None:
    response = httpx.post(f"{base_url}/v1/completions", json=TEXT | {field: value})
    assert hint in check_error(response, 400, field, "unsupported_parameter")["message"]


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {}, "prompt", "unsupported_parameter"),
        ("/tokenize", {"prompt": "a", "messages": [USER]}, "prompt", "unsupported_parameter"),
        ("/tokenize", {"messages": [USER], "add_special_tokens": True}, "add_special_tokens", "unsupported_parameter"),
        ("/tokenize", {"prompt": 5}, "prompt", "invalid_value"),
        ("/detokenize", {}, "tokens", "missing_required_parameter"),
        ("/detokenize", {"tokens": [262]}, "tokens", "invalid_value"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", "invalid_value"),
    ],
)
def test_tokenization_refuses(base_url: str, path: str, body: dict[str, Any], param: str, code: str) -> None:
    check_error(httpx.post(base_url + path, json=body), 400, param, code)
    check_error(httpx.post(base_url + path, json=body | {"model": 1}), 400, "model", "invalid_value")


@pytest.mark.parametrize(
    "changes",
    [
        {"logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}},
        {"n": 1, "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "stop": None},
        {"temperature": 0.0, "top_p": 0, "top_k": -1, "min_p": 1, "seed": -5, "max_completion_tokens": 2},
        {"temperature": 1e-30, "stream": None, "stream_options": None, "messages": [USER | {"name": None}]},
        {"stream_options": {"include_usage": False}, "priority": 0, "best_of": 1, "add_generation_prompt": True},
        {"skip_special_tokens": True, "chat_template_kwargs": {}, "length_penalty": 1.0, "bad_words": []},
        {"use_beam_search": False, "spaces_between_special_tokens": True, "echo": False, "documents": []},
    ],
)
def test_fields_without_effect_are_accepted(base_url: str, changes: dict[str, Any]) -> None:
    response = httpx.post(f"{base_url}/v1/chat/completions", json=CHAT | changes)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"model"', "not valid JSON"),
        (b"", "empty"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"tools":' + b"[" * 2000 + b"]" * 2000 + b"}", "nested too deeply"),
        (b"\xff", "not valid UTF-8"),
        (b'{"seed":' + b"9" * 5000 + b"}", "too many digits"),
    ],
)
def test_a_body_that_is_no_json_object(base_url: str, content: bytes, reason: str) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{base_url}/v1/chat/completions", content=content, headers=headers)
    assert reason in check_error(response, 400, None, None)["message"]


def test_errors_repeat_little_of_what_was_sent(base_url: str) -> None:
    for body in (CHAT | {"x" * 100_000: 1}, CHAT | {"model": "x" * 100_000}):
        response = httpx.post(f"{base_url}/v1/chat/completions", json=body)
        assert response.is_client_error and len(response.content) < 2000


def test_unknown_model_route_and_method(base_url: str) -> None:
    response = httpx.post(f"{base_url}/v1/chat/completions", json=CHAT | {"model": "gpt"})
    check_error(response, 404, "model", "model_not_found")
    check_error(httpx.get(f"{base_url}/v1/nothing"), 404, None, "unknown_url")
    response = httpx.get(f"{base_url}/v1/completions")
    check_error(response, 405, None, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_context_length_message_names_both_lengths(base_url: str) -> None:
    prompt = [5] * 256
    for stream in (False, True):
        response = httpx.post(f"{base_url}/v1/completions", json=TEXT | {"prompt": prompt, "stream": stream})
        message = check_error(response, 400, None, "context_length_exceeded")["message"]
        assert message.count("256") == 2


def test_request_id_is_echoed_where_it_is_sane(base_url: str) -> None:
    for given, is_kept in (("abc-1.2:3_4", True), ("a b", False), ("x" * 129, False), ("<script>", False)):
        response = httpx.get(f"{base_url}/health", headers={"x-request-id": given})
        assert (response.headers["x-request-id"] == given) == is_kept


@pytest.fixture
def guarded_url(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> Iterator[str]:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    config = AppConfig(api_keys=("first", "sécond"), cors_origins=("http://app.test",), max_body_bytes=2000)
    with serve(worker, config) as url:
        yield url


def test_keys_limits_and_origins(guarded_url: str) -> None:
    assert httpx.get(f"{guarded_url}/health").status_code == 200
    assert httpx.get(f"{guarded_url}/ready").status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic first"},
        {"authorization": "Bearer"},
    ):
        for path in ("/v1/models", "/metrics", "/v1/nothing", "/openapi.json"):
            check_error(httpx.get(guarded_url + path, headers=headers), 401, None, "invalid_api_key")
    key = {"authorization": "Bearer first"}
    response = httpx.get(f"{guarded_url}/v1/models", headers=key | {"origin": "http://app.test"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "http://app.test"
    second = httpx.get(f"{guarded_url}/v1/models", headers={b"authorization": "Bearer sécond".encode()})
    assert second.status_code == 200

    large = CHAT | {"messages": [USER | {"content": "x" * 2000}]}
    response = httpx.post(f"{guarded_url}/v1/chat/completions", json=large, headers=key)
    check_error(response, 413, None, "request_too_large")
    chunks = (b"x" * 500 for _ in range(10))
    response = httpx.post(f"{guarded_url}/v1/chat/completions", content=chunks, headers=key)
    check_error(response, 413, None, "request_too_large")
    with (
        openai.OpenAI(base_url=f"{guarded_url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_a_key_is_compared_with_all_keys_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    whole_comparison = hmac.compare_digest

    def noted(given: bytes, key: bytes) -> bool:
        compared.append(key)
        return whole_comparison(given, key)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    guard = KeyGuard(lambda *_: None, ("first", "second", "third"))  # type: ignore[arg-type]
    for given, owner in (("first", "key 0"), ("third", "key 2"), ("firs", None)):
        assert guard.owner(Headers({"authorization": f"Bearer {given}"})) == owner
    assert compared == [b"first", b"second", b"third"] * 3


def test_browsers_may_ask_from_known_origins_only(guarded_url: str) -> None:
    url = f"{guarded_url}/v1/chat/completions"
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-lang",
    }
    preflight = httpx.options(url, headers=asked | {"origin": "http://app.test"})
    assert preflight.status_code == 200
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "content-type", "x-stainless-lang"))
    assert "POST" in preflight.headers["access-control-allow-methods"]
    refused = httpx.options(url, headers=asked | {"origin": "http://evil.test"})
    assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers

    for key, status in (("first", 200), ("wrong", 401)):
        headers = {"authorization": f"Bearer {key}", "origin": "http://app.test"}
        response = httpx.post(url, json=CHAT, headers=headers)
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "http://app.test"
        exposed = response.headers["access-control-expose-headers"]
        assert all(name in exposed for name in ("x-request-id", "retry-after", "x-should-retry"))
    stranger = httpx.post(url, json=CHAT, headers={"authorization": "Bearer first", "origin": "http://evil.test"})
    assert "access-control-allow-origin" not in stranger.headers


def test_queue_full_draining_and_deadline(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact, limits=QueueLimits(2, 1000))
    with serve(worker, AppConfig(request_timeout=2)) as url, ThreadPoolExecutor(2) as pool:
        engine.gate.clear()
        body = CHAT | {"max_tokens": 4}
        held = [pool.submit(httpx.post, f"{url}/v1/chat/completions", json=body, timeout=30) for _ in range(2)]
        wait_until(lambda: len(worker.tickets.open) == 2)
        response = httpx.post(f"{url}/v1/chat/completions", json=body)
        check_error(response, 429, None, "queue_full")
        assert response.headers["retry-after"] == "1"
        assert response.headers["retry-after-ms"] == "1000"

        for request in held:
            response = request.result()
            check_error(response, 504, None, "request_timeout")
            assert response.headers["x-should-retry"] == "false"
        assert not worker.tickets.open
        engine.gate.set()
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200

        worker.drain()
        response = httpx.post(f"{url}/v1/chat/completions", json=body)
        check_error(response, 503, None, "unavailable")
        assert httpx.get(f"{url}/ready").json() == {"status": "draining"}
        assert httpx.get(f"{url}/health").status_code == 200
        metrics = httpx.get(f"{url}/metrics").text
        assert 'knnssd_request_rejections_total{reason="queue_full"} 1.0' in metrics
        assert 'knnssd_request_rejections_total{reason="draining"} 1.0' in metrics
        assert 'knnssd_request_success_total{finished_reason="cancelled"} 2.0' in metrics


def test_a_path_cannot_write_into_the_log(base_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "server"):
        httpx.get(f"{base_url}/x%0astatus=200%20path=/forged%1b")
        wait_until(lambda: any("forged" in line for line in caplog.messages))
    (line,) = (line for line in caplog.messages if "forged" in line)
    assert "path=/x%0astatus=200%20path=/forged%1b status=404" in line


def test_no_prompt_text_is_logged(base_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "server"):
        body = CHAT | {"messages": [USER | {"content": "private words"}]}
        httpx.post(f"{base_url}/v1/chat/completions", json=body, headers={"x-request-id": "known"})
        httpx.post(f"{base_url}/v1/chat/completions", json=body | {"tools": [1]})
        wait_until(lambda: sum("path=/v1/chat/completions" in line for line in caplog.messages) == 2)
    assert any("status=200" in line and "request_id=known" in line for line in caplog.messages)
    assert "private" not in caplog.text
