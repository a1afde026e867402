"""Losslessness: greedy text equals `transformers.generate`, and speculation changes nothing, for any mask."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from server.engine import (
    MAX_DRAFT,
    Checkpoint,
    Decoder,
    DraftModel,
    Engine,
    EngineConfig,
    GenerationRequest,
    Route,
    RoutingArtifact,
    SamplingParams,
    SkipMask,
    StopConditions,
    add_draft,
    load_checkpoint,
    methods,
)
from tests.tiny import CPU, save_random_model, tiny_config

SHAPE = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": tiny_config(),
    "llama-tied": tiny_config(tie_word_embeddings=True),
    "llama-multi-head": tiny_config(num_key_value_heads=4),
    "llama-one-key-head": tiny_config(num_key_value_heads=1),
    "llama-bias": tiny_config(attention_bias=True),
    "llama-linear-rope": tiny_config(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
    "llama-llama3-rope": tiny_config(rope_parameters=LLAMA3_ROPE),
    "llama-yarn-rope": tiny_config(
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    ),
    "mistral": MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=None, head_dim=8),
    "qwen2": Qwen2Config(**SHAPE, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16),
    "qwen3-tied": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True),
}
NEW_TOKENS = 40


def random_mask(num_layers: int, rng: random.Random) -> SkipMask:
    def part() -> frozenset[int]:
        return frozenset(i for i in range(num_layers) if rng.random() < 0.4)

    return SkipMask(part(), part())


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Random prompts that say everything twice, so that prompt lookup finds something to draft."""
    rng = random.Random(seed)
    texts = [[rng.randrange(6, 262) for _ in range(rng.randrange(4, 30))] for _ in range(count)]
    return [[1, *text, *text] for text in texts]


def reference(folder: Path, prompt: list[int]) -> list[int]:
    """What transformers generates greedily, the end-of-sequence token included."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0
    )
    new_ids: list[int] = out[0, len(prompt) :].tolist()
    return new_ids


def request(prompt: list[int], mask: SkipMask, method: str = "skip", **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        prompt,
        SamplingParams(**sampling),
        StopConditions(NEW_TOKENS, frozenset({2})),
        method=method,
        route=Route("test", DraftModel(mask)),
        max_draft=5,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_transformers(name: str, tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, CONFIGS[name], seed=3)
    model = Decoder(load_checkpoint(str(folder), torch.float32, CPU))
    rng = random.Random(1)
    engine = Engine(model, EngineConfig(max_batch=4, confidence=0.0))
    for prompt in prompts(3):
        expected = reference(folder, prompt)
        masks = [SkipMask(), random_mask(4, rng), random_mask(4, rng)]
        methods = ["plain", "skip", "cascade"]
        requests = [request(prompt, mask, method) for mask, method in zip(masks, methods, strict=True)]
        for sequence in engine.generate(requests):
            assert sequence.output_ids == expected


def test_every_method_writes_what_transformers_does_alone_and_in_one_batch(
    tiny_artifact: RoutingArtifact, tmp_path: Path
) -> None:
    folder = save_random_model(tmp_path, tiny_config(head_dim=16), seed=3)
    checkpoint = load_checkpoint(str(folder), torch.float32, CPU)
    model = Decoder(checkpoint)
    if model.native is None:
        pytest.skip("no kernels for this processor, so no copy in fewer bits")
    add_draft(model, checkpoint, "int4")
    (prompt,) = prompts(1, seed=8)
    expected = reference(folder, prompt)
    stop = StopConditions(NEW_TOKENS, frozenset({2}))
    requests = [GenerationRequest(prompt, SamplingParams(), stop, name) for name in methods()]
    engine = Engine(model, EngineConfig(max_batch=len(requests), confidence=0.0), tiny_artifact)
    assert not any(engine.lacks(name) for name in methods())
    for sequence in engine.generate(requests):
        assert sequence.output_ids == expected, sequence.method
    alone = Engine(model, EngineConfig(max_batch=1, confidence=0.0, is_adaptive=False), tiny_artifact)
    for request in requests:
        (sequence,) = alone.generate([request])
        assert sequence.output_ids == expected, sequence.method
        assert sequence.stats.num_drafted or sequence.method in ("plain", "cosine", "knapspec", "early-exit")


def test_eight_requests_of_different_masks_and_lengths_in_one_batch(model: Decoder, tiny_checkpoint: Path) -> None:
    rng = random.Random(5)
    requests = [request(prompt, random_mask(4, rng)) for prompt in prompts(8, seed=2)]
    engine = Engine(model, EngineConfig(max_batch=8, confidence=0.02, prefill_chunk=7))
    sequences = engine.generate(requests)
    for sequence in sequences:
        assert sequence.output_ids == reference(tiny_checkpoint, sequence.request.prompt_ids)
    assert sum(s.stats.num_accepted for s in sequences) > 0
    assert any(s.stats.num_accepted < s.stats.num_drafted for s in sequences)


@pytest.mark.parametrize("method", ["skip", "lookup", "cascade"])
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 20},
        {"temperature": 1.0, "min_p": 0.1},
    ],
)
def test_a_seed_gives_one_text_whatever_is_drafted(model: Decoder, method: str, sampling: dict[str, float]) -> None:
    rng = random.Random(7)
    plain = Engine(model, EngineConfig(max_batch=1))
    batched = Engine(model, EngineConfig(max_batch=8, confidence=0.0))
    prompt_list = prompts(8, seed=4)
    masks = [random_mask(4, rng) for _ in prompt_list]
    alone = [plain.generate([request(p, SkipMask(), "plain", seed=11, **sampling)])[0] for p in prompt_list]
    together = batched.generate(
        [request(p, m, method, seed=11, **sampling) for p, m in zip(prompt_list, masks, strict=True)]
    )
    assert [s.output_ids for s in together] == [s.output_ids for s in alone]
    assert sum(s.stats.num_drafted for s in together) > 0


def test_the_skipping_draft_of_an_empty_mask_is_always_accepted(model: Decoder, checkpoint: Checkpoint) -> None:
    """A draft that is the full model (an MLP skip that changes nothing) agrees with it everywhere."""
    weights = dict(checkpoint.weights)
    weights["model.layers.2.mlp.down_proj.weight"] = torch.zeros(32, 64)
    idle = Decoder(Checkpoint(**{**vars(checkpoint), "weights": weights}))
    engine = Engine(idle, EngineConfig(max_batch=1, confidence=0.0, baseline_share=0, is_adaptive=False))
    for temperature in (0.0, 1.0):
        mask = SkipMask(frozenset(), frozenset({2}))
        sequence = engine.generate([request(prompts(1)[0], mask, temperature=temperature, seed=0)])[0]
        assert sequence.stats.num_accepted == sequence.stats.num_drafted > 0


def test_bf16_text_is_the_same_with_the_longest_drafts(tmp_path: Path) -> None:
    """Rows of the most tokens that are verified at once still sum in the order of a single token."""
    folder = save_random_model(tmp_path, tiny_config(head_dim=16), seed=1)
    model = Decoder(load_checkpoint(str(folder), torch.bfloat16, CPU))
    if model.native is None:
        pytest.skip("the CPU kernels are not built here")
    engine = Engine(model, EngineConfig(max_batch=1, confidence=0.0))
    for prompt in prompts(8, seed=6):
        asked = request(prompt, SkipMask(frozenset({1})))
        plain, drafted = engine.generate(
            [replace(asked, method="plain"), replace(asked, max_draft=MAX_DRAFT, stop=StopConditions(120))]
        )
        assert drafted.output_ids[: len(plain.output_ids)] == plain.output_ids
        assert drafted.stats.num_drafted
