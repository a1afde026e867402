"""A seed's text is the same alone and beside seven others, with any method of drafting, asked for over HTTP."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from server.engine import EngineConfig
from server.served_model import Source, load
from server.telemetry.metrics import Metrics
from server.tickets import QueueLimits
from server.worker import Worker
from tests.api.live import serve
from tests.default_model import skipping_artifact
from tests.tiny import CPU

METHODS = ["plain", "skip", "lookup", "cascade"]
PROMPTS = [
    "Tell a story about a small boat.",
    "Translate German to English.\n\nGerman: Der Zug kommt heute spät.\n\nEnglish:",
    *(f"Write a story that has the number {number} in it.{' Make it long.' * number}" for number in range(6)),
]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def default_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The default model with masks that skip something, whatever the shipped artifact's do."""
    skipping_artifact().save(tmp_path)
    source = Source(None, "default", tmp_path, request.param, CPU)
    worker = Worker(lambda: load(source, EngineConfig(max_length=256)), QueueLimits(64, 100_000), Metrics())
    with serve(worker) as url:
        yield url


async def ask(client: openai.AsyncOpenAI, model: str, prompt: str, seed: int, method: str) -> str:
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0.9,
        seed=seed,
        max_tokens=24,
        stream=True,
        extra_body={"speculation": {"method": method}},
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def check_seeds(url: str, model: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def together(methods: list[str]) -> list[Any]:
            jobs = zip(PROMPTS, methods, strict=True)
            return list(await asyncio.gather(*(ask(client, model, p, i, m) for i, (p, m) in enumerate(jobs))))

        alone = [await ask(client, model, prompt, i, "plain") for i, prompt in enumerate(PROMPTS)]
        assert len(set(alone)) == 8
        for method in METHODS:
            assert await together([method] * 8) == alone, method
        assert await together(METHODS * 2) == alone
        assert [await ask(client, model, prompt, i, "cascade") for i, prompt in enumerate(PROMPTS)] == alone


def test_a_seed_decides_the_text_of_the_tiny_model(base_url: str) -> None:
    asyncio.run(check_seeds(base_url, "tiny"))


def test_a_seed_decides_the_text_of_the_default_model(default_url: str) -> None:
    asyncio.run(check_seeds(default_url, "default"))
