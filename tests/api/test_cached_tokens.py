"""What a client sees of prefix reuse: cached tokens in the usage, and only of texts of its own key."""

from typing import Any

import openai
import pytest

from server.app import AppConfig
from server.engine import Checkpoint, RoutingArtifact
from tests.api.live import make_worker, serve

ASKED: Any = {"model": "tiny", "temperature": 0, "max_tokens": 8}


def cached(usage: Any) -> int:
    return int(usage.prompt_tokens_details.cached_tokens)


def test_the_next_turn_of_a_chat_and_further_choices_are_cached(
    checkpoint: Checkpoint, tiny_artifact: RoutingArtifact
) -> None:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    messages: Any = [{"role": "user", "content": "Tell me of a horse that can count"}]
    with serve(worker) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        first = client.chat.completions.create(messages=messages, **ASKED)
        assert first.usage and cached(first.usage) == 0
        again = client.chat.completions.create(messages=messages, **ASKED)
        assert again.usage and cached(again.usage) == first.usage.prompt_tokens - 1
        assert again.choices[0].message.content == first.choices[0].message.content
        new: Any = [{"role": "user", "content": "And now of three cats in a boat"}]
        three = client.chat.completions.create(messages=new, n=3, **ASKED)
        assert three.usage and cached(three.usage) < three.usage.prompt_tokens / 2, "the first choice reads it"
        response = client.responses.create(model="tiny", input="And now of three cats in a boat", max_output_tokens=8)
        assert response.usage and response.usage.input_tokens_details.cached_tokens == response.usage.input_tokens - 1
        stream = client.chat.completions.create(
            messages=new, stream=True, stream_options={"include_usage": True}, **ASKED
        )
        assert cached(list(stream)[-1].usage) == three.usage.prompt_tokens - 1


@pytest.mark.parametrize("is_shared", [False, True])
def test_keys_share_only_where_they_are_told_to(
    checkpoint: Checkpoint, tiny_artifact: RoutingArtifact, is_shared: bool
) -> None:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    messages: Any = [{"role": "user", "content": "a secret that only one of us knows"}]
    with serve(worker, AppConfig(api_keys=("a", "b"), shares_history=is_shared)) as url:
        found = []
        for key in ("a", "b", "a"):
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
                usage = client.chat.completions.create(messages=messages, **ASKED).usage
                found.append(cached(usage) > 0)
    assert found == [False, is_shared, True]
