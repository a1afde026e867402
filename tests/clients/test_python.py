"""The official Python client at its edges: classes of errors, what it tries again, streams left half-way."""

import asyncio
from typing import Any

import openai
import pytest

from server.app import AppConfig
from server.engine import Checkpoint, RoutingArtifact
from tests.api.live import make_worker, serve, serve_full, wait_until

USER: list[Any] = [{"role": "user", "content": "hi"}]


def watched(url: str, seen: list[int], **options: Any) -> openai.OpenAI:
    """A client that notes the status of each answer, those it tries again included."""
    hooks: Any = {"response": [lambda response: seen.append(response.status_code)]}
    http = openai.DefaultHttpxClient(event_hooks=hooks)
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http, **options)


@pytest.mark.parametrize(
    ("changes", "kind", "param", "code"),
    [
        ({"temperature": 3}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"extra_body": {"sped": 1}}, openai.BadRequestError, "sped", "unknown_parameter"),
        ({"model": "absent"}, openai.NotFoundError, "model", "model_not_found"),
        ({"extra_headers": {"Authorization": "Bearer wrong"}}, openai.AuthenticationError, None, "invalid_api_key"),
        ({"messages": USER * 500}, openai.APIStatusError, None, "request_too_large"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_their_class_field_code_and_request_id(
    guarded_url: str,
    changes: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str | None,
    code: str,
    stream: bool,
) -> None:
    with (
        openai.OpenAI(base_url=f"{guarded_url}/v1", api_key="first", max_retries=0) as client,
        pytest.raises(kind) as caught,
    ):
        client.chat.completions.create(**{"model": "tiny", "messages": USER, "stream": stream, **changes})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.request_id and caught.value.request_id.startswith("req-")


def test_a_full_queue_is_tried_again(checkpoint: Checkpoint) -> None:
    seen: list[int] = []
    with serve_full(checkpoint) as url, watched(url, seen, max_retries=5) as client:
        answer = client.completions.create(model="tiny", prompt="hi", max_tokens=1)
    assert answer.object == "text_completion"
    assert seen[0] == 429 and seen[-1] == 200


def test_a_full_queue_is_an_error_without_patience(checkpoint: Checkpoint) -> None:
    with (
        serve_full(checkpoint) as url,
        watched(url, [], max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.completions.create(model="tiny", prompt="hi", max_tokens=1)
    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["retry-after"] == "1"


def test_what_took_too_long_is_not_tried_again(checkpoint: Checkpoint) -> None:
    worker, engine = make_worker(checkpoint, None)
    engine.gate.clear()
    seen: list[int] = []
    with serve(worker, AppConfig(request_timeout=0.2)) as url, watched(url, seen, max_retries=5) as client:
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="tiny", messages=USER)
        engine.gate.set()
    assert seen == [504]


def test_async_streams_side_by_side_one_of_them_left(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact)

    async def read(client: openai.AsyncOpenAI, limit: int | None) -> str:
        text = ""
        stream = await client.chat.completions.create(
            model="tiny", messages=USER, seed=3, max_tokens=100, stream=True, extra_body={"ignore_eos": True}
        )
        async with stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if limit is not None and len(text) >= limit:
                    break
        return text

    async def read_all(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return list(await asyncio.gather(read(client, None), read(client, 5), read(client, None)))

    with serve(worker) as url:
        first, left, third = asyncio.run(read_all(url))
        wait_until(lambda: not worker.tickets.open and not engine.has_work)
    assert first == third and first.startswith(left) and len(left) < len(first)
