"""The embedded model as it ships: it loads, routes, and drafts without changing a token."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.engine import (
    Decoder,
    Engine,
    EngineConfig,
    GenerationRequest,
    Route,
    RoutingArtifact,
    SamplingParams,
    StopConditions,
    TextCodec,
    load_checkpoint,
)
from tests.tiny import CPU

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "server" / "demo"
MEGABYTES = 40
PROMPTS = [json.loads(line) for line in (ROOT / "docker" / "loadgen" / "prompts.jsonl").read_text().splitlines()]
FURTHER = ["Translate German to English.\n\nGerman: Ich lese gern Bücher.\n\nEnglish:", "Hello, who are you?"]
TEXTS = [prompt["prompt"] for prompt in PROMPTS] + FURTHER
DOMAINS = {"summarization", "reasoning", "translation", "storytelling", "text-to-sql"}
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def artifact() -> RoutingArtifact:
    return RoutingArtifact.load(DEMO / "artifact")


def engine_of(dtype: torch.dtype, artifact: RoutingArtifact) -> tuple[Engine, list[list[int]], frozenset[int]]:
    checkpoint = load_checkpoint(str(DEMO / "model"), dtype, CPU)
    codec = TextCodec(checkpoint.tokenizer)
    artifact.check_model(checkpoint.fingerprint, codec.template_hash, DEMO)
    prompts = [codec.encode_chat([{"role": "user", "content": text}]) for text in TEXTS]
    return Engine(Decoder(checkpoint), EngineConfig(max_batch=8), artifact), prompts, checkpoint.eos_ids


def requests(
    prompts: list[list[int]], eos: frozenset[int], method: str, temperature: float = 0.0
) -> list[GenerationRequest]:
    stop = StopConditions(NEW_TOKENS, eos)
    return [GenerationRequest(ids, SamplingParams(temperature, seed=i), stop, method) for i, ids in enumerate(prompts)]


def test_it_fits_in_a_repository() -> None:
    size = sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file())
    assert size <= MEGABYTES * 2**20


def test_the_artifact_knows_the_five_domains(artifact: RoutingArtifact) -> None:
    assert {domain.name for domain in artifact.manifest.domains} == DOMAINS
    assert not any(domain.mask.is_empty for domain in artifact.manifest.domains)


def test_greedy_text_in_fp32_equals_transformers_on_25_prompts(artifact: RoutingArtifact) -> None:
    engine, prompts, eos = engine_of(torch.float32, artifact)
    reference = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
    sequences = engine.generate(requests(prompts, eos, "cascade"))
    assert len(sequences) == 25
    for sequence, ids in zip(sequences, prompts, strict=True):
        one = torch.tensor([ids])
        out = reference.generate(
            one,
            attention_mask=torch.ones_like(one),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            top_p=None,
            temperature=None,
        )
        assert sequence.output_ids == out[0, len(ids) :].tolist()
    assert sum(sequence.stats.num_accepted for sequence in sequences) > 100


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_speculation_changes_no_token_in_bf16(artifact: RoutingArtifact, temperature: float) -> None:
    engine, prompts, eos = engine_of(torch.bfloat16, artifact)
    plain = engine.generate(requests(prompts, eos, "plain", temperature))
    for method in ("skip", "cascade"):
        drafted = engine.generate(requests(prompts, eos, method, temperature))
        assert [s.output_ids for s in drafted] == [s.output_ids for s in plain]


def test_prompts_are_routed_to_their_domain(artifact: RoutingArtifact) -> None:
    engine, prompts, eos = engine_of(torch.bfloat16, artifact)
    sequences = engine.generate(requests(prompts[: len(PROMPTS)], eos, "cascade"))
    routes: list[Route] = [sequence.route for sequence in sequences]
    named = [(p["domain"], route.domain) for p, route in zip(PROMPTS, routes, strict=True) if p["domain"] in DOMAINS]
    wrong = Counter(pair for pair in named if pair[0] != pair[1])
    assert len(wrong) <= 1, wrong
