"""What the server tells of itself, and what it says it is not made for."""

from importlib.metadata import version

import httpx
import openai
import pytest

from server.app import AppConfig
from server.engine import Checkpoint
from tests.api.live import make_worker, serve
from tests.api.schema.test_refusals import CHAT, check_error


def test_a_models_context_and_capabilities(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    told = card.model_extra or {}
    assert told["context_length"] == told["max_model_len"] == 256
    assert told["capabilities"] == {
        "input": ["text"],
        "chat": True,
        "tools": "described",
        "structured_outputs": True,
        "thinking": False,
        "infill": False,
        "embeddings": False,
    }


def test_the_version(base_url: str) -> None:
    assert httpx.get(f"{base_url}/version").json() == {"version": version("knn-ssd-server")}


def test_embeddings_are_refused_with_the_reason(base_url: str, client: openai.OpenAI) -> None:
    response = httpx.post(f"{base_url}/v1/embeddings", json={"model": "tiny", "input": "hi"})
    assert "no embeddings" in check_error(response, 400, None, "unsupported_endpoint")["message"]
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        client.embeddings.create(model="tiny", input="hi")


def test_images_are_refused_with_the_reason(base_url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    body = CHAT | {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}]}
    error = check_error(
        httpx.post(f"{base_url}/v1/chat/completions", json=body),
        400,
        "messages[0].content[1].type",
        "unsupported_parameter",
    )
    assert "text only" in error["message"]


def test_the_tokenizer_is_shown_where_a_flag_says_so(checkpoint: Checkpoint, base_url: str) -> None:
    check_error(httpx.get(f"{base_url}/tokenizer_info"), 404, None, "unknown_url")
    worker, _ = make_worker(checkpoint, None)
    with serve(worker, AppConfig(shows_tokenizer=True)) as url:
        info = httpx.get(f"{url}/tokenizer_info").json()
    assert info["chat_template"].startswith("<s>") and info["special_tokens"]["eos_token"] == "</s>"
    assert info["vocab_size"] == 262
