"""The whole way on another architecture: a small Qwen3, trained for some seconds on text with a structure."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from offline.__main__ import main
from offline.evaluation.evaluate import Evaluation
from server.engine import RoutingArtifact
from tests.tiny import byte_tokenizer

STEPS = 120
OPTIONS = (
    "--budget 20 --continuation-tokens 24 --search-prompts 5 --heldout-prompts 5 --measure-prompts 1 "
    "--anchors-per-domain 2"
)
KINDS = {"counting": "0123456789", "spelling": "abcdefghij"}


def conversation(kind: str, chance: random.Random) -> tuple[str, str]:
    """A prompt, and the answer that goes on in its rhythm."""
    letters, start = KINDS[kind], chance.randrange(10)
    step = chance.choice((1, 3))
    text = "".join(letters[(start + step * i) % 10] for i in range(60))
    return text[:20], text[20:]


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers with the query and key norms of Qwen3, and heads wider than hidden size / heads."""
    folder = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    tokenizer, chance = byte_tokenizer(), random.Random(0)
    config = Qwen3Config(
        vocab_size=262, hidden_size=48, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        pairs = [conversation(chance.choice(list(KINDS)), chance) for _ in range(16)]
        texts = [f"<s><|user|>{prompt}</s><|assistant|>{answer}" for prompt, answer in pairs]
        ids = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_qwen3_is_calibrated_and_drafts_without_changing_a_token(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(1)
    prompts = [{"prompt": conversation(kind, chance)[0], "domain": kind} for kind in KINDS for _ in range(200)]
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    path.write_text("\n".join(map(json.dumps, prompts)))
    common = ["--model", str(qwen3), "--prompts", str(path)]
    assert main(["calibrate", *common, "--out", str(out), *OPTIONS.split()]) == 0
    manifest = RoutingArtifact.load(out).manifest
    assert manifest.num_layers == 6
    assert [domain.name for domain in manifest.domains] == list(KINDS)
    capsys.readouterr()
    methods = ["--methods", "plain,knn,mixed,cascade", "--limit", "4", "--max-new-tokens", "24"]
    assert main(["evaluate", *common, "--artifact", str(out), *methods, "--json"]) == 0
    found = Evaluation.model_validate_json(capsys.readouterr().out)
    assert all(row.exact == 1.0 for row in found.results)
    # The threshold is set by five search prompts a domain, so about one prompt of six falls under it.
    assert found.routing_accuracy is not None and found.routing_accuracy >= 0.7
